//! Stable text form of the tables: one line per entry, sorted, in words (`lb-agent dump`, and what tests compare).
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::string_slice))]

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;

use lb_common::abi::{
    BE_IN_CLUSTER, BE_IN_LOCAL, BE_LOCAL, IF_DETECT, IF_L3, IF_POD, NODE_HOST_NODEPORT, NODE_LOCAL,
    NODE_NODEPORT, SVC_ADDRESS, SVC_DSR, SVC_EXTERNAL, SVC_HAS_ANY, SVC_LOCAL, SVC_MAGLEV, SVC_MASQ_ALL,
    SVC_RANGES, SvcValue,
};

use crate::desired::Desired;

/// Names of bits, in the order in which they are written.
type Names = &'static [(u32, &'static str)];

const SVC: Names = &[
    (SVC_ADDRESS, "active"),
    (SVC_EXTERNAL, "external"),
    (SVC_LOCAL, "local"),
    (SVC_HAS_ANY, "any"),
    (SVC_MASQ_ALL, "masquerade"),
    (SVC_RANGES, "ranges"),
    (SVC_MAGLEV, "maglev"),
    (SVC_DSR, "dsr"),
];
const BACKEND: Names =
    &[(BE_LOCAL as u32, "here"), (BE_IN_CLUSTER as u32, "cluster"), (BE_IN_LOCAL as u32, "local")];
const NODE: Names =
    &[(NODE_LOCAL, "local"), (NODE_NODEPORT, "nodeport"), (NODE_HOST_NODEPORT, "nodeport-of-the-host")];
const IFACE: Names = &[(IF_POD, "pod"), (IF_DETECT, "detect"), (IF_L3, "l3")];

/// The tables as text; equal tables give equal text.
#[must_use]
pub fn dump(tables: &Desired) -> String {
    let mut lines = Vec::new();
    for (k, v) in &tables.services4 {
        lines.push(service(IpAddr::from(k.addr), k.port, k.proto, v));
    }
    for (k, v) in &tables.services6 {
        lines.push(service(IpAddr::from(k.addr), k.port, k.proto, v));
    }
    for (id, b) in &tables.backends4 {
        lines.push(backend(*id, IpAddr::from(b.addr), b.port, b.proto, b.flags, b.service));
    }
    for (id, b) in &tables.backends6 {
        lines.push(backend(*id, IpAddr::from(b.addr), b.port, b.proto, b.flags, b.service));
    }
    let maglev = maglev(tables);
    let is_listed =
        |slot: u32| maglev.range(..=slot).next_back().is_none_or(|(start, len)| slot - start >= *len);
    let listed = tables.slots.iter().filter(|(slot, _)| is_listed(*slot));
    lines.extend(listed.map(|(slot, id)| format!("SLOT   {slot} backend={id}")));
    for (start, len) in &maglev {
        let mut shares: BTreeMap<u32, usize> = BTreeMap::new();
        let ids = tables.slots.run(*start, *len).unwrap_or_default();
        ids.into_iter().for_each(|id| *shares.entry(id).or_default() += 1);
        lines.extend(
            shares.iter().map(|(id, slots)| format!("MAGLEV {start}+{len} backend={id} slots={slots}")),
        );
    }
    for (length, key) in tables.ranges4.keys() {
        lines.push(range(key.service, IpAddr::from(key.addr), *length));
    }
    for (length, key) in tables.ranges6.keys() {
        lines.push(range(key.service, IpAddr::from(key.addr), *length));
    }
    lines.extend(tables.cidrs4.keys().map(|(length, k)| format!("CIDR   {}/{length}", IpAddr::from(k.addr))));
    lines.extend(tables.cidrs6.keys().map(|(length, k)| format!("CIDR   {}/{length}", IpAddr::from(k.addr))));
    let four = tables.node4.iter().map(|(a, f)| (IpAddr::from(*a), *f));
    let six = tables.node6.iter().map(|(a, f)| (IpAddr::from(*a), *f));
    lines.extend(four.chain(six).map(|(a, flags)| format!("NODE   {a}{}", words(flags, NODE))));
    for (index, i) in &tables.interfaces {
        let snat = format!("snat4={} snat6={}", IpAddr::from(i.snat4), IpAddr::from(i.snat6));
        lines.push(format!("IF     {index} master={} {snat}{}", i.master, words(i.flags, IFACE)));
    }
    for (number, peer) in &tables.peers {
        let how = match u16::from_be_bytes(peer.port) {
            0 => "ipip".to_owned(),
            port => format!("gue port={port}"),
        };
        let who = if *number == 0 { "this node" } else { "node" };
        lines.push(format!(
            "PEER   {number} {who} {} {} {how}",
            IpAddr::from(peer.addr4),
            IpAddr::from(peer.addr6)
        ));
    }
    lines.extend(tables.namespaces.keys().map(|cookie| format!("NETNS  {cookie}")));
    let config = &tables.config;
    let mut text = format!(
        "CONFIG flags={:#x} nodeports={}-{} snat=",
        config.flags, config.nodeports.min, config.nodeports.max
    );
    for range in config.snat.iter().filter(|r| r.min != 0) {
        // Writing to a String cannot fail.
        let _infallible = write!(text, "{}-{},", range.min, range.max);
    }
    lines.push(text.trim_end_matches(',').to_owned());
    lines.join("\n") + "\n"
}

/// Start and length of all Maglev tables: their slots are counted, not listed.
fn maglev(tables: &Desired) -> BTreeMap<u32, u32> {
    let values = tables.services4.values().chain(tables.services6.values());
    let ranges = values
        .filter(|v| v.flags & SVC_MAGLEV != 0)
        .flat_map(|v| [(v.cluster_start, v.cluster_len), (v.local_start, v.local_len)]);
    ranges.filter(|(_, len)| *len > 0).collect()
}

fn service(address: IpAddr, port: [u8; 2], proto: u8, v: &SvcValue) -> String {
    let affinity = if v.affinity_s == 0 { String::new() } else { format!(" affinity={}s", v.affinity_s) };
    let sets =
        format!("cluster={}+{} local={}+{}", v.cluster_start, v.cluster_len, v.local_start, v.local_len);
    let flags = words(v.flags, SVC);
    format!("SVC    {} id={} {sets}{affinity}{flags}", endpoint(address, port, proto), v.id)
}

fn backend(id: u32, address: IpAddr, port: [u8; 2], proto: u8, flags: u8, service: u32) -> String {
    let flags = words(u32::from(flags), BACKEND);
    format!("BE     {id} {} service={service}{flags}", endpoint(address, port, proto))
}

fn range(service: [u8; 4], address: IpAddr, length: u32) -> String {
    format!("RANGE  service={} {address}/{}", u32::from_be_bytes(service), length.saturating_sub(32))
}

fn endpoint(address: IpAddr, port: [u8; 2], proto: u8) -> String {
    let protocol = match proto {
        6 => "TCP".to_owned(),
        17 => "UDP".to_owned(),
        132 => "SCTP".to_owned(),
        other => other.to_string(),
    };
    format!("{}/{protocol}", std::net::SocketAddr::new(address, u16::from_be_bytes(port)))
}

fn words(flags: u32, names: Names) -> String {
    names.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, name)| format!(" {name}")).collect()
}
