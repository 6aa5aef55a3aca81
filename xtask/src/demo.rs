//! `cargo xtask demo`: two nodes, four pods, one Service, every kind of access, shown with what really answered.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::lab::manifests::Service;
use crate::lab::worker::{Answer, Ask};
use crate::lab::{CLIENT, Kind, Lab, PREFIXES, janitor, node};
use crate::run::{is_root, output, step};
use crate::{build, packages};

const VIP4: &str = "10.96.0.10:80";
const VIP6: &str = "[fd96::10]:80";
const NODE_PORT: u16 = 30080;

/// Removes clusters that were kept.
///
/// # Errors
/// When this is not root's session.
pub(crate) fn remove() -> Result<()> {
    need_root()?;
    janitor::sweep(&PREFIXES, &node::cgroup_root()?, true);
    Ok(())
}

fn need_root() -> Result<()> {
    ensure!(is_root(), "the demo makes network namespaces and loads kernel programs: run it as root");
    Ok(())
}

/// Builds everything (but an agent that is named), shows everything. With `keep` the cluster stays.
///
/// # Errors
/// Names the step that failed and where the logs are.
pub(crate) fn run(keep: bool, agent: Option<PathBuf>) -> Result<()> {
    need_root()?;
    packages::need(packages::LAB)?;
    let agent = build::agent_or(agent)?;
    if keep {
        janitor::unleash();
    }
    let mut show = Show {
        lab: step("making two nodes, four pods and a client", || Lab::new("lbdemo", Kind::Friendly))?,
        passed: 0,
    };
    let begin = Instant::now();
    match show.play(&agent) {
        Ok(()) => println!("\n{} steps passed in {:.1} s", show.passed, begin.elapsed().as_secs_f64()),
        Err(error) => {
            janitor::keep_folders();
            println!("  FAIL  {error:#}");
            bail!("the demo failed; logs and manifests are in {}", show.lab.folder.display());
        }
    }
    if keep {
        explain(&show.lab, &agent);
        janitor::abandon();
        std::mem::forget(show); // its processes are to live on
    }
    Ok(())
}

struct Show {
    lab: Lab,
    passed: usize,
}

/// Who asks in a step.
#[derive(Clone, Copy)]
enum From {
    Client,
    Node,
    Pod,
}

impl Show {
    fn play(&mut self, agent: &Path) -> Result<()> {
        let web = Service {
            name: "web".into(),
            cluster_ips: vec!["10.96.0.10".into(), "fd96::10".into()],
            node_port: Some(NODE_PORT),
            ..Service::default()
        };
        self.lab.service(&web, &["p1a", "p2a"])?;
        println!("\nmanifests/service-web.yaml, as the agents read it:\n{}", indent(&web.yaml()));
        step("starting lb-agent on node1 and node2, waiting for /healthz", || self.lab.start_agents(agent))?;
        self.heading("a pod of node1 asks the ClusterIP");
        self.access(From::Pod, VIP4, VIP6, &["p1a", "p2a"])?;
        self.heading("node1 itself asks the ClusterIP");
        self.access(From::Node, VIP4, VIP6, &["p1a", "p2a"])?;
        self.heading("the client outside asks the NodePort of node1: p1a is there, p2a is on node2");
        let (v4, v6) = (format!("192.0.2.11:{NODE_PORT}"), format!("[2001:db8:1::11]:{NODE_PORT}"));
        self.access(From::Client, &v4, &v6, &["p1a", "p2a"])?;
        self.source_is_kept(&v4)?;
        self.endpoint_leaves()?;
        self.heading("what the agent says: lb-agent status");
        let status = self.lab.nodes[0].agent_command(agent, "status")?;
        ensure!(!status.trim().is_empty(), "lb-agent status printed nothing");
        println!("{}", indent(&status));
        self.pass("lb-agent status");
        self.tables()
    }

    fn heading(&self, text: &str) {
        println!("\n{text}");
    }

    fn pass(&mut self, text: &str) {
        self.passed += 1;
        println!("  PASS  {text}");
    }

    fn ask(&mut self, from: From, ask: &Ask) -> Result<Answer> {
        match from {
            From::Client => self.lab.client.ask(ask),
            From::Node => self.lab.nodes[0].worker.ask(ask),
            From::Pod => self.lab.pod("p1b")?.worker.ask(ask),
        }
    }

    /// TCP and UDP over both families until every pod has answered.
    fn access(&mut self, from: From, v4: &str, v6: &str, pods: &[&str]) -> Result<()> {
        for to in [v4, v6] {
            let to: std::net::SocketAddr = to.parse()?;
            self.until_all(
                from,
                &Ask::Http { to, path: "/".into(), mapped: false },
                &format!("TCP http://{to}/"),
                pods,
            )?;
            // NodePort: UDP has the next number
            let port = to.port() + u16::from(to.port() == NODE_PORT);
            let to = std::net::SocketAddr::new(to.ip(), port);
            self.until_all(
                from,
                &Ask::Udp { to, connected: false, mapped: false },
                &format!("UDP {to}"),
                pods,
            )?;
        }
        Ok(())
    }

