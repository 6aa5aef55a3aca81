//! What sockets see of rules that go by the client, the address or the time: affinity, loopback NodePorts, endpoints
//! that drain and go, addresses that come and go.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::{AWAY, Case, Context, DRAIN, STICKY, Side, WEB, address, node_port, vips};
use crate::lab::manifests::{Endpoint, slice};
use crate::lab::netns::ip;
use crate::lab::worker::{Answer, Ask};

/// Cases of every cluster.
pub(super) const CASES: &[Case] = &[
    ("b40_node_ports_on_loopback_from_the_host", loopback),
    ("b105_b107_endpoints_drain_and_go", drain),
    ("b63_a_host_is_one_client_whatever_the_frontend_and_the_socket", one_client),
];

/// Cases of the friendly cluster alone: they stop agents or change the node.
pub(super) const FRIENDLY: &[Case] = &[
    ("b71_affinity_survives_a_restart", affinity_survives),
    ("b39_node_addresses_that_come_and_go", addresses_come_and_go),
];

/// The externalIP of the Service with affinity.
pub(super) const STICKY_EXTERNAL: &str = "198.51.100.18";
/// An address that NodePorts answer on when the node has it.
const PASSING: &str = "198.18.7.11";

fn pod_of(answer: &Answer) -> Result<String> {
    match answer.pod() {
        Some(pod) if answer.error.is_none() => Ok(pod.to_owned()),
        _ => bail!("{answer:?}"),
    }
}

/// Frontends of the Service with affinity in a family: TCP and UDP.
fn sticky_frontends(context: &Context, family: usize) -> Vec<[SocketAddr; 2]> {
    let (vip, node) = (vips(STICKY)[family], &context.lab.nodes[0].addresses[family]);
    let (tcp, udp) = (address(node, node_port(STICKY)), address(node, node_port(STICKY) + 1));
    let mut all = vec![[vip, vip], [tcp, udp]];
    if family == 0 {
        let external = address(STICKY_EXTERNAL, 80);
        all.push([external, external]);
    }
    all
}

/// Sockets without an address, with one, connected or not, to all frontends: one client, one pod per service port.
fn one_client(context: &mut Context) -> Result<()> {
    for family in [0, 1] {
        let frontends = sticky_frontends(context, family);
        let own: IpAddr = context.lab.nodes[0].addresses[family].parse()?;
        let vip = vips(STICKY)[family];
        let (tcp, udp) = (context.http(Side::Node(0), vip)?, context.udp(Side::Node(0), vip, true)?);
        let (tcp, udp) = (pod_of(&tcp)?, pod_of(&udp)?);
        for _ in 0..4 {
            for [tcp_to, udp_to] in frontends.clone() {
                let answer = context.http(Side::Node(0), tcp_to)?;
                ensure!(pod_of(&answer)? == tcp, "TCP {tcp_to}: {answer:?}, before it was {tcp}");
                for connected in [true, false] {
                    let ask = Ask::UdpFrom { to: udp_to, from: own, connected };
                    for answer in
                        [context.udp(Side::Node(0), udp_to, connected)?, context.ask(Side::Node(0), &ask)?]
                    {
                        ensure!(pod_of(&answer)? == udp, "UDP {udp_to}: {answer:?}, before it was {udp}");
                    }
                }
            }
        }
        // a pod is another client, and one as well
        let ask = Ask::Http { to: vip, path: "/".into(), mapped: false };
        let first = pod_of(&context.ask(Side::Pod("p1b"), &ask)?)?;
        for _ in 0..8 {
            for [to, _] in frontends.clone() {
                let answer = context.http(Side::Pod("p1b"), to)?;
                ensure!(pod_of(&answer)? == first, "p1b to {to}: {answer:?}, before it was {first}");
            }
        }
    }
    Ok(())
}

fn affinity_survives(context: &mut Context) -> Result<()> {
    let agent = context.agent.clone();
    let sides = [Side::Node(0), Side::Pod("p1b")];
    let mut before = Vec::new();
    for to in vips(STICKY) {
        for side in sides {
            before.push((side, to, pod_of(&context.http(side, to)?)?));
        }
    }
    context.lab.nodes[0].stop_agent(libc::SIGTERM)?;
    context.lab.nodes[0].start_agent(&agent)?;
    for (side, to, pod) in before {
        for _ in 0..6 {
            let answer = context.http(side, to)?;
            ensure!(pod_of(&answer)? == pod, "{side:?} to {to}: {answer:?}, before the restart it was {pod}");
        }
    }
    Ok(())
}

