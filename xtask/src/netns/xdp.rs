//! Two nodes, the first with XDP on its uplink: what goes to pods of the second is sent on in front of the stack.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::{Case, Context, LOCAL, OUTSIDE, REMOTE, Side, WEB, address, node_port, vips};
use crate::lab::Lab;
use crate::lab::netns::{ip, run_in};
use crate::lab::traffic::{Load, Target, under};
use crate::lab::worker::Ask;
use crate::lab::xdp::{full_checksums, pass_everything, take_off};

pub(super) const CASES: &[Case] = &[
    ("xdp_sends_on_what_goes_to_another_node", sends_on),
    ("xdp_follows_its_neighbours", follows_neighbours),
    ("xdp_comes_and_goes_under_traffic", comes_and_goes),
    ("xdp_leaves_an_interface_with_another_program_to_tc", refused),
];

/// Where replies may come by another link than requests.
pub(super) const FRIENDLY: &[Case] = &[("xdp_follows_routes_rules_and_links", follows_routes)];

/// The node's addresses of both families with a port.
fn on_node(context: &Context, port: u16) -> Vec<std::net::SocketAddr> {
    context.lab.nodes[0].addresses.iter().map(|ip| address(ip, port)).collect()
}

/// Stops node 1's agent and starts it with `--xdp` of this value.
fn restart(lab: &mut Lab, agent: &std::path::Path, xdp: &str) -> Result<()> {
    let node = &mut lab.nodes[0];
    node.stop_agent(libc::SIGTERM)?;
    node.extra = vec![format!("--xdp={xdp}")];
    node.start_agent(agent)
}

/// Makes the veth devices fit for native XDP and starts node 1's agent with it.
fn with_xdp(context: &mut Context) -> Result<()> {
    let tag = context.lab.tag.clone();
    let fabric = format!("{tag}-fabric");
    if !run_in(&fabric, &["ip", "link", "show", "port-node1"], "")?.contains("xdp") {
        let bpffs = context.lab.nodes[0].bpffs.clone();
        pass_everything(&fabric, "port-node1", &bpffs)?;
        for namespace in context.lab.namespaces() {
            full_checksums(&namespace, "eth0")?;
        }
        // and the sides of the pods' links that the nodes send by are no concern: nothing with XDP is behind them
    }
    let agent = context.agent.clone();
    restart(&mut context.lab, &agent, "eth0")?;
    let status = status(context)?;
    ensure!(status["xdp"] == serde_json::json!(["eth0"]), "XDP is not on eth0: {}", status["xdpRefused"]);
    // both ends of what follows are known as neighbours by now, or are about to be
    for to in on_node(context, node_port(REMOTE)) {
        let asked = context.http(Side::Client, to)?;
        ensure!(asked.error.is_none(), "{asked:?}");
    }
    std::thread::sleep(Duration::from_millis(1500));
    Ok(())
}

fn status(context: &mut Context) -> Result<serde_json::Value> {
    let answer = context.lab.nodes[0].http("127.0.0.1:10249", "/status")?;
    serde_json::from_str(&answer.text).with_context(|| format!("{answer:?}"))
}

/// A counter of node 1, as of now (the agent publishes them once a second).
fn counter(context: &mut Context, name: &str) -> Result<u64> {
    std::thread::sleep(Duration::from_millis(1200));
    let status = status(context)?;
    let counters = &status["counters"];
    counters[name].as_u64().with_context(|| format!("no counter {name}: {counters}"))
}

