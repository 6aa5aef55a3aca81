//! The bytes at a hook.

#[cfg(feature = "std")]
use crate::csum;

/// What ingress tells egress of a packet that it has rewritten. The number is a set of bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Note {
    /// The rest of a masqueraded flow must be found, or the packet would leave with the client's address, or with the
    /// backend's.
    Owed = 1 << 15,
    /// There is nothing left to do.
    Done = 1 << 14,
}

impl Note {
    /// All bits of notes.
    pub const ALL: u32 = Note::Owed as u32 | Note::Done as u32;
}

/// A packet that can be read and changed. Implemented by the skb of a TC program and by a byte vector.
///
/// Laws: a failed call changes nothing; after `store` a `load` of the same range gives the same bytes.
pub trait Frame {
    /// Reads N bytes at `off` (bytes from the start of the frame). `None`: the range leaves the packet.
    fn load<const N: usize>(&self, off: usize) -> Option<[u8; N]>;
    /// Writes N bytes at `off`. `None`: out of range, nothing was written.
    fn store<const N: usize>(&mut self, off: usize, bytes: &[u8; N]) -> Option<()>;
    /// Writes like `store`, where nothing else in the packet makes up for the change: the sum over the whole packet that
    /// a device delivered with it (`CHECKSUM_COMPLETE`) has to follow.
    fn store_summed<const N: usize>(&mut self, off: usize, bytes: &[u8; N]) -> Option<()> {
        self.store(off, bytes)
    }
    /// [`crate::crc32c::change`]; the BPF side calls it as a global function.
    fn crc32c_change(&self, change: [u8; 4], length: u32) -> u32 {
        crate::crc32c::change(change, length)
    }
    /// Corrects the IPv4 header checksum at `off` by a delta of [`crate::csum`].
    fn fix_l3(&mut self, off: usize, delta: u16) -> Option<()>;
    /// Corrects the TCP or UDP checksum at `off`: `addr` for the pseudo-header, `port` for the ports. A UDP checksum
    /// of zero (`udp`, RFC 768: none) stays zero, and none becomes zero.
    fn fix_l4(&mut self, off: usize, addr: u16, port: u16, udp: bool) -> Option<()>;
    /// Makes headers loadable that are in the packet but not in directly readable memory. Costs a copy: for when a
    /// `load` has failed.
    fn pull(&mut self);
    /// Bytes of payload per packet, if the frame stands for several of one flow that are told apart later (GSO); 0 = it is
    /// one packet.
    fn segment(&self) -> usize {
        0
    }
    /// Makes `len` bytes of room in front of the IP header at `l3` for an outer one, with a UDP header behind it if
    /// `udp`; the new bytes are undefined.
    fn wrap(&mut self, l3: usize, len: usize, udp: bool) -> Option<()>;
    /// Takes the `len` bytes from `l3` on out, an outer IP header and what follows it.
    fn unwrap(&mut self, l3: usize, len: usize) -> Option<()>;
    /// Cuts or grows the frame to `len` bytes; new bytes are undefined.
    fn resize(&mut self, len: usize) -> Option<()>;
    /// Leaves a note on the packet itself, in place of what was there. A frame that nobody hands on needs none.
    fn note(&mut self, _note: Note) {}
}

/// A frame whose beginning can be read in place, at offsets known when it is compiled: one comparison for all of it, and
/// one instruction for each access.
pub trait Direct: Frame {
    /// See [`Direct::head`].
    type Head<'a, const N: usize>: Head<N>
    where
        Self: 'a;
    /// The first N bytes. `None`: the frame is shorter, or they are not in directly readable memory.
    fn head<const N: usize>(&self) -> Option<Self::Head<'_, N>>;
    /// [`Frame::store`] of N words as they lie in memory.
    fn store_words<const N: usize>(&mut self, off: usize, words: &[u32; N]) -> Option<()>;
}

/// A frame whose beginning can be changed in the same way.
pub trait DirectMut: Direct {
    /// See [`DirectMut::head_mut`].
    type HeadMut<'a, const N: usize>: HeadMut<N>
    where
        Self: 'a;
    /// The first N bytes. `None`: the frame is shorter.
    fn head_mut<const N: usize>(&mut self) -> Option<Self::HeadMut<'_, N>>;
}

