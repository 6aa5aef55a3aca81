//! Processes of the node itself: translated once per socket, in the host's namespace only.

use anyhow::{Result, ensure};

use super::{Case, Context, LOCAL, REMOTE, Side, WEB, address, node_port, vips};
use crate::lab::worker::Ask;

pub(super) const CASES: &[Case] = &[
    ("cluster_ip_from_the_host", cluster_ip),
    ("cluster_ip_from_the_host_by_an_af_inet6_socket", mapped),
    ("node_port_from_the_host", from_host_to_node_port),
];

fn cluster_ip(context: &mut Context) -> Result<()> {
    for vip in vips(WEB) {
        context.all_protocols(Side::Node(0), vip, vip, &["p1a", "p2a"])?;
        context.all_protocols(Side::Node(1), vip, vip, &["p1a", "p2a"])?;
    }
    Ok(())
}

/// A JVM uses AF_INET6 sockets with IPv4-mapped addresses for everything.
fn mapped(context: &mut Context) -> Result<()> {
    for (number, pod) in [(LOCAL, "p1a"), (REMOTE, "p2a")] {
        let to = vips(number)[0];
        let answers =
            context.reach(Side::Node(0), &Ask::Http { to, path: "/".into(), mapped: true }, &[pod])?;
        ensure!(answers.iter().all(|a| a.peer == Some(to)), "getpeername() of a mapped socket: {answers:?}");
        let answers =
            context.reach(Side::Node(0), &Ask::Udp { to, connected: false, mapped: true }, &[pod])?;
        ensure!(answers.iter().all(|a| a.from == Some(to)), "recvfrom() of a mapped socket: {answers:?}");
        let answers = context.reach(Side::Node(0), &Ask::Udp { to, connected: true, mapped: true }, &[pod]);
        ensure!(answers?.iter().all(|a| a.peer == Some(to)), "getpeername() of a mapped UDP socket");
    }
    Ok(())
}

fn from_host_to_node_port(context: &mut Context) -> Result<()> {
    let port = node_port(WEB);
    for index in [0, 1] {
        for node in context.lab.nodes[index].addresses.clone() {
            context.all_protocols(
                Side::Node(0),
                address(&node, port),
                address(&node, port + 1),
                &["p1a", "p2a"],
            )?;
        }
    }
    Ok(())
}
