//! Whether netfilter enforces policy on packets that are forwarded, which fast forwarding would bypass.
//!
//! Looked at are the filter chains of the hooks that a forwarded packet meets (prerouting, forward, postrouting), and all
//! chains that they lead to. Policy is whatever may end a packet there: a drop, a rejection, a queue to a process, a
//! verdict out of a map, a target nobody knows. It is not: accepts, marks, counters; what kube-proxy makes; the drop of
//! what conntrack calls INVALID; a chain that drops what no rule accepts, as long as its rules do nothing but accept
//! (that is how nodes are closed to what is no pod's). What can't be read counts as policy.

mod legacy;
mod nft;

use std::collections::{BTreeMap, BTreeSet};

use super::rules::is_kube_proxys;

/// Where netfilter enforces policy on forwarded packets in the network namespace of the calling thread, one line for each
/// base chain; empty = nowhere. Cost: all rules of the tables that have such chains.
#[must_use]
pub fn look() -> Vec<String> {
    let mut found = match nft::chains() {
        Ok(sets) => sets.iter().flat_map(Ruleset::policy).collect(),
        Err(error) => vec![format!("nftables cannot be read: {error}")],
    };
    for (six, name) in [(false, "iptables-legacy"), (true, "ip6tables-legacy")] {
        match legacy::chains(six) {
            Ok(sets) => found.extend(sets.iter().flat_map(Ruleset::policy)),
            Err(error) => found.push(format!("{name} cannot be read: {error}")),
        }
    }
    found
}

/// One table.
#[derive(Debug, Default)]
struct Ruleset {
    /// Its name for people, as `ip filter`.
    name: String,
    /// Chains that hooks call.
    bases: Vec<String>,
    /// Rules by chain.
    chains: BTreeMap<String, Vec<Rule>>,
}

/// A rule, as far as it matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Rule {
    /// How it may end a packet otherwise than by accepting it.
    ends: Option<String>,
    /// Chains that it leads to.
    leads: Vec<String>,
    /// It is about packets that conntrack calls INVALID, and no others.
    invalid: bool,
}

impl Ruleset {
    /// The first policy behind each base chain, in words.
    fn policy(&self) -> Vec<String> {
        self.bases.iter().filter_map(|base| self.behind(base)).collect()
    }

    fn behind(&self, base: &str) -> Option<String> {
        let (mut seen, mut next) = (BTreeSet::new(), vec![base]);
        while let Some(chain) = next.pop() {
            if is_kube_proxys(chain) || !seen.insert(chain) {
                continue;
            }
            for (number, rule) in self.chains.get(chain).into_iter().flatten().enumerate() {
                if let Some(how) = rule.ends.as_ref().filter(|_| !rule.invalid) {
                    let from = if chain == base { String::new() } else { format!(", behind {base}") };
                    return Some(format!("{} {chain}, rule {} ({how}){from}", self.name, number + 1));
                }
                next.extend(rule.leads.iter().map(String::as_str));
            }
        }
        None
    }
}

/// How a target of iptables ends packets; `None` = it does not, or accepts them.
fn target_ends(name: &str) -> Option<String> {
    const HARMLESS: [&str; 26] = [
        "",
        "ACCEPT",
        "RETURN",
        "LOG",
        "NFLOG",
        "ULOG",
        "MARK",
        "CONNMARK",
        "SECMARK",
        "CONNSECMARK",
        "CT",
        "NOTRACK",
        "TRACE",
        "SET",
        "TCPMSS",
        "TCPOPTSTRIP",
        "TOS",
        "DSCP",
        "ECN",
        "TTL",
        "HL",
        "CLASSIFY",
        "CHECKSUM",
        "IDLETIMER",
        "LED",
        "RATEEST",
    ];
    (!HARMLESS.contains(&name)).then(|| name.to_owned())
}

/// A match of iptables that picks what conntrack calls INVALID, and nothing else.
fn is_invalid(name: &str, revision: u8, data: &[u8]) -> bool {
    let half = |at: usize| data.get(at..at + 2).and_then(|b| b.try_into().ok()).map(u16::from_ne_bytes);
    match (name, revision) {
        // struct xt_state_info: the mask
        ("state", _) => data.get(..4) == Some(&1_u32.to_ne_bytes()),
        // struct xt_conntrack_mtinfo3: match flags, what is inverted, states
        ("conntrack", 3) => [half(146), half(148), half(150)] == [Some(1), Some(0), Some(1)],
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How a rule ends packets, where it leads, and whether it is about INVALID ones.
    type Line = (&'static str, &'static str, bool);

    fn set(chains: &[(&str, &[Line])]) -> Ruleset {
        let rule = |(ends, leads, invalid): &Line| Rule {
            ends: (!ends.is_empty()).then(|| (*ends).to_owned()),
            leads: leads.split_whitespace().map(str::to_owned).collect(),
            invalid: *invalid,
        };
        Ruleset {
            name: "ip filter".into(),
            bases: vec!["FORWARD".into()],
            chains: chains
                .iter()
                .map(|(name, rules)| ((*name).to_owned(), rules.iter().map(rule).collect()))
                .collect(),
        }
    }

    #[test]
    fn accepts_kube_proxys_rules_and_the_drop_of_invalid_packets_are_no_policy() {
        let plain = set(&[
            ("FORWARD", &[("drop", "", true), ("", "KUBE-FORWARD FLANNEL-FWD", false), ("", "", false)]),
            ("KUBE-FORWARD", &[("drop", "", false)]),
            ("FLANNEL-FWD", &[("", "FORWARD", false)]),
        ]);
        assert!(plain.policy().is_empty());
    }

    #[test]
    fn the_place_of_a_drop_is_named() {
        let calico = set(&[
            ("FORWARD", &[("", "", false), ("", "cali-FORWARD", false)]),
            ("cali-FORWARD", &[("", "cali-from", false)]),
            ("cali-from", &[("", "", false), ("drop", "", false)]),
            ("INPUT", &[("drop", "", false)]),
        ]);
        assert_eq!(calico.policy(), ["ip filter cali-from, rule 2 (drop), behind FORWARD"]);
        let plain = set(&[("FORWARD", &[("REJECT", "", false)])]);
        assert_eq!(plain.policy(), ["ip filter FORWARD, rule 1 (REJECT)"]);
    }

    #[test]
    fn matches_and_targets_of_iptables() {
        assert!(
            is_invalid("state", 0, &1_u32.to_ne_bytes()) && !is_invalid("state", 0, &3_u32.to_ne_bytes())
        );
        let mut info = [0_u8; 160];
        info[146] = 1;
        info[150] = 1;
        assert!(is_invalid("conntrack", 3, &info));
        info[148] = 1;
        assert!(!is_invalid("conntrack", 3, &info), "all but INVALID");
        assert_eq!(target_ends("REJECT").as_deref(), Some("REJECT"));
        assert_eq!((target_ends("MARK"), target_ends("")), (None, None));
    }
}
