//! The API server's own endpoints, kept on disk for the next start.
//!
//! On a node without any other service proxy the in-cluster address leads nowhere until this agent has programmed it;
//! the endpoints of `default/kubernetes` as they were last lead on.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::model::{Key, Object, Protocol, SliceSpec};

/// Name of the file in the state folder.
const FILE: &str = "apiserver-endpoints.json";

/// The file.
#[derive(Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
struct Memory {
    /// `address:port` of every ready endpoint of the Service `default/kubernetes`.
    endpoints: Vec<SocketAddr>,
}

/// The endpoints of an earlier run; empty = there are none, or the file cannot be read.
#[must_use]
pub(crate) fn read(folder: &Path) -> Vec<SocketAddr> {
    let text = std::fs::read_to_string(folder.join(FILE)).unwrap_or_default();
    serde_json::from_str::<Memory>(&text).map(|m| m.endpoints).unwrap_or_default()
}

/// Writes the file whenever the endpoints change.
#[derive(Debug)]
pub(crate) struct Remembered {
    /// `None` = nothing is to be kept.
    folder: Option<PathBuf>,
    slices: BTreeMap<Key, Arc<SliceSpec>>,
    written: Vec<SocketAddr>,
    complained: bool,
}

impl Remembered {
    pub(crate) fn new(folder: Option<PathBuf>) -> Self {
        let written = folder.as_deref().map(read).unwrap_or_default();
        Self { folder, slices: BTreeMap::new(), written, complained: false }
    }

    /// Looks at changes on their way to the store.
    pub(crate) fn see(&mut self, changes: &[(Key, Option<Object>)]) {
        let mut touched = false;
        for (key, object) in changes {
            match object {
                Some(Object::Slice(slice))
                    if slice.name.namespace == "default" && slice.service == "kubernetes" =>
                {
                    touched = true;
                    self.slices.insert(key.clone(), Arc::clone(slice));
                }
                _ => touched |= self.slices.remove(key).is_some(),
            }
        }
        let now = self.endpoints();
        // No endpoint at all is a moment in an API server's restart: what was known is the better guess.
        if touched && !now.is_empty() && now != self.written {
            self.write(now);
        }
    }

    fn endpoints(&self) -> Vec<SocketAddr> {
        let mut found: Vec<SocketAddr> = self.slices.values().flat_map(|slice| of_slice(slice)).collect();
        found.sort();
        found.dedup();
        found
    }

    fn write(&mut self, now: Vec<SocketAddr>) {
        let Some(folder) = &self.folder else { return };
        match write(folder, &Memory { endpoints: now.clone() }) {
            Ok(()) => {
                info!(endpoints = ?now, "Keeping the API server's endpoints for the next start");
                self.written = now;
            }
            Err(error) if !self.complained => {
                self.complained = true;
                warn!(folder = %folder.display(), %error,
                    "The API server's endpoints cannot be kept; a start without any other way to it will have to \
                     wait for the in-cluster address. Name a writable folder with --state-dir");
            }
            Err(_again) => {}
        }
    }
}

fn of_slice(slice: &SliceSpec) -> Vec<SocketAddr> {
    let tcp = |name: &str| {
        slice.ports.iter().find(|p| p.protocol == Protocol::Tcp && (name.is_empty() || p.name == name))
    };
    let Some(port) = tcp("https").or_else(|| tcp("")) else { return Vec::new() };
    slice.endpoints.iter().filter(|e| e.ready).map(|e| SocketAddr::new(e.address, port.port)).collect()
}

/// Replaces the file at once: a crash leaves the old one or the new one.
fn write(folder: &Path, memory: &Memory) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let fresh = folder.join(format!(".{FILE}.new"));
    let mut file = std::fs::File::create(&fresh)?;
    file.write_all(serde_json::to_string(memory)?.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&fresh, folder.join(FILE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{EndpointSpec, Family, ObjectName, SlicePort};

    fn slice(namespace: &str, service: &str, address: &str, ready: bool) -> (Key, Option<Object>) {
        let name = ObjectName::new(namespace, service);
        let endpoint = EndpointSpec {
            address: address.parse().unwrap(),
            node: None,
            ready,
            serving: ready,
            terminating: false,
            weight: 1,
            zones: Vec::new(),
            nodes: Vec::new(),
        };
        let spec = SliceSpec {
            name: name.clone(),
            service: service.to_owned(),
            family: Family::V4,
            ports: vec![SlicePort { name: "https".into(), protocol: Protocol::Tcp, port: 6443 }],
            endpoints: vec![endpoint],
            triggered: crate::model::Trigger::default(),
        };
        (Key::Slice(name), Some(Object::Slice(Arc::new(spec))))
    }

    #[test]
    fn endpoints_of_the_api_server_are_kept_and_no_others() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let mut memory = Remembered::new(Some(path.clone()));
        memory
            .see(&[slice("default", "web", "10.0.0.1", true), slice("shop", "kubernetes", "10.0.0.2", true)]);
        assert!(read(&path).is_empty());
        memory.see(&[slice("default", "kubernetes", "192.0.2.1", true)]);
        assert_eq!(read(&path), ["192.0.2.1:6443".parse().unwrap()]);
        memory.see(&[slice("default", "kubernetes", "192.0.2.2", true)]);
        assert_eq!(read(&path), ["192.0.2.2:6443".parse().unwrap()]);
    }

    #[test]
    fn the_last_known_endpoints_stay_when_there_are_none() {
        let folder = tempfile::tempdir().unwrap();
        let mut memory = Remembered::new(Some(folder.path().to_owned()));
        memory.see(&[slice("default", "kubernetes", "192.0.2.1", true)]);
        memory.see(&[slice("default", "kubernetes", "192.0.2.1", false)]);
        let (key, _) = slice("default", "kubernetes", "192.0.2.1", true);
        memory.see(&[(key, None)]);
        assert_eq!(read(folder.path()).len(), 1);
    }

    #[test]
    fn a_folder_that_cannot_be_written_or_a_broken_file_stops_nothing() {
        let mut memory = Remembered::new(Some(PathBuf::from("/proc/no/such")));
        memory.see(&[slice("default", "kubernetes", "192.0.2.1", true)]);
        assert!(memory.complained);
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE), "{ not JSON").unwrap();
        assert!(read(folder.path()).is_empty());
    }
}
