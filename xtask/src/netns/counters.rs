//! The kernel's own counters of what went wrong, read at the end of a cluster.

use anyhow::{Result, ensure};

use super::{Case, Context};
use crate::lab::netns::{inside, run_in};

pub(super) const CASES: &[Case] =
    &[("no_martians_and_no_wrong_checksums", snmp), ("nothing_is_invalid_for_conntrack", invalid)];

/// Counters that must be 0 in every namespace, as (file below /proc/net, section, name).
const ZERO: [(&str, &str, &str); 4] = [
    ("snmp", "Tcp", "InCsumErrors"),
    ("snmp", "Udp", "InCsumErrors"),
    ("netstat", "TcpExt", "IPReversePathFilter"),
    ("netstat", "IpExt", "InCsumErrors"),
];

fn snmp(context: &mut Context) -> Result<()> {
    let mut bad = Vec::new();
    for namespace in context.lab.namespaces() {
        let read = |file: &str| -> Result<String> {
            inside(&namespace, || Ok(std::fs::read_to_string(format!("/proc/thread-self/net/{file}"))?))
        };
        for (file, section, name) in ZERO {
            // an older kernel has no such counter: nothing to judge
            if let Some(value) = value(&read(file)?, section, name).filter(|value| *value != 0) {
                bad.push(format!("{namespace}: {section} {name} = {value}"));
            }
        }
        let udp6 = read("snmp6")?;
        for line in udp6.lines().filter(|line| line.starts_with("Udp6InCsumErrors")) {
            if line.split_whitespace().nth(1) != Some("0") {
                bad.push(format!("{namespace}: {line}"));
            }
        }
    }
    for ((name, now), (_, before)) in martians()?.into_iter().zip(&context.martians) {
        if now != *before {
            bad.push(format!("{name} rose by {}", now - before));
        }
    }
    ensure!(bad.is_empty(), "{}", bad.join("; "));
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
pub(super) fn martians() -> Result<Vec<(String, u64)>> {
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

fn invalid(context: &mut Context) -> Result<()> {
    for node in &context.lab.nodes {
        let rules = run_in(&node.namespace, &["nft", "list", "ruleset"], "")?;
        for line in rules.lines().filter(|line| line.contains("ct state invalid")) {
            ensure!(line.contains("packets 0 "), "{}: {}", node.name, line.trim());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{sums, value};

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
}
