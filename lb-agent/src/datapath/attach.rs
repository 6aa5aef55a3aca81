//! TC programs on interfaces.
//!
//! TCX links (kernel 6.6) are pinned: they outlive the agent, and a new agent puts its programs into them in place.
//! Below 6.6 a clsact filter takes their part: it needs no pin, and is replaced in place by its priority and handle.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use aya::Ebpf;
use aya::programs::tc::{
    NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact,
};
use aya::programs::{ProgramError, SchedClassifier, TcAttachType};
use lb_common::abi::names;

use super::pins::{self, Pins};
use super::{AttachError, AttachReport, probe};
use crate::links::{Attachment, NodeNet};
use crate::sys::bpf;

/// Priority and handle of our clsact filters: how they are found again.
const PRIORITY: u16 = 0x1b1b;
const HANDLE: TcHandle = TcHandle::new(0, 0x1b);

/// Which way packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    In,
    Out,
}

impl Direction {
    const BOTH: [Direction; 2] = [Direction::In, Direction::Out];

    fn word(self) -> &'static str {
        match self {
            Direction::In => "in",
            Direction::Out => "out",
        }
    }

    fn tcx(self) -> u32 {
        match self {
            Direction::In => probe::TCX_INGRESS,
            Direction::Out => probe::TCX_EGRESS,
        }
    }

    fn clsact(self) -> TcAttachType {
        match self {
            Direction::In => TcAttachType::Ingress,
            Direction::Out => TcAttachType::Egress,
        }
    }

    fn program(self, l3: bool) -> &'static str {
        match (self, l3) {
            (Direction::In, false) => names::LB_TC_IN,
            (Direction::In, true) => names::LB_TC_IN_L3,
            (Direction::Out, false) => names::LB_TC_OUT,
            (Direction::Out, true) => names::LB_TC_OUT_L3,
        }
    }
}

/// ifindex and direction of a pin's name; `None` for other pins.
fn parse_pin(name: &str) -> Option<(u32, Direction)> {
    let (index, word) = name.strip_prefix("tc-")?.split_once('-')?;
    let direction = Direction::BOTH.into_iter().find(|d| d.word() == word)?;
    Some((index.parse().ok()?, direction))
}

/// Makes the TCX links equal to `set`: missing ones are made, those of another program get ours in place, others go.
///
/// Errors are gathered by interface; an interface that vanishes meanwhile is none.
pub(super) fn attach_links(ebpf: &Ebpf, pins: &Pins, set: &BTreeMap<u32, Attachment>) -> AttachReport {
    let mut report = AttachReport::default();
    let mut present = BTreeSet::new();
    let listed = pins::list(&pins.links()).unwrap_or_else(|source| {
        report.errors.push(AttachError { interface: String::new(), what: "listing links", source });
        Vec::new()
    });
    for name in listed {
        let Some((index, direction)) = parse_pin(&name) else { continue };
        let path = pins.links().join(&name);
        let result = match set.get(&index) {
            Some(attachment) => adopt(ebpf, &path, bpf::LINK_TCX, index, direction.program(attachment.l3)),
            None => drop_link(&path).map(|()| Adopted::Dropped),
        };
        match result {
            Ok(Adopted::Kept) => drop(present.insert((index, direction.word()))),
            Ok(Adopted::Replaced) => {
                report.replaced += 1;
                present.insert((index, direction.word()));
            }
            Ok(Adopted::Dropped) => report.detached += 1,
            Err(source) => {
                report.stale += 1;
                report.failed(index, "replacing the program of a link", source);
            }
        }
    }
    for (index, attachment) in set {
        for direction in Direction::BOTH {
            if present.contains(&(*index, direction.word())) {
                continue;
            }
            let path = pins.links().join(format!("tc-{index}-{}", direction.word()));
            match make(ebpf, &path, *index, direction, attachment.l3) {
                Ok(()) => report.attached += 1,
                // Gone since the table was read; its event is on the way.
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
                Err(source) => report.failed(*index, "attaching", source),
            }
        }
    }
    report
}

pub(super) enum Adopted {
    Kept,
    Replaced,
    Dropped,
}

/// Puts `program` into a pinned link of this type, unless the link is another interface's.
pub(super) fn adopt(
    ebpf: &Ebpf,
    path: &Path,
    kind: u32,
    index: u32,
    program: &'static str,
) -> io::Result<Adopted> {
    let link = bpf::obj_get(path)?;
    let info = bpf::link_info(&link)?;
    // 0 after the interface is gone, though a new one may have its number.
    if info.link_type != kind || info.ifindex() != index {
        return drop_link(path).map(|()| Adopted::Dropped);
    }
    let program = program_fd(ebpf, program)?;
    if bpf::prog_id(program)? == info.prog_id {
        return Ok(Adopted::Kept);
    }
    match bpf::link_update(&link, program) {
        Ok(()) => Ok(Adopted::Replaced),
        Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {
            drop_link(path).map(|()| Adopted::Dropped)
        }
        Err(error) => Err(error),
    }
}

fn make(ebpf: &Ebpf, path: &Path, index: u32, direction: Direction, l3: bool) -> io::Result<()> {
    let program = program_fd(ebpf, direction.program(l3))?;
    let link = bpf::link_create(program, index, direction.tcx())?;
    // Not pinned: closing the descriptor takes the link away again.
    bpf::obj_pin(&link, path)
}

