//! `cargo xtask verify`: every kernel program before this kernel's verifier, against the budget in the tree.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;

use anyhow::{Context, Result, bail, ensure};
use aya::programs::Program;
use aya::{Ebpf, EbpfLoader};

use crate::run::output;
use crate::{elf, paths, stack};

/// Growth of the verified instructions that needs a new budget, in percent.
const TOLERANCE: u32 = 10;

/// What the kernel says of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cost {
    /// Instructions the verifier walked through.
    verified: u32,
    /// Bytes after the kernel's own rewriting.
    translated: u32,
    /// Deepest stack, callees included, in bytes as Linux 6.1 counts them.
    stack: u32,
}

/// Counts of a run: programs that are within the budget, and those that are not or don't load.
pub(crate) struct Outcome {
    /// Programs in order.
    pub(crate) passed: usize,
    /// The others.
    pub(crate) failed: usize,
}

/// Loads every program of target/lb-ebpf.o; with `bless` the budget is written anew instead of compared.
///
/// # Errors
/// When the object is missing, a panic path is in it, or a map can't be made. A program that is refused or too
/// expensive is in the counts.
pub(crate) fn run(bless: bool) -> Result<Outcome> {
    let path = paths::object();
    let bytes =
        fs::read(&path).with_context(|| format!("{}: run `cargo xtask build-ebpf` first", path.display()))?;
    let panics = elf::panic_symbols(&bytes)?;
    ensure!(panics.is_empty(), "panic paths in the object: {}", panics.join(", "));
    let depths = stack::depths(&bytes)?;
    let mut loaded = EbpfLoader::new().load(&bytes).context("loading the maps")?;
    let mut failed = 0;
    let mut costs = BTreeMap::new();
    let names: Vec<String> = loaded.programs().map(|(name, _)| name.to_owned()).collect();
    ensure!(!names.is_empty(), "the object holds no program");
    for name in names {
        match load(&mut loaded, &name) {
            Ok((verified, translated)) => {
                let deepest = depths.get(&name).with_context(|| format!("no symbol for {name}"))?;
                let stack = deepest.bytes;
                if stack > stack::LIMIT {
                    failed += 1;
                    println!("  FAIL  {name}: Linux 6.1 would refuse it: {deepest}");
                } else if stack > stack::LIMIT - stack::ROUNDING {
                    println!("    {name} has no room left: {deepest}");
                }
                costs.insert(name, Cost { verified, translated, stack });
            }
            Err(error) => {
                failed += 1;
                println!("  FAIL  {name} is refused: {}", shortened(&name, &format!("{error:#}"))?);
            }
        }
    }
    let budget_path = paths::root().join("lb-ebpf/budget.txt");
    let kernel = kernel()?;
    if bless {
        ensure!(failed == 0, "{failed} programs are refused: nothing was written");
        fs::write(&budget_path, text(&kernel, &costs))?;
        println!("    wrote lb-ebpf/budget.txt");
    }
    let budget = parse(&fs::read_to_string(&budget_path).unwrap_or_default())?;
    let judged = budget.kernel == kernel;
    if !judged && !budget.costs.is_empty() {
        println!("    the budget is for Linux {}, this is {kernel}: shown, not judged", budget.kernel);
    }
    println!("    {:16} {:>9} {:>9} {:>6} {:>6}", "program", "verified", "budget", "xlated", "stack");
    let mut passed = 0;
    for (name, cost) in &costs {
        let (allowed, trouble) = judge(*cost, budget.costs.get(name).copied(), judged);
        println!("    {name:16} {:>9} {allowed:>9} {:>6} {:>6}", cost.verified, cost.translated, cost.stack);
        if let Some(trouble) = trouble {
            failed += 1;
            println!("  FAIL  {name}: {trouble}");
        } else {
            passed += 1;
        }
    }
    for name in budget.costs.keys().filter(|name| !depths.contains_key(*name)) {
        failed += 1;
        println!("  FAIL  {name} is in the budget and not in the object");
    }
    Ok(Outcome { passed, failed })
}

