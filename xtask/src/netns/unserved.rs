//! What is not served: no endpoints, none for the policy, unknown ports and addresses; from pods, the node and outside,
//! in both families, TCP and UDP, each with the way it is turned away (B86-B95). SCTP is in `rejects`.

use std::net::SocketAddr;

use anyhow::{Result, ensure};

use super::detect::dropped;
use super::{AWAY, Case, Context, EMPTY, Side, WEB, address, node_port, service, vips};
use crate::lab::manifests::Service;
use crate::lab::node::ApiFeed;
use crate::lab::worker::Ask;

pub(super) const CASES: &[Case] = &[
    ("b86_b89_external_addresses_without_endpoints_are_refused", external),
    ("b87_b90_without_endpoints_for_the_policy_it_is_silent_or_short_circuited", policy),
    ("b91_b95_unknown_ports_of_cluster_ips_are_refused", unknown_ports),
    ("b92_unknown_addresses_of_the_service_ranges_are_silent", unknown_addresses),
    ("b94_node_ports_on_other_addresses_are_the_nodes_own_business", other_addresses),
    ("b86_refusals_are_limited_on_the_wire", limited),
];

const NONE: u32 = 35;
const HERE: u32 = 36;
const NONE_VIPS: [&str; 2] = ["203.0.113.35", "2001:db8:203::35"];
const NONE_EXTERNAL: &str = "198.51.100.35";

/// Waits until a Service that has just been made is known.
fn known(context: &mut Context, to: SocketAddr, wanted: &str) -> Result<()> {
    let ask = Ask::Http { to, path: "/".into(), mapped: false };
    let what = format!("{to} {wanted}");
    context.eventually(Side::Pod("p1b"), &ask, &what, |a| a.error.as_deref() == Some(wanted)).map(drop)
}

fn external(context: &mut Context) -> Result<()> {
    let none = Service {
        lb_ips: NONE_VIPS.map(String::from).into(),
        external_ips: vec![NONE_EXTERNAL.into()],
        ..service(NONE, "none")
    };
    context.lab.service(&none, &[])?;
    known(context, address(NONE_VIPS[0], 80), "ConnectionRefused")?;
    for to in [NONE_VIPS[0], NONE_VIPS[1], NONE_EXTERNAL].map(|ip| address(ip, 80)) {
        for side in [Side::Pod("p1b"), Side::Node(0), Side::Client] {
            context.refused(side, to, to)?;
        }
    }
    let node = context.lab.nodes[0].addresses.clone();
    for ip in &node {
        let (tcp, udp) = (address(ip, node_port(NONE)), address(ip, node_port(NONE) + 1));
        for side in [Side::Pod("p1b"), Side::Node(0), Side::Client] {
            context.refused(side, tcp, udp)?;
        }
    }
    Ok(())
}

fn policy(context: &mut Context) -> Result<()> {
    let here = Service {
        lb_ips: vec!["203.0.113.36".into(), "2001:db8:203::36".into()],
        spec: vec!["internalTrafficPolicy: Local".into(), "externalTrafficPolicy: Local".into()],
        ..service(HERE, "here")
    };
    context.lab.service(&here, &["p2a"])?;
    known(context, vips(HERE)[0], "TimedOut")?;
    let node = context.lab.nodes[0].addresses.clone();
    for family in [0, 1] {
        let cluster = vips(HERE)[family];
        for side in [Side::Pod("p1b"), Side::Node(0)] {
            dropped(context, side, cluster, cluster)?;
        }
        // the node that has the endpoint serves
        context.all_protocols(Side::Pod("p2b"), cluster, cluster, &["p2a"])?;
        let vip = address(["203.0.113.36", "2001:db8:203::36"][family], 80);
        let port = node_port(HERE);
        let (tcp, udp) = (address(&node[family], port), address(&node[family], port + 1));
        dropped(context, Side::Client, vip, vip)?;
        dropped(context, Side::Client, tcp, udp)?;
        for side in [Side::Pod("p1b"), Side::Node(0)] {
            context.all_protocols(side, vip, vip, &["p2a"])?;
            context.all_protocols(side, tcp, udp, &["p2a"])?;
        }
        // and so does the other node's NodePort
        let other = context.lab.nodes[1].addresses[family].clone();
        context.all_protocols(Side::Client, address(&other, port), address(&other, port + 1), &["p2a"])?;
    }
    Ok(())
}

