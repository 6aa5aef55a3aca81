//! `cargo xtask bench change`: what an agent's CPU has to do for one endpoint that comes or goes.
//!
//! A node with so many Services of ten endpoints each, as manifests. One Service, in a file of its own, loses its last
//! endpoint and gets it back, again and again; the CPU time of the whole process is counted, system calls included, less
//! what it takes in as long a time without changes.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::start::{ENDPOINTS, PATIENCE, fill, with_endpoints};
use crate::lab::{Kind, Lab};
use crate::packages;

/// Numbers of Services that are measured.
const SIZES: [u32; 3] = [10, 1_000, 10_000];
/// Changes that are measured, at each size.
const CHANGES: u32 = 10;
/// Time from one change to the next: longer than `minSyncPeriod`, so that each is applied by itself.
const APART: Duration = Duration::from_millis(1300);

/// Measures and prints one line per size. The figures themselves never fail.
///
/// # Errors
/// When the cluster can't be built, an agent does not serve in time, or a change does not arrive.
pub(crate) fn run(agent: &Path) -> Result<()> {
    packages::need(packages::LAB)?;
    for services in SIZES {
        let mut lab = Lab::new("lbbench", Kind::Friendly)?;
        fill(&lab, services)?;
        change(&lab, services, ENDPOINTS)?;
        lab.nodes[0].spawn_agent(agent)?;
        lab.nodes[0].wait_healthy_for(PATIENCE)?;
        let pid = lab.nodes[0].agent_id().context("the agent has ended")?;
        // the first change pays for what the start left to be done
        change(&lab, services, ENDPOINTS - 1)?;
        std::thread::sleep(APART * 3);
        let (before, idle) = (applies(&mut lab)?, cpu(pid)?);
        std::thread::sleep(APART * CHANGES);
        let begin = cpu(pid)?;
        for number in 0..CHANGES {
            change(&lab, services, ENDPOINTS - number % 2)?;
            std::thread::sleep(APART);
        }
        let end = cpu(pid)?;
        let applied = applies(&mut lab)? - before;
        ensure!(applied >= u64::from(CHANGES), "{applied} of {CHANGES} changes were applied");
        let (rest, work) = (begin - idle, end - begin);
        println!(
            "    {services} Services of {ENDPOINTS} endpoints: one endpoint's change takes {:.2} ms of CPU time \
             (mean of {CHANGES}; {:.2} ms a second without changes)",
            work.saturating_sub(rest).as_secs_f64() * 1e3 / f64::from(CHANGES),
            rest.as_secs_f64() * 1e3 / (APART * CHANGES).as_secs_f64(),
        );
        lab.nodes[0].stop_agent(libc::SIGTERM)?;
        lab.nodes[0].agent_command(agent, "cleanup")?;
    }
    Ok(())
}

/// Gives the Service that changes so many endpoints.
fn change(lab: &Lab, number: u32, endpoints: u32) -> Result<()> {
    lab.manifest("changing", &with_endpoints(number, endpoints))
}

/// How often the agent of the first node has applied.
fn applies(lab: &mut Lab) -> Result<u64> {
    let status = lab.nodes[0].http("127.0.0.1:10249", "/status")?.text;
    let status: serde_json::Value = serde_json::from_str(&status)?;
    status["applies"].as_u64().context("/status tells no number of applies")
}

/// CPU time of a process so far, to the nanosecond.
fn cpu(pid: u32) -> Result<Duration> {
    let mut clock = 0;
    // SAFETY: the call writes a clock's number to the pointer, which is valid for it.
    let error = unsafe { libc::clock_getcpuclockid(pid.try_into()?, &raw mut clock) };
    ensure!(error == 0, "no process {pid}");
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: as above, of a time.
    let result = unsafe { libc::clock_gettime(clock, &raw mut time) };
    ensure!(result == 0, "process {pid} has ended");
    Ok(Duration::new(time.tv_sec.try_into()?, time.tv_nsec.try_into()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_uses_time() {
        let before = cpu(std::process::id()).unwrap();
        while cpu(std::process::id()).unwrap() == before {}
        assert!(cpu(u32::MAX).is_err());
    }
}
