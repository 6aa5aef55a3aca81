//! The node's network as plain data: what netlink told, without netlink types. Filled by `net`, read by `plan` and
//! by the attach set.

use std::collections::BTreeMap;
use std::net::IpAddr;

/// Everything the agent knows of the node's own network.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeNet {
    /// Interfaces by ifindex.
    pub links: BTreeMap<u32, Link>,
    /// Cookie of the network namespace the agent runs in (`SO_NETNS_COOKIE`).
    pub netns_cookie: u64,
    /// `net.ipv4.ip_local_port_range`, inclusive.
    pub ephemeral: (u16, u16),
    /// `net.ipv4.ip_local_reserved_ports` as inclusive ranges; what the agent itself put there (the NodePort range,
    /// which is never part of the SNAT pool) included.
    pub reserved: Vec<(u16, u16)>,
    /// Some routing rule of either family looks at the source address (`ip rule from`).
    pub source_rules: bool,
    /// There are xfrm (IPsec) policies. Looked for only where XDP is asked for.
    pub xfrm_policies: bool,
    /// MAC addresses of this node's pods that may be forwarded to past the stack, by (ifindex of the near end of the
    /// pod's link, address). Looked for only where `--fast` is asked for.
    pub pods: BTreeMap<(u32, IpAddr), [u8; 6]>,
    /// Where netfilter enforces policy on forwarded packets, in words; empty = nowhere. Looked for only with `--fast=on`.
    pub forward_policy: Vec<String>,
    /// MAC addresses of the resolved neighbours of interfaces that may carry XDP, by (ifindex, address).
    pub neighbours: BTreeMap<(u32, IpAddr), [u8; 6]>,
}

/// One interface.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// `veth`, `bridge`, `vxlan`, `wireguard`, ... as in `IFLA_INFO_KIND`; empty = a physical device.
    pub kind: String,
    /// Has an Ethernet header (`ARPHRD_ETHER`).
    pub ethernet: bool,
    /// Is administratively up.
    pub up: bool,
    /// Loopback.
    pub loopback: bool,
    /// ifindex of its master (bridge, bond, VRF).
    pub master: Option<u32>,
    /// ifindex of the device it is stacked on (VLAN, macvlan, vxlan, ...), if that is in this namespace.
    pub lower: Option<u32>,
    /// MAC address; zero where there is none.
    pub mac: [u8; 6],
    /// Addresses with their prefix lengths; link-local and tentative ones left out, primary ones first.
    pub addresses: Vec<(IpAddr, u8)>,
    /// A default route of the main table leaves by it.
    pub default_route: bool,
    /// Largest IP packet, in bytes.
    pub mtu: u32,
    /// Its other end is in another network namespace.
    pub peer_elsewhere: bool,
    /// The device takes VLAN tags off (`rxvlan`). Looked for only where XDP is asked for.
    pub strips_tags: bool,
}

/// What the agent makes of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// Pods of this node are behind it (`IF_POD`).
    pub pod_facing: bool,
    /// It has no link-layer header (`IF_L3`): the `_l3` programs.
    pub l3: bool,
    /// The XDP program goes on it, too.
    pub xdp: bool,
}
