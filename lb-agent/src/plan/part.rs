//! What one Service adds to the tables, and the tables that are made of such parts.
//!
//! **Invariant:** taking a part out leaves the tables as if it had never been put in. What several Services may want of one
//! row (marks of addresses, roles) is counted.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use lb_common::abi::{PROTO_EXTERNAL, ROLE_FRONTEND, SvcValue};

use super::encode::{self, BackendRow, Full, RangeKey, TableKey};
use super::expand::FrontendKind;
use super::ids::{FrontendKey, IdTable};
use super::issue::Issue;
use super::ports::no_room;
use crate::desired::{Desired, Keys, Tally};
use crate::model::settings::Limits;
use crate::model::{Family, PortId};

/// What a Service wants in the tables.
#[derive(Debug, Default)]
pub struct Rows {
    /// By service port and family.
    pub ports: Vec<PortRows>,
    /// By id.
    pub backends: Vec<(u32, BackendRow)>,
    /// Roles of its endpoints.
    pub roles: Vec<(IpAddr, u8)>,
    /// Active ClusterIPs.
    pub active: Vec<IpAddr>,
    /// What is wrong with it.
    pub issues: Vec<Issue>,
    /// Something of it found no room, and may find it later without a change of this Service.
    pub lacking: bool,
}

impl Rows {
    /// Something found no room.
    pub fn lacks(&mut self, issue: Issue) {
        self.lacking = true;
        self.issues.push(issue);
    }
}

/// What a service port wants in the tables of a family.
#[derive(Debug)]
pub struct PortRows {
    /// Its name.
    pub id: PortId,
    /// Its number.
    pub service: u32,
    /// Its frontends.
    pub frontends: Vec<(FrontendKey, FrontendKind, SvcValue)>,
    /// Sources that may pass to its filtered frontends.
    pub ranges: Vec<IpNet>,
}

/// What of a Service is in the tables.
#[derive(Debug, Default)]
pub struct Part {
    /// Frontends that it claims, also those that others have.
    pub claimed: Vec<FrontendKey>,
    /// What is wrong with it.
    issues: Vec<Issue>,
    frontends: Vec<FrontendKey>,
    /// Marks of addresses.
    marks: Vec<FrontendKey>,
    ranges: Vec<RangeKey>,
    backends4: Vec<u32>,
    backends6: Vec<u32>,
    roles: Vec<(IpAddr, u8)>,
    tally: Tally,
}

impl Part {
    /// Roles that it gives to addresses.
    pub fn roles(&self) -> impl Iterator<Item = (IpAddr, u8)> + '_ {
        self.roles.iter().copied()
    }
}

/// All issues, each as often as it was found.
#[derive(Debug, Default)]
pub struct IssueSet {
    found: BTreeMap<Issue, u32>,
    changed: bool,
}

impl IssueSet {
    /// One more.
    pub fn put(&mut self, issue: &Issue) {
        match self.found.get_mut(issue) {
            Some(count) => *count += 1,
            None => {
                self.found.insert(issue.clone(), 1);
                self.changed = true;
            }
        }
    }

    /// One less.
    pub fn take(&mut self, issue: &Issue) {
        let Some(count) = self.found.get_mut(issue) else { return };
        *count -= 1;
        if *count == 0 {
            self.found.remove(issue);
            self.changed = true;
        }
    }

    /// Every issue once, the worst first, if that may be another list than at the last call.
    pub fn list_if_changed(&mut self) -> Option<Vec<Issue>> {
        std::mem::take(&mut self.changed).then(|| self.found.keys().rev().cloned().collect())
    }
}

/// Tables, and what is counted beside them.
#[derive(Debug, Default)]
pub struct Board {
    /// The tables. Generations, slots and roles are not this type's.
    pub tables: Desired,
    /// Rows that were touched; `None` = too many to note them.
    pub keys: Option<Keys>,
    /// What is told of the frontends.
    pub tally: Tally,
    /// What is wrong.
    pub issues: IssueSet,
    /// How many Services want a mark.
    marks: BTreeMap<FrontendKey, u32>,
}

impl Board {
    /// Takes out all parts at once.
    pub fn clear(&mut self) {
        let tables = &mut self.tables;
        (tables.services4, tables.services6) = Default::default();
        (tables.backends4, tables.backends6) = Default::default();
        (tables.ranges4, tables.ranges6) = Default::default();
        (self.tally, self.marks, self.keys) = Default::default();
        self.issues = IssueSet { changed: true, ..IssueSet::default() };
    }

