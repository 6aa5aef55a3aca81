//! Flows that would be one behind the DNAT: one client port towards two frontends of a pod, or towards a frontend and the
//! pod itself.

use std::net::SocketAddr;

use anyhow::{Result, ensure};

use super::{Case, Context, LOCAL, MOVING, REMOTE, Side, address, node_port, vips};
use crate::lab::worker::Ask;

pub(super) const CASES: &[Case] = &[
    ("i6_one_client_port_to_two_frontends_of_one_pod", two_frontends),
    ("i6_one_client_port_to_a_frontend_and_then_to_its_pod", straight_second),
    ("i6_one_client_port_to_a_pod_and_then_to_its_frontend", straight_first),
];

/// Talks to both from one port; both answers must come from the pod, which saw one address with two ports.
fn both(context: &mut Context, side: Side, to: [SocketAddr; 2], udp: bool, pod: &str) -> Result<()> {
    let answer = context.ask(side, &Ask::Both { to, udp })?;
    ensure!(answer.error.is_none(), "{side:?} to {to:?}, UDP {udp}: {answer:?}");
    let said: Vec<Vec<&str>> = answer.text.lines().map(|line| line.split_whitespace().collect()).collect();
    ensure!(said.len() >= 2 && said.iter().all(|words| words.get(1) == Some(&pod)), "{to:?}: {answer:?}");
    let peers: Vec<SocketAddr> = said[..2].iter().filter_map(|words| words.last()?.parse().ok()).collect();
    ensure!(
        peers.len() == 2 && peers[0].ip() == peers[1].ip() && peers[0].port() != peers[1].port(),
        "{side:?} to {to:?}, UDP {udp}: the pod saw {peers:?}, wanted one address with two ports"
    );
    Ok(())
}

fn two_frontends(context: &mut Context) -> Result<()> {
    for family in [0, 1] {
        for udp in [false, true] {
            let to = [LOCAL, MOVING].map(|number| vips(number)[family]);
            both(context, Side::Pod("p1b"), to, udp, "p1a")?;
            both(context, Side::Pod("p2b"), to, udp, "p1a")?;
            let node = context.lab.nodes[0].addresses[family].clone();
            let to = [LOCAL, MOVING].map(|number| address(&node, node_port(number) + u16::from(udp)));
            both(context, Side::Client, to, udp, "p1a")?;
        }
    }
    Ok(())
}

fn with_pods(context: &mut Context, straight_first: bool) -> Result<()> {
    for family in [0, 1] {
        for udp in [false, true] {
            for (number, pod) in [(LOCAL, "p1a"), (REMOTE, "p2a")] {
                let itself = address(&context.lab.pod(pod)?.addresses[family].clone(), 8080);
                let mut to = [vips(number)[family], itself];
                if straight_first {
                    to.reverse();
                }
                if straight_first && udp {
                    // nothing tells the second flow that the first one exists; it takes the tuple, the first is moved
                    let answer = context.ask(Side::Pod("p1b"), &Ask::Both { to, udp })?;
                    ensure!(answer.error.is_none(), "{to:?}: {answer:?}");
                } else {
                    both(context, Side::Pod("p1b"), to, udp, pod)?;
                }
            }
        }
    }
    Ok(())
}

fn straight_second(context: &mut Context) -> Result<()> {
    with_pods(context, false)
}

fn straight_first(context: &mut Context) -> Result<()> {
    with_pods(context, true)
}
