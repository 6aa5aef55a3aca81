//! kube-proxy's rules in nftables: its own tables, and the chains that iptables-nft made for it. And the table that
//! keeps netfilter's NAT going for the flows that they carried.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::NetfilterProtoFamily as Family;
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, DataAttribute, ExpressionAttribute, Expressions, Hook, HookNumber,
    Immediate, InetHookNumber, ListAttribute, NfTablesMessage, RuleAttribute, RuleMessage, TableAttribute,
    TableMessage, VerdictAttribute,
};

use super::nfnl::{Change, Nfnl};
use super::rules::{Jump, Removal, is_kube_proxys, removal};

/// The table of kube-proxy's nftables mode, one in family ip and one in ip6 (B150).
pub(super) const KUBE_PROXY: &str = "kube-proxy";
/// Our table that keeps NAT going, in family inet.
pub(super) const KEEPER: &str = "lb-keep-nat";
/// `NFTA_CT_DREG`, `NFTA_CT_KEY`, and the key `NFT_CT_STATUS`: loads the status of a flow into register 1.
const CT_DREG: u16 = 1;
const CT_KEY: u16 = 2;
const CT_STATUS: u32 = 2;
/// `NF_IP_PRI_NAT_DST`, -100.
const DSTNAT: u32 = (-100_i32).cast_unsigned();
/// `NF_DROP` and `NF_ACCEPT`.
const DROP: u32 = 0;
const ACCEPT: u32 = 1;

/// What nftables holds of kube-proxy.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Families (`ip`, `ip6`) with a table `kube-proxy`.
    pub(super) tables: Vec<&'static str>,
    /// kube-proxy's iptables-nft chains, as `ip nat`, with their number.
    pub(super) chains: BTreeMap<String, usize>,
    /// Base chains at the forward hook that drop what no rule accepts, as `ip filter FORWARD`.
    pub(super) forward_drops: Vec<String>,
    /// Our own table is there.
    pub(super) keeper: bool,
}

/// Looks.
pub(super) fn look(netfilter: &mut Nfnl) -> io::Result<Found> {
    let mut found = Found::default();
    for (family, name) in tables(netfilter)? {
        match name.as_str() {
            KUBE_PROXY if is_ip(family) => found.tables.push(word(family)),
            KEEPER if family == Family::Inet => found.keeper = true,
            _ => {}
        }
    }
    for chain in chains(netfilter)? {
        if is_ip(chain.family) && chain.table != KUBE_PROXY && is_kube_proxys(&chain.name) {
            *found.chains.entry(format!("{} {}", word(chain.family), chain.table)).or_default() += 1;
        }
        if chain.hook == Some(HookNumber::Inet(InetHookNumber::Forward)) && chain.policy == Some(DROP) {
            found.forward_drops.push(format!("{} {} {}", word(chain.family), chain.table, chain.name));
        }
    }
    Ok(found)
}

/// Removes kube-proxy's tables and chains; NAT must be kept by somebody else, see [`keep_nat`]. The answer names its
/// chains that stay, and who uses them.
pub(super) fn remove(netfilter: &mut Nfnl) -> io::Result<Vec<String>> {
    let own = tables(netfilter)?.into_iter().filter(|(family, name)| is_ip(*family) && name == KUBE_PROXY);
    let mut changes: Vec<Change> = own.map(|(family, name)| (family, delete_table(name))).collect();
    let mut kept = Vec::new();
    for ((family, table), removal) in iptables(netfilter)? {
        // Once the jumps are gone, no packet meets the rest, however many transactions it takes.
        changes.extend(removal.jumps.iter().map(|j| {
            let rule = [RuleAttribute::Chain(j.from.clone()), RuleAttribute::Handle(j.handle)];
            (family, delete_rules(&table, rule))
        }));
        let flush = |chain: &String| (family, delete_rules(&table, [RuleAttribute::Chain(chain.clone())]));
        changes.extend(removal.chains.iter().map(flush));
        changes.extend(removal.chains.iter().map(|chain| (family, delete_chain(&table, chain))));
        kept.extend(removal.kept.iter().map(|(chain, by)| {
            format!("{} {table} {chain}, which the chain {by} uses, and what makes it work", word(family))
        }));
    }
    netfilter.change(&changes)?;
    Ok(kept)
}

