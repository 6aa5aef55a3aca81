//! Tests with real sockets: clusters of network namespaces with real agents, on a friendly and on hostile nodes.
//!
//! A case is a function with a name. All cases of a cluster share it and run in order; a failed one is tried a second
//! time, is told with what was counted meanwhile, and does not stop the others. Every cluster begins with direct traffic before any agent runs, and a hostile one ends with the kernel's
//! counters of martians, INVALID packets and wrong checksums, all of which must be 0.

mod access;
pub(crate) mod api;
mod bridge;
mod capacity;
mod counters;
mod detect;
mod dsr;
mod duties;
mod errors;
mod fast;
mod fragments;
mod host;
mod hostile;
mod interfaces;
mod leftovers;
mod lifecycle;
mod maglev;
mod neighbours;
mod nested;
mod nodes;
mod pins;
mod ranges;
mod rejects;
mod sockets;
mod traffic;
mod tuples;
mod unserved;
mod upgrade;
mod uplinks;
mod xdp;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::lab::manifests::Service;
use crate::lab::worker::{Answer, Ask};
use crate::lab::{Kind, Lab, Side, janitor};
use crate::run::step;

/// A running cluster with the Services of [`services`], and the agent's binary.
struct Context {
    lab: Lab,
    agent: PathBuf,
    /// What must not rise and did, with the case in which it did.
    noticed: Vec<String>,
}

type Case = (&'static str, fn(&mut Context) -> Result<()>);

/// ClusterIP of Service number `n` in [`services`], IPv4 and IPv6.
fn vips(number: u32) -> [SocketAddr; 2] {
    [address(&format!("10.96.0.{number}"), 80), address(&format!("fd96::{number}"), 80)]
}

fn address(ip: &str, port: u16) -> SocketAddr {
    // test data: a typing mistake is to stop the run
    SocketAddr::new(ip.parse().unwrap_or_else(|_| panic!("{ip} is no address")), port)
}

const WEB: u32 = 10;
const LOCAL: u32 = 11;
const REMOTE: u32 = 12;
const HAIRPIN: u32 = 13;
const EMPTY: u32 = 14;
const OUTSIDE: u32 = 15;
const MOVING: u32 = 16;
const LATE: u32 = 17;
const BRIDGED: u32 = 18;
const STICKY: u32 = 31;
const DRAIN: u32 = 32;
const AWAY: u32 = 33;

/// NodePort (TCP; UDP is the next number) of a Service.
const fn node_port(number: u32) -> u16 {
    30000 + 10 * number as u16
}

fn service(number: u32, name: &str) -> Service {
    Service {
        name: name.into(),
        cluster_ips: vips(number).map(|vip| vip.ip().to_string()).into(),
        node_port: Some(node_port(number)),
        ..Service::default()
    }
}

/// The Services every cluster has, with the pods behind them.
fn services() -> Vec<(Service, &'static [&'static str])> {
    let outside = Service {
        external_ips: vec!["198.51.100.10".into()],
        lb_ips: vec!["203.0.113.10".into(), "2001:db8:203::10".into()],
        ..service(OUTSIDE, "outside")
    };
    let affinity = vec!["sessionAffinity: ClientIP".to_owned()];
    let sticky = Service {
        external_ips: vec![sockets::STICKY_EXTERNAL.into()],
        spec: affinity.clone(),
        ..service(STICKY, "sticky")
    };
    let drain = Service { spec: affinity, ..service(DRAIN, "drain") };
    let away = Service { spec: vec!["externalTrafficPolicy: Local".into()], ..service(AWAY, "away") };
    vec![
        (service(WEB, "web"), &["p1a", "p2a"]),
        (service(LOCAL, "local"), &["p1a"]),
        (service(REMOTE, "remote"), &["p2a"]),
        (service(HAIRPIN, "hairpin"), &["p1b"]),
        (service(EMPTY, "empty"), &[]),
        (outside, &["p1a", "p2a"]),
        (service(MOVING, "moving"), &["p1a"]),
        (sticky, &["p1a", "p2a"]),
        (drain, &["p1a"]),
        (away, &["p2a"]),
    ]
}

