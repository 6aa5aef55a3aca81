//! A node of its own for a test: network and mount namespace, bpffs, child cgroup; all gone when the test is over,
//! whether it passed or not.

#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use lb_agent::datapath::{Datapath, ObjectSource, Options};
use lb_agent::sys::bpf::{self, Kind};

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// The test's node.
pub(crate) struct Lab {
    folder: tempfile::TempDir,
    cgroup: Option<PathBuf>,
}

/// The BPF object to test: `$LB_EBPF_OBJECT`, or the one of `cargo xtask build-ebpf`.
fn object() -> Option<PathBuf> {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/lb-ebpf.o");
    std::env::var_os("LB_EBPF_OBJECT").map(PathBuf::from).or(Some(built)).filter(|path| path.exists())
}

/// Runs `test` on a node of its own, in a thread of its own; prints why if it can't.
pub(crate) fn run(test: impl FnOnce(&Lab) + Send + 'static) {
    if !lb_agent::sys::is_root() {
        return eprintln!("SKIPPED: needs root");
    }
    if object().is_none() {
        return eprintln!("SKIPPED: no BPF object (cargo xtask build-ebpf, or LB_EBPF_OBJECT)");
    }
    let thread = std::thread::spawn(move || {
        unshare();
        let lab = Lab::new();
        test(&lab);
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Gives the calling thread namespaces of its own.
fn unshare() {
    // SAFETY: unshare() takes no pointers; it affects this thread alone.
    let rc = unsafe { libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS) };
    assert_eq!(rc, 0, "unshare: {}", std::io::Error::last_os_error());
    // SAFETY: the strings end with NUL; source, type and data may be null for a change of propagation.
    let rc = unsafe {
        libc::mount(
            std::ptr::null(),
            c"/".as_ptr(),
            std::ptr::null(),
            libc::MS_REC | libc::MS_PRIVATE,
            std::ptr::null(),
        )
    };
    assert_eq!(rc, 0, "mount: {}", std::io::Error::last_os_error());
}

impl Lab {
    fn new() -> Lab {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let cgroup = cgroup_root().map(|root| root.join(format!("lb-test-{}-{number}", std::process::id())));
        if let Some(cgroup) = &cgroup {
            std::fs::create_dir(cgroup).expect("a child cgroup");
        }
        Lab { folder, cgroup }
    }

    /// Options for this node.
    pub(crate) fn options(&self) -> Options {
        Options {
            bpffs: self.folder.path().join("bpf"),
            cgroup: self.cgroup.clone(),
            object: ObjectSource::File(object().expect("looked for by run()")),
            ..Options::new("lab")
        }
    }

    /// Whether there is a cgroup to attach to.
    pub(crate) fn has_cgroup(&self) -> bool {
        self.cgroup.is_some()
    }

    /// Where the links are pinned.
    pub(crate) fn links(&self) -> PathBuf {
        self.folder.path().join("bpf").join(lb_common::abi::names::PIN_FOLDER).join("links")
    }

    /// Names of the pinned links.
    pub(crate) fn link_names(&self) -> BTreeSet<String> {
        let entries = std::fs::read_dir(self.links()).expect("the folder of links");
        entries.map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned()).collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(error) = Datapath::cleanup(&Options { node_name: String::new(), ..self.options() }) {
            eprintln!("clean-up of the lab: {error}");
        }
        if let Some(cgroup) = &self.cgroup {
            let _ = std::fs::remove_dir(cgroup);
        }
        let bpffs = std::ffi::CString::new(self.options().bpffs.to_str().expect("UTF-8")).expect("no NUL");
        // SAFETY: the path ends with NUL and lives; not being mounted is an error without effect.
        unsafe { libc::umount2(bpffs.as_ptr(), libc::MNT_DETACH) };
    }
}

fn cgroup_root() -> Option<PathBuf> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let line = text.lines().find(|line| line.contains(" - cgroup2 "))?;
    line.split(' ').nth(4).map(PathBuf::from)
}

/// Runs a command in this thread's namespaces; panics unless it succeeds.
pub(crate) fn sh(command: &str) -> String {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().expect("a command")).args(words).output().expect(command);
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Numbers of a pinned link and of its program.
pub(crate) fn link_ids(pin: &Path) -> (u32, u32) {
    let info = bpf::link_info(bpf::obj_get(pin).expect("a pinned link")).expect("its description");
    (info.id, info.prog_id)
}

/// Waits until none of these is in the kernel: maps and programs are freed a grace period after their last user.
pub(crate) fn assert_gone(objects: &BTreeSet<(Kind, u32)>) {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let left: Vec<_> =
            objects.iter().filter(|(kind, id)| bpf::exists(*kind, *id).expect("asking")).collect();
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < end, "still in the kernel: {left:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
