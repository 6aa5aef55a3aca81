//! Which interfaces the TC programs go on: a pure function of the link table.
//!
//! **The rule: every packet that the node routes meets exactly one interface of the set on its way in, and one on
//! its way out.** Ports stand for their bridge (two pods of one bridge never meet the bridge itself), masters stand
//! for their bond or failover slaves, the device below stands for macvlan and ipvlan.
//!
//! The one pair of levels that are both in the set is a device and the VLAN devices on it: a frame with a tag meets
//! TC of the lower device too, with the tag in `skb->vlan_tci`. There the programs leave tagged packets alone (they
//! belong to the VLAN device's level), so each packet is still handled once, and untagged traffic of the lower
//! device is not lost. A VLAN device on a *bridge* is not in the set: whether its frames carry a tag at the port is
//! the port's VLAN configuration, which we don't read. Such tagged traffic passes unbalanced.
//!
//! Interfaces that are down are in the set as well: they may come up between two looks at the table.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::links::{Attachment, Link, NodeNet};

/// Kinds without a link-layer header that route IP packets. Others (CAN, InfiniBand, monitors) have headers of their
/// own that no program of ours knows.
const L3_KINDS: &[&str] = &[
    "bareudp",
    "gre",
    "gtp",
    "ip6gre",
    "ip6tnl",
    "ipip",
    "ppp",
    "rmnet",
    "sit",
    "tun",
    "vti",
    "vti6",
    "vxlan",
    "wireguard",
    "wwan",
    "xfrm",
];

/// Ethernet kinds through which nothing is routed, or whose packets another member of the set meets.
const NEVER: &[&str] =
    &["bridge", "dummy", "ifb", "ipvtap", "lowpan", "macvtap", "nlmon", "vcan", "vrf", "vsockmon", "vxcan"];

/// The interfaces to attach to, and as what.
///
/// Pure; cost linear in the number of links. An interface that is not in the result has no program of ours.
#[must_use]
pub fn attach_set(net: &NodeNet) -> BTreeMap<u32, Attachment> {
    net.links
        .iter()
        .filter(|(_, link)| wanted(net, link))
        .map(|(index, link)| {
            (*index, Attachment { pod_facing: pod_facing(net, link), l3: !link.ethernet, xdp: false })
        })
        .collect()
}

fn kind_of(net: &NodeNet, index: u32) -> Option<&str> {
    net.links.get(&index).map(|link| link.kind.as_str())
}

fn wanted(net: &NodeNet, link: &Link) -> bool {
    if link.loopback || NEVER.contains(&link.kind.as_str()) {
        return false;
    }
    if !link.ethernet && !L3_KINDS.contains(&link.kind.as_str()) {
        return false;
    }
    // A slave of anything else (bond, team, Open vSwitch, the failover device of a VF) hands its packets to the
    // master before they are routed.
    let independent = link.master.is_none_or(|m| matches!(kind_of(net, m), Some("bridge" | "vrf")));
    if !independent {
        return false;
    }
    let below = link.lower.and_then(|lower| kind_of(net, lower));
    match link.kind.as_str() {
        "vlan" => below != Some("bridge"),
        // The device below meets every packet of theirs; unless it is in another namespace, as a pod's or a nested
        // node's is.
        "macvlan" | "ipvlan" => below.is_none(),
        _ => true,
    }
}

/// Pods of this node are behind it: the near end of a pod's link (veth, netkit, a VM's tap) that is a bridge's port,
/// or that has neither a default route nor an address of a network. A bridge with the default route has the node's
/// uplink for a port; if all its ports look like pods' links (the node is a container itself), none is taken for one.
fn pod_facing(net: &NodeNet, link: &Link) -> bool {
    if !is_pod_link(link) {
        return false;
    }
    let bridge = link.master.and_then(|index| Some((index, net.links.get(&index)?)));
    match bridge.filter(|(_, master)| master.kind == "bridge") {
        Some((index, bridge)) => {
            let mut ports = net.links.values().filter(|port| port.master == Some(index));
            !bridge.default_route || ports.any(|port| !is_pod_link(port))
        }
        None => !(link.default_route || link.addresses.iter().any(is_network_address)),
    }
}

