//! ICMP errors inside flows: path-MTU discovery and traceroute through a Service, whoever sends the error.
//!
//! ```text
//!   far 198.18.5.2 --(mtu)-- router .50 ----+---- fabric
//!                               |           |
//!              node1 --(mtu)----+  to node2's pods, if the case asks for it
//! ```

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};

use super::{Case, Context, LOCAL, REMOTE, Side, address, node_port, service, vips};
use crate::lab::manifests::{Endpoint, slice};
use crate::lab::netns::{ip, run_in, sysctl};
use crate::lab::probe::Probe;
use crate::lab::worker::{Answer, Ask, Worker};
use crate::lab::{Kind, namespace, uplink};

pub(super) const CASES: &[Case] = &[("path_mtu_and_ttl_errors_reach_the_right_socket", errors)];

/// The far client's addresses.
const FAR: [&str; 2] = ["198.18.5.2", "2001:db8:5::2"];
/// The router's addresses on the fabric.
const ROUTER: [&str; 2] = ["192.0.2.50", "2001:db8:1::50"];
/// MTU between router and far client, as the router's routes have it.
const FAR_MTU: u32 = 1400;
/// MTU between the router and the pods of node2.
const POD_MTU: u32 = 1300;
/// A Service whose pods are there, but not listening.
const CLOSED: u32 = 41;
const CLOSED_PORT: u16 = 8099;

/// The router and the client behind it.
struct Far {
    router: String,
    client: String,
    worker: Worker,
}

impl Far {
    fn new(context: &Context) -> Result<Self> {
        let tag = &context.lab.tag;
        let (router, client) = (namespace(tag, "router")?, namespace(tag, "far")?);
        sysctl(
            &router,
            &[
                ("ipv4/ip_forward", "1"),
                ("ipv6/conf/all/forwarding", "1"),
                ("ipv4/conf/all/send_redirects", "0"),
                ("ipv4/conf/default/send_redirects", "0"),
                ("ipv4/icmp_ratelimit", "0"),
                ("ipv6/icmp/ratelimit", "0"),
            ],
        )?;
        uplink(&format!("{tag}-fabric"), &router, &ROUTER.map(String::from))?;
        ip(
            &router,
            &[
                format!("link add far0 type veth peer name eth0 netns {client}"),
                "address add 198.18.5.1/24 dev far0".into(),
                "address add 2001:db8:5::1/64 dev far0 nodad".into(),
                "link set far0 up".into(),
                format!("route add {}/32 dev far0 mtu {FAR_MTU}", FAR[0]),
                format!("route add {}/128 dev far0 mtu {FAR_MTU}", FAR[1]),
                format!("route add 10.77.2.0/24 via 192.0.2.12 mtu {POD_MTU}"),
                "route add 10.77.1.0/24 via 192.0.2.11".into(),
                "route add fd77:0:0:1::/64 via 2001:db8:1::11".into(),
                format!("route add fd77:0:0:2::/64 via 2001:db8:1::12 mtu {POD_MTU}"),
            ],
        )?;
        ip(
            &client,
            &[
                format!("address add {}/24 dev eth0", FAR[0]),
                format!("address add {}/64 dev eth0 nodad", FAR[1]),
                "link set eth0 up".into(),
                "route add default via 198.18.5.1".into(),
                "route add default via 2001:db8:5::1".into(),
            ],
        )?;
        for node in &context.lab.nodes {
            ip(
                &node.namespace,
                &[
                    format!("route add 198.18.5.0/24 via {}", ROUTER[0]),
                    format!("route add 2001:db8:5::/64 via {}", ROUTER[1]),
                ],
            )?;
        }
        Ok(Self { worker: Worker::start(&client, None)?, router, client })
    }
}

/// A datagram that is one IP packet of this length, whether it may be fragmented or not.
pub(super) fn packet(to: SocketAddr, length: usize, hops: u8) -> Ask {
    let headers = if to.is_ipv6() { 48 } else { 28 };
    Ask::Probe(Probe { to, port: 0, text: "who?".into(), bytes: length - headers, hops, sctp: false })
}

