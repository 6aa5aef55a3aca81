//! The one place that knows which kernel the product runs on: [`Datapath`] with its tables and flow sweep.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::path::Path;
use std::time::{Duration, Instant};

use lb_common::abi::names;
use lb_common::counter::Counter;
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::apply::Applier;
use crate::apply::bpf::BpfMaps;
use crate::config::{KernelArgs, NodeDuties, RunConfig};
use crate::datapath::memory::mebibytes;
use crate::datapath::{self, Datapath, Options};
use crate::desired::{Changes, Desired};
use crate::gc::alerts::{About, Alert, alerts};
use crate::gc::{Occupancy, Sweeper, Timeouts};
use crate::kernel::{ApplyReport, AttachReport, Kernel, KernelError, Usage};
use crate::kubeproxy;
use crate::links::{Attachment, NodeNet};
use crate::model::Family;
use crate::model::settings::{Limits, SocketLb, Xdp};
use crate::net;
use crate::node;
use crate::sockets::cutover::{Cutover, moves};
use crate::sockets::source::Sources;
use crate::sys::bpf::RawMap;
use crate::xdpset::with_xdp;

/// Flow entries that one step of a sweep looks at.
const SWEEP: u32 = 4096;

/// How long an interface that refused XDP is left alone.
const XDP_RETRY: Duration = Duration::from_secs(30);

/// The kernel of this node.
#[derive(Debug)]
pub struct NodeKernel {
    datapath: Datapath,
    applier: Applier<BpfMaps>,
    sweeper: Sweeper,
    sources: Sources,
    cutover: Cutover,
    sockets: SocketLb,
    xdp: Xdp,
    xdp_state: XdpState,
    sockets_done: bool,
    /// The flow tables, by the last whole sweep.
    flows: Flows,
}

/// What sweeps found out.
#[derive(Debug, Default)]
struct Flows {
    /// Each flow table, by its last whole pass.
    tables: BTreeMap<&'static str, Occupancy>,
    alerts: Vec<Alert>,
}

/// Opens the data path: loads the programs, and reads the tables that are there.
///
/// # Errors
/// The kernel or the pins refuse; what is attached goes on as it was.
pub fn open(config: &RunConfig) -> Result<NodeKernel, KernelError> {
    let options = options(&config.kernel, &config.settings.node_name);
    let datapath = Datapath::open(&Options { sizes: config.sizes.clone(), ..options }).map_err(said)?;
    let memory = datapath.memory();
    info!(
        total = mebibytes(memory.total()),
        largest = memory.largest(4),
        "Memory of the tables; in a container it counts against its limit"
    );
    let applier = Applier::new(datapath.maps().map_err(said)?).map_err(said)?;
    let sweeper = Sweeper::open(datapath.pin_folder(), Timeouts::default()).map_err(said)?;
    let sources = Sources::open(datapath.pin_folder()).map_err(said)?;
    let cutover = Cutover::open(datapath.pin_folder()).map_err(said)?;
    Ok(NodeKernel {
        datapath,
        applier,
        sweeper,
        sources,
        cutover,
        sockets: config.settings.socket_lb,
        xdp: config.settings.xdp.clone(),
        xdp_state: XdpState::default(),
        sockets_done: false,
        flows: Flows::default(),
    })
}

/// The tables as the pins hold them, without loading or attaching anything.
///
/// # Errors
/// There are no pins, or they cannot be read.
pub fn read(kernel: &KernelArgs) -> Result<Desired, KernelError> {
    Datapath::read(&kernel.bpffs).map_err(said)
}

/// What the pins tell without an agent: the tables, how full they are, and the counters.
///
/// # Errors
/// As [`read`].
pub fn look(kernel: &KernelArgs) -> Result<Look, KernelError> {
    let desired = read(kernel)?;
    let folder = Datapath::live_folder(&kernel.bpffs);
    let usage = usage(&folder, &desired, &Flows::default());
    let counters = named(Datapath::read_counters(&kernel.bpffs).map_err(said)?);
    Ok(Look { desired, usage, counters })
}

