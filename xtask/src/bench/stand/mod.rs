//! Where live frames go: a generator, a node that is measured, and what is behind it. Each arm of a scenario has a stand
//! of its own, and all stand at the same time, so that slices can follow each other in any order.
//!
//! ```text
//!   generator g0 ---- up0 node out0 ---- s0 sink                          Course::Sink
//!   generator g0 ---- up0 node out0 ---- u0 node2 veth ---- eth0 pod      Course::Remote, with replies
//!   generator g0 ---- up0 node veth ---- eth0 pod                         Course::Local, with replies
//! ```

mod served;
mod traffic;

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use aya::programs::TcAttachType;
use lb_common::bench::BenchConfig;

pub(crate) use self::traffic::prime;
use super::meter::unpin;
use super::programs::Programs;
use super::testrun::ifindex;
use crate::lab::netns::{inside, ip, run_in, sysctl};
use crate::lab::node::Node;
use crate::lab::{janitor, namespace};

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
    /// lb's agent with so many Services.
    Lb(usize, Mode),
    /// The ideal program.
    Ideal,
    /// A redirect of what needs no rewriting.
    Redirect,
    /// A drop at the node.
    Drop,
}

/// How lb's agent is to handle them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// At TC.
    Tc,
    /// With XDP on the uplinks.
    Xdp,
    /// At TC; answers of other nodes' pods go straight to the client.
    Dsr,
    /// Both.
    XdpDsr,
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

    /// Whether pods of other nodes see the node's address.
    fn masquerades(self) -> bool {
        self.stateful() && !self.direct()
    }

    /// Whether answers of other nodes' pods don't come by way of this node.
    fn direct(self) -> bool {
        matches!(self, Way::Lb(_, Mode::Dsr | Mode::XdpDsr))
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
            if self.way.direct() {
                self.shortcut(next)?;
            }
        }
        Ok(())
    }

    /// A second way from the second node to the clients.
    fn shortcut(&self, next: &str) -> Result<()> {
        cable(&self.generator, ("g1", 7), next, ("x0", 8))?;
        ip(
            next,
            &[
                "address add 192.168.8.2/24 dev x0".into(),
                format!("neigh replace 192.168.8.1 lladdr {} dev x0 nud permanent", shown(7)),
                "route add 198.18.0.0/15 via 192.168.8.1".into(),
            ],
        )
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
        let remote = self.way.masquerades() && self.course != Course::Local;
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
        let direct = self.way.direct() && self.course == Course::Remote;
        let programs = &mut self.programs;
        self.source = Some(inside(&self.generator, || {
            let at = ifindex("g0")?;
            programs.attach("bench_back", at)?;
            if direct {
                programs.attach("bench_back", ifindex("g1")?)?;
            }
            Ok((programs.xdp("bench_gen")?, at))
        })?);
        let course = self.course;
        inside(&self.far, || match course {
            Course::Sink => programs.attach("bench_sink", ifindex("s0")?),
            _ => programs.classify("bench_echo", "eth0", TcAttachType::Ingress),
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
