//! Every map, in one screen. Names as in `lb_common::abi::names`, keys and values as in `lb_common::abi`.
//!
//! Tables that the agent writes and the kernel reads are arrays, or hashes without preallocation, whose freed
//! elements wait for an RCU grace period. Tables that the kernel writes are LRU hashes: preallocated, so their
//! elements may be reused under a reader, who therefore copies and compares the tag.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, SkStorage};
use aya_ebpf::macros::btf_map;
use lb_common::abi::capacity::{
    BACKENDS, CIDRS, CLIENTS, FLOWS, FRAGMENTS, FRONTENDS, INTERFACES, NAMESPACES, NEXTHOPS, NODE_ADDRESSES,
    PEERS, RANGES, SLOTS, SOURCES, YOUNG,
};
use lb_common::abi::{
    Addr4, Addr6, AffKey4, AffKey6, AffValue, Backend4, Backend6, CtKey4, CtKey6, CtValue4, CtValue6,
    FragKey4, FragKey6, FragValue4, FragValue6, Iface, LbConfig, NextHop, PairFilter, Peer, RangeKey4,
    RangeKey6, RoleFilter, SkConnected, SkPeer, SkUdpKey, SkUdpValue, SvcKey4, SvcKey6, SvcValue,
};
use lb_common::env::Scratch;

const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;
#[btf_map]
pub static LB_CONFIG: Array<LbConfig, 1> = Array::new();
#[btf_map]
pub static LB_ROLES: Array<RoleFilter, 1> = Array::new();
#[btf_map]
pub static LB_PAIRS: Array<PairFilter, 1> = Array::new();

#[btf_map]
pub static LB_SVC4: HashMap<SvcKey4, SvcValue, FRONTENDS, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub static LB_SVC6: HashMap<SvcKey6, SvcValue, FRONTENDS, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub static LB_NODE4: HashMap<Addr4, u32, NODE_ADDRESSES, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub static LB_NODE6: HashMap<Addr6, u32, NODE_ADDRESSES, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub static LB_SRC4: HashMap<Addr4, Addr4, SOURCES, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub static LB_SRC6: HashMap<Addr6, Addr6, SOURCES, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub static LB_CIDR4: LpmTrie<Addr4, u32, CIDRS> = LpmTrie::new();
#[btf_map]
pub static LB_CIDR6: LpmTrie<Addr6, u32, CIDRS> = LpmTrie::new();
#[btf_map]
pub static LB_RANGE4: LpmTrie<RangeKey4, u32, RANGES> = LpmTrie::new();
#[btf_map]
pub static LB_RANGE6: LpmTrie<RangeKey6, u32, RANGES> = LpmTrie::new();

#[btf_map]
pub static LB_BE4: Array<Backend4, BACKENDS> = Array::new();
#[btf_map]
pub static LB_BE6: Array<Backend6, BACKENDS> = Array::new();
#[btf_map]
pub static LB_GEN4: Array<u32, BACKENDS> = Array::new();
#[btf_map]
pub static LB_GEN6: Array<u32, BACKENDS> = Array::new();
#[btf_map]
pub static LB_SLOTS: Array<u32, SLOTS> = Array::new();

#[btf_map]
pub static LB_AFF4: LruHashMap<AffKey4, AffValue, CLIENTS> = LruHashMap::new();
#[btf_map]
pub static LB_AFF6: LruHashMap<AffKey6, AffValue, CLIENTS> = LruHashMap::new();
#[btf_map]
pub static LB_CT4: LruHashMap<CtKey4, CtValue4, FLOWS> = LruHashMap::new();
#[btf_map]
pub static LB_CT6: LruHashMap<CtKey6, CtValue6, FLOWS> = LruHashMap::new();
#[btf_map]
pub static LB_EM4: LruHashMap<CtKey4, CtValue4, YOUNG> = LruHashMap::new();
#[btf_map]
pub static LB_EM6: LruHashMap<CtKey6, CtValue6, YOUNG> = LruHashMap::new();

#[btf_map]
pub static LB_FRAG4: LruHashMap<FragKey4, FragValue4, FRAGMENTS> = LruHashMap::new();
#[btf_map]
pub static LB_FRAG6: LruHashMap<FragKey6, FragValue6, FRAGMENTS> = LruHashMap::new();

#[btf_map]
pub static LB_NH: Array<NextHop, NEXTHOPS> = Array::new();
#[btf_map]
pub static LB_PEERS: Array<Peer, PEERS> = Array::new();
#[btf_map]
pub static LB_PEER4: HashMap<Addr4, u32, PEERS, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub static LB_PEER6: HashMap<Addr6, u32, PEERS, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub static LB_IF: HashMap<u32, Iface, INTERFACES, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub static LB_NETNS: HashMap<u64, u32, NAMESPACES, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub static LB_SK_PEER: SkStorage<SkPeer> = SkStorage::new();
#[btf_map]
pub static LB_SK_CONN: LruHashMap<u64, SkConnected, CLIENTS> = LruHashMap::new();
#[btf_map]
pub static LB_SK_UDP: LruHashMap<SkUdpKey, SkUdpValue, CLIENTS> = LruHashMap::new();
#[btf_map]
pub static LB_COUNTERS: PerCpuArray<u64, { lb_common::counter::COUNTERS }> = PerCpuArray::new();

/// Work space of the TC programs, one per CPU: too large for the stack. Not pinned, nothing in it outlives a run.
#[btf_map]
pub static LB_SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();
