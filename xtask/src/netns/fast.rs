//! Fast forwarding (`--fast`) between two pods of the first node.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::{Case, Context, LOCAL, REMOTE, Side, address, node_port, vips};
use crate::lab::Lab;
use crate::lab::netns::run_in;
use crate::lab::traffic::{Load, Target, under};
use crate::lab::worker::Ask;

pub(super) const CASES: &[Case] = &[
    ("fast_hands_packets_from_pod_to_pod", hands_over),
    ("fast_comes_and_goes_under_traffic", comes_and_goes),
    ("fast_is_refused_where_netfilter_enforces_policy", refused),
];

/// Addresses of both families that two pods have.
const ADDRESSES: u64 = 4;

/// What a CNI may enforce between two pods of a node.
const POLICY: &str = "
table inet plugin {
  chain forward {
    type filter hook forward priority filter - 1;
    jump pods
  }
  chain pods {
    ip saddr 10.77.1.11 ip daddr 10.77.1.10 tcp dport 8080 counter drop
  }
}
";

/// Stops node 1's agent and starts it with `--fast` of this value.
fn restart(lab: &mut Lab, agent: &std::path::Path, fast: &str) -> Result<()> {
    let node = &mut lab.nodes[0];
    node.stop_agent(libc::SIGTERM)?;
    node.extra = if fast == "on" { vec!["--fast".into()] } else { vec![format!("--fast={fast}")] };
    node.start_agent(agent)
}

fn status(context: &mut Context) -> Result<serde_json::Value> {
    let answer = context.lab.nodes[0].http("127.0.0.1:10249", "/status")?;
    serde_json::from_str(&answer.text).with_context(|| format!("{answer:?}"))
}

