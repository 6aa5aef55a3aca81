//! S4 `cargo xtask bench bulk`: iperf3 from pod to pod, offloads on. Both ends are on one core, so CPU time per byte is
//! what a transfer takes; and the packets on the pods' links have to be large still, which native XDP there would end.

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::house::{House, PODS, VIP, Way};
use super::meter::pin_to_one_core;
use super::stand::Site;
use super::stats::{Case, Effort, Report, Target, measure};
use crate::lab::janitor;
use crate::lab::manifests::{POD_PORT, SERVICE_PORT};
use crate::lab::netns::{command, inside, run_in};

const TC: &str = "lb, TC";
const DIRECT: &str = "lb, direct traffic";
/// Mean length of a packet on a pod's link, below which segmentation was not left to the device.
const LARGE: u64 = 10_000;
/// What may be in the server's buffers still when the client is done, and is not counted by iperf3 then.
const UNCOUNTED: f64 = 64e6;
/// How long one transfer may take.
const PATIENCE: &str = "20";
/// How long a server may take to listen.
const START: Duration = Duration::from_secs(5);

/// Measures.
///
/// # Errors
/// When a house can't be built, a transfer fails, or a pod's link has lost its offloads.
pub(crate) fn run(agent: &Path, effort: &Effort) -> Result<Report> {
    let mut report =
        Report::new("S4", "bulk", "iperf3 between two pods of a node, offloads on", "CPU ns per MiB");
    let site = Site::new(agent)?;
    let done = cases(&site, effort, &mut report);
    janitor::clean();
    done?;
    Ok(report)
}

fn cases(site: &Site, effort: &Effort, report: &mut Report) -> Result<()> {
    let many = if effort.quick { 10 } else { 10_000 };
    let ways = [
        ("plain routing", Way::Plain, false),
        ("plain routing again", Way::Plain, false),
        ("iptables", Way::Iptables(many), true),
        ("nft", Way::Nft(many), true),
        (TC, Way::Lb(many, &[]), true),
        (DIRECT, Way::Lb(many, &[]), false),
    ];
    let mut rooms = Vec::new();
    for (number, (name, way, service)) in ways.iter().enumerate() {
        eprintln!("    building: {name}");
        let house = House::new(site, number, way).with_context(|| (*name).to_owned())?;
        let server = Server::start(&house)?;
        rooms.push((*name, house, server, *service));
    }
    let names: Vec<String> = rooms.iter().map(|(name, ..)| (*name).to_owned()).collect();
    let bytes: u64 = if effort.quick { 256 << 20 } else { 1 << 30 };
    eprintln!("    {} MiB per slice", bytes >> 20);
    // a core of its own would be charged for the other's work: both ends are on this one
    pin_to_one_core()?;
    let mut least = u64::MAX;
    let effort = Effort { slices: if effort.quick { 4 } else { effort.slices }, ..*effort };
    let case = measure("TCP stream", &names, None, &effort, |arm| {
        let (name, house, server, service) = &rooms[arm];
        let (cost, length) = transfer(house, server, *service, bytes).with_context(|| (*name).to_owned())?;
        least = least.min(length);
        Ok(cost)
    })?;
    for (name, house, ..) in &rooms {
        offloads(house).and_then(|()| house.checksums_were_right()).with_context(|| (*name).to_owned())?;
    }
    judge(&case, report);
    report.cases.push(case);
    report.notes.push(format!(
        "gate passed: TSO is on at both pods of every arm, no XDP program is on their links, and the mean packet of the \
         least of the transfers had {least} bytes"
    ));
    Ok(())
}

fn judge(case: &Case, report: &mut Report) {
    for (name, what) in [(TC, "to a ClusterIP over TC"), (DIRECT, "direct traffic with the agent")] {
        if let Some(row) = case.row(name) {
            report.figures.insert(format!("{what}: MiB per CPU second"), 1e9 / row.min);
        }
    }
    if let Some(row) = case.row(DIRECT) {
        report.targets.push(Target::at_most("direct traffic with the agent, x plain", row.times, 1.02));
    }
}

/// An iperf3 that serves one pod.
struct Server {
    child: Child,
}

