//! Where live frames go: a generator, a node that is measured, and what is behind it. Each arm of a scenario has a stand
//! of its own, and all stand at the same time, so that slices can follow each other in any order.
//!
//! ```text
//!   generator g0 ---- up0 node out0 ---- s0 sink                          Course::Sink
//!   generator g0 ---- up0 node out0 ---- u0 node2 veth ---- eth0 pod      Course::Remote, with replies
//!   generator g0 ---- up0 node veth ---- eth0 pod                         Course::Local, with replies
//! ```

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lb_common::bench::{BenchConfig, BenchValue, CHECK, Count, ECHO, FRAME, head};

use super::meter::{Meter, pin_to_one_core, unpin};
use super::programs::Programs;
use super::rules::{self, Probed};
use super::start;
use super::testrun::{ifindex, live};
use crate::lab::manifests::{self, Endpoint, Service};
use crate::lab::netns::{inside, ip, run_in, sysctl};
use crate::lab::node::Node;
use crate::lab::{POD_CIDRS, SERVICE_CIDRS, janitor, namespace};

/// Addresses of the node's two interfaces and of the host behind the second.
const UP: &str = "192.0.2.11";
const OUT: &str = "192.168.7.1";
const BEHIND: &str = "192.168.7.2";
/// First client address.
const CLIENTS: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);
/// First backend, and how many there are: one address alone has too few ports to masquerade the largest run.
const BACKEND: Ipv4Addr = Ipv4Addr::new(10, 77, 2, 64);
const BACKENDS: u32 = 64;
const POD_PORT: u16 = 8080;
/// UDP port of the Service on the node.
const NODE_PORT: u16 = 30_081;
/// How long lb's flows take until an answered one counts as established.
const SETTLE: Duration = Duration::from_millis(2300);
/// Entries of lb's table, more than the default: the flows of the largest run are all young at first, four entries each,
/// in a table of a quarter of this.
const ENTRIES: &str = "--max-flows=2097152";
/// How long frames may be under way.
const PATIENCE: Duration = Duration::from_secs(2);
/// Bounds of the number of frames in one go.
const FRAMES: (u32, u32) = (1 << 13, 1 << 21);

/// How the node is to handle packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Forwarding without any Service: the generator addresses the backends.
    Plain,
    /// iptables rules for so many Services.
    Iptables(usize),
    /// nft rules for so many Services.
    Nft(usize),
    /// lb's agent with so many Services, by TC or with XDP on the uplinks.
    Lb(usize, bool),
    /// The ideal program.
    Ideal,
    /// A redirect of what needs no rewriting.
    Redirect,
    /// A drop at the node.
    Drop,
}

impl Way {
    /// Whether packets are addressed to the node, not to backends.
    fn translates(self) -> bool {
        !matches!(self, Way::Plain | Way::Redirect | Way::Drop)
    }

    /// Whether it keeps flows.
    fn stateful(self) -> bool {
        matches!(self, Way::Iptables(_) | Way::Nft(_) | Way::Lb(..))
    }
}

/// What is behind the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Course {
    /// A sink at once.
    Sink,
    /// A second node with a pod that answers.
    Remote,
    /// A pod that answers.
    Local,
}

/// What all stands of a run share.
pub(crate) struct Site {
    /// Begin of all names.
    pub(crate) tag: String,
    /// Folder of logs and manifests.
    pub(crate) folder: PathBuf,
    /// The agent.
    pub(crate) agent: PathBuf,
}

impl Site {
    /// A place for stands; everything in it goes when the janitor cleans.
    ///
    /// # Errors
    /// When a folder can't be made.
    pub(crate) fn new(agent: &Path) -> Result<Self> {
        janitor::watch_signals();
        janitor::sweep(&crate::lab::PREFIXES, &crate::lab::node::cgroup_root()?, false);
        let tag = format!("lbbench-{}", std::process::id());
        let folder = std::env::temp_dir().join(&tag);
        std::fs::create_dir_all(&folder)?;
        janitor::folder(&folder);
        Ok(Self { tag, folder, agent: agent.into() })
    }
}

