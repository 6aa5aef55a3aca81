//! From kube-proxy to lb and back while traffic flows, counting what breaks.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::Proxy;
use super::lab::Lab;
use super::traffic::{Count, Counts};
use crate::lab::janitor;
use crate::paths;
use crate::run::{output, run};

/// What clients inside dial: POD=ADDRESS:PORT of cluster/traffic.yaml.
const CLUSTER_IPS: [&str; 4] =
    ["local=10.96.77.1:80", "local=[fd00:96::7701]:80", "remote=10.96.77.2:80", "remote=[fd00:96::7702]:80"];
/// What the client outside dials: NodePorts of node1.
const NODE_PORTS: [&str; 4] = [
    "local=172.30.0.21:30877",
    "local=[fd00:30::21]:30877",
    "remote=172.30.0.21:30878",
    "remote=[fd00:30::21]:30878",
];
/// Selects kube-proxy's or our DaemonSet, node by node.
const LABEL: &str = "lb-cluster/proxy";

/// A place that traffic comes from.
struct Client {
    place: &'static str,
    child: Child,
}

/// The traffic of all places, and the phase it is in.
struct Traffic {
    clients: Vec<Client>,
    /// Time every phase lasts at least.
    pause: Duration,
}

impl Traffic {
    /// Starts the servers and the clients.
    fn start(lab: &Lab, rate: u32, pause: Duration) -> Result<Self> {
        let program = lab.home().join("lb/xtask");
        std::fs::create_dir_all(lab.home().join("lb"))?;
        run(Command::new("strip").arg("-o").arg(&program).arg(std::env::current_exe()?))?;
        run(lab.script("addimage.sh").arg("lab.local/traffic:1").arg(&program))?;
        run(lab.kubectl().args(["apply", "-f"]).arg(paths::root().join("cluster/traffic.yaml")))?;
        let wait = ["wait", "-n", "traffic", "--for=condition=Ready", "pod", "--all", "--timeout=120s"];
        run(lab.kubectl().args(wait))?;
        let mut traffic = Self { clients: Vec::new(), pause };
        let mut pod = lab.kubectl();
        pod.args(["exec", "-i", "-n", "traffic", "client", "--", "/usr/local/bin/xtask"]);
        let mut outside = Command::new("ip");
        outside.args(["netns", "exec", "el-client"]).arg(&program);
        let node = lab.on_node(1, &program.display().to_string());
        for (place, mut command, targets) in
            [("pod", pod, CLUSTER_IPS), ("node", node, CLUSTER_IPS), ("outside", outside, NODE_PORTS)]
        {
            command.args(["traffic", "--rate", &rate.to_string()]).args(targets);
            let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
            janitor::process(child.id());
            traffic.clients.push(Client { place, child });
        }
        Ok(traffic)
    }

    /// A phase of that name begins with `act` and lasts a while longer.
    fn phase(&mut self, name: &str, act: impl FnOnce() -> Result<()>) -> Result<()> {
        println!("== {name}");
        for client in &mut self.clients {
            let input = client.child.stdin.as_mut().context("stdin")?;
            writeln!(input, "{name}").with_context(|| format!("the client of {} is gone", client.place))?;
        }
        let begin = Instant::now();
        act().with_context(|| name.to_owned())?;
        std::thread::sleep(self.pause);
        println!("   {:.1} s", begin.elapsed().as_secs_f64());
        Ok(())
    }

    /// Ends the traffic: counts by place.
    fn end(self) -> Result<Vec<(&'static str, Counts)>> {
        let mut all = Vec::new();
        for mut client in self.clients {
            drop(client.child.stdin.take());
            let mut text = String::new();
            client.child.stdout.take().context("stdout")?.read_to_string(&mut text)?;
            janitor::ended(client.child.id());
            client.child.wait()?;
            let counts =
                serde_json::from_str(&text).with_context(|| format!("client {}: {text}", client.place))?;
            all.push((client.place, counts));
        }
        Ok(all)
    }
}