/// Runs all clusters; `only` names cases by parts of their names, with commas between. Returns (passed, failed).
///
/// # Errors
/// When a cluster can't be built; failures of cases are counted.
pub(crate) fn run(agent: &Path, only: Option<&str>) -> Result<(usize, usize)> {
    let mut total = (0, 0);
    for kind in [Kind::Friendly, Kind::Hostile, Kind::Overlay] {
        let cases: Vec<Case> = cases(kind)
            .into_iter()
            .filter(|case| only.is_none_or(|parts| parts.split(',').any(|part| case.0.contains(part))))
            .collect();
        let (passed, failed) = cluster(kind, agent, &cases).with_context(|| format!("{kind:?} cluster"))?;
        total = (total.0 + passed, total.1 + failed);
    }
    Ok(total)
}

fn cases(kind: Kind) -> Vec<Case> {
    let mut list = access::CASES.to_vec();
    list.extend(host::CASES);
    list.extend(sockets::CASES);
    list.extend(tuples::CASES);
    list.extend(fragments::CASES);
    if kind != Kind::Overlay {
        list.extend(bridge::CASES);
        list.extend(unserved::CASES);
    }
    list.extend(errors::CASES);
    list.extend(rejects::CASES);
    list.extend(hostile::CASES);
    list.extend(uplinks::CASES);
    list.extend(nested::CASES);
    if kind == Kind::Friendly {
        list.extend(neighbours::CASES);
        list.extend(sockets::FRIENDLY);
        list.extend(lifecycle::CASES);
        list.extend(ranges::CASES);
        list.extend(maglev::CASES);
        list.extend(detect::CASES);
        list.extend(duties::CASES);
        list.extend(leftovers::CASES);
        list.extend(interfaces::CASES);
        list.extend(traffic::CASES);
        list.extend(upgrade::CASES);
        list.extend(capacity::CASES);
    }
    list.extend(fast::CASES);
    // over VXLAN no pod of another node is behind a device that XDP could send by
    if kind != Kind::Overlay {
        list.extend(xdp::CASES);
    }
    if kind == Kind::Friendly {
        list.extend(xdp::FRIENDLY);
    }
    list.extend(dsr::CASES);
    list.extend(match kind {
        Kind::Friendly => nodes::CASES,
        Kind::Hostile => nodes::HOSTILE,
        Kind::Overlay => nodes::OVERLAY,
    });
    list.extend(counters::CASES);
    if kind == Kind::Friendly {
        list.extend(pins::CASES);
    }
    list
}

fn cluster(kind: Kind, agent: &Path, cases: &[Case]) -> Result<(usize, usize)> {
    let lab =
        step(&format!("{kind:?} cluster: two nodes, four pods, a client"), || Lab::new("lbtest", kind))?;
    let mut context = Context { lab, agent: agent.into(), noticed: Vec::new() };
    let (mut passed, mut failed) = (0, 0);
    let mut note = |name: &str, begin: Instant, result: Result<()>, rose: &[String]| match result {
        Ok(()) => {
            passed += 1;
            println!("  PASS  {kind:?} {name} ({} ms)", begin.elapsed().as_millis());
        }
        Err(error) => {
            failed += 1;
            println!("  FAIL  {kind:?} {name}: {error:#}");
            println!("        counted meanwhile: {}", rose.join("; "));
        }
    };
    let begin = Instant::now();
    let direct = neighbours::direct_traffic(&mut context);
    note("direct_traffic_before_any_agent", begin, direct, &[]);
    for (service, pods) in services() {
        context.lab.service(&service, pods)?;
    }
    let begin = Instant::now();
    let started = context.lab.start_agents(agent);
    let up = started.is_ok();
    note("agents_are_healthy", begin, started, &[]);
    let mut again = 0;
    let mut before = counters::read(&mut context.lab)?;
    for (name, case) in cases {
        let begin = Instant::now();
        let mut result = if up { case(&mut context) } else { Err(anyhow::anyhow!("no agent is healthy")) };
        if let (true, Err(first)) = (up, &result) {
            again += 1;
            let rose = counters::rise(&before, &counters::read(&mut context.lab)?);
            println!("  AGAIN {kind:?} {name}: {first:#}\n        counted meanwhile: {}", rose.join("; "));
            result = case(&mut context);
        }
        let now = counters::read(&mut context.lab)?;
        let rose = counters::rise(&before, &now);
        note(name, begin, result, &rose);
        let bad = rose.iter().filter(|risen| counters::is_bad(risen, name));
        context.noticed.extend(bad.map(|risen| format!("{risen} ({name})")));
        before = now;
    }
    if again > 0 {
        println!("    {kind:?}: {again} cases were tried a second time");
    }
    if failed > 0 {
        janitor::keep_folders();
        println!("    the agents' logs are in {}", context.lab.folder.display());
    }
    drop(context);
    Ok((passed, failed))
}

