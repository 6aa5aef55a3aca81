//! Pods and outside clients reach Services.

use anyhow::{Result, ensure};

use super::{Case, Context, EMPTY, HAIRPIN, LOCAL, REMOTE, Side, WEB, address, node_port, vips};
use crate::lab::CLIENT;
use crate::lab::worker::Ask;

pub(super) const CASES: &[Case] = &[
    ("cluster_ip_from_a_pod_to_local_and_remote_pods", cluster_ip_from_a_pod),
    ("cluster_ip_keeps_the_pods_own_address", cluster_ip_keeps_the_source),
    ("hairpin_to_itself", hairpin),
    ("node_port_from_outside_to_a_local_pod_keeps_the_source", node_port_local),
    ("node_port_from_outside_to_a_remote_pod_is_masqueraded", node_port_remote),
    ("node_port_of_the_other_node_from_a_pod", node_port_from_a_pod),
    ("external_ip_and_load_balancer_address", outside_addresses),
    ("no_endpoints_is_refused_at_once", no_endpoints),
    ("bulk_transfer_through_cluster_ip_and_node_port", bulk),
];

fn cluster_ip_from_a_pod(context: &mut Context) -> Result<()> {
    for vip in vips(WEB) {
        context.all_protocols(Side::Pod("p1b"), vip, vip, &["p1a", "p2a"])?;
        context.all_protocols(Side::Pod("p2b"), vip, vip, &["p1a", "p2a"])?;
    }
    Ok(())
}

fn cluster_ip_keeps_the_source(context: &mut Context) -> Result<()> {
    let own = context.lab.pod("p1b")?.addresses.clone();
    for number in [LOCAL, REMOTE] {
        for (vip, own) in vips(number).into_iter().zip(&own) {
            let answer = context.http(Side::Pod("p1b"), vip)?;
            let peer = answer.field("peer").unwrap_or_default();
            ensure!(ip_of(peer) == *own, "{vip}: the server saw {peer}, not {own}: {answer:?}");
        }
    }
    Ok(())
}

/// The address of `1.2.3.4:5` or `[::1]:5`, as text.
fn ip_of(peer: &str) -> String {
    peer.parse::<std::net::SocketAddr>().map(|address| address.ip().to_string()).unwrap_or_default()
}

fn hairpin(context: &mut Context) -> Result<()> {
    for vip in vips(HAIRPIN) {
        context.all_protocols(Side::Pod("p1b"), vip, vip, &["p1b"])?;
    }
    Ok(())
}

fn node_port_local(context: &mut Context) -> Result<()> {
    let port = node_port(LOCAL);
    for (node, client) in context.lab.nodes[0].addresses.clone().iter().zip(CLIENT) {
        let (tcp, udp) = (address(node, port), address(node, port + 1));
        context.all_protocols(Side::Client, tcp, udp, &["p1a"])?;
        for answer in [context.http(Side::Client, tcp)?, context.udp(Side::Client, udp, false)?] {
            let peer = answer.field("peer").unwrap_or_default();
            ensure!(ip_of(peer) == client, "the server saw {peer}, not {client}: {answer:?}");
        }
    }
    Ok(())
}

fn node_port_remote(context: &mut Context) -> Result<()> {
    let port = node_port(REMOTE);
    for (node, client) in context.lab.nodes[0].addresses.clone().iter().zip(CLIENT) {
        let (tcp, udp) = (address(node, port), address(node, port + 1));
        context.all_protocols(Side::Client, tcp, udp, &["p2a"])?;
        let answer = context.http(Side::Client, tcp)?;
        let peer = answer.field("peer").unwrap_or_default();
        ensure!(
            !peer.is_empty() && ip_of(peer) != client,
            "the server saw the client itself, {peer}: {answer:?}"
        );
    }
    Ok(())
}

fn node_port_from_a_pod(context: &mut Context) -> Result<()> {
    let port = node_port(WEB);
    for node in context.lab.nodes[1].addresses.clone() {
        context.all_protocols(
            Side::Pod("p1b"),
            address(&node, port),
            address(&node, port + 1),
            &["p1a", "p2a"],
        )?;
    }
    Ok(())
}

fn outside_addresses(context: &mut Context) -> Result<()> {
    for ip in ["198.51.100.10", "203.0.113.10", "2001:db8:203::10"] {
        context.all_protocols(Side::Client, address(ip, 80), address(ip, 80), &["p1a", "p2a"])?;
    }
    Ok(())
}

fn no_endpoints(context: &mut Context) -> Result<()> {
    let mut tries = Vec::new();
    for vip in vips(EMPTY) {
        tries.push((Side::Pod("p1b"), vip, vip));
        tries.push((Side::Node(0), vip, vip));
    }
    for node in context.lab.nodes[0].addresses.clone() {
        tries.push((Side::Client, address(&node, node_port(EMPTY)), address(&node, node_port(EMPTY) + 1)));
    }
    tries.into_iter().try_for_each(|(side, tcp, udp)| context.refused(side, tcp, udp))
}

fn bulk(context: &mut Context) -> Result<()> {
    const BYTES: usize = 4 << 20;
    let mut tries = Vec::new();
    for vip in [vips(LOCAL), vips(REMOTE)].concat() {
        tries.push((Side::Pod("p1b"), vip));
        tries.push((Side::Node(0), vip));
    }
    for node in context.lab.nodes[0].addresses.clone() {
        tries.push((Side::Client, address(&node, node_port(LOCAL))));
        tries.push((Side::Client, address(&node, node_port(REMOTE))));
    }
    for (side, to) in tries {
        let answer = context.ask(side, &Ask::Bulk { to, bytes: BYTES })?;
        ensure!(answer.error.is_none(), "{side:?} to {to}: {answer:?}");
        ensure!(answer.millis < 5000, "{side:?} to {to}: 8 MiB took {} ms", answer.millis);
    }
    Ok(())
}
