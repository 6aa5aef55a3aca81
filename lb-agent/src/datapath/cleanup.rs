//! Removes everything that an agent left in the kernel.

use std::io;

use super::pins::{self, Pins};
use super::{AttachError, CleanupReport, DatapathError, Options, attach, owner_of, probe, reserved};

/// See [`super::Datapath::cleanup`].
pub(super) fn cleanup(options: &Options) -> Result<CleanupReport, DatapathError> {
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
        let interface = "ip_local_reserved_ports".to_owned();
        report.errors.push(AttachError { interface, what: "restoring", source });
    }
    remove_maps(&pins, &mut report);
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
