//! Makes the kernel's tables what `plan` wants, in an order in which no packet meets half a change.
//!
//! **Invariants:** a frontend never names a slot, a slot in use never names a backend, that is not there; a
//! generation has moved before its backend row means something else; the role filter never lacks a bit that a table
//! needs. Each holds after every single system call, also when some fail: inside a stage every key is tried, and
//! after a stage with an error nothing else is touched. Applying again goes on where it stopped.
//!
//! Read [`Applier::apply`] first.

pub mod bpf;
pub mod diff;
#[cfg(test)]
mod fake;
pub mod mapset;
#[cfg(test)]
mod order_test;
pub(crate) mod raw;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lb_common::abi::{ROLE_SIZE, names};

use crate::desired::{Changes, Desired, Roles, Slots};
use crate::plan::roles::LINGER;
use diff::Delta;
use mapset::{MapSet, Table, for_each_table};

/// A key that could not be written.
#[derive(Debug, thiserror::Error)]
#[error("{table}: {key}: {source}{}", hint(table, source))]
pub struct ApplyError {
    /// The table's name.
    pub table: &'static str,
    /// The key, for people.
    pub key: String,
    /// What the kernel said.
    #[source]
    pub source: io::Error,
}

/// The cure for a full table.
fn hint(table: &str, error: &io::Error) -> String {
    if !matches!(error.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC)) {
        return String::new();
    }
    match crate::datapath::sizes::setting(table) {
        Some(setting) => format!(" (the table is full: raise --{setting})"),
        None => " (the table is full; its size is fixed)".to_owned(),
    }
}

/// What one [`Applier::apply`] did.
#[derive(Debug, Default)]
pub struct ApplyReport {
    /// Entries written or deleted, by table; tables without a change are left out.
    pub changed: BTreeMap<&'static str, usize>,
    /// Everything that failed; empty = the kernel holds what was asked for.
    pub errors: Vec<ApplyError>,
    /// The whole of it.
    pub duration: Duration,
}

impl ApplyReport {
    /// The kernel holds what was asked for.
    #[must_use]
    pub fn complete(&self) -> bool {
        self.errors.is_empty()
    }

    fn changed(&mut self, table: &'static str, count: usize) {
        if count > 0 {
            *self.changed.entry(table).or_default() += count;
        }
    }

    /// One value that is written as a whole.
    fn whole(&mut self, table: &'static str, result: io::Result<()>) -> bool {
        match result {
            Ok(()) => self.changed(table, 1),
            Err(source) => {
                self.errors.push(ApplyError { table, key: "0".to_owned(), source });
                return false;
            }
        }
        true
    }
}

/// The tables with what they hold; the only writer.
#[derive(Debug)]
pub struct Applier<M> {
    maps: M,
    /// `roles` is not kept here: the filter holds hashes of addresses.
    actual: Desired,
    roles: Vec<u8>,
    /// What `LB_SLOTS` holds, by slot; 0 and what is beyond the end: nothing. `actual` has of it what the last complete
    /// apply wanted.
    slots: Vec<u32>,
    /// The role filter as the last agent left it, until that time: addresses whose Service or endpoint went before
    /// the restart may have live flows, and only that filter still knows them.
    inherited: (Vec<u8>, Instant),
    /// The last apply was complete, so that what has not changed since is there.
    up_to_date: bool,
    /// This apply looks at the whole role filter.
    every_role: bool,
}

macro_rules! read_back {
    ($($field:ident: $key:ty => $value:ty, $name:ident;)*) => {
        /// Reads all tables back.
        fn read_back(maps: &mut impl MapSet) -> Result<(Desired, Vec<u8>), ApplyError> {
            let mut actual = Desired::default();
            $(
                let entries = maps.$field().read().map_err(|source| unreadable(names::$name, source))?;
                actual.$field = entries.into_iter().collect();
            )*
            let entries = maps.slots().read().map_err(|source| unreadable(names::LB_SLOTS, source))?;
            actual.slots = entries.into_iter().collect();
            actual.config = maps.read_config().map_err(|source| unreadable(names::LB_CONFIG, source))?;
            let roles = maps.read_roles().map_err(|source| unreadable(names::LB_ROLES, source))?;
            Ok((actual, roles))
        }
    };
}
for_each_table!(read_back);

