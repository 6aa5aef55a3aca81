//! The chains of legacy iptables.

use std::collections::BTreeMap;
use std::io;

use super::super::legacy::tables;
use super::{Rule, Ruleset, is_invalid, target_ends};
use crate::sys::iptables::{self, Entry, Table};

/// Tables with a chain at hooks of forwarded packets that may end one there.
const TABLES: [&str; 4] = ["raw", "mangle", "filter", "security"];
/// The built-in chains in the order of the kernel's hooks, and whether forwarded packets meet them.
const BASES: [(&str, bool); 5] =
    [("PREROUTING", true), ("INPUT", false), ("FORWARD", true), ("OUTPUT", false), ("POSTROUTING", true)];
/// Verdicts of the standard target.
const DROP: i32 = -1;
const ACCEPT: i32 = -2;
const RETURN: i32 = -5;

/// The tables that are there.
pub(super) fn chains(six: bool) -> io::Result<Vec<Ruleset>> {
    let name = if six { "ip6tables-legacy" } else { "iptables-legacy" };
    tables(six)?
        .iter()
        .filter(|table| TABLES.contains(&table.as_str()))
        .map(|table| Ok(ruleset(format!("{name} {table}"), &iptables::read(table, six)?)))
        .collect()
}

/// A table as chains: each begins at an entry that a hook names, or behind one whose target is `ERROR`, which holds
/// the chain's name.
fn ruleset(name: String, table: &Table) -> Ruleset {
    let mut set = Ruleset { name, ..Ruleset::default() };
    let entries: Vec<Entry<'_>> = table.walk().collect();
    let mut starts = BTreeMap::new();
    for (hook, (base, met)) in BASES.into_iter().enumerate() {
        if let Some(at) = table.start(hook) {
            starts.insert(at, base.to_owned());
            set.bases.extend(met.then(|| base.to_owned()));
        }
    }
    for entry in entries.iter().filter(|entry| entry.target == "ERROR") {
        starts.insert(entry.next, entry.error_name());
    }
    let mut chain = String::new();
    for entry in &entries {
        if let Some(name) = starts.get(&entry.at) {
            chain.clone_from(name);
        }
        if entry.target != "ERROR" && !table.is_policy(entry.at) {
            set.chains.entry(chain.clone()).or_default().push(rule(entry, &starts));
        }
    }
    set
}

fn rule(entry: &Entry<'_>, starts: &BTreeMap<usize, String>) -> Rule {
    let mut rule = Rule::default();
    for (name, revision, data) in entry.matches() {
        rule.invalid |= is_invalid(name, revision, data);
    }
    match entry.verdict() {
        None => rule.ends = target_ends(entry.target),
        Some(ACCEPT | RETURN) => {}
        Some(DROP) => rule.ends = Some("DROP".to_owned()),
        Some(to) => match usize::try_from(to) {
            // a rule without a target goes on to the next
            Ok(to) if to == entry.next => {}
            Ok(to) => rule.leads.extend(starts.get(&to).cloned()),
            Err(_negative) => rule.ends = Some(format!("verdict {to}")),
        },
    }
    rule
}
