//! Two nodes, each the one that a client sends to and the backend's node at once: the ways by which a packet from outside
//! comes to a pod of the other node, in all pairs, with real connections.
//!
//! A case is a pair of nodes. Each sends to the other by XDP or TC; by SNAT what asks for that, the rest in the outer header
//! that its agent was told, if the other one takes it. One of the two may be a node that was not upgraded yet.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::errors::{ensure_error, forget, packet};
use super::{Case, Context, Side, address, node_port, service, vips};
use crate::lab::manifests::Service;
use crate::lab::netns::{ip, run_in};
use crate::lab::traffic::{Load, Target, under};
use crate::lab::worker::Ask;
use crate::lab::xdp::{full_checksums, pass_everything};
use crate::lab::{CLIENT, Kind, Lab};

pub(super) const CASES: &[Case] = &[
    ("nodes_xdp_ipip_and_xdp_gue", |context| pair(context, [XDP_IPIP, XDP_GUE])),
    ("nodes_xdp_ipip_and_tc_gue", |context| pair(context, [XDP_IPIP, TC_GUE])),
    ("nodes_xdp_gue_and_tc_ipip", |context| pair(context, [XDP_GUE, TC_IPIP])),
    ("nodes_tc_ipip_and_tc_gue", |context| pair(context, [TC_IPIP, TC_GUE])),
    ("nodes_xdp_ipip_and_tc_without_dsr", |context| pair(context, [XDP_IPIP, TC])),
    ("nodes_xdp_gue_and_xdp_without_dsr", |context| pair(context, [XDP_GUE, XDP])),
    ("nodes_tc_ipip_and_xdp_without_dsr", |context| pair(context, [TC_IPIP, XDP])),
    ("nodes_tc_gue_and_tc_without_dsr", |context| pair(context, [TC_GUE, TC])),
];

/// On a cluster that differs in settings only, a few of them: a pair takes most of a minute.
pub(super) const HOSTILE: &[Case] = &[
    ("nodes_xdp_ipip_and_tc_gue", |context| pair(context, [XDP_IPIP, TC_GUE])),
    ("nodes_xdp_gue_and_xdp_without_dsr", |context| pair(context, [XDP_GUE, XDP])),
    ("nodes_tc_ipip_and_xdp_without_dsr", |context| pair(context, [TC_IPIP, XDP])),
];

/// Pods of other nodes over VXLAN, which XDP does not send by: an outer header needs no route to them.
pub(super) const OVERLAY: &[Case] = &[
    ("nodes_xdp_ipip_and_tc_gue", |context| pair(context, [XDP_IPIP, TC_GUE])),
    ("nodes_xdp_gue_and_tc_without_dsr", |context| pair(context, [XDP_GUE, TC])),
];

/// How a node's agent is started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct How {
    xdp: bool,
    /// Value of `--dsr`; empty: an agent without it.
    dsr: &'static str,
}

const TC: How = How { xdp: false, dsr: "" };
const TC_IPIP: How = How { xdp: false, dsr: "ipip" };
const TC_GUE: How = How { xdp: false, dsr: "gue" };
const XDP: How = How { xdp: true, dsr: "" };
const XDP_IPIP: How = How { xdp: true, dsr: "ipip" };
const XDP_GUE: How = How { xdp: true, dsr: "gue" };

impl How {
    fn flags(self) -> Vec<String> {
        let xdp = self.xdp.then(|| "--xdp=eth0".to_owned());
        let dsr = (!self.dsr.is_empty()).then(|| format!("--dsr={}", self.dsr));
        xdp.into_iter().chain(dsr).collect()
    }
}

/// The Services whose pod is on this node: as agents do it, and by SNAT in any case.
fn numbers(node: usize) -> [u32; 2] {
    [[42, 44], [43, 45]][node]
}

fn pod(node: usize) -> &'static str {
    ["p1a", "p2a"][node]
}

/// External addresses of a Service.
fn external(number: u32) -> [SocketAddr; 3] {
    [
        address(&format!("198.51.100.{number}"), 80),
        address(&format!("203.0.113.{number}"), 80),
        address(&format!("2001:db8:203::{number}"), 80),
    ]
}

fn declare(lab: &Lab) -> Result<()> {
    for node in [0, 1] {
        for (number, snat) in numbers(node).into_iter().zip([false, true]) {
            let [ip4, lb4, lb6] = external(number).map(|to| to.ip().to_string());
            let name = format!("nodes-{number}");
            let declared = Service {
                name: name.clone(),
                external_ips: vec![ip4],
                lb_ips: vec![lb4, lb6],
                annotations: snat.then(|| "lb-agent.io/forwarding: snat".to_owned()).into_iter().collect(),
                ..service(number, &name)
            };
            lab.service(&declared, &[pod(node)])?;
        }
    }
    Ok(())
}

