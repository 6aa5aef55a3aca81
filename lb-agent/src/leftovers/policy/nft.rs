//! The chains of nftables, iptables-nft's among them.

use std::collections::BTreeMap;
use std::io;

use netlink_packet_core::{DefaultNla, Nla};
use netlink_packet_netfilter::NetfilterProtoFamily as Family;
use netlink_packet_netfilter::nftables::{
    DataAttribute, ExpressionAttribute, Expressions, HookNumber, Immediate, InetHookNumber, ListAttribute,
    NfTablesMessage, RuleAttribute, RuleMessage, Verdict, VerdictAttribute,
};

use super::super::nfnl::Nfnl;
use super::super::nft::{self, KUBE_PROXY, is_ip, word};
use super::{Rule, Ruleset, is_invalid, target_ends};

/// `NFTA_TARGET_NAME`, `NFTA_MATCH_NAME` and their like.
const NAME: u16 = 1;
const REVISION: u16 = 2;
const INFO: u16 = 3;
/// `NFTA_CT_KEY` and `NFT_CT_STATE`.
const CT_KEY: u16 = 2;
const CT_STATE: u32 = 0;
/// `NF_DROP` and `NF_ACCEPT`.
const DROP: u32 = 0;
const ACCEPT: u32 = 1;
/// `NF_CT_STATE_INVALID_BIT`.
const INVALID: [u8; 4] = 1_u32.to_ne_bytes();

/// The tables that have filter chains at hooks of forwarded packets.
pub(super) fn chains() -> io::Result<Vec<Ruleset>> {
    let mut netfilter = Nfnl::open()?;
    let chains = match nft::chains(&mut netfilter) {
        Ok(chains) => chains,
        // the kernel has no nftables
        Err(error)
            if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ENOENT)) =>
        {
            return Ok(Vec::new());
        }
        Err(error) => return Err(error),
    };
    let mut sets: BTreeMap<(u8, String), Ruleset> = BTreeMap::new();
    for chain in chains.into_iter().filter(|c| is_ip(c.family) || c.family == Family::Inet) {
        use InetHookNumber::{Forward, PostRouting, PreRouting};
        let met = matches!(chain.hook, Some(HookNumber::Inet(Forward | PreRouting | PostRouting)));
        if met
            && chain.kind.as_deref() == Some("filter")
            && !(is_ip(chain.family) && chain.table == KUBE_PROXY)
        {
            let name = format!("{} {}", word(chain.family), chain.table);
            let set = sets.entry((chain.family.into(), chain.table)).or_default();
            set.name = name;
            set.bases.push(chain.name);
        }
    }
    for ((family, table), set) in &mut sets {
        let of_table = vec![RuleAttribute::Table(table.clone())];
        let (rules, unread) =
            netfilter.list_counted(&NfTablesMessage::GetRule(RuleMessage { attributes: of_table }))?;
        for (of, object) in rules {
            if let NfTablesMessage::NewRule(message) = object
                && u8::from(of) == *family
            {
                add(&message, table, set);
            }
        }
        if unread > 0 {
            let unknown =
                Rule { ends: Some(format!("{unread} rules of the table cannot be read")), ..Rule::default() };
            for base in &set.bases {
                set.chains.entry(base.clone()).or_default().push(unknown.clone());
            }
        }
    }
    Ok(sets.into_values().collect())
}

fn add(message: &RuleMessage, table: &str, set: &mut Ruleset) {
    let (mut of, mut chain, mut rule) = (None, None, Rule::default());
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Table(name) => of = Some(name),
            RuleAttribute::Chain(name) => chain = Some(name),
            RuleAttribute::Expressions(list) => rule = read(list),
            _ => {}
        }
    }
    if let (Some(of), Some(chain)) = (of, chain)
        && of == table
    {
        set.chains.entry(chain.clone()).or_default().push(rule);
    }
}

fn read(list: &[ListAttribute<ExpressionAttribute>]) -> Rule {
    let mut rule = Rule::default();
    let (mut state, mut mask) = (false, false);
    for expression in list {
        let ListAttribute::Element(parts) = expression else { continue };
        let (mut name, mut data) = ("", None);
        for part in parts {
            match part {
                ExpressionAttribute::Name(text) => name = text,
                ExpressionAttribute::Data(found) => data = Some(found),
                _ => {}
            }
        }
        match (name, data) {
            ("immediate", Some(Expressions::Immediate(parts))) => parts.iter().for_each(|part| {
                if let Immediate::Data(DataAttribute::Verdict(verdict)) = part {
                    follow(verdict, &mut rule);
                }
            }),
            ("lookup", Some(Expressions::Lookup(parts))) if parts.iter().any(to_verdict) => {
                rule.ends = Some("a verdict map".to_owned());
            }
            ("target", Some(Expressions::Other { attributes, .. })) => {
                rule.ends = rule.ends.or(target_ends(&text(attributes, NAME)));
            }
            ("match", Some(Expressions::Other { attributes, .. })) => {
                let revision = bytes(attributes, REVISION).last().copied().unwrap_or(0);
                rule.invalid |= is_invalid(&text(attributes, NAME), revision, &bytes(attributes, INFO));
            }
            ("ct", Some(Expressions::Other { attributes, .. })) => {
                state = bytes(attributes, CT_KEY) == CT_STATE.to_be_bytes();
            }
            ("bitwise", Some(Expressions::Bitwise(parts))) => {
                use netlink_packet_netfilter::nftables::Bitwise::Mask;
                mask = parts.iter().any(|p| matches!(p, Mask(DataAttribute::Value(v)) if v[..] == INVALID));
            }
            // ct state & invalid, compared with nothing
            ("cmp", Some(Expressions::Cmp(_))) => {
                rule.invalid |= std::mem::take(&mut state) && std::mem::take(&mut mask)
            }
            ("reject" | "queue" | "tproxy" | "synproxy" | "fwd", _) => rule.ends = Some(name.to_owned()),
            _ => {}
        }
    }
    rule
}

/// A look-up that loads a verdict.
fn to_verdict(part: &netlink_packet_netfilter::nftables::Lookup) -> bool {
    use netlink_packet_netfilter::nftables::{Lookup, Register};
    matches!(part, Lookup::DestinationRegister(Register::Verdict))
}

fn follow(verdict: &[VerdictAttribute], rule: &mut Rule) {
    for part in verdict {
        match part {
            VerdictAttribute::Chain(chain) => rule.leads.push(chain.clone()),
            VerdictAttribute::Code(Verdict::Other(DROP)) => rule.ends = Some("drop".to_owned()),
            VerdictAttribute::Code(Verdict::Other(code)) if *code != ACCEPT => {
                rule.ends = Some(format!("verdict {code}"));
            }
            _ => {}
        }
    }
}

fn bytes(attributes: &[DefaultNla], kind: u16) -> Vec<u8> {
    let Some(found) = attributes.iter().find(|attribute| attribute.kind() == kind) else { return Vec::new() };
    let mut value = vec![0; found.value_len()];
    found.emit_value(&mut value);
    value
}

fn text(attributes: &[DefaultNla], kind: u16) -> String {
    let value = bytes(attributes, kind);
    String::from_utf8_lossy(value.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}
