//! Interfaces, node addresses and next hops. The agent writes, the kernel reads.

use crate::family::Ip6;

/// Value of `LB_IF` (key: ifindex, u32): an interface of the attach set.
#[repr(C, align(4))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Iface {
    /// `IF_*` bits.
    pub flags: u32,
    /// ifindex of the bridge it is a port of; 0 = none.
    pub master: u32,
    /// What MASQUERADE would take for IPv4 packets that leave here; all zero = none, such packets are dropped.
    pub snat4: [u8; 4],
    /// What MASQUERADE would take for IPv6 packets that leave here; all zero = none.
    pub snat6: [u8; 16],
    /// Largest IP packet that it takes, in bytes; 0 = not known.
    pub mtu: u16,
    /// Zero.
    pub _pad: [u8; 2],
}
const _: () = assert!(size_of::<Iface>() == 32);

/// Pods of this node are behind the interface.
pub const IF_POD: u32 = 1 << 0;
/// Packets that arrive here are pod traffic by a detect-local mode that looks at interfaces (B75, B76).
pub const IF_DETECT: u32 = 1 << 1;
/// The interface has no link-layer header.
pub const IF_L3: u32 = 1 << 2;

/// Bit of the value (u32) of `LB_NODE4/6` (key: address): NodePorts answer on the address (B36-B39).
pub const NODE_NODEPORT: u32 = 1 << 0;
/// Bit of the value of `LB_NODE4/6`: the address is assigned to this node.
pub const NODE_LOCAL: u32 = 1 << 1;
/// NodePorts answer on this address for the host's own sockets, and for nobody else: a loopback address (B40). A packet
/// from outside with such a destination is never balanced, so that no neighbour reaches what is meant for this host.
pub const NODE_HOST_NODEPORT: u32 = 1 << 2;

/// Value of `LB_NH` (array; row 0 is never used): what XDP and fast forwarding need to know of links and neighbours.
///
/// Rows 1 to 255 are interfaces that carry XDP ([`port_row`]): `smac` is their own address, `dmac` zero. The others
/// are neighbours of such interfaces, or pods ([`neighbour_row`]): all of one row have the same (interface, address), a row
/// that two neighbours would share is left empty. So an address whose MAC changes changes one row, and all flows
/// that name it follow.
#[repr(C, align(4))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NextHop {
    /// Output interface; 0 = the row is not valid.
    pub ifindex: u32,
    /// `NH_*` bits.
    pub flags: u16,
    /// Largest IP packet that the interface takes, in bytes.
    pub mtu: u16,
    /// Destination MAC.
    pub dmac: [u8; 6],
    /// Source MAC.
    pub smac: [u8; 6],
}
const _: () = assert!(size_of::<NextHop>() == 20);

/// The row is an interface, not a neighbour.
pub const NH_PORT: u16 = 1 << 0;
/// The row is a pod of this node behind the interface, whose other end is in the pod's network namespace. Such rows are
/// made only while fast forwarding is on.
pub const NH_POD: u16 = 1 << 1;

/// First row of neighbours.
const NEIGHBOURS: u32 = 256;

/// Row of an interface. Two of the same remainder cannot both carry XDP.
#[must_use]
#[inline(always)]
pub const fn port_row(ifindex: u32) -> u32 {
    1 + ifindex % (NEIGHBOURS - 1)
}

/// Row of a neighbour by its address as the kernel's routes name it (IPv4: the first four bytes, the rest zero) and the
/// interface behind which it is.
#[must_use]
#[inline(always)]
pub fn neighbour_row(ifindex: u32, addr: &Ip6) -> u32 {
    let mixed = crate::hash::mix6(addr) ^ ifindex.wrapping_mul(0x85eb_ca6b);
    let hash = (mixed ^ (mixed >> 15)).wrapping_mul(0xc2b2_ae35);
    NEIGHBOURS + ((hash as u64 * (super::capacity::NEXTHOPS as u64 - NEIGHBOURS as u64)) >> 32) as u32
}
