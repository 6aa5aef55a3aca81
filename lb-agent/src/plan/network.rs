//! The node's own rows: interfaces, node addresses, service CIDRs, and the configuration value.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use lb_common::abi::{
    CFG_CIDR4, CFG_CIDR6, CFG_DETECT_CIDR4, CFG_DETECT_CIDR6, CFG_DETECT_IF, CFG_FAST, CFG_FAST_FLOWS,
    CFG_MASQ_LOCAL, CFG_REJECT_UNKNOWN, CFG_SOURCE_RULES, IF_DETECT, IF_L3, IF_POD, Iface, LbConfig,
    NODE_HOST_NODEPORT, NODE_LOCAL, NODE_NODEPORT, PortRange, SvcKey4, SvcKey6,
};

use super::encode::{self, Full};
use super::issue::{Issue, Severity};
use super::node::{NodeFacts, first_address};
use super::snat::snat_pool;
use crate::desired::Desired;
use crate::links::{Attachment, Link, NodeNet};
use crate::model::Family;
use crate::model::settings::{DetectLocal, Fast, Mode, Settings, SocketLb};
use crate::store::Snapshot;

/// Adds the interfaces (B75, B76, and what MASQUERADE would take for each).
pub fn add_interfaces(
    net: &NodeNet,
    attachments: &BTreeMap<u32, Attachment>,
    node: &NodeFacts<'_>,
    settings: &Settings,
    tables: &mut Desired,
) {
    for (index, attachment) in attachments {
        let Some(link) = net.links.get(index) else { continue };
        let bridge =
            link.master.and_then(|m| net.links.get(&m).filter(|l| l.kind == "bridge").map(|l| (m, l)));
        let bit = |set: bool, bit: u32| if set { bit } else { 0 };
        let snat = |family| {
            first_address(link, family)
                .or_else(|| bridge.and_then(|(_, b)| first_address(b, family)))
                .or_else(|| node.masquerade_fallback(family))
        };
        let row = Iface {
            flags: bit(attachment.pod_facing, IF_POD)
                | bit(attachment.l3, IF_L3)
                | bit(detects(link, bridge.map(|(_, b)| b), &settings.detect), IF_DETECT),
            master: bridge.map_or(0, |(index, _)| index),
            snat4: snat(Family::V4).map_or([0; 4], octets4),
            snat6: snat(Family::V6).map_or([0; 16], octets6),
            mtu: u16::try_from(link.mtu).unwrap_or(u16::MAX),
            _pad: [0; 2],
        };
        tables.interfaces.insert(*index, row);
    }
}

fn detects(link: &Link, bridge: Option<&Link>, detect: &DetectLocal) -> bool {
    match detect {
        DetectLocal::Bridge(name) => link.name == *name || bridge.is_some_and(|b| b.name == *name),
        DetectLocal::InterfacePrefix(prefix) => {
            link.name.starts_with(prefix.as_str())
                || bridge.is_some_and(|b| b.name.starts_with(prefix.as_str()))
        }
        DetectLocal::ClusterCidr(_) | DetectLocal::NodeCidr => false,
    }
}

/// Adds the node's addresses (B36-B42).
pub fn add_addresses(
    node: &NodeFacts<'_>,
    settings: &Settings,
    tables: &mut Desired,
    issues: &mut Vec<Issue>,
) {
    let mut left_out = 0_u32;
    for address in &node.owned {
        let answers = match (node.answers_node_ports(*address), address.is_loopback()) {
            (false, _) => 0,
            (true, false) => NODE_NODEPORT,
            // B40: what is meant for this host is not for its neighbours
            (true, true) => NODE_HOST_NODEPORT,
        };
        let flags = NODE_LOCAL | answers;
        left_out += u32::from(encode::put_node(tables, *address, flags, &settings.limits) == Err(Full));
    }
    if left_out > 0 {
        let problem = format!("{left_out} addresses do not fit; NodePorts do not answer on them");
        let object = format!("Node {}", settings.node_name);
        issues.push(Issue::new(Severity::Error, object, "", problem, "remove addresses from the node"));
    }
}

/// The configuration value, and the service CIDRs; `node_ports` are those of all frontends.
pub fn configure(
    snapshot: &Snapshot,
    net: &NodeNet,
    node: &NodeFacts<'_>,
    settings: &Settings,
    node_ports: &BTreeSet<u16>,
    tables: &mut Desired,
    issues: &mut Vec<Issue>,
) {
    let pool = snat_pool(net, node_ports);
    if pool.total == 0 {
        issues.push(Issue::new(
            Severity::Error,
            format!("Node {}", settings.node_name),
            "net.ipv4.ip_local_port_range",
            "leaves no port above 1023 to masquerade with; such traffic is dropped",
            "narrow the range, for example to 32768 60999",
        ));
    }
    issues.extend(cluster_cidr_issue(node, settings));
    let mut config = LbConfig {
        flags: settings.kernel_flags,
        nodeports: match (node_ports.first(), node_ports.last()) {
            (Some(min), Some(max)) => PortRange { min: *min, max: *max },
            _ => PortRange { min: 1, max: 0 },
        },
        snat: pool.ranges,
        snat_total: pool.total,
        reject_rate: settings.reject_rate,
        ..LbConfig::default()
    };
    if settings.masquerade_local {
        config.flags |= CFG_MASQ_LOCAL;
    }
    if net.source_rules {
        config.flags |= CFG_SOURCE_RULES;
    }
    config.flags |= match fast(net, settings) {
        Ok(true) => CFG_FAST | CFG_FAST_FLOWS,
        Ok(false) | Err(_) => 0,
    };
    detect_local(&mut config, node, settings);
    if settings.mode == Mode::Nftables {
        config.flags |= CFG_REJECT_UNKNOWN;
        service_cidrs(&mut config, snapshot, tables);
    }
    tables.config = config;
}

