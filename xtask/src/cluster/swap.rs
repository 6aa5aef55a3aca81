//! From kube-proxy to lb and back while traffic flows, counting what breaks.
//!
//! Traffic comes from a pod, from a node itself and from outside, to a Service with its pod on the same node and one
//! with its pod on another, in both families. Every phase has traffic of its own, and two loads span several: what was
//! opened under kube-proxy lives through the swap, what was opened under lb through the way back.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::Proxy;
use super::lab::Lab;
use crate::lab::janitor;
use crate::lab::traffic::{Load, Tally, Target};
use crate::lab::worker::{Ask, Worker};
use crate::paths;
use crate::run::{output, run};

/// Pods of cluster/traffic.yaml, and their ClusterIPs with port, which clients inside dial.
const CLUSTER_IPS: [(&str, &str); 4] = [
    ("local", "10.96.77.1:80"),
    ("local", "[fd00:96::7701]:80"),
    ("remote", "10.96.77.2:80"),
    ("remote", "[fd00:96::7702]:80"),
];
/// NodePorts of node1, which the client outside dials.
const NODE_PORTS: [(&str, &str); 4] = [
    ("local", "172.30.0.21:30877"),
    ("local", "[fd00:30::21]:30877"),
    ("remote", "172.30.0.21:30878"),
    ("remote", "[fd00:30::21]:30878"),
];
/// Selects kube-proxy's or our DaemonSet, node by node.
const LABEL: &str = "lb-cluster/proxy";
/// Short connections per second of a load that spans phases: its point is what stays open.
const SPANNING_RATE: u32 = 4;

/// One datagram in so many may be answered late.
const LATE: u64 = 100;

/// How long new Services may take to be served.
const PATIENCE: Duration = Duration::from_secs(60);

/// A place that traffic comes from.
struct Place {
    name: &'static str,
    worker: Worker,
    targets: Vec<Target>,
}

/// The traffic of all places, and what came of it.
struct Traffic<'a> {
    story: &'a Story,
    places: Vec<Place>,
    /// Name of the load, place, counts.
    done: Vec<(String, &'static str, Tally)>,
}

impl<'a> Traffic<'a> {
    /// Starts the servers and the clients; no traffic yet.
    fn start(lab: &Lab, story: &'a Story) -> Result<Self> {
        let program = lab.home().join("lb/xtask");
        run(Command::new("strip").arg("-o").arg(&program).arg(std::env::current_exe()?))?;
        run(lab.script("addimage.sh").arg("lab.local/traffic:1").arg(&program))?;
        run(lab.kubectl().args(["apply", "-f"]).arg(paths::root().join("cluster/traffic.yaml")))?;
        let wait = ["wait", "-n", "traffic", "--for=condition=Ready", "pod", "--all", "--timeout=120s"];
        run(lab.kubectl().args(wait))?;
        let mut pod = lab.kubectl();
        pod.args(["exec", "-i", "-n", "traffic", "client", "--", "/usr/local/bin/xtask"]);
        let node = lab.on_node(1, &program.display().to_string());
        let mut outside = Command::new("ip");
        outside.args(["netns", "exec", "el-client"]).arg(&program);
        let mut places = Vec::new();
        for (name, mut command, targets) in
            [("pod", pod, CLUSTER_IPS), ("node", node, CLUSTER_IPS), ("outside", outside, NODE_PORTS)]
        {
            places.push(Place { name, worker: Worker::over(&mut command)?, targets: parse(&targets)? });
        }
        let mut traffic = Self { story, places, done: Vec::new() };
        traffic.await_answers()?;
        Ok(traffic)
    }

    /// The Services are new, too: waits until every place is answered at every target.
    fn await_answers(&mut self) -> Result<()> {
        let begin = Instant::now();
        for place in &mut self.places {
            for Target { tcp: to, .. } in &place.targets {
                let http = Ask::Http { to: *to, path: "/".into(), mapped: false };
                let udp = Ask::Udp { to: *to, connected: false, mapped: false };
                for ask in [http, udp] {
                    while place.worker.ask(&ask)?.error.is_some() {
                        ensure!(begin.elapsed() < PATIENCE, "the {} is not answered at {to}", place.name);
                        std::thread::sleep(Duration::from_millis(200));
                    }
                }
            }
        }
        Ok(())
    }

    fn begin(&mut self, load: &str, rate: u32) -> Result<()> {
        for place in &mut self.places {
            let load =
                Ask::StartTraffic { id: load.into(), load: Load { targets: place.targets.clone(), rate } };
            let answer = place.worker.ask(&load)?;
            ensure!(answer.error.is_none(), "traffic of the {} does not start: {answer:?}", place.name);
        }
        Ok(())
    }

    fn end(&mut self, load: &str) -> Result<()> {
        for place in &mut self.places {
            let answer = place.worker.ask(&Ask::StopTraffic { id: load.into() })?;
            let tally = answer.traffic.with_context(|| format!("{}: {:?}", place.name, answer.error))?;
            println!("   {load}, {}: {tally}", place.name);
            tally.texts.iter().for_each(|text| println!("      {text}"));
            self.done.push((load.into(), place.name, tally));
        }
        Ok(())
    }

    /// A phase with traffic of its own: `act`, and a while longer.
    fn phase(&mut self, name: &str, act: impl FnOnce() -> Result<()>) -> Result<()> {
        println!("== {name}");
        self.begin(name, self.story.rate)?;
        std::thread::sleep(Duration::from_secs(1));
        act().with_context(|| name.to_owned())?;
        std::thread::sleep(self.story.pause);
        self.end(name)
    }