/// Makes the table that keeps NAT and connection tracking of both families going; making it again changes nothing.
///
/// netfilter translates packets of a flow only while some nat chain is registered in the namespace, and tracks flows
/// only while some rule asks for it. kube-proxy's may be the last of both.
pub(super) fn keep_nat(netfilter: &mut Nfnl) -> io::Result<()> {
    if look(netfilter)?.keeper {
        return Ok(());
    }
    let table = vec![TableAttribute::Name(KEEPER.to_owned())];
    let chain = vec![
        ChainAttribute::Table(KEEPER.to_owned()),
        ChainAttribute::Name("nat".to_owned()),
        ChainAttribute::Hook(vec![Hook::Number(InetHookNumber::PreRouting.into()), Hook::Priority(DSTNAT)]),
        ChainAttribute::Type("nat".to_owned()),
        ChainAttribute::Policy(ACCEPT),
    ];
    let number = |kind, value: u32| DefaultNla::new(kind, value.to_be_bytes().to_vec());
    let load = Expressions::Other {
        expression_type: "ct".to_owned(),
        attributes: vec![number(CT_DREG, 1), number(CT_KEY, CT_STATUS)],
    };
    let rule = vec![
        RuleAttribute::Table(KEEPER.to_owned()),
        RuleAttribute::Chain("nat".to_owned()),
        RuleAttribute::Expressions(vec![load.into()]),
    ];
    netfilter.change(&[
        (Family::Inet, NfTablesMessage::NewTable(TableMessage { attributes: table })),
        (Family::Inet, NfTablesMessage::NewChain(ChainMessage { attributes: chain })),
        (Family::Inet, NfTablesMessage::NewRule(RuleMessage { attributes: rule })),
    ])
}

/// Removes the table of [`keep_nat`].
pub(super) fn release_nat(netfilter: &mut Nfnl) -> io::Result<()> {
    netfilter.change(&[(Family::Inet, delete_table(KEEPER.to_owned()))])
}

/// What must go from a table, which is named by family and name.
type FromTable = ((Family, String), Removal<u64>);

/// What must go from each iptables-nft table, by family and table.
fn iptables(netfilter: &mut Nfnl) -> io::Result<Vec<FromTable>> {
    let mut by_table: BTreeMap<(u8, String), (BTreeSet<String>, BTreeSet<String>)> = BTreeMap::new();
    let ours = |family: Family, table: &str| is_ip(family) && table != KUBE_PROXY;
    for chain in chains(netfilter)?.into_iter().filter(|c| ours(c.family, &c.table)) {
        let (all, built_in) = by_table.entry((chain.family.into(), chain.table)).or_default();
        if chain.hook.is_some() {
            built_in.insert(chain.name.clone());
        }
        all.insert(chain.name);
    }
    by_table.retain(|_, (all, _)| all.iter().any(|chain| is_kube_proxys(chain)));
    if by_table.is_empty() {
        return Ok(Vec::new());
    }
    let mut jumps: BTreeMap<(u8, String), Vec<Jump<u64>>> = BTreeMap::new();
    for (family, object) in
        netfilter.list(&NfTablesMessage::GetRule(RuleMessage { attributes: Vec::new() }))?
    {
        if let NfTablesMessage::NewRule(rule) = object {
            for (table, jump) in jumps_of(&rule) {
                jumps.entry((family.into(), table)).or_default().push(jump);
            }
        }
    }
    let planned = by_table.into_iter().map(|(key, (all, built_in))| {
        let jumps = jumps.remove(&key).unwrap_or_default();
        ((Family::from(key.0), key.1), removal(&all, &built_in, &jumps))
    });
    Ok(planned.collect())
}

