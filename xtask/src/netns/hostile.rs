//! Neighbours that make it hard: another masquerade on the same packets, a node-local cache on a ClusterIP, pods behind
//! an L3 device.

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{Case, Context, REMOTE, Side, WEB, address, node_port, service, vips};
use crate::lab::janitor;
use crate::lab::manifests::SERVICE_PORT;
use crate::lab::netns::{self, inside, ip, run_in};
use crate::lab::probe::Probe;
use crate::lab::tun::Tunnel;
use crate::lab::worker::Ask;

pub(super) const CASES: &[Case] = &[
    ("a_fully_random_masquerade_beside_ours", masquerade_beside),
    ("a_cluster_ip_that_the_node_owns_is_left_to_the_host", node_local_cache),
    ("pods_of_the_other_node_behind_an_l3_device", l3_device),
    ("a_hosts_own_datagram_from_a_node_port_gets_its_answer", host_datagram),
];

/// Time for the last packets of earlier connections.
const SETTLE: Duration = Duration::from_millis(500);

/// What flannel does beside its rule for pods: whatever comes to pods from elsewhere is masqueraded, by any port.
const BESIDE: &str = "
table inet beside {
  chain postrouting {
    type nat hook postrouting priority srcnat;
    ip saddr != 10.77.0.0/16 ip daddr 10.77.0.0/16 masquerade fully-random
    ip6 saddr != fd77::/32 ip6 daddr fd77::/32 masquerade fully-random
  }
}
";

fn masquerade_beside(context: &mut Context) -> Result<()> {
    let node = context.lab.nodes[0].namespace.clone();
    run_in(&node, &["nft", "-f", "-"], BESIDE)?;
    let result = (|| -> Result<()> {
        for node in context.lab.nodes[0].addresses.clone() {
            for number in [REMOTE, WEB] {
                let port = node_port(number);
                let pods: &[&str] = if number == REMOTE { &["p2a"] } else { &["p1a", "p2a"] };
                // many flows, so that some get ports of our own pool
                for _ in 0..25 {
                    context.all_protocols(
                        Side::Client,
                        address(&node, port),
                        address(&node, port + 1),
                        pods,
                    )?;
                }
                let bulk =
                    context.ask(Side::Client, &Ask::Bulk { to: address(&node, port), bytes: 1 << 20 })?;
                ensure!(bulk.error.is_none() && bulk.millis < 5000, "2 MiB: {bulk:?}");
            }
        }
        for vip in vips(WEB) {
            context.all_protocols(Side::Node(0), vip, vip, &["p1a", "p2a"])?;
        }
        Ok(())
    })();
    run_in(&node, &["nft", "delete", "table", "inet", "beside"], "")?;
    result
}

/// A server of ours in some namespace; ends with this value.
pub(super) struct Server(Child);

impl Server {
    /// On all addresses.
    pub(super) fn start(namespace: &str, name: &str, port: u16) -> Result<Self> {
        Self::start_at(namespace, name, Ipv6Addr::UNSPECIFIED.into(), port)
    }

