//! The socket hooks: one pinned link per program at the root of cgroup v2.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use lb_common::abi::names;

use super::attach::{drop_link, program_fd};
use super::pins::{self, Pins};
use super::{AttachError, AttachReport, DatapathError};
use crate::sys::bpf;

/// Programs with their attach types (`BPF_CGROUP_*`).
const HOOKS: &[(&str, u32)] = &[
    (names::LB_CONNECT4, 10),
    (names::LB_CONNECT6, 11),
    (names::LB_SENDMSG4, 14),
    (names::LB_SENDMSG6, 15),
    (names::LB_RECVMSG4, 19),
    (names::LB_RECVMSG6, 20),
    (names::LB_GETPEER4, 29),
    (names::LB_GETPEER6, 30),
];

/// The folder to attach to: the one given, else the root of cgroup v2.
///
/// Looked for in this process's mounts, where a container has the node's `/sys/fs/cgroup` mounted somewhere, then (in a
/// container with `hostPID` and `CAP_SYS_PTRACE`) in those of process 1. The root of a cgroup *namespace* would cover
/// the agent's own pod and nothing else: it is refused unless it was named. Of a hybrid host's `/sys/fs/cgroup`, its
/// folder `unified` is meant.
///
/// # Errors
/// [`DatapathError::Cgroup`] with what to do.
pub(super) fn root(given: Option<&Path>) -> Result<PathBuf, DatapathError> {
    if let Some(folder) = given {
        return named(folder);
    }
    let places = [("/proc/self/mountinfo", "/"), ("/proc/1/mountinfo", "/proc/1/root")];
    let texts = places.map(|(file, prefix)| (std::fs::read_to_string(file).unwrap_or_default(), prefix));
    search(&texts, is_root).map_err(DatapathError::Cgroup)
}

/// The first mount of cgroup v2 that is the hierarchy's root, in mountinfo texts with the folder their paths are in.
fn search(places: &[(String, &str)], is_root: impl Fn(&Path) -> bool) -> Result<PathBuf, String> {
    let mut found = Vec::new();
    for (text, prefix) in places {
        for mount in cgroup2_mounts(text) {
            let folder = Path::new(prefix).join(mount.trim_start_matches('/'));
            if is_root(&folder) {
                return Ok(folder);
            }
            found.push(folder.display().to_string());
        }
    }
    found.dedup();
    Err(if found.is_empty() {
        "no cgroup v2 file system is mounted".to_owned()
    } else {
        format!("{} is not the node's cgroup root but that of a cgroup namespace", found.join(", "))
    })
}

/// Whether a folder is the root of the whole hierarchy: only that has no `cgroup.events`.
fn is_root(folder: &Path) -> bool {
    folder.join("cgroup.controllers").exists() && !folder.join("cgroup.events").exists()
}

/// A folder that the user named, or its `unified` on a hybrid host.
fn named(folder: &Path) -> Result<PathBuf, DatapathError> {
    let is_v2 = |folder: &Path| Ok(crate::sys::fs_type(folder)? == libc::CGROUP2_SUPER_MAGIC);
    let at = |error: io::Error| DatapathError::Cgroup(format!("{}: {error}", folder.display()));
    let unified = folder.join("unified");
    if is_v2(folder).map_err(at)? {
        Ok(folder.to_owned())
    } else if is_v2(&unified).unwrap_or(false) {
        Ok(unified)
    } else {
        Err(DatapathError::Cgroup(format!("{} is not on a cgroup v2 file system", folder.display())))
    }
}

/// Mount points of cgroup v2 in a mountinfo text.
fn cgroup2_mounts(text: &str) -> Vec<&str> {
    text.lines()
        .filter_map(|line| {
            let (mount, rest) = line.split_once(" - ")?;
            (rest.split(' ').next()? == "cgroup2").then(|| mount.split(' ').nth(4))?
        })
        .collect()
}

fn pin_of(pins: &Pins, program: &str) -> PathBuf {
    pins.links().join(format!("cg-{program}"))
}

