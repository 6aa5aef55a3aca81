//! plan: what the kernel's tables should hold, from what the cluster wants and what the node is.
//!
//! **Invariants:** pure: no clock (time is an argument), no I/O, no error. A bad Service is an [`Issue`] and never
//! stops the others. No history but [`IdTable`]: same objects, same tables, whatever their order and batches, up to
//! the numbers that the table gives out. What a [`Planner`] keeps from plan to plan saves work and changes no result.
//! Read [`Planner::plan`] first.
//!
//! ```text
//! Snapshot, Scope -> expand -> (per service port) select -> ids -> encode -> part (per Service) -> Desired, Changes
//! NodeNet  -> node, network ------------------------------------------------------------------------^
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
pub mod part;
pub mod peers;
pub mod pool;
pub mod ports;
pub mod roles;
pub mod select;
pub mod slots;
pub mod snat;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use lb_common::abi::{
    NODE_HOST_NODEPORT, NODE_NODEPORT, ROLE_BACKEND, ROLE_NODEPORT, ROLE_SNAT, ROLE_TUNNEL,
};

use self::expand::Claims;
use self::ids::{FrontendKey, IdTable};
use self::issue::{Issue, Severity};
use self::node::NodeFacts;
use self::part::{Board, Part, Rows};
use self::peers::Peers;
use self::ports::PortPlanner;
use crate::desired::{Changes, Desired, Keys, Tally};
use crate::links::{Attachment, NodeNet};
use crate::model::settings::Settings;
use crate::model::{Family, ObjectName, ServiceSpec};
use crate::peers::Answers;
use crate::store::{Scope, Snapshot};

/// Puts tables in the place of those of a board, noting the rows that differ.
macro_rules! replace {
    ($board:expr, $rows:ident, $($table:ident),*) => {
        $(exchange(&mut $board.tables.$table, $rows.$table, $board.keys.as_mut().map(|keys| &mut keys.$table));)*
    };
}

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

/// What all Services are planned with, beside their own objects.
#[derive(Clone, Debug, PartialEq)]
pub struct Shared {
    settings: Settings,
    /// Every address that is assigned to the node.
    owned: BTreeSet<IpAddr>,
    primary: [Option<IpAddr>; 2],
    zone: String,
    peers: Peers,
    /// Rows of `LB_NH` by which pods of this node are reached past the stack.
    pods: BTreeMap<IpAddr, u32>,
}

impl Shared {
    /// The node's primary address of a family.
    fn primary(&self, family: Family) -> Option<IpAddr> {
        let [four, six] = self.primary;
        if family == Family::V4 { four } else { six }
    }
}

/// The tables as the inputs of the last plan want them.
///
/// A plan looks at the Services that a [`Scope`] names, and at those that claim a frontend with one of them. It looks at all
/// of them when something changed that all are planned with, and while a table has no room for what one of them wants: who
/// is left out then depends on all.
#[derive(Debug, Default)]
pub struct Planner {
    shared: Option<Shared>,
    claims: Claims,
    parts: BTreeMap<ObjectName, Part>,
    board: Board,
    /// Issues of the node's own rows.
    node_issues: Vec<Issue>,
    /// Issues of the configuration value.
    config_issues: Vec<Issue>,
    /// Roles of the node's own addresses.
    node_roles: BTreeSet<(IpAddr, u8)>,
    /// Something found no room.
    lacking: bool,
    changes: Changes,
    issues: Arc<Vec<Issue>>,
    planned: usize,
}

impl Planner {
    /// The tables.
    #[must_use]
    pub fn desired(&self) -> &Desired {
        &self.board.tables
    }

    /// Which rows the last plan may have changed.
    #[must_use]
    pub fn changes(&self) -> &Changes {
        &self.changes
    }

    /// What is wrong with objects, the worst first.
    #[must_use]
    pub fn issues(&self) -> &Arc<Vec<Issue>> {
        &self.issues
    }

