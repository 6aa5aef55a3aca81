//! S3 `cargo xtask bench pods`: TCP between two pods of a node, through a Service and without one, and from the node
//! itself to a pod. Client and server are in one process on one core; an operation is counted when it was right.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result};

use super::has_flag;
use super::house::{House, PODS, VIP, Way};
use super::meter::Meter;
use super::pair::{Load, Pair};
use super::proxy;
use super::stand::Site;
use super::stats::{Case, Effort, Report, Target, measure};
use crate::lab::janitor;
use crate::lab::manifests::{POD_PORT, SERVICE_PORT};

const PLAIN: &str = "plain routing";
const AGAIN: &str = "plain routing again";
const TC: &str = "lb, TC";
const DIRECT: &str = "lb, direct traffic";
/// Pods between which there are flows of Services, too, cost look-ups that others don't.
const BESIDE: &str = "lb, direct beside a Service";
const FAST: &str = "lb, TC with --fast";
const SOCKET: &str = "lb, socket";
/// The least that programs at both hooks of both pods cost.
const EMPTY: &str = "limit: empty TC programs";
const IDEAL: &str = "ideal: direct, redirect_peer";
/// Where the second pod listens without a Service: what is in TIME-WAIT at the Service's port knows other timestamps.
const DIRECT_PORT: u16 = 9000;

/// Who dials what, and in which house.
struct Arm {
    name: String,
    house: usize,
    pair: Pair,
}

/// Measures.
///
/// # Errors
/// When a house can't be built, or a connection fails.
pub(crate) fn run(agent: &Path, effort: &Effort) -> Result<Report> {
    let mut report = Report::new(
        "S3",
        "pods",
        "TCP between two pods of a node, and from the node to a pod",
        "CPU ns per operation",
    );
    let site = Site::new(agent)?;
    let done = cases(&site, effort, &mut report);
    janitor::clean();
    done?;
    Ok(report)
}

fn cases(site: &Site, effort: &Effort, report: &mut Report) -> Result<()> {
    let many = if effort.quick { 1000 } else { 10_000 };
    let mut ways = vec![
        (PLAIN.to_owned(), Way::Plain),
        (AGAIN.to_owned(), Way::Plain),
        ("iptables, 10 Services".into(), Way::Iptables(10)),
        ("iptables, 1000 Services".into(), Way::Iptables(1000)),
        (format!("nft, {many} Services"), Way::Nft(many)),
        (TC.to_owned(), Way::Lb(many, &[])),
        (DIRECT.to_owned(), Way::Lb(many, &[])),
        (EMPTY.to_owned(), Way::EmptyPrograms),
        (IDEAL.to_owned(), Way::Ideal),
    ];
    if !effort.quick {
        ways.insert(4, ("iptables, 10000 Services".into(), Way::Iptables(10_000)));
    }
    match proxy::binary() {
        Some(binary) => {
            let way = Way::KubeProxy(many, binary, "nftables");
            ways.insert(ways.len() - 4, (format!("kube-proxy nftables, {many} Services"), way));
        }
        None => {
            report.notes.push("skipped: no kube-proxy binary; the rule sets are our own, of its shape".into())
        }
    }
    if has_flag(&site.agent, "--fast")? {
        ways.insert(ways.len() - 2, (FAST.to_owned(), Way::Lb(many, &["--fast=force"])));
    } else {
        report.notes.push("skipped: the agent has no --fast".into());
    }
    let mut houses = Vec::new();
    for (number, (name, way)) in ways.iter().enumerate() {
        eprintln!("    building: {name}");
        houses.push(House::new(site, number, way).with_context(|| name.clone())?);
    }
    let mut arms = Vec::new();
    for (house, (name, way)) in ways.iter().enumerate() {
        let service = !matches!(way, Way::Plain | Way::Ideal | Way::EmptyPrograms) && name != DIRECT;
        arms.push(arm(&houses, house, name, false, service)?);
        if name == TC {
            arms.push(arm(&houses, house, BESIDE, false, false)?);
        }
    }
    for (load, what) in [
        (Load::Connections, "pod to pod: connect, request, close"),
        (Load::Exchanges, "pod to pod: request and answer"),
        (Load::Connects, "pod to pod: connect and close"),
    ] {
        let case = case(what, load, &houses, &mut arms, Some(IDEAL), effort)?;
        judge_pods(load, &case, report);
        report.cases.push(case);
    }
    drop(arms);
    let served = ways.iter().position(|(name, _)| name == TC).context("no agent")?;
    let mut hosts = vec![
        arm(&houses, 0, PLAIN, true, false)?,
        arm(&houses, 1, AGAIN, true, false)?,
        arm(&houses, served, SOCKET, true, true)?,
    ];
    for (load, what) in [
        (Load::Connections, "node to pod: connect, request, close"),
        (Load::Connects, "node to pod: connect and close"),
    ] {
        let case = case(what, load, &houses, &mut hosts, None, effort)?;
        if let Some(socket) = case.row(SOCKET) {
            let what = format!("{what}: rate by that of direct connections");
            report.targets.push(Target::at_least(what, 1.0 / socket.times, 0.97));
        }
        report.cases.push(case);
    }
    for (house, (name, _)) in houses.iter().zip(&ways) {
        house.checksums_were_right().with_context(|| name.clone())?;
    }
    report.notes.push(format!(
        "lb holds {many} Services; gate passed: every connection, request and answer was right, and no segment had a wrong \
         checksum"
    ));
    Ok(())
}

