//! Labels and addresses that change in the API while the agent runs.

use std::net::SocketAddr;

use anyhow::Result;

use super::{Api, Case, FIRST, LATE, SECOND, SLOW, WEB, address, node_port, service, vips};
use crate::lab::manifests::POD_PORT;
use crate::lab::netns::ip;
use crate::lab::worker::Ask;
use crate::netns::Side;

pub(super) const CASES: &[Case] = &[
    ("b3_a_service_of_another_proxy_goes_and_comes_back_with_its_label", another_proxy),
    ("b56_b60_hints_follow_the_zone_label_of_the_node", zone),
    ("b155_node_ports_follow_the_primary_address_of_the_node", primary),
];

fn another_proxy(api: &mut Api) -> Result<()> {
    api.begin(api.feed(&[SECOND]))?;
    api.healthy()?;
    api.make_late()?;
    api.serves(LATE, "p2b")?;
    let labelled = |value: &str| {
        let labels =
            format!("namespace: default, labels: {{service.kubernetes.io/service-proxy-name: {value}}}");
        service(LATE, "late").yaml().replacen("namespace: default", &labels, 1)
    };
    let done = (|| {
        // any value counts, an empty one too
        for value in ["other", "\"\""] {
            api.plane.apply(FIRST, &labelled(value))?;
            api.is_gone(LATE)?;
            api.plane.apply(FIRST, &labelled("null"))?;
            api.serves(LATE, "p2b")?;
        }
        anyhow::Ok(())
    })();
    api.remove_late()?;
    done?;
    api.is_gone(LATE)
}

/// Gives node 1 a label; `null` takes it away.
fn label(api: &Api, name: &str, value: &str) -> Result<()> {
    let node =
        format!("apiVersion: v1\nkind: Node\nmetadata: {{name: node1, labels: {{{name}: {value}}}}}\n");
    api.plane.apply(FIRST, &node)
}

fn zone(api: &mut Api) -> Result<()> {
    api.make_late()?;
    let mut slice = format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: late-ipv4, namespace: default}}\n\
         addressType: IPv4\nports: [{{name: tcp, protocol: TCP, port: {POD_PORT}}}]\nendpoints:\n"
    );
    for (pod, node, zone) in [("p1a", "node1", "east"), ("p2a", "node2", "west")] {
        let address = api.context.lab.pod(pod)?.addresses[0].clone();
        slice += &format!(
            "- {{addresses: [\"{address}\"], nodeName: {node}, conditions: {{ready: true}}, hints: {{forZones: [{{name: {zone}}}]}}}}\n"
        );
    }
    api.plane.apply(FIRST, &slice)?;
    let to = vips(LATE)[0];
    let done = (|| {
        for (zone, pods) in [
            ("east", &["p1a"][..]),
            ("west", &["p2a"]),
            ("north", &["p1a", "p2a"]),
            ("null", &["p1a", "p2a"]),
        ] {
            label(api, "topology.kubernetes.io/zone", zone)?;
            only(api, to, pods)?;
        }
        anyhow::Ok(())
    })();
    label(api, "topology.kubernetes.io/zone", "null")?;
    api.remove_late()?;
    done
}

/// Waits until 20 requests in a row are answered by just these pods, each of them.
fn only(api: &mut Api, to: SocketAddr, pods: &[&str]) -> Result<()> {
    let begin = std::time::Instant::now();
    loop {
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..20 {
            let answer =
                api.context.ask(Side::Pod("p1b"), &Ask::Http { to, path: "/".into(), mapped: false })?;
            seen.insert(answer.pod().unwrap_or("nobody").to_owned());
        }
        if seen.iter().map(String::as_str).eq(pods.iter().copied()) {
            return Ok(());
        }
        anyhow::ensure!(begin.elapsed() < SLOW, "{to}: {seen:?} answer, not {pods:?}");
    }
}

/// kube-proxy exits then; here it acts at once.
fn primary(api: &mut Api) -> Result<()> {
    const MOVED: [&str; 2] = ["198.18.6.1", "2001:db8:6::1"];
    let own = api.context.lab.nodes[0].namespace.clone();
    let usual = api.context.lab.nodes[0].addresses.clone();
    let lines = |verb: &str| {
        MOVED.map(|ip| format!("address {verb} {ip}/{} dev lo", if ip.contains(':') { 128 } else { 32 }))
    };
    ip(&own, &lines("add"))?;
    let done = moves(api, &usual, &MOVED.map(String::from)).and_then(|()| {
        api.context.lab.nodes[0].wait_healthy()?; // it did not end
        anyhow::Ok(())
    });
    let back = moves(api, &MOVED.map(String::from), &usual);
    ip(&own, &lines("del"))?;
    done.and(back)
}

/// Has the Node say other addresses, and waits until NodePorts have moved.
fn moves(api: &mut Api, from: &[String; 2], to: &[String; 2]) -> Result<()> {
    let node = format!(
        "apiVersion: v1\nkind: Node\nmetadata: {{name: node1}}\nstatus:\n  addresses:\n  - {{type: InternalIP, address: \"{}\"}}\n  \
         - {{type: InternalIP, address: \"{}\"}}\n",
        to[0], to[1]
    );
    api.plane.apply(FIRST, &node)?;
    for family in [0, 1] {
        for (ip, served) in [(&to[family], true), (&from[family], false)] {
            let at = address(ip, node_port(WEB));
            api.follows(at, &format!("NodePort at {ip} served: {served}"), |answer| {
                answer.is_some() == served
            })?;
        }
    }
    Ok(())
}
