//! The programs in the kernel: loaded, pinned, attached, replaced, and removed without a trace.
//!
//! **Invariants:** whatever is attached is pinned (or a filter of ours by its priority and handle), so the agent may
//! die at any point: the data path goes on, and the next [`Datapath::open`] takes over what is there without a
//! packet meeting no program. Nobody else's pins, links or filters are touched.
//!
//! Read [`Datapath`] first.

mod attach;
mod cgroup;
mod cleanup;
mod counters;
mod error;
mod load;
pub mod memory;
mod pins;
mod probe;
mod reserved;
pub mod sizes;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use lb_common::abi::names;

pub use error::{AttachError, AttachReport, CleanupReport, DatapathError};
pub use load::ObjectSource;
pub use memory::Memory;
pub use sizes::{KeptSize, Sizes};

use crate::apply::Applier;
use crate::apply::bpf::BpfMaps;
use crate::desired::Desired;
use crate::links::{Attachment, NodeNet};
use crate::model::settings::Limits;
use crate::sys::bpf;
use pins::{Owner, Pins};

/// What [`Datapath::open`] needs to know.
#[derive(Clone, Debug)]
pub struct Options {
    /// Mount point of the BPF file system; mounted if it is none.
    pub bpffs: PathBuf,
    /// cgroup v2 folder whose sockets are translated; `None` = the node's root.
    pub cgroup: Option<PathBuf>,
    /// The BPF object.
    pub object: ObjectSource,
    /// This node's name; pins of another node are refused. Empty (clean-up without a name): not compared.
    pub node_name: String,
    /// Capacities of the tables.
    pub sizes: Sizes,
    /// NodePorts, kept from ephemeral sockets; inclusive.
    pub nodeports: (u16, u16),
    /// Use clsact filters even where the kernel has TCX.
    pub clsact: bool,
}

impl Options {
    /// The defaults of a node.
    #[must_use]
    pub fn new(node_name: impl Into<String>) -> Self {
        Options {
            bpffs: PathBuf::from("/sys/fs/bpf"),
            cgroup: None,
            object: ObjectSource::from_env(),
            node_name: node_name.into(),
            sizes: Sizes::default(),
            nodeports: (30_000, 32_767),
            clsact: false,
        }
    }
}

/// The loaded programs. Dropping it leaves everything attached as it is.
#[derive(Debug)]
pub struct Datapath {
    ebpf: Ebpf,
    pins: Pins,
    owner: Owner,
    cgroup: Option<PathBuf>,
    /// Maps of another size than was asked for.
    kept: Vec<KeptSize>,
    tcx: bool,
    /// Interfaces with filters of this process's programs, by ifindex.
    filters: BTreeMap<u32, Attachment>,
}

impl Datapath {
    /// Loads the programs into the kernel, over the maps that an earlier agent left, or new ones.
    ///
    /// Attaches nothing. Adds the NodePort range to `ip_local_reserved_ports` (not being able to is a warning). No
    /// memory limit is raised: since kernel 5.11 BPF memory counts against the memory cgroup.
    ///
    /// # Errors
    /// See [`DatapathError`]; what is attached goes on as it was.
    pub fn open(options: &Options) -> Result<Self, DatapathError> {
        probe::kernel_floor()?;
        probe::bpffs(&options.bpffs)?;
        let pins = Pins::new(&options.bpffs);
        let mut owner = claim(options, &pins)?;
        let (ebpf, kept) = load::load(options, &pins)?;
        let tcx = !options.clsact && attach::program_fd(&ebpf, names::LB_TC_IN).is_ok_and(probe::tcx);
        if !tcx {
            tracing::info!("no TCX links on this kernel (6.6) or not wanted: using clsact filters");
        }
        if !tcx && !owner.filters {
            owner.filters = true;
            owner.store(&pins)?;
        }
        reserve(options.nodeports, &mut owner, &pins);
        let cgroup = options.cgroup.clone();
        Ok(Datapath { ebpf, pins, owner, cgroup, kept, tcx, filters: BTreeMap::new() })
    }

    /// The tables, for [`crate::apply::Applier`].
    ///
    /// # Errors
    /// A map is missing or of another shape.
    pub fn maps(&self) -> io::Result<BpfMaps> {
        BpfMaps::open(self.pins.folder())
    }

    /// Pinned maps that have another capacity than [`Options::sizes`] asks for, and keep it.
    #[must_use]
    pub fn kept_sizes(&self) -> &[KeptSize] {
        &self.kept
    }

    /// What a plan may use: the capacities of the maps as they are.
    #[must_use]
    pub fn limits(&self) -> Limits {
        sizes::limits(|map| bpf::map_info(bpf::obj_get(&self.pins.map(map)).ok()?).ok().map(|i| i.max_entries))
    }

    /// What the maps cost.
    #[must_use]
    pub fn memory(&self) -> Memory {
        Memory::of(&self.pins)
    }

    /// `CFG_*` bits that probing this kernel gave, for `LbConfig`.
    #[must_use]
    pub fn config_flags(&self) -> u32 {
        probe::config_flags()
    }

    /// The tables that are pinned below a bpffs mount point, without loading or attaching anything; its `roles` are
    /// empty, as they can't be read backwards.
    ///
    /// # Errors
    /// A map is missing (no agent ran there), of another shape, or unreadable.
    pub fn read(bpffs: &Path) -> io::Result<Desired> {
        let maps = BpfMaps::open(Pins::new(bpffs).folder())?;
        let applier = Applier::new(maps).map_err(io::Error::other)?;
        Ok(applier.actual().clone())
    }

