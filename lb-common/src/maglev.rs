//! The draw from a Maglev table: a hash of the flow that is the same on every node, at every hook and in every run.
//!
//! The agent fills a service's range of slots so that an endpoint owns the same slots on every node
//! (`lb-agent/src/plan/maglev.rs`); whoever hashes a flow to the same slot then finds the same endpoint.
//! **Invariants:** constants and byte order below are part of the agreement between nodes: changed, two versions of a
//! mixed cluster choose differently.

/// Where hashes begin, so that the zero input is none in the output.
const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

/// A bijection of 64 bits in which every input bit moves every output bit (the finalizer of MurmurHash3).
#[must_use]
#[inline(always)]
pub const fn mix64(mut x: u64) -> u64 {
    x ^= x >> 33;
    x = x.wrapping_mul(0xff51_afd7_ed55_8ccd);
    x ^= x >> 33;
    x = x.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ (x >> 33)
}

/// The ports of a flow as hashes take them: the client's, then the frontend's, both in network order.
#[must_use]
#[inline(always)]
pub const fn ports(client: [u8; 2], frontend: [u8; 2]) -> u32 {
    u32::from_le_bytes([client[0], client[1], frontend[0], frontend[1]])
}

/// 32 bits for an IPv4 client (network order) and its ports.
#[must_use]
#[inline(always)]
pub const fn hash4(client: [u8; 4], ports: u32) -> u32 {
    let input = (u32::from_le_bytes(client) as u64) << 32 | ports as u64;
    (mix64(input ^ SEED) >> 32) as u32
}

/// 32 bits for an IPv6 client (network order) and its ports.
#[must_use]
#[inline(always)]
pub const fn hash6(client: [u8; 16], ports: u32) -> u32 {
    let value = u128::from_le_bytes(client);
    let (low, high) = (value as u64, (value >> 64) as u64);
    let input = mix64(low ^ SEED) ^ high ^ (ports as u64).wrapping_mul(SEED);
    (mix64(input) >> 32) as u32
}

/// A number below `len` for 32 even bits, without a division.
#[must_use]
#[inline(always)]
pub const fn below(bits: u32, len: u32) -> u32 {
    ((bits as u64 * len as u64) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agreement_between_nodes_has_not_changed() {
        assert_eq!(ports([0x30, 0x39], [0, 80]), 0x5000_3930);
        assert_eq!(hash4([203, 0, 113, 7], ports([0x30, 0x39], [0, 80])), HASH4);
        let client = [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
        assert_eq!(hash6(client, ports([0x30, 0x39], [0, 80])), HASH6);
    }
    const HASH4: u32 = 0x2813_96a0;
    const HASH6: u32 = 4_068_826_559;

    /// Pearson's statistic of counts that should be even, above its mean in standard deviations.
    fn unevenness(counts: &[u32]) -> f64 {
        let total: u32 = counts.iter().sum();
        let mean = f64::from(total) / counts.len() as f64;
        let chi: f64 = counts.iter().map(|n| (f64::from(*n) - mean).powi(2) / mean).sum();
        let freedom = (counts.len() - 1) as f64;
        (chi - freedom) / (2.0 * freedom).sqrt()
    }

    #[test]
    fn neighbouring_ports_and_addresses_spread_evenly() {
        const LEN: u32 = 1021;
        let spread = |flows: &mut dyn Iterator<Item = u32>| {
            let mut counts = [0; LEN as usize];
            flows.for_each(|hash| counts[below(hash, LEN) as usize] += 1);
            let off = unevenness(&counts);
            assert!(off.abs() < 5.0, "{off} deviations");
        };
        // one client, all its ports; clients one after another with one port, or no port (affinity)
        spread(&mut (0..=u16::MAX).map(|p| hash4([10, 0, 0, 1], ports(p.to_be_bytes(), [0, 80]))));
        spread(&mut (0..100_000_u32).map(|n| hash4(n.to_be_bytes(), ports([0x9c, 0x40], [0, 80]))));
        spread(&mut (0..100_000_u32).map(|n| hash4(n.to_be_bytes(), 0)));
        let six = |n: u32| (0x2001_0db8_u128 << 96 | u128::from(n)).to_be_bytes();
        spread(&mut (0..=u16::MAX).map(|p| hash6(six(1), ports(p.to_be_bytes(), [0, 80]))));
        spread(&mut (0..100_000).map(|n| hash6(six(n), 0)));
        let nets = |n: u32| (0x2001_0db8_u128 << 96 | u128::from(n) << 64 | 1).to_be_bytes();
        spread(&mut (0..100_000).map(|n| hash6(nets(n), 0)));
    }

    #[test]
    fn the_draw_stays_below_the_length() {
        assert_eq!((below(u32::MAX, 1021), below(0, 1021), below(u32::MAX, 1)), (1020, 0, 0));
        assert_eq!(below(u32::MAX, u32::MAX), u32::MAX - 1);
    }
}
