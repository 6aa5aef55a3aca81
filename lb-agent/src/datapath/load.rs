//! The BPF object: where it comes from, its maps beside what is pinned, its programs.

use std::path::PathBuf;

use aya::programs::Program;
use aya::{Ebpf, EbpfLoader};
use lb_common::abi::names;

use super::pins::Pins;
use super::sizes::setting;
use super::{DatapathError, KeptSize, Options};
use crate::sys::bpf::{self, MapInfo};

/// What `build.rs` found; empty in an agent built with `LB_EBPF_STUB=1`.
static EMBEDDED: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb-ebpf.o"));

/// `BPF_F_RDONLY_PROG` and `BPF_F_WRONLY_PROG` aside, flags that change how a map behaves: `BPF_F_NO_PREALLOC`,
/// `BPF_F_NO_COMMON_LRU`, `BPF_F_MMAPABLE`.
const FLAGS: u32 = 1 | 2 | 1 << 10;

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

    fn bytes(&self) -> Result<std::borrow::Cow<'static, [u8]>, DatapathError> {
        match self {
            ObjectSource::Embedded if EMBEDDED.is_empty() => Err(DatapathError::NoObject),
            ObjectSource::Embedded => Ok(EMBEDDED.into()),
            ObjectSource::File(path) => std::fs::read(path)
                .map(Into::into)
                .map_err(|source| DatapathError::Object { path: path.clone(), source }),
        }
    }
}

/// Loads the object: pinned maps are used again if they are what the object wants, missing ones are made and pinned,
/// and all programs pass the verifier. Also returns the maps that have another capacity than was asked for: what is in
/// them is worth more than their size, so they are used as they are.
///
/// # Errors
/// Nothing is attached; maps that were made stay pinned and are used by the next try.
pub(super) fn load(options: &Options, pins: &Pins) -> Result<(Ebpf, Vec<KeptSize>), DatapathError> {
    let bytes = options.object.bytes()?;
    let object = aya_obj::Object::parse(&bytes).map_err(|error| DatapathError::Parse(Box::new(error)))?;
    let mut kept = Vec::new();
    for name in names::PINNED_MAPS {
        let map = object.maps.get(*name).ok_or_else(|| DatapathError::Missing { what: "map", name })?;
        let wanted = MapInfo {
            map_type: map.map_type(),
            id: 0,
            key_size: map.key_size(),
            value_size: map.value_size(),
            max_entries: options.sizes.of(name).unwrap_or(map.max_entries()),
            flags: map.map_flags(),
        };
        kept.extend(compare(pins, name, wanted)?);
    }

    let mut loader = EbpfLoader::new();
    for name in names::PINNED_MAPS {
        loader.map_pin_path(name, pins.map(name));
        let pinned = kept.iter().find(|k: &&KeptSize| k.map == *name).map(|k| k.pinned);
        if let Some(entries) = pinned.or_else(|| options.sizes.of(name)) {
            loader.map_max_entries(name, entries);
        }
    }
    let mut ebpf = loader.load(&bytes).map_err(|error| DatapathError::Load(Box::new(error)))?;
    for name in names::PROGRAMS {
        let program =
            ebpf.program_mut(name).ok_or_else(|| DatapathError::Missing { what: "program", name })?;
        let loaded = match program {
            Program::SchedClassifier(program) => program.load(),
            Program::CgroupSockAddr(program) => program.load(),
            _ => return Err(DatapathError::Missing { what: "program of the right type", name }),
        };
        loaded.map_err(|source| DatapathError::Verifier { program: name, source: Box::new(source) })?;
    }
    Ok((ebpf, kept))
}

/// Refuses a pinned map that is not what the object wants: aya uses whatever has the name. One that differs in nothing
/// but a capacity that is the user's to choose is kept.
fn compare(pins: &Pins, name: &'static str, wanted: MapInfo) -> Result<Option<KeptSize>, DatapathError> {
    let path = pins.map(name);
    let at = |source| DatapathError::Pin { path: path.clone(), source };
    let pinned = match bpf::obj_get(&path) {
        Ok(fd) => bpf::map_info(fd).map_err(at)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(at(error)),
    };
    let kept = (setting(name).is_some() && pinned.max_entries != wanted.max_entries).then_some(KeptSize {
        map: name,
        pinned: pinned.max_entries,
        wanted: wanted.max_entries,
    });
    let wanted = kept.as_ref().map_or(wanted, |k| MapInfo { max_entries: k.pinned, ..wanted });
    match difference(pinned, wanted) {
        None => Ok(kept),
        Some(what) => Err(DatapathError::Mismatch { name, what }),
    }
}

/// The first difference that matters, in words; `None` = the same.
fn difference(pinned: MapInfo, wanted: MapInfo) -> Option<String> {
    [
        ("map type", pinned.map_type, wanted.map_type),
        ("key size", pinned.key_size, wanted.key_size),
        ("value size", pinned.value_size, wanted.value_size),
        ("flags", pinned.flags & FLAGS, wanted.flags & FLAGS),
        ("max entries", pinned.max_entries, wanted.max_entries),
    ]
    .into_iter()
    .find(|(_, pinned, wanted)| pinned != wanted)
    .map(|(what, pinned, wanted)| format!("{what} is {pinned}, this agent wants {wanted}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_of_another_shape_is_told_from_the_same_one() {
        let wanted = MapInfo { map_type: 1, id: 0, key_size: 8, value_size: 32, max_entries: 100, flags: 0 };
        // Ids and access flags don't matter.
        assert_eq!(difference(MapInfo { id: 9, flags: 1 << 7, ..wanted }, wanted), None);
        let found = difference(MapInfo { value_size: 40, ..wanted }, wanted);
        assert_eq!(found.as_deref(), Some("value size is 40, this agent wants 32"));
        assert!(difference(MapInfo { max_entries: 99, ..wanted }, wanted).is_some());
        assert!(difference(MapInfo { flags: 1, ..wanted }, wanted).is_some());
    }
}
