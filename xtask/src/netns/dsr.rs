//! DSR on two nodes: the client's address arrives, and answers leave from the backend's node.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::errors::{ensure_error, forget, learnt, packet};
use super::{Case, Context, OUTSIDE, REMOTE, Side, WEB, address, node_port};
use crate::lab::netns::run_in;
use crate::lab::traffic::{Load, Target, under};
use crate::lab::worker::Ask;
use crate::lab::{CLIENT, Kind, Lab};

pub(super) const CASES: &[Case] = &[
    ("dsr_by_ipip_keeps_the_client_and_answers_straight", ipip),
    ("dsr_by_gue_keeps_the_client_and_answers_straight", gue),
    ("dsr_leaves_a_node_without_it_to_snat", mixed),
    ("dsr_survives_restarts_and_an_upgrade_under_traffic", comes_under_traffic),
];

/// MTU of pods over the overlay.
const POD_MTU: usize = 1450;
/// Bytes of a transfer, there and back.
const BYTES: usize = 8 << 20;

/// Starts a node's agent anew with `--dsr` of this value; `off`: without the flag.
fn restart(lab: &mut Lab, agent: &Path, node: usize, dsr: &str, signal: libc::c_int) -> Result<()> {
    let node = &mut lab.nodes[node];
    node.stop_agent(signal)?;
    node.extra = if dsr == "off" { Vec::new() } else { vec![format!("--dsr={dsr}")] };
    node.start_agent(agent)
}

fn status(lab: &mut Lab, node: usize) -> Result<Value> {
    let answer = lab.nodes[node].http("127.0.0.1:10249", "/status")?;
    serde_json::from_str(&answer.text).with_context(|| format!("{answer:?}"))
}

