//! Ids of service ports and backends, and their generations: stable from plan to plan and over restarts.
//!
//! **Invariants:** an id names one service port, or one (service port, endpoint), until its quarantine ends. Its
//! generation moves when that ends and again when the id is given to someone else, so whoever remembers (id,
//! generation) never takes one for the other. 0 is "none" in the kernel and never given out.

use std::collections::btree_map::Entry as MapEntry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::time::Duration;

use super::pool::Pool;
use super::roles::Roles;
use super::slots::SlotTable;
use crate::desired::Desired;
use crate::model::settings::Limits;
use crate::model::{Family, ObjectName, PortId, Protocol};

/// What a packet is addressed to; the address is unspecified for a NodePort.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrontendKey {
    /// Destination address, or `0.0.0.0` / `::` for a NodePort.
    pub address: IpAddr,
    /// Destination port.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
}

/// Id and generation of a service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceId {
    /// The id; never 0.
    pub id: u32,
    /// Its generation.
    pub generation: u32,
}

#[derive(Clone, Debug)]
struct Entry<T> {
    value: T,
    wanted: bool,
}

/// Backend ids of one family.
#[derive(Clone, Debug)]
struct Backends {
    pool: Pool,
    held: BTreeMap<(u32, IpAddr, u16), Entry<u32>>,
    generations: BTreeMap<u32, u32>,
    /// Ids whose generation changed.
    moved: BTreeSet<u32>,
}

impl Backends {
    fn leave(&mut self, id: u32) {
        let generation = self.generations.entry(id).or_default();
        *generation = generation.wrapping_add(1);
        self.moved.insert(id);
        self.pool.give_back(id);
    }

    /// Gives back what was not asked for since it was recalled: of these service ports, `None` = of all.
    fn sweep(&mut self, services: Option<&[u32]>) {
        let gone: Vec<u32> = match services {
            None => self.held.extract_if(.., |_, e| !e.wanted).map(|(_, e)| e.value).collect(),
            Some(services) => services
                .iter()
                .flat_map(|id| self.held.extract_if(endpoints(*id), |_, e| !e.wanted).collect::<Vec<_>>())
                .map(|(_, e)| e.value)
                .collect(),
        };
        gone.into_iter().for_each(|id| self.leave(id));
    }
}

/// The keys of all endpoints of a service port.
fn endpoints(service: u32) -> RangeInclusive<(u32, IpAddr, u16)> {
    let (first, last) = (Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::from_bits(u128::MAX).into());
    (service, first, 0)..=(service, last, u16::MAX)
}

/// Everything that `plan` remembers.
#[derive(Clone, Debug)]
pub struct IdTable {
    seed: u32,
    services: BTreeMap<PortId, Entry<ServiceId>>,
    service_pool: Pool,
    /// Last generation of service ids that were given back.
    service_generations: BTreeMap<u32, u32>,
    /// Ids found in the kernel that no service port has claimed yet.
    unclaimed: BTreeMap<FrontendKey, ServiceId>,
    /// Ids of `unclaimed` that a service port has claimed by now.
    claimed: BTreeSet<u32>,
    /// Service ports, with their ids, that this plan asks for anew; `None` = all.
    recalled: Option<Vec<(PortId, u32)>>,
    backends4: Backends,
    backends6: Backends,
    /// Ranges of `LB_SLOTS`.
    pub(super) slots: SlotTable,
    /// Rows of `LB_PEERS` by the names of nodes. Another row after a restart does no harm: a node that gets a packet for an
    /// endpoint of another sends it there.
    pub(super) peers: BTreeMap<String, u32>,
    /// Addresses that have, or lately had, a role.
    pub(super) roles: Roles,
}

impl IdTable {
    /// An empty table. `seed` is where the generations of ids that were never used begin: random for each start, so
    /// that leftovers of a table that was lost do not match.
    #[must_use]
    pub fn new(limits: &Limits, seed: u32) -> Self {
        let backends = || Backends {
            pool: Pool::new(limits.backends),
            held: BTreeMap::new(),
            generations: BTreeMap::new(),
            moved: BTreeSet::new(),
        };
        Self {
            seed,
            services: BTreeMap::new(),
            service_pool: Pool::new(limits.services.saturating_add(1)),
            service_generations: BTreeMap::new(),
            unclaimed: BTreeMap::new(),
            claimed: BTreeSet::new(),
            recalled: None,
            backends4: backends(),
            backends6: backends(),
            slots: SlotTable::new(limits.slots),
            peers: BTreeMap::new(),
            roles: Roles::default(),
        }
    }

