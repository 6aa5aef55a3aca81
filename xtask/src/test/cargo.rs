//! Levels that are cargo's own: formatting, lints, tests written in Rust.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::{Tally, skip};
use crate::paths;
use crate::run::{cargo_program, clean, output, run};

fn cargo(arguments: &[&str]) -> Command {
    let mut command = clean(cargo_program());
    command.current_dir(paths::root()).args(arguments).env("CARGO_TARGET_DIR", paths::target());
    command
}

/// rustfmt and clippy, each where it is installed.
pub(super) fn lint() -> Result<Tally> {
    let mut tally = Tally::default();
    for (tool, commands) in [
        (
            "fmt",
            &[&["fmt", "--all", "--check"][..], &["fmt", "--check", "--manifest-path", "lb-ebpf/Cargo.toml"]]
                [..],
        ),
        ("clippy", &[&["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"][..]][..]),
    ] {
        if output(&mut cargo(&[tool, "--version"])).is_err() {
            tally += skip(&format!(
                "cargo {tool} is not installed (rustup component add {})",
                if tool == "fmt" { "rustfmt" } else { tool }
            ));
            continue;
        }
        for arguments in commands {
            match run(&mut cargo(arguments)) {
                Ok(()) => {
                    tally.passed += 1;
                    println!("  PASS  cargo {}", arguments.join(" "));
                }
                Err(error) => {
                    tally.failed += 1;
                    println!("  FAIL  {error:#}");
                }
            }
        }
    }
    Ok(tally)
}

/// All tests of the workspace that need nothing but cargo.
pub(super) fn unit() -> Result<Tally> {
    counted(&mut cargo(&["test", "--quiet", "--workspace", "--no-fail-fast"]))
}

/// The large cases of `lb-agent/tests/capacity.rs`, which `unit` leaves out; with their figures.
pub(crate) fn capacity() -> Result<Tally> {
    let test = ["test", "-p", "lb-agent", "--test", "capacity", "--"];
    counted(&mut cargo(&[&test[..], &["--ignored", "--nocapture", "--test-threads=1"]].concat()))
}

/// The programs with golden packets; needs root, one test at a time.
pub(super) fn prog() -> Result<Tally> {
    let tests = paths::root().join("lb-agent/tests");
    if !tests.join("prog.rs").exists() && !tests.join("prog/main.rs").exists() {
        return Ok(skip("lb-agent has no test target `prog`"));
    }
    counted(&mut cargo(&[
        "test",
        "--quiet",
        "-p",
        "lb-agent",
        "--test",
        "prog",
        "--",
        "--include-ignored",
        "--test-threads=1",
    ]))
}

/// Runs `cargo test`, passes its output on and adds up its result lines.
fn counted(command: &mut Command) -> Result<Tally> {
    let mut child = command.stdout(Stdio::piped()).spawn().context("starting cargo test")?;
    let mut tally = Tally::default();
    for line in BufReader::new(child.stdout.take().context("stdout")?).lines() {
        let line = line?;
        match counts(&line) {
            Some(found) => tally += found,
            None if line.trim().is_empty() || line.starts_with("running ") => {}
            None => println!("    {line}"),
        }
    }
    let status = child.wait()?;
    if !status.success() && tally.failed == 0 {
        tally.failed = 1; // it did not compile, or a test ended the process
        println!("  FAIL  cargo test ended with {status}");
    }
    ensure!(tally.passed + tally.failed > 0, "no test ran");
    Ok(tally)
}

/// Counts in `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s`.
fn counts(line: &str) -> Option<Tally> {
    let (_, numbers) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let number = |name: &str| {
        let part = numbers.split("; ").find_map(|part| part.strip_suffix(name))?;
        part.trim().parse().ok()
    };
    Some(Tally { passed: number("passed")?, failed: number("failed")?, skipped: number("ignored")? })
}

#[cfg(test)]
mod tests {
    use super::{Tally, counts};

    #[test]
    fn result_lines_are_counted_and_others_are_not() {
        let line = "test result: FAILED. 3 passed; 2 failed; 1 ignored; 0 measured; 4 filtered out; finished in 0.10s";
        assert_eq!(counts(line), Some(Tally { passed: 3, failed: 2, skipped: 1 }));
        assert_eq!(counts("test packet ... ok"), None);
    }
}
