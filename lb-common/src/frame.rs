//! The bytes at a hook.

#[cfg(feature = "std")]
use crate::csum;

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
    /// Cuts or grows the frame to `len` bytes; new bytes are undefined.
    fn resize(&mut self, len: usize) -> Option<()>;
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

    fn resize(&mut self, len: usize) -> Option<()> {
        std::vec::Vec::resize(self, len, 0xa5);
        Some(())
    }
}
