//! S6 `cargo xtask bench nodes`: a client outside, a NodePort, and backends on another node or on this one, there and back.
//! Live frames of UDP/IPv4; the pod turns each packet around, and what comes back to the client is counted. The second
//! node has the same rules, or an agent of its own.

use std::path::Path;

use anyhow::{Context, Result};

use super::has_flag;
use super::meter::Meter;
use super::stand::{Course, Mode, Site, Stand, Way, prime};
use super::stats::{Effort, Report, measure};
use crate::lab::janitor;

const FLOWS: u32 = 1 << 10;

/// Measures.
///
/// # Errors
/// When a stand can't be built, or packets are lost or wrong.
pub(crate) fn run(agent: &Path, effort: &Effort) -> Result<Report> {
    let mut report = Report::new(
        "S6",
        "nodes",
        "From outside to a NodePort and back",
        "CPU ns per packet and its answer, generator, all nodes and the pod included",
    );
    for (course, what) in
        [(Course::Remote, "backends on another node"), (Course::Local, "backends on this node")]
    {
        let site = Site::new(agent)?;
        let done = case(&site, effort, course, what, &mut report);
        janitor::clean();
        done.context(what)?;
    }
    report.notes.push(format!(
        "{FLOWS} flows; gate passed: every packet and every answer arrived with right checksums, source and port"
    ));
    Ok(report)
}

fn case(site: &Site, effort: &Effort, course: Course, what: &str, report: &mut Report) -> Result<()> {
    let many = if effort.quick { 100 } else { 10_000 };
    let mut arms = vec![
        ("plain routing".to_owned(), Way::Plain),
        ("plain routing again".into(), Way::Plain),
        (format!("iptables, {many} Services"), Way::Iptables(many)),
        (format!("nft, {many} Services"), Way::Nft(many)),
        ("lb, TC".into(), Way::Lb(many, Mode::Tc)),
        ("lb, XDP on the uplinks".into(), Way::Lb(many, Mode::Xdp)),
    ];
    if course == Course::Remote {
        if has_flag(&site.agent, "--dsr")? {
            arms.push(("lb, TC, DSR by IPIP".into(), Way::Lb(many, Mode::Dsr)));
            arms.push(("lb, XDP, DSR by IPIP".into(), Way::Lb(many, Mode::XdpDsr)));
        } else {
            report.notes.push("skipped: the agent has no --dsr".into());
        }
    }
    let mut stands = Vec::new();
    for (number, (name, way)) in arms.into_iter().enumerate() {
        eprintln!("    building: {name}, {what}");
        stands.push(Stand::new(site, number, &name, way, course)?);
    }
    prime(&mut stands, FLOWS)?;
    let meter = Meter::pinned()?;
    for stand in &mut stands {
        stand.slice(&meter, effort.slice)?; // how many frames make a slice
    }
    let names: Vec<String> = stands.iter().map(|stand| stand.name.clone()).collect();
    eprintln!("    {what}");
    let case = measure(what, &names, None, effort, |arm| stands[arm].slice(&meter, effort.slice))?;
    report.cases.push(case);
    Ok(())
}
