//! `cargo xtask bench direct`: what traffic that is not ours pays for the agent's presence (invariant I5).
//!
//! Two pods of one node talk directly; the server pod is itself a backend of a Service, so its packets pass the
//! look-ups of both hooks. Client and server live in one process pinned to one core, and the kernel's work on a veth
//! is done by the sender, so `CLOCK_PROCESS_CPUTIME_ID` counts everything. Many short slices in random order; the
//! ratio is min / min. The second idle arm shows what the machine's noise alone does: a run in which it is off by
//! more than 4 % says nothing.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::meter::Meter;
use super::pair::{Load, Pair};
use super::stats::{NOISE, interval, least, median, order};
use crate::lab::manifests::Service;
use crate::lab::{Kind, Lab};
use crate::packages;

/// Slices per arm.
const SLICES: usize = 24;
const SLICE: Duration = Duration::from_millis(150);
/// Where the server listens.
const PORT: u16 = 9000;

/// Measures both loads and prints a line for each. The figures themselves never fail.
///
/// # Errors
/// When the cluster can't be built, the agent does not start, or traffic gets lost or is altered.
pub(crate) fn direct(agent: &Path) -> Result<()> {
    packages::need(packages::LAB)?;
    let mut lab = Lab::new("lbbench", Kind::Friendly)?;
    let service = Service {
        name: "bench".into(),
        cluster_ips: vec!["10.96.0.10".into(), "fd96::10".into()],
        ..Service::default()
    };
    lab.service(&service, &["p1a"])?;
    let meter = Meter::pinned()?;
    for load in [Load::Connections, Load::Stream] {
        let mut pair = Pair::new(
            &lab.pods["p1b"].namespace,
            &lab.pods["p1a"].namespace,
            &lab.pods["p1a"].addresses[0],
            PORT,
        )?;
        let mut arms: [Vec<f64>; 3] = Default::default();
        pair.slice(load, &meter, SLICE)?; // caches, neighbours
        // the agent is attached and detached for blocks of slices: its start is much longer than a slice
        for block in order(3, SLICES / 4) {
            let attached = block == 2;
            if attached {
                lab.nodes[0].start_agent(agent)?;
                // its own work is not what is measured; the programs stay when it is gone
                lab.nodes[0].stop_agent(libc::SIGTERM)?;
            }
            for _ in 0..4 {
                let cost = pair.slice(load, &meter, SLICE)?;
                arms[block].push(cost);
            }
            if attached {
                lab.nodes[0].agent_command(agent, "cleanup")?;
            }
        }
        report(load, &arms);
    }
    Ok(())
}

fn report(load: Load, arms: &[Vec<f64>; 3]) {
    let noise = least(&arms[1]) / least(&arms[0]);
    let idle: Vec<f64> = arms[0].iter().chain(&arms[1]).copied().collect();
    let ratio = least(&arms[2]) / least(&idle);
    let (low, high) = interval(&arms[2], &idle);
    println!(
        "    direct {load:?}: {:.0} ns idle, {:.0} ns with the agent: x{ratio:.3} min/min, x{:.3} median [{low:.3}, {high:.3}], \
         A/A x{noise:.3}{}",
        least(&idle),
        least(&arms[2]),
        median(&arms[2]) / median(&idle),
        if (noise - 1.0).abs() > NOISE { " (void: the machine is too noisy)" } else { "" }
    );
}