/// See [`look`].
#[derive(Debug)]
pub struct Look {
    /// The tables.
    pub desired: Desired,
    /// How full they are.
    pub usage: Vec<Usage>,
    /// Counters by name.
    pub counters: Vec<(&'static str, u64)>,
}

/// Counters with their names.
fn named(rows: Vec<u64>) -> Vec<(&'static str, u64)> {
    Counter::ALL.iter().map(|counter| counter.name()).zip(rows).collect()
}

/// How full the tables are; `flows` has the ones that the kernel fills, as far as they were counted. A table that
/// can't be opened is left out.
fn usage(folder: &Path, tables: &Desired, flows: &Flows) -> Vec<Usage> {
    let written = [
        (names::LB_SVC4, tables.services4.len()),
        (names::LB_SVC6, tables.services6.len()),
        (names::LB_BE4, tables.backends4.len()),
        (names::LB_BE6, tables.backends6.len()),
        (names::LB_SLOTS, tables.slots.len()),
        (names::LB_RANGE4, tables.ranges4.len()),
        (names::LB_RANGE6, tables.ranges6.len()),
        (names::LB_IF, tables.interfaces.len()),
    ];
    let filled = [names::LB_CT4, names::LB_CT6, names::LB_EM4, names::LB_EM6, names::LB_SK_UDP];
    let written = written.into_iter().map(|(table, used)| (table, u64::try_from(used).ok()));
    let all = written
        .chain(filled.into_iter().map(|table| (table, flows.tables.get(table).map(|found| found.live))));
    all.filter_map(|(table, used)| {
        let map = RawMap::open(&folder.join(table)).ok()?;
        let evicted = flows.tables.get(table).map_or(0, |found| found.evicted);
        Some(Usage { table, used, capacity: u64::from(map.info().max_entries), evicted })
    })
    .collect()
}

/// Removes everything from the kernel.
///
/// # Errors
/// The pins are another node's, or something stayed; the text names it.
pub fn cleanup(kernel: &KernelArgs) -> Result<(), KernelError> {
    let report = Datapath::cleanup(&options(kernel, "")).map_err(said)?;
    if report.errors.is_empty() { Ok(()) } else { Err(KernelError(lines(&report.errors).join("; "))) }
}

/// Does kube-proxy's duties towards the node; the answer names what failed. Call it before threads start.
#[must_use]
pub fn prepare_node(duties: &NodeDuties) -> Vec<String> {
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get());
    let mut failed = node::apply(&node::sysctls(&duties.conntrack, cpus.try_into().unwrap_or(1)));
    match node::set_oom_score(duties.oom_score) {
        // In a pod the kubelet has chosen a rank already; the default is no wish of the operator's.
        Err(error) if duties.oom_score == kubeproxy::DEFAULT_OOM_SCORE => {
            info!(%error, score = duties.oom_score, "oomScoreAdj is left as it is");
        }
        Err(error) => failed.push(format!(
            "oomScoreAdj {}: {error}; give the agent CAP_SYS_RESOURCE, or remove the field from --config",
            duties.oom_score
        )),
        Ok(()) => {}
    }
    failed
}

/// Watches the node's network, with what `wishes` need, until `net` is dropped.
pub async fn watch_net(net: watch::Sender<NodeNet>, wishes: net::Wishes) {
    if let Err(error) = net::watch(net, wishes).await {
        error!(%error, "The node's network cannot be watched");
    }
}

fn options(kernel: &KernelArgs, node: &str) -> Options {
    Options { bpffs: kernel.bpffs.clone(), cgroup: kernel.cgroup.clone(), ..Options::new(node) }
}

fn said(error: impl Display) -> KernelError {
    KernelError(error.to_string())
}

fn lines<E: Display>(errors: &[E]) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

/// What was said of XDP, and when interfaces that refused it are asked again.
#[derive(Debug, Default)]
struct XdpState {
    on: Vec<String>,
    refused: Vec<String>,
    again: Option<Instant>,
}

impl XdpState {
    /// Logs what changed. `busy`: the kernel refused an interface, which may change without an event.
    fn tell(&mut self, on: &[String], refused: &[String], busy: bool) {
        for line in refused.iter().filter(|line| !self.refused.contains(line)) {
            warn!("{line}");
        }
        if *on != self.on {
            info!(interfaces = on.join(","), "XDP");
        }
        (self.on, self.refused) = (on.to_vec(), refused.to_vec());
        self.again = busy.then(|| Instant::now() + XDP_RETRY);
    }

    fn is_due(&self) -> bool {
        self.again.is_some_and(|again| Instant::now() >= again)
    }
}

impl NodeKernel {
    /// Finds out what is to be told.
    fn look_out(&mut self) {
        let before: BTreeSet<About> = self.flows.alerts.iter().map(|alert| alert.about.clone()).collect();
        let ports = Family::ALL.map(|family| self.sweeper.ports(family).top().to_vec()).concat();
        let pool = self.applier.actual().config.snat_total;
        self.flows.alerts = alerts(&self.usage(), &ports, pool, &before);
    }