    /// Puts in what a Service wants but for the marks of its active ClusterIPs, in its own order; what does not fit is
    /// left out with an issue, and the answer says so. Roles are given.
    pub fn put(&mut self, rows: Rows, limits: &Limits, ids: &mut IdTable) -> (Part, Result<(), Full>) {
        let mut part = Part { issues: rows.issues, roles: rows.roles, ..Part::default() };
        let mut all = Ok(());
        let mut values: [Vec<SvcValue>; 2] = Default::default();
        for port in rows.ports {
            for (key, kind, value) in port.frontends {
                if encode::put_service(&mut self.tables, &key, value, limits).is_err() {
                    all = Err(Full);
                    let used = format!("all {} frontends are in use", limits.frontends);
                    part.issues.push(no_room(&port.id, &used, "delete unused Services"));
                    continue;
                }
                self.touched(&key);
                part.frontends.push(key);
                let [four, six] = &mut values;
                if Family::of(key.address) == Family::V4 { four } else { six }.push(value);
                if key.address.is_unspecified() {
                    continue;
                }
                part.roles.push((key.address, ROLE_FRONTEND));
                if matches!(kind, FrontendKind::External { .. }) {
                    let mark = FrontendKey { address: key.address, port: 0, protocol: PROTO_EXTERNAL };
                    // without room for it, fragments that come before their first pass
                    let marked = self.mark(&mut part, mark, encode::external_value(), limits);
                    all = all.and(marked);
                }
            }
            let put = |net| encode::put_range(&mut self.tables, port.service, net, limits);
            let ranges: Vec<_> = port.ranges.iter().map(put).collect();
            if ranges.iter().any(Result::is_err) {
                all = Err(Full);
                let used = format!("all {} source ranges are in use", limits.ranges);
                let cure = "use fewer loadBalancerSourceRanges; sources without room are dropped";
                part.issues.push(no_room(&port.id, &used, cure));
            }
            part.ranges.extend(ranges.into_iter().flatten());
        }
        for (id, row) in rows.backends {
            match row {
                BackendRow::V4(row) => {
                    self.tables.backends4.insert(id, row);
                    part.backends4.push(id);
                }
                BackendRow::V6(row) => {
                    self.tables.backends6.insert(id, row);
                    part.backends6.push(id);
                }
            }
        }
        part.roles.sort_unstable();
        part.roles.dedup();
        part.roles.iter().for_each(|(address, role)| ids.roles.give(*address, *role));
        let [four, six] = &values;
        part.tally = Tally::of(four.iter(), six.iter());
        self.tally.add(&part.tally);
        part.issues.iter().for_each(|issue| self.issues.put(issue));
        self.note(&part);
        (part, all)
    }

    /// Puts in the mark of an active ClusterIP.
    pub fn activate(
        &mut self,
        part: &mut Part,
        address: IpAddr,
        limits: &Limits,
        ids: &mut IdTable,
    ) -> Result<(), Full> {
        let mark = FrontendKey { address, port: 0, protocol: 0 };
        self.mark(part, mark, encode::active_value(), limits)?;
        if !part.roles.contains(&(address, ROLE_FRONTEND)) {
            part.roles.push((address, ROLE_FRONTEND));
            ids.roles.give(address, ROLE_FRONTEND);
        }
        Ok(())
    }

    fn mark(
        &mut self,
        part: &mut Part,
        mark: FrontendKey,
        value: SvcValue,
        limits: &Limits,
    ) -> Result<(), Full> {
        if !self.marks.contains_key(&mark) {
            encode::put_service(&mut self.tables, &mark, value, limits)?;
        }
        *self.marks.entry(mark).or_default() += 1;
        part.marks.push(mark);
        self.touched(&mark);
        Ok(())
    }

    /// Takes a part out again.
    pub fn take(&mut self, part: &Part, ids: &mut IdTable) {
        part.issues.iter().for_each(|issue| self.issues.take(issue));
        for key in &part.frontends {
            encode::remove_service(&mut self.tables, key);
            self.touched(key);
        }
        for mark in &part.marks {
            let Some(count) = self.marks.get_mut(mark) else { continue };
            *count -= 1;
            if *count == 0 {
                self.marks.remove(mark);
                encode::remove_service(&mut self.tables, mark);
            }
            self.touched(mark);
        }
        for range in &part.ranges {
            match range {
                RangeKey::V4(key) => _ = self.tables.ranges4.remove(key),
                RangeKey::V6(key) => _ = self.tables.ranges6.remove(key),
            }
        }
        part.backends4.iter().for_each(|id| _ = self.tables.backends4.remove(id));
        part.backends6.iter().for_each(|id| _ = self.tables.backends6.remove(id));
        part.roles.iter().for_each(|(address, role)| ids.roles.take(*address, *role));
        self.tally.take(&part.tally);
        self.note(part);
    }

    fn touched(&mut self, key: &FrontendKey) {
        let Some(keys) = &mut self.keys else { return };
        match encode::table_key(key) {
            TableKey::V4(key) => _ = keys.services4.insert(key),
            TableKey::V6(key) => _ = keys.services6.insert(key),
        }
    }

    /// Notes the rows of a part but for the frontends.
    fn note(&mut self, part: &Part) {
        let Some(keys) = &mut self.keys else { return };
        keys.backends4.extend(&part.backends4);
        keys.backends6.extend(&part.backends6);
        for range in &part.ranges {
            match range {
                RangeKey::V4(key) => _ = keys.ranges4.insert(*key),
                RangeKey::V6(key) => _ = keys.ranges6.insert(*key),
            }
        }
    }
}