/// The first N bytes of a frame, in place. Numbers of more than a byte are as they lie in memory. Offsets are bytes from the
/// start of the frame; one that leaves the N bytes does not compile.
pub trait Head<const N: usize> {
    /// The byte at OFF.
    fn byte<const OFF: usize>(&self) -> u8;
    /// The two bytes at OFF.
    fn half<const OFF: usize>(&self) -> u16;
    /// The four bytes at OFF.
    fn word<const OFF: usize>(&self) -> u32;
    /// The eight bytes at OFF.
    fn long<const OFF: usize>(&self) -> u64;
}

/// The same, to be changed.
pub trait HeadMut<const N: usize>: Head<N> {
    /// Writes what [`Head::byte`] reads.
    fn set_byte<const OFF: usize>(&mut self, value: u8);
    /// Writes what [`Head::half`] reads.
    fn set_half<const OFF: usize>(&mut self, value: u16);
    /// Writes what [`Head::word`] reads.
    fn set_word<const OFF: usize>(&mut self, value: u32);
    /// Writes what [`Head::long`] reads.
    fn set_long<const OFF: usize>(&mut self, value: u64);
}

#[cfg(feature = "std")]
impl Direct for std::vec::Vec<u8> {
    type Head<'a, const N: usize> = [u8; N];

    fn head<const N: usize>(&self) -> Option<[u8; N]> {
        self.first_chunk::<N>().copied()
    }

    fn store_words<const N: usize>(&mut self, off: usize, words: &[u32; N]) -> Option<()> {
        let to = self.get_mut(off..off.checked_add(4 * N)?)?;
        for (to, word) in to.chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        Some(())
    }
}

#[cfg(feature = "std")]
impl DirectMut for std::vec::Vec<u8> {
    type HeadMut<'a, const N: usize> = &'a mut [u8; N];

    fn head_mut<const N: usize>(&mut self) -> Option<&mut [u8; N]> {
        self.first_chunk_mut::<N>()
    }
}

#[cfg(feature = "std")]
macro_rules! access {
    ($($get:ident $set:ident $type:ident;)*) => {
        impl<const N: usize> Head<N> for [u8; N] {
            $(
                fn $get<const OFF: usize>(&self) -> $type {
                    const { assert!(OFF + size_of::<$type>() <= N) }
                    let mut bytes = [0; size_of::<$type>()];
                    bytes.copy_from_slice(&self[OFF..OFF + size_of::<$type>()]);
                    $type::from_ne_bytes(bytes)
                }
            )*
        }

        impl<const N: usize> Head<N> for &mut [u8; N] {
            $(
                fn $get<const OFF: usize>(&self) -> $type {
                    (**self).$get::<OFF>()
                }
            )*
        }

        impl<const N: usize> HeadMut<N> for &mut [u8; N] {
            $(
                fn $set<const OFF: usize>(&mut self, value: $type) {
                    const { assert!(OFF + size_of::<$type>() <= N) }
                    self[OFF..OFF + size_of::<$type>()].copy_from_slice(&value.to_ne_bytes());
                }
            )*
        }
    };
}

#[cfg(feature = "std")]
access! {
    byte set_byte u8;
    half set_half u16;
    word set_word u32;
    long set_long u64;
}

#[cfg(feature = "std")]
impl Frame for std::vec::Vec<u8> {
    fn load<const N: usize>(&self, off: usize) -> Option<[u8; N]> {
        self.get(off..off.checked_add(N)?)?.try_into().ok()
    }

    fn store<const N: usize>(&mut self, off: usize, bytes: &[u8; N]) -> Option<()> {
        self.get_mut(off..off.checked_add(N)?)?.copy_from_slice(bytes);
        Some(())
    }

    fn fix_l3(&mut self, off: usize, delta: u16) -> Option<()> {
        let old = u16::from_ne_bytes(self.load(off)?);
        self.store(off, &csum::apply(old, delta).to_ne_bytes())
    }

    fn fix_l4(&mut self, off: usize, addr: u16, port: u16, udp: bool) -> Option<()> {
        let old = u16::from_ne_bytes(self.load(off)?);
        self.store(off, &csum::apply_l4(old, addr, port, udp).to_ne_bytes())
    }

    fn pull(&mut self) {}

    fn wrap(&mut self, l3: usize, len: usize, _udp: bool) -> Option<()> {
        (l3 <= self.len()).then(|| self.splice(l3..l3, core::iter::repeat_n(0xa5, len))).map(drop)
    }

    fn unwrap(&mut self, l3: usize, len: usize) -> Option<()> {
        (l3 + len <= self.len()).then(|| self.drain(l3..l3 + len)).map(drop)
    }

    fn resize(&mut self, len: usize) -> Option<()> {
        std::vec::Vec::resize(self, len, 0xa5);
        Some(())
    }
}