    /// Whether nothing was harmed while one proxy served alone, nor by a restart of lb. A datagram counts as lost when
    /// its answer takes longer than a second, which happens on a machine that is busy with an agent's start.
    fn judge(&self) -> bool {
        let mut good = true;
        for phase in [KUBE_PROXY, LB, RESTART, KUBE_PROXY_AGAIN] {
            for (_, place, tally) in self.done.iter().filter(|(load, ..)| load == phase) {
                if let Err(error) = tally.unharmed(tally.datagrams / LATE) {
                    println!("FAIL  {phase}, {place}: {error}");
                    good = false;
                }
            }
        }
        good
    }
}

fn parse(targets: &[(&str, &str)]) -> Result<Vec<Target>> {
    let one = |(pod, at): &(&str, &str)| {
        let at = at.parse().with_context(|| (*at).to_owned())?;
        Ok(Target { tcp: at, udp: at, pods: vec![(*pod).to_owned()] })
    };
    targets.iter().map(one).collect()
}

const KUBE_PROXY: &str = "1 kube-proxy";
const LB: &str = "5 lb alone";
const RESTART: &str = "6 lb: rollout restart";
const KUBE_PROXY_AGAIN: &str = "9 kube-proxy again";

/// How the swap is to be done.
pub(super) struct Story {
    /// Short connections per second from each place.
    pub(super) rate: u32,
    /// How long traffic goes on after each step.
    pub(super) pause: Duration,
    /// All nodes at once, instead of one after the other.
    pub(super) at_once: bool,
}

impl Story {
    /// kube-proxy, lb, kube-proxy; the nodes have lb's image. Returns whether nothing broke that must not: see [`Traffic::judge`].
    ///
    /// # Errors
    /// When a step fails; the cluster is left as it is then.
    pub(super) fn tell(&self, lab: &Lab) -> Result<bool> {
        janitor::watch_signals();
        lab.proxy(Proxy::DaemonSet, None)?;
        let nodes = lab.nodes()?;
        if !self.at_once {
            nodes.iter().try_for_each(|node| label(lab, node, "kube-proxy"))?;
            select(lab, "kube-proxy", "kube-proxy")?;
        }
        let mut traffic = Traffic::start(lab, self)?;
        self.steps(lab, &nodes, &mut traffic)?;
        lab.settle("kube-proxy-ds")?;
        run(lab.kubectl().args(["delete", "namespace", "traffic", "--wait=false"]))?;
        Ok(traffic.judge())
    }

    fn steps(&self, lab: &Lab, nodes: &[String], traffic: &mut Traffic) -> Result<()> {
        let (old, new) = ("opened under kube-proxy", "opened under lb");
        traffic.begin(old, SPANNING_RATE)?;
        traffic.phase(KUBE_PROXY, || Ok(()))?;
        if self.at_once {
            traffic.phase("2 kube-proxy's DaemonSet deleted", || delete_kube_proxy(lab))?;
            traffic.phase("3 lb applied", || lab.lb("lb_apply && lb_wait"))?;
        } else {
            traffic.phase("2 lb applied, on no node yet", || lab.lb("lb_apply lb-by-label"))?;
            traffic.phase("3 node by node", || {
                for node in nodes {
                    label(lab, node, "lb")?;
                    lab.lb("lb_wait")?;
                }
                delete_kube_proxy(lab)
            })?;
        }
        traffic.phase("4 kube-proxy's rules removed", || {
            nodes.iter().try_for_each(|node| lab.lb(&format!("lb_exec {node} cleanup --kube-proxy")))
        })?;
        traffic.phase(LB, || Ok(()))?;
        traffic.end(old)?;
        traffic.begin(new, SPANNING_RATE)?;
        traffic.phase(RESTART, || lab.lb("lb_restart"))?;
        traffic.phase("7 kube-proxy applied beside lb", || {
            let file = paths::root().join("cluster/kube-proxy-ds.yaml");
            run(lab.kubectl().args(["apply", "-f"]).arg(file))?;
            rolled_out(lab, "kube-proxy")
        })?;
        traffic.phase("8 lb deleted and cleaned up", || lab.lb("lb_delete"))?;
        traffic.phase(KUBE_PROXY_AGAIN, || Ok(()))?;
        traffic.end(new)
    }
}

fn delete_kube_proxy(lab: &Lab) -> Result<()> {
    run(lab.kubectl().args(["-n", "kube-system", "delete", "daemonset", "kube-proxy", "--wait"]))
}

fn rolled_out(lab: &Lab, daemonset: &str) -> Result<()> {
    let name = format!("ds/{daemonset}");
    run(lab.kubectl().args(["-n", "kube-system", "rollout", "status", &name, "--timeout=180s"]))
}

fn label(lab: &Lab, node: &str, proxy: &str) -> Result<()> {
    let label = format!("{LABEL}={proxy}");
    output(lab.kubectl().args(["label", "node", node, &label, "--overwrite"])).map(drop)
}

/// Lets a DaemonSet run where the label says so.
fn select(lab: &Lab, name: &str, value: &str) -> Result<()> {
    let patch = format!(r#"{{"spec":{{"template":{{"spec":{{"nodeSelector":{{"{LABEL}":"{value}"}}}}}}}}}}"#);
    run(lab.kubectl().args(["-n", "kube-system", "patch", "daemonset", name, "-p", &patch]))?;
    rolled_out(lab, name)
}

impl Lab {
    /// Names of the nodes.
    fn nodes(&self) -> Result<Vec<String>> {
        let text = output(self.kubectl().args(["get", "nodes", "-o", "name"]))?;
        let nodes: Vec<_> = text.lines().map(|line| line.trim_start_matches("node/").to_owned()).collect();
        ensure!(!nodes.is_empty(), "the cluster has no nodes");
        Ok(nodes)
    }
}