    /// Puts the socket programs on, or takes them off; once, since only this agent changes them.
    fn sockets(&mut self) -> Vec<String> {
        if self.sockets_done {
            return Vec::new();
        }
        let report = match self.sockets {
            SocketLb::Off => Ok(self.datapath.detach_sockets()),
            SocketLb::Host | SocketLb::All => self.datapath.attach_sockets(),
        };
        let failures = match report {
            Ok(report) => lines(&report.errors),
            Err(error) => vec![error.to_string()],
        };
        self.sockets_done = failures.is_empty();
        failures
    }
}

impl Kernel for NodeKernel {
    fn attach_set(&self, net: &NodeNet) -> BTreeMap<u32, Attachment> {
        with_xdp(net, &self.xdp).0
    }

    fn config_flags(&self) -> u32 {
        self.datapath.config_flags()
    }

    fn limits(&self) -> Option<Limits> {
        Some(self.datapath.limits())
    }

    fn memory(&self) -> u64 {
        self.datapath.memory().total()
    }

    fn actual(&mut self) -> Result<Desired, KernelError> {
        Ok(self.applier.actual().clone())
    }

    fn attach(&mut self, net: &NodeNet, attachments: &BTreeMap<u32, Attachment>) -> AttachReport {
        let report: datapath::AttachReport = self.datapath.attach(net, attachments);
        let (mut interfaces, mut failures) = (Vec::new(), Vec::new());
        let name = |index: &u32| net.links.get(index).map_or_else(|| index.to_string(), |l| l.name.clone());
        let mut failed = BTreeSet::new();
        for error in &report.errors {
            match error.interface.parse::<u32>() {
                Ok(index) => {
                    failed.insert(index);
                    failures.push(format!("{} ({error})", name(&index)));
                }
                Err(_not_a_number) => failures.push(error.to_string()),
            }
        }
        interfaces.extend(attachments.keys().filter(|index| !failed.contains(index)).map(name));
        interfaces.sort();
        failures.extend(self.sockets());
        if self.sockets_done
            && let Err(error) = self.datapath.finish_migration()
        {
            failures.push(format!("removing the tables of an earlier agent: {error}"));
        }
        let (_, mut refused) = with_xdp(net, &self.xdp);
        refused.extend(
            report
                .refused
                .iter()
                .map(|(index, why)| format!("{}: no XDP, packets are balanced at TC: {why}", name(index))),
        );
        let xdp: Vec<String> = report.xdp.iter().map(name).collect();
        self.xdp_state.tell(&xdp, &refused, !report.refused.is_empty());
        AttachReport { attached: interfaces.len(), interfaces, failures, xdp, refused }
    }

    fn apply(&mut self, desired: &Desired, changes: &Changes) -> ApplyReport {
        // a frontend comes after the address that clients of this host count as
        let sources = self.sources.follow(desired, changes);
        self.cutover.expect(moves(self.applier.actual(), desired, changes));
        let report = self.applier.apply(desired, changes);
        let mut failures = lines(&report.errors);
        if failures.is_empty() {
            self.cutover.carry_out(self.applier.actual());
        }
        failures.extend(sources.err().map(|error| format!("sources of this host's sockets: {error}")));
        ApplyReport { changed: report.changed.values().sum(), failures }
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        match self.datapath.counters() {
            Ok(rows) => named(rows),
            Err(error) => {
                warn!(%error, "The counters cannot be read");
                Vec::new()
            }
        }
    }

    fn usage(&self) -> Vec<Usage> {
        usage(self.datapath.pin_folder(), self.applier.actual(), &self.flows)
    }

    fn alerts(&self) -> Vec<Alert> {
        self.flows.alerts.clone()
    }

    fn ports_used(&self) -> f64 {
        let pool = self.applier.actual().config.snat_total;
        let most = Family::ALL.iter().filter_map(|family| self.sweeper.ports(*family).top().first());
        let most = most.map(|(_, count)| *count).max().unwrap_or(0);
        if pool == 0 { 0.0 } else { f64::from(most) / f64::from(pool) }
    }

    fn intact(&mut self) -> bool {
        let intact = self.datapath.intact();
        if !intact {
            self.sockets_done = false;
        }
        intact && !self.xdp_state.is_due()
    }

    fn sweep(&mut self) {
        match self.sweeper.turn(SWEEP) {
            Ok(found) => {
                self.flows.tables.extend(found.into_iter().map(|table| (table.table, table)));
                self.look_out();
            }
            Err(error) => warn!(%error, "Flow tables cannot be swept"),
        }
        self.cutover.tick(self.applier.actual());
        if let Err(error) = self.sources.refresh() {
            warn!(%error, "Sources of this host's sockets are not up to date");
        }
    }
}