/// Whether new flows between pods may go past the stack; `Err`: that was asked for, and netfilter enforces policy that
/// they would bypass, at the places named.
///
/// # Errors
/// See above; such flows then go the normal way.
pub fn fast<'a>(net: &'a NodeNet, settings: &Settings) -> Result<bool, &'a [String]> {
    match settings.fast {
        Fast::Off => Ok(false),
        Fast::On if !net.forward_policy.is_empty() => Err(&net.forward_policy),
        Fast::On | Fast::Force => Ok(true),
    }
}

/// A clusterCIDR without the node's primary family, by which nobody is told from a pod there (B77, B165).
fn cluster_cidr_issue(node: &NodeFacts<'_>, settings: &Settings) -> Option<Issue> {
    let DetectLocal::ClusterCidr(cidrs) = &settings.detect else { return None };
    let bound = settings.bind_address.as_ref();
    let primary = Family::of(*bound.or_else(|| node.spec?.addresses.first())?);
    if cidrs.is_empty() || cidrs.iter().any(|net| Family::of_net(net) == primary) {
        return None;
    }
    Some(Issue::new(
        Severity::Warning,
        "KubeProxyConfiguration",
        "clusterCIDR",
        format!(
            "has no {0} range, and this node's primary address is {0}: nothing in {0} counts as pod traffic",
            primary.name()
        ),
        "add the range of the pods of that family, or choose another detectLocalMode",
    ))
}

/// B73-B78.
fn detect_local(config: &mut LbConfig, node: &NodeFacts<'_>, settings: &Settings) {
    let cidrs: &[IpNet] = match &settings.detect {
        DetectLocal::ClusterCidr(cidrs) => cidrs,
        DetectLocal::NodeCidr => node.spec.map_or(&[], |n| &n.pod_cidrs),
        DetectLocal::Bridge(_) | DetectLocal::InterfacePrefix(_) => {
            config.flags |= CFG_DETECT_IF;
            &[]
        }
    };
    if let Some(IpNet::V4(net)) = cidrs.iter().find(|n| Family::of_net(n) == Family::V4) {
        config.flags |= CFG_DETECT_CIDR4;
        (config.pod_cidr4, config.pod_mask4) = (net.network().octets(), net.netmask().octets());
    }
    if let Some(IpNet::V6(net)) = cidrs.iter().find(|n| Family::of_net(n) == Family::V6) {
        config.flags |= CFG_DETECT_CIDR6;
        (config.pod_cidr6, config.pod_mask6) = (net.network().octets(), net.netmask().octets());
    }
}

/// B92.
fn service_cidrs(config: &mut LbConfig, snapshot: &Snapshot, tables: &mut Desired) {
    let all: BTreeSet<IpNet> =
        snapshot.service_cidrs.values().flat_map(|s| s.cidrs.iter().copied()).collect();
    all.iter().for_each(|net| encode::put_cidr(tables, net));
    if let Some(IpNet::V4(net)) = cover(&all, Family::V4) {
        config.flags |= CFG_CIDR4;
        (config.svc_cidr4, config.svc_mask4) = (net.network().octets(), net.netmask().octets());
    }
    if let Some(IpNet::V6(net)) = cover(&all, Family::V6) {
        config.flags |= CFG_CIDR6;
        (config.svc_cidr6, config.svc_mask6) = (net.network().octets(), net.netmask().octets());
    }
}

/// The smallest prefix that holds all prefixes of a family.
fn cover(nets: &BTreeSet<IpNet>, family: Family) -> Option<IpNet> {
    nets.iter().filter(|n| Family::of_net(n) == family).copied().reduce(|mut cover, net| {
        while !cover.contains(&net) {
            match cover.supernet() {
                Some(wider) => cover = wider,
                None => break,
            }
        }
        cover
    })
}

/// The NodePorts among the frontends: only those are looked at.
#[must_use]
pub fn node_ports(tables: &Desired) -> BTreeSet<u16> {
    let (four, six) = (SvcKey4::default(), SvcKey6::default());
    let four =
        tables.services4.range(four..).map(|(k, _)| k).take_while(|k| k.addr == four.addr).map(|k| k.port);
    let six =
        tables.services6.range(six..).map(|(k, _)| k).take_while(|k| k.addr == six.addr).map(|k| k.port);
    four.chain(six).map(u16::from_be_bytes).collect()
}

/// Adds the namespaces whose sockets are translated (invariant I4).
pub fn add_namespaces(net: &NodeNet, settings: &Settings, tables: &mut Desired) {
    match settings.socket_lb {
        SocketLb::Host => tables.namespaces.extend([(net.netns_cookie, 1)]),
        // the host's own cookie tells its sockets from those of pods
        SocketLb::All => tables.namespaces.extend([(0, 1), (net.netns_cookie, 1)]),
        SocketLb::Off => {}
    }
}

fn octets4(address: IpAddr) -> [u8; 4] {
    match address {
        IpAddr::V4(a) => a.octets(),
        IpAddr::V6(_) => [0; 4],
    }
}

fn octets6(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V6(a) => a.octets(),
        IpAddr::V4(_) => [0; 16],
    }
}
