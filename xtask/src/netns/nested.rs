//! A cluster inside a pod (kind in a pod, virtual clusters): an agent of its own in the pod's network namespace and in a
//! cgroup below the node's, with Services of its own. Neither may meddle with the other.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::hostile::Server;
use super::{Case, Context, REMOTE, Side, WEB, address, vips};
use crate::lab::manifests::{self, Endpoint, POD_PORT, Service};
use crate::lab::namespace;
use crate::lab::netns::{ip, run_in, sysctl};
use crate::lab::node::Node;
use crate::lab::worker::{Ask, Worker};

pub(super) const CASES: &[Case] = &[("i4_a_cluster_inside_a_pod", nested)];

/// The inner cluster's Service: the address is the outer WEB's, on purpose for IPv4 and IPv6.
const INNER: u32 = WEB;
const INNER_NODE_PORT: u16 = 31700;
const INNER_POD: [&str; 2] = ["10.88.0.10", "fd88::10"];

fn nested(context: &mut Context) -> Result<()> {
    let pod = context.lab.pod("p1b")?;
    let (outer, addresses) = (pod.namespace.clone(), pod.addresses.clone());
    let inner = namespace(&context.lab.tag, "inner")?;
    sysctl(&outer, &[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")])?;
    ip(
        &outer,
        &[
            format!("link add vinner type veth peer name eth0 netns {inner}"),
            "address add 10.88.0.1/24 dev vinner".into(),
            "address add fd88::1/64 dev vinner nodad".into(),
            "link set vinner up".into(),
        ],
    )?;
    ip(
        &inner,
        &[
            format!("address add {}/24 dev eth0", INNER_POD[0]),
            format!("address add {}/64 dev eth0 nodad", INNER_POD[1]),
            "link set eth0 up".into(),
            "route add default via 10.88.0.1".into(),
            "route add default via fd88::1".into(),
        ],
    )?;
    // the outer cluster has no routes to the inner one's pods
    let rules = "table inet leaving { chain postrouting { type nat hook postrouting priority srcnat;
                 oifname eth0 ip saddr 10.88.0.0/16 masquerade
                 oifname eth0 ip6 saddr fd88::/32 masquerade; }; }";
    run_in(&outer, &["nft", "-f", "-"], rules)?;
    let server = Server::start(&inner, "inner", POD_PORT)?;
    let folder = context.lab.folder.join("nested");
    let files = folder.join("manifests");
    fs::create_dir_all(&files)?;
    write(&files, &addresses)?;
    let configuration = manifests::configuration("nested", &["10.88.0.0/16", "fd88::/32"]);
    let below = context.lab.nodes[0].workloads().join("nested");
    let mut node = Node::below(&below, "nested", &outer, addresses.clone(), &folder, &files, &configuration)?;
    node.start_agent(&context.agent)?;
    let result =
        talk(context, &mut node, &mut Worker::start(&inner, Some(&below.join("workloads")))?, &addresses);
    node.stop_agent(libc::SIGTERM)?;
    node.agent_command(&context.agent, "cleanup")?;
    drop((node, server));
    run_in(&outer, &["nft", "delete", "table", "inet", "leaving"], "")?;
    ip(&outer, &["link delete vinner".into()])?;
    result?;
    for vip in vips(WEB) {
        context
            .all_protocols(Side::Pod("p1b"), vip, vip, &["p1a", "p2a"])
            .context("after the inner cluster")?;
    }
    Ok(())
}

fn write(files: &Path, addresses: &[String; 2]) -> Result<()> {
    let service = Service {
        name: "inner".into(),
        cluster_ips: vips(INNER).map(|vip| vip.ip().to_string()).into(),
        node_port: Some(INNER_NODE_PORT),
        ..Service::default()
    };
    let endpoints = INNER_POD.map(|ip| Endpoint { address: ip.into(), node: "nested".into() });
    let cidrs = ["10.88.0.0/24".to_owned(), "fd88::/64".to_owned()];
    for (name, text) in [
        ("cidr", manifests::service_cidr(&crate::lab::SERVICE_CIDRS)),
        ("node", manifests::node("nested", addresses, &cidrs)),
        ("service", service.yaml()),
        ("slice4", manifests::slice("inner", false, &endpoints)),
        ("slice6", manifests::slice("inner", true, &endpoints)),
    ] {
        fs::write(files.join(format!("{name}.yaml")), text)?;
    }
    Ok(())
}

fn talk(context: &mut Context, node: &mut Node, inside: &mut Worker, addresses: &[String; 2]) -> Result<()> {
    for (family, vip) in vips(INNER).into_iter().enumerate() {
        // one address, two Services: the inner cluster's for its host, the outer one's for the other pods
        for ask in [
            Ask::Http { to: vip, path: "/".into(), mapped: false },
            Ask::Udp { to: vip, connected: true, mapped: false },
            Ask::Udp { to: vip, connected: false, mapped: false },
        ] {
            let answer = node.worker.ask(&ask)?;
            ensure!(answer.pod() == Some("inner"), "the inner host, {ask:?}: {answer:?}");
            // a hairpin by the inner agent's hooks
            let answer = inside.ask(&ask)?;
            ensure!(answer.pod() == Some("inner"), "the inner pod, {ask:?}: {answer:?}");
        }
        // what the outer cluster has beyond that is dropped, as unknown to the inner one (B92)
        let far = vips(REMOTE)[family];
        let answer = inside.ask(&Ask::Http { to: far, path: "/".into(), mapped: false })?;
        ensure!(answer.error.is_some(), "{far} is an unknown address of the inner cluster: {answer:?}");
        context.all_protocols(Side::Pod("p2b"), vip, vip, &["p1a", "p2a"])?;
        context.all_protocols(Side::Node(0), vip, vip, &["p1a", "p2a"])?;
        // a NodePort of the inner cluster, from pods of the outer one
        let (tcp, udp) =
            (address(&addresses[family], INNER_NODE_PORT), address(&addresses[family], INNER_NODE_PORT + 1));
        for side in [Side::Pod("p1a"), Side::Pod("p2b"), Side::Node(0)] {
            context.all_protocols(side, tcp, udp, &["inner"])?;
        }
    }
    Ok(())
}
