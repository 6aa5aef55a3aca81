//! Which endpoints of a service port are used: conditions, topology hints, fall-back (B21-B29, B44-B62).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::model::{EndpointSpec, Family, PortId, SliceSpec};

/// An endpoint of one service port, with the sets it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Selected<'a> {
    /// Name of its node.
    pub node: Option<&'a str>,
    /// Address.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
    /// On this node (B26).
    pub local: bool,
    /// In the Cluster set (B44).
    pub in_cluster: bool,
    /// In the Local set (B45).
    pub in_local: bool,
    /// Ready (B27); what a load balancer's health check counts (B120).
    pub ready: bool,
    /// Its weight.
    pub weight: u16,
    /// Still serves, so flows to it go on (B107); else it is about to be gone.
    pub serving: bool,
}

/// What became of the endpoints of one service port in one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection<'a> {
    /// All endpoints, one per address and port, in the order of both.
    pub endpoints: Vec<Selected<'a>>,
    /// Some endpoint anywhere is usable (B46).
    pub has_any: bool,
}

/// Where this node is.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// Name of this node.
    pub node: &'a str,
    /// Its zone; empty = none (B58).
    pub zone: &'a str,
}

/// Selects the endpoints of a service port.
///
/// Pure and independent of the order of `slices`. Cost: endpoints x log(endpoints).
#[must_use]
pub fn select<'a>(
    id: &PortId,
    family: Family,
    slices: impl IntoIterator<Item = &'a Arc<SliceSpec>>,
    place: Place<'_>,
) -> Selection<'a> {
    let merged = merge(id, family, slices, place);
    let endpoints: Vec<(&(IpAddr, u16), &&'a EndpointSpec)> = merged.iter().collect();
    let local = |e: &EndpointSpec| e.node.as_deref() == Some(place.node);
    let cluster = cluster_set(&endpoints, place);
    let local_ready = endpoints.iter().any(|(_, e)| local(e) && e.ready);
    let in_local = |e: &EndpointSpec| local(e) && if local_ready { e.ready } else { falls_back(e) };
    Selection {
        has_any: endpoints.iter().any(|(_, e)| e.ready || falls_back(e)),
        endpoints: endpoints
            .iter()
            .map(|((address, port), e)| Selected {
                node: e.node.as_deref(),
                address: *address,
                port: *port,
                local: local(e),
                in_cluster: cluster.admits(e),
                in_local: in_local(e),
                ready: e.ready,
                weight: e.weight,
                serving: e.ready || e.serving,
            })
            .collect(),
    }
}

/// B22-B25: one endpoint per address and port; of duplicates the copy that serves best.
fn merge<'a>(
    id: &PortId,
    family: Family,
    slices: impl IntoIterator<Item = &'a Arc<SliceSpec>>,
    place: Place<'_>,
) -> BTreeMap<(IpAddr, u16), &'a EndpointSpec> {
    let mut merged: BTreeMap<(IpAddr, u16), &EndpointSpec> = BTreeMap::new();
    for slice in slices.into_iter().filter(|s| s.family == family) {
        for port in slice.ports.iter().filter(|p| p.name == id.port && p.protocol == id.protocol) {
            for endpoint in &slice.endpoints {
                let held = merged.entry((endpoint.address, port.port)).or_insert(endpoint);
                if rank(endpoint, place) > rank(held, place) {
                    *held = endpoint;
                }
            }
        }
    }
    merged
}

/// B25: not terminating, then ready, then serving, then on this node; the rest only makes the order total.
fn rank<'e>(e: &'e EndpointSpec, place: Place<'_>) -> impl Ord + use<'e> {
    let local = e.node.as_deref() == Some(place.node);
    (!e.terminating, e.ready, e.serving, local, e.weight, &e.node, &e.zones, &e.nodes)
}

/// B44, B45: what an empty set falls back to.
fn falls_back(e: &EndpointSpec) -> bool {
    e.serving && e.terminating
}

/// Who is in the Cluster set.
#[derive(Clone, Copy)]
enum ClusterSet<'a> {
    /// B54: ready endpoints with a hint for this node.
    NodeHint(&'a str),
    /// B55: ready endpoints with a hint for this zone.
    ZoneHint(&'a str),
    /// B56: all ready endpoints.
    Ready,
    /// B44: no endpoint is ready.
    Terminating,
}

impl ClusterSet<'_> {
    fn admits(self, e: &EndpointSpec) -> bool {
        match self {
            Self::NodeHint(node) => e.ready && e.nodes.iter().any(|n| n == node),
            Self::ZoneHint(zone) => e.ready && e.zones.iter().any(|z| z == zone),
            Self::Ready => e.ready,
            Self::Terminating => falls_back(e),
        }
    }
}

/// B53-B59.
fn cluster_set<'p>(endpoints: &[(&(IpAddr, u16), &&EndpointSpec)], place: Place<'p>) -> ClusterSet<'p> {
    let ready: Vec<&EndpointSpec> = endpoints.iter().map(|(_, e)| **e).filter(|e| e.ready).collect();
    if ready.is_empty() {
        return ClusterSet::Terminating;
    }
    let node = ClusterSet::NodeHint(place.node);
    if ready.iter().all(|e| !e.nodes.is_empty()) && ready.iter().any(|e| node.admits(e)) {
        return node;
    }
    let zone = ClusterSet::ZoneHint(place.zone);
    if !place.zone.is_empty()
        && ready.iter().all(|e| !e.zones.is_empty())
        && ready.iter().any(|e| zone.admits(e))
    {
        return zone;
    }
    ClusterSet::Ready
}

#[cfg(test)]
#[path = "select_tests.rs"]
mod tests;
