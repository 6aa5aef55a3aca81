//! Source ports for masquerading: a pool that no socket and no NodePort of the host can have.

use std::collections::BTreeSet;

use lb_common::abi::{PortRange, SNAT_RANGES};

use crate::links::NodeNet;

/// Kubernetes' default NodePort range; the API server's flag is not known here.
const NODE_PORTS: (u16, u16) = (30_000, 32_767);
/// Ports below are privileged; servers that check the source port would refuse others to use them.
const FIRST: u16 = 1024;

/// The pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SnatPool {
    /// Ranges in use first, largest first.
    pub ranges: [PortRange; SNAT_RANGES],
    /// Ports in all ranges.
    pub total: u32,
}

/// The largest ranges of 1024-65535 outside of the ephemeral range, reserved ports and NodePorts. Pure.
#[must_use]
pub fn snat_pool(net: &NodeNet, node_ports: &BTreeSet<u16>) -> SnatPool {
    let outside = node_ports.iter().filter(|p| **p < NODE_PORTS.0 || **p > NODE_PORTS.1);
    let mut taken: Vec<(u16, u16)> = outside.map(|p| (*p, *p)).collect();
    taken.push(NODE_PORTS);
    taken.push(net.ephemeral);
    taken.extend(&net.reserved);
    taken.sort_unstable();
    let mut free = Vec::new();
    let mut next = u32::from(FIRST);
    for (min, max) in taken {
        if u32::from(min) > next {
            free.push((next, u32::from(min) - 1));
        }
        next = next.max(u32::from(max) + 1);
    }
    if next <= u32::from(u16::MAX) {
        free.push((next, u32::from(u16::MAX)));
    }
    free.sort_by_key(|(min, max)| (u32::MAX - (max - min), *min));
    let mut pool = SnatPool::default();
    for (slot, (min, max)) in pool.ranges.iter_mut().zip(free) {
        *slot = PortRange { min: port(min), max: port(max) };
        pool.total += max - min + 1;
    }
    pool
}

/// Every bound above is at most 65535.
fn port(number: u32) -> u16 {
    u16::try_from(number).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(ephemeral: (u16, u16), reserved: &[(u16, u16)]) -> NodeNet {
        NodeNet { ephemeral, reserved: reserved.to_vec(), ..NodeNet::default() }
    }

    fn pool(net: &NodeNet, node_ports: &[u16]) -> (Vec<(u16, u16)>, u32) {
        let pool = snat_pool(net, &node_ports.iter().copied().collect());
        (pool.ranges.iter().filter(|r| r.min != 0).map(|r| (r.min, r.max)).collect(), pool.total)
    }

    #[test]
    fn a_usual_node_has_about_33_thousand_ports() {
        let found = pool(&net((32_768, 60_999), &[]), &[]);
        assert_eq!(found, (vec![(1024, 29_999), (61_000, 65_535)], 28_976 + 4_536));
    }

    #[test]
    fn reserved_ports_and_unusual_node_ports_are_left_out() {
        let found = pool(&net((32_768, 60_999), &[(8_000, 8_999), (65_535, 65_535)]), &[20_000, 31_000]);
        let ranges = vec![(9_000, 19_999), (20_001, 29_999), (1024, 7_999), (61_000, 65_534)];
        assert_eq!(found, (ranges, 11_000 + 9_999 + 6_976 + 4_535));
    }

    #[test]
    fn only_the_largest_ranges_are_kept() {
        let (ranges, _) = pool(
            &net((32_768, 65_535), &[(2_000, 2_000), (4_000, 4_000), (8_000, 8_000), (9_000, 9_000)]),
            &[],
        );
        assert_eq!(ranges, [(9_001, 29_999), (4_001, 7_999), (2_001, 3_999), (8_001, 8_999)]);
    }

    #[test]
    fn an_ephemeral_range_of_everything_leaves_none() {
        assert_eq!(pool(&net((1024, 65_535), &[]), &[]), (vec![], 0));
    }
}