    /// Takes over the ids, generations and ranges that the kernel holds; call it once, before the first plan.
    ///
    /// Nothing is served because of it: ids that the first plan does not claim are given back.
    pub fn restore(&mut self, actual: &Desired) {
        let keyed4 =
            actual.services4.iter().map(|(k, v)| (key(k.addr.into(), k.port, k.proto), v, Family::V4));
        let keyed6 =
            actual.services6.iter().map(|(k, v)| (key(k.addr.into(), k.port, k.proto), v, Family::V6));
        let mut known = BTreeSet::new();
        let mut ranges = BTreeSet::new();
        for (frontend, value, family) in keyed4.chain(keyed6).filter(|(_, v, _)| v.id != 0) {
            if known.contains(&value.id) || self.service_pool.restore(value.id) {
                known.insert(value.id);
                self.unclaimed.insert(frontend, ServiceId { id: value.id, generation: value.generation });
                ranges.insert((value.id, family, value.cluster_start, value.cluster_len));
                ranges.insert((value.id, family, value.local_start, value.local_len));
            }
        }
        for (service, family, start, len) in ranges {
            if let Some(ids) = actual.slots.run(start, len) {
                self.slots.restore(service, family, start, ids);
            }
        }
        self.backends4.generations.clone_from(&actual.generations4);
        self.backends6.generations.clone_from(&actual.generations6);
        for (id, b) in actual.backends4.iter().filter(|(_, b)| b.proto != 0) {
            restore_backend(&mut self.backends4, *id, (b.service, b.addr.into(), u16::from_be_bytes(b.port)));
        }
        for (id, b) in actual.backends6.iter().filter(|(_, b)| b.proto != 0) {
            restore_backend(&mut self.backends6, *id, (b.service, b.addr.into(), u16::from_be_bytes(b.port)));
        }
    }

    /// Begins a plan: frees what has waited long enough. `now` is any clock that never goes back.
    pub(super) fn begin(&mut self, now: Duration) {
        self.service_pool.age(now);
        self.backends4.pool.age(now);
        self.backends6.pool.age(now);
        self.slots.age(now);
        self.recalled = Some(Vec::new());
    }

    /// This plan asks anew for everything.
    pub(super) fn recall_all(&mut self) {
        self.services.values_mut().for_each(|e| e.wanted = false);
        self.backends4.held.values_mut().for_each(|e| e.wanted = false);
        self.backends6.held.values_mut().for_each(|e| e.wanted = false);
        self.slots.recall_all();
        self.roles.recall_all();
        self.recalled = None;
    }

    /// This plan asks anew for whatever a Service has.
    pub(super) fn recall(&mut self, service: &ObjectName) {
        let first = PortId { service: service.clone(), port: String::new(), protocol: Protocol::Tcp };
        let held = self.services.range_mut(first..).take_while(|(port, _)| port.service == *service);
        for (port, entry) in held {
            entry.wanted = false;
            let id = entry.value.id;
            for backends in [&mut self.backends4, &mut self.backends6] {
                backends.held.range_mut(endpoints(id)).for_each(|(_, e)| e.wanted = false);
            }
            self.slots.recall(id);
            if let Some(recalled) = &mut self.recalled {
                recalled.push((port.clone(), id));
            }
        }
    }

    /// The id of a service port; one that the kernel knows by any of `frontends` keeps its id. `None` = all in use.
    pub(super) fn service(&mut self, port: &PortId, frontends: &[FrontendKey]) -> Option<ServiceId> {
        if let Some(entry) = self.services.get_mut(port) {
            entry.wanted = true;
            return Some(entry.value);
        }
        let found = frontends.iter().filter_map(|f| self.unclaimed.get(f).copied());
        let value = match found.into_iter().find(|s| !self.claimed.contains(&s.id)) {
            Some(restored) => {
                self.claimed.insert(restored.id);
                restored
            }
            None => {
                let id = self.service_pool.take()?;
                let generation = match self.service_generations.remove(&id) {
                    Some(last) => last.wrapping_add(1),
                    None => self.seed,
                };
                ServiceId { id, generation }
            }
        };
        self.services.insert(port.clone(), Entry { value, wanted: true });
        Some(value)
    }