fn unreadable(table: &'static str, source: io::Error) -> ApplyError {
    ApplyError { table, key: "reading".to_owned(), source }
}

/// Writes what differs; true if every key went in. Records each success after its system call.
fn write<K, V>(
    report: &mut ApplyReport,
    name: &'static str,
    table: &mut dyn Table<K, V>,
    actual: &mut BTreeMap<K, V>,
    desired: &BTreeMap<K, V>,
    rows: Option<&BTreeSet<K>>,
) -> bool
where
    K: Ord + Copy + std::fmt::Debug,
    V: PartialEq + Copy,
{
    let entries = Delta::between(actual, desired, rows).write;
    if entries.is_empty() {
        return true;
    }
    let failed: BTreeMap<usize, io::Error> = table.write(&entries).into_iter().collect();
    report.changed(name, entries.len() - failed.len());
    for (i, (key, value)) in entries.iter().enumerate() {
        if !failed.contains_key(&i) {
            actual.insert(*key, *value);
        }
    }
    settle(report, name, entries.iter().map(|(key, _)| key), failed)
}

/// Deletes what is not wanted; true if every key went.
fn sweep<K, V>(
    report: &mut ApplyReport,
    name: &'static str,
    table: &mut dyn Table<K, V>,
    actual: &mut BTreeMap<K, V>,
    desired: &BTreeMap<K, V>,
    rows: Option<&BTreeSet<K>>,
) -> bool
where
    K: Ord + Copy + std::fmt::Debug,
    V: PartialEq + Copy,
{
    let keys = Delta::between(actual, desired, rows).remove;
    if keys.is_empty() {
        return true;
    }
    let failed: BTreeMap<usize, io::Error> = table.remove(&keys).into_iter().collect();
    report.changed(name, keys.len() - failed.len());
    for (i, key) in keys.iter().enumerate() {
        if !failed.contains_key(&i) {
            actual.remove(key);
        }
    }
    settle(report, name, keys.iter(), failed)
}

/// Puts failures into the report.
fn settle<'a, K: std::fmt::Debug + 'a>(
    report: &mut ApplyReport,
    table: &'static str,
    keys: impl Iterator<Item = &'a K>,
    mut failed: BTreeMap<usize, io::Error>,
) -> bool {
    let complete = failed.is_empty();
    for (i, key) in keys.enumerate() {
        if let Some(source) = failed.remove(&i) {
            report.errors.push(ApplyError { table, key: format!("{key:?}"), source });
        }
    }
    complete
}

impl<M: MapSet> Applier<M> {
    /// Takes the tables over and reads them: what is not wanted later is swept.
    ///
    /// # Errors
    /// A table could not be read; nothing was changed.
    pub fn new(mut maps: M) -> Result<Self, ApplyError> {
        let (actual, roles) = read_back(&mut maps)?;
        let inherited = (roles.clone(), Instant::now() + LINGER);
        let slots = by_slot(&actual.slots);
        Ok(Applier { maps, actual, roles, slots, inherited, up_to_date: false, every_role: true })
    }

    /// What the tables hold, as far as this agent read and wrote them. Its `roles` are empty: the filter can't be
    /// read backwards.
    #[must_use]
    pub fn actual(&self) -> &Desired {
        &self.actual
    }

    /// Reads all tables again, against writers we don't know of.
    ///
    /// # Errors
    /// A table could not be read; the old knowledge stays.
    pub fn reload(&mut self) -> Result<(), ApplyError> {
        (self.actual, self.roles) = read_back(&mut self.maps)?;
        self.slots = by_slot(&self.actual.slots);
        self.up_to_date = false;
        Ok(())
    }

