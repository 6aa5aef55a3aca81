//! Flows. The kernel writes and reads; the agent deletes what has ended or expired.
//!
//! A flow is made of pairs of entries; see [`crate::flow`] for the rules. Every entry holds all endpoints of its
//! flow (client, frontend, backend, SNAT address), so that any entry can rebuild all others.

use crate::family::{Family, V4, V6};

/// Key of `LB_CT4/6` and `LB_EM4/6`: a packet as it is met at one NAT position.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct CtKey<F: Family> {
    /// Source address, network order.
    pub src: F::Addr,
    /// Destination address, network order.
    pub dst: F::Addr,
    /// Source port, network order.
    pub sport: [u8; 2],
    /// Destination port, network order.
    pub dport: [u8; 2],
    /// IP protocol number.
    pub proto: u8,
    /// [`POS_IN`] or [`POS_OUT`].
    pub position: u8,
    /// Zero.
    pub _pad: [u8; 2],
}

/// Value of `LB_CT4/6` and `LB_EM4/6`: what the packet becomes, and whose it is.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CtValue<F: Family> {
    /// New source address, network order.
    pub src: F::Addr,
    /// New destination address, network order.
    pub dst: F::Addr,
    /// New source port, network order.
    pub sport: [u8; 2],
    /// New destination port, network order.
    pub dport: [u8; 2],
    /// Checksum difference of the addresses (IP header and pseudo-header), see [`crate::csum`].
    pub addr_delta: u16,
    /// Checksum difference of the ports.
    pub port_delta: u16,
    /// On the DNAT pair the SNAT address (with `aux_port`; port 0 = not chosen yet), on the SNAT pair the
    /// frontend. Network order.
    pub aux_addr: F::Addr,
    /// See `aux_addr`.
    pub aux_port: [u8; 2],
    /// The client's own port, network order (differs from the one behind the DNAT for a moved flow).
    pub client_port: [u8; 2],
    /// Rows of `LB_NH`, for XDP and fast flows: towards the backend in the low half, towards the client in the high
    /// one; 0 = not known, the packet is TC's. A DSR flow has no way back: the high half is then how many bytes the way to
    /// the other node takes.
    pub nexthop: u32,
    /// Backend id; 0 for a pass entry.
    pub backend: u32,
    /// Generation of the backend id when it was chosen.
    pub generation: u32,
    /// Service port id.
    pub service: u32,
    /// Last packet, ticks of 2^30 ns since boot.
    pub last_tick: u32,
    /// First packet, ticks.
    pub born_tick: u32,
    /// Interface on which the first packet came in; 0 = of this host.
    pub ifindex: u32,
    /// Hash of the key: preallocated elements are reused without a grace period, so a reader compares it after
    /// copying.
    pub tag: u32,
    /// `CT_*` bits.
    pub flags: u16,
    /// A number of [`crate::flow::Role`].
    pub role: u8,
    /// Zero.
    pub _pad: [u8; 5],
    /// Zero.
    pub _reserved: F::Reserved,
}

/// IPv4 key.
pub type CtKey4 = CtKey<V4>;
/// IPv6 key.
pub type CtKey6 = CtKey<V6>;
/// IPv4 value.
pub type CtValue4 = CtValue<V4>;
/// IPv6 value.
pub type CtValue6 = CtValue<V6>;

const _: () = assert!(size_of::<CtKey4>() == 16 && size_of::<CtKey6>() == 40);
const _: () = assert!(size_of::<CtValue4>() == 64 && size_of::<CtValue6>() == 104);

/// Position: on the way in (ingress of the attach set, XDP).
pub const POS_IN: u8 = 0;
/// Position: on the way out (egress of the attach set).
pub const POS_OUT: u8 = 1;

/// The flow's source is masqueraded at egress.
pub const CT_MASQ: u16 = 1 << 0;
/// The flow was born at XDP, or is fast, and keeps that kind: one pair, both rewrites in one step.
pub const CT_XDP: u16 = 1 << 1;
/// Not ours: the packet passes unchanged and is not balanced.
pub const CT_PASS: u16 = 1 << 2;
/// The backend has answered.
pub const CT_REPLIED: u16 = 1 << 3;
/// The client has sent a FIN.
pub const CT_FIN_CLIENT: u16 = 1 << 4;
/// The backend has sent a FIN.
pub const CT_FIN_BACKEND: u16 = 1 << 5;
/// Either side has sent a RST.
pub const CT_RST: u16 = 1 << 6;
/// The DNAT moved the client to another source port, because its own was taken towards this backend.
pub const CT_MOVED: u16 = 1 << 7;
/// Client and backend are on ports of one bridge, and replies are switched: requests are given the backend's MAC address,
/// so that they are switched, too.
pub const CT_SWITCHED: u16 = 1 << 8;
/// Between two pods of this node, past the stack: of the XDP kind (`CT_XDP` is set, too), its source kept.
pub const CT_FAST: u16 = 1 << 10;
/// The backend's node gets the packets in an outer header and answers by itself: one entry, no reply half.
pub const CT_DSR: u16 = 1 << 13;
/// The flow came from another node by DSR.
pub const CT_DIRECT: u16 = 1 << 14;
/// The node's own flow, or another masquerade's, that was given another source: a flow of ours has its port, or a socket
/// hook translated its socket, which is bound to an address that would not come back. It has a SNAT pair and no other.
pub const CT_GUARD: u16 = 1 << 12;
