//! The packet of a TC program as a [`Frame`].

use core::arch::asm;

use aya_ebpf::bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC;
use aya_ebpf::bindings::{
    __sk_buff, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6, BPF_F_ADJ_ROOM_ENCAP_L4_UDP,
    BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM,
};
use aya_ebpf::helpers::{
    bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_skb_adjust_room, bpf_skb_change_tail, bpf_skb_pull_data,
    bpf_skb_store_bytes,
};
use lb_common::abi::{CFG_CSUM_IPV6, LbConfig};
use lb_common::family::Family;
use lb_common::frame::{Direct, Frame, Note};

use crate::head::BpfHead;

/// `BPF_F_IPV6` of `bpf_l4_csum_replace` (kernel 6.16): an IPv6 address change cancels itself out in the sum of the
/// whole packet, so `CHECKSUM_COMPLETE` must not be moved by it.
const BPF_F_IPV6: u64 = 1 << 7;
/// Headers that are made readable when some are missing: Ethernet, IPv6 with extension headers or IPv4 with options,
/// TCP; or those of an ICMP error and of the packet that it quotes.
const HEADERS: u32 = 14 + 60 + 8 + 60 + 60;
/// No header that we look at begins further in.
pub(crate) const FAR: usize = 320;

/// Takes the note ([`Note`]) off a packet; 0: there was none. Without a branch, which the verifier would follow through
/// all that comes behind it, twice.
///
/// It is in `skb->tc_index`, which goes with the packet from ingress to egress, wherever the stack keeps it meanwhile.
/// Others (Cilium) use its low bits.
#[inline(always)]
pub(crate) fn take_note(skb: *mut __sk_buff) -> u32 {
    // SAFETY: the program's context, of which it may write this field.
    unsafe {
        let index = (*skb).tc_index;
        (*skb).tc_index = index & !Note::ALL;
        index & Note::ALL
    }
}

/// An skb. Reads go straight to packet memory (headers that are not there are pulled in first), writes through helpers, which know about offloaded checksums, clones
/// and fragments.
pub struct SkbFrame {
    skb: *mut __sk_buff,
    /// Flags of `bpf_l4_csum_replace` for a pseudo-header change.
    pseudo: u64,
    /// Flag of `bpf_skb_adjust_room` for an outer header of the family.
    outer: u64,
}

impl SkbFrame {
    /// Wraps the context of a TC program.
    #[inline(always)]
    pub fn new<F: Family>(skb: *mut __sk_buff, config: &LbConfig) -> SkbFrame {
        let ipv6 = F::V6 && config.flags & CFG_CSUM_IPV6 != 0;
        let pseudo = BPF_F_PSEUDO_HDR as u64 | if ipv6 { BPF_F_IPV6 } else { 0 };
        let outer = if F::V6 { BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 } else { BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 };
        SkbFrame { skb, pseudo, outer: outer as u64 }
    }

    /// Makes the first `len` bytes readable in place, if the packet is that long and they are not yet.
    #[inline(always)]
    pub fn need(&mut self, len: u32) {
        let (data, end) = self.bounds();
        if data + len as usize > end {
            // SAFETY: `skb` is the program's context.
            unsafe {
                let whole = (*self.skb).len;
                if (end - data) < whole as usize {
                    bpf_skb_pull_data(self.skb, if whole < len { whole } else { len });
                }
            }
        }
    }

    /// Start and end of the packet memory. Read anew at each use: a helper that touches the skb moves it.
    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        let (data, end): (u64, u64);
        // SAFETY: 32-bit loads at the offsets of `data` (76) and `data_end` (80) in `struct __sk_buff`, which the
        // verifier turns into packet pointers. In assembly, because the compiler would narrow comparisons of
        // pointers that it believes to be 32 bits wide.
        unsafe {
            asm!("{0} = *(u32 *)({1} + 76)", out(reg) data, in(reg) self.skb, options(readonly, nostack, preserves_flags));
            asm!("{0} = *(u32 *)({1} + 80)", out(reg) end, in(reg) self.skb, options(readonly, nostack, preserves_flags));
        }
        (data as usize, end as usize)
    }
}

impl Direct for SkbFrame {
    type Head<'a, const N: usize> = BpfHead<'a, N>;

    #[inline(always)]
    fn head<const N: usize>(&self) -> Option<BpfHead<'_, N>> {
        let (data, end) = self.bounds();
        // SAFETY: packet memory, just compared, and borrowed from this frame.
        (data + N <= end).then(|| unsafe { BpfHead::new(data) })
    }

    #[inline(always)]
    fn store_words<const N: usize>(&mut self, off: usize, words: &[u32; N]) -> Option<()> {
        // SAFETY: as in `store`.
        let failed =
            unsafe { bpf_skb_store_bytes(self.skb, off as u32, words.as_ptr().cast(), 4 * N as u32, 0) };
        (failed == 0).then_some(())
    }
}

