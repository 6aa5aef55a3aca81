//! The one place that knows which kernel the product runs on: [`Datapath`] with its tables and flow sweep.

use std::collections::BTreeMap;
use std::fmt::Display;

use lb_common::counter::Counter;
use tokio::sync::watch;
use tracing::{error, warn};

use crate::apply::Applier;
use crate::apply::bpf::BpfMaps;
use crate::attachset::attach_set;
use crate::config::{KernelArgs, RunConfig};
use crate::datapath::{self, Datapath, Options};
use crate::desired::Desired;
use crate::gc::{Sweeper, Timeouts};
use crate::kernel::{ApplyReport, AttachReport, Kernel, KernelError};
use crate::links::{Attachment, NodeNet};
use crate::model::settings::SocketLb;
use crate::net;

/// Flow entries that one sweep looks at: a pass over a full table of a million takes about a minute.
const SWEEP: u32 = 16_384;

/// The kernel of this node.
#[derive(Debug)]
pub struct NodeKernel {
    datapath: Datapath,
    applier: Applier<BpfMaps>,
    sweeper: Sweeper,
    sockets: SocketLb,
    sockets_done: bool,
}

/// Opens the data path: loads the programs, and reads the tables that are there.
///
/// # Errors
/// The kernel or the pins refuse; what is attached goes on as it was.
pub fn open(config: &RunConfig) -> Result<NodeKernel, KernelError> {
    let datapath = Datapath::open(&options(&config.kernel, &config.settings.node_name)).map_err(said)?;
    let applier = Applier::new(datapath.maps().map_err(said)?).map_err(said)?;
    let sweeper = Sweeper::open(datapath.pin_folder(), Timeouts::default()).map_err(said)?;
    Ok(NodeKernel { datapath, applier, sweeper, sockets: config.settings.socket_lb, sockets_done: false })
}

/// The tables as the pins hold them, without loading or attaching anything.
///
/// # Errors
/// There are no pins, or they cannot be read.
pub fn read(kernel: &KernelArgs) -> Result<Desired, KernelError> {
    let folder = kernel.bpffs.join(lb_common::abi::names::PIN_FOLDER);
    let maps = BpfMaps::open(&folder).map_err(said)?;
    Ok(Applier::new(maps).map_err(said)?.actual().clone())
}

/// Removes everything from the kernel.
///
/// # Errors
/// The pins are another node's, or something stayed; the text names it.
pub fn cleanup(kernel: &KernelArgs) -> Result<(), KernelError> {
    let report = Datapath::cleanup(&options(kernel, "")).map_err(said)?;
    if report.errors.is_empty() { Ok(()) } else { Err(KernelError(lines(&report.errors).join("; "))) }
}

/// Watches the node's network until `net` is dropped.
pub async fn watch_net(net: watch::Sender<NodeNet>) {
    if let Err(error) = net::watch(net).await {
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

impl NodeKernel {
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
        attach_set(net)
    }

    fn config_flags(&self) -> u32 {
        self.datapath.config_flags()
    }

    fn actual(&mut self) -> Result<Desired, KernelError> {
        Ok(self.applier.actual().clone())
    }

    fn attach(&mut self, net: &NodeNet, attachments: &BTreeMap<u32, Attachment>) -> AttachReport {
        let report: datapath::AttachReport = self.datapath.attach(net, attachments);
        let mut failures = lines(&report.errors);
        failures.extend(self.sockets());
        AttachReport { attached: attachments.len(), failures }
    }

    fn apply(&mut self, desired: &Desired) -> ApplyReport {
        let report = self.applier.apply(desired);
        ApplyReport { changed: report.changed.values().sum(), failures: lines(&report.errors) }
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        match self.datapath.counters() {
            Ok(rows) => Counter::ALL.iter().map(|counter| counter.name()).zip(rows).collect(),
            Err(error) => {
                warn!(%error, "The counters cannot be read");
                Vec::new()
            }
        }
    }

    fn sweep(&mut self) {
        if let Err(error) = self.sweeper.step(SWEEP) {
            warn!(%error, "Flow tables cannot be swept");
        }
    }
}