impl Server {
    fn start(house: &House) -> Result<Self> {
        let pod = &house.pods[1];
        let mut iperf = command(pod, Some(&house.node.workloads()), Path::new("iperf3"))?;
        iperf.args(["-s", "-p", &POD_PORT.to_string()]).stdin(Stdio::null()).stdout(Stdio::null());
        let child = iperf.spawn().context("iperf3")?;
        janitor::process(child.id());
        let server = Self { child };
        let begin = Instant::now();
        let port = format!(":{POD_PORT:04X} ");
        while !inside(pod, || Ok(std::fs::read_to_string("/proc/thread-self/net/tcp6")?.contains(&port)))? {
            ensure!(begin.elapsed() < START, "iperf3 does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(server)
    }

    fn pin(&self) -> Result<()> {
        // SAFETY: sched_getaffinity and sched_setaffinity read and write a local set of bits.
        let done = unsafe {
            let mut set = std::mem::zeroed::<libc::cpu_set_t>();
            libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set);
            libc::sched_setaffinity(self.child.id() as i32, size_of::<libc::cpu_set_t>(), &raw const set)
        };
        ensure!(done == 0, "pinning iperf3: {}", std::io::Error::last_os_error());
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        janitor::ended(self.child.id());
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// CPU nanoseconds per MiB of one transfer, both ends, and the mean length of the client's packets.
fn transfer(house: &House, server: &Server, service: bool, bytes: u64) -> Result<(f64, u64)> {
    server.pin()?;
    let (to, port) = if service { (VIP, SERVICE_PORT) } else { (PODS[1], POD_PORT) };
    let before = sent(house)?;
    let mut client = command(&house.pods[0], Some(&house.node.workloads()), Path::new("timeout"))?;
    client.args([PATIENCE, "iperf3", "-J", "-c", to, "-p", &port.to_string(), "-n", &bytes.to_string()]);
    let told: serde_json::Value = serde_json::from_str(&crate::run::output(&mut client)?)?;
    let after = sent(house)?;
    let end = &told["end"];
    let number = |value: &serde_json::Value| value.as_f64().context("iperf3 tells something else");
    let received = number(&end["sum_received"]["bytes"])?;
    ensure!(received + UNCOUNTED >= bytes as f64, "{received} of {bytes} bytes arrived");
    let busy = &end["cpu_utilization_percent"];
    // percent of the time that each end has measured
    let used = number(&busy["host_total"])? * number(&end["sum_sent"]["seconds"])?
        + number(&busy["remote_total"])? * number(&end["sum_received"]["seconds"])?;
    let (packets, length) = (after.0 - before.0, (after.1 - before.1) / (after.0 - before.0).max(1));
    ensure!(length >= LARGE, "{packets} packets of {length} bytes: segmentation is no longer the device's");
    Ok((used / 100.0 * 1e9 / (received / f64::from(1 << 20)), length))
}

/// Packets and bytes that the first pod has sent.
fn sent(house: &House) -> Result<(u64, u64)> {
    let text = run_in(&house.pods[0], &["ip", "-json", "-statistics", "link", "show", "eth0"], "")?;
    let shown: serde_json::Value = serde_json::from_str(&text)?;
    let sent = &shown[0]["stats64"]["tx"];
    let number = |name: &str| sent[name].as_u64().context("`ip` tells something else");
    Ok((number("packets")?, number("bytes")?))
}

/// The hard check: both ends of both links segment late, and carry no XDP program.
fn offloads(house: &House) -> Result<()> {
    let (node, [first, second]) = (&house.node.namespace, &house.pods);
    for (namespace, device) in [(first, "eth0"), (second, "eth0"), (node, "veth0"), (node, "veth1")] {
        let features = run_in(namespace, &["ethtool", "-k", device], "")?;
        ensure!(
            features.lines().any(|line| line.trim().starts_with("tcp-segmentation-offload: on")),
            "TSO is off at {device} of {namespace}"
        );
        let shown = run_in(namespace, &["ip", "-json", "link", "show", device], "")?;
        let shown: serde_json::Value = serde_json::from_str(&shown)?;
        ensure!(shown[0]["xdp"].is_null(), "an XDP program is on {device} of {namespace}");
    }
    Ok(())
}
