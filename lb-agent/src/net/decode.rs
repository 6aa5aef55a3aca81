//! Netlink messages -> [`Link`]s. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::rule::RuleMessage;

use crate::links::Link;

/// `RT_TABLE_MAIN`.
const MAIN_TABLE: u32 = 254;

/// Interfaces by ifindex, with their addresses and whether a default route leaves by them.
pub(super) fn links(
    links: &[LinkMessage],
    addresses: &[AddressMessage],
    routes: &[RouteMessage],
) -> BTreeMap<u32, Link> {
    let uplinks: BTreeSet<u32> = routes.iter().flat_map(default_route_devices).collect();
    let mut ranked: BTreeMap<u32, Vec<(Rank, IpAddr, u8)>> = BTreeMap::new();
    for message in addresses {
        if let Some((rank, address)) = usable(message) {
            ranked.entry(message.header.index).or_default().push((rank, address, message.header.prefix_len));
        }
    }
    links
        .iter()
        .map(|message| {
            let index = message.header.index;
            let mut list = ranked.remove(&index).unwrap_or_default();
            // Stable: the kernel's order decides inside a rank, as it does for source selection.
            list.sort_by_key(|(rank, ..)| *rank);
            let mut link = link(message);
            link.addresses = list.into_iter().map(|(_, address, len)| (address, len)).collect();
            link.default_route = uplinks.contains(&index);
            (index, link)
        })
        .collect()
}

/// What one link message says by itself.
fn link(message: &LinkMessage) -> Link {
    let mut link = Link {
        ethernet: message.header.link_layer_type == LinkLayerType::Ether,
        up: message.header.flags.contains(LinkFlags::Up),
        loopback: message.header.flags.contains(LinkFlags::Loopback),
        ..Link::default()
    };
    let mut elsewhere = false;
    for attribute in &message.attributes {
        match attribute {
            // With a namespace id the device below (or the veth's peer) is in another namespace.
            LinkAttribute::LinkNetNsId(id) => elsewhere = *id >= 0,
            LinkAttribute::Link(lower) if *lower != 0 => link.lower = Some(*lower),
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Controller(master) if *master != 0 => link.master = Some(*master),
            LinkAttribute::Address(bytes) => {
                if let Ok(mac) = <[u8; 6]>::try_from(bytes.as_slice()) {
                    link.mac = mac;
                }
            }
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    if let LinkInfo::Kind(kind) = info {
                        link.kind = kind.to_string();
                    }
                }
            }
            _ => {}
        }
    }
    link.peer_elsewhere = elsewhere;
    // A veth names its peer there, and a device without anything below may name itself.
    if elsewhere || link.kind == "veth" || link.lower == Some(message.header.index) {
        link.lower = None;
    }
    link
}

/// The link is a VLAN device on top of the one with this number.
pub(super) fn is_vlan_on(message: &LinkMessage, below: u32) -> bool {
    let link = link(message);
    link.kind == "vlan" && link.lower == Some(below)
}

/// Order of the addresses of one interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Primary,
    Secondary,
    Deprecated,
}

/// The address of a message and its rank; `None` for addresses the node can't be reached by: scope link or host
/// (loopback addresses aside, by which it reaches itself), IPv6 link-local, or not yet (or never) past duplicate address detection.
fn usable(message: &AddressMessage) -> Option<(Rank, IpAddr)> {
    let mut local = None;
    let mut peer = None;
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => local = Some(*address),
            AddressAttribute::Address(address) => peer = Some(*address),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    // On a point-to-point link IFA_ADDRESS is the other side's; IPv6 without a peer has no IFA_LOCAL.
    let address = local.or(peer)?;
    let link_local = matches!(address, IpAddr::V6(a) if a.is_unicast_link_local());
    let reachable =
        matches!(message.header.scope, AddressScope::Universe | AddressScope::Site | AddressScope::Other(_));
    let undecided = flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed)
        && !flags.contains(AddressFlags::Optimistic);
    // NodePorts may answer the host itself there (B40)
    let reachable = reachable || address.is_loopback();
    if link_local || !reachable || undecided {
        return None;
    }
    let rank = if flags.contains(AddressFlags::Deprecated) {
        Rank::Deprecated
    } else if flags.contains(AddressFlags::Secondary) {
        // For IPv6 the bit means a temporary (privacy) address: not one to be known by either.
        Rank::Secondary
    } else {
        Rank::Primary
    };
    Some((rank, address))
}

