//! Who counts as pod traffic: every detect-local mode, and none, with real sockets (B49, B73-B83).

use std::fs;

use anyhow::{Context as _, Result, ensure};

use super::{AWAY, Case, Context, REMOTE, Side, address, node_port, vips};
use crate::lab::worker::Ask;

pub(super) const CASES: &[Case] = &[
    ("b49_b73_cluster_cidr_tells_pods", cluster_cidr),
    ("b49_b74_node_cidr_tells_pods", node_cidr),
    ("b49_b75_a_named_interface_tells_pods", interface),
    ("b49_b76_a_prefix_of_interfaces_tells_pods", prefix),
    ("b49_b76_a_prefix_that_no_interface_has_tells_nobody", other_prefix),
    ("b49_b77_without_a_detector_nobody_is_a_pod", none),
    ("b77_a_family_without_a_range_has_no_detector", one_family),
    ("b80_masquerade_all_masquerades_pods_to_cluster_ips_only", masquerade_all),
];

/// What the configuration of every lab has.
const USUAL: &str = "detectLocalMode: ClusterCIDR";
const RANGES: &str = "clusterCIDR: 10.77.0.0/16,fd77::/32";

/// What becomes of traffic to an external frontend of Local policy without an endpoint on this node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Pods {
    /// Pods take the short circuit, with their own address.
    ShortCircuit,
    /// Pods are like everybody outside: dropped, since another node may serve.
    Outside,
}

fn cluster_cidr(context: &mut Context) -> Result<()> {
    with(context, &[], |context| external_local(context, [Pods::ShortCircuit; 2], [Pods::ShortCircuit; 2]))
}

fn node_cidr(context: &mut Context) -> Result<()> {
    let changes = [(USUAL, "detectLocalMode: NodeCIDR")];
    with(context, &changes, |context| external_local(context, [Pods::ShortCircuit; 2], [Pods::Outside; 2]))
}

/// The mode's interface is usually the bridge of all pods; here the link of the one pod that asks.
fn interface(context: &mut Context) -> Result<()> {
    let mode = "detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: vethp1b}";
    let pods = [Pods::ShortCircuit; 2];
    with(context, &[(USUAL, mode)], |context| external_local(context, pods, [Pods::Outside; 2]))
}

fn prefix(context: &mut Context) -> Result<()> {
    let mode = "detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: vethp}";
    with(context, &[(USUAL, mode)], |context| {
        external_local(context, [Pods::ShortCircuit; 2], [Pods::Outside; 2])
    })
}

fn other_prefix(context: &mut Context) -> Result<()> {
    let mode = "detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: cali}";
    with(context, &[(USUAL, mode)], |context| external_local(context, [Pods::Outside; 2], [Pods::Outside; 2]))
}

fn none(context: &mut Context) -> Result<()> {
    with(context, &[(RANGES, "clusterCIDR: \"\"")], |context| {
        external_local(context, [Pods::Outside; 2], [Pods::Outside; 2])
    })
}

fn one_family(context: &mut Context) -> Result<()> {
    let changes = [(RANGES, "clusterCIDR: 10.77.0.0/16")];
    let pods = [Pods::ShortCircuit, Pods::Outside];
    with(context, &changes, |context| external_local(context, pods, pods))
}

fn masquerade_all(context: &mut Context) -> Result<()> {
    let changes = [("mode: nftables", "mode: nftables\nnftables: {masqueradeAll: true}")];
    with(context, &changes, |context| {
        let own = context.lab.pod("p1b")?.addresses.clone();
        for family in [0, 1] {
            let inside = source(context, vips(REMOTE)[family])?;
            let node = context.lab.nodes[0].addresses[family].clone();
            ensure!(inside == node, "ClusterIP: the server saw {inside}, not the node, {node}");
            let outside = source(context, address(&node, node_port(AWAY)))?;
            ensure!(outside == own[family], "NodePort: the server saw {outside}, not {}", own[family]);
        }
        Ok(())
    })
}

