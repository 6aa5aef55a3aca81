//! `cargo xtask bench start`: how long an agent takes until it serves, and how large it is then.
//!
//! A node with so many Services of ten endpoints each, as manifests. A pod sends a datagram every millisecond to one
//! Service whose endpoint is a real server; the first answer is the first served packet. It needs root like all
//! that makes network namespaces, and nothing else of the machine.

use std::fmt::Write as _;
use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::lab::manifests::{POD_PORT, SERVICE_PORT, Service};
use crate::lab::{Kind, Lab, netns};
use crate::packages;

/// Numbers of Services that are measured.
const SIZES: [u32; 2] = [10, 10_000];
/// Endpoints of each.
pub(super) const ENDPOINTS: u32 = 10;
/// Starts on an empty node, per size; the median counts.
const RUNS: usize = 3;
/// Services per file: the agent reads a changed file as a whole.
const PER_FILE: u32 = 100;
/// How long a start may take. The slowest machine counts, and nothing is judged.
pub(super) const PATIENCE: Duration = Duration::from_secs(180);
/// How long the prober waits for an answer before it sends again.
const BEAT: Duration = Duration::from_millis(1);
/// Addresses of the Service that is probed, and of the one that is added.
const PROBED: [&str; 2] = ["10.96.255.1", "10.96.255.2"];

/// What one start came to.
#[derive(Clone, Copy, Default)]
struct Start {
    packet: Duration,
    healthy: Duration,
    cpu: Duration,
}

/// Memory of a process in MiB.
struct Memory {
    resident: f64,
    anonymous: f64,
    peak: f64,
}

/// Measures and prints one block of lines per size. The figures themselves never fail.
///
/// # Errors
/// When the cluster can't be built, or an agent does not serve in time.
pub(crate) fn run(agent: &Path) -> Result<()> {
    packages::need(packages::LAB)?;
    for services in SIZES {
        let mut lab = Lab::new("lbbench", Kind::Friendly)?;
        fill(&lab, services)?;
        lab.service(&probed("probed", PROBED[0]), &["p1a"])?;
        let mut starts = Vec::new();
        for round in 0..RUNS {
            if round > 0 {
                lab.nodes[0].stop_agent(libc::SIGTERM)?;
                lab.nodes[0].agent_command(agent, "cleanup")?;
            }
            starts.push(start(&mut lab, agent)?);
        }
        let memory = memory(lab.nodes[0].agent_id().context("no agent")?)?;
        let added = added(&lab)?;
        lab.nodes[0].stop_agent(libc::SIGTERM)?;
        let again = start(&mut lab, agent)?;
        report(services, &starts, &memory, added, again);
        lab.nodes[0].stop_agent(libc::SIGTERM)?;
        lab.nodes[0].agent_command(agent, "cleanup")?;
    }
    Ok(())
}

fn report(services: u32, starts: &[Start], memory: &Memory, added: Duration, again: Start) {
    let median = |of: fn(&Start) -> Duration| {
        let mut all: Vec<_> = starts.iter().map(of).collect();
        all.sort();
        all[all.len() / 2].as_secs_f64()
    };
    println!(
        "    {services} Services of {ENDPOINTS} endpoints, {} starts on an empty node, medians:",
        starts.len()
    );
    println!(
        "      first packet served {:.2} s, healthy {:.2} s, CPU until then {:.2} s",
        median(|s| s.packet),
        median(|s| s.healthy),
        median(|s| s.cpu)
    );
    println!(
        "      resident {:.0} MiB, of which anonymous {:.0} MiB; peak {:.0} MiB",
        memory.resident, memory.anonymous, memory.peak
    );
    println!("      one more Service is served {:.0} ms after its manifest", added.as_secs_f64() * 1e3);
    println!(
        "      restart, tables in the kernel: healthy {:.2} s, CPU until then {:.2} s",
        again.healthy.as_secs_f64(),
        again.cpu.as_secs_f64()
    );
}

fn probed(name: &str, address: &str) -> Service {
    Service { name: name.into(), cluster_ips: vec![address.into()], ..Service::default() }
}

/// Writes Services with one TCP port each; their endpoints are nobody's, and on the other node.
pub(super) fn fill(lab: &Lab, services: u32) -> Result<()> {
    many(services).try_for_each(|(name, text)| lab.manifest(&name, &text))
}

/// So many Services as manifests: names of files, and what is in them.
pub(super) fn many(services: u32) -> impl Iterator<Item = (String, String)> {
    (0..services.div_ceil(PER_FILE)).map(move |file| {
        let numbers = file * PER_FILE..((file + 1) * PER_FILE).min(services);
        (format!("many-{file}"), numbers.map(one).collect())
    })
}

/// Service `number` and its EndpointSlice as YAML.
fn one(number: u32) -> String {
    with_endpoints(number, ENDPOINTS)
}

