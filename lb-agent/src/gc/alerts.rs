//! What an operator has to hear before a flow table or a pool of source ports is used up.

use std::collections::BTreeSet;

use lb_common::abi::names;

use super::ports::Tuple;
use crate::datapath::sizes::{MAX_FLOWS, MAX_UDP_PEERS};
use crate::kernel::Usage;

/// Share in use from which it is told, in percent, ...
const RAISE: u64 = 80;
/// ... and below which it is over.
const CLEAR: u64 = 75;

/// What an alert is about, and since its text has numbers in it, what tells it from others.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum About {
    /// A table fills up.
    Table(&'static str),
    /// Entries of it were evicted.
    Evicted(&'static str),
    /// Source ports towards a backend run out.
    Ports(Tuple),
}

/// One thing to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alert {
    /// What about.
    pub about: About,
    /// What is wrong and what to do, in sentences.
    pub text: String,
}

/// All there is to tell. Pure. `before` = what the last alerts were about; `ports` = ports in use by pool, of `pool`.
#[must_use]
pub fn alerts(usage: &[Usage], ports: &[(Tuple, u32)], pool: u32, before: &BTreeSet<About>) -> Vec<Alert> {
    let mut list = Vec::new();
    let percent = |about: About, used: u64, of: u64, text: &dyn Fn(u64) -> String| {
        let share = used.saturating_mul(100).checked_div(of).unwrap_or(0);
        let least = if before.contains(&about) { CLEAR } else { RAISE };
        (share >= least).then(|| Alert { about, text: text(share) })
    };
    for row in usage {
        let (cure, lost) = match row.table {
            names::LB_CT4 | names::LB_CT6 => (MAX_FLOWS, "the flows that were idle longest are lost"),
            names::LB_EM4 | names::LB_EM6 => (
                MAX_FLOWS,
                "the oldest connections that have just begun are lost; established ones are not touched. Is it a flood?",
            ),
            names::LB_SK_UDP => {
                (MAX_UDP_PEERS, "answers to the node's own UDP sockets have the wrong source")
            }
            _ => continue,
        };
        let (table, capacity) = (row.table, row.capacity);
        list.extend(percent(About::Table(table), row.used.unwrap_or(0), capacity, &|share| {
            format!("{table} is {share} % full. When it is full, {lost}. Raise --{cure} (the table has {capacity} entries)")
        }));
        if row.evicted > 0 {
            let text = format!(
                "{table} was full: at least {} entries of live flows were evicted since the agent started. Raise --{cure}",
                row.evicted
            );
            list.push(Alert { about: About::Evicted(table), text });
        }
    }
    for (tuple, used) in ports {
        list.extend(percent(About::Ports(*tuple), u64::from(*used), u64::from(pool), &|share| {
            format!(
                "{tuple}: {share} % of {pool} source ports are in use. When none is left, new connections to it are dropped \
                 (drop_snat_exhausted). Add endpoints to its Service, use externalTrafficPolicy: Local, or narrow \
                 net.ipv4.ip_local_port_range, which widens the pool"
            )
        }));
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple() -> Tuple {
        Tuple { backend: ([10, 0, 0, 5], 80).into(), proto: 17, snat: [192, 0, 2, 1].into() }
    }

    fn table(used: u64, evicted: u64) -> Usage {
        Usage { table: names::LB_CT4, used: Some(used), capacity: 1000, evicted }
    }

    #[test]
    fn told_at_80_percent_and_over_below_75() {
        let told = |used: u64, before: &BTreeSet<About>| -> BTreeSet<About> {
            let found = alerts(&[table(used, 0)], &[(tuple(), used as u32)], 1000, before);
            found.into_iter().map(|alert| alert.about).collect()
        };
        let none = BTreeSet::new();
        assert_eq!(told(799, &none), none);
        let both = told(800, &none);
        assert_eq!(both, [About::Table(names::LB_CT4), About::Ports(tuple())].into());
        assert_eq!(told(750, &both), both);
        assert_eq!(told(749, &both), none);
    }

    #[test]
    fn an_alert_says_what_it_is_about_and_what_to_do() {
        let found = alerts(&[table(900, 7)], &[(tuple(), 900)], 1000, &BTreeSet::new());
        let text: Vec<&str> = found.iter().map(|alert| alert.text.as_str()).collect();
        for (text, parts) in text.iter().zip([
            ["LB_CT4 is 90 % full", "--max-flows"],
            ["at least 7 entries", "--max-flows"],
            ["backend 10.0.0.5:80/UDP from 192.0.2.1: 90 % of 1000", "Add endpoints"],
        ]) {
            assert!(parts.iter().all(|part| text.contains(part)), "{text}");
        }
        assert_eq!(text.len(), 3);
        // what is not counted yet, what only the agent fills, and an empty pool
        let other = Usage { table: names::LB_SVC4, used: Some(1000), capacity: 1000, evicted: 0 };
        let unknown = Usage { used: None, ..table(0, 0) };
        assert_eq!(alerts(&[other, unknown], &[(tuple(), 5)], 0, &BTreeSet::new()), []);
    }
}
