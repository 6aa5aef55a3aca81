//! Names of maps, programs and pins. The kernel shows at most 15 bytes of a name, and loaders cut longer ones
//! silently: the length is asserted here.

macro_rules! names {
    ($(#[$doc:meta])* $list:ident { $($(#[$item:meta])* $konst:ident = $name:literal,)* }) => {
        $($(#[$item])* pub const $konst: &str = $name; const _: () = assert!($name.len() <= 15);)*
        $(#[$doc])*
        pub const $list: &[&str] = &[$($name),*];
    };
}

names! {
    /// Every map that is pinned, by its name.
    PINNED_MAPS {
        /// [`crate::abi::LbConfig`].
        LB_CONFIG = "LB_CONFIG",
        /// [`crate::abi::RoleFilter`].
        LB_ROLES = "LB_ROLES",
        /// [`crate::abi::PairFilter`].
        LB_PAIRS = "LB_PAIRS",
        /// IPv4 frontends.
        LB_SVC4 = "LB_SVC4",
        /// IPv6 frontends.
        LB_SVC6 = "LB_SVC6",
        /// IPv4 node addresses.
        LB_NODE4 = "LB_NODE4",
        /// IPv6 node addresses.
        LB_NODE6 = "LB_NODE6",
        /// IPv4 service CIDRs.
        LB_CIDR4 = "LB_CIDR4",
        /// IPv6 service CIDRs.
        LB_CIDR6 = "LB_CIDR6",
        /// IPv4 source ranges.
        LB_RANGE4 = "LB_RANGE4",
        /// IPv6 source ranges.
        LB_RANGE6 = "LB_RANGE6",
        /// IPv4 backends by id.
        LB_BE4 = "LB_BE4",
        /// IPv6 backends by id.
        LB_BE6 = "LB_BE6",
        /// Generations of IPv4 backend ids.
        LB_GEN4 = "LB_GEN4",
        /// Generations of IPv6 backend ids.
        LB_GEN6 = "LB_GEN6",
        /// Backend ids in ranges.
        LB_SLOTS = "LB_SLOTS",
        /// IPv4 affinity.
        LB_AFF4 = "LB_AFF4",
        /// IPv6 affinity.
        LB_AFF6 = "LB_AFF6",
        /// Established IPv4 flows.
        LB_CT4 = "LB_CT4",
        /// Established IPv6 flows.
        LB_CT6 = "LB_CT6",
        /// Embryonic TCP and young UDP flows, IPv4.
        LB_EM4 = "LB_EM4",
        /// Embryonic TCP and young UDP flows, IPv6.
        LB_EM6 = "LB_EM6",
        /// What later IPv4 fragments become.
        LB_FRAG4 = "LB_FRAG4",
        /// What later IPv6 fragments become.
        LB_FRAG6 = "LB_FRAG6",
        /// Next hops by row.
        LB_NH = "LB_NH",
        /// Nodes to which packets are sent by DSR, by row; row 0 is this node.
        LB_PEERS = "LB_PEERS",
        /// IPv4 addresses of all nodes of the cluster.
        LB_PEER4 = "LB_PEER4",
        /// IPv6 addresses of all nodes of the cluster.
        LB_PEER6 = "LB_PEER6",
        /// Interfaces of the attach set.
        LB_IF = "LB_IF",
        /// Network namespaces whose sockets are translated, by cookie.
        LB_NETNS = "LB_NETNS",
        /// Frontends of connected sockets.
        LB_SK_PEER = "LB_SK_PEER",
        /// The source that a socket of the host gets towards an IPv4 frontend.
        LB_SRC4 = "LB_SRC4",
        /// The source that a socket of the host gets towards an IPv6 frontend.
        LB_SRC6 = "LB_SRC6",
        /// Backends of connected UDP sockets, by socket cookie.
        LB_SK_CONN = "LB_SK_CONN",
        /// Correspondents of unconnected UDP sockets.
        LB_SK_UDP = "LB_SK_UDP",
        /// Counters by number, per CPU.
        LB_COUNTERS = "LB_COUNTERS",
    }
}

names! {
    /// Every program of the object.
    PROGRAMS {
        /// TC ingress of devices with an Ethernet header.
        LB_TC_IN = "lb_tc_in",
        /// TC egress of devices with an Ethernet header.
        LB_TC_OUT = "lb_tc_out",
        /// TC ingress of devices without a link-layer header.
        LB_TC_IN_L3 = "lb_tc_in_l3",
        /// TC egress of devices without a link-layer header.
        LB_TC_OUT_L3 = "lb_tc_out_l3",
        /// XDP of uplinks.
        LB_XDP = "lb_xdp",
        /// connect(), AF_INET.
        LB_CONNECT4 = "lb_connect4",
        /// connect(), AF_INET6.
        LB_CONNECT6 = "lb_connect6",
        /// sendmsg() with a destination, AF_INET.
        LB_SENDMSG4 = "lb_sendmsg4",
        /// sendmsg() with a destination, AF_INET6.
        LB_SENDMSG6 = "lb_sendmsg6",
        /// recvmsg() with a source, AF_INET.
        LB_RECVMSG4 = "lb_recvmsg4",
        /// recvmsg() with a source, AF_INET6.
        LB_RECVMSG6 = "lb_recvmsg6",
        /// getpeername(), AF_INET.
        LB_GETPEER4 = "lb_getpeer4",
        /// getpeername(), AF_INET6.
        LB_GETPEER6 = "lb_getpeer6",
    }
}

/// Folder of the pins below the bpffs mount point, with [`super::ABI_VERSION`] at its end.
pub const PIN_FOLDER: &str = if cfg!(feature = "abi-next") { "lb/v2" } else { "lb/v1" };
const _: () = assert!(super::ABI_VERSION as u8 + b'0' == PIN_FOLDER.as_bytes()[4]);