    /// Makes the tables equal to `desired`, as far as the kernel allows. `changes` names the rows that may differ from what
    /// was desired by the call before: no others are looked at, unless that call failed.
    ///
    /// Idempotent; costs system calls only for what differs. Stages: frontends that go; generations, next hops,
    /// backends; slots; what else decides; role bits that come; frontends that come or change; role bits, backends
    /// and all else that go. Generations and slots are never deleted: the one must outlive its row, the other is
    /// harmless once no frontend names it.
    pub fn apply(&mut self, desired: &Desired, changes: &Changes) -> ApplyReport {
        let start = Instant::now();
        let mut report = ApplyReport::default();
        let changes = if self.up_to_date { changes } else { &Changes::All };
        let (inherited, until) = &mut self.inherited;
        let over = !inherited.is_empty() && Instant::now() >= *until;
        if over {
            *inherited = Vec::new();
        }
        self.every_role = over || changes.keys().is_none();
        let stages: [Stage<Self>; 7] = [
            Self::remove_frontends,
            Self::write_backends,
            Self::write_slots,
            Self::write_context,
            Self::add_roles,
            Self::write_frontends,
            Self::remove_rest,
        ];
        self.up_to_date = stages.iter().all(|stage| stage(self, desired, changes, &mut report));
        report.duration = start.elapsed();
        report
    }
}

/// One stage of an apply; false = something of it failed.
type Stage<T> = fn(&mut T, &Desired, &Changes, &mut ApplyReport) -> bool;

/// Runs `$step` on tables in the order given; true if all succeeded. All are tried.
macro_rules! each {
    ($self:ident, $desired:ident, $changes:ident, $report:ident, $step:ident, $($field:ident $name:ident),* $(,)?) => {{
        let mut complete = true;
        $(complete &= $step(
            $report, names::$name, $self.maps.$field(), &mut $self.actual.$field, &$desired.$field,
            $changes.keys().map(|keys| &keys.$field),
        );)*
        complete
    }};
}

impl<M: MapSet> Applier<M> {
    fn remove_frontends(&mut self, desired: &Desired, changes: &Changes, report: &mut ApplyReport) -> bool {
        each!(self, desired, changes, report, sweep, services4 LB_SVC4, services6 LB_SVC6)
    }

    /// Three steps that build on each other, each a stage of its own.
    fn write_backends(&mut self, desired: &Desired, changes: &Changes, report: &mut ApplyReport) -> bool {
        each!(self, desired, changes, report, write, generations4 LB_GEN4, generations6 LB_GEN6)
            && each!(self, desired, changes, report, write, nexthops LB_NH, peers LB_PEERS)
            && each!(self, desired, changes, report, write, backends4 LB_BE4, backends6 LB_BE6)
    }

    fn write_slots(&mut self, desired: &Desired, changes: &Changes, report: &mut ApplyReport) -> bool {
        // A range that the last complete apply knew is in the kernel still: nothing has been written since.
        let changed = |(start, ids): &(u32, &Arc<[u32]>)| !self.actual.slots.shares(*start, ids);
        let ranges: Vec<(u32, &Arc<[u32]>)> = match changes.keys() {
            None => desired.slots.ranges().filter(changed).collect(),
            Some(keys) => {
                let named = keys.slots.iter().filter_map(|start| Some((*start, desired.slots.at(*start)?)));
                named.filter(changed).collect()
            }
        };
        let entries: Vec<(u32, u32)> = ranges
            .into_iter()
            .flat_map(|(start, ids)| (start..).zip(ids.iter().copied()))
            .filter(|(slot, id)| self.slots.get(*slot as usize).copied().unwrap_or(0) != *id)
            .collect();
        let mut failed = BTreeMap::new();
        if !entries.is_empty() {
            failed = self.maps.slots().write(&entries).into_iter().collect();
        }
        report.changed(names::LB_SLOTS, entries.len() - failed.len());
        for (i, entry) in entries.iter().enumerate() {
            if !failed.contains_key(&i) {
                set_slot(&mut self.slots, *entry);
            }
        }
        let complete = settle(report, names::LB_SLOTS, entries.iter().map(|(slot, _)| slot), failed);
        match changes.keys() {
            _ if !complete => {
                let held = (0..).zip(self.slots.iter().copied()).filter(|(_, id)| *id != 0);
                self.actual.slots = held.collect();
            }
            None => self.actual.slots = desired.slots.clone(),
            Some(keys) => {
                for start in &keys.slots {
                    self.actual.slots.remove(*start);
                }
                for start in &keys.slots {
                    if let Some(ids) = desired.slots.at(*start) {
                        self.actual.slots.put(*start, Arc::clone(ids));
                    }
                }
            }
        }
        complete
    }

