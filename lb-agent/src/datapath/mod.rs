//! The programs in the kernel: loaded, pinned, attached, replaced, and removed without a trace.
//!
//! **Invariants:** whatever is attached is pinned (or a filter of ours by its priority and handle), so the agent may
//! die at any point: the data path goes on, and the next [`Datapath::open`] takes over what is there without a
//! packet meeting no program. Nobody else's pins, links or filters are touched.
//!
//! Read [`Datapath`] first.

mod attach;
mod cgroup;
mod counters;
mod load;
mod pins;
mod probe;
mod reserved;
pub mod sizes;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use lb_common::abi::names;

pub use load::ObjectSource;
pub use sizes::Sizes;

use crate::apply::bpf::BpfMaps;
use crate::links::{Attachment, NodeNet};
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

/// Why the data path can't be opened or removed.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// Too old.
    #[error("kernel {release} is too old: 6.1 or newer is needed")]
    Kernel {
        /// `uname -r`.
        release: String,
    },
    /// No BPF file system.
    #[error("{folder} is no BPF file system and can't be made one: {source} (try: mount -t bpf bpf {folder})",
        folder = .folder.display())]
    Bpffs {
        /// The folder.
        folder: PathBuf,
        /// What mounting it gave.
        #[source]
        source: io::Error,
    },
    /// No cgroup to attach to.
    #[error("no cgroup for the socket hooks: {0} (name one with --cgroup, or use --socket-lb off)")]
    Cgroup(String),
    /// The agent was built without an object.
    #[error(
        "this agent was built without its BPF object: build it after `cargo xtask build-ebpf`, or set LB_EBPF_OBJECT"
    )]
    NoObject,
    /// The object's file.
    #[error("{}: {source}", .path.display())]
    Object {
        /// The file.
        path: PathBuf,
        /// Why it can't be read.
        #[source]
        source: io::Error,
    },
    /// It is no BPF object.
    #[error("the BPF object is damaged: {0}")]
    Parse(#[source] Box<aya_obj::ParseError>),
    /// It lacks something.
    #[error("the BPF object has no {what} `{name}`: it is another version's")]
    Missing {
        /// `map` or `program`.
        what: &'static str,
        /// Its name.
        name: &'static str,
    },
    /// Maps could not be made.
    #[error("loading the BPF object: {0}")]
    Load(#[source] Box<aya::EbpfError>),
    /// The verifier said no.
    #[error("the kernel refuses program {program}: {source}")]
    Verifier {
        /// Its name.
        program: &'static str,
        /// With the verifier's log.
        #[source]
        source: Box<aya::programs::ProgramError>,
    },
    /// A pinned map of another shape.
    #[error(
        "pinned map {name}: {what}; run `lb-agent cleanup` (which ends balanced connections) and start again"
    )]
    Mismatch {
        /// Its name.
        name: &'static str,
        /// The difference.
        what: String,
    },
    /// Somebody else's pins.
    #[error("{} holds the pins of another node or network namespace: give this one a --bpffs of its own", .folder.display())]
    Foreign {
        /// The pin folder.
        folder: PathBuf,
    },
    /// A pin.
    #[error("{}: {source}", .path.display())]
    Pin {
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The namespace has no cookie.
    #[error("getsockopt(SO_NETNS_COOKIE): {0}")]
    Cookie(#[source] io::Error),
}

/// Something that could not be attached or detached.
#[derive(Debug, thiserror::Error)]
#[error("{interface}: {what}: {source}")]
pub struct AttachError {
    /// Interface (its number), program or cgroup.
    pub interface: String,
    /// What was tried.
    pub what: &'static str,
    /// What the kernel said.
    #[source]
    pub source: io::Error,
}

/// What attaching changed, in links or filters.
#[derive(Debug, Default)]
pub struct AttachReport {
    /// New ones.
    pub attached: usize,
    /// Old ones with a new program, in place.
    pub replaced: usize,
    /// Ones that went.
    pub detached: usize,
    /// What failed.
    pub errors: Vec<AttachError>,
}

impl AttachReport {
    fn failed(&mut self, index: u32, what: &'static str, source: io::Error) {
        self.errors.push(AttachError { interface: index.to_string(), what, source });
    }
}

/// What [`Datapath::cleanup`] removed.
#[derive(Debug, Default)]
pub struct CleanupReport {
    /// Links and interfaces with filters.
    pub links: usize,
    /// Pinned maps.
    pub maps: usize,
    /// What stayed, and why.
    pub errors: Vec<AttachError>,
}

/// The loaded programs. Dropping it leaves everything attached as it is.
#[derive(Debug)]
pub struct Datapath {
    ebpf: Ebpf,
    pins: Pins,
    owner: Owner,
    cgroup: Option<PathBuf>,
    tcx: bool,
    /// Interfaces with filters of this process's programs, by name.
    filters: BTreeMap<String, Attachment>,
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
        let ebpf = load::load(options, &pins)?;
        let tcx = !options.clsact && attach::program_fd(&ebpf, names::LB_TC_IN).is_ok_and(probe::tcx);
        if !tcx {
            tracing::info!("no TCX links on this kernel (6.6) or not wanted: using clsact filters");
        }
        if owner.filters == tcx {
            owner.filters = !tcx;
            owner.store(&pins)?;
        }
        reserve(options.nodeports, &mut owner, &pins);
        let cgroup = options.cgroup.clone();
        Ok(Datapath { ebpf, pins, owner, cgroup, tcx, filters: BTreeMap::new() })
    }

    /// The tables, for [`crate::apply::Applier`].
    ///
    /// # Errors
    /// A map is missing or of another shape.
    pub fn maps(&self) -> io::Result<BpfMaps> {
        BpfMaps::open(self.pins.folder())
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
        if self.tcx {
            return attach::attach_links(&self.ebpf, &self.pins, set);
        }
        let name = |index: &u32| net.links.get(index).map(|link| link.name.clone());
        let set = set.iter().filter_map(|(index, attachment)| Some((name(index)?, *attachment))).collect();
        attach::attach_filters(&mut self.ebpf, &set, &mut self.filters)
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

    /// Removes everything from the kernel that an agent on this bpffs left, and restores
    /// `ip_local_reserved_ports`. Nothing to remove is fine. Goes on after an error; the report tells.
    ///
    /// # Errors
    /// [`DatapathError::Foreign`]: the pins are another node's; nothing was removed.
    pub fn cleanup(options: &Options) -> Result<CleanupReport, DatapathError> {
        let mut report = CleanupReport::default();
        let pins = Pins::new(&options.bpffs);
        if !probe::is_bpffs(&options.bpffs) || !pins.folder().exists() {
            return Ok(report);
        }
        let owner = owner_of(options, &pins)?.unwrap_or_default();
        remove_links(&pins, &mut report);
        if owner.filters {
            remove_filters(&mut report);
        }
        if let Err(source) = reserved::remove(&owner.reserved) {
            report.errors.push(AttachError {
                interface: "ip_local_reserved_ports".to_owned(),
                what: "restoring",
                source,
            });
        }
        remove_maps(&pins, &mut report);
        Ok(report)
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

fn remove_links(pins: &Pins, report: &mut CleanupReport) {
    let folder = pins.links();
    for name in pins::list(&folder).unwrap_or_default() {
        match attach::drop_link(&folder.join(&name)) {
            Ok(()) => report.links += 1,
            Err(source) => {
                report.errors.push(AttachError { interface: name, what: "removing a link", source })
            }
        }
    }
    if let Err(source) = std::fs::remove_dir(&folder)
        && source.kind() != io::ErrorKind::NotFound
    {
        report.errors.push(AttachError {
            interface: folder.display().to_string(),
            what: "removing a folder",
            source,
        });
    }
}

fn remove_filters(report: &mut CleanupReport) {
    // "thread-self": the network namespace is the thread's.
    let table = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default();
    for name in table.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim()) {
        match attach::drop_filters(name) {
            Ok(()) => report.links += 1,
            Err(source) => {
                report.errors.push(AttachError {
                    interface: name.to_owned(),
                    what: "removing filters",
                    source,
                });
            }
        }
    }
}

fn remove_maps(pins: &Pins, report: &mut CleanupReport) {
    let folder = pins.folder();
    for name in pins::list(folder).unwrap_or_default() {
        if name == "links" {
            continue;
        }
        match pins::remove(&folder.join(&name)) {
            Ok(()) => report.maps += 1,
            Err(source) => {
                report.errors.push(AttachError { interface: name, what: "removing a map", source })
            }
        }
    }
    if let Err(source) = std::fs::remove_dir(folder) {
        report.errors.push(AttachError {
            interface: folder.display().to_string(),
            what: "removing a folder",
            source,
        });
    }
    // Other versions may have their folders beside ours.
    if let Some(parent) = folder.parent() {
        let _ = std::fs::remove_dir(parent);
    }
}