/// The chains that a rule leads to, each with the table.
fn jumps_of(rule: &RuleMessage) -> Vec<(String, Jump<u64>)> {
    let (mut table, mut from, mut number, mut targets) = (None, None, None, Vec::new());
    for attribute in &rule.attributes {
        match attribute {
            RuleAttribute::Table(name) => table = Some(name),
            RuleAttribute::Chain(name) => from = Some(name),
            RuleAttribute::Handle(value) => number = Some(*value),
            RuleAttribute::Expressions(list) => targets.extend(list.iter().filter_map(target)),
            _ => {}
        }
    }
    let (Some(table), Some(from), Some(handle)) = (table, from, number) else { return Vec::new() };
    let jump = |to: &String| (table.clone(), Jump { from: from.clone(), to: to.clone(), handle });
    targets.into_iter().map(jump).collect()
}

/// The chain that an expression jumps or goes to.
fn target(expression: &ListAttribute<ExpressionAttribute>) -> Option<&String> {
    let ListAttribute::Element(parts) = expression else { return None };
    let immediate = parts.iter().find_map(|part| match part {
        ExpressionAttribute::Data(Expressions::Immediate(immediate)) => Some(immediate),
        _ => None,
    })?;
    let verdict = immediate.iter().find_map(|part| match part {
        Immediate::Data(DataAttribute::Verdict(verdict)) => Some(verdict),
        _ => None,
    })?;
    verdict.iter().find_map(|part| match part {
        VerdictAttribute::Chain(chain) => Some(chain),
        _ => None,
    })
}

/// A chain, as far as it matters here.
pub(super) struct Chain {
    pub(super) family: Family,
    pub(super) table: String,
    pub(super) name: String,
    pub(super) hook: Option<HookNumber>,
    /// `filter`, `nat`, `route`.
    pub(super) kind: Option<String>,
    policy: Option<u32>,
}

pub(super) fn chains(netfilter: &mut Nfnl) -> io::Result<Vec<Chain>> {
    let list = netfilter.list(&NfTablesMessage::GetChain(ChainMessage { attributes: Vec::new() }))?;
    let read = |(family, object)| {
        let NfTablesMessage::NewChain(chain) = object else { return None };
        let (mut table, mut name, mut hook, mut policy, mut kind) = (None, None, None, None, None);
        for attribute in chain.attributes {
            match attribute {
                ChainAttribute::Table(text) => table = Some(text),
                ChainAttribute::Name(text) => name = Some(text),
                ChainAttribute::Type(text) => kind = Some(text),
                ChainAttribute::Policy(value) => policy = Some(value),
                ChainAttribute::Hook(parts) => {
                    hook = parts.iter().find_map(|part| match part {
                        Hook::Number(number) => Some(*number),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        Some(Chain { family, table: table?, name: name?, hook, kind, policy })
    };
    Ok(list.into_iter().filter_map(read).collect())
}

fn tables(netfilter: &mut Nfnl) -> io::Result<Vec<(Family, String)>> {
    let list = netfilter.list(&NfTablesMessage::GetTable(TableMessage { attributes: Vec::new() }))?;
    let read = |(family, object)| {
        let NfTablesMessage::NewTable(table) = object else { return None };
        table.attributes.into_iter().find_map(|attribute| match attribute {
            TableAttribute::Name(name) => Some((family, name)),
            _ => None,
        })
    };
    Ok(list.into_iter().filter_map(read).collect())
}

fn delete_table(name: String) -> NfTablesMessage {
    NfTablesMessage::DeleteTable(TableMessage { attributes: vec![TableAttribute::Name(name)] })
}

fn delete_chain(table: &str, chain: &str) -> NfTablesMessage {
    let attributes = vec![ChainAttribute::Table(table.to_owned()), ChainAttribute::Name(chain.to_owned())];
    NfTablesMessage::DeleteChain(ChainMessage { attributes })
}

/// One rule, or all of a chain if no handle is given.
fn delete_rules(table: &str, which: impl IntoIterator<Item = RuleAttribute>) -> NfTablesMessage {
    let table = RuleAttribute::Table(table.to_owned());
    NfTablesMessage::DeleteRule(RuleMessage { attributes: [table].into_iter().chain(which).collect() })
}

pub(super) fn is_ip(family: Family) -> bool {
    matches!(family, Family::IPv4 | Family::IPv6)
}

/// The family as `nft` writes it.
pub(super) fn word(family: Family) -> &'static str {
    match family {
        Family::IPv4 => "ip",
        Family::IPv6 => "ip6",
        Family::Inet => "inet",
        _ => "other",
    }
}