    /// What is told of the frontends.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.board.tally
    }

    /// How many Services the last plan looked at.
    #[must_use]
    pub fn planned(&self) -> usize {
        self.planned
    }

    /// Plans all tables; `scope` says what may differ from the inputs of the last plan, and nothing else may.
    ///
    /// The result is the same as that of a new planner with the same `ids`. `now` is the time on any clock that never goes
    /// back, the same for every plan of `ids`. Call [`IdTable::applied`] once the result is in the kernel. Cost: frontends
    /// and endpoints of the Services in question times the logarithm of all, and the node's interfaces if `scope` says
    /// so.
    pub fn plan(&mut self, inputs: Inputs<'_>, scope: &Scope, ids: &mut IdTable, now: Duration) {
        let Inputs { snapshot, net, settings, .. } = inputs;
        ids.begin(now);
        self.board.keys = Some(Keys::default());
        let node = NodeFacts::new(snapshot, net, settings);
        let mut due = scope.services.clone();
        let mut some = self.shared.is_some() && !self.lacking;
        let node_changed = self.shared.is_none() || scope.node;
        if node_changed {
            let shared = self.surround(inputs, &node, ids);
            some = some && self.concerned(&shared, snapshot, &mut due);
            self.shared = Some(shared);
        }
        let Some(shared) = self.shared.take() else { return };
        if !some || self.some(snapshot, &shared, due, ids).is_err() {
            self.all(snapshot, &shared, ids);
        }
        self.shared = Some(shared);
        let any = self.board.keys.is_none();
        if node_changed || any || self.board.keys.as_ref().is_some_and(names_node_ports) {
            self.configure(inputs, &node);
        }
        if node_changed || any {
            self.give_node_roles(any, ids);
        }
        ids.finish(now);
        self.collect(ids);
    }

    /// Plans the node's own rows, but for the configuration.
    fn surround(&mut self, inputs: Inputs<'_>, node: &NodeFacts<'_>, ids: &mut IdTable) -> Shared {
        let Inputs { snapshot, net, attachments, settings, answers } = inputs;
        let (mut rows, mut issues) = (Desired::default(), snapshot.issues.clone());
        let peers = peers::add(snapshot, node, settings, answers, ids, &mut rows, &mut issues);
        network::add_interfaces(net, attachments, node, settings, &mut rows);
        let pods = nexthop::add(net, attachments, &mut rows);
        network::add_addresses(node, settings, &mut rows, &mut issues);
        network::add_namespaces(net, settings, &mut rows);
        replace!(self.board, rows, nexthops, peers, peers4, peers6, interfaces, node4, node6, namespaces);
        self.node_issues.iter().for_each(|issue| self.board.issues.take(issue));
        issues.iter().for_each(|issue| self.board.issues.put(issue));
        self.node_issues = issues;
        Shared {
            settings: settings.clone(),
            owned: node.owned.clone(),
            primary: Family::ALL.map(|family| node.primary(family)),
            zone: node.zone().to_owned(),
            peers,
            pods,
        }
    }

    /// The configuration value and the service CIDRs.
    fn configure(&mut self, inputs: Inputs<'_>, node: &NodeFacts<'_>) {
        let Inputs { snapshot, net, settings, .. } = inputs;
        let ports = network::node_ports(&self.board.tables);
        let (mut rows, mut issues) = (Desired::default(), Vec::new());
        network::configure(snapshot, net, node, settings, &ports, &mut rows, &mut issues);
        self.board.tables.config = rows.config;
        replace!(self.board, rows, cidrs4, cidrs6);
        self.config_issues.iter().for_each(|issue| self.board.issues.take(issue));
        issues.iter().for_each(|issue| self.board.issues.put(issue));
        self.config_issues = issues;
    }

    /// Adds the Services to `due` that are planned otherwise with `new`; false = all are.
    fn concerned(&self, new: &Shared, snapshot: &Snapshot, due: &mut BTreeSet<ObjectName>) -> bool {
        let Some(old) = &self.shared else { return false };
        let same = Shared { owned: old.owned.clone(), pods: old.pods.clone(), ..new.clone() };
        if same != *old {
            return false;
        }
        let moved: BTreeSet<&IpAddr> = old.owned.symmetric_difference(&new.owned).collect();
        if !moved.is_empty() {
            let owns = |s: &&Arc<ServiceSpec>| s.cluster_ips.iter().any(|a| moved.contains(a));
            due.extend(snapshot.services.values().filter(owns).map(|s| s.name.clone()));
        }
        let known = old.pods.keys().chain(new.pods.keys());
        let moved: BTreeSet<&IpAddr> = known.filter(|a| old.pods.get(a) != new.pods.get(a)).collect();
        if !moved.is_empty() {
            let has = |part: &Part| part.roles().any(|(a, role)| role == ROLE_BACKEND && moved.contains(&a));
            due.extend(self.parts.iter().filter(|(_, part)| has(part)).map(|(name, _)| name.clone()));
        }
        true
    }

    /// Plans some Services.
    ///
    /// # Errors
    /// A table has no room: all must be planned.
    fn some(
        &mut self,
        snapshot: &Snapshot,
        shared: &Shared,
        mut due: BTreeSet<ObjectName>,
        ids: &mut IdTable,
    ) -> Result<(), encode::Full> {
        let mut touched: Vec<FrontendKey> = Vec::new();
        let mut claimed: BTreeMap<ObjectName, Vec<FrontendKey>> = BTreeMap::new();
        for name in &due {
            if let Some(part) = self.parts.get_mut(name) {
                let keys = std::mem::take(&mut part.claimed);
                self.claims.remove(name, &keys);
                touched.extend(keys);
            }
        }
        for name in &due {
            if let Some(service) = snapshot.services.get(name).filter(|s| s.ignored.is_none()) {
                let keys = self.claims.add(service, &shared.owned);
                touched.extend(&keys);
                claimed.insert(name.clone(), keys);
            }
        }
        // who else claims one of these frontends may win or lose it
        due.extend(self.claims.claimants(&touched).cloned());
        for name in &due {
            ids.recall(name);
            if let Some(mut part) = self.parts.remove(name) {
                self.board.take(&part, ids);
                claimed.entry(name.clone()).or_insert_with(|| std::mem::take(&mut part.claimed));
            }
        }
        self.planned = due.len();
        let mut fits = Ok(());
        for name in due {
            let Some(service) = snapshot.services.get(&name) else { continue };
            let rows = self.rows(service, snapshot, shared, ids);
            let active = rows.active.clone();
            let (mut part, put) = self.board.put(rows, &shared.settings.limits, ids);
            let marked = active
                .into_iter()
                .try_for_each(|a| self.board.activate(&mut part, a, &shared.settings.limits, ids));
            fits = fits.and(put).and(marked);
            part.claimed = claimed.remove(&name).unwrap_or_default();
            self.parts.insert(name, part);
        }
        fits
    }

    /// Plans all Services anew.
    fn all(&mut self, snapshot: &Snapshot, shared: &Shared, ids: &mut IdTable) {
        ids.recall_all();
        self.board.clear();
        self.node_issues.iter().chain(&self.config_issues).for_each(|issue| self.board.issues.put(issue));
        (self.claims, self.parts, self.lacking) = Default::default();
        let served = || snapshot.services.values().filter(|s| s.ignored.is_none());
        let mut claimed: BTreeMap<&ObjectName, Vec<FrontendKey>> =
            served().map(|s| (&s.name, self.claims.add(s, &shared.owned))).collect();
        let limits = &shared.settings.limits;
        let mut active: Vec<(IpAddr, &ObjectName)> = Vec::new();
        for (name, service) in &snapshot.services {
            let rows = self.rows(service, snapshot, shared, ids);
            active.extend(rows.active.iter().map(|address| (*address, name)));
            let (mut part, put) = self.board.put(rows, limits, ids);
            self.lacking |= put.is_err();
            part.claimed = claimed.remove(name).unwrap_or_default();
            self.parts.insert(name.clone(), part);
        }
        // frontends come first
        active.sort_unstable();
        for (address, name) in active {
            let Some(part) = self.parts.get_mut(name) else { continue };
            if self.board.activate(part, address, limits, ids).is_err() {
                self.lacking = true;
                self.board.issues.put(&no_room_for_active(address, &shared.settings));
            }
        }
        self.planned = snapshot.services.len();
    }

    /// What a Service wants.
    fn rows(
        &mut self,
        service: &ServiceSpec,
        snapshot: &Snapshot,
        shared: &Shared,
        ids: &mut IdTable,
    ) -> Rows {
        let mut rows = Rows::default();
        rows.issues.extend(peers::unheard(service, &shared.settings));
        if service.ignored.is_some() {
            return rows;
        }
        let planner = PortPlanner { slices: snapshot.slices.get(&service.name), shared };
        for port in expand::expand(service, &shared.owned, &self.claims, &mut rows.issues) {
            planner.add(&port, ids, &mut rows);
        }
        rows.active.extend(expand::active(service, &shared.owned));
        self.lacking |= rows.lacking;
        rows
    }

    /// Roles of the node's own addresses; `anew` = nobody has any.
    fn give_node_roles(&mut self, anew: bool, ids: &mut IdTable) {
        let roles = node_roles(&self.board.tables);
        let old = std::mem::replace(&mut self.node_roles, roles);
        if !anew {
            old.into_iter().for_each(|(address, role)| ids.roles.take(address, role));
        }
        self.node_roles.iter().for_each(|(address, role)| ids.roles.give(*address, *role));
    }

    /// Takes over what the id table keeps, and what there is to tell.
    fn collect(&mut self, ids: &mut IdTable) {
        let tables = &mut self.board.tables;
        let moved = Family::ALL.map(|family| ids.take_moved(family));
        let (slots, roles) = (ids.slots.take_changed(), ids.roles.take_changed());
        if let Some(keys) = &mut self.board.keys {
            let [four, six] = moved;
            let all = [(&four, &mut tables.generations4), (&six, &mut tables.generations6)];
            for (family, (moved, table)) in Family::ALL.into_iter().zip(all) {
                let known = ids.generations(family);
                table.extend(moved.iter().filter_map(|id| Some((*id, *known.get(id)?))));
            }
            for start in &slots {
                tables.slots.remove(*start);
            }
            for start in &slots {
                if let Some(range) = ids.slots.rows().at(*start) {
                    tables.slots.put(*start, Arc::clone(range));
                }
            }
            roles.iter().for_each(|address| tables.roles.insert(*address, ids.roles.of(*address)));
            (keys.generations4, keys.generations6, keys.slots, keys.roles) = (four, six, slots, roles);
        } else {
            tables.generations4.clone_from(ids.generations(Family::V4));
            tables.generations6.clone_from(ids.generations(Family::V6));
            tables.slots.clone_from(ids.slots.rows());
            let rows = ids.roles.rows();
            let gone: Vec<IpAddr> = tables.roles.keys().filter(|a| !rows.contains_key(a)).copied().collect();
            gone.into_iter().for_each(|address| tables.roles.insert(address, 0));
            rows.into_iter().for_each(|(address, roles)| tables.roles.insert(address, roles));
        }
        self.changes = self.board.keys.take().map_or(Changes::All, |keys| Changes::Some(Box::new(keys)));
        if let Some(issues) = self.board.issues.list_if_changed() {
            self.issues = Arc::new(issues);
        }
    }
}