/// MAC addresses by (ifindex, address).
type Neighbours = BTreeMap<(u32, IpAddr), [u8; 6]>;

/// Neighbours of these interfaces that have a MAC address which the kernel believes, by (ifindex, address); the second
/// part are those that nobody has confirmed lately.
pub(super) fn neighbours(
    messages: &[NeighbourMessage],
    of: impl Fn(u32) -> bool,
) -> (Neighbours, Vec<(u32, IpAddr)>) {
    let (mut known, mut stale) = (BTreeMap::new(), Vec::new());
    for message in messages.iter().filter(|message| of(message.header.ifindex)) {
        use NeighbourState::{Delay, Noarp, Permanent, Probe, Reachable, Stale};
        if !matches!(message.header.state, Reachable | Stale | Delay | Probe | Permanent | Noarp) {
            continue;
        }
        let (mut ip, mut mac) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(a)) => ip = Some(IpAddr::V4(*a)),
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(a)) => ip = Some(IpAddr::V6(*a)),
                NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
                _ => {}
            }
        }
        if let (Some(ip), Some(mac)) = (ip, mac) {
            // broadcast and multicast are no next hops
            let mac: [u8; 6] = mac;
            if mac != [0; 6] && mac[0] & 1 == 0 {
                known.insert((message.header.ifindex, ip), mac);
                if message.header.state == Stale {
                    stale.push((message.header.ifindex, ip));
                }
            }
        }
    }
    (known, stale)
}

/// Addresses that a route of the main table puts behind an interface by themselves, without a gateway, with its ifindex.
pub(super) fn host_routes(routes: &[RouteMessage]) -> BTreeSet<(u32, IpAddr)> {
    routes.iter().filter_map(host_route).collect()
}

fn host_route(route: &RouteMessage) -> Option<(u32, IpAddr)> {
    let mut table = u32::from(route.header.table);
    let (mut device, mut address) = (None, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Oif(index) => device = Some(*index),
            RouteAttribute::Destination(RouteAddress::Inet(ip)) => address = Some(IpAddr::V4(*ip)),
            RouteAttribute::Destination(RouteAddress::Inet6(ip)) => address = Some(IpAddr::V6(*ip)),
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) | RouteAttribute::MultiPath(_) => {
                return None;
            }
            _ => {}
        }
    }
    let address = address?;
    let whole = if address.is_ipv4() { 32 } else { 128 };
    let plain = route.header.kind == RouteType::Unicast && table == MAIN_TABLE;
    (plain && route.header.destination_prefix_length == whole).then_some((device?, address))
}

/// A routing rule that selects by source address.
pub(super) fn looks_at_the_source(rule: &RuleMessage) -> bool {
    rule.header.src_len > 0
}

/// A route by which packets leave by such a device.
pub(super) fn leaves_by(route: &RouteMessage, device: impl Fn(u32) -> bool) -> bool {
    route.attributes.iter().any(|attribute| matches!(attribute, RouteAttribute::Oif(index) if device(*index)))
}

