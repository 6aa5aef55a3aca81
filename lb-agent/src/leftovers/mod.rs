//! What kube-proxy left in the kernel (B157): found, told, and on request removed without resetting what it carries.
//!
//! Its rules outlive it. A Service that is served here never meets them, since the data path rewrites before netfilter
//! looks; but a Service that was deleted since goes on being served by them, to pods that may be somebody else's now.
//!
//! **Invariants:** nothing is removed unless asked for; rules of others, the kubelet's too, are never touched; before
//! the first of kube-proxy's rules goes, [`nft::keep_nat`] stands, so that established flows go on; it is taken away
//! again when no flow needs it.

mod legacy;
mod nfnl;
mod nft;
pub mod policy;
mod process;
mod rules;

use std::io;

use netlink_packet_netfilter::NetfilterProtoFamily as Family;
use serde::Serialize;

use self::nfnl::Nfnl;

/// What there is of kube-proxy; all empty = nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Leftovers {
    /// Sets of rules, each in words, with its place and size.
    pub rules: Vec<String>,
    /// Process ids of kube-proxies that run in this network namespace. Only seen with the node's process ids.
    pub running: Vec<u32>,
    /// Base chains that drop what no rule accepts to forward, as `ip filter FORWARD` (B115).
    pub forward_drops: Vec<String>,
    /// Flows that netfilter rewrote, as long as our table keeps NAT going for them; `None` = it is not there.
    pub kept_flows: Option<u64>,
    /// What could not be looked at, with the reason.
    pub failures: Vec<String>,
}

impl Leftovers {
    /// What an operator should know of it, in sentences; empty = nothing.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let mut found = Vec::new();
        let running = self.running.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
        if !self.rules.is_empty() {
            let cure = if running.is_empty() {
                "remove them by `lb-agent cleanup --kube-proxy` (open connections go on)".to_owned()
            } else {
                format!(
                    "kube-proxy still runs (process {running}): delete its DaemonSet, then \
                         `lb-agent cleanup --kube-proxy`"
                )
            };
            found.push(format!(
                "kube-proxy's rules are in the kernel: {}. Rules that outlive its DaemonSet go on serving deleted \
                 Services; {cure}",
                self.rules.join(", ")
            ));
        } else if !running.is_empty() {
            found.push(format!(
                "kube-proxy runs beside this agent (process {running}); one of the two is enough"
            ));
        }
        if let Some(flows) = self.kept_flows {
            found.push(format!(
                "{flows} flows that netfilter rewrote go on by table inet {}, which is removed when they have ended",
                nft::KEEPER
            ));
        }
        if !self.forward_drops.is_empty() {
            found.push(format!(
                "{} drops what no rule accepts: pods are reached only as far as the network plugin's own rules accept \
                 them, since kube-proxy's accepts (KUBE-FORWARD) are not made here; if traffic to pods is lost, accept \
                 it: iptables -A FORWARD -s POD-CIDR -j ACCEPT, and -d POD-CIDR",
                self.forward_drops.join(", ")
            ));
        }
        found.extend(self.failures.iter().map(|f| format!("kube-proxy's left-overs: {f}")));
        found
    }
}

/// Looks at the calling thread's network namespace. Cost: one list of nftables chains.
#[must_use]
pub fn look() -> Leftovers {
    let mut found = Leftovers { running: process::running("kube-proxy"), ..Leftovers::default() };
    if let Err(error) = look_nft(&mut found) {
        found.failures.push(format!("nftables cannot be read: {error}"));
    }
    for (six, name) in [(false, "iptables"), (true, "ip6tables")] {
        match legacy::look(six) {
            Ok(tables) => {
                found.rules.extend(tables.tables.iter().map(|t| format!("chains in {name}-legacy {t}")));
                if tables.forward_drops {
                    found.forward_drops.push(format!("{name}-legacy filter FORWARD"));
                }
            }
            Err(error) => found.failures.push(format!("{name}-legacy cannot be read: {error}")),
        }
    }
    found.rules.extend(process::ipvs());
    found
}

fn look_nft(found: &mut Leftovers) -> io::Result<()> {
    let mut netfilter = Nfnl::open()?;
    let nft = nft::look(&mut netfilter)?;
    found.rules.extend(nft.tables.iter().map(|family| format!("table {family} kube-proxy")));
    found.rules.extend(nft.chains.iter().map(|(table, count)| format!("{count} chains in table {table}")));
    found.forward_drops = nft.forward_drops;
    found.kept_flows = if nft.keeper { Some(flows(&mut netfilter)?) } else { None };
    Ok(())
}

/// Flows of both families that netfilter rewrote.
fn flows(netfilter: &mut Nfnl) -> io::Result<u64> {
    Ok(netfilter.rewritten_flows(Family::IPv4)? + netfilter.rewritten_flows(Family::IPv6)?)
}

/// Removes kube-proxy's rules; the answer says what was done and what is left for the operator.
///
/// # Errors
/// kube-proxy still runs here, or the kernel or a tool refuses; the text says what to do. What was removed stays so.
pub fn remove() -> Result<Vec<String>, String> {
    let found = look();
    if let Some(process) = found.running.first() {
        return Err(format!(
            "kube-proxy still runs on this node (process {process}) and would write its rules again; delete its \
             DaemonSet first (kubectl -n kube-system delete daemonset kube-proxy)"
        ));
    }
    if let Some(failure) = found.failures.first() {
        return Err(failure.clone());
    }
    if found.rules.is_empty() {
        return Ok(vec!["no rules of kube-proxy are left".to_owned()]);
    }
    let mut netfilter = Nfnl::open().map_err(|error| format!("netfilter: {error}"))?;
    let nft = |error: io::Error| format!("nftables refuses: {error}");
    nft::keep_nat(&mut netfilter).map_err(nft)?;
    let kept = nft::remove(&mut netfilter).map_err(nft)?;
    let mut said: Vec<String> = kept.into_iter().map(|what| format!("kept {what}")).collect();
    let mut failed = Vec::new();
    for six in [false, true] {
        let tables = legacy::look(six).map_err(|error| error.to_string())?.tables;
        match legacy::remove(six, &tables) {
            Ok(kept) => said.extend(kept.into_iter().map(|what| format!("kept {what}"))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => failed.push(legacy::by_hand(six)),
            Err(error) => failed.push(error.to_string()),
        }
    }
    if let Some(ipvs) = process::ipvs() {
        failed.push(format!(
            "{ipvs} stay, since removing them ends their connections; when those may end: ipvsadm --clear; \
             ip link del kube-ipvs0; ipset destroy (those named KUBE-*)"
        ));
    }
    said.push(match release() {
        Ok(0) => "no flow needs netfilter's NAT".to_owned(),
        Ok(flows) => format!(
            "{flows} flows that netfilter rewrote go on; table inet {} stays for them until the agent, or this command \
             again, finds that they have ended",
            nft::KEEPER
        ),
        Err(error) => format!("table inet {} stays: {error}", nft::KEEPER),
    });
    if failed.is_empty() {
        said.insert(0, format!("removed {}", found.rules.join(", ")));
        return Ok(said);
    }
    Err(failed.join("; "))
}

/// Takes our table away if no flow needs it; the answer is how many do. Without the table nothing happens.
///
/// # Errors
/// The kernel refuses; the table stays.
pub fn release() -> io::Result<u64> {
    let mut netfilter = Nfnl::open()?;
    if !nft::look(&mut netfilter)?.keeper {
        return Ok(0);
    }
    let flows = flows(&mut netfilter)?;
    if flows == 0 {
        nft::release_nat(&mut netfilter)?;
    }
    Ok(flows)
}
