//! Service -> frontends (B1-B18, B30-B35).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::ids::FrontendKey;
use super::issue::{Issue, Severity};
use super::node::NodeFacts;
use crate::model::{Family, Key, PortId, ServicePort, ServiceSpec};
use crate::store::Snapshot;

/// What kind of frontend it is; the order is that of the tables' precedence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrontendKind {
    /// ClusterIP (B30).
    ClusterIp,
    /// externalIP (B31), LoadBalancer VIP (B32) or NodePort (B34).
    External {
        /// Only `loadBalancerSourceRanges` may pass (B96, B97).
        filtered: bool,
    },
}

/// A service port with the frontends it got.
#[derive(Debug)]
pub struct Expanded<'a> {
    /// Its Service.
    pub service: &'a ServiceSpec,
    /// Its identity.
    pub id: PortId,
    /// Its frontends, none of which any other service port has.
    pub frontends: BTreeMap<FrontendKey, FrontendKind>,
}

impl Expanded<'_> {
    /// Whether it has a frontend in a family.
    #[must_use]
    pub fn has(&self, family: Family) -> bool {
        self.frontends.keys().any(|k| Family::of(k.address) == family)
    }
}

/// All service ports, and the ClusterIPs that are active (B91, B95).
#[derive(Debug, Default)]
pub struct Expansion<'a> {
    /// Service ports in the order of their names.
    pub ports: Vec<Expanded<'a>>,
    /// Active ClusterIPs.
    pub active: BTreeSet<IpAddr>,
}

/// Expands all Services.
///
/// Pure. A frontend that two service ports claim goes to a ClusterIP first (an externalIP must not take another
/// Service's traffic), then to the first by namespace and name (B12 leaves it open); the other gets an issue.
#[must_use]
pub fn expand<'a>(snapshot: &'a Snapshot, node: &NodeFacts<'_>, issues: &mut Vec<Issue>) -> Expansion<'a> {
    let mut out = Expansion::default();
    let mut owner: BTreeMap<FrontendKey, usize> = BTreeMap::new();
    for service in snapshot.services.values().filter(|s| s.ignored.is_none()) {
        note_owned(service, node, issues);
        let mut seen = BTreeSet::new();
        for port in &service.ports {
            let id = service.port_id(port);
            if seen.insert(id.clone()) {
                out.ports.push(Expanded { service, id, frontends: BTreeMap::new() });
            } else {
                issues.push(duplicate_port(service, port));
            }
        }
        out.active.extend(service.cluster_ips.iter().filter(|a| !node.owned.contains(a)));
    }
    for kind in [internal as Claims, external as Claims] {
        for index in 0..out.ports.len() {
            let Some(entry) = out.ports.get(index) else { continue };
            let wanted = claims(entry, node, kind);
            for (key, frontend) in wanted {
                match owner.get(&key) {
                    Some(other) if *other != index => {
                        let other = out.ports.get(*other).map(|o| o.id.to_string()).unwrap_or_default();
                        let Some(entry) = out.ports.get(index) else { continue };
                        issues.push(conflict(entry, &key, &other));
                    }
                    _ => {
                        owner.insert(key, index);
                        let Some(entry) = out.ports.get_mut(index) else { continue };
                        let held = entry.frontends.entry(key).or_insert(frontend);
                        // An address that is both an externalIP and a VIP: the filter holds.
                        if frontend == (FrontendKind::External { filtered: true }) {
                            *held = frontend;
                        }
                    }
                }
            }
        }
    }
    out
}

/// A frontend that a service port asks for.
type Claim = (FrontendKey, FrontendKind);
type Claims = fn(&ServiceSpec, &ServicePort, Family) -> Vec<Claim>;

fn claims(entry: &Expanded<'_>, node: &NodeFacts<'_>, of: Claims) -> Vec<Claim> {
    let port = entry.service.ports.iter().find(|p| entry.service.port_id(p) == entry.id);
    // B15: nothing exists in a family without a ClusterIP of that family.
    let families = Family::ALL.into_iter().filter(|f| entry.service.cluster_ip(*f).is_some());
    let all = families.flat_map(|f| port.map(|p| of(entry.service, p, f)).unwrap_or_default());
    all.filter(|(key, kind)| *kind != FrontendKind::ClusterIp || !node.owned.contains(&key.address)).collect()
}

/// B30.
fn internal(service: &ServiceSpec, port: &ServicePort, family: Family) -> Vec<Claim> {
    service
        .cluster_ip(family)
        .map(|a| (key(a, port.port, port), FrontendKind::ClusterIp))
        .into_iter()
        .collect()
}

/// B31-B34, B97.
fn external(service: &ServiceSpec, port: &ServicePort, family: Family) -> Vec<Claim> {
    let in_family = |a: &&IpAddr| Family::of(**a) == family;
    let open = FrontendKind::External { filtered: false };
    let filtered = service.source_ranges.iter().any(|n| Family::of_net(n) == family);
    let mut found = Vec::new();
    found.extend(service.external_ips.iter().filter(in_family).map(|a| (key(*a, port.port, port), open)));
    let vip = FrontendKind::External { filtered };
    found.extend(service.vips.iter().filter(in_family).map(|a| (key(*a, port.port, port), vip)));
    if port.node_port != 0 {
        let any = match family {
            Family::V4 => IpAddr::from(Ipv4Addr::UNSPECIFIED),
            Family::V6 => IpAddr::from(Ipv6Addr::UNSPECIFIED),
        };
        found.push((key(any, port.node_port, port), open));
    }
    found
}

fn key(address: IpAddr, number: u16, port: &ServicePort) -> FrontendKey {
    FrontendKey { address, port: number, protocol: port.protocol.number() }
}

/// DESIGN section 5.8: the host keeps what it owns.
fn note_owned(service: &ServiceSpec, node: &NodeFacts<'_>, issues: &mut Vec<Issue>) {
    for address in service.cluster_ips.iter().filter(|a| node.owned.contains(a)) {
        issues.push(Issue::new(
            Severity::Note,
            Key::Service(service.name.clone()),
            "spec.clusterIPs",
            format!("this node owns {address} as an address, so the ClusterIP is left to the host"),
            "nothing, if a node-local cache is meant to answer there; else remove the address from the node",
        ));
    }
}

fn duplicate_port(service: &ServiceSpec, port: &ServicePort) -> Issue {
    Issue::new(
        Severity::Warning,
        Key::Service(service.name.clone()),
        "spec.ports",
        format!("two ports have the name {:?} and protocol {}", port.name, port.protocol.name()),
        "give each port a name of its own; the first is served",
    )
}

fn conflict(entry: &Expanded<'_>, key: &FrontendKey, other: &str) -> Issue {
    let what = if key.address.is_unspecified() {
        format!("NodePort {}", key.port)
    } else {
        format!("{} port {}", key.address, key.port)
    };
    Issue::new(
        Severity::Warning,
        Key::Service(entry.service.name.clone()),
        format!("port {:?}", entry.id.port),
        format!("{what} (protocol {}) already belongs to {other}", key.protocol),
        "use another address or port for one of the two",
    )
}

#[cfg(test)]
#[path = "expand_tests.rs"]
mod tests;