/// Waits until a node's agent says this of the others.
fn knows(lab: &mut Lab, node: usize, what: &str) -> Result<()> {
    let begin = Instant::now();
    loop {
        let peers = status(lab, node)?["dsrPeers"].to_string();
        if peers.contains(what) {
            // and its tables follow
            std::thread::sleep(Duration::from_millis(1500));
            return Ok(());
        }
        ensure!(begin.elapsed() < Duration::from_secs(20), "node {} says {peers}, not {what:?}", node + 1);
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A counter of a node, as of now (the agent publishes them once a second).
fn counter(lab: &mut Lab, node: usize, name: &str) -> Result<u64> {
    std::thread::sleep(Duration::from_millis(1200));
    let status = status(lab, node)?;
    status["counters"][name].as_u64().with_context(|| format!("no counter {name}"))
}

/// Bytes that have come in by a node's uplink.
fn received(lab: &Lab, node: usize) -> Result<u64> {
    let text = run_in(&lab.nodes[node].namespace, &["ip", "-j", "-s", "link", "show", "eth0"], "")?;
    let links: Value = serde_json::from_str(&text)?;
    links[0]["stats64"]["rx"]["bytes"].as_u64().with_context(|| text)
}

fn everywhere(context: &mut Context, dsr: &str) -> Result<()> {
    let agent = context.agent.clone();
    for node in [0, 1] {
        restart(&mut context.lab, &agent, node, dsr, libc::SIGTERM)?;
    }
    if dsr == "off" {
        return Ok(());
    }
    knows(&mut context.lab, 0, "node2: takes")?;
    knows(&mut context.lab, 1, "node1: takes")
}

fn ipip(context: &mut Context) -> Result<()> {
    everywhere(context, "ipip")?;
    let done = exchanges(context, [20, 40]);
    everywhere(context, "off")?;
    done
}

fn gue(context: &mut Context) -> Result<()> {
    everywhere(context, "gue")?;
    let done = exchanges(context, [28, 48]);
    everywhere(context, "off")?;
    done
}

/// What a client sees, and the server, and what passes node 1; `overhead` is that of an outer header of each family.
fn exchanges(context: &mut Context, overhead: [usize; 2]) -> Result<()> {
    let client = format!("{}-client", context.lab.tag);
    for family in [0, 1] {
        let node = context.lab.nodes[0].addresses[family].clone();
        let (tcp, udp) = (address(&node, node_port(REMOTE)), address(&node, node_port(REMOTE) + 1));
        let lab = &mut context.lab;
        let names =
            [(0, "dsr_flows"), (0, "dsr_sent"), (1, "dsr_received"), (0, "snat_flows"), (1, "snat_flows")];
        let mut before = Vec::new();
        for (node, name) in names {
            before.push(counter(lab, node, name)?);
        }
        context.all_protocols(Side::Client, tcp, udp, &["p2a"])?;
        for ask in [
            Ask::Http { to: tcp, path: "/".into(), mapped: false },
            Ask::Udp { to: udp, connected: true, mapped: false },
        ] {
            let answer = context.ask(Side::Client, &ask)?;
            let peer: std::net::SocketAddr = answer.field("peer").unwrap_or_default().parse()?;
            ensure!(peer.ip().to_string() == CLIENT[family], "the server sees {peer}: {answer:?}");
        }
        // a large transfer, with offloads as they are: it passes node 1 in one direction
        forget(&client)?;
        let passed = received(&context.lab, 0)?;
        let bulk = context.ask(Side::Client, &Ask::Bulk { to: tcp, bytes: BYTES })?;
        ensure!(
            bulk.error.is_none() && bulk.millis < 20_000,
            "{BYTES} bytes there and back by {tcp}: {bulk:?}"
        );
        let passed = (received(&context.lab, 0)? - passed) as usize;
        ensure!(
            (BYTES..BYTES + BYTES / 2).contains(&passed),
            "{passed} bytes came in at node 1 for {BYTES} in each direction"
        );
        println!("        {tcp}: {BYTES} bytes there and back in {} ms, {passed} by node 1", bulk.millis);
        // what does not fit
        forget(&client)?;
        let mut fits = 1500 - overhead[family];
        let answer = context.ask(Side::Client, &packet(udp, 1500, 0))?;
        ensure_error("a datagram that does not fit", &answer, "too big", udp, Some(&node))?;
        let mtu = learnt(&client, &node)? as usize;
        ensure!(mtu == fits, "the client knows a path MTU of {mtu}, not {fits}");
        if context.lab.kind == Kind::Overlay && fits > POD_MTU {
            // the backend's node says so, and names the frontend
            let answer = context.ask(Side::Client, &packet(udp, fits, 0))?;
            ensure_error("a datagram that does not fit the pod", &answer, "too big", udp, Some(&node))?;
            fits = POD_MTU;
        }
        let answer = context.ask(Side::Client, &packet(udp, fits, 0))?;
        ensure!(answer.pod() == Some("p2a"), "a datagram that fits: {answer:?}");
        forget(&client)?;
        if context.lab.kind == Kind::Overlay {
            // a first one is lost for IPv6, and teaches the client what the overlay takes
            context.ask(Side::Client, &Ask::BigUdp { to: udp, bytes: 4000 })?;
        }
        // one in fragments is no DSR flow from its first packet on
        let big = context.ask(Side::Client, &Ask::BigUdp { to: udp, bytes: 4000 })?;
        ensure!(big.error.is_none(), "fragments: {big:?}");
        let mut rose = Vec::new();
        for ((node, name), old) in names.into_iter().zip(before) {
            rose.push(counter(&mut context.lab, node, name)? - old);
        }
        ensure!(rose[0] >= 7 && rose[1] > 100 && rose[2] > 100, "{names:?} rose by {rose:?}");
        ensure!(
            (1..=2).contains(&rose[3]) && rose[4] == 0,
            "{names:?} rose by {rose:?}: only fragments are for SNAT"
        );
    }
    // addresses of Services, and Services with backends on both nodes
    for vip in ["198.51.100.10", "203.0.113.10", "2001:db8:203::10"] {
        let to = address(vip, 80);
        context
            .all_protocols(Side::Client, to, to, &["p1a", "p2a"])
            .with_context(|| format!("{vip} {OUTSIDE}"))?;
    }
    for node in context.lab.nodes[0].addresses.clone() {
        let (tcp, udp) = (address(&node, node_port(WEB)), address(&node, node_port(WEB) + 1));
        context.all_protocols(Side::Client, tcp, udp, &["p1a", "p2a"])?;
        // pods and nodes are not outside
        context.all_protocols(Side::Pod("p1b"), tcp, udp, &["p1a", "p2a"])?;
        context.all_protocols(Side::Pod("p2b"), tcp, udp, &["p1a", "p2a"])?;
        context.all_protocols(Side::Node(0), tcp, udp, &["p1a", "p2a"])?;
        context.all_protocols(Side::Node(1), tcp, udp, &["p1a", "p2a"])?;
    }
    for node in [0, 1] {
        let unknown = counter(&mut context.lab, node, "drop_dsr_unknown")?;
        ensure!(unknown == 0, "node {} dropped {unknown} packets of the other", node + 1);
    }
    Ok(())
}

/// Node 2 runs without DSR: its agent does not know the question, and sources are replaced.
fn mixed(context: &mut Context) -> Result<()> {
    let agent = context.agent.clone();
    restart(&mut context.lab, &agent, 0, "ipip", libc::SIGTERM)?;
    let done = knows(&mut context.lab, 0, "node2: sources of packets to it are replaced").and_then(|()| {
        let before = counter(&mut context.lab, 0, "dsr_flows")?;
        for node in context.lab.nodes[0].addresses.clone() {
            let to = address(&node, node_port(REMOTE));
            context.all_protocols(Side::Client, to, address(&node, node_port(REMOTE) + 1), &["p2a"])?;
            let answer = context.http(Side::Client, to)?;
            let peer: std::net::SocketAddr = answer.field("peer").unwrap_or_default().parse()?;
            ensure!(!CLIENT.contains(&peer.ip().to_string().as_str()), "the server sees the client: {peer}");
        }
        let after = counter(&mut context.lab, 0, "dsr_flows")?;
        ensure!(after == before, "{} flows went by DSR", after - before);
        Ok(())
    });
    restart(&mut context.lab, &agent, 0, "off", libc::SIGTERM)?;
    done
}

/// Transfers, short connections and datagrams, while node 2 gets DSR and both agents are restarted and killed.
fn comes_under_traffic(context: &mut Context) -> Result<()> {
    let agent = context.agent.clone();
    restart(&mut context.lab, &agent, 0, "gue", libc::SIGTERM)?;
    knows(&mut context.lab, 0, "node2: sources of packets to it are replaced")?;
    let mut targets = Vec::new();
    for (number, pods) in [(REMOTE, vec!["p2a"]), (WEB, vec!["p1a", "p2a"])] {
        let port = node_port(number);
        targets.extend(context.lab.nodes[0].addresses.iter().map(|ip| Target {
            tcp: address(ip, port),
            udp: address(ip, port + 1),
            pods: pods.iter().map(|pod| (*pod).to_owned()).collect(),
        }));
    }
    let before = counter(&mut context.lab, 0, "dsr_flows")?;
    let loads = [(Side::Client, Load { targets, rate: 60 })];
    let tally = under(&mut context.lab, &loads, Duration::from_secs(30), |lab| {
        restart(lab, &agent, 1, "gue", libc::SIGTERM)?;
        knows(lab, 0, "node2: takes")?;
        std::thread::sleep(Duration::from_secs(2));
        restart(lab, &agent, 1, "gue", libc::SIGKILL)?;
        restart(lab, &agent, 0, "gue", libc::SIGKILL)?;
        knows(lab, 0, "node2: takes")
    })?;
    println!("        {tally}");
    let flows = counter(&mut context.lab, 0, "dsr_flows")? - before;
    everywhere(context, "off")?;
    ensure!(flows > 100, "only {flows} flows went by DSR");
    // an agent that was killed leaves the kernel as it is; nothing is to be lost
    tally.unharmed(5)
}
