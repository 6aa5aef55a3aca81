//! S1 `cargo xtask bench xdp`: what `lb_xdp` costs per packet, by `BPF_PROG_TEST_RUN`.
//!
//! test_run gives the program its own output again, so packets go round in a ring: what flow i makes of a packet is
//! the packet of flow i + 1, and every turn rewrites addresses, ports and checksums for real. A packet lives for 250
//! turns, then its hops are used up and the next call puts a fresh one in. The programs run in a network
//! namespace with a veth, a route and a neighbour, so that a flow's visit to the routes, once a second, is in it.
//!
//! Every call's last packet is compared with what the ring says (the gate); figures are CPU nanoseconds as the kernel
//! measures them; a program that only passes runs in the same shuffled slices, twice (A/A), and the ideal program goes
//! round in a ring of its own.

mod classifiers;
mod ideal;
mod loaded;
mod ring;

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;

use anyhow::{Result, ensure};
use lb_common::counter::Counter;
use lb_common::family::{V4, V6};
use lb_common::packet::{ACK, TCP, UDP};
use lb_common::testing::PacketBuilder;
use lb_common::testing::packets::{at, checksums};

use self::ideal::Ideal;
use self::loaded::Loaded;
use self::ring::{NewFlows, Ring};
use super::meter::pin_to_one_core;
use super::stats::{Case, Effort, Report, Target, least, order};
use super::testrun::{ifindex, test_run};
use crate::lab::netns::{inside, ip, sysctl};
use crate::lab::xdp::{attach, pass_program};
use crate::lab::{janitor, namespace};

/// Rings up to this size share one table.
const SMALL: usize = 100_000;
/// Turns of one packet: hops are 255 at first and 1 would go up.
const TURNS: u32 = 250;
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;
/// The device, its address, its neighbour.
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// Entries of the table of young flows.
const YOUNG: u64 = 131_072;
const SIZES: &[usize] = &[1, 20_000, 1_000_000];
const QUICK_SIZES: &[usize] = &[1, 20_000];