/// DESIGN section 5.3: by the host's own sockets, without route_localnet; ETP Local takes the short circuit (B49).
fn loopback(context: &mut Context) -> Result<()> {
    for (family, ip) in ["127.0.0.1", "::1"].into_iter().enumerate() {
        let (tcp, udp) = (address(ip, node_port(WEB)), address(ip, node_port(WEB) + 1));
        context.all_protocols(Side::Node(0), tcp, udp, &["p1a", "p2a"])?;
        let away = address(ip, node_port(AWAY));
        context.all_protocols(Side::Node(0), away, address(ip, node_port(AWAY) + 1), &["p2a"])?;
        let first = pod_of(&context.http(Side::Node(0), address(ip, node_port(STICKY)))?)?;
        for _ in 0..8 {
            let answer = context.http(Side::Node(0), address(ip, node_port(STICKY)))?;
            ensure!(pod_of(&answer)? == first, "affinity by {ip}: {answer:?}, before it was {first}");
        }
        // a pod's loopback address is its own
        let answer = context.http(Side::Pod("p1b"), tcp)?;
        ensure!(answer.error.as_deref() == Some("ConnectionRefused"), "a pod's {ip}: {answer:?}");
        // from outside the policy holds: no local endpoint, a silent drop (B87)
        let node = address(&context.lab.nodes[0].addresses[family].clone(), node_port(AWAY));
        let answer = context.http(Side::Client, node)?;
        ensure!(answer.error.as_deref() == Some("TimedOut"), "the client to {node}: {answer:?}");
    }
    let mapped = Ask::Http { to: address("127.0.0.1", node_port(WEB)), path: "/".into(), mapped: true };
    context.reach(Side::Node(0), &mapped, &["p1a", "p2a"]).map(drop)
}

/// Writes the slices of the draining Service: `p1a` as it drains, beside `p2a`.
fn draining(context: &mut Context) -> Result<()> {
    for (family, v6) in [false, true].into_iter().enumerate() {
        let mut endpoint = |pod: &str, node: &str| -> Result<Endpoint> {
            Ok(Endpoint { address: context.lab.pod(pod)?.addresses[family].clone(), node: node.into() })
        };
        let (old, new) = (endpoint("p1a", "node1")?, endpoint("p2a", "node2")?);
        let name = old.address.clone();
        let text = slice("drain", v6, &[old, new]);
        let line = text.lines().find(|line| line.contains(&format!("\"{name}\""))).context("the endpoint")?;
        let drains =
            line.replace("ready: true, serving: true, terminating: false", "ready: false, terminating: true");
        ensure!(drains != line, "the manifest has another form: {line}");
        context
            .lab
            .manifest(&format!("slice-drain-{}", if v6 { 6 } else { 4 }), &text.replace(line, &drains))?;
    }
    Ok(())
}

