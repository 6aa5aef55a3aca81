//! The objects of the cluster that the load balancer reads.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::settings::Algorithm;

/// Address family; the two never mix (B18).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both, in the order of every table.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The family of a prefix.
    #[must_use]
    pub fn of_net(net: &IpNet) -> Self {
        Self::of(net.addr())
    }

    /// As Kubernetes and the metrics write it: `IPv4` or `IPv6`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// Transport protocol of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// IANA protocol number.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// As Kubernetes writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

/// Which endpoints a traffic policy allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Endpoints of the whole cluster.
    Cluster,
    /// Endpoints of this node.
    Local,
}

/// How packets for endpoints of other nodes go there, by wish of the Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarding {
    /// The client's address is kept, and the endpoint's node answers.
    Dsr,
    /// The source is replaced, and the answer comes back.
    Snat,
}

/// Namespace and name; the namespace is empty for cluster-wide objects.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl ObjectName {
    /// Names an object.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.to_owned(), name: name.to_owned() }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// A service port: the unit of ids, affinity and endpoint sets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortId {
    /// The Service.
    pub service: ObjectName,
    /// Port name; empty for the unnamed port.
    pub port: String,
    /// Protocol.
    pub protocol: Protocol,
}

impl fmt::Display for PortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}/{}", self.service, self.port, self.protocol.name())
    }
}

/// `spec.type` of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceKind {
    /// `ClusterIP`.
    ClusterIp,
    /// `NodePort`.
    NodePort,
    /// `LoadBalancer`.
    LoadBalancer,
    /// `ExternalName`.
    ExternalName,
}

/// Why a Service is not this agent's business.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ignored {
    /// No ClusterIP, or `None` (B1).
    Headless,
    /// `ExternalName` (B2).
    ExternalName,
    /// Label `service.kubernetes.io/service-proxy-name` (B3).
    OtherProxy,
    /// Label `service.kubernetes.io/headless` (B4).
    HeadlessLabel,
}

/// A Service, as far as it matters for packets.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceSpec {
    /// Its name.
    pub name: ObjectName,
    /// `spec.type`.
    pub kind: ServiceKind,
    /// Why it is not served; `None` = it is.
    pub ignored: Option<Ignored>,
    /// ClusterIP of each family it has (B14), at most one each.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.externalIPs` of both families.
    pub external_ips: Vec<IpAddr>,
    /// LoadBalancer addresses of both families with `ipMode: VIP` (B32).
    pub vips: Vec<IpAddr>,
    /// `spec.loadBalancerSourceRanges` of both families (B98).
    pub source_ranges: Vec<IpNet>,
    /// `spec.internalTrafficPolicy`.
    pub internal: Policy,
    /// `spec.externalTrafficPolicy`; whether it counts is [`ServiceSpec::external_policy`].
    pub external: Policy,
    /// Client-IP affinity timeout in seconds; `None` = off.
    pub affinity_s: Option<u32>,
    /// How an endpoint is chosen; `None` = as the operator says.
    pub selection: Option<Algorithm>,
    /// Annotation `lb-agent.io/forwarding`; `None` = as the agent's own setting is.
    pub forwarding: Option<Forwarding>,
    /// `spec.healthCheckNodePort`; 0 = none.
    pub health_check_port: u16,
    /// Its ports.
    pub ports: Vec<ServicePort>,
}

impl ServiceSpec {
    /// The ClusterIP of a family (B14).
    #[must_use]
    pub fn cluster_ip(&self, family: Family) -> Option<IpAddr> {
        self.cluster_ips.iter().copied().find(|a| Family::of(*a) == family)
    }

    /// The policy that governs external frontends (B50).
    #[must_use]
    pub fn external_policy(&self) -> Policy {
        let counts = match self.kind {
            ServiceKind::LoadBalancer | ServiceKind::NodePort => true,
            ServiceKind::ClusterIp => !self.external_ips.is_empty(),
            ServiceKind::ExternalName => false,
        };
        if counts { self.external } else { Policy::Cluster }
    }

