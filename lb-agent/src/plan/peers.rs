//! `LB_PEERS`, `LB_PEER4/6`: the cluster's nodes, for DSR.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lb_common::abi::{PEER_V4, PEER_V6, Peer, capacity};
use lb_common::dsr::GUE_PORT;

use super::ids::IdTable;
use super::issue::{Issue, Severity};
use super::node::NodeFacts;
use crate::desired::Desired;
use crate::model::settings::{Dsr, Settings};
use crate::model::{Family, Forwarding, Key, NodeSpec, ServiceSpec};
use crate::peers::Answers;
use crate::store::Snapshot;

/// Rows of the nodes to which packets may be sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peers(BTreeMap<String, u32>);

impl Peers {
    /// The row of a node; 0 = none, or this one.
    #[must_use]
    pub fn row(&self, node: Option<&str>) -> u32 {
        node.and_then(|name| self.0.get(name)).copied().unwrap_or(0)
    }
}

/// Adds the rows; without `--dsr` there are none.
pub(super) fn add(
    snapshot: &Snapshot,
    node: &NodeFacts<'_>,
    settings: &Settings,
    answers: &Answers,
    ids: &mut IdTable,
    tables: &mut Desired,
    issues: &mut Vec<Issue>,
) -> Peers {
    if settings.dsr == Dsr::Off {
        ids.peers.clear();
        return Peers::default();
    }
    let own = Family::ALL.map(|family| node.primary(family));
    tables.peers.insert(0, row(own, settings.dsr));
    for address in snapshot.nodes.values().flat_map(|n| &n.addresses).chain(own.iter().flatten()) {
        match address {
            IpAddr::V4(a) if tables.peers4.len() < capacity::PEERS => tables.peers4.insert(a.octets(), 1),
            IpAddr::V6(a) if tables.peers6.len() < capacity::PEERS => tables.peers6.insert(a.octets(), 1),
            _ => None,
        };
    }
    let mut peers = Peers::default();
    let others = snapshot.nodes.values().filter(|n| n.name != settings.node_name);
    ids.peers.retain(|name, _| snapshot.nodes.contains_key(name));
    let mut used: BTreeSet<u32> = ids.peers.values().copied().collect();
    for spec in others.filter(|n| answers.takes(&n.name, settings.dsr)) {
        let free = || (1..capacity::PEERS as u32).find(|row| !used.contains(row));
        let Some(number) = ids.peers.get(&spec.name).copied().or_else(free) else {
            issues.push(no_room(spec));
            continue;
        };
        used.insert(number);
        ids.peers.insert(spec.name.clone(), number);
        let addresses =
            Family::ALL.map(|family| spec.addresses.iter().copied().find(|a| Family::of(*a) == family));
        tables.peers.insert(number, row(addresses, settings.dsr));
        peers.0.insert(spec.name.clone(), number);
    }
    peers
}

fn row([four, six]: [Option<IpAddr>; 2], dsr: Dsr) -> Peer {
    let mut row = Peer { port: if dsr == Dsr::Gue { GUE_PORT } else { [0; 2] }, ..Peer::default() };
    if let Some(IpAddr::V4(a)) = four {
        (row.addr4, row.flags) = (a.octets(), row.flags | PEER_V4);
    }
    if let Some(IpAddr::V6(a)) = six {
        (row.addr6, row.flags) = (a.octets(), row.flags | PEER_V6);
    }
    row
}

/// What is wrong with a Service that asks for DSR, where the agent does not do it.
pub(super) fn unheard(service: &ServiceSpec, settings: &Settings) -> Option<Issue> {
    let asks = settings.dsr == Dsr::Off && service.forwarding == Some(Forwarding::Dsr);
    asks.then(|| {
        Issue::new(
            Severity::Warning,
            Key::Service(service.name.clone()),
            "metadata.annotations[lb-agent.io/forwarding]",
            "asks for DSR, which this node's agent does not do: sources are replaced",
            "start the agents of all nodes with --dsr=ipip or --dsr=gue",
        )
    })
}

fn no_room(spec: &NodeSpec) -> Issue {
    let problem = format!("all {} rows for nodes are in use", capacity::PEERS);
    let cure = "nothing is lost: sources of packets to this node are replaced";
    Issue::new(Severity::Warning, Key::Node(spec.name.clone()), "", problem, cure)
}

#[cfg(test)]
#[path = "peers_tests.rs"]
mod tests;