/// The path MTU that a namespace has learnt towards an address; 0 = none.
pub(super) fn learnt(namespace: &str, to: &str) -> Result<u32> {
    let text = run_in(namespace, &["ip", "-o", "route", "get", to], "")?;
    let mut words = text.split_whitespace();
    words.by_ref().find(|word| *word == "mtu");
    Ok(words.next().and_then(|word| word.parse().ok()).unwrap_or(0))
}

pub(super) fn forget(namespace: &str) -> Result<()> {
    for family in ["-4", "-6"] {
        run_in(namespace, &["ip", family, "route", "flush", "cache"], "")?;
    }
    Ok(())
}

/// `icmp TYPE CODE` of each family.
fn names(v6: bool, kind: &str) -> &'static str {
    match (kind, v6) {
        ("too big", false) => "icmp 3 4 ",
        ("too big", true) => "icmp 2 0 ",
        ("port", false) => "icmp 3 3 ",
        ("port", true) => "icmp 1 4 ",
        ("ttl", false) => "icmp 11 0 ",
        _ => "icmp 3 0 ",
    }
}

/// The answer is an ICMP error of that kind about `to`, by `from` if somebody is named.
pub(super) fn ensure_error(
    what: &str,
    answer: &Answer,
    kind: &str,
    to: SocketAddr,
    from: Option<&str>,
) -> Result<()> {
    let v6 = to.is_ipv6();
    let right = answer.error.is_none()
        && answer.text.starts_with(names(v6, kind))
        && (answer.text.ends_with(&format!("about {to}"))
            // a raw socket knows no ports
            || answer.text.ends_with(&format!("about {}", SocketAddr::new(to.ip(), 0))));
    ensure!(right, "{what}: {answer:?}, wanted {} about {to}", names(v6, kind));
    if let Some(from) = from {
        let seen = answer.from.map(|a| a.ip().to_string());
        ensure!(seen.as_deref() == Some(from), "{what}: the error is from {seen:?}, not {from}");
    }
    Ok(())
}

fn errors(context: &mut Context) -> Result<()> {
    let mut far = Far::new(context)?;
    let overlay = context.lab.kind == Kind::Overlay;
    for family in [0, 1] {
        replies_too_big(context, &mut far, family).context("replies too big for the client's link")?;
        hops(context, &mut far, family).context("time exceeded")?;
    }
    closed(context, &mut far).context("port unreachable")?;
    if overlay {
        for family in [0, 1] {
            requests_too_big(context, &mut far, family, 1450).context("requests too big for the overlay")?;
        }
        return Ok(());
    }
    // from now on node1 reaches the pods of node2 by the router
    let node = context.lab.nodes[0].namespace.clone();
    let detour = |via: [&str; 2]| {
        let lines = [
            format!("route replace 10.77.2.0/24 via {}", via[0]),
            format!("route replace fd77:0:0:2::/64 via {}", via[1]),
        ];
        ip(&node, &lines)
    };
    detour(ROUTER)?;
    let done = [0, 1].iter().try_for_each(|family| {
        requests_too_big(context, &mut far, *family, POD_MTU)?;
        pods_and_hosts(context, *family)
    });
    detour(["192.0.2.12", "2001:db8:1::12"])?;
    done.context("requests too big for a router in front of the backend")
}

