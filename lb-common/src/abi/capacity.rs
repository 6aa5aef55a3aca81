//! How many entries the tables of the object have: what the kernel programs are built with and the plan counts on.

/// Frontends of a family (`LB_SVC4/6`).
pub const FRONTENDS: usize = 131_072;
/// Backend ids of a family (`LB_BE4/6`, `LB_GEN4/6`); 0 is never used.
pub const BACKENDS: usize = 131_072;
/// Slots of both families (`LB_SLOTS`).
pub const SLOTS: usize = 524_288;
/// Source ranges of a family (`LB_RANGE4/6`).
pub const RANGES: usize = 65_536;
/// Addresses of the node of a family (`LB_NODE4/6`).
pub const NODE_ADDRESSES: usize = 1024;
/// Service CIDRs of a family (`LB_CIDR4/6`).
pub const CIDRS: usize = 256;
/// Established flow entries of a family (`LB_CT4/6`): a flow takes two, or four when it is masqueraded.
pub const FLOWS: usize = 131_072;
/// Embryonic and young flow entries of a family (`LB_EM4/6`).
pub const YOUNG: usize = FLOWS / 4;
/// Fragmented datagrams on their way, of a family (`LB_FRAG4/6`).
pub const FRAGMENTS: usize = 8192;
/// Affinity entries of a family (`LB_AFF4/6`), and sockets' correspondents (`LB_SK_UDP`).
pub const CLIENTS: usize = 65_536;
/// Frontends of a family whose clients' addresses matter (`LB_SRC4/6`).
pub const SOURCES: usize = 65_536;
/// Interfaces of the attach set (`LB_IF`).
pub const INTERFACES: usize = 4096;
/// Next hops (`LB_NH`).
pub const NEXTHOPS: usize = 65_536;
/// Nodes of the cluster (`LB_PEERS`), and their addresses of a family (`LB_PEER4/6`).
pub const PEERS: usize = 8192;
/// Network namespaces whose sockets are translated (`LB_NETNS`).
pub const NAMESPACES: usize = 64;
