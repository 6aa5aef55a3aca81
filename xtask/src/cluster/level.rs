//! The test level: the quick list of e2e specs, with lb as it ships in place of kube-proxy.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::lab::Lab;
use super::{Proxy, results::Results};
use crate::lab::janitor;
use crate::paths;
use crate::test::{Tally, skip};

/// Specs at a time. They wait more than they work, but the suite's own processes share the machine with the nodes.
const PROCS: u8 = 8;
/// Failed specs are tried once more, so many at a time: their time-outs mean little on a busy machine.
const PROCS_AGAIN: u8 = 2;

/// How long building Kubernetes may take before the level is skipped: a run of all levels is not to hang on a small
/// machine. What was built so far is kept.
const BUILD: Duration = Duration::from_secs(12 * 60);
/// Another number of minutes for it.
const BUILD_MINUTES: &str = "LAB_BUILD_MINUTES";

/// Builds what is missing, brings the cluster up, runs the list, and takes the cluster down in any case.
///
/// # Errors
/// When lb does not come up in it, a list entry names no spec, or another cluster is up.
pub(crate) fn run() -> Result<Tally> {
    let lab = Lab::find();
    if let Some(obstacle) = lab.obstacle() {
        return Ok(skip(&obstacle));
    }
    claim(&lab)?;
    janitor::watch_signals();
    let limit = build_limit()?;
    match lab.build_for(limit) {
        Ok(true) => {}
        Ok(false) => {
            return Ok(skip(&format!(
                "building Kubernetes takes longer than {} minutes here: `cargo xtask cluster build` goes on with it, \
                 and {BUILD_MINUTES} sets another limit",
                limit.as_secs() / 60
            )));
        }
        // a module that can't be had says nothing about lb
        Err(error) => return Ok(skip(&format!("Kubernetes could not be built here: {error:#}"))),
    }
    janitor::command(lab.script("down.sh"));
    let done = judge(&lab);
    janitor::clean();
    ensure!(!lab.is_up(), "the cluster could not be removed");
    done
}

fn build_limit() -> Result<Duration> {
    let Ok(given) = std::env::var(BUILD_MINUTES) else { return Ok(BUILD) };
    let minutes: u64 =
        given.trim().parse().with_context(|| format!("{BUILD_MINUTES}={given} is no number"))?;
    Ok(Duration::from_secs(minutes * 60))
}

fn judge(lab: &Lab) -> Result<Tally> {
    if let Err(error) = lab.up(3, false) {
        // nothing of lb is in it yet
        return Ok(skip(&format!("a cluster without any proxy does not come up here: {error:#}")));
    }
    fs::write(owner(lab), std::process::id().to_string())?;
    lab.proxy(Proxy::Lb, None)?;
    let mut results = lab.e2e("quick", None, PROCS, Some("level"))?;
    if !results.failed.is_empty() {
        try_again(lab, &mut results)?;
    }
    results.print();
    let list = fs::read_to_string(paths::root().join("cluster/quick.txt"))?;
    let missing = results.missing(&list);
    ensure!(missing.is_empty(), "no spec answers to these lines of cluster/quick.txt: {missing:?}");
    Ok(results.tally())
}

fn try_again(lab: &Lab, results: &mut Results) -> Result<()> {
    let names: Vec<_> = results.failed.iter().map(|spec| literally(&spec.name)).collect();
    for spec in &results.failed {
        println!("  NOTE  failed, is tried once more: {}\n        {}", spec.name, spec.why);
    }
    results.amend(&lab.e2e(&names.join("|"), None, PROCS_AGAIN, Some("level-again"))?);
    Ok(())
}

/// A regular expression that matches a text and nothing else.
fn literally(text: &str) -> String {
    let special = |c: char| "[]().*+?^$|\\{}".contains(c);
    text.chars().flat_map(|c| special(c).then_some('\\').into_iter().chain([c])).collect()
}

/// The process whose cluster it is; a file that goes away with the cluster.
fn owner(lab: &Lab) -> PathBuf {
    lab.home().join("run/owner")
}

/// Removes what a killed run left; refuses a cluster that somebody uses.
fn claim(lab: &Lab) -> Result<()> {
    if !lab.is_up() {
        return Ok(());
    }
    let pid = fs::read_to_string(owner(lab)).unwrap_or_default();
    if pid.is_empty() || PathBuf::from("/proc").join(&pid).exists() {
        bail!("a cluster is up already; end it first: cargo xtask cluster down");
    }
    lab.down()
}

#[cfg(test)]
mod tests {
    use super::literally;

    #[test]
    fn special_characters_lose_their_meaning() {
        assert_eq!(literally("a [b] (c: d).*"), r"a \[b\] \(c: d\)\.\*");
    }
}
