//! The XDP program on interfaces: pinned links, native mode or none.
//!
//! What the kernel refuses is no failure: TC does the work there.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use aya::Ebpf;
use lb_common::abi::names;

use super::attach::{Adopted, adopt, drop_link, program_fd};
use super::pins::{self, Pins};
use super::{AttachError, AttachReport};
use crate::links::Attachment;
use crate::sys::bpf;

/// ifindex of a pin's name; `None` for other pins.
fn parse_pin(name: &str) -> Option<u32> {
    name.strip_prefix("xdp-")?.parse().ok()
}

/// Makes the XDP links equal to those of `set`: missing ones are made, those of another program get ours in place, others
/// go.
pub(super) fn attach(ebpf: &Ebpf, pins: &Pins, set: &BTreeMap<u32, Attachment>) -> AttachReport {
    let mut report = AttachReport::default();
    let wanted: BTreeSet<u32> = set.iter().filter(|(_, a)| a.xdp).map(|(index, _)| *index).collect();
    let mut present = BTreeSet::new();
    let listed = pins::list(&pins.links()).unwrap_or_else(|source| {
        report.errors.push(AttachError { interface: String::new(), what: "listing links", source });
        Vec::new()
    });
    for name in listed {
        let Some(index) = parse_pin(&name) else { continue };
        let path = pins.links().join(&name);
        let result = if wanted.contains(&index) {
            adopt(ebpf, &path, bpf::LINK_XDP, index, names::LB_XDP)
        } else {
            drop_link(&path).map(|()| Adopted::Dropped)
        };
        match result {
            Ok(Adopted::Kept) => drop(present.insert(index)),
            Ok(Adopted::Replaced) => {
                report.replaced += 1;
                present.insert(index);
            }
            Ok(Adopted::Dropped) => report.detached += 1,
            Err(source) => {
                report.stale += 1;
                report.failed(index, "replacing the XDP program of a link", source);
            }
        }
    }
    for index in &wanted {
        if !present.contains(index) {
            match make(ebpf, &pins.links().join(format!("xdp-{index}")), *index) {
                Ok(()) => report.attached += 1,
                // Gone since the table was read; its event is on the way.
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => continue,
                Err(error) => {
                    report.refused.push((*index, reason(&error)));
                    continue;
                }
            }
        }
        report.xdp.push(*index);
    }
    report
}

fn make(ebpf: &Ebpf, path: &Path, index: u32) -> io::Result<()> {
    let link = bpf::link_create_xdp(program_fd(ebpf, names::LB_XDP)?, index)?;
    // Not pinned: closing the descriptor takes the link away again.
    bpf::obj_pin(&link, path)
}

/// The kernel's refusal in words.
fn reason(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EBUSY | libc::EEXIST) => {
            "another XDP program is on it (see `bpftool net`); take that one off, or this one off --xdp"
                .to_owned()
        }
        Some(libc::EOPNOTSUPP) => "its driver has no native XDP".to_owned(),
        _ => format!("the driver refuses native XDP: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_of_xdp_links() {
        assert_eq!(parse_pin("xdp-7"), Some(7));
        assert_eq!([parse_pin("tc-7-in"), parse_pin("xdp-"), parse_pin("xdp-x")], [None; 3]);
    }

    #[test]
    fn a_refusal_says_what_to_do() {
        assert!(reason(&io::Error::from_raw_os_error(libc::EBUSY)).contains("another XDP program"));
        assert!(reason(&io::Error::from_raw_os_error(libc::EOPNOTSUPP)).contains("no native XDP"));
        assert!(reason(&io::Error::from_raw_os_error(libc::ERANGE)).contains("refuses"));
    }
}