fn sends_on(context: &mut Context) -> Result<()> {
    with_xdp(context)?;
    let route = |words: &str| {
        [
            format!("route {words} 10.96.0.0/16 via 192.0.2.11"),
            format!("route {words} fd96::/112 via 2001:db8:1::11"),
        ]
    };
    ip(&format!("{}-client", context.lab.tag), &route("add"))?;
    let before = (counter(context, "xdp_flows")?, counter(context, "xdp_sent")?);
    let mut exchanges = 0;
    for to in on_node(context, node_port(REMOTE)) {
        let udp = address(&to.ip().to_string(), to.port() + 1);
        context.all_protocols(Side::Client, to, udp, &["p2a"])?;
        let bulk = context.ask(Side::Client, &Ask::Bulk { to, bytes: 1 << 20 })?;
        ensure!(bulk.error.is_none(), "a megabyte there and back: {bulk:?}");
        exchanges += 4;
    }
    for to in vips(REMOTE) {
        context.all_protocols(Side::Client, to, to, &["p2a"]).context("routed ClusterIP")?;
        exchanges += 3;
    }
    let (flows, sent) = (counter(context, "xdp_flows")?, counter(context, "xdp_sent")?);
    ensure!(flows - before.0 >= exchanges, "{} of {exchanges} flows began at XDP", flows - before.0);
    // a megabyte either way, both families, in segments of at most 1448 bytes
    ensure!(sent - before.1 > 2800, "only {} packets were sent on by XDP", sent - before.1);

    // what is XDP's in part, and what is not at all
    for vip in ["198.51.100.10", "203.0.113.10", "2001:db8:203::10"] {
        let to = address(vip, 80);
        context.all_protocols(Side::Client, to, to, &["p1a", "p2a"]).with_context(|| vip.to_owned())?;
    }
    for to in on_node(context, node_port(WEB)) {
        let udp = address(&to.ip().to_string(), to.port() + 1);
        context.all_protocols(Side::Client, to, udp, &["p1a", "p2a"])?;
    }
    let before = counter(context, "xdp_flows")?;
    for to in on_node(context, node_port(LOCAL)) {
        let udp = address(&to.ip().to_string(), to.port() + 1);
        context.all_protocols(Side::Client, to, udp, &["p1a"])?;
        let big = context.ask(Side::Client, &Ask::BigUdp { to: udp, bytes: 4000 })?;
        ensure!(big.error.is_none(), "fragments: {big:?}");
    }
    for vip in vips(REMOTE) {
        context.all_protocols(Side::Pod("p1b"), vip, vip, &["p2a"]).context("pods and their replies")?;
        context.all_protocols(Side::Node(0), vip, vip, &["p2a"]).context("the node itself")?;
    }
    let after = counter(context, "xdp_flows")?;
    ensure!(after == before, "{} flows of pods, or to them, began at XDP", after - before);
    // fragments of a datagram to another node: TC's, from the first one on
    for to in on_node(context, node_port(REMOTE) + 1) {
        let big = context.ask(Side::Client, &Ask::BigUdp { to, bytes: 4000 })?;
        ensure!(big.error.is_none(), "fragments to another node: {big:?}");
    }
    // the externalIP and the VIPs had remote backends, too
    ensure!(after > flows, "no flow to the VIPs began at XDP ({OUTSIDE})");
    ip(&format!("{}-client", context.lab.tag), &route("delete"))
}

/// Connections go on while the neighbour that XDP sends to is forgotten, found again, and changes its MAC address.
fn follows_neighbours(context: &mut Context) -> Result<()> {
    with_xdp(context)?;
    let node = context.lab.nodes[0].namespace.clone();
    let other = context.lab.nodes[1].namespace.clone();
    let mut ids = Vec::new();
    for to in on_node(context, node_port(REMOTE)) {
        let id = format!("neighbour {to}");
        let opened = context.ask(Side::Client, &Ask::Open { id: id.clone(), to })?;
        ensure!(opened.error.is_none(), "{opened:?}");
        ids.push(id);
    }
    let talk = |context: &mut Context, when: &str| -> Result<()> {
        for id in &ids {
            let answer = context.ask(Side::Client, &Ask::Say { id: id.clone(), text: when.into() })?;
            ensure!(answer.error.is_none() && answer.text == when, "{when}, {id}: {answer:?}");
        }
        Ok(())
    };
    talk(context, "before")?;
    run_in(&node, &["ip", "neigh", "flush", "dev", "eth0"], "")?;
    talk(context, "without neighbours")?;
    // a failover: another MAC address, told by nobody but the neighbour itself when it is asked
    ip(&other, &["link set eth0 address 02:00:00:00:22:22".into()])?;
    run_in(&node, &["ip", "neigh", "flush", "dev", "eth0"], "")?;
    talk(context, "another address")?;
    let begin = Instant::now();
    loop {
        let before = counter(context, "xdp_sent")?;
        talk(context, "back at XDP")?;
        if counter(context, "xdp_sent")? > before {
            break;
        }
        ensure!(begin.elapsed() < Duration::from_secs(20), "the flows did not come back to XDP");
    }
    talk(context, "at last")
}