fn exchange<K: Ord + Copy, V: PartialEq>(
    old: &mut BTreeMap<K, V>,
    new: BTreeMap<K, V>,
    keys: Option<&mut BTreeSet<K>>,
) {
    if let Some(keys) = keys {
        keys.extend(new.iter().filter(|(k, v)| old.get(k) != Some(v)).map(|(k, _)| *k));
        keys.extend(old.keys().filter(|k| !new.contains_key(k)).copied());
    }
    *old = new;
}

/// Whether a NodePort is among the frontends.
fn names_node_ports(keys: &Keys) -> bool {
    keys.services4.first().is_some_and(|k| k.addr == [0; 4])
        || keys.services6.first().is_some_and(|k| k.addr == [0; 16])
}

/// Roles of the node's own addresses.
fn node_roles(tables: &Desired) -> BTreeSet<(IpAddr, u8)> {
    let mut roles = BTreeSet::new();
    let interfaces =
        tables.interfaces.values().flat_map(|row| [IpAddr::from(row.snat4), IpAddr::from(row.snat6)]);
    roles.extend(interfaces.filter(|address| !address.is_unspecified()).map(|address| (address, ROLE_SNAT)));
    let own = tables.peers.get(&0).into_iter();
    let own = own.flat_map(|row| [IpAddr::from(row.addr4), IpAddr::from(row.addr6)]);
    roles.extend(own.filter(|address| !address.is_unspecified()).map(|address| (address, ROLE_TUNNEL)));
    let four = tables.node4.iter().map(|(a, flags)| (IpAddr::from(*a), *flags));
    let six = tables.node6.iter().map(|(a, flags)| (IpAddr::from(*a), *flags));
    let answers = NODE_NODEPORT | NODE_HOST_NODEPORT;
    let ports = four.chain(six).filter(|(_, flags)| flags & answers != 0);
    roles.extend(ports.map(|(address, _)| (address, ROLE_NODEPORT)));
    roles
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
