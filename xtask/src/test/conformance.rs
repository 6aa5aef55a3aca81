//! The conformance kit of conformance/ against the agent, compared with the list of cases that are not reached yet.
//!
//! Every case has one right outcome: a failure that is not on the list fails the run, and so does a pass that is. The
//! kit runs once per [`Variant`]: everything in the agent's default set-up, the flow cases again in others.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use super::Tally;
use crate::run::output;
use crate::{packages, paths};

/// One way to run the kit.
#[derive(Debug)]
pub(crate) struct Variant {
    /// Its name: a section of the list of cases that are not reached yet, and part of file names.
    pub(crate) name: &'static str,
    /// Kinds of cases to run.
    kinds: &'static str,
    /// Further arguments of the kit.
    arguments: &'static [&'static str],
}

/// All variants.
pub(crate) const VARIANTS: &[Variant] = &[
    Variant { name: "default", kinds: "flow,http,sequence,conntrack,sync", arguments: &[] },
    Variant { name: "hostile", kinds: "flow", arguments: &["--hostile"] },
    Variant {
        name: "exact-masquerade",
        kinds: "flow",
        arguments: &["--exact-masquerade", "--agent-arg=--masquerade-local"],
    },
    Variant { name: "socket-lb-all", kinds: "flow", arguments: &["--agent-arg=--socket-lb=all"] },
    Variant { name: "xdp", kinds: "flow", arguments: &["--agent-arg=--xdp=eth0"] },
    Variant { name: "fast", kinds: "flow", arguments: &["--agent-arg=--fast=force"] },
    Variant { name: "maglev", kinds: "flow,sequence", arguments: &["--agent-arg=--selection=maglev"] },
];

/// Variants that run when they are named only: they look at the same rules by another way of the packets or of the choice.
const WHEN_NAMED: &[&str] = &["xdp", "maglev", "fast"];

/// One variant takes two to seven minutes, several times that on a busy machine.
const LIMIT: Duration = Duration::from_secs(45 * 60);

#[derive(Deserialize)]
struct Report {
    results: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    id: String,
    title: String,
    status: String,
    #[serde(default)]
    observed: serde_json::Value,
    #[serde(default)]
    note: String,
}

/// Where the agent's objects come from.
pub(crate) enum Feed {
    /// A folder of manifests.
    Manifests,
    /// A kube-apiserver with etcd, from this folder.
    Api(PathBuf),
}

/// Runs the kit and reads its results; `only` are ids of cases with commas.
fn run_kit(feed: &Feed, variant: &Variant, only: Option<&str>) -> Result<Report> {
    packages::need(packages::CONFORMANCE)?;
    need_yaml()?;
    let (proxy, prefix, assets) = match feed {
        Feed::Manifests => ("lb-agent", "conformance", None),
        Feed::Api(folder) => ("lb-agent-api", "conformance-api", Some(folder)),
    };
    let report = paths::target().join(format!("{prefix}-{}.json", variant.name));
    fs::remove_file(&report).ok();
    let logs = paths::target().join(prefix).join(variant.name);
    fs::remove_dir_all(&logs).ok();
    fs::create_dir_all(&logs)?;
    // when we are ended, the kit gets SIGTERM and tidies up
    let mut child = Command::new("setpriv")
        .args(["--pdeathsig", "TERM", "python3"])
        .current_dir(paths::root().join("conformance"))
        .args(["-m", "conformance", "--proxy", proxy, "--kind", variant.kinds, "--keep"])
        .args(variant.arguments)
        .args(only.map(|ids| format!("--only={ids}")))
        .arg("--agent")
        .arg(paths::agent())
        .env("TMPDIR", &logs)
        .envs(assets.map(|folder| ("KUBEBUILDER_ASSETS", folder)))
        .arg("--json")
        .arg(&report)
        .spawn()
        .context("starting python3")?;
    let begin = Instant::now();
    while child.try_wait()?.is_none() {
        if begin.elapsed() > LIMIT {
            // SAFETY: kill takes numbers; the child was not waited for. On SIGTERM the kit removes what it made.
            unsafe { libc::kill(child.id() as i32, libc::SIGTERM) };
            child.wait()?;
            bail!("the kit was not done after {LIMIT:?}");
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    let text = fs::read_to_string(&report).context("the kit wrote no results")?;
    let report: Report = serde_json::from_str(&text)?;
    ensure!(!report.results.is_empty(), "the kit ran no case");
    Ok(report)
}

/// The level: all variants, or the one of this name; the API feed has the default one.
///
/// # Errors
/// When the kit can't run; failures of cases are counted.
pub(crate) fn run(feed: Feed, name: Option<&str>, only: Option<&str>) -> Result<Tally> {
    let list = paths::root().join("lb-agent/tests/conformance-not-reached.txt");
    let text = fs::read_to_string(&list).unwrap_or_default();
    let mut total = Tally::default();
    let name = name.or(matches!(feed, Feed::Api(_)).then_some("default"));
    let wanted = |variant: &&Variant| match name {
        Some(name) => name == variant.name,
        None => !WHEN_NAMED.contains(&variant.name),
    };
    for variant in VARIANTS.iter().filter(wanted) {
        println!("-- {}", variant.name);
        let mut known = parse(&text, variant.name)?;
        if let Some(ids) = only {
            known.retain(|id, _| ids.split(',').any(|wanted| wanted == id));
        }
        let (tally, lines) = judge(&run_kit(&feed, variant, only)?.results, &known);
        lines.iter().for_each(|line| println!("{line}"));
        println!("   {}: {tally}", variant.name);
        total += tally;
    }
    ensure!(total != Tally::default(), "there is no variant {name:?} of the kit");
    Ok(total)
}

/// Ids and reasons that hold for a variant; `#` begins a comment. What stands before the first `[variant]` holds for
/// all of them.
fn parse(text: &str, variant: &str) -> Result<BTreeMap<String, String>> {
    let mut known = BTreeMap::new();
    let mut holds = true;
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(section) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            ensure!(VARIANTS.iter().any(|v| v.name == section), "no variant of the kit is called {section}");
            holds = section == variant;
            continue;
        }
        let (id, reason) =
            line.split_once(char::is_whitespace).with_context(|| format!("no reason for {line}"))?;
        if holds {
            known.insert(id.to_owned(), reason.trim().to_owned());
        }
    }
    Ok(known)
}

