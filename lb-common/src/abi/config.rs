//! What the programs must know beyond the tables. The agent writes, the kernel reads; may change at any time.

/// An inclusive range of ports, host order; `min > max` = empty.
#[repr(C, align(4))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PortRange {
    /// First port.
    pub min: u16,
    /// Last port, included.
    pub max: u16,
}

/// Number of [`PortRange`]s of the SNAT pool.
pub const SNAT_RANGES: usize = 4;

/// The only value of `LB_CONFIG` (key 0). All-zero means: nothing is ours.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LbConfig {
    /// `CFG_*` bits. The first word in every layout, see [`CFG_MIGRATING`].
    pub flags: u32,
    /// Smallest range that holds every NodePort in `LB_SVC4/6`: a destination outside it needs no look-up.
    pub nodeports: PortRange,
    /// Source ports for SNAT, outside of the ephemeral range, the NodePort range and reserved ports. Ranges in
    /// use come first; the first empty one (`min == 0`) ends the list.
    pub snat: [PortRange; SNAT_RANGES],
    /// Ports in all ranges of `snat`.
    pub snat_total: u32,
    /// ICMP errors and resets that one CPU may send per second (a burst is one second's worth); 0 = no limit.
    pub reject_rate: u32,
    /// Pod CIDR for detect-local by source (B73, B74), if `CFG_DETECT_CIDR4`.
    pub pod_cidr4: [u8; 4],
    /// Its mask.
    pub pod_mask4: [u8; 4],
    /// Smallest prefix that covers every service CIDR in `LB_CIDR4` (B92), if `CFG_CIDR4`.
    pub svc_cidr4: [u8; 4],
    /// Its mask.
    pub svc_mask4: [u8; 4],
    /// As `pod_cidr4`, if `CFG_DETECT_CIDR6`.
    pub pod_cidr6: [u8; 16],
    /// Its mask.
    pub pod_mask6: [u8; 16],
    /// As `svc_cidr4`, if `CFG_CIDR6`.
    pub svc_cidr6: [u8; 16],
    /// Its mask.
    pub svc_mask6: [u8; 16],
}
const _: () = assert!(size_of::<LbConfig>() == 112);

/// IPv4 pod traffic is told by its source address (B73, B74).
pub const CFG_DETECT_CIDR4: u32 = 1 << 0;
/// IPv6 pod traffic is told by its source address.
pub const CFG_DETECT_CIDR6: u32 = 1 << 1;
/// Pod traffic of both families is told by `IF_DETECT` of its ingress interface (B75, B76).
pub const CFG_DETECT_IF: u32 = 1 << 2;
/// Masquerade as kube-proxy does, also where the answer passes this node anyway (`masqueradeLocal`).
pub const CFG_MASQ_LOCAL: u32 = 1 << 3;
/// `LB_CIDR4` has entries: unknown addresses inside are dropped (B92).
pub const CFG_CIDR4: u32 = 1 << 4;
/// `LB_CIDR6` has entries.
pub const CFG_CIDR6: u32 = 1 << 5;
/// Unlisted ports of an active ClusterIP are rejected (B91); off in `iptables` mode.
pub const CFG_REJECT_UNKNOWN: u32 = 1 << 6;
/// `bpf_l4_csum_replace` knows `BPF_F_IPV6` (kernel 6.16): an IPv6 rewrite keeps `CHECKSUM_COMPLETE` right.
pub const CFG_CSUM_IPV6: u32 = 1 << 7;
/// The flow tables are being moved to another layout, some programs use the old ones and some the new: a TCP packet in
/// mid-stream that has no entry is dropped, to be sent again, instead of passed or reset. This bit means the same, and
/// `flags` is the first word of the configuration, in every layout: the new agent sets it for the old programs.
pub const CFG_MIGRATING: u32 = 1 << 31;

/// New flows between pods of this node may be fast.
pub const CFG_FAST: u32 = 1 << 13;
/// There may be fast flows: set with [`CFG_FAST`], and left when that goes.
pub const CFG_FAST_FLOWS: u32 = 1 << 14;

/// The node has routing rules that look at the source (`ip rule from`): replies ask them again with the frontend as
/// their source.
pub const CFG_SOURCE_RULES: u32 = 1 << 12;

/// log2 of the bytes of the role filter.
pub const ROLE_BITS: u32 = 18;
/// Bytes of the role filter.
pub const ROLE_SIZE: usize = 1 << ROLE_BITS;

/// The only value of `LB_ROLES` (key 0): for the hash of an address ([`crate::hash::role_slot4`],
/// [`crate::hash::role_slot6`]) the union of the roles of all addresses with that hash. A clear bit is certain, a
/// set one is only a hint.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub struct RoleFilter {
    /// `ROLE_*` bits by slot.
    pub roles: [u8; ROLE_SIZE],
}

/// Some frontend has this address (also an active ClusterIP without ports).
pub const ROLE_FRONTEND: u8 = 1 << 0;
/// Some backend has this address.
pub const ROLE_BACKEND: u8 = 1 << 1;
/// Some interface masquerades to this address.
pub const ROLE_SNAT: u8 = 1 << 2;
/// NodePorts answer on this address.
pub const ROLE_NODEPORT: u8 = 1 << 3;
/// Other nodes send packets to this address in an outer header (DSR).
pub const ROLE_TUNNEL: u8 = 1 << 4;

/// The only value of `LB_PAIRS` (key 0): a byte for every hash of a client's and a backend's address
/// ([`crate::hash::pair_slot`]): `PAIR_*` bits, not 0 once a flow was made between them. The kernel writes and reads; nothing is
/// cleared but by clean-up: a clear byte is certain, a set one is only a hint.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub struct PairFilter {
    /// `PAIR_*` bits by slot.
    pub pairs: [u8; ROLE_SIZE],
}

/// A flow was made between the two, of which nothing else is known: by an older version, or in tables of another layout.
pub const PAIR_SEEN: u8 = 1 << 0;
/// A connection straight from the one to the other was moved to another source port.
pub const PAIR_MOVED: u8 = 1 << 1;
/// A socket of the host has the one as its source and was aimed at the other by a socket hook, to be masqueraded.
pub const PAIR_BOUND: u8 = 1 << 2;
/// A fast flow was made between the two.
pub const PAIR_FAST: u8 = 1 << 3;
/// A flow was made, to a backend at the address with the higher slot in the role filter.
pub const PAIR_UP: u8 = 1 << 4;
/// A flow was made, to a backend at the address with the lower slot.
pub const PAIR_DOWN: u8 = 1 << 5;
/// One of these was masqueraded, or is to be.
pub const PAIR_MASQ: u8 = 1 << 6;