/// Puts every socket program on `folder`; links that are there get the new program in place.
///
/// # Errors
/// In the report, by program.
pub(super) fn attach(ebpf: &Ebpf, pins: &Pins, folder: &Path) -> AttachReport {
    let mut report = AttachReport::default();
    let cgroup = match File::open(folder).and_then(|file| Ok((file.metadata()?.ino(), file))) {
        Ok(cgroup) => cgroup,
        Err(source) => {
            report.errors.push(AttachError {
                interface: folder.display().to_string(),
                what: "opening the cgroup",
                source,
            });
            return report;
        }
    };
    for (program, attach_type) in HOOKS {
        if let Err(source) = one(ebpf, pins, &cgroup, program, *attach_type, &mut report) {
            report.errors.push(AttachError {
                interface: (*program).to_owned(),
                what: "attaching to the cgroup",
                source,
            });
        }
    }
    report
}

fn one(
    ebpf: &Ebpf,
    pins: &Pins,
    (inode, cgroup): &(u64, File),
    name: &str,
    attach_type: u32,
    report: &mut AttachReport,
) -> io::Result<()> {
    let path = pin_of(pins, name);
    let program = program_fd(ebpf, name)?;
    match bpf::obj_get(&path) {
        Ok(link) => {
            let info = bpf::link_info(&link)?;
            // A cgroup's number is its inode; the link of a removed cgroup has 0.
            if info.link_type == bpf::LINK_CGROUP && info.cgroup_id() == *inode {
                if bpf::prog_id(program)? != info.prog_id {
                    bpf::link_update(&link, program)?;
                    report.replaced += 1;
                }
                return Ok(());
            }
            drop_link(&path)?;
            report.detached += 1;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let link = bpf::link_create(program, cgroup.as_raw_fd() as u32, attach_type)?;
    bpf::obj_pin(&link, &path)?;
    report.attached += 1;
    Ok(())
}

/// Takes all socket programs off; sockets that were translated stay connected to their backends.
pub(super) fn detach(pins: &Pins) -> AttachReport {
    let mut report = AttachReport::default();
    let listed = pins::list(&pins.links()).unwrap_or_default();
    for name in listed.iter().filter(|name| name.starts_with("cg-")) {
        match drop_link(&pins.links().join(name)) {
            Ok(()) => report.detached += 1,
            Err(source) => {
                report.errors.push(AttachError {
                    interface: name.clone(),
                    what: "detaching from the cgroup",
                    source,
                });
            }
        }
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_a_hybrid_host() {
        let text = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw,nsdelegate
32 30 0:28 / /sys/fs/cgroup/systemd rw shared:11 - cgroup cgroup rw,xattr,name=systemd";
        assert_eq!(cgroup2_mounts(text), ["/sys/fs/cgroup/unified"]);
        assert!(cgroup2_mounts("").is_empty());
    }

    #[test]
    fn a_container_finds_the_nodes_root_and_refuses_its_own() {
        let own = "40 30 0:27 / /sys/fs/cgroup ro - cgroup2 cgroup rw";
        let mounted = "41 30 0:26 / /host/cgroup ro - tmpfs tmpfs rw\n\
                       42 41 0:27 / /host/cgroup/unified ro - cgroup2 cgroup2 rw";
        let process_1 = "31 30 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw";
        let with = |own: String, one: &str, root: &'static str| {
            search(&[(own, "/"), (one.to_owned(), "/proc/1/root")], |folder| folder == Path::new(root))
        };
        let both = format!("{own}\n{mounted}");
        assert_eq!(with(both.clone(), "", "/host/cgroup/unified"), Ok("/host/cgroup/unified".into()));
        let by_one = with(own.to_owned(), process_1, "/proc/1/root/sys/fs/cgroup");
        assert_eq!(by_one, Ok("/proc/1/root/sys/fs/cgroup".into()));
        let error = with(both, "", "/nowhere").unwrap_err();
        assert!(error.contains("/sys/fs/cgroup, /host/cgroup/unified is not the node's"), "{error}");
        assert!(with(String::new(), "", "/").unwrap_err().contains("no cgroup v2"));
    }

    #[test]
    fn a_folder_that_is_no_cgroup_is_refused_and_a_hybrid_hosts_is_understood() {
        assert!(matches!(root(Some(Path::new("/proc"))), Err(DatapathError::Cgroup(_))));
        let folder = Path::new("/sys/fs/cgroup");
        if folder.join("unified/cgroup.controllers").exists() {
            assert_eq!(root(Some(folder)).unwrap(), folder.join("unified"));
        }
    }
}