fn unknown_ports(context: &mut Context) -> Result<()> {
    for number in [WEB, EMPTY, AWAY] {
        for vip in vips(number) {
            let to = SocketAddr::new(vip.ip(), 999);
            for side in [Side::Pod("p1b"), Side::Node(0), Side::Pod("p2b")] {
                context.refused(side, to, to)?;
            }
        }
    }
    Ok(())
}

fn unknown_addresses(context: &mut Context) -> Result<()> {
    for ip in ["10.96.0.250", "fd96::250"] {
        let to = address(ip, 80);
        for side in [Side::Pod("p1b"), Side::Node(0)] {
            dropped(context, side, to, to)?;
        }
    }
    Ok(())
}

/// The node's stack answers there: nobody listens.
fn other_addresses(context: &mut Context) -> Result<()> {
    let own = context.lab.nodes[0].namespace.clone();
    let extra = ["198.18.9.1/32", "2001:db8:9::1/128"];
    for line in extra {
        crate::lab::netns::ip(&own, &[format!("address add {line} dev lo")])?;
    }
    let done = (|| {
        for line in extra {
            let ip = line.split('/').next().unwrap_or(line);
            let (tcp, udp) = (address(ip, node_port(WEB)), address(ip, node_port(WEB) + 1));
            for side in [Side::Pod("p1b"), Side::Node(0)] {
                context.refused(side, tcp, udp)?;
            }
        }
        Ok(())
    })();
    for line in extra {
        crate::lab::netns::ip(&own, &[format!("address del {line} dev lo")])?;
    }
    done
}

/// One refusal a second and CPU: of a burst some are swallowed, and a second later there are refusals again.
fn limited(context: &mut Context) -> Result<()> {
    let agent = context.agent.clone();
    let manifests = context.lab.manifests.display().to_string();
    let limit = ["--manifests".to_owned(), manifests, "--reject-rate".to_owned(), "1".to_owned()];
    context.lab.nodes[0].stop_agent(libc::SIGTERM)?;
    context.lab.nodes[0].feed = Some(ApiFeed { arguments: limit.into(), ..ApiFeed::default() });
    context.lab.nodes[0].start_agent(&agent)?;
    let done = bursts(context);
    context.lab.nodes[0].stop_agent(libc::SIGTERM)?;
    context.lab.nodes[0].feed = None;
    context.lab.nodes[0].start_agent(&agent)?;
    done?;
    // without that limit none is swallowed
    for vip in vips(EMPTY) {
        for _ in 0..20 {
            let answer = context.udp(Side::Pod("p1b"), vip, true)?;
            ensure!(answer.error.as_deref() == Some("ConnectionRefused"), "{vip}: {answer:?}");
        }
    }
    Ok(())
}

fn bursts(context: &mut Context) -> Result<()> {
    for vip in vips(EMPTY) {
        let (mut refused, mut silent) = (0, 0);
        for _ in 0..2 {
            // up to the first that is swallowed, which takes more than a second to notice
            for _ in 0..200 {
                let answer = context.udp(Side::Pod("p1b"), vip, true)?;
                match answer.error.as_deref() {
                    Some("ConnectionRefused") => refused += 1,
                    Some("WouldBlock" | "TimedOut") => {
                        silent += 1;
                        break;
                    }
                    _ => anyhow::bail!("{vip}: {answer:?}"),
                }
            }
        }
        ensure!(refused >= 2 && silent == 2, "{vip}: {refused} refused, {silent} of 2 bursts were limited");
    }
    Ok(())
}
