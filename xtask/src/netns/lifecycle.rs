//! Changes while traffic flows: agents stop, die and return, endpoints leave, interfaces and manifests come.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::pins::map_id;
use super::{Case, Context, LATE, LOCAL, MOVING, REMOTE, Side, WEB, address, node_port, service, vips};
use crate::lab::worker::Ask;

pub(super) const CASES: &[Case] = &[
    ("a_stopped_agent_leaves_the_data_path_and_a_new_one_adopts_it", restart),
    ("connections_survive_a_restart", connections_survive_sigterm),
    ("connections_survive_kill_9", connections_survive_sigkill),
    ("a_removed_endpoint_moves_udp_flows", udp_moves),
    ("a_new_pod_is_served_and_serves", new_pod),
    ("a_bad_manifest_is_named_and_all_others_are_served", bad_manifest),
];

fn restart(context: &mut Context) -> Result<()> {
    let agent = context.agent.clone();
    let before = map_id(&context.lab.nodes[0], "LB_CT4")?;
    context.lab.nodes[0].stop_agent(libc::SIGTERM)?;
    for vip in vips(WEB) {
        context.all_protocols(Side::Pod("p1b"), vip, vip, &["p1a", "p2a"]).context("without an agent")?;
        context.all_protocols(Side::Node(0), vip, vip, &["p1a", "p2a"]).context("without an agent")?;
    }
    context.lab.nodes[0].start_agent(&agent)?;
    let after = map_id(&context.lab.nodes[0], "LB_CT4")?;
    ensure!(before == after, "the new agent made flow table {after}, the old one had {before}");
    for vip in vips(WEB) {
        context.all_protocols(Side::Pod("p1b"), vip, vip, &["p1a", "p2a"]).context("after the restart")?;
    }
    Ok(())
}

fn connections_survive_sigterm(context: &mut Context) -> Result<()> {
    connections_survive(context, libc::SIGTERM)
}

fn connections_survive_sigkill(context: &mut Context) -> Result<()> {
    connections_survive(context, libc::SIGKILL)
}

fn connections_survive(context: &mut Context, signal: libc::c_int) -> Result<()> {
    let agent = context.agent.clone();
    let node = context.lab.nodes[0].addresses.clone();
    let mut connections = Vec::new();
    for family in [0, 1] {
        let outside = address(&node[family], node_port(REMOTE));
        for (side, to) in [
            (Side::Pod("p1b"), vips(LOCAL)[family]),
            (Side::Pod("p1b"), vips(REMOTE)[family]),
            (Side::Node(0), vips(REMOTE)[family]),
            (Side::Client, outside),
        ] {
            let id = format!("{signal} {side:?} {to}");
            let opened = context.ask(side, &Ask::Open { id: id.clone(), to })?;
            ensure!(opened.error.is_none(), "opening {id}: {opened:?}");
            connections.push((side, id));
        }
    }
    let talk = |context: &mut Context, when: &str| -> Result<()> {
        for (side, id) in &connections {
            let answer = context.ask(*side, &Ask::Say { id: id.clone(), text: when.into() })?;
            ensure!(answer.error.is_none() && answer.text == when, "{when}, {id}: {answer:?}");
        }
        Ok(())
    };
    talk(context, "before")?;
    context.lab.nodes[0].stop_agent(signal)?;
    talk(context, "without an agent")?;
    context.lab.nodes[0].start_agent(&agent)?;
    talk(context, "after the return")
}

fn udp_moves(context: &mut Context) -> Result<()> {
    let mut sockets = Vec::new();
    for (family, to) in vips(MOVING).into_iter().enumerate() {
        for connected in [true, false] {
            let id = format!("udp {family} {connected}");
            let answer = context.ask(Side::Pod("p1b"), &Ask::OpenUdp { id: id.clone(), to, connected })?;
            ensure!(answer.pod() == Some("p1a"), "{id}: {answer:?}");
            sockets.push(id);
        }
    }
    context.lab.endpoints("moving", &["p2a"])?;
    for id in sockets {
        context
            .eventually(Side::Pod("p1b"), &Ask::SayUdp { id: id.clone() }, &id, |a| a.pod() == Some("p2a"))?;
    }
    Ok(())
}

fn new_pod(context: &mut Context) -> Result<()> {
    context.lab.add_pod(0, "c")?;
    for to in vips(WEB) {
        let ask = Ask::Http { to, path: "/".into(), mapped: false };
        context
            .eventually(Side::Pod("p1c"), &ask, "the new pod as a client", |answer| answer.error.is_none())?;
        context.all_protocols(Side::Pod("p1c"), to, to, &["p1a", "p2a"])?;
    }
    context.lab.endpoints("moving", &["p1c"])?;
    for (family, to) in vips(MOVING).into_iter().enumerate() {
        let ask = Ask::Http { to, path: "/".into(), mapped: false };
        context
            .eventually(Side::Pod("p1b"), &ask, "the new pod as an endpoint", |a| a.pod() == Some("p1c"))?;
        let node = address(&context.lab.nodes[1].addresses[family].clone(), node_port(MOVING));
        let ask = Ask::Http { to: node, path: "/".into(), mapped: false };
        context.eventually(Side::Client, &ask, "the new pod by the other node's NodePort", |a| {
            a.pod() == Some("p1c")
        })?;
    }
    Ok(())
}

fn bad_manifest(context: &mut Context) -> Result<()> {
    let agent = context.agent.clone();
    context.lab.manifest("broken", "apiVersion: v1\nkind: Service\nspec: [this is: not\n")?;
    context.lab.service(&service(LATE, "late"), &["p2b"])?;
    for to in vips(LATE) {
        let ask = Ask::Http { to, path: "/".into(), mapped: false };
        context.eventually(Side::Pod("p1b"), &ask, "a Service written beside a bad file", |a| {
            a.pod() == Some("p2b")
        })?;
    }
    for vip in vips(WEB) {
        context.all_protocols(Side::Pod("p1b"), vip, vip, &["p1a", "p2a"])?;
    }
    let status = context.lab.nodes[0].agent_command(&agent, "status");
    std::fs::remove_file(context.lab.manifests.join("broken.yaml"))?;
    let status = status?;
    ensure!(status.contains("broken.yaml"), "`lb-agent status` does not name broken.yaml:\n{status}");
    std::thread::sleep(Duration::from_millis(100));
    Ok(())
}