    /// Where the maps are pinned.
    #[must_use]
    pub fn pin_folder(&self) -> &Path {
        self.pins.folder()
    }

    /// Programs are attached by TCX links (else by clsact filters).
    #[must_use]
    pub fn uses_tcx(&self) -> bool {
        self.tcx
    }

    /// Makes the attached interfaces equal to `set`, in the calling thread's network namespace.
    ///
    /// Idempotent, cheap when nothing changed. Programs of an earlier agent are replaced in place. `net` gives the
    /// names, which filters (but not TCX links) go by.
    pub fn attach(&mut self, net: &NodeNet, set: &BTreeMap<u32, Attachment>) -> AttachReport {
        if !self.tcx {
            let mut report = attach::attach_filters(&mut self.ebpf, net, set, &mut self.filters);
            // Links of an agent that had TCX: after the filters, so that no packet meets neither.
            let links = attach::attach_links(&self.ebpf, &self.pins, &BTreeMap::new());
            report.detached += links.detached;
            report.errors.extend(links.errors);
            return report;
        }
        let mut report = attach::attach_links(&self.ebpf, &self.pins, set);
        if self.owner.filters && report.errors.is_empty() {
            self.drop_filters(net, &mut report);
        }
        report
    }

    /// Removes the filters of an agent that had no TCX.
    fn drop_filters(&mut self, net: &NodeNet, report: &mut AttachReport) {
        for (index, link) in &net.links {
            if let Err(source) = attach::drop_filters(&link.name) {
                report.failed(*index, "removing filters", source);
            }
        }
        if report.errors.is_empty() {
            let owner = Owner { filters: false, ..self.owner.clone() };
            match owner.store(&self.pins) {
                Ok(()) => self.owner = owner,
                // Looked for once more at the next call.
                Err(error) => tracing::warn!(%error, "can't write down that no filters are left"),
            }
        }
    }

    /// Puts the socket programs on the cgroup, in place of those an earlier agent left there.
    ///
    /// # Errors
    /// [`DatapathError::Cgroup`] if there is none; what could not be attached is in the report.
    pub fn attach_sockets(&self) -> Result<AttachReport, DatapathError> {
        let folder = cgroup::root(self.cgroup.as_deref())?;
        Ok(cgroup::attach(&self.ebpf, &self.pins, &folder))
    }

    /// Takes the socket programs off (`--socket-lb off`). Connected sockets stay connected to their backends.
    pub fn detach_sockets(&self) -> AttachReport {
        cgroup::detach(&self.pins)
    }

    /// What this agent added to `ip_local_reserved_ports`, inclusive.
    #[must_use]
    pub fn reserved(&self) -> &[(u16, u16)] {
        &self.owner.reserved
    }

    /// Sums of `LB_COUNTERS` over all CPUs, by number; an entry per row of the map.
    ///
    /// # Errors
    /// The map can't be read.
    pub fn counters(&self) -> io::Result<Vec<u64>> {
        counters::read(&self.pins.map(names::LB_COUNTERS))
    }

    /// As [`Datapath::counters`], of the maps that are pinned below a bpffs mount point.
    ///
    /// # Errors
    /// The map is missing or can't be read.
    pub fn read_counters(bpffs: &Path) -> io::Result<Vec<u64>> {
        counters::read(&Pins::new(bpffs).map(names::LB_COUNTERS))
    }

    /// Removes everything from the kernel that an agent on this bpffs left, and restores
    /// `ip_local_reserved_ports`. Nothing to remove is fine. Goes on after an error; the report tells.
    ///
    /// # Errors
    /// [`DatapathError::Foreign`]: the pins are another node's; nothing was removed.
    pub fn cleanup(options: &Options) -> Result<CleanupReport, DatapathError> {
        cleanup::cleanup(options)
    }
}

/// Whose pins these are, if they are ours.
fn owner_of(options: &Options, pins: &Pins) -> Result<Option<Owner>, DatapathError> {
    let cookie = crate::sys::netns_cookie().map_err(DatapathError::Cookie)?;
    let node = pins::node_hash(&options.node_name);
    match Owner::load(pins)? {
        Some(owner) if owner.cookie != cookie || (owner.node != node && !options.node_name.is_empty()) => {
            Err(DatapathError::Foreign { folder: pins.folder().to_owned() })
        }
        found => Ok(found),
    }
}

/// Makes the pin folder ours, or refuses it.
fn claim(options: &Options, pins: &Pins) -> Result<Owner, DatapathError> {
    if let Some(owner) = owner_of(options, pins)? {
        pins.create()?;
        return Ok(owner);
    }
    pins.create()?;
    let owner = Owner {
        cookie: crate::sys::netns_cookie().map_err(DatapathError::Cookie)?,
        node: pins::node_hash(&options.node_name),
        ..Owner::default()
    };
    owner.store(pins)?;
    Ok(owner)
}

/// Reserves the NodePort range. It is written down before it is done, so that clean-up can't miss it.
fn reserve(range: (u16, u16), owner: &mut Owner, pins: &Pins) {
    let result = reserved::missing(range).and_then(|missing| {
        if missing.is_empty() {
            return Ok(());
        }
        let mut next = owner.clone();
        next.reserved.extend(missing.iter().filter(|new| !owner.reserved.contains(new)));
        next.store(pins).map_err(io::Error::other)?;
        *owner = next;
        reserved::add(&missing)
    });
    if let Err(error) = result {
        tracing::warn!(%error, "can't keep ephemeral ports off the NodePort range (ip_local_reserved_ports)");
    }
}