/// The router tells the frontend that replies are too big; the backend must learn it, under the name it has for the
/// client: the client's own, or the address it was masqueraded to.
fn replies_too_big(context: &mut Context, far: &mut Far, family: usize) -> Result<()> {
    let node = context.lab.nodes[0].addresses[family].clone();
    for (number, pod) in [(LOCAL, "p1a"), (REMOTE, "p2a")] {
        let to = address(&node, node_port(number));
        let server = context.lab.pod(pod)?.namespace.clone();
        forget(&server)?;
        let bulk = far.worker.ask(&Ask::Bulk { to, bytes: 2 << 20 })?;
        ensure!(bulk.error.is_none() && bulk.millis < 5000, "4 MiB by {to}: {bulk:?}");
        let seen = far.worker.ask(&Ask::Http { to, path: "/".into(), mapped: false })?;
        let peer: SocketAddr = seen.field("peer").unwrap_or_default().parse()?;
        let mtu = learnt(&server, &peer.ip().to_string())?;
        ensure!(mtu == FAR_MTU, "{pod} knows a path MTU of {mtu} to {peer}, not {FAR_MTU}");
        // the same by UDP: a first answer that is too big is lost, and taught the pod
        forget(&server)?;
        let to = address(&node, node_port(number) + 1);
        let ask = Probe { to, port: 0, text: format!("BIG {BIG}"), bytes: 0, hops: 0, sctp: false };
        let lost = far.worker.ask(&Ask::Probe(ask))?;
        ensure!(lost.error.is_some(), "an answer of {BIG} bytes passed a link of {FAR_MTU}: {lost:?}");
        let mtu = learnt(&server, &peer.ip().to_string())?;
        ensure!(mtu == FAR_MTU, "UDP: {pod} knows a path MTU of {mtu} to {peer}, not {FAR_MTU}");
    }
    Ok(())
}

/// Bytes of a large answer: too much for [`FAR_MTU`], not for the pods' own devices.
const BIG: usize = 1390;

/// A hop between node1 and the backend tells the client that its packets are too big.
fn requests_too_big(context: &mut Context, far: &mut Far, family: usize, wanted: u32) -> Result<()> {
    let node = context.lab.nodes[0].addresses[family].clone();
    // between the client and the router nothing may be in the way
    let device = if family == 0 { format!("{}/32", FAR[0]) } else { format!("{}/128", FAR[1]) };
    ip(&far.router, &[format!("route replace {device} dev far0 mtu 1500")])?;
    forget(&far.client)?;
    let to = address(&node, node_port(REMOTE) + 1);
    let answer = far.worker.ask(&packet(to, 1480, 0))?;
    ensure_error("a large datagram from outside", &answer, "too big", to, Some(&node))?;
    ensure!(answer.text.contains(&format!(" mtu {wanted} ")), "not {wanted}: {answer:?}");
    let mtu = learnt(&far.client, &node)?;
    ensure!(mtu == wanted, "the client knows a path MTU of {mtu} to {node}, not {wanted}");
    let fits = far.worker.ask(&packet(to, wanted as usize, 0))?;
    ensure!(fits.pod() == Some("p2a"), "a datagram of {wanted} bytes: {fits:?}");
    forget(&far.client)?;
    let to = address(&node, node_port(REMOTE));
    let bulk = far.worker.ask(&Ask::Bulk { to, bytes: 2 << 20 })?;
    ensure!(bulk.error.is_none() && bulk.millis < 5000, "4 MiB by {to}: {bulk:?}");
    let mtu = learnt(&far.client, &node)?;
    // an overlay's MTU is that of its pods' devices, and so in their MSS: there is nothing to learn
    let wanted = if context.lab.kind == Kind::Overlay { 0 } else { wanted };
    ensure!(mtu == wanted, "TCP: the client knows a path MTU of {mtu} to {node}, not {wanted}");
    Ok(())
}

