//! The programs in the kernel: loaded, pinned, attached, replaced, and removed without a trace.
//!
//! **Invariants:** whatever is attached is pinned (or a filter of ours by its priority and handle), so the agent may
//! die at any point: the data path goes on, and the next [`Datapath::open`] takes over what is there without a
//! packet meeting no program. Nobody else's pins, links or filters are touched.
//!
//! Read [`Datapath`] first.

mod attach;
mod carry;
mod cgroup;
pub mod check;
mod cleanup;
pub mod counters;
mod error;
mod load;
mod manifest;
pub mod memory;
mod migrate;
mod pins;
mod probe;
mod reserved;
mod sets;
pub mod sizes;
mod xdp;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use lb_common::abi::{ABI_VERSION, names};

pub use error::{AttachError, AttachReport, CleanupReport, DatapathError};
pub use load::ObjectSource;
pub use memory::Memory;
pub use sizes::Sizes;

use crate::apply::Applier;
use crate::apply::bpf::BpfMaps;
use crate::desired::Desired;
use crate::links::{Attachment, NodeNet};
use crate::model::settings::Limits;
use crate::sys::bpf;
use load::Object;
use manifest::Manifest;
use migrate::Migration;
use pins::{Owner, Pins};
use sets::{Set, Survey};

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
    bpffs: PathBuf,
    pins: Pins,
    /// Tables of an earlier agent that are to be taken over.
    migration: Option<Migration>,
    owner: Owner,
    cgroup: Option<PathBuf>,
    tcx: bool,
    /// This node's name.
    node: String,
    /// Names of the pinned links after the last change.
    links: Vec<String>,
    /// Interfaces with filters of this process's programs, by ifindex.
    filters: BTreeMap<u32, Attachment>,
}

impl Datapath {
    /// Loads the programs into the kernel, over the maps that an earlier agent left, or new ones. Maps of another
    /// layout or size are taken over into new ones, beside them, by the next [`Datapath::attach`]: see [`migrate`].
    ///
    /// Attaches nothing. Adds the NodePort range to `ip_local_reserved_ports` (not being able to is a warning). No
    /// memory limit is raised: since kernel 5.11 BPF memory counts against the memory cgroup.
    ///
    /// # Errors
    /// See [`DatapathError`]; what is attached goes on as it was.
    pub fn open(options: &Options) -> Result<Self, DatapathError> {
        probe::kernel_floor()?;
        probe::bpffs(&options.bpffs)?;
        let object = Object::parse(options)?;
        let (pins, migration) = place(options, &object)?;
        let mut owner = claim(options, &pins, migration.is_none())?;
        let ebpf = object.load(options, &pins)?;
        if let Some(migration) = &migration {
            migration.prepare(&pins).map_err(|source| at(options, source))?;
        }
        let tcx = !options.clsact && attach::program_fd(&ebpf, names::LB_TC_IN).is_ok_and(probe::tcx);
        if !tcx {
            tracing::info!("no TCX links on this kernel (6.6) or not wanted: using clsact filters");
        }
        if !tcx && !owner.filters {
            owner.filters = true;
            owner.store(&pins)?;
        }
        reserve(options.nodeports, &mut owner, &pins);
        let (bpffs, cgroup) = (options.bpffs.clone(), options.cgroup.clone());
        let (node, links, filters) = (options.node_name.clone(), Vec::new(), BTreeMap::new());
        Ok(Datapath { ebpf, bpffs, pins, migration, owner, cgroup, tcx, node, links, filters })
    }

    /// The tables, for [`crate::apply::Applier`].
    ///
    /// # Errors
    /// A map is missing or of another shape.
    pub fn maps(&self) -> io::Result<BpfMaps> {
        BpfMaps::open(self.pins.folder())
    }

    /// What a plan may use: the capacities of the maps as they are.
    #[must_use]
    pub fn limits(&self) -> Limits {
        sizes::limits(|map| {
            bpf::map_info(bpf::obj_get(&self.pins.map(map)).ok()?).ok().map(|i| i.max_entries)
        })
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
        let maps = BpfMaps::open(Pins::live(bpffs).folder())?;
        let applier = Applier::new(maps).map_err(io::Error::other)?;
        Ok(applier.actual().clone())
    }

