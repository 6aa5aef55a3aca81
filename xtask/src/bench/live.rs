//! S2 `cargo xtask bench live`: what a core forwards. A generator sends UDP/IPv4 frames of 1, 1024 and 65536 flows
//! through a node with two veths, to a NodePort whose backends are on another node (plain routing: to the backends);
//! a sink counts what arrives. The cost is that of generator, node and sink together, so limits are shown beside it.

use std::path::Path;

use anyhow::Result;

use super::meter::Meter;
use super::stand::{Course, Mode, Site, Stand, Way, prime};
use super::stats::{Case, Effort, Report, Target, measure};
use crate::lab::janitor;

const IDEAL: &str = "ideal program";
const REDIRECT: &str = "limit: XDP redirect";

/// Arms by name.
fn arms(quick: bool) -> Vec<(String, Way)> {
    let many = if quick { 1000 } else { 10_000 };
    let mut arms = vec![
        ("plain routing".to_owned(), Way::Plain),
        ("plain routing again".into(), Way::Plain),
        ("iptables, 10 Services".into(), Way::Iptables(10)),
        (format!("iptables, {many} Services"), Way::Iptables(many)),
        (format!("nft, {many} Services"), Way::Nft(many)),
        (format!("lb, TC, {many} Services"), Way::Lb(many, Mode::Tc)),
        (format!("lb, XDP, {many} Services"), Way::Lb(many, Mode::Xdp)),
    ];
    for (name, way) in
        [(IDEAL, Way::Ideal), (REDIRECT, Way::Redirect), ("limit: XDP drop at the node", Way::Drop)]
    {
        arms.push((name.into(), way));
    }
    arms
}

/// Measures.
///
/// # Errors
/// When a stand can't be built, or packets are lost or wrong.
pub(crate) fn run(agent: &Path, effort: &Effort) -> Result<Report> {
    let mut report = Report::new(
        "S2",
        "live",
        "Packets to backends of other nodes, live frames through two veths",
        "CPU ns per packet, generator and sink included",
    );
    let site = Site::new(agent)?;
    let done = cases(&site, effort, &mut report);
    janitor::clean();
    done?;
    Ok(report)
}

fn cases(site: &Site, effort: &Effort, report: &mut Report) -> Result<()> {
    let mut stands = Vec::new();
    for (number, (name, way)) in arms(effort.quick).into_iter().enumerate() {
        eprintln!("    building: {name}");
        stands.push(Stand::new(site, number, &name, way, Course::Sink)?);
    }
    let names: Vec<String> = stands.iter().map(|stand| stand.name.clone()).collect();
    let sizes: &[u32] = if effort.quick { &[1, 1 << 16] } else { &[1, 1 << 10, 1 << 16] };
    for flows in sizes {
        prime(&mut stands, *flows)?;
        let meter = Meter::pinned()?;
        for stand in &mut stands {
            stand.slice(&meter, effort.slice)?; // how many frames make a slice
        }
        let name = if *flows == 1 { "1 flow".to_owned() } else { format!("{flows} flows") };
        eprintln!("    {name}");
        let case =
            measure(&name, &names, Some(IDEAL), effort, |arm| stands[arm].slice(&meter, effort.slice))?;
        judge(&case, report);
        report.cases.push(case);
    }
    report.notes.push(
        "gate passed: every frame arrived with right checksums and source, and every answer came back, before each \
         case; at most one of a thousand was lost while measuring"
            .into(),
    );
    Ok(())
}

/// What issue 6 asks for, of each size.
fn judge(case: &Case, report: &mut Report) {
    let xdp = case.rows.iter().find(|row| row.name.starts_with("lb, XDP"));
    if let (Some(xdp), Some(redirect)) = (xdp, case.row(REDIRECT)) {
        let packets = 1000.0 / xdp.min;
        report.figures.insert(format!("{}: Mpps per core, XDP", case.name), packets);
        report.targets.push(Target::at_least(
            format!("{}: million packets/s per core with XDP", case.name),
            packets,
            3.5,
        ));
        report.targets.push(Target::at_least(
            format!("{}: XDP's rate by that of a plain redirect", case.name),
            redirect.min / xdp.min,
            0.6,
        ));
    }
}
