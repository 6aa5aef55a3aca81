//! CRC32c (RFC 9260 appendix A) of an SCTP packet whose ports change.
//!
//! The CRC is linear: the one of (a xor b) is the CRC of a xor the *raw* CRC of b (register begun with zero, not
//! inverted at the end). With b zero but for the changed bytes, that is the change, pushed through a register by the
//! number of bytes from there to the end of the packet. A push by n bytes is a multiplication by x^8n modulo the
//! polynomial, and n has 16 bits, so at most 16 multiplications by known factors do it, whatever the length.

/// The polynomial, bit-reflected: bit 31 is x^0.
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// x^8 in the same order: a push by one byte.
const BYTE: u32 = 1 << 23;
/// Bits of the length of an IP packet.
const BITS: usize = 16;

/// Factor number k pushes by 2^k bytes.
const FACTORS: [u32; BITS] = {
    let mut factors = [BYTE; BITS];
    let mut k = 1;
    while k < BITS {
        factors[k] = multiply(factors[k - 1], factors[k - 1]);
        k += 1;
    }
    factors
};

/// The product of two polynomials modulo [`POLYNOMIAL`]. Without branches: a verifier follows one way.
#[inline(always)]
const fn multiply(a: u32, b: u32) -> u32 {
    let (mut product, mut b, mut bit) = (0, b, 32);
    while bit > 0 {
        bit -= 1;
        product ^= b & 0u32.wrapping_sub((a >> bit) & 1);
        b = (b >> 1) ^ (POLYNOMIAL & 0u32.wrapping_sub(b & 1));
    }
    product
}

/// What to xor to the CRC32c of `length` bytes (below 2^16) whose first four change by `change` (old xor new).
///
/// The CRC as a number; in an SCTP packet its bytes lie in little-endian order.
#[must_use]
#[inline(always)]
pub fn change(change: [u8; 4], length: u32) -> u32 {
    let mut register = u32::from_le_bytes(change);
    for (bit, factor) in FACTORS.iter().enumerate() {
        if length & (1 << bit) != 0 {
            register = multiply(*factor, register);
        }
    }
    register
}

#[cfg(all(test, feature = "test-util"))]
mod tests {
    use super::*;
    use crate::testing::packets::crc32c;
    use proptest::prelude::*;

    /// Against the CRC of the whole, bit by bit. All lengths up to 2048, and those around each power of two.
    #[test]
    fn the_change_of_a_crc_equals_the_crc_of_the_change_for_all_lengths() {
        let around = (11..16).flat_map(|bit| [(1 << bit) - 1, 1 << bit, (1 << bit) + 1]);
        for length in (4..=2048).chain(around).chain([65_535]) {
            let mut bytes: Vec<u8> = (0..length).map(|n| (n * 7 + n / 251) as u8).collect();
            let before = crc32c(&bytes);
            let new = [length as u8, 0x1f, 0x90, (length >> 8) as u8];
            let diff = core::array::from_fn(|n| bytes[n] ^ new[n]);
            bytes[..4].copy_from_slice(&new);
            assert_eq!(before ^ change(diff, length), crc32c(&bytes), "{length} bytes");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_any_change(bytes in proptest::collection::vec(any::<u8>(), 4..3000), diff: [u8; 4]) {
            let mut changed = bytes.clone();
            for (byte, diff) in changed.iter_mut().zip(diff) {
                *byte ^= diff;
            }
            prop_assert_eq!(crc32c(&bytes) ^ change(diff, bytes.len() as u32), crc32c(&changed));
        }
    }
}