/// One arm's namespaces and programs.
pub(crate) struct Stand {
    /// The arm's name.
    pub(crate) name: String,
    way: Way,
    course: Course,
    generator: String,
    node: String,
    /// Where packets end or turn.
    far: String,
    between: Option<String>,
    programs: Programs,
    source: Option<(OwnedFd, u32)>,
    config: BenchConfig,
    agents: Vec<Node>,
    agent: PathBuf,
    /// Frames that a slice takes.
    frames: u32,
}

fn mac(end: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, end]
}

fn shown(end: u8) -> String {
    format!("02:00:00:00:00:{end:02x}")
}

impl Stand {
    /// Builds the stand; `number` makes its names its own.
    ///
    /// # Errors
    /// When a command fails, rules are refused, or an agent does not serve.
    pub(crate) fn new(site: &Site, number: usize, name: &str, way: Way, course: Course) -> Result<Self> {
        unpin()?; // what is started from here may use all cores
        let named = |short: &str| namespace(&site.tag, &format!("{number}{short}"));
        let (generator, node) = (named("gen")?, named("node")?);
        let between = if course == Course::Remote { Some(named("next")?) } else { None };
        let far = named("far")?;
        let mut stand = Self {
            name: name.into(),
            way,
            course,
            generator,
            node,
            far,
            between,
            programs: Programs::load()?,
            source: None,
            config: BenchConfig::between(mac(2), mac(1)),
            agents: Vec::new(),
            agent: site.agent.clone(),
            frames: FRAMES.0,
        };
        stand.links()?;
        stand.describe()?;
        stand.attach()?;
        stand.handle(site).with_context(|| name.to_owned())?;
        Ok(stand)
    }

    fn links(&self) -> Result<()> {
        for namespace in [&self.node].into_iter().chain(&self.between) {
            sysctl(
                namespace,
                &[
                    ("ipv4/ip_forward", "1"),
                    ("ipv6/conf/all/forwarding", "1"),
                    ("ipv4/conf/all/send_redirects", "0"),
                    ("ipv4/conf/default/send_redirects", "0"),
                ],
            )?;
        }
        cable(&self.generator, ("g0", 1), &self.node, ("up0", 2))?;
        ip(
            &self.node,
            &[
                format!("address add {UP}/24 dev up0"),
                "address add 2001:db8:1::11/64 dev up0 nodad".into(),
                format!("neigh replace 192.0.2.1 lladdr {} dev up0 nud permanent", shown(1)),
                "route add 198.18.0.0/15 via 192.0.2.1".into(),
            ],
        )?;
        if self.course == Course::Local {
            return self.pod(&self.node);
        }
        let next = self.between.as_ref().unwrap_or(&self.far);
        cable(&self.node, ("out0", 3), next, ("s0", 4))?;
        ip(
            &self.node,
            &[
                format!("address add {OUT}/24 dev out0"),
                format!("neigh replace {BEHIND} lladdr {} dev out0 nud permanent", shown(4)),
                format!("route add default via {BEHIND}"),
            ],
        )?;
        if let Some(next) = &self.between {
            ip(
                next,
                &[
                    format!("address add {BEHIND}/24 dev s0"),
                    "address add 2001:db8:2::2/64 dev s0 nodad".into(),
                    format!("neigh replace {OUT} lladdr {} dev s0 nud permanent", shown(3)),
                    format!("route add default via {OUT}"),
                ],
            )?;
            self.pod(next)?;
        }
        Ok(())
    }

    /// The pod that is all backends, behind a veth of a node.
    fn pod(&self, node: &str) -> Result<()> {
        cable(node, ("veth0", 5), &self.far, ("eth0", 6))?;
        let mut lines = Vec::new();
        for number in 0..BACKENDS {
            let address = Ipv4Addr::from(u32::from(BACKEND) + number);
            lines.push(format!("route add {address}/32 dev veth0"));
            lines.push(format!("neigh replace {address} lladdr {} dev veth0 nud permanent", shown(6)));
        }
        ip(node, &lines)
    }