/// Reads N bytes of packet memory by the widest loads. BPF has unaligned packet access, the compiler does not know.
///
/// # Safety
/// - [start, start + N) is packet memory.
#[inline(always)]
pub(crate) unsafe fn read<const N: usize>(start: usize) -> [u8; N] {
    let mut bytes = Words::<N> { bytes: [0; N] };
    let to = bytes.bytes.as_mut_ptr();
    let mut done = 0;
    // SAFETY: each load is inside the range that the caller vouches for; each store is inside `bytes`, which is
    // aligned to 8, at an offset that is a multiple of the store's width.
    unsafe {
        while done + 8 <= N {
            let word: u64;
            asm!("{0} = *(u64 *)({1} + 0)", out(reg) word, in(reg) start + done, options(readonly, nostack, preserves_flags));
            to.add(done).cast::<u64>().write(word);
            done += 8;
        }
        if done + 4 <= N {
            let word: u64;
            asm!("{0} = *(u32 *)({1} + 0)", out(reg) word, in(reg) start + done, options(readonly, nostack, preserves_flags));
            to.add(done).cast::<u32>().write(word as u32);
            done += 4;
        }
        if done + 2 <= N {
            let word: u64;
            asm!("{0} = *(u16 *)({1} + 0)", out(reg) word, in(reg) start + done, options(readonly, nostack, preserves_flags));
            to.add(done).cast::<u16>().write(word as u16);
            done += 2;
        }
        if done < N {
            *to.add(done) = *((start + done) as *const u8);
        }
    }
    bytes.bytes
}

/// Bytes that can be written by words.
#[repr(C, align(8))]
struct Words<const N: usize> {
    bytes: [u8; N],
}

impl Frame for SkbFrame {
    #[inline(always)]
    fn load<const N: usize>(&self, off: usize) -> Option<[u8; N]> {
        if off > FAR {
            return None;
        }
        let (data, end) = self.bounds();
        let mut off = off as u64;
        // SAFETY: changes nothing, off is at most FAR; it shows that to the verifier in the register that is used,
        // where the compiler may have checked another one.
        unsafe { asm!("{0} &= 0x1ff", inout(reg) off, options(pure, nomem, nostack)) };
        let start = data + off as usize;
        if start + N > end {
            return None;
        }
        // SAFETY: [start, start + N) is inside the packet, just compared.
        Some(unsafe { read(start) })
    }

    #[inline(always)]
    fn store<const N: usize>(&mut self, off: usize, bytes: &[u8; N]) -> Option<()> {
        // SAFETY: the source is N bytes of ours; the helper checks the destination and makes it writable.
        let failed = unsafe { bpf_skb_store_bytes(self.skb, off as u32, bytes.as_ptr().cast(), N as u32, 0) };
        (failed == 0).then_some(())
    }

    #[inline(always)]
    fn store_summed<const N: usize>(&mut self, off: usize, bytes: &[u8; N]) -> Option<()> {
        let flags = BPF_F_RECOMPUTE_CSUM as u64;
        // SAFETY: as in `store`.
        let failed =
            unsafe { bpf_skb_store_bytes(self.skb, off as u32, bytes.as_ptr().cast(), N as u32, flags) };
        (failed == 0).then_some(())
    }

    #[inline(always)]
    fn crc32c_change(&self, change: [u8; 4], length: u32) -> u32 {
        crate::steps::lb_crc32c(u32::from_ne_bytes(change), length)
    }

    #[inline(always)]
    fn fix_l3(&mut self, off: usize, delta: u16) -> Option<()> {
        // SAFETY: `skb` is the program's context; size 0 takes `to` as a difference.
        let failed = unsafe { bpf_l3_csum_replace(self.skb, off as u32, 0, delta as u64, 0) };
        (failed == 0).then_some(())
    }

    #[inline(always)]
    fn fix_l4(&mut self, off: usize, addr: u16, port: u16, udp: bool) -> Option<()> {
        let mangled = if udp { BPF_F_MARK_MANGLED_0 as u64 } else { 0 };
        // SAFETY: as in `fix_l3`.
        let failed =
            unsafe { bpf_l4_csum_replace(self.skb, off as u32, 0, addr as u64, self.pseudo | mangled) };
        if failed != 0 {
            return None;
        }
        if port != 0 {
            // SAFETY: as in `fix_l3`.
            let failed = unsafe { bpf_l4_csum_replace(self.skb, off as u32, 0, port as u64, mangled) };
            if failed != 0 {
                return None;
            }
        }
        Some(())
    }

    #[inline(always)]
    fn pull(&mut self) {
        self.need(HEADERS);
    }

    #[inline(always)]
    fn segment(&self) -> usize {
        // SAFETY: the program's context.
        unsafe { (*self.skb).gso_size as usize }
    }

    // The room is behind the Ethernet header, where the only IP header of the frame is. The size of segments stays what
    // the connection has agreed on.

    #[inline(always)]
    fn wrap(&mut self, _l3: usize, len: usize, udp: bool) -> Option<()> {
        let udp = if udp { BPF_F_ADJ_ROOM_ENCAP_L4_UDP as u64 } else { 0 };
        let flags = self.outer | udp | BPF_F_ADJ_ROOM_FIXED_GSO as u64;
        // SAFETY: `skb` is the program's context.
        let failed = unsafe { bpf_skb_adjust_room(self.skb, len as i32, BPF_ADJ_ROOM_MAC, flags) };
        (failed == 0).then_some(())
    }

    #[inline(always)]
    fn unwrap(&mut self, _l3: usize, len: usize) -> Option<()> {
        let flags = BPF_F_ADJ_ROOM_FIXED_GSO as u64;
        // SAFETY: `skb` is the program's context.
        let failed = unsafe { bpf_skb_adjust_room(self.skb, -(len as i32), BPF_ADJ_ROOM_MAC, flags) };
        (failed == 0).then_some(())
    }

    #[inline(always)]
    fn resize(&mut self, len: usize) -> Option<()> {
        // SAFETY: `skb` is the program's context.
        let failed = unsafe { bpf_skb_change_tail(self.skb, len as u32, 0) };
        (failed == 0).then_some(())
    }

    #[inline(always)]
    fn note(&mut self, note: Note) {
        // SAFETY: as in `take_note`.
        unsafe { (*self.skb).tc_index = ((*self.skb).tc_index & !Note::ALL) | note as u32 };
    }
}
