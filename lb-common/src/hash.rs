//! Hashes that several places must agree on.

use crate::abi::ROLE_BITS;

/// 2^32 divided by the golden ratio: Fibonacci hashing spreads consecutive addresses.
const GOLDEN32: u32 = 0x9e37_79b1;

/// Slot of an IPv4 address (network order) in the role filter.
#[must_use]
#[inline(always)]
pub fn role_slot4(addr: [u8; 4]) -> u32 {
    u32::from_le_bytes(addr).wrapping_mul(GOLDEN32) >> (32 - ROLE_BITS)
}

/// Slot of an IPv6 address (network order) in the role filter.
#[must_use]
#[inline(always)]
pub fn role_slot6(addr: [u8; 16]) -> u32 {
    let [a, b, c, d] = words(addr);
    let mixed = (a ^ b.rotate_left(16)).wrapping_mul(GOLDEN32) ^ c.rotate_left(8) ^ d;
    mixed.wrapping_mul(GOLDEN32) >> (32 - ROLE_BITS)
}

/// An IPv6 address as four little-endian words.
#[inline(always)]
fn words(a: [u8; 16]) -> [u32; 4] {
    [
        u32::from_le_bytes([a[0], a[1], a[2], a[3]]),
        u32::from_le_bytes([a[4], a[5], a[6], a[7]]),
        u32::from_le_bytes([a[8], a[9], a[10], a[11]]),
        u32::from_le_bytes([a[12], a[13], a[14], a[15]]),
    ]
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
            core::net::IpAddr::V6(a) => role_slot6(a.octets()),
        };
        if let Some(byte) = roles.get_mut(slot as usize) {
            *byte |= role;
        }
    }
    roles
}