    /// Where the maps are pinned that serve below a bpffs mount point.
    #[must_use]
    pub fn live_folder(bpffs: &Path) -> PathBuf {
        sets::live_folder(bpffs)
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
        let mut report = AttachReport::default();
        if let Err(error) = self.repair() {
            report.errors.push(migrating("putting pins back", io::Error::other(error)));
        }
        if let Some(migration) = &mut self.migration
            && let Err(source) = migration.begin(&self.pins)
        {
            report.errors.push(migrating("moving the tables", source));
            return report;
        }
        report.merge(self.replace(net, set));
        report.merge(self.attach_xdp(set));
        if let Some(migration) = &mut self.migration
            && let Err(source) = migration.settle(&self.pins, report.stale == 0)
        {
            report.errors.push(migrating("moving what was missing in the tables", source));
        }
        self.note_links();
        report
    }

    /// Remembers which links there are to be.
    fn note_links(&mut self) {
        self.links = pins::list(&self.pins.links()).unwrap_or_default();
    }

    /// Removes the tables that this agent has taken over, once none of its programs uses them any more: after
    /// [`Datapath::attach`] without stale links, and the socket programs. Cheap when there are none.
    ///
    /// # Errors
    /// As the kernel says; to be called again.
    pub fn finish_migration(&mut self) -> io::Result<()> {
        let Some(migration) = &mut self.migration else { return Ok(()) };
        if let Some(folder) = migration.finish(&self.bpffs, &self.pins)? {
            self.pins = Pins::at(folder);
            self.migration = None;
        }
        Ok(())
    }

    /// Whether all pins are where they were put. A few system calls.
    ///
    /// Without their pins the maps live on in the programs, but a link that loses its pin takes its program along:
    /// attached again by the next [`Datapath::attach`].
    #[must_use]
    pub fn intact(&self) -> bool {
        let maps = pins::list(self.pins.folder()).unwrap_or_default();
        let links = pins::list(&self.pins.links()).unwrap_or_default();
        names::PINNED_MAPS.iter().all(|name| maps.iter().any(|map| map == name))
            && self.links.iter().all(|name| links.contains(name))
    }

    /// Puts back pins that somebody removed, or whose file system was unmounted: the maps are still ours.
    fn repair(&self) -> Result<(), DatapathError> {
        let missing = |name: &&&str| !self.pins.map(name).exists();
        let missing: Vec<&&str> = names::PINNED_MAPS.iter().filter(missing).collect();
        if missing.is_empty() {
            return Ok(());
        }
        probe::bpffs(&self.bpffs)?;
        if self.migration.is_none() {
            self.pins.create()?;
        }
        for name in &missing {
            let path = self.pins.map(name);
            if let Some(map) = self.ebpf.map(name) {
                map.pin(&path)
                    .map_err(|error| DatapathError::Pin { path, source: io::Error::other(error) })?;
            }
        }
        let at = |source| DatapathError::Sets { folder: self.bpffs.clone(), source };
        if !self.pins.map(manifest::MANIFEST).exists() {
            Manifest::of_this_agent(&self.node).store(self.pins.folder()).map_err(at)?;
        }
        self.owner.store(&self.pins)?;
        tracing::warn!(pins = missing.len(), folder = %self.pins.folder().display(), "Pins were gone and were put back");
        Ok(())
    }

    /// As [`xdp::attach`], with the program loaded where it is wanted.
    fn attach_xdp(&mut self, set: &BTreeMap<u32, Attachment>) -> AttachReport {
        let wanted: Vec<u32> = set.iter().filter(|(_, a)| a.xdp).map(|(index, _)| *index).collect();
        let loaded = if wanted.is_empty() { Ok(()) } else { load::need_xdp(&mut self.ebpf) };
        match loaded {
            Ok(()) => xdp::attach(&self.ebpf, &self.pins, set),
            Err(error) => AttachReport {
                refused: wanted.into_iter().map(|index| (index, error.to_string())).collect(),
                ..AttachReport::default()
            },
        }
    }

    fn replace(&mut self, net: &NodeNet, set: &BTreeMap<u32, Attachment>) -> AttachReport {
        let refused = set.values().any(|a| a.l3).then(|| load::need_l3(&mut self.ebpf)).transpose();
        let mut report = self.replace_with_loaded(net, set);
        if let Err(error) = refused {
            let source = io::Error::other(error);
            let interface = "devices without a link-layer header".to_owned();
            report.errors.push(AttachError { interface, what: "loading their programs", source });
        }
        report
    }

