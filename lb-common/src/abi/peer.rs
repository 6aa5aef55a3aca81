//! Nodes of the cluster, for DSR. The agent writes, the kernel reads.

/// Value of `LB_PEERS` (array). Row 0 is this node: the addresses it sends from and is sent to. The others are nodes to
/// which packets are sent on in an outer header; backends name them ([`super::Backend4`]).
#[repr(C, align(4))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Peer {
    /// IPv6 address, network order; all zero = none.
    pub addr6: [u8; 16],
    /// IPv4 address, network order; all zero = none.
    pub addr4: [u8; 4],
    /// UDP port behind the outer header (GUE), network order; 0 = IP in IP.
    pub port: [u8; 2],
    /// `PEER_*` bits.
    pub flags: u16,
    /// Zero.
    pub _pad: [u8; 8],
}
const _: () = assert!(size_of::<Peer>() == 32);

/// The node takes IPv4 packets in an IPv4 header.
pub const PEER_V4: u16 = 1 << 0;
/// The node takes IPv6 packets in an IPv6 header.
pub const PEER_V6: u16 = 1 << 1;