/// Starts both agents anew and waits until each knows the other.
fn start(context: &mut Context, hows: [How; 2]) -> Result<()> {
    let agent = context.agent.clone();
    let nodes = &mut context.lab.nodes;
    for node in nodes.iter_mut().filter(|node| node.has_agent()) {
        node.stop_agent(libc::SIGTERM)?;
    }
    for (node, how) in nodes.iter_mut().zip(hows) {
        node.extra = how.flags();
        node.spawn_agent(&agent)?;
    }
    nodes.iter_mut().try_for_each(|node| node.wait_healthy())?;
    let begin = Instant::now();
    for (at, how) in hows.into_iter().enumerate() {
        let other = hows[1 - at];
        let said = match (how.dsr, other.dsr) {
            ("", _) => "",
            (_, "") => "no agent with DSR",
            _ => "takes",
        };
        loop {
            let told = status(&mut context.lab, at)?;
            let want = if how.xdp { serde_json::json!(["eth0"]) } else { serde_json::json!([]) };
            if told["dsrPeers"].to_string().contains(said) && told["xdp"] == want {
                break;
            }
            ensure!(
                begin.elapsed() < Duration::from_secs(30),
                "node {}: XDP on {} ({}), of others: {}",
                at + 1,
                told["xdp"],
                told["xdpRefused"],
                told["dsrPeers"]
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    Ok(())
}

fn status(lab: &mut Lab, node: usize) -> Result<Value> {
    let answer = lab.nodes[node].http("127.0.0.1:10249", "/status")?;
    serde_json::from_str(&answer.text).with_context(|| format!("{answer:?}"))
}

type Counts = [BTreeMap<String, u64>; 2];

/// The counters of both nodes, as of now (agents publish them once a second).
fn counters(lab: &mut Lab) -> Result<Counts> {
    std::thread::sleep(Duration::from_millis(1200));
    let mut read = |node| -> Result<BTreeMap<String, u64>> {
        let status = status(lab, node)?;
        let counters = status["counters"].as_object().context("no counters")?;
        Ok(counters.iter().map(|(name, value)| (name.clone(), value.as_u64().unwrap_or(0))).collect())
    };
    Ok([read(0)?, read(1)?])
}

/// What both nodes have counted since.
fn risen(lab: &mut Lab, before: &Counts) -> Result<Counts> {
    let mut now = counters(lab)?;
    for (now, before) in now.iter_mut().zip(before) {
        for (name, value) in now.iter_mut() {
            *value -= before.get(name).copied().unwrap_or(0).min(*value);
        }
        now.retain(|_, value| *value != 0);
    }
    Ok(now)
}

/// The client's routes to all that is not on the fabric lead to this node.
fn route(lab: &Lab, node: usize) -> Result<()> {
    let [four, six] = &lab.nodes[node].addresses;
    let lines = ["203.0.113.0/24", "198.51.100.0/24", "10.96.0.0/16", "2001:db8:203::/64", "fd96::/112"]
        .map(|range| format!("route replace {range} via {}", if range.contains(':') { six } else { four }));
    ip(&format!("{}-client", lab.tag), &lines)
}

fn unroute(lab: &Lab) -> Result<()> {
    route(lab, 0)?;
    let lines = ["10.96.0.0/16", "fd96::/112"].map(|range| format!("route delete {range}"));
    ip(&format!("{}-client", lab.tag), &lines)
}

/// One that a client may dial: the TCP and the UDP address.
type Frontend = (SocketAddr, SocketAddr);

/// The NodePorts of a Service on a node's addresses.
fn node_ports(lab: &Lab, node: usize, number: u32) -> Vec<Frontend> {
    let port = node_port(number);
    lab.nodes[node].addresses.iter().map(|ip| (address(ip, port), address(ip, port + 1))).collect()
}

fn vip_frontends(list: &[SocketAddr]) -> impl Iterator<Item = Frontend> {
    list.iter().map(|to| (*to, *to))
}

/// Bytes of a transfer, there and back.
const BYTES: usize = 256 << 10;
/// Flows of [`exchanges`] for a frontend.
const FLOWS: u64 = 5;

/// Talks to each of these in all ways; the pod must see one of these addresses as its client.
fn exchanges(context: &mut Context, frontends: &[Frontend], pod: &str, seen: &[String]) -> Result<()> {
    for (tcp, udp) in frontends {
        let (tcp, udp) = (*tcp, *udp);
        let id = format!("nodes {tcp}");
        let asks = [
            (Ask::Http { to: tcp, path: "/".into(), mapped: false }, Some(tcp)),
            (Ask::Udp { to: udp, connected: true, mapped: false }, Some(udp)),
            (Ask::Udp { to: udp, connected: false, mapped: false }, Some(udp)),
            (Ask::Open { id: id.clone(), to: tcp }, Some(tcp)),
        ];
        for (ask, to) in asks {
            let answer = context.ask(Side::Client, &ask)?;
            let whom: Option<SocketAddr> = answer.field("peer").and_then(|peer| peer.parse().ok());
            let Some(whom) = whom else { bail!("{ask:?}: {answer:?}") };
            ensure!(
                answer.pod() == Some(pod) && (answer.peer == to || answer.from == to),
                "{ask:?}: {answer:?}"
            );
            ensure!(
                seen.contains(&whom.ip().to_string()),
                "{ask:?}: the pod saw {whom}, not one of {seen:?}"
            );
        }
        for text in ["one", "two", "three"] {
            let answer = context.ask(Side::Client, &Ask::Say { id: id.clone(), text: text.into() })?;
            ensure!(answer.error.is_none() && answer.text == text, "{text} over {id}: {answer:?}");
        }
        context.ask(Side::Client, &Ask::Close { id })?;
        let bulk = context.ask(Side::Client, &Ask::Bulk { to: tcp, bytes: BYTES })?;
        ensure!(bulk.error.is_none(), "{BYTES} bytes there and back by {tcp}: {bulk:?}");
    }
    Ok(())
}

/// Runs [`exchanges`] and compares what the nodes counted meanwhile with this: (which of the two, counter, least, most).
fn expect(
    context: &mut Context,
    what: &str,
    frontends: &[Frontend],
    pod: &str,
    seen: &[String],
    wanted: &[(usize, &str, u64, u64)],
) -> Result<()> {
    let before = counters(&mut context.lab)?;
    exchanges(context, frontends, pod, seen).with_context(|| what.to_owned())?;
    let rose = risen(&mut context.lab, &before)?;
    for (node, name, least, most) in wanted {
        let value = rose[*node].get(*name).copied().unwrap_or(0);
        ensure!(
            (*least..=*most).contains(&value),
            "{what}: {name} of node {} rose by {value}, not {least} to {most}; all: {rose:?}",
            node + 1
        );
    }
    Ok(())
}

/// From a client by `first` to the pods of the other node, and to its own.
fn direction(context: &mut Context, hows: [How; 2], first: usize) -> Result<()> {
    const ANY: u64 = u64::MAX;
    let (other, how) = (1 - first, hows[first]);
    let lab = &context.lab;
    route(lab, first)?;
    let overlay = lab.kind == Kind::Overlay;
    let client = CLIENT.map(String::from);
    let mut own = lab.nodes[first].addresses.to_vec();
    // the masquerade takes an address of the interface that it leaves by
    own.extend([format!("10.77.{}.0", first + 1), format!("fd77:0:0:{}::", first + 1)]);
    let [number, snat_number] = numbers(other);
    let mut direct = node_ports(lab, first, number);
    direct.extend(vip_frontends(&external(number)));
    let mut snat = node_ports(lab, first, snat_number);
    snat.extend(vip_frontends(&external(snat_number)));
    snat.extend(vip_frontends(&vips(number))); // a routed ClusterIP is nothing for DSR
    let here = node_ports(lab, first, numbers(first)[0]);
    let flows = |frontends: &[Frontend]| FLOWS * frontends.len() as u64;
    // segments of a client, at least
    let packets = |frontends: &[Frontend]| frontends.len() as u64 * (BYTES as u64 / 1460);

    // whatever has to be found (neighbours), and the agents' plans that follow, are there behind it
    for (tcp, _) in direct.iter().chain(&snat) {
        let answer = context.http(Side::Client, *tcp)?;
        ensure!(answer.error.is_none(), "{tcp}: {answer:?}");
    }
    std::thread::sleep(Duration::from_millis(1500));

    let by_snat = |frontends: &[Frontend], xdp: bool| {
        let (flows, packets) = (flows(frontends), packets(frontends));
        let [xdp_flows, xdp_sent, tc] =
            if xdp { [(flows, ANY), (2 * packets, ANY), (0, 0)] } else { [(0, 0), (0, 0), (flows, ANY)] };
        vec![
            (first, "xdp_flows", xdp_flows.0, xdp_flows.1),
            (first, "xdp_sent", xdp_sent.0, xdp_sent.1),
            (first, "new_flows", tc.0, tc.1),
            (first, "snat_flows", tc.0, tc.1),
            (first, "dsr_flows", 0, 0),
            (other, "dsr_received", 0, 0),
        ]
    };
    if how.dsr.is_empty() || hows[other].dsr.is_empty() {
        let wanted = by_snat(&direct, how.xdp && !overlay);
        expect(context, "DSR that can't be", &direct, pod(other), &own, &wanted)?;
    } else {
        let (flows, packets) = (flows(&direct), packets(&direct));
        let wanted = [
            (first, "dsr_flows", flows, ANY),
            (first, "dsr_sent", packets, ANY),
            (first, "xdp_flows", 0, 0),
            (first, "xdp_sent", if how.xdp { packets } else { 0 }, if how.xdp { ANY } else { 0 }),
            (first, "snat_flows", 0, 0),
            (first, "new_flows", 0, 0),
            (other, "dsr_received", packets, ANY),
            (other, "new_flows", flows, ANY),
            (other, "snat_flows", 0, 0),
        ];
        expect(context, "DSR", &direct, pod(other), &client, &wanted)?;
        // a full one has no room for an outer header, at either hook
        let namespace = format!("{}-client", context.lab.tag);
        forget(&namespace)?; // over VXLAN other packets were told a size before
        let before = counters(&mut context.lab)?;
        for (_, udp) in &direct[..2] {
            let answer = context.ask(Side::Client, &packet(*udp, 1500, 0))?;
            let from = Some(context.lab.nodes[first].addresses[usize::from(udp.is_ipv6())].as_str());
            ensure_error("a datagram that does not fit", &answer, "too big", *udp, from)?;
        }
        forget(&namespace)?;
        let rose = risen(&mut context.lab, &before)?;
        ensure!(rose[first].get("dsr_too_big") == Some(&2), "{rose:?}");
    }
    let wanted = by_snat(&snat, how.xdp && !overlay);
    expect(context, "SNAT", &snat, pod(other), &own, &wanted)?;
    let wanted = [
        (first, "new_flows", flows(&here), ANY),
        (first, "xdp_flows", 0, 0),
        (first, "dsr_flows", 0, 0),
        (first, "snat_flows", 0, 0),
        (other, "new_flows", 0, 0),
    ];
    expect(context, "a pod of that node", &here, pod(first), &client, &wanted)
}

/// Nothing is reset while XDP is taken off and put back at the nodes that have it.
fn under_traffic(context: &mut Context, hows: [How; 2]) -> Result<()> {
    let with_xdp: Vec<usize> = (0..2).filter(|node| hows[*node].xdp).collect();
    if with_xdp.is_empty() {
        return Ok(());
    }
    let mut targets = Vec::new();
    for first in [0, 1] {
        let (other, [near, _]) = (1 - first, numbers(first));
        for (number, pod) in numbers(other).map(|n| (n, pod(other))).into_iter().chain([(near, pod(first))]) {
            let ports = node_ports(&context.lab, first, number);
            targets.extend(ports.into_iter().map(|(tcp, udp)| Target { tcp, udp, pods: vec![pod.into()] }));
        }
    }
    let before = counters(&mut context.lab)?;
    let agent = context.agent.clone();
    // what is in flight on a veth while a program comes or goes is lost: datagrams are not sent again
    let may_be_lost = (targets.len() * 2 * with_xdp.len()) as u64;
    let loads = [(Side::Client, Load { targets, rate: 60 })];
    let tally = under(&mut context.lab, &loads, Duration::from_secs(8), |lab| {
        for at in &with_xdp {
            for xdp in [false, true] {
                let node = &mut lab.nodes[*at];
                node.stop_agent(libc::SIGTERM)?;
                node.extra = How { xdp, ..hows[*at] }.flags();
                node.start_agent(&agent)?;
                std::thread::sleep(Duration::from_secs(1));
            }
        }
        Ok(())
    })?;
    println!("        {tally}");
    tally.unharmed(may_be_lost)?;
    let rose = risen(&mut context.lab, &before)?;
    for node in with_xdp {
        let names: &[&str] =
            if context.lab.kind == Kind::Overlay { &[] } else { &["xdp_sent", "xdp_completed_at_tc"] };
        for name in names {
            ensure!(rose[node].contains_key(*name), "{name} of node {} did not rise: {rose:?}", node + 1);
        }
    }
    Ok(())
}

fn pair(context: &mut Context, hows: [How; 2]) -> Result<()> {
    let tag = context.lab.tag.clone();
    let fabric = format!("{tag}-fabric");
    for port in ["port-node1", "port-node2"] {
        if !run_in(&fabric, &["ip", "link", "show", port], "")?.contains("xdp") {
            let bpffs = context.lab.nodes[0].bpffs.clone();
            pass_everything(&fabric, port, &bpffs)?;
        }
    }
    for namespace in context.lab.namespaces() {
        full_checksums(&namespace, "eth0")?;
    }
    declare(&context.lab)?;
    start(context, hows)?;
    let done = (0..2)
        .try_for_each(|first| {
            let name = format!(
                "by node {} ({:?}) to node {} ({:?})",
                first + 1,
                hows[first],
                2 - first,
                hows[1 - first]
            );
            direction(context, hows, first).context(name)
        })
        .and_then(|()| under_traffic(context, hows));
    unroute(&context.lab)?;
    start(context, [TC; 2])?;
    done
}