/// The same, with so many endpoints.
pub(super) fn with_endpoints(number: u32, endpoints: u32) -> String {
    let (high, low) = (number / 250, number % 250 + 1);
    let mut text = format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: many-{number}, namespace: default}}\nspec:\n  \
         type: ClusterIP\n  clusterIP: 10.96.{high}.{low}\n  clusterIPs: [10.96.{high}.{low}]\n  ipFamilies: [IPv4]\n  \
         ports: [{{name: web, protocol: TCP, port: {SERVICE_PORT}, targetPort: {POD_PORT}}}]\n\
         ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: many-{number}-x\n  \
         namespace: default\n  labels: {{kubernetes.io/service-name: many-{number}}}\naddressType: IPv4\n\
         ports: [{{name: web, protocol: TCP, port: {POD_PORT}}}]\nendpoints:\n"
    );
    for endpoint in 0..endpoints {
        writeln!(
            text,
            "- {{addresses: [10.{}.{high}.{low}], nodeName: node2, conditions: {{ready: true, serving: true, \
             terminating: false}}}}",
            128 + endpoint
        )
        .ok();
    }
    text
}

/// Starts the agent of node1 while its pod p1b sends datagrams.
fn start(lab: &mut Lab, agent: &Path) -> Result<Start> {
    let from = lab.pods["p1b"].namespace.clone();
    let give_up = AtomicBool::new(false);
    let node = &mut lab.nodes[0];
    let begin = Instant::now();
    std::thread::scope(|scope| {
        // here and not on a thread of its own: the agent ends with the thread that started it
        node.spawn_agent(agent)?;
        let prober = scope.spawn(|| first_answer(&from, PROBED[0], begin, &give_up));
        let healthy = node.wait_healthy_for(PATIENCE).map(|()| begin.elapsed());
        give_up.store(healthy.is_err(), Ordering::SeqCst);
        let packet = prober.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let cpu = cpu(node.agent_id().context("the agent has ended")?)?;
        Ok(Start { packet: packet?, healthy: healthy?, cpu })
    })
}

/// How long after its manifests a new Service is served.
fn added(lab: &Lab) -> Result<Duration> {
    let give_up = AtomicBool::new(false);
    lab.endpoints("added", &["p1a"])?;
    let begin = Instant::now();
    lab.manifest("service-added", &probed("added", PROBED[1]).yaml())?;
    first_answer(&lab.pods["p1b"].namespace, PROBED[1], begin, &give_up)
}

/// Time since `begin` at which a Service answered a datagram from a namespace.
fn first_answer(from: &str, address: &str, begin: Instant, give_up: &AtomicBool) -> Result<Duration> {
    let to = SocketAddr::new(address.parse()?, SERVICE_PORT);
    netns::inside(from, || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(BEAT))?;
        let mut answer = [0; 512];
        while begin.elapsed() < PATIENCE && !give_up.load(Ordering::SeqCst) {
            // before it is served, errors come back: nobody is there
            if socket.send(b"?").is_ok() && socket.recv(&mut answer).is_ok() {
                return Ok(begin.elapsed());
            }
        }
        anyhow::bail!("{to} was not served in {PATIENCE:?}")
    })
}

/// CPU time of a process so far, user and kernel.
fn cpu(pid: u32) -> Result<Duration> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // fields 14 and 15, counted from behind the name in parentheses, which is the second
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|word| word.parse::<u64>().ok());
    let (user, kernel) = ticks(11).zip(ticks(12)).context("/proc/PID/stat has another form")?;
    // SAFETY: sysconf takes a number and cannot fail for this one.
    let hertz = unsafe { libc::sysconf(libc::_SC_CLK_TCK) }.max(1);
    Ok(Duration::from_secs_f64((user + kernel) as f64 / hertz as f64))
}

fn memory(pid: u32) -> Result<Memory> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let name = text.lines().next().unwrap_or_default();
    // what launches the agent becomes the agent
    ensure!(!name.ends_with("\tsh") && !name.ends_with("unshare"), "process {pid} is no agent yet: {name}");
    let mebibytes = |field: &str| -> Result<f64> {
        let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let number = line.and_then(|line| line.split_whitespace().next()).context("/proc/PID/status")?;
        Ok(number.parse::<f64>()? / 1024.0)
    };
    Ok(Memory { resident: mebibytes("VmRSS")?, anonymous: mebibytes("RssAnon")?, peak: mebibytes("VmHWM")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_memory_and_used_time() {
        assert!(cpu(std::process::id()).is_ok());
        let memory = memory(std::process::id()).unwrap();
        assert!(memory.anonymous > 0.0 && memory.resident <= memory.peak);
    }

    #[test]
    fn services_have_addresses_of_their_own_outside_of_the_probed_ones() {
        let text: String = (0..10_000).map(one).collect();
        let mut addresses: Vec<_> =
            text.lines().filter_map(|line| line.trim().strip_prefix("clusterIP: ")).collect();
        addresses.sort_unstable();
        addresses.dedup();
        assert_eq!(addresses.len(), 10_000);
        assert!(PROBED.iter().all(|probed| !addresses.contains(probed)));
    }
}
