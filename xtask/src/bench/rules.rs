//! Rule sets of the shape that kube-proxy programs, for nft and for iptables, made by ourselves: what decides is how
//! many chains and rules a packet meets, and in which order. One Service is used; it stands in the middle.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

/// The Service that traffic goes to.
#[derive(Clone, Debug)]
pub(crate) struct Probed {
    /// `tcp` or `udp`.
    pub(crate) protocol: &'static str,
    /// Its ClusterIP and port.
    pub(crate) cluster_ip: (Ipv4Addr, u16),
    /// Its NodePort.
    pub(crate) node_port: u16,
    /// The node's address on which NodePorts answer.
    pub(crate) node: Ipv4Addr,
    /// Its endpoints.
    pub(crate) endpoints: Vec<(Ipv4Addr, u16)>,
}

/// Sources that are pods.
const PODS: &str = "10.77.0.0/16";
/// The mark by which a packet is masqueraded.
const MARK: &str = "0x4000";

/// One port of a Service, with a name of its own.
struct Port {
    name: String,
    protocol: &'static str,
    address: Ipv4Addr,
    port: u16,
    node_port: Option<u16>,
    endpoints: Vec<(Ipv4Addr, u16)>,
}

/// `services` in all; the others have two endpoints that nobody asks for.
fn ports(services: usize, probed: &Probed) -> Vec<Port> {
    let other = |number: usize| {
        let (high, low) = ((number / 250) as u8, (number % 250 + 1) as u8);
        Port {
            name: format!("S{number:05}"),
            protocol: "tcp",
            address: Ipv4Addr::new(10, 97, high, low),
            port: 80,
            node_port: None,
            endpoints: [1, 2].map(|net| (Ipv4Addr::new(10, 128 + net, high, low), 8080)).into(),
        }
    };
    let mut ports: Vec<Port> = (0..services.saturating_sub(1)).map(other).collect();
    let probed = Port {
        name: "PROBED".into(),
        protocol: probed.protocol,
        address: probed.cluster_ip.0,
        port: probed.cluster_ip.1,
        node_port: Some(probed.node_port),
        endpoints: probed.endpoints.clone(),
    };
    ports.insert(ports.len() / 2, probed);
    ports
}

/// For `nft -f`: maps from frontend to chain, a chain per Service and per endpoint.
pub(crate) fn nft(services: usize, probed: &Probed) -> String {
    let (mut chains, mut vips, mut nodes) = (String::new(), Vec::new(), Vec::new());
    for port in ports(services, probed) {
        let Port { name, protocol, address, port: number, node_port, endpoints } = &port;
        vips.push(format!("{address} . {protocol} . {number} : goto service-{name}"));
        let picks: Vec<String> =
            (0..endpoints.len()).map(|at| format!("{at} : goto endpoint-{name}-{at}")).collect();
        for (at, (ip, target)) in endpoints.iter().enumerate() {
            writeln!(
                chains,
                "chain endpoint-{name}-{at} {{\n ip saddr {ip} jump mark-for-masquerade\n meta l4proto {protocol} dnat to \
                 {ip}:{target}\n}}"
            )
            .ok();
        }
        writeln!(
            chains,
            "chain service-{name} {{\n ip daddr {address} {protocol} dport {number} ip saddr != {PODS} jump \
             mark-for-masquerade\n numgen random mod {} vmap {{ {} }}\n}}",
            endpoints.len(),
            picks.join(", ")
        )
        .ok();
        if let Some(node_port) = node_port {
            nodes.push(format!("{protocol} . {node_port} : goto external-{name}"));
            writeln!(chains, "chain external-{name} {{\n jump mark-for-masquerade\n goto service-{name}\n}}")
                .ok();
        }
    }
    format!(
        "table ip bench-proxy {{
chain mark-for-masquerade {{
 meta mark set meta mark | {MARK}
}}
{chains}
map no-endpoints {{
 type ipv4_addr . inet_proto . inet_service : verdict
}}
set cluster-ips {{
 type ipv4_addr
 elements = {{ {addresses} }}
}}
set node-addresses {{
 type ipv4_addr
 elements = {{ {node} }}
}}
map service-ips {{
 type ipv4_addr . inet_proto . inet_service : verdict
 elements = {{ {vips} }}
}}
map service-nodeports {{
 type inet_proto . inet_service : verdict
 elements = {{ {nodes} }}
}}
chain services {{
 ip daddr . meta l4proto . th dport vmap @service-ips
 ip daddr @node-addresses meta l4proto . th dport vmap @service-nodeports
}}
chain endpoints-check {{
 ip daddr . meta l4proto . th dport vmap @no-endpoints
}}
chain cluster-ips-check {{
 ip daddr @cluster-ips reject
}}
chain filter-forward {{
 type filter hook forward priority -110;
 ct state new jump endpoints-check
 ct state new jump cluster-ips-check
}}
chain filter-output {{
 type filter hook output priority -110;
 ct state new jump endpoints-check
 ct state new jump cluster-ips-check
}}
chain nat-prerouting {{
 type nat hook prerouting priority dstnat;
 jump services
}}
chain nat-output {{
 type nat hook output priority -100;
 jump services
}}
chain nat-postrouting {{
 type nat hook postrouting priority srcnat;
 meta mark & {MARK} == 0 return
 meta mark set meta mark ^ {MARK}
 masquerade fully-random
}}
}}
",
        addresses = vips.iter().filter_map(|vip| vip.split(' ').next()).collect::<Vec<_>>().join(", "),
        node = probed.node,
        vips = vips.join(",\n"),
        nodes = nodes.join(", "),
    )
}