/// The client in the first pod or, `host`, in the node.
fn arm(houses: &[House], house: usize, name: &str, host: bool, service: bool) -> Result<Arm> {
    let at = &houses[house];
    let client = if host { &at.node.namespace } else { &at.pods[0] };
    let port = if service { POD_PORT } else { DIRECT_PORT };
    let mut pair = Pair::new(client, &at.pods[1], PODS[1], port)?;
    if service {
        pair.to = SocketAddr::new(VIP.parse()?, SERVICE_PORT);
    }
    Ok(Arm { name: name.into(), house, pair })
}

fn case(
    what: &str,
    load: Load,
    houses: &[House],
    arms: &mut [Arm],
    ideal: Option<&str>,
    effort: &Effort,
) -> Result<Case> {
    let meter = Meter::pinned()?;
    let names: Vec<String> = arms.iter().map(|arm| arm.name.clone()).collect();
    eprintln!("    {what}");
    let mut slice = |at: usize| {
        let arm = &mut arms[at];
        houses[arm.house]
            .inside_cgroup(|| arm.pair.slice(load, &meter, effort.slice))
            .with_context(|| arm.name.clone())
    };
    (0..names.len()).try_for_each(|at| slice(at).map(drop))?; // caches
    measure(what, &names, ideal, effort, slice)
}

/// What issue 6 asks for.
fn judge_pods(load: Load, case: &Case, report: &mut Report) {
    let times = |name: &str| case.row(name).map(|row| row.times);
    let what = |text: &str| format!("{}: {text}", case.name);
    if let Some(direct) = times(DIRECT) {
        report.targets.push(Target::at_most(what("direct traffic with the agent, x plain"), direct, 1.02));
    }
    if load != Load::Connections {
        return;
    }
    let nft = case.rows.iter().find(|row| row.name.starts_with("nft")).map(|row| row.times);
    if let (Some(tc), Some(nft)) = (times(TC), nft) {
        report.targets.push(Target::at_most(what("to a ClusterIP over TC, x plain"), tc, 1.05));
        report.targets.push(Target::at_most(what("to a ClusterIP over TC, x nft"), tc / nft, 1.0));
    }
    if let Some(fast) = times(FAST) {
        report.targets.push(Target::at_most(what("to a ClusterIP with --fast, x plain"), fast, 0.92));
    }
}
