//! How the operator wants the node served: what `config` makes of flags and files, and what `plan` reads.

use lb_common::abi::capacity;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use ipnet::IpNet;

/// The kube-proxy mode whose defaults apply where the modes differ (BEHAVIOUR section 20).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// `mode: iptables`, or unset.
    Iptables,
    /// `mode: nftables`.
    Nftables,
}

impl Mode {
    /// As kube-proxy writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
        }
    }
}

/// One entry of `nodePortAddresses` (B36, B37).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortEntry {
    /// A CIDR.
    Cidr(IpNet),
    /// The node's primary address of each family.
    Primary,
    /// 127.0.0.0/8 and ::1.
    Localhost,
    /// Every address.
    All,
}

/// How pod traffic is told (B73-B78).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DetectLocal {
    /// By these source CIDRs, the first of each family.
    ClusterCidr(Vec<IpNet>),
    /// By the Node's own pod CIDRs.
    NodeCidr,
    /// By the bridge it arrives on.
    Bridge(String),
    /// By the prefix of the name of the interface it arrives on.
    InterfacePrefix(String),
}

/// Whose sockets are translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum SocketLb {
    /// Sockets of the host's network namespace.
    Host,
    /// Sockets of the host and of every pod.
    All,
    /// None.
    Off,
}

/// How an endpoint is chosen for a new flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Algorithm {
    /// Any, with equal chance (B29).
    #[default]
    Random,
    /// By a hash of the flow, so that every node makes the same choice.
    Maglev,
}

/// How packets for backends of other nodes are sent there so that the backend's node answers by itself (DSR).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Dsr {
    /// Not at all: sources are replaced, and answers come back by this node. Packets of others are not taken either.
    #[default]
    Off,
    /// Behind an IP header.
    Ipip,
    /// Behind an IP and a UDP header, port 6080, which passes fabrics that know TCP and UDP only.
    Gue,
}

/// Which interfaces are to carry XDP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Xdp {
    /// None.
    #[default]
    Off,
    /// Physical uplinks.
    Auto,
    /// Those of these names; `*` at the end stands for any rest.
    Named(Vec<String>),
}

/// Whether flows between pods of this node may go past the stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Fast {
    /// No.
    #[default]
    Off,
    /// Unless netfilter enforces policy between pods.
    On,
    /// In any case.
    Force,
}

/// Capacities of the kernel tables; a plan never exceeds them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Entries of `LB_SVC4` and of `LB_SVC6`, each.
    pub frontends: usize,
    /// Service ids; ids are 1 up to this.
    pub services: u32,
    /// Backend ids per family; ids are 1 up to this less one, since they index arrays.
    pub backends: u32,
    /// Slots of `LB_SLOTS`.
    pub slots: u32,
    /// Entries of `LB_RANGE4` and of `LB_RANGE6`, each.
    pub ranges: usize,
    /// Entries of `LB_NODE4` and of `LB_NODE6`, each.
    pub node_addresses: usize,
}

impl Limits {
    /// What the product's maps are built with.
    pub const PRODUCT: Self = Self {
        frontends: capacity::FRONTENDS,
        services: 65_536,
        backends: capacity::BACKENDS as u32,
        slots: capacity::SLOTS as u32,
        ranges: capacity::RANGES,
        node_addresses: capacity::NODE_ADDRESSES,
    };
}

/// All settings of the data path and of the loop that fills it.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// This node's name (B153).
    pub node_name: String,
    /// Whose defaults apply.
    pub mode: Mode,
    /// `bindAddress`, if it is a specific address (B20).
    pub bind_address: Option<IpAddr>,
    /// `nodePortAddresses`; empty = the default of the mode (B38).
    pub node_port_addresses: Vec<NodePortEntry>,
    /// `iptables.localhostNodePorts` (B40).
    pub localhost_node_ports: bool,
    /// `masqueradeAll` of the mode.
    pub masquerade_all: bool,
    /// Masquerade also where the answer passes this node anyway.
    pub masquerade_local: bool,
    /// How pod traffic is told.
    pub detect: DetectLocal,
    /// Whose sockets are translated.
    pub socket_lb: SocketLb,
    /// ICMP errors and resets that one CPU may send per second; 0 = no limit.
    pub reject_rate: u32,
    /// Further `CFG_*` bits: what the data path found by probing the kernel.
    pub kernel_flags: u32,
    /// Which interfaces are to carry XDP.
    pub xdp: Xdp,
    /// How endpoints are chosen where a Service does not say.
    pub selection: Algorithm,
    /// Size of all Maglev tables; `None` = by the number of endpoints.
    pub maglev_size: Option<u32>,
    /// Whether flows between pods of this node may go past the stack.
    pub fast: Fast,
    /// Whether, and how, backends of other nodes answer by themselves.
    pub dsr: Dsr,
    /// Capacities.
    pub limits: Limits,
    /// Least time between the end of an apply and the start of the next (B142).
    pub min_sync: Duration,
    /// An apply that failed is tried again no later than this; twice this pending means unhealthy (B128, B143).
    pub sync: Duration,
}

impl Settings {
    /// What kube-proxy's defaults mean for a node.
    #[must_use]
    pub fn for_node(node_name: &str) -> Self {
        Self {
            node_name: node_name.to_owned(),
            mode: Mode::Iptables,
            bind_address: None,
            node_port_addresses: Vec::new(),
            localhost_node_ports: true,
            masquerade_all: false,
            masquerade_local: false,
            detect: DetectLocal::ClusterCidr(Vec::new()),
            socket_lb: SocketLb::Host,
            reject_rate: 1000,
            kernel_flags: 0,
            xdp: Xdp::Off,
            selection: Algorithm::Random,
            maglev_size: None,
            fast: Fast::Off,
            dsr: Dsr::Off,
            limits: Limits::PRODUCT,
            min_sync: Duration::from_secs(1),
            sync: Duration::from_secs(30),
        }
    }
}

/// 127.0.0.0/8.
#[must_use]
pub fn loopback4() -> ipnet::Ipv4Net {
    ipnet::Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8)
}
