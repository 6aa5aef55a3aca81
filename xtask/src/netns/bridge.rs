//! Client and backend on ports of one bridge, with netfilter on the bridge and without.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{BRIDGED, Case, Context, Side, service, vips};
use crate::lab::netns::{run_in, sysctl};
use crate::lab::worker::Ask;

pub(super) const CASES: &[Case] =
    &[("i1_client_and_backend_on_one_bridge_with_bridge_nf_call_0_and_1", one_bridge)];

/// Counts what is routed from one pod to the other.
const COUNT: &str = "
table inet count {
  chain forward {
    type filter hook forward priority -300;
    ip saddr 10.77.1.140 ip daddr 10.77.1.141 counter
    ip6 saddr fd77:0:0:1:1::140 ip6 daddr fd77:0:0:1:1::141 counter
  }
}
";

/// Time for connections to close on both sides.
const SETTLE: Duration = Duration::from_millis(500);

fn one_bridge(context: &mut Context) -> Result<()> {
    const BYTES: usize = 1 << 20;
    let node = context.lab.nodes[0].namespace.clone();
    context.lab.add_bridged_pods()?;
    context.lab.service(&service(BRIDGED, "bridged"), &["p1y"])?;
    for to in vips(BRIDGED) {
        let ask = Ask::Http { to, path: "/".into(), mapped: false };
        context.eventually(Side::Pod("p1x"), &ask, "bridged pods", |answer| answer.pod() == Some("p1y"))?;
    }
    for netfilter in ["0", "1"] {
        let settings = ["bridge/bridge-nf-call-iptables", "bridge/bridge-nf-call-ip6tables"];
        sysctl(&node, &settings.map(|name| (name, netfilter)))?;
        run_in(&node, &["nft", "-f", "-"], COUNT)?;
        let result = talk(context, BYTES, netfilter);
        let counted = run_in(&node, &["nft", "list", "table", "inet", "count"], "")?;
        run_in(&node, &["nft", "delete", "table", "inet", "count"], "")?;
        result?;
        if netfilter == "1" {
            continue; // the bridge itself shows its packets to the hook
        }
        let routed: Vec<u64> = counted
            .lines()
            .filter_map(|line| line.split_once("packets ")?.1.split(' ').next()?.parse().ok())
            .collect();
        // first packets of eleven flows, and a few of UDP
        ensure!(routed.len() == 2 && routed.iter().all(|count| (5..60).contains(count)), "{routed:?} routed");
    }
    Ok(())
}

fn talk(context: &mut Context, bytes: usize, netfilter: &str) -> Result<()> {
    let side = Side::Pod("p1x");
    for to in vips(BRIDGED) {
        for _ in 0..3 {
            context.all_protocols(side, to, to, &["p1y"])?;
        }
        let id = format!("{to} {netfilter}");
        let opened = context.ask(side, &Ask::Open { id: id.clone(), to })?;
        ensure!(opened.pod() == Some("p1y"), "{opened:?}");
        for ask in [Ask::Bulk { to, bytes }, Ask::BigUdp { to, bytes: 4000 }] {
            let answer = context.ask(side, &ask)?;
            ensure!(answer.error.is_none(), "bridge-nf-call {netfilter}: {ask:?}: {answer:?}");
        }
        let said = context.ask(side, &Ask::Say { id: id.clone(), text: "still".into() })?;
        ensure!(said.text == "still", "bridge-nf-call {netfilter}: {said:?}");
        context.ask(side, &Ask::Close { id })?;
        let outside = context.http(Side::Node(0), to)?;
        ensure!(outside.pod() == Some("p1y"), "the host to a pod on a bridge: {outside:?}");
    }
    // pods elsewhere
    let to = vips(super::WEB)[0];
    context.reach(side, &Ask::Http { to, path: "/".into(), mapped: false }, &["p1a", "p2a"])?;
    // a connection that netfilter did not see begin, and sees end, is INVALID for it
    std::thread::sleep(SETTLE);
    Ok(())
}