/// An endpoint that terminates finishes what it has and gets nothing new, not even by affinity; when it is gone, UDP
/// leaves it: packets at once (B105), connected sockets of the host by an error and their next connect().
fn drain(context: &mut Context) -> Result<()> {
    context.lab.endpoints("drain", &["p1a"])?;
    let sides = [Side::Node(0), Side::Pod("p1b")];
    let (mut service, mut direct, mut streams) = (Vec::new(), Vec::new(), Vec::new());
    for (family, to) in vips(DRAIN).into_iter().enumerate() {
        for side in sides {
            let id = format!("drain {side:?} {family}");
            let ask = Ask::Http { to, path: "/".into(), mapped: false };
            context.eventually(side, &ask, "the old endpoint", |a| a.pod() == Some("p1a"))?;
            let udp = context.ask(side, &Ask::OpenUdp { id: id.clone(), to, connected: true })?;
            let tcp = context.ask(side, &Ask::Open { id: id.clone(), to })?;
            ensure!(udp.pod() == Some("p1a") && tcp.error.is_none(), "{id}: {udp:?} {tcp:?}");
            service.push((side, id.clone()));
            streams.push((side, id));
        }
        let id = format!("direct {family}");
        let pod = address(&context.lab.pod("p1a")?.addresses[family].clone(), 8080);
        let answer =
            context.ask(Side::Node(0), &Ask::OpenUdp { id: id.clone(), to: pod, connected: true })?;
        ensure!(answer.pod() == Some("p1a"), "{id}: {answer:?}");
        direct.push(id);
        // one that was aimed at the Service before
        let id = format!("turned {family}");
        context.ask(Side::Node(0), &Ask::OpenUdp { id: id.clone(), to, connected: true })?;
        let answer = context.ask(Side::Node(0), &Ask::TurnUdp { id: id.clone(), to: pod })?;
        ensure!(answer.pod() == Some("p1a") && answer.peer == Some(pod), "{id}: {answer:?}");
        direct.push(id);
    }

    draining(context)?;
    for to in vips(DRAIN) {
        for side in sides {
            let ask = Ask::Http { to, path: "/".into(), mapped: false };
            context.eventually(side, &ask, "new connections leave", |a| a.pod() == Some("p2a"))?;
            context.reach(side, &ask, &["p2a"])?;
        }
    }
    std::thread::sleep(Duration::from_millis(1500)); // whatever is done later than at once, is done
    for (side, id) in &service {
        let answer = context.ask(*side, &Ask::SayUdp { id: id.clone() })?;
        ensure!(answer.pod() == Some("p1a"), "{id} while p1a drains: {answer:?}");
    }

    context.lab.endpoints("drain", &["p2a"])?;
    for (side, id) in &service {
        let errors = leaves(context, *side, id)?;
        let told = errors.iter().any(|error| error == "ConnectionAborted");
        match side {
            Side::Node(_) => ensure!(told, "{id} was not told: {errors:?}"),
            _ => ensure!(errors.is_empty(), "{id}: a packet was lost: {errors:?}"),
        }
    }
    for id in direct {
        let answer = context.ask(Side::Node(0), &Ask::SayUdp { id: id.clone() })?;
        ensure!(answer.pod() == Some("p1a"), "{id} had nothing to do with the Service: {answer:?}");
    }
    for (side, id) in streams {
        let answer = context.ask(side, &Ask::Say { id: id.clone(), text: "still here".into() })?;
        ensure!(answer.text == "still here", "TCP {id} (B106): {answer:?}");
    }
    Ok(())
}

/// Talks until the new endpoint answers; returns the errors that were met on the way.
fn leaves(context: &mut Context, side: Side, id: &str) -> Result<Vec<String>> {
    let begin = Instant::now();
    let mut errors = Vec::new();
    loop {
        let answer = context.ask(side, &Ask::SayUdp { id: id.to_owned() })?;
        if answer.pod() == Some("p2a") {
            return Ok(errors);
        }
        errors.extend(answer.error.clone());
        ensure!(begin.elapsed() < Duration::from_secs(5), "{id} stays: {answer:?}, {errors:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// B36, B39: NodePorts answer on an address inside nodePortAddresses from when the node has it, and no longer.
fn addresses_come_and_go(context: &mut Context) -> Result<()> {
    let (node, outside) = (context.lab.nodes[0].namespace.clone(), format!("{}-client", context.lab.tag));
    let via = &context.lab.nodes[0].addresses[0];
    ip(&outside, &[format!("route add {PASSING}/32 via {via}")])?;
    let ask = Ask::Http { to: address(PASSING, node_port(WEB)), path: "/".into(), mapped: false };
    for _ in 0..2 {
        ip(&node, &[format!("address add {PASSING}/32 dev eth0")])?;
        context.eventually(Side::Client, &ask, "the address came", |a| a.error.is_none())?;
        context.reach(Side::Client, &ask, &["p1a", "p2a"])?;
        context.reach(Side::Node(0), &ask, &["p1a", "p2a"])?;
        ip(&node, &[format!("address delete {PASSING}/32 dev eth0")])?;
        context.eventually(Side::Client, &ask, "the address went", |a| a.error.is_some())?;
    }
    ip(&outside, &[format!("route delete {PASSING}/32 via {}", context.lab.nodes[0].addresses[0])])
}
