//! An agent whose flow tables have another layout or size takes over under traffic, killed at any moment or not.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::traffic::survive;
use super::{Case, Context, Side, WEB, vips};
use crate::build;
use crate::lab::Lab;
use crate::lab::node::Node;
use crate::run::output;

pub(super) const CASES: &[Case] = &[
    ("b156_traffic_survives_an_upgrade_to_another_layout", upgrade),
    ("b156_traffic_survives_upgrades_that_are_killed", killed),
    ("b156_traffic_survives_other_sizes_of_the_flow_tables", resized),
];

/// How long the traffic around the upgrade lasts.
const LASTS: Duration = Duration::from_secs(30);
/// Datagrams that may be lost while entries move: no sender repeats them. There are 600 a second.
const LOST: u64 = 20;

/// Names of the sets of pins.
fn sets(node: &Node) -> Result<Vec<String>> {
    let home = node.bpffs.join("lb");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&home).with_context(|| home.display().to_string())? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Entries of a flow table that came from another layout.
fn converted(node: &Node, table: &str) -> Result<usize> {
    let pin = node.bpffs.join("lb/v2").join(table);
    let text = output(Command::new("bpftool").args(["-j", "map", "dump", "pinned"]).arg(pin))?;
    let entries: Vec<Value> = serde_json::from_str(&text)?;
    let epoch = |entry: &Value| entry["formatted"]["value"]["epoch"].as_u64();
    ensure!(
        entries.iter().all(|entry| epoch(entry).is_some()),
        "entries of {table} have no epoch: {text:.300}"
    );
    Ok(entries.iter().filter(|entry| epoch(entry) == Some(1)).count())
}

fn is_of_version(lab: &Lab, version: &str) -> Result<()> {
    let found = sets(&lab.nodes[0])?;
    ensure!(found == [version], "the sets of pins are {found:?}, not {version} alone");
    Ok(())
}

/// Back to the layout of the agent under test, without traffic: what it does not know is forgotten, and it says so.
fn back(context: &mut Context) -> Result<()> {
    let agent = context.agent.clone();
    let node = &mut context.lab.nodes[0];
    node.stop_agent(libc::SIGTERM)?;
    node.start_agent(&agent).context("an agent of the earlier layout")?;
    let log = std::fs::read_to_string(&node.log)?;
    ensure!(log.contains("is forgotten"), "the log does not say that flows were forgotten");
    is_of_version(&context.lab, "v1")?;
    for vip in vips(WEB) {
        context.all_protocols(Side::Pod("p1b"), vip, vip, &["p1a", "p2a"]).context("after the way back")?;
        context.all_protocols(Side::Node(0), vip, vip, &["p1a", "p2a"]).context("after the way back")?;
    }
    Ok(())
}

fn upgrade(context: &mut Context) -> Result<()> {
    let next = build::agent_next()?;
    let act = |lab: &mut Lab| -> Result<()> {
        std::thread::sleep(Duration::from_secs(4));
        let node = &mut lab.nodes[0];
        node.stop_agent(libc::SIGTERM)?;
        node.start_agent(&next)?;
        let counts = (converted(node, "LB_CT4")?, converted(node, "LB_CT6")?);
        println!("        {} and {} entries of flows were converted", counts.0, counts.1);
        ensure!(counts.0 > 0 && counts.1 > 0, "no entry was converted: {counts:?}");
        is_of_version(lab, "v2")
    };
    survive(context, LASTS, LOST, act)?;
    back(context)
}

/// When an upgrade is killed.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// So long after its start.
    After(Duration),
    /// So long after the new set has appeared.
    Staged(Duration),
    /// So long after the links have moved to it.
    Moved(Duration),
}

impl Moment {
    fn wait(self, lab: &Path) -> Result<()> {
        let (path, pause) = match self {
            Self::After(pause) => (lab.to_owned(), pause),
            Self::Staged(pause) => (lab.join("v2-next"), pause),
            Self::Moved(pause) => (lab.join("v2-next/links"), pause),
        };
        let begin = Instant::now();
        // the end of it, if the moment was too short to be seen
        while !path.exists() && !lab.join("v2").exists() {
            if begin.elapsed() > Duration::from_secs(60) {
                bail!("{} did not come", path.display());
            }
            std::thread::yield_now();
        }
        std::thread::sleep(pause);
        Ok(())
    }
}

fn killed(context: &mut Context) -> Result<()> {
    let next = build::agent_next()?;
    let random = |limit: u64| {
        use std::hash::{BuildHasher, RandomState};
        Duration::from_micros(RandomState::new().hash_one(limit) % (1000 * limit))
    };
    let moments = [
        [Moment::After(random(1500)), Moment::Moved(random(2))],
        [Moment::Staged(random(1000)), Moment::Moved(random(10))],
        [Moment::Moved(Duration::ZERO), Moment::Staged(random(300))],
        [Moment::Moved(random(20)), Moment::Moved(random(5))],
    ];
    for pair in moments {
        let home: PathBuf = context.lab.nodes[0].bpffs.join("lb");
        let act = |lab: &mut Lab| -> Result<()> {
            lab.nodes[0].stop_agent(libc::SIGKILL)?;
            for moment in pair {
                lab.nodes[0].spawn_agent(&next)?;
                moment.wait(&home)?;
                lab.nodes[0].stop_agent(libc::SIGKILL)?;
                println!("        killed at {moment:?}: the sets are {:?}", sets(&lab.nodes[0])?);
            }
            lab.nodes[0].start_agent(&next)?;
            is_of_version(lab, "v2")
        };
        survive(context, Duration::from_secs(5), 20 * LOST, act).with_context(|| format!("{pair:?}"))?;
        back(context)?;
    }
    Ok(())
}

/// Entries that fit into a table, and those that are in it.
fn filled(node: &Node, table: &str) -> Result<(u64, usize)> {
    let pin = node.bpffs.join("lb/v1").join(table);
    let ask = |what: &str| -> Result<Value> {
        let text = output(Command::new("bpftool").args(["-j", "map", what, "pinned"]).arg(&pin))?;
        Ok(serde_json::from_str(&text)?)
    };
    let fit = ask("show")?["max_entries"].as_u64().context("bpftool tells no size")?;
    let entries = ask("dump")?;
    Ok((fit, entries.as_array().map_or(0, Vec::len)))
}

/// Smaller tables, larger ones, and the usual ones again.
fn resized(context: &mut Context) -> Result<()> {
    let agent = context.agent.clone();
    let act = |lab: &mut Lab| -> Result<()> {
        for size in [Some(16_384), Some(262_144), None] {
            std::thread::sleep(Duration::from_secs(4));
            let node = &mut lab.nodes[0];
            let before = filled(node, "LB_CT4")?.0;
            node.stop_agent(libc::SIGTERM)?;
            node.extra = size.map(|size: u64| format!("--max-flows={size}")).into_iter().collect();
            node.start_agent(&agent)?;
            for table in ["LB_CT4", "LB_CT6"] {
                let (fit, entries) = filled(node, table)?;
                println!("        {table}: {entries} of {fit} entries");
                ensure!(fit != before && size.is_none_or(|size| size == fit), "{table} has room for {fit}");
                ensure!(entries > 0, "{table} is empty: nothing was copied");
            }
            is_of_version(lab, "v1")?;
        }
        Ok(())
    };
    let done = survive(context, LASTS, 3 * LOST, act).map(drop);
    let node = &mut context.lab.nodes[0];
    if !node.extra.is_empty() {
        node.extra.clear();
        node.stop_agent(libc::SIGTERM)?;
        node.start_agent(&agent)?;
    }
    done
}
