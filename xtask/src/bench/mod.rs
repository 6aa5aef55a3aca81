//! `cargo xtask bench`: what lb costs, and what it is measured against.
//!
//! By one method: the metric is CPU time, not wall time; many short slices in random order; ratios are min / min of one
//! run, with a bootstrap interval of the medians' ratio beside them; the baseline runs twice, and if its two arms
//! differ by more than 4 % the run is void; every arm's packets are checked before they are measured.

mod bulk;
mod change;
mod chart;
mod connect;
mod direct;
mod house;
mod live;
mod meter;
mod nodes;
mod pair;
mod pods;
mod programs;
mod proxy;
mod report;
mod rules;
mod stand;
pub(crate) mod start;
mod stats;
mod testrun;
mod xdp;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result};

pub(crate) use direct::direct;

use self::report::Scene;
use self::stats::{Effort, Report};
use crate::{build, packages};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Bench {
    /// S1: a packet through each of lb's XDP cases, by BPF_PROG_TEST_RUN
    #[value(alias = "s1")]
    Xdp,
    /// S2: packets to backends of other nodes, live frames
    #[value(alias = "s2")]
    Live,
    /// S3: TCP between two pods of a node, and from the node to a pod
    #[value(alias = "s3")]
    Pods,
    /// S4: iperf3 between two pods, offloads on
    #[value(alias = "s4")]
    Bulk,
    /// S5: one connect() of a process of the node
    #[value(alias = "s5")]
    Connect,
    /// S6: from outside to a NodePort, its backends on this node or another, with replies
    #[value(alias = "s6")]
    Nodes,
    /// Pod to pod without any Service, with and without the agent
    Direct,
    /// A million masqueraded flows in the kernel's tables: whether they fit, what they take, and how long a sweep is
    Capacity,
    /// From an agent's start to the first served packet, and its memory, with 10 and with 10,000 Services
    Start,
    /// CPU time of the agent for one endpoint that comes or goes, with 10, 1,000 and 10,000 Services
    Change,
}

/// Scenarios that make up a run without a name.
const ALL: [Bench; 6] = [Bench::Xdp, Bench::Live, Bench::Pods, Bench::Bulk, Bench::Connect, Bench::Nodes];

/// Arguments of the command.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Arguments {
    /// What to measure; without it all scenarios, S1 to S6
    what: Option<Bench>,
    /// An agent that is built already
    #[arg(long)]
    agent: Option<PathBuf>,
    /// Fewer slices and sizes: all scenarios in two minutes
    #[arg(long)]
    quick: bool,
    /// Writes the figures here, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Replaces the scenarios' sections and charts in docs/
    #[arg(long)]
    docs: bool,
}

/// More of `--help`.
pub(crate) const HELP: &str = "\
S1 xdp, S2 live, S3 pods, S4 bulk, S5 connect, S6 nodes; direct, capacity, start and change print lines of their own. It needs root, and a machine that does nothing else:
a case whose two baseline arms differ by more than 4 % says `void`. Figures are compared within one run only.

    cargo xtask bench --quick                  everything, short
    cargo xtask bench live --json live.json    one scenario, for machines, too
    cargo xtask bench live --docs              and into docs/performance.md, with its chart";

/// Measures, prints, and writes what was asked for. Figures never fail; only a gate does.
///
/// # Errors
/// When a stand can't be built, or packets are lost or wrong.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let Arguments { what, agent, quick, json, docs } = arguments;
    packages::need(packages::LAB)?;
    if *what == Some(Bench::Capacity) {
        build::ebpf(false)?;
        anyhow::ensure!(crate::test::cargo::capacity()?.failed == 0, "not all of it is there");
        return Ok(());
    }
    packages::need(packages::BENCH)?;
    let agent = build::agent_or(agent.clone())?;
    match what {
        Some(Bench::Direct) => return direct(&agent),
        Some(Bench::Start) => return start::run(&agent),
        Some(Bench::Change) => return change::run(&agent),
        _ => build::bench_programs()?,
    };
    let scenarios = what.map_or_else(|| ALL.to_vec(), |one| vec![one]);
    let mut command = "cargo xtask bench".to_owned();
    command += &what.map(|one| format!(" {}", name(one))).unwrap_or_default();
    command += if *quick { " --quick" } else { "" };
    let scene = Scene::new(&command)?;
    let begin = Instant::now();
    let mut reports = Vec::new();
    for scenario in scenarios {
        eprintln!("==> {}", name(scenario));
        let report =
            scene_of(scenario, &agent, &Effort::new(*quick)).with_context(|| name(scenario).to_owned())?;
        report::print(&report);
        if *docs {
            report::document(&scene, &report)?;
        }
        reports.push(report);
    }
    if let Some(path) = json {
        report::json(path, &scene, &reports)?;
    }
    eprintln!("    done in {:.0} s", begin.elapsed().as_secs_f64());
    Ok(())
}

/// Whether an agent knows a flag.
fn has_flag(agent: &Path, flag: &str) -> Result<bool> {
    Ok(crate::run::output(std::process::Command::new(agent).args(["run", "--help"]))?.contains(flag))
}

fn name(what: Bench) -> String {
    use clap::ValueEnum as _;
    what.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

fn scene_of(what: Bench, agent: &Path, effort: &Effort) -> Result<Report> {
    match what {
        Bench::Xdp => xdp::run(effort),
        Bench::Live => live::run(agent, effort),
        Bench::Bulk => bulk::run(agent, effort),
        Bench::Nodes => nodes::run(agent, effort),
        Bench::Pods => pods::run(agent, effort),
        Bench::Connect => connect::run(agent, effort),
        Bench::Direct | Bench::Start | Bench::Change | Bench::Capacity => anyhow::bail!("no scenario"),
    }
}