    fn until_all(&mut self, from: From, ask: &Ask, what: &str, pods: &[&str]) -> Result<()> {
        let mut seen: Vec<String> = Vec::new();
        for tries in 1..=60 {
            let answer = self.ask(from, ask)?;
            let pod = match (&answer.error, answer.pod()) {
                (None, Some(pod)) if pods.contains(&pod) => pod.to_owned(),
                _ => bail!("{what}: {answer:?}, wanted an answer of one of {pods:?}"),
            };
            if !seen.contains(&pod) {
                println!("        {what} -> {}", answer.text);
                seen.push(pod);
            }
            if seen.len() == pods.len() {
                self.pass(&format!("{what}: {} answered ({tries} connections)", seen.join(" and ")));
                return Ok(());
            }
        }
        bail!("{what}: only {seen:?} of {pods:?} answered in 60 tries")
    }

    fn source_is_kept(&mut self, to: &str) -> Result<()> {
        let ask = Ask::Http { to: to.parse()?, path: "/".into(), mapped: false };
        for _ in 0..60 {
            let answer = self.ask(From::Client, &ask)?;
            if answer.pod() == Some("p1a") {
                let peer = answer.field("peer").unwrap_or_default().to_owned();
                ensure!(peer.starts_with(CLIENT[0]), "the pod on the node saw {peer}, not the client");
                self.pass(&format!("the pod on the node sees the client's own address: {peer}"));
                return Ok(());
            }
        }
        bail!("no connection in 60 went to p1a")
    }

    fn endpoint_leaves(&mut self) -> Result<()> {
        self.heading("endpoint p1a goes away: EndpointSlices without it are written");
        let ask = Ask::Http { to: VIP4.parse()?, path: "/".into(), mapped: false };
        self.lab.endpoints("web", &["p2a"])?;
        let begin = Instant::now();
        let mut in_a_row = 0;
        while in_a_row < 20 {
            let answer = self.ask(From::Pod, &ask)?;
            ensure!(answer.error.is_none(), "a connection failed during the change: {answer:?}");
            in_a_row = if answer.pod() == Some("p2a") { in_a_row + 1 } else { 0 };
            ensure!(begin.elapsed() < Duration::from_secs(10), "p1a is still asked after 10 s");
        }
        self.pass(&format!(
            "20 connections in a row went to p2a, none failed ({} ms)",
            begin.elapsed().as_millis()
        ));
        Ok(())
    }

    fn tables(&mut self) -> Result<()> {
        let pin = find_pin(&self.lab.nodes[0].bpffs, "LB_SVC4")
            .context("no pinned map LB_SVC4 in the node's bpffs")?;
        self.heading("the kernel's own view: bpftool map dump pinned <bpffs>/.../LB_SVC4");
        let dump = output(std::process::Command::new("bpftool").args(["map", "dump", "pinned"]).arg(&pin))?;
        println!("{}", indent(&dump.lines().take(30).collect::<Vec<_>>().join("\n")));
        ensure!(
            dump.contains("\"key\"") && dump.contains("\"value\"") && dump.contains("\"addr\""),
            "no field names in the dump"
        );
        self.pass("the map has field names");
        Ok(())
    }
}

fn find_pin(folder: &Path, name: &str) -> Option<PathBuf> {
    for entry in fs::read_dir(folder).ok()?.flatten() {
        let path = entry.path();
        if entry.file_name() == name {
            return Some(path);
        }
        if let Some(found) = path.is_dir().then(|| find_pin(&path, name)).flatten() {
            return Some(found);
        }
    }
    None
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}

fn explain(lab: &Lab, agent: &Path) {
    let node = &lab.nodes[0];
    let net = |name: &str| format!("nsenter --net=/run/netns/{name}");
    println!("\nThe cluster stays. Look around:");
    println!("  {} curl -s http://192.0.2.11:{NODE_PORT}/", net(&format!("{}-client", lab.tag)));
    println!("  {} curl -s http://{VIP4}/", net(&lab.pods["p1b"].namespace));
    println!(
        "  {} {} status --bpffs {} --cgroup {}",
        net(&node.namespace),
        agent.display(),
        node.bpffs.display(),
        node.cgroup.display()
    );
    println!("  bpftool map dump pinned {}/lb/v1/LB_CT4", node.bpffs.display());
    println!("  edit {}/*.yaml, and see it served", lab.manifests.display());
    println!("Remove it: cargo xtask demo --remove");
}
