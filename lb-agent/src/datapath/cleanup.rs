//! Removes everything that an agent left in the kernel.

use std::io;

use super::pins::{self, Pins};
use super::sets::{self, Set, Survey};
use super::{AttachError, CleanupReport, DatapathError, Options, attach, owner_of, probe, reserved};

/// See [`super::Datapath::cleanup`].
pub(super) fn cleanup(options: &Options) -> Result<CleanupReport, DatapathError> {
    let mut report = CleanupReport::default();
    if !probe::is_bpffs(&options.bpffs) {
        return Ok(report);
    }
    let at = |source| DatapathError::Sets { folder: options.bpffs.clone(), source };
    let Survey { live, sources, doomed } = sets::survey(&options.bpffs).map_err(at)?;
    let sets: Vec<Set> = sources.into_iter().chain(live).collect();
    let mut owners = Vec::new();
    for set in &sets {
        owners.push(owner_of(options, set)?.unwrap_or_default());
    }
    let reserved: Vec<_> = owners.iter().flat_map(|owner| owner.reserved.clone()).collect();
    for set in &sets {
        remove_links(&Pins::at(set.folder.clone()), &mut report);
    }
    if owners.iter().any(|owner| owner.filters) {
        remove_filters(&mut report);
    }
    if let Err(source) = reserved::remove(&reserved) {
        let interface = "ip_local_reserved_ports".to_owned();
        report.errors.push(AttachError { interface, what: "restoring", source });
    }
    for folder in sets.into_iter().map(|set| set.folder).chain(doomed) {
        remove_maps(&Pins::at(folder), &mut report);
    }
    Ok(report)
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
        if name == sets::LINKS {
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
    // The last set takes the folder along.
    if let Some(parent) = folder.parent() {
        let _ = std::fs::remove_dir(parent);
    }
}
