//! Internet checksum arithmetic (RFC 1071, RFC 1624) on native-endian 16-bit words, as they lie in memory.
//!
//! A *delta* is the folded one's-complement sum of the new words and the complements of the old ones. The same
//! number serves a slice ([`apply`]) and the kernel's `bpf_l3_csum_replace` / `bpf_l4_csum_replace` with size 0.

use crate::family::Family;

/// Folds a sum of 16-bit words into 16 bits with end-around carry. `sum` is below 2^32.
#[must_use]
#[inline(always)]
pub const fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    ((once & 0xffff) + (once >> 16)) as u16
}

/// The checksum after its data changed by `delta` (RFC 1624, equation 3).
#[must_use]
#[inline(always)]
pub const fn apply(checksum: u16, delta: u16) -> u16 {
    !fold(!checksum as u32 + delta as u32)
}

/// A TCP or UDP checksum, as it lies in memory, after its data changed by `addr` (pseudo-header) and `port`. A UDP
/// checksum of zero (`udp`, RFC 768: none) stays zero, and none becomes zero.
#[must_use]
#[inline(always)]
pub const fn apply_l4(checksum: u16, addr: u16, port: u16, udp: bool) -> u16 {
    if udp && checksum == 0 {
        return 0;
    }
    let new = apply(apply(checksum, addr), port);
    if udp && new == 0 { 0xffff } else { new }
}

/// The delta of a change of source and destination address.
#[must_use]
#[inline(always)]
pub fn addr_delta<F: Family>(old: [F::Addr; 2], new: [F::Addr; 2]) -> u16 {
    // the complement of a sum of n words is n * 0xffff minus the sum, which is 0 or -0 away from !fold(sum)
    let gone = !fold(F::sum(old[0]) + F::sum(old[1]));
    fold(F::sum(new[0]) + F::sum(new[1]) + gone as u32)
}

/// The delta of a change of source and destination port.
#[must_use]
#[inline(always)]
pub fn port_delta(old: [[u8; 2]; 2], new: [[u8; 2]; 2]) -> u16 {
    let sum = |p: [[u8; 2]; 2]| u16::from_ne_bytes(p[0]) as u32 + u16::from_ne_bytes(p[1]) as u32;
    fold(sum(new) + !fold(sum(old)) as u32)
}

/// The delta of a change of one word.
#[must_use]
#[inline(always)]
pub fn word_delta(old: [u8; 2], new: [u8; 2]) -> u16 {
    fold(u16::from_ne_bytes(new) as u32 + !u16::from_ne_bytes(old) as u32)
}

/// The sum of whole words; `bytes` has an even length.
#[must_use]
#[inline(always)]
pub fn sum_words<const N: usize>(bytes: &[u8; N]) -> u32 {
    let mut sum = 0;
    let (pairs, _) = bytes.as_chunks::<2>();
    for pair in pairs {
        sum += u16::from_ne_bytes(*pair) as u32;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::{V4, V6};
    use proptest::prelude::*;

    fn full(bytes: &[u8]) -> u16 {
        !fold(bytes.chunks(2).map(|c| u16::from_ne_bytes([c[0], c[1]]) as u32).sum())
    }

    /// -0 and +0 are the same number in one's complement.
    fn same(a: u16, b: u16) -> bool {
        a == b || (a == 0 && b == 0xffff) || (a == 0xffff && b == 0)
    }

    proptest! {
        #[test]
        fn incremental_equals_full_ipv4(rest: [u8; 8], old: [[u8; 4]; 2], new: [[u8; 4]; 2]) {
            let bytes = |a: [[u8; 4]; 2]| [&rest[..], &a[0], &a[1]].concat();
            let delta = addr_delta::<V4>(old.map(Into::into), new.map(Into::into));
            prop_assert!(same(apply(full(&bytes(old)), delta), full(&bytes(new))));
        }

        #[test]
        fn incremental_equals_full_ipv6(rest: [u8; 8], old: [[u8; 16]; 2], new: [[u8; 16]; 2]) {
            let bytes = |a: [[u8; 16]; 2]| [&rest[..], &a[0], &a[1]].concat();
            let delta = addr_delta::<V6>(old.map(Into::into), new.map(Into::into));
            prop_assert!(same(apply(full(&bytes(old)), delta), full(&bytes(new))));
        }

        #[test]
        fn incremental_equals_full_ports(rest: [u8; 8], old: [[u8; 2]; 2], new: [[u8; 2]; 2]) {
            let bytes = |a: [[u8; 2]; 2]| [&rest[..], &a[0], &a[1]].concat();
            prop_assert!(same(apply(full(&bytes(old)), port_delta(old, new)), full(&bytes(new))));
        }
    }
}
