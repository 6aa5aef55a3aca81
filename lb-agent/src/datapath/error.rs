//! What can go wrong with the data path, and what was done to it.

use std::io;
use std::path::PathBuf;

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
    /// No BPF file system in a container, which must not mount one.
    #[error(
        "{folder} is no BPF file system: mount one on the node (mount -t bpf bpf /sys/fs/bpf; systemd does it by \
         itself), then start this container again with it mounted at {folder}",
        folder = .folder.display()
    )]
    BpffsInContainer {
        /// The folder, as the container sees it.
        folder: PathBuf,
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
    /// Somebody else's pins.
    #[error(
        "{} holds the pins of {theirs}, this is {ours}: give this one a --bpffs of its own, or remove the others with \
         `lb-agent cleanup --bpffs {}` where they belong to",
        .folder.display(), .folder.ancestors().nth(2).unwrap_or(.folder).display()
    )]
    Foreign {
        /// The pin folder.
        folder: PathBuf,
        /// Whose they are.
        theirs: String,
        /// Who we are.
        ours: String,
    },
    /// The sets of pins.
    #[error("the pins below {}: {source}", .folder.display())]
    Sets {
        /// The bpffs.
        folder: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
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
    /// Links that still hold a program of an earlier agent.
    pub stale: usize,
    /// What failed.
    pub errors: Vec<AttachError>,
    /// Interfaces that carry XDP.
    pub xdp: Vec<u32>,
    /// Interfaces that were to carry XDP and do not, with the reason.
    pub refused: Vec<(u32, String)>,
}

impl AttachReport {
    /// Adds another report.
    pub(super) fn merge(&mut self, other: AttachReport) {
        self.attached += other.attached;
        self.replaced += other.replaced;
        self.detached += other.detached;
        self.stale += other.stale;
        self.errors.extend(other.errors);
        self.xdp.extend(other.xdp);
        self.refused.extend(other.refused);
    }

    pub(super) fn failed(&mut self, index: u32, what: &'static str, source: io::Error) {
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