    /// On one address, which its answers come from.
    fn start_at(namespace: &str, name: &str, address: IpAddr, port: u16) -> Result<Self> {
        let mut command = netns::command(namespace, None, Path::new(netns::OWN_PROGRAM))?;
        command.args(["serve", "--pod", name, "--node", "none"]);
        command.args(["--address", &address.to_string(), "--port", &port.to_string()]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        janitor::process(child.id());
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("stdout")?).read_line(&mut line)?;
        ensure!(line.trim() == "listening", "the server {name} did not start");
        Ok(Self(child))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        janitor::ended(self.0.id());
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

const CACHED: u32 = 20;

/// As NodeLocal DNSCache has it: the node owns the ClusterIP, a process of the host answers there, pods included.
fn node_local_cache(context: &mut Context) -> Result<()> {
    context.lab.service(&service(CACHED, "cached"), &["p2a"])?;
    for vip in vips(CACHED) {
        let ask = Ask::Http { to: vip, path: "/".into(), mapped: false };
        context.eventually(Side::Pod("p1b"), &ask, "the Service", |answer| answer.pod() == Some("p2a"))?;
    }
    let node = context.lab.nodes[0].namespace.clone();
    let own = |verb: &str| {
        let [four, six] = vips(CACHED).map(|vip| vip.ip());
        ip(&node, &[format!("address {verb} {four}/32 dev lo"), format!("address {verb} {six}/128 dev lo")])
    };
    own("add")?;
    let [four, six] = vips(CACHED).map(|vip| Server::start_at(&node, "cache", vip.ip(), SERVICE_PORT));
    let servers = (four?, six?);
    let answered = (|| -> Result<()> {
        for vip in vips(CACHED) {
            for side in [Side::Pod("p1b"), Side::Node(0)] {
                let ask = Ask::Http { to: vip, path: "/".into(), mapped: false };
                context.eventually(side, &ask, "the node's own server", |a| a.pod() == Some("cache"))?;
                context.all_protocols(side, vip, vip, &["cache"])?;
            }
            // the other node does not own it
            context.all_protocols(Side::Pod("p2b"), vip, vip, &["p2a"])?;
        }
        let status = context.lab.nodes[0].agent_command(&context.agent, "status")?;
        let [four, six] = vips(CACHED).map(|vip| vip.ip());
        for ip in [four, six] {
            let said =
                status.lines().any(|l| l.contains(&format!("owns {ip} ")) || l.contains("left to the host"));
            ensure!(said, "status does not say that {ip} is left to the host:\n{status}");
        }
        Ok(())
    })();
    drop(servers);
    own("delete")?;
    answered?;
    for vip in vips(CACHED) {
        let ask = Ask::Http { to: vip, path: "/".into(), mapped: false };
        context
            .eventually(Side::Pod("p1b"), &ask, "the Service again", |answer| answer.pod() == Some("p2a"))?;
    }
    Ok(())
}

/// Pods of the other node behind a tun device, which has no Ethernet header (WireGuard, IPIP and SIT look the same).
fn l3_device(context: &mut Context) -> Result<()> {
    let [first, second] = [0, 1].map(|index| context.lab.nodes[index].namespace.clone());
    let tunnel = Tunnel::new(&first, &second, "tun7")?;
    let overlay = context.lab.kind == crate::lab::Kind::Overlay;
    let routes = |namespace: &str, other: usize, back: bool| {
        let (four, six) = (format!("10.77.{other}.0/24"), format!("fd77:0:0:{other}::/64"));
        let lines = match (back, overlay) {
            (false, _) => {
                vec![format!("route replace {four} dev tun7"), format!("route replace {six} dev tun7")]
            }
            (true, false) => vec![
                format!("route replace {four} via 192.0.2.1{other}"),
                format!("route replace {six} via 2001:db8:1::1{other}"),
            ],
            // the gateways are inside: found behind the tunnel while the route to it is there
            (true, true) => vec![
                format!("route delete {six}"),
                format!("route replace {four} via 10.77.{other}.0 dev vx0 onlink"),
                format!("route replace {six} via fd77:0:0:{other}:: dev vx0 onlink"),
            ],
        };
        ip(namespace, &lines)
    };
    // what is under way between the nodes would be a martian behind the change
    std::thread::sleep(SETTLE);
    routes(&first, 2, false)?;
    routes(&second, 1, false)?;
    // node1's own address comes by the tunnel, too, when it talks to pods of node2
    let back = [
        format!("route add {}/32 dev tun7", context.lab.nodes[0].addresses[0]),
        format!("route add {}/128 dev tun7", context.lab.nodes[0].addresses[1]),
    ];
    ip(&second, &back)?;
    let result = (|| -> Result<()> {
        for vip in vips(REMOTE) {
            // the agent attaches to the new device when it hears of it
            let ask = Ask::Http { to: vip, path: "/".into(), mapped: false };
            context.eventually(Side::Pod("p1b"), &ask, "a pod by the tunnel", |a| a.pod() == Some("p2a"))?;
            context.all_protocols(Side::Pod("p1b"), vip, vip, &["p2a"])?;
            context.all_protocols(Side::Node(0), vip, vip, &["p2a"])?;
            let bulk = context.ask(Side::Pod("p1b"), &Ask::Bulk { to: vip, bytes: 1 << 20 })?;
            ensure!(bulk.error.is_none() && bulk.millis < 8000, "2 MiB by the tunnel: {bulk:?}");
        }
        for node in context.lab.nodes[0].addresses.clone() {
            let (tcp, udp) = (address(&node, node_port(REMOTE)), address(&node, node_port(REMOTE) + 1));
            let ask = Ask::Http { to: tcp, path: "/".into(), mapped: false };
            context
                .eventually(Side::Client, &ask, "from outside by the tunnel", |a| a.pod() == Some("p2a"))?;
            context.all_protocols(Side::Client, tcp, udp, &["p2a"])?;
            let bulk = context.ask(Side::Client, &Ask::Bulk { to: tcp, bytes: 1 << 20 })?;
            ensure!(bulk.error.is_none() && bulk.millis < 8000, "2 MiB from outside: {bulk:?}");
        }
        let carried = tunnel.packets();
        ensure!(carried > 100, "the tunnel carried {carried} packets: the traffic took another way");
        Ok(())
    })();
    std::thread::sleep(SETTLE);
    routes(&first, 2, true)?;
    // these first: a gateway behind the tunnel would take its route along when the tunnel goes
    ip(&second, &back.map(|line| line.replace("route add", "route delete")))?;
    routes(&second, 1, true)?;
    drop(tunnel);
    result
}

/// A resolver of the host whose source port is a NodePort of UDP asks a server outside, and one behind a Service: the
/// answers are its own, while clients of the NodePort go on being served.
fn host_datagram(context: &mut Context) -> Result<()> {
    let client = format!("{}-client", context.lab.tag);
    let server = Server::start(&client, "outside", 53)?;
    let port = node_port(WEB) + 1;
    let reserved = inside(&context.lab.nodes[0].namespace, || {
        Ok(std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_reserved_ports")?)
    })?;
    let kept = reserved.trim().split(',').filter_map(|range| range.split_once('-')).any(|(min, max)| {
        min.parse::<u16>().is_ok_and(|min| min <= port) && max.parse::<u16>().is_ok_and(|max| max >= port)
    });
    ensure!(kept, "port {port} is not reserved: {reserved}");
    for family in [0, 1] {
        let outside = address(crate::lab::CLIENT[family], 53);
        let node = context.lab.nodes[0].addresses[family].clone();
        for (to, pods) in [(outside, ["outside"; 2]), (vips(WEB)[family], ["p1a", "p2a"])] {
            for _ in 0..5 {
                let probe = Probe { to, port, text: "who?".into(), bytes: 0, hops: 0, sctp: false };
                let answer = context.ask(Side::Node(0), &Ask::Probe(probe))?;
                let pod = answer.pod().unwrap_or_default();
                ensure!(pods.contains(&pod), "from port {port} to {to}: {answer:?}");
                context.reach(
                    Side::Client,
                    &Ask::Udp { to: address(&node, port), connected: true, mapped: false },
                    &["p1a", "p2a"],
                )?;
            }
        }
    }
    drop(server);
    Ok(())
}
