//! What is pinned where, and whose it is.
//!
//! ```text
//! <bpffs>/lb/v1/LB_*             maps, by name
//! <bpffs>/lb/v1/LB_OWNER         whose pins these are, and what to undo at clean-up
//! <bpffs>/lb/v1/LB_MANIFEST      name of the node and layouts of the maps, as text
//! <bpffs>/lb/v1/links/tc-2-in    TCX links, by ifindex and direction
//! <bpffs>/lb/v1/links/cg-NAME    cgroup links, by program
//! ```
//!
//! While tables are migrated there is a second set beside it: see [`super::sets`].

use std::io;
use std::path::{Path, PathBuf};

use super::{DatapathError, sets};
use crate::sys::bpf::{self, RawMap};

/// Name of the map that says whose pins these are.
const OWNER: &str = "LB_OWNER";
/// Bytes of its value.
const OWNER_LEN: usize = 64;
/// Port ranges that fit.
const OWNER_RANGES: usize = 10;

/// The pin folder and its parts.
#[derive(Clone, Debug)]
pub(super) struct Pins {
    folder: PathBuf,
}

impl Pins {
    /// The set in a folder.
    pub(super) fn at(folder: PathBuf) -> Self {
        Pins { folder }
    }

    /// The set that serves below a bpffs mount point, or the folder where it would be.
    pub(super) fn live(bpffs: &Path) -> Self {
        Pins { folder: sets::live_folder(bpffs) }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn links(&self) -> PathBuf {
        self.folder.join(sets::LINKS)
    }

    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Makes the folders.
    pub(super) fn create(&self) -> Result<(), DatapathError> {
        let links = self.links();
        std::fs::create_dir_all(&links).map_err(|source| DatapathError::Pin { path: links, source })
    }
}

/// The names in a folder; none if there is no such folder.
pub(super) fn list(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        found.push(entry?.file_name().to_string_lossy().into_owned());
    }
    found.sort();
    Ok(found)
}

/// Removes a pin; one that is not there is fine.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Value of `LB_OWNER`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Owner {
    /// Cookie of the network namespace.
    pub(super) cookie: u64,
    /// Hash of the node's name.
    pub(super) node: u64,
    /// Programs hang on clsact filters, which have no pins.
    pub(super) filters: bool,
    /// What we added to `ip_local_reserved_ports`.
    pub(super) reserved: Vec<(u16, u16)>,
}

impl Owner {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(OWNER_LEN);
        bytes.extend(self.cookie.to_ne_bytes());
        bytes.extend(self.node.to_ne_bytes());
        bytes.extend(u32::from(self.filters).to_ne_bytes());
        bytes.extend((self.reserved.len().min(OWNER_RANGES) as u32).to_ne_bytes());
        for (min, max) in self.reserved.iter().take(OWNER_RANGES) {
            bytes.extend(min.to_ne_bytes());
            bytes.extend(max.to_ne_bytes());
        }
        bytes.resize(OWNER_LEN, 0);
        bytes
    }

    fn decode(bytes: &[u8; OWNER_LEN]) -> Self {
        let u64_at = |i: usize| u64::from_ne_bytes(std::array::from_fn(|j| bytes[i + j]));
        let u32_at = |i: usize| u32::from_ne_bytes(std::array::from_fn(|j| bytes[i + j]));
        let u16_at = |i: usize| u16::from_ne_bytes([bytes[i], bytes[i + 1]]);
        let count = (u32_at(20) as usize).min(OWNER_RANGES);
        Owner {
            cookie: u64_at(0),
            node: u64_at(8),
            filters: u32_at(16) != 0,
            reserved: (0..count).map(|i| (u16_at(24 + 4 * i), u16_at(26 + 4 * i))).collect(),
        }
    }

    /// Reads it; `None` if nothing was pinned yet.
    pub(super) fn load(pins: &Pins) -> Result<Option<Self>, DatapathError> {
        let path = pins.map(OWNER);
        let at = |source| DatapathError::Pin { path: path.clone(), source };
        let map = match RawMap::open(&path) {
            Ok(map) => map,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(at(error)),
        };
        let mut value = [0; OWNER_LEN];
        map.lookup(&0u32.to_ne_bytes(), &mut value).map_err(at)?;
        let owner = Owner::decode(&value);
        // All zero: the agent that made the map did not live to write it.
        Ok((owner.cookie != 0).then_some(owner))
    }

    /// Writes it, and pins the map if there is none.
    pub(super) fn store(&self, pins: &Pins) -> Result<(), DatapathError> {
        let path = pins.map(OWNER);
        let at = |source| DatapathError::Pin { path: path.clone(), source };
        let map = match RawMap::open(&path) {
            Ok(map) => map,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let fd = bpf::map_create(OWNER, bpf::ARRAY, 4, OWNER_LEN as u32, 1).map_err(at)?;
                bpf::obj_pin(&fd, &path).map_err(at)?;
                RawMap::new(fd).map_err(at)?
            }
            Err(error) => return Err(at(error)),
        };
        map.update(&0u32.to_ne_bytes(), &self.encode()).map_err(at)
    }
}

/// FNV-1a of a node's name: the same in every build.
pub(super) fn node_hash(name: &str) -> u64 {
    name.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_there_and_back() {
        let owner = Owner {
            cookie: 7,
            node: node_hash("n1"),
            filters: true,
            reserved: vec![(30000, 31000), (31002, 32767)],
        };
        let bytes: [u8; OWNER_LEN] = owner.encode().try_into().expect("length");
        assert_eq!(Owner::decode(&bytes), owner);
        assert_ne!(node_hash("n1"), node_hash("n2"));
        // The published test vector of FNV-1a 64.
        assert_eq!(node_hash("foobar"), 0x8594_4171_f739_67e8);
    }
}
