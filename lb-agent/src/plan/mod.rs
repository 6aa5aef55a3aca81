//! plan: what the kernel's tables should hold, from what the cluster wants and what the node is.
//!
//! **Invariants:** pure: no clock (time is an argument), no I/O, no error. A bad Service is an [`Issue`] and never
//! stops the others. No history but [`IdTable`]: same objects, same tables, whatever their order and batches, up to
//! the numbers that the table gives out. Read [`plan`] first.
//!
//! ```text
//! Snapshot -> expand -> (per service port) select -> ids -> encode -> Desired
//! NodeNet  -> node, network ------------------------------^
//! ```
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::string_slice))]

pub mod encode;
pub mod expand;
pub mod ids;
pub mod issue;
pub mod maglev;
pub mod network;
mod nexthop;
pub mod node;
pub mod peers;
pub mod pool;
pub mod ports;
pub mod roles;
pub mod select;
pub mod slots;
pub mod snat;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use lb_common::abi::{
    NODE_HOST_NODEPORT, NODE_NODEPORT, ROLE_FRONTEND, ROLE_NODEPORT, ROLE_SNAT, ROLE_TUNNEL,
};

use self::ids::{FrontendKey, IdTable};
use self::issue::{Issue, Severity};
use self::node::NodeFacts;
use self::ports::PortPlanner;
use crate::desired::Desired;
use crate::links::{Attachment, NodeNet};
use crate::model::Family;
use crate::model::settings::Settings;
use crate::peers::Answers;
use crate::store::Snapshot;

/// What a plan is made from.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// What the cluster wants.
    pub snapshot: &'a Snapshot,
    /// The node's network.
    pub net: &'a NodeNet,
    /// The attach set.
    pub attachments: &'a BTreeMap<u32, Attachment>,
    /// How the operator wants it.
    pub settings: &'a Settings,
    /// What other nodes said of themselves.
    pub answers: &'a Answers,
}

/// Plans all tables.
///
/// `now` is the time on any clock that never goes back, the same for every plan of `ids`. Call
/// [`IdTable::applied`] once the result is in the kernel. Cost: frontends + endpoints, times their logarithm.
#[must_use]
pub fn plan(inputs: Inputs<'_>, ids: &mut IdTable, now: Duration) -> (Desired, Vec<Issue>) {
    let Inputs { snapshot, net, attachments, settings, answers } = inputs;
    let mut issues = snapshot.issues.clone();
    let mut tables = Desired::default();
    let node = NodeFacts::new(snapshot, net, settings);
    ids.begin(now);

    let expansion = expand::expand(snapshot, &node, &mut issues);
    let peers = peers::add(snapshot, &node, settings, answers, ids, &mut tables, &mut issues);
    let planner = PortPlanner { snapshot, node: &node, settings, peers: &peers, now };
    for port in &expansion.ports {
        planner.add(port, ids, &mut tables, &mut issues);
    }
    for address in expansion.active {
        let key = FrontendKey { address, port: 0, protocol: 0 };
        match encode::put_service(&mut tables, &key, encode::active_value(), &settings.limits) {
            Ok(()) => ids.roles.give(address, ROLE_FRONTEND, now),
            Err(encode::Full) => issues.push(no_room_for_active(address, settings)),
        }
    }
    ids.finish();

    network::add_interfaces(net, attachments, &node, settings, &mut tables);
    nexthop::add(net, attachments, &mut tables);
    network::add_addresses(&node, settings, &mut tables, &mut issues);
    network::configure(snapshot, net, &node, settings, &mut tables, &mut issues);
    network::add_namespaces(net, settings, &mut tables);
    for family in Family::ALL {
        encode::put_generations(&mut tables, family, ids.generations(family));
    }
    tables.slots = ids.slots.rows();
    give_node_roles(&tables, ids, now);
    tables.roles = ids.roles.rows(now);
    issues.sort_by(|a, b| b.cmp(a));
    issues.dedup();
    (tables, issues)
}

/// Roles of the node's own addresses.
fn give_node_roles(tables: &Desired, ids: &mut IdTable, now: Duration) {
    for row in tables.interfaces.values() {
        for address in [IpAddr::from(row.snat4), IpAddr::from(row.snat6)] {
            if !address.is_unspecified() {
                ids.roles.give(address, ROLE_SNAT, now);
            }
        }
    }
    if let Some(row) = tables.peers.get(&0) {
        for address in [IpAddr::from(row.addr4), IpAddr::from(row.addr6)] {
            if !address.is_unspecified() {
                ids.roles.give(address, ROLE_TUNNEL, now);
            }
        }
    }
    let four = tables.node4.iter().map(|(a, flags)| (IpAddr::from(*a), *flags));
    let six = tables.node6.iter().map(|(a, flags)| (IpAddr::from(*a), *flags));
    let answers = NODE_NODEPORT | NODE_HOST_NODEPORT;
    for (address, _) in four.chain(six).filter(|(_, flags)| flags & answers != 0) {
        ids.roles.give(address, ROLE_NODEPORT, now);
    }
}

fn no_room_for_active(address: IpAddr, settings: &Settings) -> Issue {
    Issue::new(
        Severity::Error,
        format!("ClusterIP {address}"),
        "",
        format!("all {} frontends are in use", settings.limits.frontends),
        "delete unused Services; unlisted ports of this address are not rejected",
    )
}

#[cfg(test)]
mod tests;
