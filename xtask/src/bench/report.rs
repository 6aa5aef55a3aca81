//! Reports as text, as JSON, and as a section of docs/performance.md with its chart.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::chart;
use super::stats::{Report, Target};
use crate::paths;

/// Where and when.
pub(crate) struct Scene {
    date: String,
    kernel: String,
    load: String,
    cores: usize,
    command: String,
}

impl Scene {
    /// Now and here; `command` is what would repeat it.
    ///
    /// # Errors
    /// When /proc can't be read.
    pub(crate) fn new(command: &str) -> Result<Self> {
        let load = fs::read_to_string("/proc/loadavg")?;
        Ok(Self {
            date: jiff::Timestamp::now().to_string().chars().take(10).collect(),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().into(),
            load: load.split(' ').next().unwrap_or_default().into(),
            cores: std::thread::available_parallelism()?.get(),
            command: command.into(),
        })
    }

    fn line(&self) -> String {
        format!(
            "{}, Linux {}, {} cores, load average {} when it began: `{}`",
            self.date, self.kernel, self.cores, self.load, self.command
        )
    }
}

/// Prints tables.
pub(crate) fn print(report: &Report) {
    println!("{} {}: {}", report.scenario, report.name, report.title);
    for case in &report.cases {
        println!(
            "    {} ({}; A/A x{:.3}{})",
            case.name,
            report.unit,
            case.aa,
            if case.void { ": void, the machine is too noisy" } else { "" }
        );
        for row in &case.rows {
            println!(
                "      {:34} {:>9.0} min {:>9.0} median   x{:.3} min/min, x{:.3} median [{:.3}, {:.3}]{}",
                row.name,
                row.min,
                row.median,
                row.times,
                row.times_median,
                row.interval[0],
                row.interval[1],
                row.ideal.map(|ideal| format!("   x{ideal:.2} ideal")).unwrap_or_default()
            );
        }
    }
    for target in &report.targets {
        println!("    {}", judged(target));
    }
    for note in &report.notes {
        println!("    note: {note}");
    }
}

fn judged(target: &Target) -> String {
    format!(
        "{}: {:.2}, target {} {}: {}",
        target.what,
        target.value,
        if target.at_least { "at least" } else { "at most" },
        target.bound,
        if target.met { "met" } else { "missed" }
    )
}

/// Writes all reports for machines.
///
/// # Errors
/// When the file can't be written.
pub(crate) fn json(path: &Path, scene: &Scene, reports: &[Report]) -> Result<()> {
    let text = serde_json::json!({
        "date": scene.date, "kernel": scene.kernel, "load": scene.load, "cores": scene.cores,
        "command": scene.command, "scenarios": reports,
    });
    fs::write(path, serde_json::to_string_pretty(&text)? + "\n").with_context(|| path.display().to_string())
}

/// Replaces the report's section of docs/performance.md and draws its chart.
///
/// # Errors
/// When the section's marks are not there, or a file can't be written.
pub(crate) fn document(scene: &Scene, report: &Report) -> Result<()> {
    let docs = paths::root().join("docs");
    let picture = format!("bench-{}.svg", report.name);
    let page = docs.join("performance.md");
    let text = fs::read_to_string(&page).with_context(|| page.display().to_string())?;
    fs::write(&page, replaced(&text, report.name, &section(scene, report, &picture))?)?;
    fs::write(docs.join(&picture), chart::draw(report))?;
    println!("    wrote docs/performance.md and docs/{picture}");
    Ok(())
}

/// `text` with what is between the marks of `name` made new.
fn replaced(text: &str, name: &str, section: &str) -> Result<String> {
    let (begin, end) = (format!("<!-- bench {name} -->\n"), format!("<!-- end of bench {name} -->"));
    let parts = text.split_once(&begin).and_then(|(before, rest)| Some((before, rest.split_once(&end)?.1)));
    ensure!(parts.is_some(), "docs/performance.md has no section between `{}` and `{end}`", begin.trim());
    let (before, after) = parts.unwrap_or_default();
    Ok(format!("{before}{begin}{section}{end}{after}"))
}

fn section(scene: &Scene, report: &Report, picture: &str) -> String {
    let mut text = format!("{}\n\n![{}]({picture})\n", scene.line(), report.title);
    for case in &report.cases {
        let ideal = case.rows.iter().any(|row| row.ideal.is_some());
        writeln!(
            text,
            "\n**{}**, {}; A/A x{:.3}{}\n",
            case.name,
            report.unit,
            case.aa,
            if case.void { ", **void: the machine was too noisy**" } else { "" }
        )
        .ok();
        text += "| | min | median | x baseline, min/min | median, 95 % interval |";
        text += if ideal { " x ideal |\n|---|---|---|---|---|---|\n" } else { "\n|---|---|---|---|---|\n" };
        for row in &case.rows {
            write!(
                text,
                "| {} | {:.0} | {:.0} | {:.2} | {:.2} [{:.2}, {:.2}] |",
                row.name, row.min, row.median, row.times, row.times_median, row.interval[0], row.interval[1]
            )
            .ok();
            text += &row.ideal.map(|ideal| format!(" {ideal:.2} |")).unwrap_or_default();
            text.push('\n');
        }
    }
    if !report.targets.is_empty() || !report.notes.is_empty() {
        text.push('\n');
    }
    report.targets.iter().for_each(|target| writeln!(text, "- {}", judged(target)).unwrap_or_default());
    report.notes.iter().for_each(|note| writeln!(text, "- {note}").unwrap_or_default());
    text
}

#[cfg(test)]
mod tests {
    use super::replaced;

    #[test]
    fn only_the_named_section_is_replaced() {
        let text = "a\n<!-- bench x -->\nold\n<!-- end of bench x -->\nb\n<!-- bench y -->\n<!-- end of bench y -->\n";
        let new = replaced(text, "x", "new\n").unwrap();
        assert_eq!(new, text.replace("old", "new"));
        assert!(replaced(text, "z", "").is_err());
    }
}