    /// What the programs are to make and to expect.
    fn describe(&mut self) -> Result<()> {
        let (target, targets, port) = match self.way.translates() {
            true => (UP.parse::<Ipv4Addr>()?, 1, NODE_PORT),
            false => (BACKEND, BACKENDS, POD_PORT),
        };
        let remote = self.way.stateful() && self.course != Course::Local;
        let mut next = [0; 12];
        next[..6].copy_from_slice(&mac(4));
        next[6..].copy_from_slice(&mac(3));
        self.config = BenchConfig {
            client: CLIENTS.into(),
            target: target.into(),
            targets,
            target_port: port.into(),
            backend: BACKEND.into(),
            backends: BACKENDS,
            backend_port: POD_PORT.into(),
            source: if remote { OUT.parse::<Ipv4Addr>()?.into() } else { 0 },
            out: match self.course {
                Course::Local => 0,
                _ => inside(&self.node, || ifindex("out0"))?,
            },
            next,
            ..self.config
        };
        self.programs.configure(self.config)
    }

    fn attach(&mut self) -> Result<()> {
        let programs = &mut self.programs;
        self.source = Some(inside(&self.generator, || {
            let at = ifindex("g0")?;
            programs.attach("bench_back", at)?;
            Ok((programs.xdp("bench_gen")?, at))
        })?);
        let course = self.course;
        inside(&self.far, || match course {
            Course::Sink => programs.attach("bench_sink", ifindex("s0")?),
            _ => programs.ingress("bench_echo", "eth0"),
        })?;
        let own = match self.way {
            Way::Ideal => Some("bench_ideal"),
            Way::Redirect => Some("bench_redirect"),
            Way::Drop => Some("bench_drop"),
            _ => None,
        };
        if let Some(own) = own {
            inside(&self.node, || programs.attach(own, ifindex("up0")?))?;
        }
        Ok(())
    }

