//! Which chains are kube-proxy's, and what must go, in which order, to be rid of them. No I/O.

use std::collections::{BTreeMap, BTreeSet};

/// Chains that kube-proxy makes in iptables or ipvs mode, any release. The kubelet's are not among them:
/// `KUBE-FIREWALL` (the guard of localhost, B158), `KUBE-KUBELET-CANARY`, `KUBE-IPTABLES-HINT`, `KUBE-MARK-DROP`.
const NAMES: [&str; 15] = [
    "KUBE-SERVICES",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-NODEPORTS",
    "KUBE-POSTROUTING",
    "KUBE-FORWARD",
    "KUBE-MARK-MASQ",
    "KUBE-PROXY-CANARY",
    "KUBE-PROXY-FIREWALL",
    // ipvs mode
    "KUBE-LOAD-BALANCER",
    "KUBE-NODE-PORT",
    "KUBE-NODE-PORT-LOCAL",
    "KUBE-SOURCE-RANGES-FIREWALL",
    "KUBE-IPVS-FILTER",
    "KUBE-IPVS-OUT-FILTER",
    "KUBE-LOAD-BALANCER-SOURCE-CIDR",
];

/// Beginnings of the names of its chains per service port or endpoint.
const PREFIXES: [&str; 6] = ["KUBE-SVC-", "KUBE-SVL-", "KUBE-SEP-", "KUBE-EXT-", "KUBE-FW-", "KUBE-XLB-"];

/// What masquerades packets that another project's chains have marked.
const SHARED: [&str; 2] = ["KUBE-MARK-MASQ", "KUBE-POSTROUTING"];

/// Whether a chain is kube-proxy's.
pub(super) fn is_kube_proxys(chain: &str) -> bool {
    NAMES.contains(&chain) || PREFIXES.iter().any(|prefix| chain.starts_with(prefix))
}

/// A rule that sends packets to a chain; `handle` is whatever names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Jump<H> {
    /// The chain it is in.
    pub(super) from: String,
    /// The chain it names.
    pub(super) to: String,
    /// What names the rule.
    pub(super) handle: H,
}

/// What must go from one table: first the jumps, then the content of the chains, then the chains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Removal<H> {
    /// Rules of built-in chains that lead there.
    pub(super) jumps: Vec<Jump<H>>,
    /// Chains.
    pub(super) chains: Vec<String>,
    /// kube-proxy's chains that stay, with the chain that needs them.
    pub(super) kept: BTreeMap<String, String>,
}

/// Plans the removal from one table. A chain that somebody else's own chain uses stays (container runtimes mark packets
/// for masquerading by `KUBE-MARK-MASQ`), and so does what makes it work.
pub(super) fn removal<H: Clone>(
    chains: &BTreeSet<String>,
    built_in: &BTreeSet<String>,
    jumps: &[Jump<H>],
) -> Removal<H> {
    let foreign = |jump: &&Jump<H>| !is_kube_proxys(&jump.from) && !built_in.contains(&jump.from);
    let mut kept = BTreeMap::new();
    for jump in jumps.iter().filter(foreign).filter(|jump| is_kube_proxys(&jump.to)) {
        kept.insert(jump.to.clone(), jump.from.clone());
        if SHARED.contains(&jump.to.as_str()) {
            for chain in SHARED.iter().filter(|chain| chains.contains(**chain)) {
                kept.insert((*chain).to_owned(), jump.from.clone());
            }
        }
    }
    let goes = |chain: &str| is_kube_proxys(chain) && !kept.contains_key(chain);
    Removal {
        jumps: jumps.iter().filter(|j| built_in.contains(&j.from) && goes(&j.to)).cloned().collect(),
        chains: chains.iter().filter(|chain| goes(chain)).cloned().collect(),
        kept,
    }
}

