//! Agents fed by a real kube-apiserver with etcd, with the service account and the rights that we ship.
//!
//! The objects are those of the other clusters: the lab writes manifests, and [`Api::sync`] makes the API hold them.

mod bootstrap;
mod events;
mod labels;
mod outage;
mod rights;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use super::{Context, LATE, MOVING, Side, WEB, address, node_port, service, services, vips};
use crate::kube::plane::ControlPlane;
use crate::lab::node::ApiFeed;
use crate::lab::worker::Ask;
use crate::lab::{Kind, Lab, janitor};
use crate::{paths, run};

/// A cluster with a control plane.
struct Api {
    context: Context,
    plane: ControlPlane,
    /// Folder with the token of the shipped service account.
    account: PathBuf,
}

type Case = (&'static str, fn(&mut Api) -> Result<()>);

/// Which API server changes are made through.
const FIRST: usize = 0;
const SECOND: usize = 1;

/// How long a change may take from the API to the packets when an API server has just come or gone, also where the
/// tests share two cores with a build.
const SLOW: Duration = Duration::from_secs(120);

/// Nothing is kept.
const NO_STATE: &str = "";

const CASES: &[Case] = &[
    ("b166_the_shipped_rights_are_enough_and_objects_become_packets", objects),
    ("changes_and_deletions_reach_the_packets", changes),
];

/// Runs all cases; `only` names them by a part of their name. Returns (passed, failed).
///
/// # Errors
/// When the cluster can't be built; failures of cases are counted.
pub(crate) fn run(agent: &Path, binaries: &Path, only: Option<&str>) -> Result<(usize, usize)> {
    let all = CASES
        .iter()
        .chain(labels::CASES)
        .chain(events::CASES)
        .chain(outage::CASES)
        .chain(bootstrap::CASES)
        .chain(rights::CASES);
    let cases: Vec<&Case> = all.filter(|case| only.is_none_or(|part| case.0.contains(part))).collect();
    let mut api = Api::build(agent, binaries)?;
    let (mut passed, mut failed) = (0, 0);
    for (name, case) in cases {
        let begin = Instant::now();
        let result = api.ready().and_then(|()| case(&mut api));
        match result {
            Ok(()) => {
                passed += 1;
                println!("  PASS  {name} ({} ms)", begin.elapsed().as_millis());
            }
            Err(error) => {
                failed += 1;
                println!("  FAIL  {name}: {error:#}");
            }
        }
    }
    if failed > 0 {
        janitor::keep_folders();
        println!("    the logs are in {}", api.context.lab.folder.display());
    }
    Ok((passed, failed))
}

impl Api {
    fn build(agent: &Path, binaries: &Path) -> Result<Self> {
        let lab = run::step("two nodes, four pods, a client", || Lab::new("lbtest", Kind::Friendly))?;
        let context = Context { lab, agent: agent.into(), noticed: Vec::new() };
        let plane = run::step("etcd and two API servers", || ControlPlane::start(&context.lab, binaries))?;
        plane.apply(FIRST, &fs::read_to_string(paths::root().join("deploy/base/rbac.yaml"))?)?;
        let account = plane.account(FIRST, "lb-agent")?;
        let mut api = Self { context, plane, account };
        for (service, pods) in services() {
            api.context.lab.service(&service, pods)?;
        }
        api.sync()?;
        Ok(api)
    }

    /// What every case begins with: both servers, and an agent on each node that reads from the second server, with
    /// the first one as a way out. An earlier case may have failed half-way.
    fn ready(&mut self) -> Result<()> {
        for index in [FIRST, SECOND] {
            if !self.plane.is_running(index) {
                self.plane.start_server(index)?;
            }
        }
        let feed = self.feed(&[SECOND, FIRST]);
        let agent = self.context.agent.clone();
        for node in &mut self.context.lab.nodes {
            node.feed = Some(feed.clone());
            if !node.has_agent() {
                node.start_agent(&agent)?;
            }
        }
        Ok(())
    }

    /// In a pod with the shipped service account, `--apiserver` names these servers, by IPv4 where the certificate
    /// has that address. Nothing is kept on disk.
    fn feed(&self, servers: &[usize]) -> ApiFeed {
        let urls: Vec<String> =
            servers.iter().map(|server| ControlPlane::url(*server, usize::from(*server == FIRST))).collect();
        let arguments = if urls.is_empty() { Vec::new() } else { vec!["--apiserver".into(), urls.join(",")] };
        ApiFeed {
            arguments: [arguments, vec!["--state-dir".into(), NO_STATE.into()]].concat(),
            account: Some(self.account.clone()),
            environment: vec![("KUBERNETES_SERVICE_HOST".into(), String::new())],
        }
    }

    /// The feed of [`Api::feed`] with a folder for what is kept.
    fn feed_with_state(&self, servers: &[usize], state: &Path) -> ApiFeed {
        let mut feed = self.feed(servers);
        if let Some(last) = feed.arguments.last_mut() {
            *last = state.display().to_string();
        }
        feed
    }

    /// Makes the API hold what the lab's manifests say, by the first server.
    fn sync(&mut self) -> Result<()> {
        self.plane.mirror(&self.context.lab.manifests, FIRST)
    }

    /// Stops node 1's agent if one runs, and begins another with this feed; it need not become healthy.
    fn begin(&mut self, feed: ApiFeed) -> Result<()> {
        let agent = self.context.agent.clone();
        let node = &mut self.context.lab.nodes[0];
        if node.has_agent() {
            node.stop_agent(libc::SIGTERM)?;
        }
        node.feed = Some(feed);
        node.spawn_agent(&agent)
    }

    /// As [`Api::begin`], on a node from which everything was removed: it comes up empty.
    fn begin_empty(&mut self, feed: ApiFeed) -> Result<()> {
        let agent = self.context.agent.clone();
        let node = &mut self.context.lab.nodes[0];
        if node.has_agent() {
            node.stop_agent(libc::SIGTERM)?;
        }
        node.agent_command(&agent, "cleanup")?;
        let dead = self.context.http(Side::Pod("p1b"), vips(WEB)[0])?;
        ensure!(dead.error.is_some(), "an empty node serves: {dead:?}");
        self.begin(feed)
    }

    fn healthy(&mut self) -> Result<()> {
        self.context.lab.nodes[0].wait_healthy()
    }

    /// What `lb-agent status` prints on node 1, once it has this text.
    fn status_says(&mut self, text: &str) -> Result<String> {
        let begin = Instant::now();
        let agent = self.context.agent.clone();
        loop {
            let status = self.context.lab.nodes[0].agent_command(&agent, "status").unwrap_or_default();
            if status.contains(text) {
                return Ok(status);
            }
            if begin.elapsed() > SLOW {
                bail!("`lb-agent status` does not say {text:?}:\n{status}");
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// How often the agent's log has this text.
    fn logged(&self, text: &str) -> usize {
        let log = fs::read_to_string(&self.context.lab.nodes[0].log).unwrap_or_default();
        log.lines().filter(|line| line.contains(text)).count()
    }

    /// Service `web` from every side, both families, all protocols.
    fn web_is_served(&mut self) -> Result<()> {
        let node = self.context.lab.nodes[0].addresses.clone();
        for family in [0, 1] {
            let vip = vips(WEB)[family];
            let outside = address(&node[family], node_port(WEB));
            let outside_udp = address(&node[family], node_port(WEB) + 1);
            self.context.all_protocols(Side::Pod("p1b"), vip, vip, &["p1a", "p2a"])?;
            self.context.all_protocols(Side::Node(0), vip, vip, &["p1a", "p2a"])?;
            self.context.all_protocols(Side::Client, outside, outside_udp, &["p1a", "p2a"])?;
        }
        Ok(())
    }

    /// Waits until a Service answers from this pod, in both families.
    fn serves(&mut self, number: u32, pod: &str) -> Result<()> {
        for to in vips(number) {
            self.follows(to, &format!("{to} by {pod}"), |answer| answer == Some(pod))?;
        }
        Ok(())
    }

    /// Waits until nobody answers for a Service.
    fn is_gone(&mut self, number: u32) -> Result<()> {
        for to in vips(number) {
            self.follows(to, &format!("{to} gone"), |answer| answer.is_none())?;
        }
        Ok(())
    }

    fn follows(
        &mut self,
        to: std::net::SocketAddr,
        what: &str,
        wanted: impl Fn(Option<&str>) -> bool,
    ) -> Result<()> {
        let begin = Instant::now();
        loop {
            let answer =
                self.context.ask(Side::Pod("p1b"), &Ask::Http { to, path: "/".into(), mapped: false })?;
            if wanted(answer.pod()) {
                return Ok(());
            }
            ensure!(begin.elapsed() < SLOW, "{what}: not within {SLOW:?}; last: {answer:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Moves Service `moving` to a pod, in the API.
    fn move_to(&mut self, pod: &str) -> Result<()> {
        self.context.lab.endpoints("moving", &[pod])?;
        self.sync()
    }

    /// Makes Service `late` in the API.
    fn make_late(&mut self) -> Result<()> {
        self.context.lab.service(&service(LATE, "late"), &["p2b"])?;
        self.sync()
    }

    /// Removes it, with its slices.
    fn remove_late(&mut self) -> Result<()> {
        for file in ["service-late", "slice-late-4", "slice-late-6"] {
            fs::remove_file(self.context.lab.manifests.join(format!("{file}.yaml")))?;
        }
        self.sync()
    }
}

fn objects(api: &mut Api) -> Result<()> {
    api.web_is_served()?;
    let status = api.status_says("serving    true")?;
    ensure!(!status.contains("API server"), "something is wrong:\n{status}");
    Ok(())
}

fn changes(api: &mut Api) -> Result<()> {
    api.make_late()?;
    api.serves(LATE, "p2b")?;
    for pod in ["p2a", "p1a", "p2a"] {
        api.move_to(pod)?;
        api.serves(MOVING, pod)?;
    }
    api.remove_late()?;
    api.is_gone(LATE)?;
    api.web_is_served()
}
