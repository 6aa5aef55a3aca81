//! What a set of pins says of itself, in words that every version can read: `LB_MANIFEST`, one value of text.
//!
//! ```text
//! node n1
//! layout LB_CT4 2
//! ```
//!
//! Lines that are not understood are passed over. The map is an array of one value of 4096 bytes in every version.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use lb_common::abi::{layout, names};

use crate::sys::bpf::{self, RawMap};

/// Name of the map.
pub(super) const MANIFEST: &str = "LB_MANIFEST";
/// Bytes of its value.
const LEN: usize = 4096;

/// The words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Manifest {
    /// Name of the node; empty = not told.
    pub(super) node: String,
    /// Layout numbers by map.
    layouts: BTreeMap<String, u32>,
}

impl Manifest {
    /// Of the maps that this agent makes.
    pub(super) fn of_this_agent(node: &str) -> Self {
        let layouts = names::PINNED_MAPS.iter().map(|map| ((*map).to_owned(), layout::layout(map))).collect();
        Manifest { node: node.to_owned(), layouts }
    }

    /// Of a set of version 1 by an agent that wrote none.
    fn of_the_first_version() -> Self {
        let layouts = names::PINNED_MAPS.iter().map(|map| ((*map).to_owned(), 1)).collect();
        Manifest { node: String::new(), layouts }
    }

    /// Layout number of a map; 0, which no map has, if it is not told.
    pub(super) fn layout(&self, map: &str) -> u32 {
        self.layouts.get(map).copied().unwrap_or(0)
    }

    fn text(&self) -> String {
        let layouts = self.layouts.iter().map(|(map, number)| format!("layout {map} {number}\n"));
        format!("node {}\n", self.node) + &layouts.collect::<String>()
    }

    fn parse(text: &str) -> Self {
        let mut manifest = Manifest::default();
        for line in text.lines() {
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["node", node] => node.clone_into(&mut manifest.node),
                ["layout", map, number] => {
                    if let Ok(number) = number.parse() {
                        manifest.layouts.insert(map.to_owned(), number);
                    }
                }
                _ => {}
            }
        }
        manifest
    }

    /// Reads the manifest of the set in `folder`, whose name says `version`.
    ///
    /// # Errors
    /// As the kernel says.
    pub(super) fn load(folder: &Path, version: u32) -> io::Result<Self> {
        let map = match RawMap::open(&folder.join(MANIFEST)) {
            Ok(map) => map,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(if version == 1 { Self::of_the_first_version() } else { Self::default() });
            }
            Err(error) => return Err(error),
        };
        let mut value = vec![0; map.value_len()];
        map.lookup(&0u32.to_ne_bytes(), &mut value)?;
        let text = value.split(|byte| *byte == 0).next().unwrap_or_default();
        Ok(Self::parse(&String::from_utf8_lossy(text)))
    }

    /// Writes it, and pins the map if there is none.
    ///
    /// # Errors
    /// As the kernel says.
    pub(super) fn store(&self, folder: &Path) -> io::Result<()> {
        let path = folder.join(MANIFEST);
        let map = match RawMap::open(&path) {
            Ok(map) => map,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let fd = bpf::map_create(MANIFEST, bpf::ARRAY, 4, LEN as u32, 1)?;
                bpf::obj_pin(&fd, &path)?;
                RawMap::new(fd)?
            }
            Err(error) => return Err(error),
        };
        let mut value = self.text().into_bytes();
        value.resize(map.value_len(), 0);
        map.update(&0u32.to_ne_bytes(), &value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        let manifest = Manifest::of_this_agent("node-1.example");
        assert!(manifest.text().len() < LEN, "{}", manifest.text().len());
        assert_eq!(Manifest::parse(&manifest.text()), manifest);
        assert_eq!(manifest.layout("LB_GEN4"), layout::layout("LB_GEN4"));
        assert_eq!(manifest.layout("LB_LATER"), 0);
    }

    #[test]
    fn words_of_a_later_version_are_passed_over() {
        let parsed =
            Manifest::parse("colour blue\nnode n1\nlayout LB_CT4 7 packed\nlayout LB_CT6 7\nlayout X y\n");
        assert_eq!((parsed.node.as_str(), parsed.layout("LB_CT4"), parsed.layout("LB_CT6")), ("n1", 0, 7));
    }
}