fn is_pod_link(link: &Link) -> bool {
    matches!(link.kind.as_str(), "veth" | "netkit") || (link.kind == "tun" && link.ethernet)
}

/// A single address (/32, /128) is what CNIs give the near end of a pod's link for a gateway; an address with a
/// network around it says that other nodes are there.
fn is_network_address((address, len): &(IpAddr, u8)) -> bool {
    match address {
        IpAddr::V4(_) => *len < 32,
        IpAddr::V6(_) => *len < 128,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One line per link: index, name, kind, and words: `l3`, `lo`, `down`, `default`, `m=N` (master), `on=N`
    /// (lower), anything else an address.
    fn table(text: &str) -> NodeNet {
        let mut net = NodeNet::default();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let mut words = line.split_whitespace();
            let index = words.next().expect("index").parse().expect("number");
            let name = words.next().expect("name").to_owned();
            let kind = words.next().expect("kind").replace('-', "");
            let mut link = Link { name, kind, ethernet: true, up: true, ..Link::default() };
            for word in words {
                match word.split_once('=') {
                    Some(("m", n)) => link.master = Some(n.parse().expect("master")),
                    Some(("on", n)) => link.lower = Some(n.parse().expect("lower")),
                    _ => match word {
                        "l3" => link.ethernet = false,
                        "lo" => link.loopback = true,
                        "down" => link.up = false,
                        "default" => link.default_route = true,
                        address => {
                            let (ip, len) = address.split_once('/').expect("prefix");
                            link.addresses.push((ip.parse().expect("ip"), len.parse().expect("length")));
                        }
                    },
                }
            }
            net.links.insert(index, link);
        }
        net
    }

    /// The set as `name[:pod][:l3]`.
    fn set(text: &str) -> Vec<String> {
        let net = table(text);
        let word = |on, word: &str| if on { word.to_owned() } else { String::new() };
        attach_set(&net)
            .iter()
            .map(|(i, a)| format!("{}{}{}", net.links[i].name, word(a.pod_facing, ":pod"), word(a.l3, ":l3")))
            .collect()
    }

    #[test]
    fn flannel_vxlan_with_its_bridge() {
        let found = set("1 lo - lo 127.0.0.1/8
            2 eth0 - default 10.0.0.5/24
            3 flannel.1 vxlan on=2 10.244.1.0/32
            4 cni0 bridge 10.244.1.1/24
            5 veth5 veth m=4
            6 veth6 veth m=4 down");
        assert_eq!(found, ["eth0", "flannel.1", "veth5:pod", "veth6:pod"]);
    }

    #[test]
    fn calico_plain_ipip_and_vxlan() {
        let plain = "2 eth0 - default 10.0.0.5/24
            3 cali1 veth
            4 cali2 veth";
        assert_eq!(set(plain), ["eth0", "cali1:pod", "cali2:pod"]);
        let ipip = format!("{plain}\n 5 tunl0 ipip l3 192.168.7.1/32");
        assert_eq!(set(&ipip), ["eth0", "cali1:pod", "cali2:pod", "tunl0:l3"]);
        let vxlan = format!("{plain}\n 5 vxlan.calico vxlan on=2 192.168.7.1/32");
        assert_eq!(set(&vxlan), ["eth0", "cali1:pod", "cali2:pod", "vxlan.calico"]);
    }

    #[test]
    fn kindnet_with_a_veth_for_its_uplink() {
        let found = set("1 lo - lo
            2 eth0 veth default 172.18.0.2/16
            3 veth3 veth 10.244.0.1/32
            4 veth4 veth 10.244.0.1/32 fd00:10:244::1/128");
        assert_eq!(found, ["eth0", "veth3:pod", "veth4:pod"]);
    }

    #[test]
    fn a_second_veth_uplink_has_an_address_but_no_default_route() {
        assert_eq!(set("2 eth0 veth default 172.18.0.2/16\n 3 eth1 veth 10.9.0.2/24"), ["eth0", "eth1"]);
        assert_eq!(set("2 eth0 veth default"), ["eth0"]);
    }

    #[test]
    fn bridge_cni_with_the_nic_as_a_port() {
        let found = set("2 eth0 - m=3
            3 br0 bridge default 10.0.0.5/24
            4 veth4 veth m=3
            5 vnet0 tun m=3");
        assert_eq!(found, ["eth0", "veth4:pod", "vnet0:pod"]);
    }

    #[test]
    fn the_veth_uplink_of_a_container_as_the_port_of_a_bridge() {
        assert_eq!(set("2 eth0 veth m=3\n 3 br0 bridge default 172.18.0.2/16"), ["eth0"]);
        assert_eq!(
            set("2 eth0 veth default 172.18.0.2/16\n 3 cni0 bridge 10.244.0.1/24\n 4 veth4 veth m=3"),
            ["eth0", "veth4:pod"]
        );
    }

    #[test]
    fn aws_vpc_with_secondary_enis() {
        let found = set("2 eth0 - default 10.0.0.5/20
            3 eth1 - 10.0.16.5/20
            4 eth2 -
            5 eni1234 veth
            6 vlan.eth.1 vlan on=3
            7 dummy0 dummy");
        assert_eq!(found, ["eth0", "eth1", "eth2", "eni1234:pod", "vlan.eth.1"]);
    }

    #[test]
    fn wireguard_and_other_l3_devices() {
        let found = set("2 eth0 - default 10.0.0.5/24
            3 wg0 wireguard l3 10.8.0.1/24
            4 gre1 gre l3
            5 sit0 sit l3
            6 tun0 tun l3 10.9.0.1/32
            7 vti1 vti l3
            8 xfrm0 xfrm l3
            9 can0 can l3
            10 ib0 - l3
            11 tap0 tun 10.10.0.1/24");
        assert_eq!(found, ["eth0", "wg0:l3", "gre1:l3", "sit0:l3", "tun0:l3", "vti1:l3", "xfrm0:l3", "tap0"]);
    }

    #[test]
    fn masters_stand_for_their_slaves() {
        let found = set("2 eth0 - m=4
            3 eth1 - m=4
            4 bond0 bond default 10.0.0.5/24
            5 team0 team
            6 eth2 - m=5
            7 vf0 - m=8
            8 eth3 -
            9 ovs-system openvswitch
            10 eth4 - m=9");
        assert_eq!(found, ["bond0", "team0", "eth3", "ovs-system"]);
    }

    #[test]
    fn vlans_beside_the_device_they_are_on() {
        let found = set("2 eth0 - 10.0.0.5/24
            3 eth0.10 vlan on=2 default 10.0.10.5/24
            4 bond0 bond
            5 bond0.20 vlan on=4 10.0.20.5/24
            6 br0 bridge 10.1.0.1/24
            7 br0.30 vlan on=6 10.0.30.5/24
            8 veth8 veth m=6");
        assert_eq!(found, ["eth0", "eth0.10", "bond0", "bond0.20", "veth8:pod"]);
    }

    #[test]
    fn macvlan_counts_only_where_the_device_below_is_elsewhere() {
        assert_eq!(set("2 eth0 - default\n 3 shim macvlan on=2 10.0.0.9/24"), ["eth0"]);
        assert_eq!(set("2 eth0 macvlan default 10.0.0.9/24"), ["eth0"]);
    }

    #[test]
    fn what_carries_no_routed_traffic_is_left_out() {
        let found = set("1 lo - lo
            2 eth0 - default 10.0.0.5/24 m=8
            3 docker0 bridge 172.17.0.1/16 down
            4 nodelocaldns dummy 169.254.20.10/32
            5 kube-ipvs0 dummy 10.96.0.1/32
            6 ifb0 ifb
            7 docker1 bridge 172.18.0.1/16
            8 red vrf
            9 veth9 veth m=7");
        assert_eq!(found, ["eth0", "veth9:pod"]);
    }
}
