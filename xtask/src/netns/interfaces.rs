//! Interfaces and addresses of a node change while traffic flows.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::traffic::{loads, survive};
use super::{Case, Context, LOCAL, REMOTE, Side, address, node_port};
use crate::lab::netns::{ip, run_in};
use crate::lab::traffic::under;
use crate::lab::worker::Ask;
use crate::lab::{Lab, manifests};

pub(super) const CASES: &[Case] = &[
    ("b154_interfaces_come_go_and_change_under_traffic", interfaces),
    ("b154_an_uplink_becomes_a_bridge_port_under_traffic", uplink_in_a_bridge),
    ("b154_node_ports_follow_the_nodes_address_and_flows_stay", node_address),
    ("pins_removed_under_an_agent_are_put_back", pins),
];

fn status(lab: &mut Lab) -> Result<Value> {
    let answer = lab.nodes[0].http("127.0.0.1:10249", "/status")?;
    serde_json::from_str(&answer.text).with_context(|| format!("{answer:?}"))
}

/// Waits until the agent has programs on all of `there` and on none of `gone`, and nothing fails.
fn attached(lab: &mut Lab, there: &[&str], gone: &[&str]) -> Result<()> {
    let begin = Instant::now();
    loop {
        let status = status(lab)?;
        let names: Vec<&str> =
            status["interfaces"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let failures = &status["failures"];
        let right =
            there.iter().all(|name| names.contains(name)) && !gone.iter().any(|name| names.contains(name));
        if right && failures.as_array().is_some_and(Vec::is_empty) {
            return Ok(());
        }
        if begin.elapsed() > Duration::from_secs(10) {
            bail!("wanted {there:?} and not {gone:?}; the agent says {names:?}, failures {failures}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn interfaces(context: &mut Context) -> Result<()> {
    let node = context.lab.nodes[0].namespace.clone();
    let elsewhere = context.lab.pod("p2b")?.namespace.clone();
    let change = |line: &str| ip(&node, &line.split("; ").map(String::from).collect::<Vec<_>>());
    let act = |lab: &mut Lab| -> Result<()> {
        change("link add ifa type veth peer name ifb; link set ifa up; link set ifb up")?;
        attached(lab, &["ifa", "ifb"], &[]).context("a new pair")?;
        // Another name, at once and while it is up.
        change("link set ifa name ifnew")?;
        attached(lab, &["ifnew"], &["ifa"]).context("a new name")?;
        // Into another namespace and gone from this one; the number may be used again there.
        run_in(&node, &["ip", "link", "set", "ifnew", "netns", &format!("/run/netns/{elsewhere}")], "")?;
        attached(lab, &["ifb"], &["ifnew"]).context("moved into another namespace")?;
        change("link del ifb")?;
        attached(lab, &[], &["ifb"]).context("deleted")?;
        // A bridge gets its first port, a second one, and loses both.
        change(
            "link add ifbr type bridge; link set ifbr up; link add ifp type veth peer name ifq; link set ifp up",
        )?;
        change("link set ifp master ifbr; link set ifq master ifbr")?;
        attached(lab, &["ifp", "ifq"], &["ifbr"]).context("ports of a bridge")?;
        change("link set ifp nomaster; link set ifq nomaster; link del ifbr")?;
        attached(lab, &["ifp", "ifq"], &["ifbr"]).context("no ports any more")?;
        // A bond takes them.
        if change("link add ifbond type bond mode active-backup").is_ok() {
            change("link set ifp down; link set ifp master ifbond; link set ifbond up")?;
            attached(lab, &["ifbond", "ifq"], &["ifp"]).context("a bond")?;
            change("link del ifbond")?;
            attached(lab, &["ifp", "ifq"], &["ifbond"]).context("no bond any more")?;
        } else {
            println!("        this kernel has no bonds: that part is left out");
        }
        change("link del ifp")?;
        // Gone before the agent can attach to them.
        for round in 0..40 {
            change(&format!("link add flap{round} type veth peer name palf{round}"))?;
            std::thread::sleep(Duration::from_millis(round % 7 * 9));
            change(&format!("link del flap{round}"))?;
        }
        attached(lab, &["eth0"], &["flap39", "ifp"]).context("after the flapping")
    };
    let failed =
        |lab: &mut Lab| -> Result<u64> { status(lab)?["failedApplies"].as_u64().context("a number") };
    let before = failed(&mut context.lab)?;
    survive(context, Duration::from_secs(10), 0, act)?;
    let after = failed(&mut context.lab)?;
    ensure!(after == before, "an interface that vanished counted as a failure: {before} -> {after}");
    Ok(())
}

/// The node's uplink becomes the port of a bridge that takes its addresses, and is taken out again.
fn uplink_in_a_bridge(context: &mut Context) -> Result<()> {
    let node = context.lab.nodes[0].namespace.clone();
    let addresses = context.lab.nodes[0].addresses.clone();
    let routes = run_in(&node, &["ip", "-o", "route", "show", "dev", "eth0"], "")?;
    let routes6 = run_in(&node, &["ip", "-o", "-6", "route", "show", "dev", "eth0"], "")?;
    let move_to = |from: &str, to: &str, master: &str| -> Result<()> {
        let mut lines = vec![
            format!("link set eth0 {master}"),
            format!("address flush dev {from} scope global"),
            format!("address add {}/24 dev {to}", addresses[0]),
            format!("address add {}/64 dev {to} nodad", addresses[1]),
        ];
        // The kernel makes the routes of the addresses itself.
        for route in routes.lines().filter(|route| route.contains(" via ")) {
            lines.push(format!("route replace {} dev {to}", route.trim()));
        }
        for route in routes6.lines().filter(|route| route.contains(" via ")) {
            let route = route.replace("pref medium", "");
            lines.push(format!("-6 route replace {} dev {to}", route.trim()));
        }
        for line in lines {
            let words: Vec<&str> = std::iter::once("ip").chain(line.split_whitespace()).collect();
            run_in(&node, &words, "")?;
        }
        Ok(())
    };
    let link = run_in(&node, &["ip", "-o", "link", "show", "eth0"], "")?;
    let mac =
        link.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).context("a MAC address")?;
    ip(
        &node,
        &[format!("link add brup address {mac} type bridge mcast_snooping 0"), "link set brup up".into()],
    )?;
    let act = |lab: &mut Lab| -> Result<()> {
        move_to("eth0", "brup", "master brup")?;
        attached(lab, &["eth0"], &["brup"]).context("in the bridge")?;
        std::thread::sleep(Duration::from_secs(5));
        move_to("brup", "eth0", "nomaster")?;
        attached(lab, &["eth0"], &["brup"]).context("out of it")?;
        std::thread::sleep(Duration::from_secs(5));
        Ok(())
    };
    let loads = loads(&context.lab);
    let tally = under(&mut context.lab, &loads, Duration::from_secs(15), act);
    ip(&node, &["link del brup".into()])?;
    let tally = tally?;
    println!("        {tally}");
    // While the node has no address and no route, nobody can begin anything; what was there is to go on.
    let transfers = loads.iter().map(|(_, load)| load.targets.len() as u64).sum::<u64>();
    ensure!(
        tally.transfers == transfers && tally.resets == 0 && tally.wrong == 0,
        "{tally}; first failures: {:?}",
        tally.texts
    );
    Ok(())
}

/// The Node object names another address, and later the first one again: new connections find the NodePort there, those
/// that are open stay.
fn node_address(context: &mut Context) -> Result<()> {
    let node = context.lab.nodes[0].namespace.clone();
    let (name, first) = (context.lab.nodes[0].name.clone(), context.lab.nodes[0].addresses.clone());
    let second = ["192.0.2.21".to_owned(), "2001:db8:1::21".to_owned()];
    let cidrs = ["10.77.1.0/24".to_owned(), "fd77:0:0:1::/64".to_owned()];
    let mut connections = Vec::new();
    for own in &first {
        for service in [LOCAL, REMOTE] {
            let id = format!("stays {own} {service}");
            let opened = context
                .ask(Side::Client, &Ask::Open { id: id.clone(), to: address(own, node_port(service)) })?;
            ensure!(opened.error.is_none(), "{id}: {opened:?}");
            connections.push(id);
        }
    }
    ip(
        &node,
        &[
            format!("address add {}/24 dev eth0", second[0]),
            format!("address add {}/64 dev eth0 nodad", second[1]),
        ],
    )?;
    for (addresses, when) in [(&second, "at the other address"), (&first, "back at the first")] {
        context.lab.manifest(&name, &manifests::node(&name, addresses, &cidrs))?;
        for own in addresses {
            for (service, pod) in [(LOCAL, "p1a"), (REMOTE, "p2a")] {
                let ask = Ask::Http { to: address(own, node_port(service)), path: "/".into(), mapped: false };
                context.eventually(Side::Client, &ask, when, |answer| answer.pod() == Some(pod))?;
            }
        }
        for id in &connections {
            let answer = context.ask(Side::Client, &Ask::Say { id: id.clone(), text: when.into() })?;
            ensure!(answer.error.is_none() && answer.text == when, "{when}, {id}: {answer:?}");
        }
    }
    ip(
        &node,
        &[format!("address del {}/24 dev eth0", second[0]), format!("address del {}/64 dev eth0", second[1])],
    )
}

/// Somebody removes pins of maps while traffic flows, and then all links: the maps are pinned again without a packet
/// noticing; without links there is a gap, after which everything goes on.
fn pins(context: &mut Context) -> Result<()> {
    let home = context.lab.nodes[0].bpffs.join("lb/v1");
    let back = |what: &str, file: &std::path::Path| -> Result<()> {
        let begin = Instant::now();
        while !file.exists() {
            ensure!(begin.elapsed() < Duration::from_secs(10), "{what} was not put back in 10 s");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    };
    let act = |_: &mut Lab| -> Result<()> {
        for map in ["LB_CT4", "LB_SVC6", "LB_OWNER"] {
            std::fs::remove_file(home.join(map))?;
        }
        back("LB_CT4", &home.join("LB_CT4"))
    };
    survive(context, Duration::from_secs(5), 0, act).context("pins of maps")?;
    for entry in std::fs::read_dir(home.join("links"))? {
        std::fs::remove_file(entry?.path())?;
    }
    for cluster_ip in super::vips(super::WEB) {
        for side in [Side::Pod("p1b"), Side::Node(0)] {
            let ask = Ask::Http { to: cluster_ip, path: "/".into(), mapped: false };
            context
                .eventually(side, &ask, "after the links were removed", |answer| answer.error.is_none())?;
        }
    }
    let log = std::fs::read_to_string(&context.lab.nodes[0].log)?;
    ensure!(log.contains("were put back"), "the log does not tell of removed pins");
    Ok(())
}
