//! Other kernels than this machine's: booted under QEMU, they are asked what they think of the programs.
//!
//! The guest holds the agent as it was built for this machine, and runs `lb-agent check`, which loads what `lb-agent run`
//! loads, by the same code. Nothing is attached there. The kernels are Debian's, fetched once.

mod initrd;
mod package;

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::lab::janitor;
use crate::run::run_for;
use crate::test::{Tally, skip};
use crate::{packages, paths};
use package::Kernel;

/// The oldest kernel that lb runs on, and one with TCX links. This machine's own is the `verify` level's.
pub(crate) const VERSIONS: &[&str] = &["6.1", "6.12"];
/// What a guest may take: emulated, a verifier needs a minute for all programs on a busy machine.
const LIMIT: Duration = Duration::from_secs(300);
/// MiB of memory of a guest.
const MEMORY: &str = "1536";

/// Boots each of the kernels, one after the other, and counts programs.
///
/// What is missing on this machine is skipped with the reason: the programs and packages that boot a kernel, the kernel
/// itself.
///
/// # Errors
/// Files can't be written.
pub(crate) fn run<V: AsRef<str>>(agent: &Path, versions: &[V]) -> Result<Tally> {
    if std::env::consts::ARCH != "x86_64" {
        return Ok(skip("kernels of other versions are booted on x86-64 only"));
    }
    if let Err(error) = packages::need(packages::OTHER_KERNELS) {
        return Ok(skip(&format!("other kernels can't be booted: {error:#}")));
    }
    janitor::watch_signals();
    let mut tally = Tally::default();
    let mut guests = Vec::new();
    for version in versions {
        match Kernel::get(version.as_ref()) {
            Ok(kernel) => guests.push((version.as_ref(), kernel)),
            Err(error) => tally += skip(&format!("Linux {}: {error:#}", version.as_ref())),
        }
    }
    for (version, kernel) in guests {
        let begin = Instant::now();
        let said = boot(version, &kernel, agent).with_context(|| format!("Linux {version}"))?;
        println!("    Linux {version}, under QEMU without KVM ({:.0} s)", begin.elapsed().as_secs_f64());
        tally += judge(version, &said);
    }
    Ok(tally)
}

/// Boots a kernel and returns what its console said.
fn boot(version: &str, kernel: &Kernel, agent: &Path) -> Result<String> {
    let folder = paths::target().join("kernels").join(version);
    fs::remove_dir_all(&folder).ok();
    let root = folder.join("root");
    fs::create_dir_all(&root)?;
    let (archive, console) = (folder.join("initrd.gz"), folder.join("console.log"));
    initrd::pack(agent, &root, &archive)?;
    fs::remove_dir_all(&root).ok();
    // KVM is not asked for: in a virtual machine it may be there and not work
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args([
        "-accel",
        "tcg",
        "-cpu",
        "max",
        "-m",
        MEMORY,
        "-nographic",
        "-no-reboot",
        "-nic",
        "none",
        "-kernel",
    ])
    .arg(kernel.image()?)
    .arg("-initrd")
    .arg(&archive)
    .args(["-append", "console=ttyS0 quiet panic=-1"])
    .stdin(Stdio::null())
    .stdout(File::create(&console)?);
    let ended = run_for(&mut qemu, LIMIT)?;
    let mut said = String::from_utf8_lossy(&fs::read(&console)?).into_owned();
    if !ended {
        said += &format!("\nlb-late after {} s\n", LIMIT.as_secs());
    }
    Ok(said)
}

/// Prints and counts what a guest said.
fn judge(version: &str, said: &str) -> Tally {
    let mut tally = Tally::default();
    let lines: Vec<(&str, &str)> = said
        .lines()
        .filter_map(|line| line.trim_end().get(line.find("lb-")?..)?.strip_prefix("lb-"))
        .map(|line| line.split_once(' ').unwrap_or((line, "")))
        .collect();
    let told = |word: &str| lines.iter().find(|(first, _)| *first == word).map(|(_, rest)| *rest);
    let fail = |text: &str| {
        println!("  FAIL  Linux {version}: {text}");
        Tally { failed: 1, ..Tally::default() }
    };
    if told("up").is_none() {
        return skip(&format!("Linux {version} did not boot here: see target/kernels/{version}/console.log"));
    }
    let check: Value = told("check").and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let programs = check["programs"].as_array().map(Vec::as_slice).unwrap_or_default();
    if programs.is_empty() {
        tally +=
            fail(&format!("no word about the programs: {}", told("said").unwrap_or("it came to no end")));
    } else {
        let attach = if check["tcx"] == true { "TCX links" } else { "clsact filters" };
        println!("    {}: {attach}", check["kernel"].as_str().unwrap_or_default());
        println!("    {:16} {:>9} {:>9}", "program", "verified", "xlated");
    }
    for program in programs {
        let name = program["program"].as_str().unwrap_or_default();
        match program["refusal"].as_str() {
            None => {
                tally.passed += 1;
                println!("    {name:16} {:>9} {:>9}", program["verified"], program["translated"]);
            }
            Some(refusal) => tally += fail(&format!("{name} is refused:\n{}", end_of(refusal))),
        }
    }
    if told("done").is_none() {
        tally += fail(&format!("it did not come to its end {}", told("late").unwrap_or_default()));
    }
    if tally.failed > 0 {
        println!("        all of it: target/kernels/{version}/console.log");
    }
    tally
}

/// The last lines of a verifier's log.
fn end_of(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(8)..].iter().map(|line| format!("        {line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHECK: &str = r#"lb-check {"kernel":"6.1.0","tcx":false,"programs":[
        {"program":"a","verified":7,"translated":8,"refusal":null},{"program":"b","refusal":"combined stack size"}]}"#;

    #[test]
    fn what_a_guest_says_is_counted() {
        let check = CHECK.replace('\n', "");
        let count = |text: &str| {
            let tally = judge("6.1", text);
            (tally.passed, tally.failed, tally.skipped)
        };
        let said = format!("SeaBIOS\r\nlb-up 6.1.0\r\n{check}\r\nlb-done\r\n");
        assert_eq!(count(&said), (1, 1, 0));
        assert_eq!(count("SeaBIOS\n"), (0, 0, 1));
        // no end, no programs
        assert_eq!(count("lb-up 6.1.0\nlb-late after 3 s\n"), (0, 2, 0));
        assert_eq!(count(&said.replace("lb-done\r\n", "")), (1, 2, 0));
    }
}