/// Reads one table of `iptables-save`: its chains, the built-in ones, and the jumps with their rule as `-A` has it.
pub(super) fn saved(text: &str) -> (BTreeSet<String>, BTreeSet<String>, Vec<Jump<String>>) {
    let (mut chains, mut built_in, mut jumps) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
    for line in text.lines() {
        if let Some(declared) = line.strip_prefix(':') {
            let mut words = declared.split_whitespace();
            if let (Some(name), Some(policy)) = (words.next(), words.next()) {
                chains.insert(name.to_owned());
                if policy != "-" {
                    built_in.insert(name.to_owned());
                }
            }
        } else if let Some(rule) = line.strip_prefix("-A ") {
            let words: Vec<&str> = rule.split_whitespace().collect();
            let target =
                words.iter().zip(words.iter().skip(1)).find(|(flag, _)| matches!(**flag, "-j" | "-g"));
            if let (Some(from), Some((_, to))) = (words.first(), target) {
                jumps.push(Jump { from: (*from).to_owned(), to: (*to).to_owned(), handle: rule.to_owned() });
            }
        }
    }
    (chains, built_in, jumps)
}

/// The input of `iptables-restore --noflush` that carries out a removal from a table; empty = nothing to do.
pub(super) fn restore_input(table: &str, removal: &Removal<String>) -> String {
    if removal.chains.is_empty() {
        return String::new();
    }
    let mut lines = vec![format!("*{table}")];
    // With --noflush, naming a chain empties it.
    lines.extend(removal.chains.iter().map(|chain| format!(":{chain} - [0:0]")));
    lines.extend(removal.jumps.iter().map(|jump| format!("-D {}", jump.handle)));
    lines.extend(removal.chains.iter().map(|chain| format!("-X {chain}")));
    lines.push("COMMIT\n".to_owned());
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVED: &str = "\
# Generated by iptables-save
*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:CNI-HOSTPORT-DNAT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-ABC - [0:0]
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A PREROUTING -j CNI-HOSTPORT-DNAT
-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
-A KUBE-SERVICES -d 10.96.0.1/32 -j KUBE-SVC-ABC
-A KUBE-SVC-ABC ! -s 10.244.0.0/16 -j KUBE-MARK-MASQ
COMMIT
";

    #[test]
    fn b157_b158_names_of_kube_proxy_and_not_of_the_kubelet() {
        for ours in ["KUBE-SERVICES", "KUBE-SEP-X", "KUBE-EXT-X", "KUBE-FW-X", "KUBE-PROXY-CANARY"] {
            assert!(is_kube_proxys(ours), "{ours}");
        }
        for other in ["KUBE-FIREWALL", "KUBE-KUBELET-CANARY", "KUBE-MARK-DROP", "KUBE-HOSTPORTS", "FORWARD"] {
            assert!(!is_kube_proxys(other), "{other}");
        }
    }

    #[test]
    fn b157_all_of_a_saved_table_goes_and_nothing_else() {
        let (chains, built_in, jumps) = saved(SAVED);
        let input = restore_input("nat", &removal(&chains, &built_in, &jumps));
        let expected = "\
*nat
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-ABC - [0:0]
-D PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-D POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
-X KUBE-MARK-MASQ
-X KUBE-POSTROUTING
-X KUBE-SERVICES
-X KUBE-SVC-ABC
COMMIT
";
        assert_eq!(input, expected);
        assert_eq!(restore_input("nat", &removal::<String>(&BTreeSet::new(), &built_in, &[])), "");
    }

    #[test]
    fn what_another_project_marks_packets_with_stays_with_what_masquerades_them() {
        let text = SAVED.replace("COMMIT", "-A CNI-HOSTPORT-DNAT -s 10.0.0.0/8 -j KUBE-MARK-MASQ\nCOMMIT");
        let (chains, built_in, jumps) = saved(&text);
        let removal = removal(&chains, &built_in, &jumps);
        assert_eq!(removal.chains, ["KUBE-SERVICES", "KUBE-SVC-ABC"]);
        assert_eq!(removal.jumps.len(), 1);
        let kept: Vec<_> = removal.kept.iter().map(|(chain, by)| (chain.as_str(), by.as_str())).collect();
        assert_eq!(
            kept,
            [("KUBE-MARK-MASQ", "CNI-HOSTPORT-DNAT"), ("KUBE-POSTROUTING", "CNI-HOSTPORT-DNAT")]
        );
    }
}
