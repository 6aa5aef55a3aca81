//! S5 `cargo xtask bench connect`: what one connect() of a process of the node costs. UDP sockets, so that no packet
//! is in it: the hook, and the kernel's own work. The sockets are made before and closed after what is measured.

use std::fs::File;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::house::{House, PODS, VIP, Way};
use super::meter::Meter;
use super::stand::Site;
use super::stats::{Effort, Report, measure};
use crate::lab::manifests::{POD_PORT, SERVICE_PORT};
use crate::lab::{janitor, netns};

/// Sockets that are connected in one go.
const SOCKETS: usize = 256;

/// Measures.
///
/// # Errors
/// When a house can't be built, or a connect() fails.
pub(crate) fn run(agent: &Path, effort: &Effort) -> Result<Report> {
    let mut report =
        Report::new("S5", "connect", "One connect() of a process of the node, UDP", "CPU ns per connect()");
    let site = Site::new(agent)?;
    let done = cases(&site, effort, &mut report);
    janitor::clean();
    done?;
    Ok(report)
}

fn cases(site: &Site, effort: &Effort, report: &mut Report) -> Result<()> {
    let (pod, vip) =
        (SocketAddr::new(PODS[1].parse()?, POD_PORT), SocketAddr::new(VIP.parse()?, SERVICE_PORT));
    let houses = [
        House::new(site, 0, &Way::Plain)?,
        House::new(site, 1, &Way::EmptyHook)?,
        House::new(site, 2, &Way::Lb(if effort.quick { 10 } else { 10_000 }, &[]))?,
    ];
    let arms = [
        ("no hook", 0, pod),
        ("no hook again", 0, pod),
        ("empty hook", 1, pod),
        ("lb, not a Service", 2, pod),
        ("lb, to a ClusterIP", 2, vip),
    ];
    let names: Vec<String> = arms.iter().map(|(name, ..)| (*name).to_owned()).collect();
    let (meter, home) = (Meter::pinned()?, File::open("/proc/thread-self/ns/net")?);
    let case = measure("connect()", &names, None, effort, |arm| {
        let (name, house, to) = arms[arm];
        let house = &houses[house];
        house
            .inside_cgroup(|| {
                netns::enter(&File::open(netns::path(&house.node.namespace))?)?;
                let done = slice(&meter, effort, to, pod);
                netns::enter(&home)?;
                done
            })
            .context(name)
    })?;
    if let (Some(without), Some(with)) = (case.row("no hook"), case.row("lb, to a ClusterIP")) {
        report
            .notes
            .push(format!("the hook adds {:.0} ns to a connect() to a ClusterIP", with.min - without.min));
    }
    report.cases.push(case);
    report
        .notes
        .push("gate passed: in every slice the kernel's table showed that the socket led to the pod".into());
    Ok(())
}

/// CPU nanoseconds per connect(), and a look at where one leads.
fn slice(meter: &Meter, effort: &Effort, to: SocketAddr, pod: SocketAddr) -> Result<f64> {
    let begin = Instant::now();
    let (mut used, mut calls) = (0, 0_u32);
    while begin.elapsed() < effort.slice {
        let sockets: Vec<UdpSocket> =
            (0..SOCKETS).map(|_| UdpSocket::bind("0.0.0.0:0")).collect::<std::io::Result<_>>()?;
        let before = meter.now()?;
        for socket in &sockets {
            socket.connect(to)?;
        }
        used += meter.now()? - before;
        calls += SOCKETS as u32;
        let last = sockets.last().context("no socket")?;
        // the kernel shows where the socket really leads, the hook of getpeername() what was dialled
        ensure!(last.peer_addr()? == to, "the peer is {}", last.peer_addr()?);
        let real = shown_by_kernel(last)?;
        ensure!(real == pod, "it leads to {real}, not to {pod}");
    }
    Ok(used as f64 / f64::from(calls))
}

/// The peer in /proc/net/udp, found by the socket's own port.
fn shown_by_kernel(socket: &UdpSocket) -> Result<SocketAddr> {
    let own = format!(":{:04X}", socket.local_addr()?.port());
    let table = std::fs::read_to_string("/proc/thread-self/net/udp")?;
    let line = table.lines().find(|line| line.split_whitespace().nth(1).is_some_and(|at| at.ends_with(&own)));
    let peer =
        line.and_then(|line| line.split_whitespace().nth(2)).context("the socket is not in the table")?;
    let (address, port) = peer.split_once(':').context("another form")?;
    // the address is a word as it lies in memory
    let address = u32::from_str_radix(address, 16)?.to_ne_bytes();
    Ok(SocketAddr::new(address.into(), u16::from_str_radix(port, 16)?))
}