/// Waits until the status says so of fast forwarding.
fn until(context: &mut Context, what: &str, is: impl Fn(&serde_json::Value) -> bool) -> Result<()> {
    let begin = Instant::now();
    loop {
        let status = status(context)?;
        if is(&status["fast"]) {
            return Ok(());
        }
        ensure!(begin.elapsed() < Duration::from_secs(20), "{what}: {}", status["fast"]);
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn is_on(fast: &serde_json::Value) -> bool {
    fast["on"] == true && fast["pods"].as_u64() >= Some(ADDRESSES)
}

/// Counters of node 1, as of now (the agent publishes them once a second).
fn counters<const N: usize>(context: &mut Context, names: [&str; N]) -> Result<[u64; N]> {
    std::thread::sleep(Duration::from_millis(1200));
    let status = status(context)?;
    Ok(names.map(|name| status["counters"][name].as_u64().unwrap_or(0)))
}

fn end(context: &mut Context) -> Result<()> {
    let agent = context.agent.clone();
    restart(&mut context.lab, &agent, "off")?;
    context.lab.nodes[0].extra.clear();
    Ok(())
}

fn hands_over(context: &mut Context) -> Result<()> {
    let agent = context.agent.clone();
    // the rules of the hostile node accept what is meant for pods, and drop what is INVALID: no policy between pods
    restart(&mut context.lab, &agent, "on")?;
    until(context, "pods are known", is_on)?;
    let names = ["fast_flows", "fast_sent", "xdp_completed_at_tc"];
    let before = counters(context, names)?;
    let mut flows = 0;
    for vip in vips(LOCAL) {
        context.all_protocols(Side::Pod("p1b"), vip, vip, &["p1a"]).context("pod to pod")?;
        let bulk = context.ask(Side::Pod("p1b"), &Ask::Bulk { to: vip, bytes: 4 << 20 })?;
        ensure!(bulk.error.is_none(), "4 MiB there and back: {bulk:?}");
        flows += 3;
    }
    let after = counters(context, names)?;
    ensure!(after[0] - before[0] >= flows, "{} of {flows} flows were fast", after[0] - before[0]);
    ensure!(after[1] - before[1] > 200, "only {} packets were handed over", after[1] - before[1]);
    ensure!(after[2] == before[2], "{} packets took the route", after[2] - before[2]);
    // fragments of a fast flow, in both directions, take the route
    for vip in vips(LOCAL) {
        let big = context.ask(Side::Pod("p1b"), &Ask::BigUdp { to: vip, bytes: 4000 })?;
        ensure!(big.error.is_none(), "fragments: {big:?}");
    }
    // what is not fast: a pod by way of itself, another node's pods, the outside, the node itself
    let before = counters(context, names)?;
    for vip in vips(LOCAL) {
        context.all_protocols(Side::Pod("p1a"), vip, vip, &["p1a"]).context("hairpin")?;
        context.all_protocols(Side::Node(0), vip, vip, &["p1a"]).context("the node itself")?;
    }
    for vip in vips(REMOTE) {
        context.all_protocols(Side::Pod("p1b"), vip, vip, &["p2a"]).context("another node's pod")?;
    }
    for ip in context.lab.nodes[0].addresses.clone() {
        let port = node_port(LOCAL);
        context
            .all_protocols(Side::Client, address(&ip, port), address(&ip, port + 1), &["p1a"])
            .context("outside")?;
    }
    let after = counters(context, names)?;
    ensure!(after[0] == before[0], "{} such flows were fast", after[0] - before[0]);
    end(context)
}

/// Long transfers, short connections and datagrams, while the option is turned off and on three times.
fn comes_and_goes(context: &mut Context) -> Result<()> {
    let agent = context.agent.clone();
    restart(&mut context.lab, &agent, "on")?;
    until(context, "pods are known", is_on)?;
    let targets = vips(LOCAL).map(|vip| Target { tcp: vip, udp: vip, pods: vec!["p1a".into()] }).to_vec();
    let names = ["fast_sent", "xdp_completed_at_tc"];
    let before = counters(context, names)?;
    let loads = [(Side::Pod("p1b"), Load { targets, rate: 60 })];
    let tally = under(&mut context.lab, &loads, Duration::from_secs(10), |lab| {
        for _ in 0..3 {
            for fast in ["off", "on"] {
                restart(lab, &agent, fast)?;
                std::thread::sleep(Duration::from_secs(1));
            }
        }
        Ok(())
    })?;
    println!("        {tally}");
    let after = counters(context, names)?;
    println!("        handed over {}, by the route {}", after[0] - before[0], after[1] - before[1]);
    tally.unharmed(0)?;
    ensure!(after[0] > before[0] && after[1] > before[1], "both ways should have had their part");
    end(context)
}

fn refused(context: &mut Context) -> Result<()> {
    let agent = context.agent.clone();
    let node = context.lab.nodes[0].namespace.clone();
    let [to, _] = vips(LOCAL);
    let reaches =
        |context: &mut Context| -> Result<bool> { Ok(context.http(Side::Pod("p1b"), to)?.error.is_none()) };
    run_in(&node, &["nft", "-f", "-"], POLICY)?;
    restart(&mut context.lab, &agent, "on")?;
    until(context, "refused", |fast| {
        fast["on"] == false && fast["refused"].as_array().is_some_and(|r| !r.is_empty())
    })?;
    let told = status(context)?["fast"]["refused"].to_string();
    ensure!(
        told.contains("inet plugin pods, rule 1 (drop), behind forward"),
        "the status does not say where: {told}"
    );
    let log = std::fs::read_to_string(&context.lab.nodes[0].log)?;
    ensure!(log.contains("inet plugin pods, rule 1"), "the log does not say where");
    ensure!(!reaches(context)?, "the policy was bypassed");
    restart(&mut context.lab, &agent, "force")?;
    until(context, "forced", is_on)?;
    ensure!(reaches(context)?, "the policy was not bypassed although that was forced");
    // a policy that goes and comes while the agent runs
    restart(&mut context.lab, &agent, "on")?;
    run_in(&node, &["nft", "delete", "table", "inet", "plugin"], "")?;
    until(context, "allowed again", is_on)?;
    ensure!(reaches(context)?, "no answer although nothing is forbidden");
    run_in(&node, &["nft", "-f", "-"], POLICY)?;
    until(context, "refused again", |fast| fast["on"] == false)?;
    ensure!(!reaches(context)?, "the new policy was bypassed");
    run_in(&node, &["nft", "delete", "table", "inet", "plugin"], "")?;
    end(context)
}