/// Detaches a pinned link and removes the pin.
pub(super) fn drop_link(path: &Path) -> io::Result<()> {
    match bpf::obj_get(path) {
        Ok(link) => bpf::link_detach(&link)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    pins::remove(path)
}

/// Descriptor of a loaded program.
pub(super) fn program_fd<'a>(ebpf: &'a Ebpf, name: &str) -> io::Result<std::os::fd::BorrowedFd<'a>> {
    let program = ebpf.program(name).ok_or_else(|| io::Error::other(format!("no program {name}")))?;
    program.fd().map(AsFd::as_fd).map_err(io::Error::other)
}

/// As [`attach_links`], with clsact filters.
///
/// `before` is what this process did, by ifindex; empty at its start: then filters that an earlier agent left on
/// other interfaces are looked for and removed.
pub(super) fn attach_filters(
    ebpf: &mut Ebpf,
    net: &NodeNet,
    set: &BTreeMap<u32, Attachment>,
    before: &mut BTreeMap<u32, Attachment>,
) -> AttachReport {
    let mut report = AttachReport::default();
    let name = |index: &u32| net.links.get(index).map(|link| link.name.as_str());
    let gone: Vec<u32> = if before.is_empty() {
        net.links.keys().filter(|index| !set.contains_key(index)).copied().collect()
    } else {
        before.keys().filter(|index| !set.contains_key(index)).copied().collect()
    };
    for index in gone {
        // Filters go with their interface.
        let result = name(&index).map_or(Ok(()), drop_filters);
        match result {
            Ok(()) => report.detached += before.remove(&index).map_or(0, |_| 2),
            Err(source) => report.failed(index, "removing filters", source),
        }
    }
    for (index, attachment) in set {
        let Some(name) = name(index) else { continue };
        if before.get(index) == Some(attachment) {
            continue;
        }
        match Direction::BOTH.into_iter().try_for_each(|d| filter(ebpf, name, d, attachment.l3)) {
            Ok(()) => {
                report.attached += 2;
                before.insert(*index, *attachment);
            }
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
            Err(source) => report.failed(*index, "clsact filter", source),
        }
    }
    report
}

/// Puts a program behind our priority and handle, in place of the one that may be there.
fn filter(ebpf: &mut Ebpf, interface: &str, direction: Direction, l3: bool) -> io::Result<()> {
    match qdisc_add_clsact(interface) {
        Ok(()) => {}
        Err(error) => {
            let error = from_tc(error);
            if error.kind() != io::ErrorKind::AlreadyExists {
                return Err(error);
            }
        }
    }
    let name = direction.program(l3);
    let program = ebpf.program_mut(name).ok_or_else(|| io::Error::other(format!("no program {name}")))?;
    let program: &mut SchedClassifier = program.try_into().map_err(io::Error::other)?;
    let options = || NlOptions { priority: PRIORITY, handle: HANDLE, ..NlOptions::default() };
    let id =
        match program.attach_with_options(interface, direction.clsact(), TcAttachOptions::Netlink(options()))
        {
            Ok(id) => id,
            Err(first) => {
                let existing =
                    SchedClassifierLink::attached(interface, direction.clsact(), PRIORITY, HANDLE, None)?;
                program.attach_to_link(existing).map_err(|_| from_program(first))?
            }
        };
    let link = program.take_link(id).map_err(from_program)?;
    // The filter is to outlive the agent; dropping the link would remove it.
    std::mem::forget(link);
    Ok(())
}

/// Removes our filters from an interface; none there is fine.
pub(super) fn drop_filters(interface: &str) -> io::Result<()> {
    use aya::programs::Link as _;
    for direction in Direction::BOTH {
        let link = match SchedClassifierLink::attached(interface, direction.clsact(), PRIORITY, HANDLE, None)
        {
            Ok(link) => link,
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(()),
            Err(error) => return Err(error),
        };
        match link.detach().map_err(from_program) {
            // ENOENT: no such filter; EINVAL: no clsact qdisc.
            Err(error)
                if !matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL | libc::ENODEV)) =>
            {
                return Err(error);
            }
            _ => {}
        }
    }
    Ok(())
}

/// The errno inside aya's error, if there is one: its errors are transparent, so `source()` does not show it.
fn from_tc(error: TcError) -> io::Error {
    let code = match &error {
        TcError::NetlinkError(error) => error.raw_os_error(),
        TcError::IoError(error) => error.raw_os_error(),
        _ => None,
    };
    code.map_or_else(|| io::Error::other(error), io::Error::from_raw_os_error)
}

fn from_program(error: ProgramError) -> io::Error {
    match error {
        ProgramError::TcError(error) => from_tc(error),
        ProgramError::NetlinkError(error) => from_tc(error.into()),
        error => io::Error::other(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_pins() {
        assert_eq!(parse_pin("tc-17-out"), Some((17, Direction::Out)));
        assert_eq!(parse_pin("tc-17-up"), None);
        assert_eq!(parse_pin("tc-x-in"), None);
        assert_eq!(parse_pin("cg-lb_connect4"), None);
    }

    #[test]
    fn the_errno_is_found_below_wrappers() {
        let inner = io::Error::from_raw_os_error(libc::ENODEV);
        let wrapped = TcError::IoError(inner);
        assert_eq!(from_program(ProgramError::TcError(wrapped)).raw_os_error(), Some(libc::ENODEV));
    }
}