/// Counts, and a line for everything that did not plainly pass.
fn judge(results: &[Case], known: &BTreeMap<String, String>) -> (Tally, Vec<String>) {
    let (mut tally, mut lines) = (Tally::default(), Vec::new());
    for case in results {
        let Case { id, title, status, observed, note } = case;
        match (status.as_str(), known.get(id)) {
            ("passed", None) => {
                tally.passed += 1;
                if !note.is_empty() {
                    lines.push(format!("  NOTE  {id} {note}"));
                }
            }
            ("passed", Some(_)) => {
                tally.failed += 1;
                lines.push(format!(
                    "  FAIL  {id} passes now: take it off lb-agent/tests/conformance-not-reached.txt"
                ));
            }
            ("skipped", _) => {
                tally.skipped += 1;
                lines.push(format!("  SKIP  {id} {note}"));
            }
            (_, Some(reason)) => {
                tally.skipped += 1;
                lines.push(format!("  SKIP  {id} fails, as known: {reason}"));
            }
            (_, None) => {
                tally.failed += 1;
                lines.push(format!("  FAIL  {id} {title}: {observed} {note}"));
            }
        }
    }
    for id in known.keys().filter(|id| results.iter().all(|case| case.id != **id)) {
        tally.failed += 1;
        lines.push(format!("  FAIL  {id} is on the list of known failures and no case of the kit"));
    }
    (tally, lines)
}

/// PyYAML for the python3 on PATH, which need not be Debian's.
fn need_yaml() -> Result<()> {
    let has = || output(Command::new("python3").args(["-c", "import yaml"])).is_ok();
    if has() {
        return Ok(());
    }
    eprintln!("==> python3 -m pip install pyyaml (for the conformance kit)");
    let pip = crate::run::run(Command::new("python3").args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "pyyaml",
    ]));
    if pip.is_err() || !has() {
        packages::apt_install(&["python3-yaml"], "for the conformance kit")?;
    }
    ensure!(has(), "the python3 on PATH has no PyYAML: python3 -m pip install pyyaml");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Case, Tally, judge, parse};

    fn case(id: &str, status: &str) -> Case {
        let text = |text: &str| text.to_owned();
        Case {
            id: text(id),
            title: text("title"),
            status: text(status),
            observed: serde_json::Value::Null,
            note: text(""),
        }
    }

    #[test]
    fn only_expected_outcomes_are_accepted() {
        let known = parse("# why\nF2 not yet\nF4 not yet\nF9 gone\n", "default").unwrap();
        let results = [
            case("F1", "passed"),
            case("F2", "failed"),
            case("F3", "failed"),
            case("F4", "passed"),
            case("F5", "skipped"),
        ];
        let (tally, lines) = judge(&results, &known);
        assert_eq!(tally, Tally { passed: 1, failed: 3, skipped: 2 });
        assert_eq!(lines.iter().filter(|line| line.contains("FAIL")).count(), 3);
    }

    #[test]
    fn a_known_failure_needs_a_reason() {
        assert!(parse("F2\n", "default").is_err());
    }

    #[test]
    fn a_section_holds_for_its_variant_only() {
        let text = "F1 everywhere\n[hostile]\nF2 there\n[default]\nF3 here\n";
        let ids = |variant| parse(text, variant).unwrap().into_keys().collect::<Vec<_>>();
        assert_eq!(ids("hostile"), ["F1", "F2"]);
        assert_eq!(ids("default"), ["F1", "F3"]);
        assert!(parse("[hostil]\nF2 there\n", "default").is_err());
    }
}
