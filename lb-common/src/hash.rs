//! Hashes that several places must agree on.

use crate::abi::ROLE_BITS;
use crate::family::Ip6;

/// 2^32 divided by the golden ratio: Fibonacci hashing spreads consecutive addresses.
const GOLDEN32: u32 = 0x9e37_79b1;

/// Slot of an IPv4 address (network order) in the role filter.
#[must_use]
#[inline(always)]
pub fn role_slot4(addr: [u8; 4]) -> u32 {
    u32::from_le_bytes(addr).wrapping_mul(GOLDEN32) >> (32 - ROLE_BITS)
}

/// Slot of an IPv6 address in the role filter. Not inlined: it is everywhere, and a BPF stack is small.
#[must_use]
#[inline(never)]
pub fn role_slot6(addr: &Ip6) -> u32 {
    role_slot6_inline(addr)
}

/// [`role_slot6`], inlined.
#[must_use]
#[inline(always)]
pub fn role_slot6_inline(addr: &Ip6) -> u32 {
    mix6(addr).wrapping_mul(GOLDEN32) >> (32 - ROLE_BITS)
}

/// The bits of an address in 32.
#[must_use]
#[inline(always)]
pub fn mix6(addr: &Ip6) -> u32 {
    let value = u128::from_le_bytes(addr.addr);
    let (low, high) = (value as u64, (value >> 64) as u64);
    let (a, b, c, d) = (low as u32, (low >> 32) as u32, high as u32, (high >> 32) as u32);
    (a ^ b.rotate_left(16)).wrapping_mul(GOLDEN32) ^ c.rotate_left(8) ^ d
}

/// Slot of two addresses in the pair filter, given their slots in the role filter; the order does not matter.
#[must_use]
#[inline(always)]
pub fn pair_slot(a: u32, b: u32) -> u32 {
    let mixed = (a ^ b).wrapping_mul(0x85eb_ca6b) ^ a.wrapping_add(b);
    mixed.wrapping_mul(GOLDEN32) >> (32 - ROLE_BITS)
}

/// The bytes of a role filter for a set of addresses with their roles.
///
/// Pure; the agent writes the result to `LB_ROLES` whenever the set changes.
#[cfg(feature = "std")]
#[must_use]
pub fn role_filter(addresses: impl IntoIterator<Item = (core::net::IpAddr, u8)>) -> Vec<u8> {
    let mut roles = vec![0; crate::abi::ROLE_SIZE];
    for (address, role) in addresses {
        let slot = match address {
            core::net::IpAddr::V4(a) => role_slot4(a.octets()),
            core::net::IpAddr::V6(a) => role_slot6(&a.octets().into()),
        };
        if let Some(byte) = roles.get_mut(slot as usize) {
            *byte |= role;
        }
    }
    roles
}