    /// An interface whose program is not loaded is an error in the report, and stops no other.
    fn replace_with_loaded(&mut self, net: &NodeNet, set: &BTreeMap<u32, Attachment>) -> AttachReport {
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
    pub fn attach_sockets(&mut self) -> Result<AttachReport, DatapathError> {
        let folder = cgroup::root(self.cgroup.as_deref())?;
        let report = cgroup::attach(&self.ebpf, &self.pins, &folder);
        self.note_links();
        Ok(report)
    }

    /// Takes the socket programs off (`--socket-lb off`). Connected sockets stay connected to their backends.
    pub fn detach_sockets(&mut self) -> AttachReport {
        let report = cgroup::detach(&self.pins);
        self.note_links();
        report
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
        counters::read(&Pins::live(bpffs).map(names::LB_COUNTERS))
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

fn migrating(what: &'static str, source: io::Error) -> AttachError {
    AttachError { interface: "tables of an earlier agent".to_owned(), what, source }
}

fn at(options: &Options, source: io::Error) -> DatapathError {
    DatapathError::Sets { folder: options.bpffs.clone(), source }
}

/// Where this agent's pins are to be, and what it has to take over for that.
fn place(options: &Options, object: &Object) -> Result<(Pins, Option<Migration>), DatapathError> {
    let said = |source| at(options, source);
    let Survey { live, sources, doomed } = sets::survey(&options.bpffs).map_err(said)?;
    for set in sources.iter().chain(&live) {
        owner_of(options, set)?;
    }
    for folder in &doomed {
        sets::remove(folder).map_err(said)?;
    }
    let Some(live) = live else {
        return Ok((Pins::at(options.bpffs.join(names::PIN_FOLDER)), None));
    };
    let found = Manifest::load(&live.folder, live.version).map_err(said)?;
    let difference = if live.version == ABI_VERSION {
        object.difference(&live.folder, &found)?
    } else {
        Some(("all", format!("they are of version {}, this agent's are of {ABI_VERSION}", live.version)))
    };
    match difference {
        None => {
            let unfinished = !sources.is_empty() || live.staged;
            let migration = unfinished.then(|| Migration::resume(sources)).transpose().map_err(said)?;
            Ok((Pins::at(live.folder), migration))
        }
        Some((table, what)) => {
            tracing::info!(table, what, folder = %live.folder.display(), "Pinned tables differ: migrating");
            let pins = Pins::at(sets::stage(&options.bpffs).map_err(said)?);
            let migration = Migration::plan([vec![live], sources].concat(), &pins, object).map_err(said)?;
            Ok((pins, Some(migration)))
        }
    }
}

/// Whose a set of pins is; refuses another node's. `None`: nobody has written it down yet.
fn owner_of(options: &Options, set: &Set) -> Result<Option<Owner>, DatapathError> {
    let cookie = crate::sys::netns_cookie().map_err(DatapathError::Cookie)?;
    let Some(owner) = Owner::load(&Pins::at(set.folder.clone()))? else { return Ok(None) };
    let foreign = |theirs: String, ours: String| {
        Err(DatapathError::Foreign { folder: set.folder.clone(), theirs, ours })
    };
    if owner.cookie != cookie {
        return foreign(
            format!("network namespace {} (its cookie)", owner.cookie),
            format!("network namespace {cookie}"),
        );
    }
    if owner.node != pins::node_hash(&options.node_name) && !options.node_name.is_empty() {
        let manifest = Manifest::load(&set.folder, set.version).unwrap_or_default();
        let name = if manifest.node.is_empty() { "of another name" } else { &manifest.node };
        return foreign(format!("node {name}"), format!("node {}", options.node_name));
    }
    Ok(Some(owner))
}

/// Makes the pin folder ours. A set beside another one (`whole` = false) gets no links yet: they move to it later.
fn claim(options: &Options, pins: &Pins, whole: bool) -> Result<Owner, DatapathError> {
    let folder = pins.folder().to_owned();
    let said = |source| DatapathError::Pin { path: folder.clone(), source };
    if whole {
        pins.create()?;
    }
    Manifest::of_this_agent(&options.node_name).store(pins.folder()).map_err(said)?;
    if let Some(owner) = Owner::load(pins)? {
        return Ok(owner);
    }
    // What an earlier agent is to undo at clean-up is ours to undo now.
    let earlier = Owner::load(&Pins::live(&options.bpffs))?;
    let owner = Owner {
        cookie: crate::sys::netns_cookie().map_err(DatapathError::Cookie)?,
        node: pins::node_hash(&options.node_name),
        ..earlier.unwrap_or_default()
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