/// For `iptables-restore`: one list of Services that every new connection walks until its own rule.
pub(crate) fn iptables(services: usize, probed: &Probed) -> String {
    let (mut heads, mut list, mut rules, mut nodes) =
        (String::new(), String::new(), String::new(), String::new());
    for port in ports(services, probed) {
        let Port { name, protocol, address, port: number, node_port, endpoints } = &port;
        writeln!(heads, ":KUBE-SVC-{name} - [0:0]").ok();
        writeln!(
            list,
            "-A KUBE-SERVICES -d {address}/32 -p {protocol} -m comment --comment \"default/{name} cluster IP\" -m {protocol} \
             --dport {number} -j KUBE-SVC-{name}"
        )
        .ok();
        writeln!(
            rules,
            "-A KUBE-SVC-{name} ! -s {PODS} -d {address}/32 -p {protocol} -m {protocol} --dport {number} -j KUBE-MARK-MASQ"
        )
        .ok();
        for (at, (ip, target)) in endpoints.iter().enumerate() {
            writeln!(heads, ":KUBE-SEP-{name}-{at} - [0:0]").ok();
            let left = endpoints.len() - at;
            let chance = if left == 1 {
                String::new()
            } else {
                format!("-m statistic --mode random --probability {:.10} ", 1.0 / left as f64)
            };
            writeln!(rules, "-A KUBE-SVC-{name} {chance}-j KUBE-SEP-{name}-{at}").ok();
            writeln!(rules, "-A KUBE-SEP-{name}-{at} -s {ip}/32 -j KUBE-MARK-MASQ").ok();
            writeln!(
                rules,
                "-A KUBE-SEP-{name}-{at} -p {protocol} -m {protocol} -j DNAT --to-destination {ip}:{target}"
            )
            .ok();
        }
        if let Some(node_port) = node_port {
            writeln!(heads, ":KUBE-EXT-{name} - [0:0]").ok();
            writeln!(rules, "-A KUBE-EXT-{name} -j KUBE-MARK-MASQ\n-A KUBE-EXT-{name} -j KUBE-SVC-{name}")
                .ok();
            writeln!(
                nodes,
                "-A KUBE-NODEPORTS -p {protocol} -m {protocol} --dport {node_port} -j KUBE-EXT-{name}"
            )
            .ok();
        }
    }
    format!(
        "*nat
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
{heads}-A PREROUTING -j KUBE-SERVICES
-A OUTPUT -j KUBE-SERVICES
-A POSTROUTING -j KUBE-POSTROUTING
{list}-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
{nodes}{rules}-A KUBE-MARK-MASQ -j MARK --or-mark {MARK}
-A KUBE-POSTROUTING -m mark ! --mark {MARK}/{MARK} -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark {MARK}
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
COMMIT
*filter
:KUBE-FORWARD - [0:0]
:KUBE-EXTERNAL - [0:0]
-A INPUT -m conntrack --ctstate NEW -j KUBE-EXTERNAL
-A FORWARD -m conntrack --ctstate NEW -j KUBE-EXTERNAL
-A FORWARD -j KUBE-FORWARD
-A OUTPUT -m conntrack --ctstate NEW -j KUBE-EXTERNAL
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m mark --mark {MARK}/{MARK} -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probed() -> Probed {
        Probed {
            protocol: "udp",
            cluster_ip: (Ipv4Addr::new(10, 96, 255, 1), 80),
            node_port: 30_081,
            node: Ipv4Addr::new(192, 0, 2, 11),
            endpoints: vec![(Ipv4Addr::new(10, 77, 2, 16), 8080), (Ipv4Addr::new(10, 77, 2, 17), 8080)],
        }
    }

    #[test]
    fn the_probed_service_is_in_the_middle_of_the_list() {
        let text = iptables(1001, &probed());
        let list: Vec<&str> = text.lines().filter(|line| line.starts_with("-A KUBE-SERVICES -d")).collect();
        assert_eq!(list.len(), 1001);
        assert!(list[500].contains("10.96.255.1/32"), "{}", list[500]);
        assert!(text.contains("-A KUBE-NODEPORTS -p udp -m udp --dport 30081 -j KUBE-EXT-PROBED"));
    }

    #[test]
    fn every_chain_that_is_gone_to_exists() {
        let text = nft(10, &probed());
        for target in text.split("goto ").skip(1).filter_map(|rest| rest.split([' ', ',', '\n']).next()) {
            assert!(text.contains(&format!("chain {target} {{")), "{target}");
        }
        assert_eq!(text.matches("numgen random mod 2").count(), 10);
    }
}