    /// Rules or agents.
    fn handle(&mut self, site: &Site) -> Result<()> {
        let nodes: Vec<String> = [&self.node].into_iter().chain(&self.between).cloned().collect();
        for (number, namespace) in nodes.iter().enumerate() {
            match self.way {
                Way::Nft(services) => {
                    run_in(namespace, &["nft", "-f", "-"], &rules::nft(services, &probed()?))?;
                }
                Way::Iptables(services) => {
                    let text = rules::iptables(services, &probed()?);
                    run_in(namespace, &["iptables-legacy-restore"], &text)?;
                }
                Way::Lb(services, xdp) => self.agent(site, number, namespace, services, xdp)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Starts an agent, waits until it serves, and stops it: the data path works on, and its own work is not measured.
    fn agent(
        &mut self,
        site: &Site,
        number: usize,
        namespace: &str,
        services: usize,
        xdp: bool,
    ) -> Result<()> {
        let folder = site.folder.join(namespace);
        let manifests = folder.join("manifests");
        std::fs::create_dir_all(&manifests)?;
        let write = |name: &str, text: &str| std::fs::write(manifests.join(format!("{name}.yaml")), text);
        let names = ["node1", "node2"];
        let addresses =
            [[UP.to_owned(), "2001:db8:1::11".to_owned()], [BEHIND.to_owned(), "2001:db8:2::2".to_owned()]];
        for (at, (name, addresses)) in names.iter().zip(&addresses).enumerate() {
            let cidrs = [format!("10.77.{}.0/24", at + 1), format!("fd77:0:0:{}::/64", at + 1)];
            write(name, &manifests::node(name, addresses, &cidrs))?;
        }
        write("cidr", &manifests::service_cidr(&SERVICE_CIDRS))?;
        let home = if self.course == Course::Local { "node1" } else { "node2" };
        let endpoints: Vec<Endpoint> = (0..BACKENDS)
            .map(|at| Endpoint {
                address: Ipv4Addr::from(u32::from(BACKEND) + at).to_string(),
                node: home.into(),
            })
            .collect();
        write("slice", &manifests::slice("probed", false, &endpoints))?;
        let service = Service {
            name: "probed".into(),
            cluster_ips: vec!["10.96.255.1".into()],
            node_port: Some(NODE_PORT - 1), // UDP has the next one
            ..Service::default()
        };
        write("service", &service.yaml())?;
        for (name, text) in start::many(services.saturating_sub(1) as u32) {
            write(&name, &text)?;
        }
        let own = addresses.get(number).cloned().unwrap_or_default();
        let configuration = manifests::configuration(names[number], &POD_CIDRS);
        let mut node = Node::new(names[number], namespace, own, &folder, &manifests, &configuration)?;
        let uplinks = match (number, self.course) {
            (0, Course::Local) => "up0",
            (0, _) => "up0,out0",
            _ => "s0",
        };
        node.extra = vec![ENTRIES.into()];
        if xdp {
            node.extra.push(format!("--xdp={uplinks}"));
        }
        node.start_agent(&site.agent)?;
        if xdp {
            let answer = node.http("127.0.0.1:10249", "/status")?;
            let status: serde_json::Value = serde_json::from_str(&answer.text)?;
            let want: Vec<&str> = uplinks.split(',').collect();
            let have: Vec<&str> =
                status["xdp"].as_array().into_iter().flatten().filter_map(|name| name.as_str()).collect();
            ensure!(
                want.iter().all(|name| have.contains(name)),
                "XDP is on {have:?} only: {}",
                status["xdpRefused"]
            );
        }
        node.stop_agent(libc::SIGTERM)?;
        self.agents.push(node);
        Ok(())
    }

    /// Prepares flows, a power of two many: checks that a packet of each arrives as it should, and has stateful ways see
    /// an answer to each.
    fn prime(&mut self, flows: u32) -> Result<()> {
        self.config.flows = flows;
        if self.way == Way::Ideal {
            let config = self.config;
            let one = |number: u32| {
                let address = Ipv4Addr::from(u32::from(BACKEND) + number % BACKENDS).octets();
                (head(&config, number).key, BenchValue { address, port: POD_PORT.to_be_bytes(), pad: [0; 2] })
            };
            self.programs.flows((0..flows).map(one))?;
        }
        self.checked(flows)
    }

    /// The gate: so many frames, each checked where it ends, and its answer, too.
    fn checked(&mut self, frames: u32) -> Result<()> {
        let echo = if self.way.stateful() { ECHO } else { 0 };
        self.programs.configure(BenchConfig { flags: CHECK | echo, ..self.config })?;
        let answered = echo != 0 || self.course != Course::Sink;
        let before = self.counts()?;
        self.send(frames)?;
        let after = self.counts()?;
        let [made, arrived, spoilt, back, back_spoilt, dropped, stray] =
            std::array::from_fn(|at| after[at] - before[at]);
        self.programs.configure(BenchConfig { flags: 0, ..self.config })?;
        ensure!(made == u64::from(frames), "{made} of {frames} frames were made");
        let ended = if self.way == Way::Drop { dropped } else { arrived };
        if ended != made {
            for node in &self.agents {
                eprintln!("{}", node.agent_command(&self.agent, "status").unwrap_or_default());
            }
        }
        ensure!(
            ended == made,
            "{ended} of {made} packets arrived; of others {spoilt} had a wrong checksum, {stray} a \
                                  wrong source"
        );
        ensure!(back_spoilt == 0, "{back_spoilt} answers had a wrong checksum");
        ensure!(!answered || back == made, "{back} of {made} answers came back");
        Ok(())
    }

    fn counts(&self) -> Result<[u64; 7]> {
        let mut counts = [0; 7];
        let all = [
            Count::Made,
            Count::Arrived,
            Count::Spoilt,
            Count::Back,
            Count::BackSpoilt,
            Count::Dropped,
            Count::Stray,
        ];
        for (count, what) in counts.iter_mut().zip(all) {
            *count = self.programs.count(what)?;
        }
        Ok(counts)
    }

    /// Packets that reached their end.
    fn ended(&self) -> Result<u64> {
        self.programs.count(match (self.way, self.course) {
            (Way::Drop, _) => Count::Dropped,
            (_, Course::Sink) => Count::Arrived,
            _ => Count::Back,
        })
    }

    /// Sends frames and waits until they have arrived, or no more do.
    fn send(&self, frames: u32) -> Result<()> {
        let (program, at) = self.source.as_ref().context("no generator")?;
        let before = self.ended()?;
        inside(&self.generator, || {
            pin_to_one_core()?;
            live(program, &[0; FRAME], *at, frames)
        })?;
        let begin = Instant::now();
        let (mut last, mut since) = (self.ended()?, Instant::now());
        while last - before < u64::from(frames) && begin.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(1));
            let now = self.ended()?;
            if now != last {
                (last, since) = (now, Instant::now());
            } else if since.elapsed() > Duration::from_millis(50) {
                break;
            }
        }
        Ok(())
    }

    /// CPU nanoseconds per packet that arrived, or whose answer did.
    ///
    /// # Errors
    /// When more than one of a thousand packets is lost.
    pub(crate) fn slice(&mut self, meter: &Meter, length: Duration) -> Result<f64> {
        let (before, cpu) = (self.ended()?, meter.now()?);
        self.send(self.frames)?;
        let (ended, used) = (self.ended()? - before, meter.now()? - cpu);
        ensure!(
            ended * 1000 >= u64::from(self.frames) * 999,
            "{}: {ended} of {} packets arrived",
            self.name,
            self.frames
        );
        let cost = used as f64 / ended as f64;
        self.frames = ((length.as_nanos() as f64 / cost) as u32).clamp(FRAMES.0, FRAMES.1);
        Ok(cost)
    }
}

/// Prepares so many flows, a power of two, of all stands: each flow is answered, and after a while its second packet
/// makes it an established one. Then every stand is at its gate.
///
/// # Errors
/// When packets get lost or are wrong.
pub(crate) fn prime(stands: &mut [Stand], flows: u32) -> Result<()> {
    for stand in &mut *stands {
        stand.prime(flows).with_context(|| format!("{}, {flows} flows", stand.name))?;
    }
    std::thread::sleep(SETTLE);
    for stand in stands {
        let frames = flows.saturating_mul(2).max(FRAMES.0);
        stand.checked(frames).with_context(|| format!("{}, {flows} known flows", stand.name))?;
    }
    Ok(())
}

/// The Service as rules see it.
fn probed() -> Result<Probed> {
    Ok(Probed {
        protocol: "udp",
        cluster_ip: (Ipv4Addr::new(10, 96, 255, 1), 80),
        node_port: NODE_PORT,
        node: UP.parse()?,
        endpoints: (0..BACKENDS).map(|at| (Ipv4Addr::from(u32::from(BACKEND) + at), POD_PORT)).collect(),
    })
}

/// A veth between two namespaces. GRO is on at both ends, so that frames which XDP programs send arrive without a
/// program there, and both ends poll as a network card does.
fn cable(one: &str, (near, near_mac): (&str, u8), other: &str, (far, far_mac): (&str, u8)) -> Result<()> {
    ip(
        one,
        &[
            format!(
                "link add {near} address {} type veth peer name {far} address {} netns {other}",
                shown(near_mac),
                shown(far_mac)
            ),
            format!("link set {near} up"),
        ],
    )?;
    ip(other, &[format!("link set {far} up")])?;
    for (namespace, device) in [(one, near), (other, far)] {
        run_in(namespace, &["ethtool", "-K", device, "gro", "on"], "")?;
    }
    Ok(())
}