/// Measures.
///
/// # Errors
/// When the object is missing, the kernel refuses, or a packet does not become what it should.
pub(crate) fn run(effort: &Effort) -> Result<Report> {
    let tag = format!("lbbench-{}", std::process::id());
    janitor::watch_signals();
    let own = namespace(&tag, "ring")?;
    let mac = MAC.map(|byte| format!("{byte:02x}")).join(":");
    sysctl(&own, &[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")])?;
    ip(
        &own,
        &[
            format!("link add up0 address {mac} type veth peer name up1"),
            "link add up2 type veth peer name up3".into(),
            "link set up1 up".into(),
            "link set up0 up".into(),
            "address add 192.0.2.2/24 dev up0".into(),
            "address add 2001:db8:1::2/64 dev up0 nodad".into(),
            format!("neigh replace 192.0.2.1 lladdr {mac} dev up0 nud permanent"),
            format!("neigh replace 2001:db8:1::1 lladdr {mac} dev up0 nud permanent"),
            "route add default via 192.0.2.1".into(),
            "route add default via 2001:db8:1::1".into(),
        ],
    )?;
    let measured = inside(&own, || bench(effort));
    janitor::clean();
    Ok(measured?.report())
}

fn bench(effort: &Effort) -> Result<Run> {
    pin_to_one_core()?;
    let ifindex = ifindex("up0")?;
    let empty = pass_program()?;
    // test_run tells the kernel's dispatcher of a program that it does not know, for each call: 10 ms
    let _known = attach(&empty, self::ifindex("up2")?)?;
    let calls = if effort.quick { 40 } else { 200 };
    let mut run = Run {
        effort: *effort,
        calls,
        ifindex,
        empty,
        idle: Default::default(),
        rows: Vec::new(),
        classifiers: None,
    };
    let sizes = if effort.quick { QUICK_SIZES } else { SIZES };
    let small: Vec<Ring> =
        sizes.iter().filter(|flows| **flows <= SMALL).flat_map(|flows| run.rings(*flows)).collect();
    let mut kernel = Loaded::new(small.iter().map(|ring| ring.flows.max(2)).sum(), ifindex)?;
    for ring in &small {
        run.ring(ring, &mut kernel)?;
    }
    run.others(&mut kernel)?;
    run.classifiers = Some(classifiers::not_ours(effort, &mut kernel)?);
    drop(kernel);
    for flows in sizes.iter().filter(|flows| **flows > SMALL) {
        // once each way: it is the table that costs, not the family
        for ring in run.rings(*flows).into_iter().filter(|ring| !ring.v6 && ring.proto == TCP) {
            run.ring(&ring, &mut Loaded::new(*flows, ifindex)?)?;
        }
    }
    for flows in sizes.iter().filter(|flows| **flows <= SMALL) {
        let mut ideal = Ideal::new(*flows, ifindex)?;
        let name = format!("ideal program, UDP IPv4, {flows} flow{}", if *flows == 1 { "" } else { "s" });
        run.slices(name, None, calls, || ideal.call())?;
    }
    Ok(run)
}

/// A case: its name, what it may take above the empty program, costs.
struct Measured {
    name: String,
    target: Option<f64>,
    costs: Vec<f64>,
}

/// A run: slices of the empty program go with those of each case.
struct Run {
    effort: Effort,
    /// Calls of test_run that make a slice.
    calls: usize,
    ifindex: u32,
    empty: OwnedFd,
    /// Costs of the empty program, two arms.
    idle: [Vec<f64>; 2],
    rows: Vec<Measured>,
    /// The TC programs, which have an empty one of their own.
    classifiers: Option<Case>,
}

impl Run {
    fn rings(&self, flows: usize) -> Vec<Ring> {
        let mut rings = Vec::new();
        for (v6, proto) in [(false, TCP), (true, TCP), (false, UDP)] {
            for reply in [false, true] {
                rings.push(Ring { v6, proto, reply, flows, ifindex: self.ifindex });
            }
        }
        rings
    }

    /// Slices of both empty arms and of `call`, in random order; `calls` make a slice.
    fn slices(
        &mut self,
        name: String,
        target: Option<f64>,
        calls: usize,
        mut call: impl FnMut() -> Result<f64>,
    ) -> Result<()> {
        // any frame: nothing looks at it
        let frame = PacketBuilder::tcp(at(ip4(1, 0), 1), at(ip4(1, 1), 1), ACK).build();
        let mut costs = Vec::new();
        for arm in order(3, self.effort.slices) {
            let mut slice = 0.0;
            for _ in 0..calls {
                slice += match arm {
                    0 | 1 => {
                        let ran = test_run(&self.empty, &frame, self.ifindex, TURNS)?;
                        ensure!(ran.code == XDP_PASS, "the empty program returned {}", ran.code);
                        ran.ns
                    }
                    _ => call()?,
                };
            }
            let cost = slice / calls as f64;
            self.idle.get_mut(arm).unwrap_or(&mut costs).push(cost);
        }
        self.rows.push(Measured { name, target, costs });
        Ok(())
    }

    fn ring(&mut self, ring: &Ring, kernel: &mut Loaded) -> Result<()> {
        eprintln!("    {} with {} flows", ring.name(), ring.flows);
        if ring.v6 {
            ring.fill::<V6>(kernel)?
        } else {
            ring.fill::<V4>(kernel)?
        }
        let fd = kernel.fd()?;
        let mut place = 0;
        let mut call = || -> Result<f64> {
            let ran = test_run(&fd, &ring.packet(place, 255).build(), ring.ifindex, TURNS)?;
            let end = place + TURNS as usize;
            let want = ring.packet(end, 255 - TURNS as u8).build();
            ensure!(
                ran.code == XDP_TX && ran.frame == want,
                "{} at {place} of {}: code {}, got {:02x?}, wanted {want:02x?}",
                ring.name(),
                ring.flows,
                ran.code,
                ran.frame
            );
            checksums(&ran.frame, 14).map_err(anyhow::Error::msg)?;
            place = end % ring.flows.max(2);
            Ok(ran.ns)
        };
        // the whole ring once: every entry was visited
        for _ in 0..ring.flows.div_ceil(TURNS as usize) + 4 {
            call()?;
        }
        let target = match ring.flows {
            1 => 60.0,
            2..=SMALL => 120.0,
            _ => 350.0,
        };
        let name =
            format!("lb, {}, {} flow{}", ring.name(), ring.flows, if ring.flows == 1 { "" } else { "s" });
        self.slices(name, Some(target), self.calls, call)
    }

    /// A packet that is not ours, and one that begins a flow.
    fn others(&mut self, kernel: &mut Loaded) -> Result<()> {
        let fd = kernel.fd()?;
        let ifindex = self.ifindex;
        let stranger = PacketBuilder::tcp(at(ip4(1, 0), 1234), at(IpAddr::from([198, 18, 0, 1]), 80), ACK);
        let stranger = stranger.with(|p| p.macs = [MAC, [2, 0, 0, 0, 0, 9]]).build();
        self.slices("lb, not ours".into(), Some(15.0), self.calls, || {
            let ran = test_run(&fd, &stranger, ifindex, TURNS)?;
            ensure!(ran.code == XDP_PASS && ran.frame == stranger, "a stranger's packet: {}", ran.code);
            Ok(ran.ns)
        })?;
        let mut flows = NewFlows { ifindex, place: 0 };
        // a flow takes two entries
        while kernel.counter(Counter::XdpFlow)? < YOUNG / 4 {
            flows.call(&fd)?;
        }
        let before = kernel.counter(Counter::XdpFlow)?;
        let name = "lb, new flow, table half full".to_owned();
        self.slices(name, Some(1500.0), 3, || flows.call(&fd))?;
        let (begun, turns) =
            (kernel.counter(Counter::XdpFlow)? - before, (self.effort.slices * 3) as u64 * u64::from(TURNS));
        ensure!(begun * 100 >= turns * 95, "only {begun} of {turns} packets began a flow");
        Ok(())
    }

    fn report(self) -> Report {
        let mut report = Report::new(
            "S1",
            "xdp",
            "A packet through lb's XDP program, by BPF_PROG_TEST_RUN",
            "ns per packet",
        );
        let idle = least(&self.idle.concat());
        let mut arms = vec!["empty program".to_owned(), "empty program again".into()];
        let mut costs = self.idle.to_vec();
        for Measured { name, target, costs: own } in self.rows {
            let above = least(&own) - idle;
            report.figures.insert(format!("{name}: above the empty program, ns"), above);
            if let Some(target) = target {
                report.targets.push(Target::at_most(
                    format!("{name}: ns above the empty program"),
                    above,
                    target,
                ));
            } else {
                report.notes.push(format!("{name}: {above:.0} ns above the empty program"));
            }
            arms.push(name);
            costs.push(own);
        }
        report.cases.push(Case::new("All cases", &arms, &costs, None));
        if let Some(case) = self.classifiers {
            let idle = case.rows.iter().take(2).map(|row| row.min).fold(f64::INFINITY, f64::min);
            for row in case.rows.iter().skip(2) {
                let what = format!("{}: ns above the empty program", row.name);
                report.targets.push(Target::at_most(what, row.min - idle, 15.0));
            }
            report.cases.push(case);
        }
        if std::fs::read_to_string("/proc/sys/kernel/bpf_stats_enabled").is_ok_and(|text| text.trim() != "0")
        {
            let note = "kernel.bpf_stats_enabled is on: two readings of the clock are in every figure";
            report.notes.push(note.into());
        }
        report.notes.push("gate passed: the last packet of every call was the one that the ring says".into());
        report
    }
}

fn ip4(high: u8, number: usize) -> IpAddr {
    let [_, b, c, d] = (number as u32).to_be_bytes();
    Ipv4Addr::new(10 + high, b, c, d).into()
}
