//! The kernel's own counters of what went wrong, read behind every case and judged at the end of a cluster.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use serde_json::Value;

use super::{Case, Context};
use crate::lab::Lab;
use crate::lab::netns::{inside, run_in};

pub(super) const CASES: &[Case] = &[("no_martian_no_wrong_checksum_nothing_invalid", nothing_rose)];

/// Counters that must be 0 in every namespace, as (file below /proc/net, section, name).
const ZERO: [(&str, &str, &str); 4] = [
    ("snmp", "Tcp", "InCsumErrors"),
    ("snmp", "Udp", "InCsumErrors"),
    ("netstat", "TcpExt", "IPReversePathFilter"),
    ("netstat", "IpExt", "InCsumErrors"),
];

/// Counters that tell why something failed; they may be anything.
const TELLING: [(&str, &str, &str); 3] = [
    ("snmp", "Tcp", "RetransSegs"),
    ("netstat", "TcpExt", "ListenDrops"),
    ("netstat", "TcpExt", "PAWSEstab"),
];

/// Counters by name.
pub(super) type Counts = BTreeMap<String, u64>;

/// What was counted so far by the kernel in the cluster's namespaces, and by the agents.
///
/// # Errors
/// When a namespace is gone.
pub(super) fn read(lab: &mut Lab) -> Result<Counts> {
    let mut counts = Counts::new();
    for namespace in lab.namespaces() {
        let read = |file: &str| -> Result<String> {
            inside(&namespace, || Ok(std::fs::read_to_string(format!("/proc/thread-self/net/{file}"))?))
        };
        let files = [("snmp", read("snmp")?), ("netstat", read("netstat")?)];
        for (file, section, name) in ZERO.iter().chain(&TELLING) {
            let text = files.iter().find(|(known, _)| known == file).map_or("", |(_, text)| text);
            // an older kernel has no such counter: nothing to judge
            if let Some(value) = value(text, section, name) {
                counts.insert(format!("{namespace}: {section} {name}"), value);
            }
        }
        for line in read("snmp6")?.lines().filter(|line| line.starts_with("Udp6InCsumErrors")) {
            let value = line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
            counts.insert(format!("{namespace}: Udp6InCsumErrors"), value);
        }
    }
    for (name, value) in martians()? {
        counts.insert(format!("the whole machine: {name}"), value);
    }
    for node in &lab.nodes {
        let rules = run_in(&node.namespace, &["nft", "list", "ruleset"], "")?;
        for (chain, packets) in invalid(&rules) {
            *counts.entry(format!("{}: INVALID in {chain}", node.name)).or_default() += packets;
        }
    }
    for node in lab.nodes.iter_mut().filter(|node| node.has_agent()) {
        let answer = node.http("127.0.0.1:10249", "/status")?;
        // an agent that does not answer is no reason to tell less of the rest
        let status: Value = serde_json::from_str(&answer.text).unwrap_or_default();
        for (name, value) in status["counters"].as_object().into_iter().flatten() {
            counts.insert(format!("lb of {}: {name}", node.name), value.as_u64().unwrap_or(0));
        }
    }
    Ok(counts)
}

/// Cases that take routes away under traffic: what comes in meanwhile has no way back, and is a martian for the kernel.
const WITHOUT_ROUTES: [&str; 2] =
    ["pods_of_the_other_node_behind_an_l3_device", "b154_an_uplink_becomes_a_bridge_port_under_traffic"];

/// A line of [`rise`] that must not be there behind that case.
pub(super) fn is_bad(risen: &str, case: &str) -> bool {
    let tells = TELLING.iter().any(|(_, _, name)| risen.contains(&format!(" {name} +")));
    let martian = risen.contains("IPReversePathFilter") || risen.contains("in_martian_src");
    !risen.starts_with("lb of ") && !tells && !(martian && WITHOUT_ROUTES.contains(&case))
}

/// What rose, as `name +difference`.
pub(super) fn rise(before: &Counts, now: &Counts) -> Vec<String> {
    let old = |name: &String| before.get(name).copied().unwrap_or(0);
    let risen = now.iter().filter(|(name, value)| **value > old(name));
    risen.map(|(name, value)| format!("{name} +{}", value - old(name))).collect()
}

/// Nothing that must not rise has risen since the cluster began; [`Context::noticed`] tells in which case it did.
fn nothing_rose(context: &mut Context) -> Result<()> {
    ensure!(context.noticed.is_empty(), "{}", context.noticed.join("; "));
    Ok(())
}