/// The end of the verifier's words, and where all of them are.
fn shortened(name: &str, words: &str) -> Result<String> {
    let folder = paths::target().join("verify");
    fs::create_dir_all(&folder)?;
    let log = folder.join(format!("{name}.log"));
    fs::write(&log, words)?;
    let lines: Vec<_> = words.lines().collect();
    let end = lines[lines.len().saturating_sub(8)..].join("\n        ");
    Ok(format!(
        "{}\n        {end}\n        all of it: target/verify/{name}.log",
        lines.first().unwrap_or(&"").chars().take(120).collect::<String>()
    ))
}

/// The budget's figure as text, and what is wrong with the cost.
fn judge(cost: Cost, budget: Option<u32>, judged: bool) -> (String, Option<String>) {
    match budget {
        None => {
            ("-".into(), Some("no line in lb-ebpf/budget.txt; `cargo xtask verify --bless` writes it".into()))
        }
        Some(limit) if judged && cost.verified > limit + limit * TOLERANCE / 100 => (
            limit.to_string(),
            Some(format!(
                "{} verified instructions are more than {TOLERANCE} % above the budget of {limit}",
                cost.verified
            )),
        ),
        Some(limit) => (limit.to_string(), None),
    }
}

fn load(loaded: &mut Ebpf, name: &str) -> Result<(u32, u32)> {
    let info = match loaded.program_mut(name).context("no such program")? {
        Program::SchedClassifier(program) => {
            program.load().map_err(anyhow::Error::from).and_then(|()| Ok(program.info()?))
        }
        Program::CgroupSockAddr(program) => {
            program.load().map_err(anyhow::Error::from).and_then(|()| Ok(program.info()?))
        }
        Program::Xdp(program) => {
            program.load().map_err(anyhow::Error::from).and_then(|()| Ok(program.info()?))
        }
        _ => bail!("a kind of program that verify does not know yet"),
    }?;
    Ok((
        info.verified_instruction_count().context("the kernel tells no verified instructions (5.16)")?,
        info.size_translated().context("the kernel tells no translated size")?,
    ))
}

/// `major.minor` of the running kernel: another one's verifier counts differently.
fn kernel() -> Result<String> {
    let release = output(std::process::Command::new("uname").arg("-r"))?;
    Ok(release.trim().split('.').take(2).collect::<Vec<_>>().join("."))
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Budget {
    kernel: String,
    /// Verified instructions by program.
    costs: BTreeMap<String, u32>,
}

fn text(kernel: &str, costs: &BTreeMap<String, Cost>) -> String {
    let mut text = format!(
        "# Written by `cargo xtask verify --bless`; `cargo xtask test verify` fails above +{TOLERANCE} %.\n\
         # program, verified instructions, translated bytes, deepest stack in bytes (frames rounded as Linux 6.1 does)\nkernel {kernel}\n"
    );
    for (name, cost) in costs {
        writeln!(text, "{name} {} {} {}", cost.verified, cost.translated, cost.stack).ok();
    }
    text
}

fn parse(text: &str) -> Result<Budget> {
    let mut budget = Budget::default();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["kernel", kernel] => budget.kernel = kernel.into(),
            [name, verified, ..] => {
                let verified = verified.parse().with_context(|| format!("lb-ebpf/budget.txt: {line}"))?;
                budget.costs.insert(name.into(), verified);
            }
            _ => {}
        }
    }
    Ok(budget)
}

#[cfg(test)]
mod tests {
    use super::*;

    const COST: Cost = Cost { verified: 1100, translated: 8, stack: 16 };

    #[test]
    fn ten_percent_growth_is_allowed_and_one_instruction_more_is_not() {
        assert_eq!(judge(COST, Some(1000), true).1, None);
        assert!(judge(Cost { verified: 1101, ..COST }, Some(1000), true).1.is_some());
        assert_eq!(judge(Cost { verified: 9999, ..COST }, Some(1000), false).1, None);
    }

    #[test]
    fn a_program_without_a_line_fails_on_every_kernel() {
        assert!(judge(COST, None, true).1.is_some());
        assert!(judge(COST, None, false).1.is_some());
    }

    #[test]
    fn what_bless_writes_is_what_verify_reads() {
        let budget = parse(&text("6.18", &BTreeMap::from([("lb_tc_in".into(), COST)]))).unwrap();
        assert_eq!(
            budget,
            Budget { kernel: "6.18".into(), costs: BTreeMap::from([("lb_tc_in".into(), 1100)]) }
        );
    }
}