/// Devices by which a default route of the main table leaves; empty for any other route.
fn default_route_devices(route: &RouteMessage) -> Vec<u32> {
    let ip = matches!(route.header.address_family, AddressFamily::Inet | AddressFamily::Inet6);
    let mut table = u32::from(route.header.table);
    let mut devices = Vec::new();
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Oif(index) => devices.push(*index),
            RouteAttribute::MultiPath(hops) => devices.extend(hops.iter().map(|hop| hop.interface_index)),
            _ => {}
        }
    }
    if ip
        && route.header.destination_prefix_length == 0
        && route.header.kind == RouteType::Unicast
        && table == MAIN_TABLE
    {
        devices
    } else {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn address(index: u32, ip: &str, len: u8, scope: AddressScope, flags: AddressFlags) -> AddressMessage {
        let mut message = AddressMessage::default();
        message.header.index = index;
        message.header.prefix_len = len;
        message.header.scope = scope;
        let ip: IpAddr = ip.parse().expect("address");
        message.attributes = vec![AddressAttribute::Address(ip), AddressAttribute::Flags(flags)];
        message
    }

    fn device(index: u32) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message
    }

    #[test]
    fn addresses_are_ordered_and_unusable_ones_left_out() {
        use AddressScope::{Host, Link, Universe};
        let none = AddressFlags::empty();
        let addresses = [
            address(2, "10.0.0.9", 24, Universe, AddressFlags::Secondary),
            address(2, "10.0.0.7", 24, Universe, AddressFlags::Deprecated),
            address(2, "10.0.0.5", 24, Universe, none),
            address(2, "10.1.0.5", 24, Universe, none),
            address(2, "169.254.1.1", 32, Link, none),
            address(2, "127.0.0.1", 8, Host, none),
            address(2, "10.9.9.9", 32, Host, none),
            address(2, "fe80::1", 64, Link, none),
            address(2, "fd00::1", 64, Universe, AddressFlags::Tentative),
            address(2, "fd00::2", 64, Universe, AddressFlags::Tentative | AddressFlags::Optimistic),
            address(2, "fd00::3", 64, Universe, AddressFlags::Dadfailed),
            address(2, "169.254.9.9", 16, Universe, none),
        ];
        let found = links(&[device(2)], &addresses, &[]);
        let texts: Vec<String> = found[&2].addresses.iter().map(|(a, l)| format!("{a}/{l}")).collect();
        assert_eq!(
            texts,
            [
                "10.0.0.5/24",
                "10.1.0.5/24",
                "127.0.0.1/8",
                "fd00::2/64",
                "169.254.9.9/16",
                "10.0.0.9/24",
                "10.0.0.7/24"
            ]
        );
    }

    #[test]
    fn the_near_side_of_a_point_to_point_link_counts() {
        let mut message = address(3, "10.0.0.2", 32, AddressScope::Universe, AddressFlags::empty());
        message.attributes.push(AddressAttribute::Local(Ipv4Addr::new(10, 0, 0, 1).into()));
        let found = links(&[device(3)], &[message], &[]);
        assert_eq!(found[&3].addresses, [(Ipv4Addr::new(10, 0, 0, 1).into(), 32)]);
    }

    fn route(kind: RouteType, len: u8, table: u8, attributes: Vec<RouteAttribute>) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.destination_prefix_length = len;
        message.header.table = table;
        message.header.kind = kind;
        message.attributes = attributes;
        message
    }

    #[test]
    fn only_unicast_default_routes_of_the_main_table_make_an_uplink() {
        use netlink_packet_route::route::RouteNextHop;
        let hop = |index| {
            let mut hop = RouteNextHop::default();
            hop.interface_index = index;
            hop
        };
        let routes = [
            route(RouteType::Unicast, 0, 254, vec![RouteAttribute::Oif(2)]),
            route(RouteType::Unicast, 0, 254, vec![RouteAttribute::MultiPath(vec![hop(3), hop(4)])]),
            route(RouteType::Unicast, 0, 100, vec![RouteAttribute::Oif(5)]),
            route(RouteType::Unicast, 0, 252, vec![RouteAttribute::Table(1000), RouteAttribute::Oif(6)]),
            route(RouteType::Unicast, 24, 254, vec![RouteAttribute::Oif(7)]),
            route(RouteType::Unreachable, 0, 254, vec![RouteAttribute::Oif(8)]),
        ];
        let devices: Vec<LinkMessage> = (2..=8).map(device).collect();
        let found = links(&devices, &[], &routes);
        let uplinks: Vec<u32> = found.iter().filter(|(_, l)| l.default_route).map(|(i, _)| *i).collect();
        assert_eq!(uplinks, [2, 3, 4]);
    }
}