/// Value of a counter in the two-line sections of /proc/net/snmp and /proc/net/netstat.
fn value(text: &str, section: &str, name: &str) -> Option<u64> {
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    let pair = lines.windows(2).find(|pair| pair[0].first() == Some(&format!("{section}:").as_str()))?;
    let column = pair[0].iter().position(|word| *word == name)?;
    pair[1].get(column)?.parse().ok()
}

/// Martian packets so far. The kernel counts them for the whole machine, so only the difference says something.
fn martians() -> Result<Vec<(String, u64)>> {
    Ok(sums(&std::fs::read_to_string("/proc/net/stat/rt_cache")?))
}

/// Sums over all CPUs of the hexadecimal columns of /proc/net/stat/rt_cache that count martians.
fn sums(text: &str) -> Vec<(String, u64)> {
    let mut lines = text.lines();
    let names: Vec<&str> = lines.next().unwrap_or_default().split_whitespace().collect();
    let rows: Vec<Vec<&str>> = lines.map(|line| line.split_whitespace().collect()).collect();
    let sum =
        |column: usize| rows.iter().filter_map(|row| u64::from_str_radix(row.get(column)?, 16).ok()).sum();
    let wanted = names.iter().enumerate().filter(|(_, name)| name.starts_with("in_martian"));
    wanted.map(|(column, name)| ((*name).to_owned(), sum(column))).collect()
}

/// Packets of every rule for INVALID ones in `nft list ruleset`, by the chain it stands in.
fn invalid(ruleset: &str) -> Vec<(String, u64)> {
    let (mut chain, mut found) = (String::new(), Vec::new());
    for line in ruleset.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("chain ") {
            chain = name.trim_end_matches(" {").to_owned();
        }
        if line.contains("ct state invalid") {
            let mut words = line.split_whitespace().skip_while(|word| *word != "packets").skip(1);
            found.push((chain.clone(), words.next().and_then(|word| word.parse().ok()).unwrap_or(0)));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::{Counts, invalid, is_bad, rise, sums, value};

    #[test]
    fn a_counter_is_found_by_section_and_name() {
        let text = "Tcp: InSegs InCsumErrors\nTcp: 7 3\nUdp: InDatagrams InCsumErrors\nUdp: 1 0\n";
        assert_eq!(value(text, "Tcp", "InCsumErrors"), Some(3));
        assert_eq!(value(text, "Udp", "InCsumErrors"), Some(0));
        assert_eq!(value(text, "Udp", "NoSuch"), None);
    }

    #[test]
    fn martians_of_all_cpus_are_added_in_hexadecimal() {
        let text = "entries  in_martian_dst in_martian_src\n00000001  00000000 0000000a\n00000001  00000001 00000001\n";
        assert_eq!(sums(text), [("in_martian_dst".to_owned(), 1), ("in_martian_src".to_owned(), 11)]);
    }

    #[test]
    fn invalid_packets_are_told_by_their_chain() {
        let rules = "table inet t {\n chain forward {\n  ct state invalid counter packets 3 bytes 9 drop\n }\n \
                     chain input {\n  ct state invalid counter packets 0 bytes 0\n }\n}";
        assert_eq!(invalid(rules), [("forward".to_owned(), 3), ("input".to_owned(), 0)]);
    }

    #[test]
    fn only_what_rose_is_told() {
        let counts = |pairs: &[(&str, u64)]| -> Counts {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()
        };
        let (before, now) = (counts(&[("a", 1), ("b", 2)]), counts(&[("a", 1), ("b", 5), ("c", 7)]));
        assert_eq!(rise(&before, &now), ["b +3", "c +7"]);
    }

    #[test]
    fn what_must_not_rise_is_told_from_what_explains() {
        assert!(is_bad("n1: TcpExt IPReversePathFilter +1", "i5_direct_traffic_is_unchanged"));
        assert!(!is_bad("n1: TcpExt IPReversePathFilter +1", super::WITHOUT_ROUTES[0]));
        assert!(is_bad("n1: Tcp InCsumErrors +1", super::WITHOUT_ROUTES[0]));
        assert!(!is_bad("n1: Tcp RetransSegs +3", "i5_direct_traffic_is_unchanged"));
        assert!(!is_bad("lb of node1: drop_fragment +3", "i5_direct_traffic_is_unchanged"));
    }
}
