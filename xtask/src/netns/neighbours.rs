//! What is not ours stays as it was: direct traffic, other programs behind ours, rules inside pods.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, ensure};

use super::{Case, Context, LOCAL, Side, address, vips};
use crate::lab::netns::run_in;
use crate::lab::worker::Ask;

pub(super) const CASES: &[Case] = &[
    ("i3_a_filter_behind_ours_sees_what_we_pass", filter_behind_ours),
    ("i4_a_redirect_inside_a_pod_still_works", redirect_in_a_pod),
    ("i5_direct_traffic_is_unchanged", direct_traffic),
];

/// I3: a clsact filter on the client pod's veth drops packets to the backend, which ours made of packets to the
/// frontend. With TC_ACT_OK it would never see them.
fn filter_behind_ours(context: &mut Context) -> Result<()> {
    let node = context.lab.nodes[0].namespace.clone();
    let device = context.lab.pod("p1b")?.device.clone();
    let backend: Ipv4Addr = context.lab.pod("p1a")?.addresses[0].parse()?;
    let ask = Ask::Http { to: vips(LOCAL)[0], path: "/".into(), mapped: false };
    context.reach(Side::Pod("p1b"), &ask, &["p1a"])?;
    // classic BPF from the MAC header on: IPv4 destination == backend ? TC_ACT_SHOT : TC_ACT_UNSPEC
    let code = format!("4,32 0 0 30,21 0 1 {},6 0 0 2,6 0 0 4294967295", u32::from(backend));
    let had_clsact = run_in(&node, &["tc", "qdisc", "show", "dev", &device], "")?.contains("clsact");
    if !had_clsact {
        run_in(&node, &["tc", "qdisc", "add", "dev", &device, "clsact"], "")?;
    }
    let filter = ["dev", &device, "ingress", "pref", "60000"];
    let add = [&["tc", "filter", "add"], &filter[..], &["protocol", "all", "bpf", "da", "bytecode", &code]]
        .concat();
    run_in(&node, &add, "")?;
    let dropped = context.ask(Side::Pod("p1b"), &ask);
    run_in(&node, &[&["tc", "filter", "delete"], &filter[..]].concat(), "")?;
    if !had_clsact {
        run_in(&node, &["tc", "qdisc", "delete", "dev", &device, "clsact"], "")?;
    }
    let dropped = dropped?;
    ensure!(
        dropped.error.as_deref() == Some("TimedOut"),
        "the filter behind ours was passed by: {dropped:?}"
    );
    context.reach(Side::Pod("p1b"), &ask, &["p1a"]).context("after the filter is gone").map(drop)
}

/// I4: sockets of pods are not translated, so a service mesh's REDIRECT meets the frontend's address.
fn redirect_in_a_pod(context: &mut Context) -> Result<()> {
    let pod = context.lab.pod("p1b")?.namespace.clone();
    let to = vips(LOCAL)[0];
    let rules = format!(
        "table ip mesh {{ chain output {{ type nat hook output priority -100; ip daddr {} tcp dport 80 redirect to :8080; }}; }}",
        to.ip()
    );
    run_in(&pod, &["nft", "-f", "-"], &rules)?;
    let answer = context.http(Side::Pod("p1b"), to);
    run_in(&pod, &["nft", "delete", "table", "ip", "mesh"], "")?;
    let answer = answer?;
    ensure!(answer.pod() == Some("p1b"), "the rule in the pod did not see the frontend: {answer:?}");
    context.reach(Side::Pod("p1b"), &Ask::Http { to, path: "/".into(), mapped: false }, &["p1a"]).map(drop)
}

/// I5: pod to pod and host to pod without any Service, with the addresses the sockets have.
pub(super) fn direct_traffic(context: &mut Context) -> Result<()> {
    for server in ["p1a", "p2a"] {
        for family in [0, 1] {
            let to = address(&context.lab.pod(server)?.addresses[family].clone(), 8080);
            let own = context.lab.pod("p1b")?.addresses[family].clone();
            context.all_protocols(Side::Pod("p1b"), to, to, &[server])?;
            let answer = context.http(Side::Pod("p1b"), to)?;
            let peer: std::net::SocketAddr = answer.field("peer").unwrap_or_default().parse()?;
            ensure!(peer.ip().to_string() == own, "{server} saw {peer}, not {own}");
            context.all_protocols(Side::Node(0), to, to, &[server])?;
        }
    }
    Ok(())
}
