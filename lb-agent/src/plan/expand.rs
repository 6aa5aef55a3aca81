//! Service -> frontends (B1-B18, B30-B35).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::ids::FrontendKey;
use super::issue::{Issue, Severity};
use crate::model::{Family, Key, ObjectName, PortId, ServicePort, ServiceSpec};

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

/// The service ports of a Service.
///
/// Pure. A frontend that two service ports claim goes to whom [`Claims`] says; the other gets an issue.
#[must_use]
pub fn expand<'a>(
    service: &'a ServiceSpec,
    owned: &BTreeSet<IpAddr>,
    claims: &Claims,
    issues: &mut Vec<Issue>,
) -> Vec<Expanded<'a>> {
    let mut found = Vec::new();
    note_owned(service, owned, issues);
    let mut seen = BTreeSet::new();
    for (index, port) in service.ports.iter().enumerate() {
        let id = service.port_id(port);
        if !seen.insert(id.clone()) {
            issues.push(duplicate_port(service, port));
            continue;
        }
        let mut entry = Expanded { service, id, frontends: BTreeMap::new() };
        for (_, key, frontend) in claimed_by(service, port, owned) {
            match claims.winner(&key) {
                Some(winner) if !winner.is(service, index) => {
                    issues.push(conflict(&entry, &key, &winner.id()))
                }
                _ => {
                    let held = entry.frontends.entry(key).or_insert(frontend);
                    // An address that is both an externalIP and a VIP: the filter holds.
                    if frontend == (FrontendKind::External { filtered: true }) {
                        *held = frontend;
                    }
                }
            }
        }
        found.push(entry);
    }
    found
}

/// The ClusterIPs of a Service that are active (B91, B95).
pub fn active<'a>(
    service: &'a ServiceSpec,
    owned: &'a BTreeSet<IpAddr>,
) -> impl Iterator<Item = IpAddr> + 'a {
    service.cluster_ips.iter().filter(|a| !owned.contains(a)).copied()
}

/// A frontend that a service port asks for, and how strong its claim is.
type Claim = (Strength, FrontendKey, FrontendKind);

/// What comes first, counts: an externalIP must not take another Service's traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Strength {
    /// Of a ClusterIP.
    Internal,
    /// Of all other addresses.
    External,
}

/// A service port that claims a frontend.
#[derive(Clone, Debug)]
struct Claimant {
    strength: Strength,
    service: Arc<ServiceSpec>,
    /// Which of its ports.
    port: usize,
}

impl Claimant {
    fn is(&self, service: &ServiceSpec, port: usize) -> bool {
        self.service.name == service.name && self.port == port
    }

    fn order(&self) -> (Strength, &ObjectName, usize) {
        (self.strength, &self.service.name, self.port)
    }

    fn id(&self) -> String {
        self.service.ports.get(self.port).map(|p| self.service.port_id(p).to_string()).unwrap_or_default()
    }
}

/// Who claims which frontend, over all Services: a ClusterIP's claim counts first, then the first's by namespace and name
/// (B12 leaves it open).
#[derive(Debug, Default)]
pub struct Claims(BTreeMap<FrontendKey, Vec<Claimant>>);

impl Claims {
    /// Adds what a Service claims; the answer is that.
    pub fn add(&mut self, service: &Arc<ServiceSpec>, owned: &BTreeSet<IpAddr>) -> Vec<FrontendKey> {
        let mut keys = Vec::new();
        let mut seen = BTreeSet::new();
        for (port, spec) in service.ports.iter().enumerate() {
            if !seen.insert((&spec.name, spec.protocol)) {
                continue;
            }
            for (strength, key, _) in claimed_by(service, spec, owned) {
                let claimants = self.0.entry(key).or_default();
                let new = Claimant { strength, service: Arc::clone(service), port };
                let at = claimants.partition_point(|c| c.order() < new.order());
                claimants.insert(at, new);
                keys.push(key);
            }
        }
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    /// Takes away what a Service claims: these keys, by the answer of [`Claims::add`].
    pub fn remove(&mut self, service: &ObjectName, keys: &[FrontendKey]) {
        for key in keys {
            if let Some(claimants) = self.0.get_mut(key) {
                claimants.retain(|c| c.service.name != *service);
                if claimants.is_empty() {
                    self.0.remove(key);
                }
            }
        }
    }

    /// All Services that claim one of these.
    pub fn claimants<'a>(&'a self, keys: &'a [FrontendKey]) -> impl Iterator<Item = &'a ObjectName> + 'a {
        keys.iter().filter_map(|key| self.0.get(key)).flatten().map(|c| &c.service.name)
    }

    fn winner(&self, key: &FrontendKey) -> Option<&Claimant> {
        self.0.get(key)?.first()
    }
}

fn claimed_by(service: &ServiceSpec, port: &ServicePort, owned: &BTreeSet<IpAddr>) -> Vec<Claim> {
    // B15: nothing exists in a family without a ClusterIP of that family.
    let families = || Family::ALL.into_iter().filter(|f| service.cluster_ip(*f).is_some());
    let inside = families()
        .filter_map(|f| internal(service, port, f))
        .filter(|(_, key, _)| !owned.contains(&key.address));
    inside.chain(families().flat_map(|f| external(service, port, f))).collect()
}

/// B30.
fn internal(service: &ServiceSpec, port: &ServicePort, family: Family) -> Option<Claim> {
    let address = service.cluster_ip(family)?;
    Some((Strength::Internal, key(address, port.port, port), FrontendKind::ClusterIp))
}

/// B31-B34, B97.
fn external(service: &ServiceSpec, port: &ServicePort, family: Family) -> Vec<Claim> {
    let in_family = |a: &&IpAddr| Family::of(**a) == family;
    let open = FrontendKind::External { filtered: false };
    let filtered = service.source_ranges.iter().any(|n| Family::of_net(n) == family);
    let vip = FrontendKind::External { filtered };
    let claim = |address, number, kind| (Strength::External, key(address, number, port), kind);
    let mut found = Vec::new();
    found.extend(service.external_ips.iter().filter(in_family).map(|a| claim(*a, port.port, open)));
    found.extend(service.vips.iter().filter(in_family).map(|a| claim(*a, port.port, vip)));
    if port.node_port != 0 {
        let any = match family {
            Family::V4 => IpAddr::from(Ipv4Addr::UNSPECIFIED),
            Family::V6 => IpAddr::from(Ipv6Addr::UNSPECIFIED),
        };
        found.push(claim(any, port.node_port, open));
    }
    found
}

fn key(address: IpAddr, number: u16, port: &ServicePort) -> FrontendKey {
    FrontendKey { address, port: number, protocol: port.protocol.number() }
}

/// DESIGN section 5.8: the host keeps what it owns.
fn note_owned(service: &ServiceSpec, owned: &BTreeSet<IpAddr>, issues: &mut Vec<Issue>) {
    for address in service.cluster_ips.iter().filter(|a| owned.contains(a)) {
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