    /// The identity of one of its ports.
    #[must_use]
    pub fn port_id(&self, port: &ServicePort) -> PortId {
        PortId { service: self.name.clone(), port: port.name.clone(), protocol: port.protocol }
    }
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Name; empty = unnamed.
    pub name: String,
    /// Protocol.
    pub protocol: Protocol,
    /// Port of ClusterIP, external addresses and VIPs.
    pub port: u16,
    /// NodePort; 0 = none.
    pub node_port: u16,
}

/// An EndpointSlice.
#[derive(Clone, Debug, PartialEq)]
pub struct SliceSpec {
    /// Its name.
    pub name: ObjectName,
    /// Name of the Service in the same namespace (B21).
    pub service: String,
    /// Family of its addresses (B17).
    pub family: Family,
    /// Ports with a name and a number (B23).
    pub ports: Vec<SlicePort>,
    /// Endpoints with an address (B24).
    pub endpoints: Vec<EndpointSpec>,
    /// When the change that it reflects happened.
    pub triggered: Trigger,
}

/// When the change of a pod or Service happened that an EndpointSlice reflects, seconds since 1970, as the control plane
/// noted it (B139); `None` = not noted. All are equal: a slice that differs in nothing else has not changed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trigger(pub Option<f64>);

impl PartialEq for Trigger {
    fn eq(&self, _other: &Self) -> bool {
        true
    }
}

/// One port of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// Name; empty = unnamed.
    pub name: String,
    /// Protocol.
    pub protocol: Protocol,
    /// Port number.
    pub port: u16,
}

/// One endpoint of an EndpointSlice, conditions defaulted (B27).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSpec {
    /// First address (B24).
    pub address: IpAddr,
    /// Name of the node it runs on.
    pub node: Option<String>,
    /// `conditions.ready`.
    pub ready: bool,
    /// `conditions.serving`.
    pub serving: bool,
    /// `conditions.terminating`.
    pub terminating: bool,
    /// Its part of new flows, where the choice is Maglev's.
    pub weight: u16,
    /// `hints.forZones`.
    pub zones: Vec<String>,
    /// `hints.forNodes`.
    pub nodes: Vec<String>,
}

/// A Node, as far as it matters here.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeSpec {
    /// Its name.
    pub name: String,
    /// Label `topology.kubernetes.io/zone`; empty = none (B58).
    pub zone: String,
    /// InternalIPs, then ExternalIPs, in the order of the object (B20).
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs` (B74).
    pub pod_cidrs: Vec<IpNet>,
    /// Load balancers should send no new traffic: being deleted, or tainted by the autoscaler (B131).
    pub leaving: bool,
}

/// A ServiceCIDR.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceCidrSpec {
    /// Its name.
    pub name: String,
    /// `spec.cidrs` of both families.
    pub cidrs: Vec<IpNet>,
}

/// Which object: kind and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// A Service.
    Service(ObjectName),
    /// An EndpointSlice.
    Slice(ObjectName),
    /// A Node.
    Node(String),
    /// A ServiceCIDR.
    ServiceCidr(String),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(name) => write!(f, "Service {name}"),
            Self::Slice(name) => write!(f, "EndpointSlice {name}"),
            Self::Node(name) => write!(f, "Node {name}"),
            Self::ServiceCidr(name) => write!(f, "ServiceCIDR {name}"),
        }
    }
}

/// An object with its content.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// A Service.
    Service(Arc<ServiceSpec>),
    /// An EndpointSlice.
    Slice(Arc<SliceSpec>),
    /// A Node.
    Node(Arc<NodeSpec>),
    /// A ServiceCIDR.
    ServiceCidr(Arc<ServiceCidrSpec>),
}

impl Object {
    /// Its key.
    #[must_use]
    pub fn key(&self) -> Key {
        match self {
            Self::Service(o) => Key::Service(o.name.clone()),
            Self::Slice(o) => Key::Slice(o.name.clone()),
            Self::Node(o) => Key::Node(o.name.clone()),
            Self::ServiceCidr(o) => Key::ServiceCidr(o.name.clone()),
        }
    }
}