/// The address that the server saw of pod p1b.
fn source(context: &mut Context, to: std::net::SocketAddr) -> Result<String> {
    let answer = context.http(Side::Pod("p1b"), to)?;
    let peer = answer.field("peer").with_context(|| format!("{to}: {answer:?}"))?;
    Ok(peer.parse::<std::net::SocketAddr>()?.ip().to_string())
}

/// Node 1's NodePort of a Service whose only endpoint is on node 2; `pods` of node 1, and `far` ones of node 2 (B83), by
/// family.
fn external_local(context: &mut Context, pods: [Pods; 2], far: [Pods; 2]) -> Result<()> {
    let own = context.lab.pod("p1b")?.addresses.clone();
    let others = context.lab.pod("p2b")?.addresses.clone();
    let node = context.lab.nodes[0].addresses.clone();
    for family in [0, 1] {
        let (tcp, udp) =
            (address(&node[family], node_port(AWAY)), address(&node[family], node_port(AWAY) + 1));
        // host traffic needs no detector
        context.all_protocols(Side::Node(0), tcp, udp, &["p2a"])?;
        dropped(context, Side::Client, tcp, udp)?;
        if far[family] == Pods::Outside {
            dropped(context, Side::Pod("p2b"), tcp, udp)?;
        } else {
            // with its own source: the answer does not pass node 1, and comes from the endpoint itself
            let answer = context.udp(Side::Pod("p2b"), udp, false)?;
            ensure!(answer.pod() == Some("p2a") && answer.from != Some(udp), "p2b to {udp}: {answer:?}");
            let peer = answer.field("peer").with_context(|| format!("{answer:?}"))?;
            let seen = peer.parse::<std::net::SocketAddr>()?.ip().to_string();
            ensure!(seen == others[family], "the server saw {seen}, not the pod of node 2");
        }
        if pods[family] == Pods::Outside {
            dropped(context, Side::Pod("p1b"), tcp, udp)?;
        } else {
            context.all_protocols(Side::Pod("p1b"), tcp, udp, &["p2a"])?;
            let seen = source(context, tcp)?;
            ensure!(seen == own[family], "the server saw {seen}, not the pod itself");
        }
        // a ClusterIP has no such policy, and a pod of this node keeps its address whatever tells it
        let vip = vips(AWAY)[family];
        context.all_protocols(Side::Pod("p1b"), vip, vip, &["p2a"])?;
        context.all_protocols(Side::Node(0), vip, vip, &["p2a"])?;
        let seen = source(context, vip)?;
        ensure!(seen == own[family], "{vip}: the server saw {seen}, not the pod itself");
    }
    Ok(())
}

/// Neither an answer nor a refusal comes back, by TCP and UDP.
pub(super) fn dropped(
    context: &mut Context,
    side: Side,
    tcp: std::net::SocketAddr,
    udp: std::net::SocketAddr,
) -> Result<()> {
    for ask in [
        Ask::Http { to: tcp, path: "/".into(), mapped: false },
        Ask::Udp { to: udp, connected: true, mapped: false },
    ] {
        let answer = context.ask(side, &ask)?;
        let silent = matches!(answer.error.as_deref(), Some("TimedOut" | "WouldBlock"));
        ensure!(silent, "{side:?} {ask:?}: {answer:?}, wanted silence");
    }
    Ok(())
}

/// Runs `act` with an agent on node 1 whose configuration has these texts replaced, and puts the usual one back.
fn with(
    context: &mut Context,
    changes: &[(&str, &str)],
    act: impl FnOnce(&mut Context) -> Result<()>,
) -> Result<()> {
    let config = context.lab.nodes[0].config.clone();
    let usual = fs::read_to_string(&config)?;
    let mut text = usual.clone();
    for (old, new) in changes {
        ensure!(text.contains(old), "the configuration lacks {old}");
        text = text.replace(old, new);
    }
    restart(context, &text)?;
    let done = act(context);
    restart(context, &usual)?;
    done
}

fn restart(context: &mut Context, configuration: &str) -> Result<()> {
    let agent = context.agent.clone();
    let node = &mut context.lab.nodes[0];
    if node.has_agent() {
        node.stop_agent(libc::SIGTERM)?;
    }
    fs::write(&node.config, configuration)?;
    node.start_agent(&agent)
}