/// The whole story. Returns whether nothing broke that should not have: see [`judge`].
///
/// # Errors
/// When a step fails; the cluster is left as it is then.
pub(super) fn run_all(lab: &Lab, rate: u32, seconds: u64, at_once: bool) -> Result<bool> {
    janitor::watch_signals();
    lab.proxy(Proxy::DaemonSet)?;
    lab.image()?;
    lab.lb("lb_import")?;
    let mut traffic = Traffic::start(lab, rate, Duration::from_secs(seconds))?;
    let nodes = lab.nodes()?;
    if !at_once {
        for node in &nodes {
            label(lab, node, "kube-proxy")?;
        }
        select(lab, "kube-system", "kube-proxy", "kube-proxy")?;
    }
    let story = |traffic: &mut Traffic| -> Result<()> {
        traffic.phase("1 kube-proxy", || Ok(()))?;
        if at_once {
            traffic.phase("2 kube-proxy's DaemonSet deleted", || {
                run(lab.kubectl().args(["-n", "kube-system", "delete", "daemonset", "kube-proxy", "--wait"]))
            })?;
            traffic.phase("3 lb applied", || lab.lb("lb_apply && lb_wait"))?;
        } else {
            traffic.phase("2 lb applied, on no node yet", || lab.lb("lb_apply lb-by-label"))?;
            traffic.phase("3 node by node", || {
                nodes.iter().try_for_each(|node| {
                    label(lab, node, "lb")?;
                    lab.lb("lb_wait")
                })
            })?;
            run(lab.kubectl().args(["-n", "kube-system", "delete", "daemonset", "kube-proxy", "--wait"]))?;
        }
        traffic.phase("4 kube-proxy's rules removed", || {
            nodes.iter().try_for_each(|node| lab.lb(&format!("lb_exec {node} cleanup --kube-proxy")))
        })?;
        traffic.phase("5 lb alone", || Ok(()))?;
        traffic.phase("6 lb: rollout restart", || lab.lb("lb_restart"))?;
        traffic.phase("7 kube-proxy applied beside lb", || {
            let file = paths::root().join("cluster/kube-proxy-ds.yaml");
            run(lab.kubectl().args(["apply", "-f"]).arg(file))?;
            run(lab.kubectl().args([
                "-n",
                "kube-system",
                "rollout",
                "status",
                "ds/kube-proxy",
                "--timeout=120s",
            ]))
        })?;
        traffic.phase("8 lb deleted and cleaned up", || lab.lb("lb_delete"))?;
        traffic.phase("9 kube-proxy again", || Ok(()))
    };
    let told = story(&mut traffic);
    let counts = traffic.end()?;
    print(&counts);
    told?;
    run(lab.kubectl().args(["delete", "namespace", "traffic", "--wait=false"]))?;
    Ok(judge(&counts))
}

fn label(lab: &Lab, node: &str, proxy: &str) -> Result<()> {
    let label = format!("{LABEL}={proxy}");
    output(lab.kubectl().args(["label", "node", node, &label, "--overwrite"])).map(drop)
}

/// Lets a DaemonSet run where the label says so.
fn select(lab: &Lab, namespace: &str, name: &str, value: &str) -> Result<()> {
    let patch = format!(r#"{{"spec":{{"template":{{"spec":{{"nodeSelector":{{"{LABEL}":"{value}"}}}}}}}}}}"#);
    run(lab.kubectl().args(["-n", namespace, "patch", "daemonset", name, "-p", &patch]))?;
    let name = format!("ds/{name}");
    run(lab.kubectl().args(["-n", namespace, "rollout", "status", &name, "--timeout=120s"]))
}

/// One line for each phase, place and kind of traffic with a failure, and one for the sum of the others.
fn print(all: &[(&'static str, Counts)]) {
    let phases: std::collections::BTreeSet<&String> =
        all.iter().flat_map(|(_, counts)| counts.keys()).collect();
    for phase in phases {
        println!("{phase}");
        for (place, counts) in all {
            let Some(kinds) = counts.get(phase) else { continue };
            let good: u64 = kinds.values().map(|count| count.good).sum();
            let bad: u64 = kinds.values().map(broken).sum();
            println!("  {place:8} {good:7} good {bad:5} broken");
            for (kind, count) in kinds.iter().filter(|(_, count)| broken(count) > 0) {
                let Count { good, wrong, failed, slowest } = count;
                println!("           {kind}: {good} good, {wrong} wrong, {failed:?}, slowest {slowest} ms");
            }
        }
    }
}

fn broken(count: &Count) -> u64 {
    count.wrong + count.failed.values().sum::<u64>()
}

/// Whether the phases in which nothing may break were free of failures, and every kind of traffic flowed: a restart
/// of ours breaks nothing, and neither does lb or kube-proxy alone.
fn judge(all: &[(&'static str, Counts)]) -> bool {
    let mut good = true;
    for (place, counts) in all {
        for phase in ["1 kube-proxy", "5 lb alone", "6 lb: rollout restart", "9 kube-proxy again"] {
            let Some(kinds) = counts.get(phase) else { continue };
            for (kind, count) in kinds {
                if broken(count) > 0 || count.good == 0 {
                    println!("FAIL  {phase}, {place}, {kind}: {count:?}");
                    good = false;
                }
            }
        }
        good &= !counts.is_empty();
    }
    good
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