impl Context {
    fn ask(&mut self, side: Side, ask: &Ask) -> Result<Answer> {
        self.lab.ask(side, ask)
    }

    fn http(&mut self, side: Side, to: SocketAddr) -> Result<Answer> {
        self.ask(side, &Ask::Http { to, path: "/".into(), mapped: false })
    }

    fn udp(&mut self, side: Side, to: SocketAddr, connected: bool) -> Result<Answer> {
        self.ask(side, &Ask::Udp { to, connected, mapped: false })
    }

    /// Asks until each of these pods has answered; any other answer, or a failure, is an error. At most 60 times.
    fn reach(&mut self, side: Side, ask: &Ask, pods: &[&str]) -> Result<Vec<Answer>> {
        let mut seen: Vec<Answer> = Vec::new();
        for _ in 0..60 {
            let answer = self.ask(side, ask)?;
            match (&answer.error, answer.pod()) {
                (None, Some(pod)) if pods.contains(&pod) => {
                    if seen.iter().all(|other| other.pod() != Some(pod)) {
                        seen.push(answer);
                    }
                }
                _ => bail!("{side:?} {ask:?}: {answer:?}, wanted one of {pods:?}"),
            }
            if seen.len() == pods.len() {
                return Ok(seen);
            }
        }
        let names: Vec<_> = seen.iter().filter_map(Answer::pod).collect();
        bail!("{side:?} {ask:?}: only {names:?} of {pods:?} answered in 60 tries")
    }

    /// TCP, connected and unconnected UDP to a frontend until each pod has answered each; checks what the socket says
    /// of its peer.
    fn all_protocols(&mut self, side: Side, tcp: SocketAddr, udp: SocketAddr, pods: &[&str]) -> Result<()> {
        for answer in self.reach(side, &Ask::Http { to: tcp, path: "/".into(), mapped: false }, pods)? {
            ensure!(answer.peer == Some(tcp), "getpeername() says {:?} for {tcp}", answer.peer);
        }
        for answer in self.reach(side, &Ask::Udp { to: udp, connected: true, mapped: false }, pods)? {
            ensure!(answer.peer == Some(udp), "getpeername() says {:?} for UDP {udp}", answer.peer);
        }
        for answer in self.reach(side, &Ask::Udp { to: udp, connected: false, mapped: false }, pods)? {
            ensure!(answer.from == Some(udp), "recvfrom() says {:?} for UDP {udp}", answer.from);
        }
        Ok(())
    }

    /// TCP and UDP are refused before a connect() would time out.
    fn refused(&mut self, side: Side, tcp: SocketAddr, udp: SocketAddr) -> Result<()> {
        for ask in [
            Ask::Http { to: tcp, path: "/".into(), mapped: false },
            Ask::Udp { to: udp, connected: true, mapped: false },
        ] {
            let answer = self.ask(side, &ask)?;
            let refused = answer.error.as_deref() == Some("ConnectionRefused");
            ensure!(
                refused && answer.millis < 3000,
                "{side:?} {ask:?}: {answer:?}, wanted ConnectionRefused"
            );
        }
        Ok(())
    }

    /// Asks until the answer is as wanted, for what takes effect soon (an event, a file).
    fn eventually(
        &mut self,
        side: Side,
        ask: &Ask,
        what: &str,
        wanted: impl Fn(&Answer) -> bool,
    ) -> Result<Duration> {
        let begin = Instant::now();
        loop {
            let answer = self.ask(side, ask)?;
            if wanted(&answer) {
                return Ok(begin.elapsed());
            }
            ensure!(begin.elapsed() < Duration::from_secs(10), "{what}: not within 10 s; last: {answer:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