    fn write_context(&mut self, desired: &Desired, changes: &Changes, report: &mut ApplyReport) -> bool {
        let mut complete = each!(
            self, desired, changes, report, write, interfaces LB_IF, peers4 LB_PEER4, peers6 LB_PEER6, node4 LB_NODE4, node6 LB_NODE6, ranges4 LB_RANGE4,
            ranges6 LB_RANGE6, cidrs4 LB_CIDR4, cidrs6 LB_CIDR6, namespaces LB_NETNS,
        );
        if self.actual.config != desired.config {
            let written = self.maps.write_config(&desired.config);
            if report.whole(names::LB_CONFIG, written) {
                self.actual.config = desired.config;
            } else {
                complete = false;
            }
        }
        complete
    }

    fn add_roles(&mut self, desired: &Desired, changes: &Changes, report: &mut ApplyReport) -> bool {
        let slots = self.role_slots(changes);
        self.write_roles(&slots, |was, inherited, slot| was | desired.roles.byte(slot) | inherited, report)
    }

    /// The bytes of the role filter that may be other ones than before.
    fn role_slots(&self, changes: &Changes) -> Vec<usize> {
        match changes.keys() {
            Some(keys) if !self.every_role => {
                keys.roles.iter().map(|address| Roles::slot(*address)).collect()
            }
            _ => (0..ROLE_SIZE).collect(),
        }
    }

    fn write_frontends(&mut self, desired: &Desired, changes: &Changes, report: &mut ApplyReport) -> bool {
        each!(self, desired, changes, report, write, services4 LB_SVC4, services6 LB_SVC6)
    }

    fn remove_rest(&mut self, desired: &Desired, changes: &Changes, report: &mut ApplyReport) -> bool {
        let slots = self.role_slots(changes);
        let roles =
            self.write_roles(&slots, |_, inherited, slot| desired.roles.byte(slot) | inherited, report);
        let others = each!(
            self, desired, changes, report, sweep, backends4 LB_BE4, backends6 LB_BE6, ranges4 LB_RANGE4, ranges6 LB_RANGE6,
            cidrs4 LB_CIDR4, cidrs6 LB_CIDR6, node4 LB_NODE4, node6 LB_NODE6, interfaces LB_IF, peers4 LB_PEER4,
            peers6 LB_PEER6, namespaces LB_NETNS,
        );
        roles && others && each!(self, desired, changes, report, sweep, nexthops LB_NH, peers LB_PEERS)
    }

    /// Gives bytes of the filter new values: `value` makes one of what it is, what was inherited, and its number. A bit too
    /// many costs a look-up, one that is missing loses a flow.
    fn write_roles(
        &mut self,
        slots: &[usize],
        value: impl Fn(u8, u8, usize) -> u8,
        report: &mut ApplyReport,
    ) -> bool {
        let mut before = Vec::new();
        for slot in slots.iter().copied() {
            let inherited = self.inherited.0.get(slot).copied().unwrap_or(0);
            let Some(byte) = self.roles.get_mut(slot) else { continue };
            let new = value(*byte, inherited, slot);
            if new != *byte {
                before.push((slot, *byte));
                *byte = new;
            }
        }
        if before.is_empty() {
            return true;
        }
        let written = self.maps.write_roles(&self.roles);
        let complete = report.whole(names::LB_ROLES, written);
        if !complete {
            // backwards: a byte may be there twice
            for (slot, was) in before.into_iter().rev() {
                self.roles[slot] = was;
            }
        }
        complete
    }
}

/// What slots hold, by slot.
fn by_slot(slots: &Slots) -> Vec<u32> {
    let mut all = Vec::new();
    slots.iter().for_each(|entry| set_slot(&mut all, entry));
    all
}

fn set_slot(slots: &mut Vec<u32>, (slot, id): (u32, u32)) {
    let slot = slot as usize;
    if slot >= slots.len() {
        slots.resize(slot + 1, 0);
    }
    slots[slot] = id;
}