    /// The id of an endpoint of a service port; `None` = all in use.
    pub(super) fn backend(&mut self, service: u32, address: IpAddr, port: u16) -> Option<u32> {
        let seed = self.seed;
        let backends = self.backends(Family::of(address));
        if let Some(entry) = backends.held.get_mut(&(service, address, port)) {
            entry.wanted = true;
            return Some(entry.value);
        }
        let id = backends.pool.take()?;
        backends.generations.entry(id).and_modify(|g| *g = g.wrapping_add(1)).or_insert(seed);
        backends.moved.insert(id);
        backends.held.insert((service, address, port), Entry { value: id, wanted: true });
        Some(id)
    }

    /// Ends a plan: whatever was recalled since [`IdTable::begin`] and not asked for is given back.
    pub(super) fn finish(&mut self, now: Duration) {
        let recalled = self.recalled.take();
        let gone: Vec<ServiceId> = match &recalled {
            None => self.services.extract_if(.., |_, e| !e.wanted).map(|(_, e)| e.value).collect(),
            Some(recalled) => {
                let left =
                    recalled.iter().filter(|(port, _)| self.services.get(port).is_some_and(|e| !e.wanted));
                let left: Vec<PortId> = left.map(|(port, _)| port.clone()).collect();
                left.iter().filter_map(|port| self.services.remove(port)).map(|e| e.value).collect()
            }
        };
        let restored = std::mem::take(&mut self.unclaimed);
        let claimed = std::mem::take(&mut self.claimed);
        let unclaimed: BTreeMap<u32, ServiceId> =
            restored.into_values().filter(|s| !claimed.contains(&s.id)).map(|s| (s.id, s)).collect();
        for service in gone.into_iter().chain(unclaimed.into_values()) {
            self.service_generations.insert(service.id, service.generation);
            self.service_pool.give_back(service.id);
        }
        let recalled: Option<Vec<u32>> = recalled.map(|list| list.into_iter().map(|(_, id)| id).collect());
        self.backends4.sweep(recalled.as_deref());
        self.backends6.sweep(recalled.as_deref());
        match recalled {
            None => self.slots.sweep(),
            Some(ids) => ids.into_iter().for_each(|id| self.slots.sweep_of(id)),
        }
        self.roles.finish(now);
    }

    /// The tables of the last plan are in the kernel: what they no longer name begins its quarantine.
    pub fn applied(&mut self, now: Duration) {
        self.service_pool.applied(now);
        self.backends4.pool.applied(now);
        self.backends6.pool.applied(now);
        self.slots.applied(now);
    }

    /// Generations of every backend id that was ever used.
    pub(super) fn generations(&self, family: Family) -> &BTreeMap<u32, u32> {
        match family {
            Family::V4 => &self.backends4.generations,
            Family::V6 => &self.backends6.generations,
        }
    }

    /// Ids whose generation changed since the last call.
    pub(super) fn take_moved(&mut self, family: Family) -> BTreeSet<u32> {
        std::mem::take(&mut self.backends(family).moved)
    }

    fn backends(&mut self, family: Family) -> &mut Backends {
        match family {
            Family::V4 => &mut self.backends4,
            Family::V6 => &mut self.backends6,
        }
    }
}

fn restore_backend(backends: &mut Backends, id: u32, endpoint: (u32, IpAddr, u16)) {
    if !backends.pool.restore(id) {
        return;
    }
    backends.generations.entry(id).or_default();
    match backends.held.entry(endpoint) {
        // Two ids of one endpoint: a crash between two applies may leave them.
        MapEntry::Occupied(_) => backends.leave(id),
        MapEntry::Vacant(free) => {
            free.insert(Entry { value: id, wanted: false });
        }
    }
}

fn key(address: IpAddr, port: [u8; 2], protocol: u8) -> FrontendKey {
    FrontendKey { address, port: u16::from_be_bytes(port), protocol }
}

#[cfg(test)]
#[path = "ids_tests.rs"]
mod tests;
