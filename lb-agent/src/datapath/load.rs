//! The BPF object: where it comes from, its maps beside what is pinned, its programs.

use std::path::{Path, PathBuf};

use aya::programs::Program;
use aya::{Ebpf, EbpfLoader};
use lb_common::abi::{layout, names};

use super::carry::difference;
use super::manifest::Manifest;
use super::pins::Pins;
use super::{DatapathError, Options};
use crate::sys::bpf::{self, MapInfo};

/// What `build.rs` found; empty in an agent built with `LB_EBPF_STUB=1`.
static EMBEDDED: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb-ebpf.o"));

/// Where the BPF object comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ObjectSource {
    /// The one that was built into the agent.
    #[default]
    Embedded,
    /// A file, read at start.
    File(PathBuf),
}

impl ObjectSource {
    /// The file that `$LB_EBPF_OBJECT` names, else the embedded object.
    #[must_use]
    pub fn from_env() -> Self {
        std::env::var_os("LB_EBPF_OBJECT")
            .map_or(ObjectSource::Embedded, |path| ObjectSource::File(path.into()))
    }

    /// The object's bytes, not looked at.
    pub(super) fn bytes(&self) -> Result<std::borrow::Cow<'static, [u8]>, DatapathError> {
        match self {
            ObjectSource::Embedded if EMBEDDED.is_empty() => Err(DatapathError::NoObject),
            ObjectSource::Embedded => Ok(EMBEDDED.into()),
            ObjectSource::File(path) => std::fs::read(path)
                .map(Into::into)
                .map_err(|source| DatapathError::Object { path: path.clone(), source }),
        }
    }
}

/// The object, parsed: which maps it wants.
pub(super) struct Object {
    bytes: std::borrow::Cow<'static, [u8]>,
    wanted: Vec<(&'static str, MapInfo)>,
}

impl Object {
    /// Reads and parses it.
    ///
    /// # Errors
    /// There is none, it is damaged, or another version's.
    pub(super) fn parse(options: &Options) -> Result<Self, DatapathError> {
        let bytes = options.object.bytes()?;
        let object = aya_obj::Object::parse(&bytes).map_err(|error| DatapathError::Parse(Box::new(error)))?;
        let mut wanted = Vec::new();
        for name in names::PINNED_MAPS {
            let map = object.maps.get(*name).ok_or_else(|| DatapathError::Missing { what: "map", name })?;
            let info = MapInfo {
                map_type: map.map_type(),
                id: 0,
                key_size: map.key_size(),
                value_size: map.value_size(),
                max_entries: options.sizes.of(name).unwrap_or(map.max_entries()),
                flags: map.map_flags(),
            };
            wanted.push((*name, info));
        }
        Ok(Object { bytes, wanted })
    }

    /// The maps that are pinned, with what they are to be.
    pub(super) fn wanted(&self) -> &[(&'static str, MapInfo)] {
        &self.wanted
    }

    /// The first map of a set that is not what the object wants (name, difference): aya uses whatever has the name.
    ///
    /// # Errors
    /// A pin can't be read.
    pub(super) fn difference(
        &self,
        folder: &Path,
        manifest: &Manifest,
    ) -> Result<Option<(&'static str, String)>, DatapathError> {
        for (name, wanted) in &self.wanted {
            let path = folder.join(name);
            let at = |source| DatapathError::Pin { path: path.clone(), source };
            let pinned = match bpf::obj_get(&path) {
                Ok(fd) => bpf::map_info(fd).map_err(at)?,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(at(error)),
            };
            let (found, own) = (manifest.layout(name), layout::layout(name));
            if found != own {
                return Ok(Some((name, format!("layout is {found}, this agent wants {own}"))));
            }
            if let Some(what) = difference(pinned, *wanted) {
                return Ok(Some((name, what)));
            }
        }
        Ok(None)
    }

    /// Loads the object: maps that are pinned in the set are used, missing ones are made and pinned, and all programs
    /// that every node needs pass the verifier; see [`need_l3`], [`need_xdp`].
    ///
    /// # Errors
    /// Nothing is attached; maps that were made stay pinned and are used by the next try.
    pub(super) fn load(&self, options: &Options, pins: &Pins) -> Result<Ebpf, DatapathError> {
        let mut loader = EbpfLoader::new();
        for name in names::PINNED_MAPS {
            loader.map_pin_path(name, pins.map(name));
            if let Some(entries) = options.sizes.of(name) {
                loader.map_max_entries(name, entries);
            }
        }
        let mut ebpf = loader.load(&self.bytes).map_err(|error| DatapathError::Load(Box::new(error)))?;
        for name in names::PROGRAMS.iter().filter(|name| !L3.contains(name) && **name != names::LB_XDP) {
            need(&mut ebpf, name)?;
        }
        Ok(ebpf)
    }
}

/// Programs for devices without a link-layer header. Most nodes have none, and these are half of what the verifier
/// has to do, which costs the node CPU time at every start.
const L3: [&str; 2] = [names::LB_TC_IN_L3, names::LB_TC_OUT_L3];

/// Loads the programs for devices without a link-layer header, unless they are loaded already.
///
/// # Errors
/// The verifier refuses one.
pub(super) fn need_l3(ebpf: &mut Ebpf) -> Result<(), DatapathError> {
    L3.iter().try_for_each(|name| need(ebpf, name))
}

/// Loads the XDP program, likewise: no node needs it unless it is asked to.
///
/// # Errors
/// The verifier refuses it.
pub(super) fn need_xdp(ebpf: &mut Ebpf) -> Result<(), DatapathError> {
    need(ebpf, names::LB_XDP)
}

/// Puts a program before the verifier, unless it is loaded already.
///
/// # Errors
/// [`DatapathError::Verifier`] when it is refused; [`DatapathError::Missing`] when the object has none of that name.
pub(super) fn need(ebpf: &mut Ebpf, name: &'static str) -> Result<(), DatapathError> {
    let program = ebpf.program_mut(name).ok_or_else(|| DatapathError::Missing { what: "program", name })?;
    if program.fd().is_ok() {
        return Ok(());
    }
    let loaded = match program {
        Program::SchedClassifier(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        Program::Xdp(program) => program.load(),
        _ => return Err(DatapathError::Missing { what: "program of the right type", name }),
    };
    loaded.map_err(|source| DatapathError::Verifier { program: name, source: Box::new(source) })
}