/// A second link between the nodes, and what goes by it: a connection that began at XDP follows routes, rules and links.
fn follows_routes(context: &mut Context) -> Result<()> {
    with_xdp(context)?;
    let node = context.lab.nodes[0].namespace.clone();
    let (other, bpffs) = (context.lab.nodes[1].namespace.clone(), context.lab.nodes[1].bpffs.clone());
    let tidy = |what: &str| ip(&node, &[format!("link {what} eth1")]);
    ip(&node, &[format!("link add eth1 type veth peer name eth1 netns {other}")])?;
    for (namespace, end) in [(&node, 1), (&other, 2)] {
        ip(
            namespace,
            &[
                format!("address add 10.99.0.{end}/24 dev eth1"),
                format!("address add fd99::{end}/64 dev eth1 nodad"),
                "link set eth1 up".into(),
            ],
        )?;
        full_checksums(namespace, "eth1")?;
    }
    pass_everything(&other, "eth1", &bpffs)?;
    let done = along_routes(context, &node, &other);
    tidy("delete")?;
    restart(&mut context.lab, &context.agent.clone(), "eth0")?;
    done
}

/// Packets that came in by eth1 of a namespace.
fn came_by_eth1(namespace: &str) -> Result<u64> {
    let text = run_in(namespace, &["ip", "-j", "-s", "link", "show", "eth1"], "")?;
    let links: serde_json::Value = serde_json::from_str(&text)?;
    links[0]["stats64"]["rx"]["packets"].as_u64().with_context(|| text.clone())
}

