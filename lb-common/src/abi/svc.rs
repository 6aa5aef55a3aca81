//! Frontends: what a packet may be addressed to. The agent writes, the kernel reads.

/// Key of `LB_SVC4`: one IPv4 frontend.
///
/// Four forms: (address, port, protocol) is a frontend; (0.0.0.0, port, protocol) is a NodePort, consulted when
/// the destination is a NodePort address of `LB_NODE4`; (address, 0, 0) says that the address is an active
/// ClusterIP (B91), whatever its ports; (address, 0, 255) that it is an externalIP or a load balancer's address.
#[repr(C, align(4))]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct SvcKey4 {
    /// Destination address, network order.
    pub addr: [u8; 4],
    /// Destination port, network order.
    pub port: [u8; 2],
    /// IP protocol number.
    pub proto: u8,
    /// Zero.
    pub _pad: u8,
}
const _: () = assert!(size_of::<SvcKey4>() == 8);

/// Key of `LB_SVC6`; see [`SvcKey4`].
#[repr(C, align(4))]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct SvcKey6 {
    /// Destination address, network order.
    pub addr: [u8; 16],
    /// Destination port, network order.
    pub port: [u8; 2],
    /// IP protocol number.
    pub proto: u8,
    /// Zero.
    pub _pad: u8,
}
const _: () = assert!(size_of::<SvcKey6>() == 20);

/// Value of `LB_SVC4` and `LB_SVC6`: the service port behind a frontend and the two sets of its backends.
///
/// A range names `len` slots of `LB_SLOTS` from `start` on, each a backend id: the members of the set, or with
/// [`SVC_MAGLEV`] its Maglev table, in which a member has many slots. The agent writes a range before
/// the value that names it, and reuses a range only after a quarantine.
#[repr(C, align(4))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SvcValue {
    /// Service port (namespace, name, port name, protocol); never 0, except in an active-ClusterIP entry.
    pub id: u32,
    /// Generation of the id: part of affinity keys, so that a reused id starts empty.
    pub generation: u32,
    /// `SVC_*` bits.
    pub flags: u32,
    /// Affinity timeout in seconds since the last new connection (B65); 0 = no affinity.
    pub affinity_s: u32,
    /// First slot of the Cluster set (B44).
    pub cluster_start: u32,
    /// Number of slots of the Cluster set; 0 = empty.
    pub cluster_len: u32,
    /// First slot of the Local set (B45).
    pub local_start: u32,
    /// Number of slots of the Local set; 0 = empty.
    pub local_len: u32,
}
const _: () = assert!(size_of::<SvcValue>() == 32);

/// The frontend is external: NodePort, externalIP or LoadBalancer VIP (else it is a ClusterIP).
pub const SVC_EXTERNAL: u32 = 1 << 0;
/// The traffic policy that applies to this frontend is Local: ITP for a ClusterIP, ETP for external ones (B47, B49).
pub const SVC_LOCAL: u32 = 1 << 1;
/// Some endpoint anywhere is usable (B46): an empty set is then a drop (B87), else a rejection (B86).
pub const SVC_HAS_ANY: u32 = 1 << 2;
/// Every source is masqueraded (`masqueradeAll`, ClusterIP frontends only, B80).
pub const SVC_MASQ_ALL: u32 = 1 << 3;
/// Only sources inside `LB_RANGE4/6` may pass (B97); others are dropped (B99).
pub const SVC_RANGES: u32 = 1 << 4;
/// The entry has no port: it marks an active ClusterIP, whose unlisted ports and protocols are rejected (B91), or with
/// [`SVC_EXTERNAL`] an external address, whose are not (B93).
pub const SVC_ADDRESS: u32 = 1 << 5;
/// Protocol number of the entry that marks an external address: one that no packet has (RFC 3692).
pub const PROTO_EXTERNAL: u8 = 255;
/// Both ranges are Maglev tables: the slot is drawn by a hash of the flow (`crate::maglev`), not at random.
pub const SVC_MAGLEV: u32 = 1 << 6;
/// The client's address is kept towards backends of other nodes that can answer by themselves (DSR).
pub const SVC_DSR: u32 = 1 << 8;

/// Key part of the longest-prefix map `LB_RANGE4`; the prefix length counts 32 bits of service id, then the
/// address.
#[repr(C, align(4))]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct RangeKey4 {
    /// Service id, big-endian (a prefix of the key must be the whole id).
    pub service: [u8; 4],
    /// Source address, network order.
    pub addr: [u8; 4],
}

/// Key part of the longest-prefix map `LB_RANGE6`; see [`RangeKey4`].
#[repr(C, align(4))]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct RangeKey6 {
    /// Service id, big-endian.
    pub service: [u8; 4],
    /// Source address, network order.
    pub addr: [u8; 16],
}

/// Key part of the longest-prefix map `LB_CIDR4` of service CIDRs (B92); the value is always 1.
#[repr(C, align(4))]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Addr4 {
    /// Address, network order.
    pub addr: [u8; 4],
}

/// Key part of the longest-prefix map `LB_CIDR6`.
#[repr(C, align(4))]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Addr6 {
    /// Address, network order.
    pub addr: [u8; 16],
}
