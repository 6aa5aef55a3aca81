//! Rows of `LB_NH`: interfaces that carry XDP, and their neighbours; pods of this node, where they are reached past the
//! stack.

use std::collections::BTreeMap;
use std::net::IpAddr;

use lb_common::abi::{NH_POD, NH_PORT, NextHop, neighbour_row, port_row};
use lb_common::family::Ip6;

use crate::desired::Desired;
use crate::links::{Attachment, NodeNet};

/// Adds the rows; the answer is those by which pods of this node are reached past the stack. A row that two neighbours
/// would share stays empty: flows by way of either are TC's.
pub(super) fn add(
    net: &NodeNet,
    attachments: &BTreeMap<u32, Attachment>,
    tables: &mut Desired,
) -> BTreeMap<IpAddr, u32> {
    let mut ports = BTreeMap::new();
    for (index, link) in &net.links {
        if attachments.get(index).is_some_and(|attachment| attachment.xdp) && link.up {
            let mtu = u16::try_from(link.mtu).unwrap_or(u16::MAX);
            let hop = NextHop { ifindex: *index, flags: 0, mtu, dmac: [0; 6], smac: link.mac };
            tables.nexthops.insert(port_row(*index), NextHop { flags: NH_PORT, ..hop });
            ports.insert(*index, hop);
        }
    }
    let mut rows: BTreeMap<u32, Option<NextHop>> = BTreeMap::new();
    for ((index, address), mac) in &net.neighbours {
        let Some(port) = ports.get(index) else { continue };
        let hop = NextHop { dmac: *mac, ..*port };
        rows.entry(neighbour_row(*index, &wide(*address))).and_modify(|row| *row = None).or_insert(Some(hop));
    }
    for ((index, address), mac) in &net.pods {
        let Some(link) = net.links.get(index) else { continue };
        let mtu = u16::try_from(link.mtu).unwrap_or(u16::MAX);
        let hop = NextHop { ifindex: *index, flags: NH_POD, mtu, dmac: *mac, smac: link.mac };
        rows.entry(neighbour_row(*index, &wide(*address))).and_modify(|row| *row = None).or_insert(Some(hop));
    }
    tables.nexthops.extend(rows.into_iter().filter_map(|(row, hop)| Some((row, hop?))));
    let pods = net.pods.keys().map(|(index, address)| (*address, neighbour_row(*index, &wide(*address))));
    pods.filter(|(_, row)| tables.nexthops.contains_key(row)).collect()
}

/// The address in the first bytes of sixteen.
fn wide(address: IpAddr) -> Ip6 {
    let mut addr = [0; 16];
    match address {
        IpAddr::V4(ip) => addr[..4].copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => addr = ip.octets(),
    }
    Ip6 { addr }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::links::Link;

    fn node(up: bool, neighbours: impl IntoIterator<Item = (u32, IpAddr)>) -> Desired {
        let link = Link { mtu: 1500, mac: [2; 6], up, ..Link::default() };
        let net = NodeNet {
            links: BTreeMap::from([(2, link.clone()), (3, link)]),
            neighbours: neighbours.into_iter().map(|key| (key, [7; 6])).collect(),
            ..NodeNet::default()
        };
        let with = |xdp| Attachment { pod_facing: false, l3: false, xdp };
        let mut tables = Desired::default();
        add(&net, &BTreeMap::from([(2, with(true)), (3, with(false))]), &mut tables);
        tables
    }

    #[test]
    fn interfaces_and_neighbours_that_xdp_may_use() {
        let (four, six) = (IpAddr::from([10, 0, 0, 1]), "fe80::1".parse().expect("an address"));
        let tables = node(true, [(2, four), (2, six), (3, four)]);
        let port = NextHop { ifindex: 2, flags: NH_PORT, mtu: 1500, dmac: [0; 6], smac: [2; 6] };
        assert_eq!(tables.nexthops.len(), 3);
        assert_eq!(tables.nexthops[&port_row(2)], port);
        for address in [four, six] {
            let row = neighbour_row(2, &wide(address));
            assert!(row > 255 && tables.nexthops[&row] == NextHop { flags: 0, dmac: [7; 6], ..port });
        }
        assert!(node(false, [(2, four)]).nexthops.is_empty(), "a link that is down");
    }

    #[test]
    fn a_row_of_two_neighbours_is_nobodys() {
        let address = |number: u32| IpAddr::from((0x0a00_0000 + number).to_be_bytes());
        let row = |ip| neighbour_row(2, &wide(ip));
        let mut seen: BTreeMap<u32, IpAddr> = BTreeMap::new();
        let (one, two) = (0..100_000)
            .find_map(|number| {
                seen.insert(row(address(number)), address(number)).map(|o| (o, address(number)))
            })
            .expect("two addresses of one row");
        let tables = node(true, [(2, one), (2, two)]);
        assert!(!tables.nexthops.contains_key(&row(one)) && tables.nexthops.len() == 1);
    }
}
