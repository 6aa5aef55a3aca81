//! Backends: where a packet may go. The agent writes, the kernel reads.
//!
//! A backend id is an index into `LB_BE4/6` and `LB_GEN4/6`; 0 is never used. It belongs to one (service port,
//! endpoint) and is never shared between service ports. Its generation in `LB_GEN4/6` moves when the endpoint
//! leaves the service port or the id is reused, so that whatever remembers (id, generation) knows it is stale.

/// Value of `LB_BE4`.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Backend4 {
    /// Pod or host address, network order.
    pub addr: [u8; 4],
    /// Target port, network order.
    pub port: [u8; 2],
    /// IP protocol number; 0 = the id is not in use.
    pub proto: u8,
    /// `BE_*` bits.
    pub flags: u8,
    /// The service port it belongs to.
    pub service: u32,
    /// Of an endpoint on this node: row of `LB_NH` towards it. Of another: row of `LB_PEERS` of its node, if that takes
    /// packets by DSR. 0 = not known, none.
    pub nexthop: u32,
}
const _: () = assert!(size_of::<Backend4>() == 16);

/// Value of `LB_BE6`; see [`Backend4`].
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Backend6 {
    /// Pod or host address, network order.
    pub addr: [u8; 16],
    /// Target port, network order.
    pub port: [u8; 2],
    /// IP protocol number; 0 = the id is not in use.
    pub proto: u8,
    /// `BE_*` bits.
    pub flags: u8,
    /// The service port it belongs to.
    pub service: u32,
    /// Of an endpoint on this node: row of `LB_NH` towards it. Of another: row of `LB_PEERS` of its node, if that takes
    /// packets by DSR. 0 = not known, none.
    pub nexthop: u32,
    /// Zero.
    pub _pad: [u8; 4],
}
const _: () = assert!(size_of::<Backend6>() == 32);

/// The endpoint is on this node (B26).
pub const BE_LOCAL: u8 = 1 << 0;
/// It is in the Cluster set of its service port.
pub const BE_IN_CLUSTER: u8 = 1 << 1;
/// It is in the Local set of its service port.
pub const BE_IN_LOCAL: u8 = 1 << 2;
