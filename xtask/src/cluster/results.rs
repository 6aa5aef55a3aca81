//! What a run of e2e specs came to.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::paths;
use crate::run::output;
use crate::test::Tally;

/// A spec that ran, or was skipped by itself.
#[derive(Deserialize, Clone, Debug)]
pub(crate) struct Spec {
    /// Its whole name.
    pub(crate) name: String,
    /// Why it failed or was skipped; empty when it passed.
    #[serde(default)]
    pub(crate) why: String,
    /// Seconds.
    #[serde(default)]
    pub(crate) time: f64,
}

/// Specs by outcome.
#[derive(Deserialize, Clone, Debug, Default)]
pub(crate) struct Results {
    /// Passed.
    pub(crate) passed: Vec<Spec>,
    /// Failed.
    pub(crate) failed: Vec<Spec>,
    /// Skipped by themselves; specs that were not asked for are in no list.
    pub(crate) skipped: Vec<Spec>,
}

impl Results {
    /// Reads the reports in a folder.
    ///
    /// # Errors
    /// When there is none, or no spec ran: the suite did not start.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let script = paths::root().join("cluster/summary.py");
        let text = output(Command::new("python3").arg(script).arg("--json").arg(folder))?;
        let results: Self = serde_json::from_str(&text).context("summary.py --json")?;
        let ran = results.passed.len() + results.failed.len();
        ensure!(ran > 0, "no spec ran; the suite's log is {}", folder.join("log.txt").display());
        Ok(results)
    }

    /// Counts.
    pub(crate) fn tally(&self) -> Tally {
        Tally { passed: self.passed.len(), failed: self.failed.len(), skipped: self.skipped.len() }
    }

    /// Prints what did not pass.
    pub(crate) fn print(&self) {
        for spec in &self.failed {
            println!("  FAIL  {} ({:.0} s)\n        {}", spec.name, spec.time, spec.why);
        }
        for spec in &self.skipped {
            println!("  SKIP  {}: {}", spec.name, spec.why);
        }
    }

    /// Takes the outcome of failed specs from a run in which they were tried again.
    pub(crate) fn amend(&mut self, again: &Self) {
        let failed = std::mem::take(&mut self.failed);
        for spec in failed {
            match again.passed.iter().find(|other| other.name == spec.name) {
                Some(passed) => self.passed.push(passed.clone()),
                None => {
                    let now = again.failed.iter().find(|other| other.name == spec.name);
                    self.failed.push(now.cloned().unwrap_or(spec));
                }
            }
        }
    }

    /// Lines of a list of specs (parts of names) that no spec answered to.
    pub(crate) fn missing<'a>(&self, list: &'a str) -> Vec<&'a str> {
        let all = || self.passed.iter().chain(&self.failed).chain(&self.skipped);
        list.lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .filter(|line| !all().any(|spec| spec.name.contains(line)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{Results, Spec};

    fn specs(names: &[&str]) -> Vec<Spec> {
        names.iter().map(|name| Spec { name: (*name).into(), why: String::new(), time: 0.0 }).collect()
    }

    #[test]
    fn a_second_try_counts_and_a_spec_that_did_not_run_again_stays_failed() {
        let mut results = Results { passed: specs(&["a"]), failed: specs(&["b", "c", "d"]), skipped: vec![] };
        results.amend(&Results { passed: specs(&["b"]), failed: specs(&["c"]), skipped: vec![] });
        let names = |list: &[Spec]| list.iter().map(|s| s.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&results.passed), ["a", "b"]);
        assert_eq!(names(&results.failed), ["c", "d"]);
    }

    #[test]
    fn a_line_of_the_list_that_no_spec_answers_to_is_missing() {
        let results = Results { passed: specs(&["x should work [Conformance]"]), ..Results::default() };
        assert_eq!(results.missing("# why\nx should work\n\ny should work\n"), ["y should work"]);
    }
}
