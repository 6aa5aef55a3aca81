//! The beginning of a packet in memory as a [`Head`].

use core::arch::asm;
use core::marker::PhantomData;

use lb_common::frame::{Head, HeadMut};

/// The first N bytes of packet memory, which was compared with its end.
///
/// All accesses are in assembly: BPF has unaligned packet access, the compiler does not know, and would go by bytes.
pub struct BpfHead<'a, const N: usize> {
    start: usize,
    frame: PhantomData<&'a mut [u8; N]>,
}

impl<const N: usize> BpfHead<'_, N> {
    /// # Safety
    /// - [start, start + N) is packet memory that nothing else reads or changes while this lives, and the verifier was
    ///   shown that by a comparison of `start`. At TC it is only read: a program that writes packet memory has every
    ///   packet made writable before it begins.
    #[inline(always)]
    pub unsafe fn new(start: usize) -> Self {
        BpfHead { start, frame: PhantomData }
    }
}

macro_rules! access {
    ($($get:ident $set:ident $type:ident $load:literal $store:literal;)*) => {
        impl<const N: usize> Head<N> for BpfHead<'_, N> {
            $(
                #[inline(always)]
                fn $get<const OFF: usize>(&self) -> $type {
                    const { assert!(OFF + size_of::<$type>() <= N) }
                    let value: u64;
                    // SAFETY: inside the N bytes, which are readable as long as this lives.
                    unsafe {
                        asm!($load, out(reg) value, in(reg) self.start, const OFF, options(pure, readonly, nostack, preserves_flags));
                    }
                    value as $type
                }
            )*
        }

        impl<const N: usize> HeadMut<N> for BpfHead<'_, N> {
            $(
                #[inline(always)]
                fn $set<const OFF: usize>(&mut self, value: $type) {
                    const { assert!(OFF + size_of::<$type>() <= N) }
                    // SAFETY: inside the N bytes, which are ours to write as long as this lives.
                    unsafe {
                        asm!($store, in(reg) self.start, const OFF, in(reg) value as u64, options(nostack, preserves_flags));
                    }
                }
            )*
        }
    };
}

access! {
    byte set_byte u8 "{0} = *(u8 *)({1} + {2})" "*(u8 *)({0} + {1}) = {2}";
    half set_half u16 "{0} = *(u16 *)({1} + {2})" "*(u16 *)({0} + {1}) = {2}";
    word set_word u32 "{0} = *(u32 *)({1} + {2})" "*(u32 *)({0} + {1}) = {2}";
    long set_long u64 "{0} = *(u64 *)({1} + {2})" "*(u64 *)({0} + {1}) = {2}";
}
