//! A node with two uplinks: replies leave where their source belongs.
//!
//! ```text
//!   node1 eth0 .11 ----- fabric ------ a .60  dual 198.18.9.2
//!         eth1 .11 --------------------- b .60
//! ```
//! The load balancer's address belongs to eth1 by `ip rule from`; the main table knows dual by eth0. What leaves by
//! the wrong device is counted and dropped at dual.

use anyhow::{Context as _, Result, ensure};

use super::{Case, Context, address, service};
use crate::lab::netns::{ip, run_in, sysctl};
use crate::lab::worker::{Answer, Ask, Worker};
use crate::lab::{namespace, uplink};

pub(super) const CASES: &[Case] = &[("replies_leave_by_the_uplink_of_their_source", two_uplinks)];

const UPLINKS: u32 = 19;
const VIPS: [&str; 2] = ["203.0.113.99", "2001:db8:203::99"];
const DUAL: [&str; 2] = ["198.18.9.2", "2001:db8:9::2"];

fn two_uplinks(context: &mut Context) -> Result<()> {
    let node = context.lab.nodes[0].namespace.clone();
    let tag = context.lab.tag.clone();
    let dual = namespace(&tag, "dual")?;
    uplink(&format!("{tag}-fabric"), &dual, &["192.0.2.60".into(), "2001:db8:1::60".into()])?;
    ip(
        &dual,
        &[
            format!("link add eth1 type veth peer name eth1 netns {node}"),
            "address add 192.0.3.60/24 dev eth1".into(),
            "address add 2001:db8:3::60/64 dev eth1 nodad".into(),
            format!("address add {}/32 dev lo", DUAL[0]),
            format!("address add {}/128 dev lo nodad", DUAL[1]),
            "link set eth1 up".into(),
        ],
    )?;
    ip(
        &node,
        &[
            "address add 192.0.3.11/24 dev eth1".into(),
            "address add 2001:db8:3::11/64 dev eth1 nodad".into(),
            "link set eth1 up".into(),
            format!("route add {}/32 via 192.0.2.60", DUAL[0]),
            format!("route add {}/128 via 2001:db8:1::60", DUAL[1]),
            "route add default via 192.0.3.60 table 100".into(),
            "route add default via 2001:db8:3::60 table 100".into(),
        ],
    )?;
    // the one thing an operator of such a node must set: a request's reverse path is looked up after DNAT, with the
    // backend as source, for kube-proxy too
    sysctl(&node, &[("ipv4/conf/eth1/rp_filter", "2")])?;
    ip(
        &dual,
        &[
            format!("route add {}/32 via 192.0.3.11 dev eth1 src {}", VIPS[0], DUAL[0]),
            format!("route add {}/128 via 2001:db8:3::11 dev eth1 src {}", VIPS[1], DUAL[1]),
        ],
    )?;
    let rules = format!(
        "table inet astray {{ chain input {{ type filter hook prerouting priority raw;
         iifname eth0 ip saddr {} counter drop
         iifname eth0 ip6 saddr {} counter drop; }}; }}",
        VIPS[0], VIPS[1]
    );
    run_in(&dual, &["nft", "-f", "-"], &rules)?;
    let balancer = crate::lab::manifests::Service {
        lb_ips: VIPS.map(String::from).into(),
        ..service(UPLINKS, "uplinks")
    };
    context.lab.service(&balancer, &["p1a", "p2a"])?;
    let mut worker = Worker::start(&dual, None)?;

    // without a rule by source the stack's own choice stands, and the replies go astray
    let begin = std::time::Instant::now();
    while astray(&dual)? == 0 {
        ensure!(begin.elapsed().as_secs() < 10, "no reply came by the other uplink before there was a rule");
        worker.ask(&Ask::Http { to: address(VIPS[0], 80), path: "/".into(), mapped: false })?;
    }
    for vip in VIPS {
        let family = if vip.contains(':') { "-6" } else { "-4" };
        run_in(&node, &["ip", family, "rule", "add", "from", vip, "lookup", "100"], "")?;
    }
    let served = talk(&mut worker, &dual);
    for vip in VIPS {
        let family = if vip.contains(':') { "-6" } else { "-4" };
        run_in(&node, &["ip", family, "rule", "delete", "from", vip, "lookup", "100"], "")?;
    }
    ip(&node, &["link delete eth1".into()])?;
    ip(
        &node,
        &[format!("route delete {}/32 via 192.0.2.60", DUAL[0]), format!("route delete {}/128", DUAL[1])],
    )?;
    served
}

fn talk(worker: &mut Worker, dual: &str) -> Result<()> {
    for vip in VIPS {
        // the agent hears of the rule by an event
        eventually(worker, vip, |answer| answer.error.is_none()).context("after the rule")?;
    }
    let before = astray(dual)?;
    for vip in VIPS {
        let mut pods = std::collections::BTreeSet::new();
        for ask in [
            Ask::Http { to: address(vip, 80), path: "/".into(), mapped: false },
            Ask::Udp { to: address(vip, 80), connected: true, mapped: false },
            Ask::Udp { to: address(vip, 80), connected: false, mapped: false },
            Ask::Bulk { to: address(vip, 80), bytes: 1 << 20 },
        ] {
            for _ in 0..10 {
                let answer = worker.ask(&ask)?;
                ensure!(answer.error.is_none(), "{ask:?}: {answer:?}");
                pods.extend(answer.pod().map(String::from));
            }
        }
        ensure!(pods.len() == 2, "only {pods:?} answered by {vip}");
    }
    let after = astray(dual)?;
    ensure!(after == before, "{} replies came by the wrong uplink", after - before);
    Ok(())
}

fn eventually(worker: &mut Worker, vip: &str, wanted: impl Fn(&Answer) -> bool) -> Result<()> {
    let ask = Ask::Http { to: address(vip, 80), path: "/".into(), mapped: false };
    let begin = std::time::Instant::now();
    loop {
        let answer = worker.ask(&ask)?;
        if wanted(&answer) {
            return Ok(());
        }
        ensure!(begin.elapsed().as_secs() < 10, "{vip}: not within 10 s; last: {answer:?}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

/// Packets that came to the other uplink.
fn astray(dual: &str) -> Result<u64> {
    let rules = run_in(dual, &["nft", "list", "table", "inet", "astray"], "")?;
    let counts = rules
        .lines()
        .filter_map(|line| line.split_once("packets ")?.1.split(' ').next()?.parse::<u64>().ok());
    Ok(counts.sum())
}
