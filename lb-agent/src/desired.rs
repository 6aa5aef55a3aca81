//! What the kernel's tables should hold: the output of `plan`, the input of `diff` and `apply`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use lb_common::abi::{
    Addr4, Addr6, Backend4, Backend6, Iface, LbConfig, NextHop, RangeKey4, RangeKey6, SvcKey4, SvcKey6,
    SvcValue,
};

/// A longest-prefix key: number of bits that count, and the key.
pub type Prefix<K> = (u32, K);

/// All tables, in ABI types. Kernel-written tables (flows, affinity, sockets, counters) are not here.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Desired {
    /// `LB_CONFIG`.
    pub config: LbConfig,
    /// `LB_SVC4`.
    pub services4: BTreeMap<SvcKey4, SvcValue>,
    /// `LB_SVC6`.
    pub services6: BTreeMap<SvcKey6, SvcValue>,
    /// `LB_BE4`, by id.
    pub backends4: BTreeMap<u32, Backend4>,
    /// `LB_BE6`, by id.
    pub backends6: BTreeMap<u32, Backend6>,
    /// `LB_GEN4`, by id; also ids whose endpoint left (their generation has moved).
    pub generations4: BTreeMap<u32, u32>,
    /// `LB_GEN6`, by id.
    pub generations6: BTreeMap<u32, u32>,
    /// `LB_SLOTS`, by slot: backend ids.
    pub slots: BTreeMap<u32, u32>,
    /// `LB_RANGE4`.
    pub ranges4: BTreeMap<Prefix<RangeKey4>, u32>,
    /// `LB_RANGE6`.
    pub ranges6: BTreeMap<Prefix<RangeKey6>, u32>,
    /// `LB_CIDR4`.
    pub cidrs4: BTreeMap<Prefix<Addr4>, u32>,
    /// `LB_CIDR6`.
    pub cidrs6: BTreeMap<Prefix<Addr6>, u32>,
    /// `LB_NODE4`: `NODE_*` bits.
    pub node4: BTreeMap<[u8; 4], u32>,
    /// `LB_NODE6`: `NODE_*` bits.
    pub node6: BTreeMap<[u8; 16], u32>,
    /// `LB_NH`, by row.
    pub nexthops: BTreeMap<u32, NextHop>,
    /// `LB_IF`, by ifindex.
    pub interfaces: BTreeMap<u32, Iface>,
    /// `LB_ROLES`, as the addresses that have a role and the union of their `ROLE_*` bits.
    pub roles: BTreeMap<IpAddr, u8>,
    /// `LB_NETNS`: cookies of the namespaces whose sockets are translated (0 = all).
    pub namespaces: BTreeMap<u64, u32>,
}
