//! Processes of the node itself: translated once per socket, in the host's namespace only.

use std::net::{IpAddr, SocketAddr};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{Case, Context, LOCAL, REMOTE, Side, WEB, address, node_port, vips};
use crate::lab::netns::{ip, sysctl};
use crate::lab::worker::{Answer, Ask};

pub(super) const CASES: &[Case] = &[
    ("cluster_ip_from_the_host", cluster_ip),
    ("cluster_ip_from_the_host_by_an_af_inet6_socket", mapped),
    ("node_port_from_the_host", from_host_to_node_port),
    ("b81_bound_sockets_of_the_host_are_masqueraded", bound),
];

/// A VIP of the Service `outside`, by family, when the node has it as an address of its own.
const VIP: [(&str, &str); 2] = [("203.0.113.10", "32"), ("2001:db8:203::10", "128")];

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

/// A socket that is bound to an address which does not come back from the backend is masqueraded (B80, B81): to a VIP,
/// to the uplink's address (over an overlay), to 127.0.0.1.
fn bound(context: &mut Context) -> Result<()> {
    let node = context.lab.nodes[0].namespace.clone();
    ip(&node, &VIP.map(|(vip, len)| format!("addr add {vip}/{len} dev lo")))?;
    let localnet = |value| sysctl(&node, &[("ipv4/conf/all/route_localnet", value)]);
    let done = localnet("1").and_then(|()| from_own_addresses(context)).and_then(|()| from_loopback(context));
    localnet("0")?;
    ip(&node, &VIP.map(|(vip, len)| format!("addr del {vip}/{len} dev lo")))?;
    done
}

/// The address that the server saw.
fn source(answer: &Answer) -> Result<IpAddr> {
    let peer = answer.field("peer").with_context(|| format!("{answer:?}"))?;
    Ok(peer.parse::<SocketAddr>()?.ip())
}

fn from_own_addresses(context: &mut Context) -> Result<()> {
    let host = Side::Node(0);
    let mut kept = Vec::new();
    for family in [0, 1] {
        let node = context.lab.nodes[0].addresses[family].clone();
        let vip = address(VIP[family].0, 80);
        let (tcp, udp) = (address(&node, node_port(REMOTE)), address(&node, node_port(REMOTE) + 1));
        let cluster = vips(REMOTE)[family];
        // what routing chooses is what masquerading takes
        let usual = source(&context.http(host, cluster)?)?;
        for from in [vip.ip(), node.parse()?] {
            for [tcp, udp] in [[tcp, udp], [cluster, cluster]] {
                let mut asks = vec![Ask::HttpFrom { to: tcp, from }];
                for connected in [true, false] {
                    asks.push(Ask::UdpFrom { to: udp, from, connected });
                    // the same by an AF_INET6 socket
                    if let (IpAddr::V4(a), IpAddr::V4(b)) = (from, udp.ip()) {
                        let to = SocketAddr::new(b.to_ipv6_mapped().into(), udp.port());
                        asks.push(Ask::UdpFrom { to, from: a.to_ipv6_mapped().into(), connected });
                    }
                }
                for ask in asks {
                    let answer = context.reach(host, &ask, &["p2a"])?.swap_remove(0);
                    ensure!(source(&answer)? == usual, "{ask:?}: {answer:?}, not from {usual}");
                    let named = answer.peer.or(answer.from);
                    ensure!(named == Some(tcp) || named == Some(udp), "{ask:?}: {answer:?}");
                }
                let id = format!("bound to {from}, {tcp}");
                let answer = context.ask(host, &Ask::OpenFrom { id: id.clone(), to: tcp, from })?;
                ensure!(answer.error.is_none(), "{id}: {answer:?}");
                kept.push(id);
            }
        }
        // by the VIP to itself: one endpoint is here, whose answer comes back, and one on the other node
        let ask = Ask::HttpFrom { to: vip, from: vip.ip() };
        for answer in context.reach(host, &ask, &["p1a", "p2a"])? {
            let wanted = if answer.pod() == Some("p1a") { vip.ip() } else { usual };
            ensure!(source(&answer)? == wanted, "{ask:?}: {answer:?}, not from {wanted}");
        }
    }
    // young entries become established ones, and are refreshed
    for text in ["at once", "later"] {
        for id in &kept {
            let answer = context.ask(host, &Ask::Say { id: id.clone(), text: text.into() })?;
            ensure!(answer.text == text, "{id}: {answer:?}");
        }
        sleep(Duration::from_millis(2200));
    }
    for id in kept {
        context.ask(host, &Ask::Close { id })?;
    }
    Ok(())
}

/// With route_localnet: without, the kernel refuses to send from there.
fn from_loopback(context: &mut Context) -> Result<()> {
    let from: IpAddr = [127, 0, 0, 1].into();
    for (number, pod) in [(REMOTE, "p2a"), (LOCAL, "p1a")] {
        let to = vips(number)[0];
        for ask in [Ask::HttpFrom { to, from }, Ask::UdpFrom { to, from, connected: true }] {
            let answer = context.reach(Side::Node(0), &ask, &[pod])?.swap_remove(0);
            ensure!(!source(&answer)?.is_loopback(), "{ask:?}: {answer:?}");
        }
    }
    Ok(())
}