fn along_routes(context: &mut Context, node: &str, other: &str) -> Result<()> {
    let pods = context.lab.pod("p2a")?.addresses.clone();
    let mut ids = Vec::new();
    for to in on_node(context, node_port(REMOTE)) {
        let id = format!("route {to}");
        let opened = context.ask(Side::Client, &Ask::Open { id: id.clone(), to })?;
        ensure!(opened.error.is_none(), "{opened:?}");
        ids.push(id);
    }
    // Every connection says a line until packets come (`by_eth1`) or don't come by eth1, at most 4 s: a flow asks for
    // its route once a second, and the machine may be slow.
    let settle = |context: &mut Context, when: &str, by_eth1: bool| -> Result<()> {
        let begin = Instant::now();
        loop {
            let before = came_by_eth1(other)?;
            for id in &ids {
                let answer = context.ask(Side::Client, &Ask::Say { id: id.clone(), text: when.into() })?;
                ensure!(answer.error.is_none() && answer.text == when, "{when}, {id}: {answer:?}");
            }
            let came = came_by_eth1(other)? - before;
            // both connections; neighbours are asked for, too
            if if by_eth1 { came >= ids.len() as u64 } else { came == 0 } {
                println!("        {when}: after {} ms", begin.elapsed().as_millis());
                return Ok(());
            }
            ensure!(begin.elapsed() < Duration::from_secs(4), "{when}: {came} packets came by eth1");
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    let by = |context: &mut Context, sent: bool| -> Result<u64> {
        counter(context, if sent { "xdp_sent" } else { "xdp_completed_at_tc" })
    };
    let way = |verb: &str| -> [String; 2] {
        [
            format!("route {verb} {}/32 via 10.99.0.2 dev eth1", pods[0]),
            format!("route {verb} {}/128 via fd99::2 dev eth1", pods[1]),
        ]
    };
    let rules = |verb: &str| -> Result<()> {
        let tables = [
            format!("route {verb} default via 10.99.0.2 dev eth1 table 99"),
            format!("route {verb} default via fd99::2 dev eth1 table 99"),
        ];
        ip(node, &tables)?;
        for (family, to) in ["-4", "-6"].into_iter().zip(&pods) {
            run_in(node, &["ip", family, "rule", verb, "to", to, "lookup", "99", "pref", "99"], "")?;
        }
        Ok(())
    };
    settle(context, "as it was", false)?;
    // a way without XDP: TC sends what came to XDP
    let before = by(context, false)?;
    ip(node, &way("add"))?;
    settle(context, "a route by a link without XDP", true)?;
    ensure!(by(context, false)? > before, "nothing was completed at TC");
    ip(node, &way("delete"))?;
    settle(context, "that route is gone", false)?;

    let agent = context.agent.clone();
    restart(&mut context.lab, &agent, "eth0,eth1")?;
    let told = status(context)?;
    ensure!(
        told["xdp"] == serde_json::json!(["eth0", "eth1"]),
        "XDP is on {}: {}",
        told["xdp"],
        told["xdpRefused"]
    );
    ip(node, &way("add"))?;
    settle(context, "a route by another link", true)?;
    // TC makes the new neighbour known, then XDP sends again
    let begin = Instant::now();
    loop {
        let before = (by(context, true)?, by(context, false)?);
        settle(context, "by XDP to the other link", true)?;
        if by(context, true)? > before.0 && by(context, false)? == before.1 {
            break;
        }
        ensure!(begin.elapsed() < Duration::from_secs(20), "the flows did not come back to XDP");
    }
    ip(node, &way("delete"))?;
    settle(context, "back", false)?;
    rules("add")?;
    settle(context, "a rule", true)?;
    rules("delete")?;
    settle(context, "no rule", false)?;
    ip(node, &way("add"))?;
    settle(context, "the route again", true)?;
    ip(node, &["link set eth1 down".into()])?;
    settle(context, "that link is down", false)
}

/// Long transfers, short connections and datagrams, while XDP is taken off and put back three times.
fn comes_and_goes(context: &mut Context) -> Result<()> {
    with_xdp(context)?;
    let mut targets = Vec::new();
    for (number, pod) in [(LOCAL, "p1a"), (REMOTE, "p2a")] {
        let port = node_port(number);
        targets.extend(context.lab.nodes[0].addresses.iter().map(|ip| Target {
            tcp: address(ip, port),
            udp: address(ip, port + 1),
            pods: vec![pod.into()],
        }));
    }
    let before = (counter(context, "xdp_sent")?, counter(context, "xdp_completed_at_tc")?);
    let agent = context.agent.clone();
    let loads = [(Side::Client, Load { targets, rate: 60 })];
    let tally = under(&mut context.lab, &loads, Duration::from_secs(10), |lab| {
        for _ in 0..3 {
            for xdp in ["off", "eth0"] {
                restart(lab, &agent, xdp)?;
                std::thread::sleep(Duration::from_secs(1));
            }
        }
        Ok(())
    })?;
    println!("        {tally}");
    let after = (counter(context, "xdp_sent")?, counter(context, "xdp_completed_at_tc")?);
    println!("        sent on by XDP {}, completed at TC {}", after.0 - before.0, after.1 - before.1);
    // what is in flight on a veth while a program comes or goes is lost: datagrams are not sent again
    tally.unharmed(40)?;
    ensure!(after.0 > before.0 && after.1 > before.1, "both hooks should have had their part");
    Ok(())
}

fn refused(context: &mut Context) -> Result<()> {
    let agent = context.agent.clone();
    restart(&mut context.lab, &agent, "off")?;
    let (node, bpffs) = (context.lab.nodes[0].namespace.clone(), context.lab.nodes[0].bpffs.clone());
    let off = run_in(&node, &["ip", "link", "show", "eth0"], "")?;
    ensure!(!off.contains("xdp"), "XDP is still on eth0: {off}");
    pass_everything(&node, "eth0", &bpffs)?;
    restart(&mut context.lab, &agent, "eth0,none*")?;
    let told = status(context)?;
    let lines = told["xdpRefused"].to_string();
    ensure!(told["xdp"] == serde_json::json!([]), "XDP is said to be on {}", told["xdp"]);
    for text in ["eth0: no XDP", "another XDP program", "none*: --xdp names it"] {
        ensure!(lines.contains(text), "the status does not say {text:?}: {lines}");
    }
    let log = std::fs::read_to_string(&context.lab.nodes[0].log)?;
    ensure!(log.contains("another XDP program"), "the log does not say why");
    for to in on_node(context, node_port(REMOTE)) {
        let answer = context.http(Side::Client, to)?;
        ensure!(answer.pod() == Some("p2a"), "{answer:?}");
    }
    take_off(&node, "eth0")?;
    restart(&mut context.lab, &agent, "off")?;
    context.lab.nodes[0].extra.clear();
    Ok(())
}