/// The same for a pod, which knows the frontend only, and for the host, whose socket knows the backend.
fn pods_and_hosts(context: &mut Context, family: usize) -> Result<()> {
    let to = vips(REMOTE)[family];
    let pod = context.lab.pod("p1b")?.namespace.clone();
    let answer = context.ask(Side::Pod("p1b"), &packet(to, 1480, 0))?;
    ensure_error("a large datagram of a pod", &answer, "too big", to, Some(&to.ip().to_string()))?;
    let mtu = learnt(&pod, &to.ip().to_string())?;
    ensure!(mtu == POD_MTU, "the pod knows a path MTU of {mtu} to {to}, not {POD_MTU}");
    let answer = context.ask(Side::Pod("p1b"), &Ask::Bulk { to, bytes: 1 << 20 })?;
    ensure!(answer.error.is_none() && answer.millis < 5000, "2 MiB of a pod by {to}: {answer:?}");

    let backend = context.lab.pod("p2a")?.addresses[family].clone();
    let answer = context.ask(Side::Node(0), &packet(to, 1480, 0))?;
    let known = answer.error.is_none() && answer.text.starts_with(names(family == 1, "too big"));
    ensure!(known, "a large datagram of the host: {answer:?}");
    let mtu = learnt(&context.lab.nodes[0].namespace, &backend)?;
    ensure!(mtu == POD_MTU, "the host knows a path MTU of {mtu} to {backend}, not {POD_MTU}");
    let answer = context.ask(Side::Node(0), &Ask::Bulk { to, bytes: 1 << 20 })?;
    ensure!(answer.error.is_none() && answer.millis < 5000, "2 MiB of the host by {to}: {answer:?}");
    forget(&pod)?;
    forget(&context.lab.nodes[0].namespace)
}

/// As traceroute does it: each hop answers, and the client's socket takes it for its own.
fn hops(context: &mut Context, far: &mut Far, family: usize) -> Result<()> {
    let node = context.lab.nodes[0].addresses[family].clone();
    let to = address(&node, node_port(REMOTE) + 1);
    let router = ["198.18.5.1", "2001:db8:5::1"][family];
    for (hops, from) in [(1, Some(router)), (2, Some(node.as_str())), (3, None)] {
        let answer = far.worker.ask(&packet(to, 100, hops))?;
        ensure_error(&format!("hop {hops} from outside"), &answer, "ttl", to, from)?;
    }
    let answer = far.worker.ask(&packet(to, 100, 4))?;
    ensure!(answer.pod() == Some("p2a"), "four hops from outside: {answer:?}");
    for number in [LOCAL, REMOTE] {
        let to = vips(number)[family];
        for hops in 1..=if number == LOCAL { 1 } else { 2 } {
            let answer = context.ask(Side::Pod("p1b"), &packet(to, 100, hops))?;
            ensure_error(&format!("hop {hops} of a pod"), &answer, "ttl", to, None)?;
        }
    }
    Ok(())
}

/// An error by the backend itself must seem to be the frontend's.
fn closed(context: &mut Context, far: &mut Far) -> Result<()> {
    let mut endpoints = Vec::new();
    for address in context.lab.pod("p2a")?.addresses.clone() {
        endpoints.push(Endpoint { address, node: "node2".into() });
    }
    for (v6, name) in [(false, "slice-closed-4"), (true, "slice-closed-6")] {
        let text = slice("closed", v6, &endpoints).replace("port: 8080", &format!("port: {CLOSED_PORT}"));
        context.lab.manifest(name, &text)?;
    }
    context.lab.manifest("service-closed", &service(CLOSED, "closed").yaml())?;
    for family in [0, 1] {
        let vip = vips(CLOSED)[family];
        let refused = Ask::Http { to: vip, path: "/".into(), mapped: false };
        context.eventually(Side::Pod("p1b"), &refused, "a Service with a closed port", |answer| {
            answer.error.as_deref() == Some("ConnectionRefused")
        })?;
        let answer = context.ask(Side::Pod("p1b"), &packet(vip, 100, 0))?;
        ensure_error("a closed port, from a pod", &answer, "port", vip, Some(&vip.ip().to_string()))?;
        let node = context.lab.nodes[0].addresses[family].clone();
        let to = address(&node, node_port(CLOSED) + 1);
        let answer = far.worker.ask(&packet(to, 100, 0))?;
        ensure_error("a closed port, from outside", &answer, "port", to, Some(&node))?;
    }
    Ok(())
}
