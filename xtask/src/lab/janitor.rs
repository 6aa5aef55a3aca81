//! Everything a cluster leaves in the system, in one place, so that it goes away however the program ends.

use std::fs;
use std::io::Read;
use std::os::fd::FromRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Mutex, MutexGuard, Once};
use std::time::{Duration, Instant};

#[derive(Default)]
struct Leftovers {
    pids: Vec<i32>,
    namespaces: Vec<String>,
    mounts: Vec<PathBuf>,
    cgroups: Vec<PathBuf>,
    folders: Vec<PathBuf>,
    commands: Vec<Command>,
}

static LEFTOVERS: Mutex<Option<Leftovers>> = Mutex::new(None);
static SIGNAL_PIPE: AtomicI32 = AtomicI32::new(-1);
static KEEP_FOLDERS: AtomicBool = AtomicBool::new(false);
static LEASHED: AtomicBool = AtomicBool::new(true);
static STOPPING: AtomicBool = AtomicBool::new(false);
/// How long a command that is under way may take until nothing new is made.
const SETTLE: Duration = Duration::from_millis(300);
/// A file of that name in a cluster's folder: left on purpose.
const KEPT: &str = "kept";

/// Notes something. While a signal is dealt with, this never returns: nothing new is to be made.
fn with(action: impl FnOnce(&mut Leftovers)) {
    while STOPPING.load(Ordering::SeqCst) {
        std::thread::park();
    }
    action(lock().get_or_insert_default());
}

fn lock() -> MutexGuard<'static, Option<Leftovers>> {
    LEFTOVERS.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Notes a process of ours.
pub(crate) fn process(pid: u32) {
    with(|left| left.pids.push(pid as i32));
}

/// Forgets a process that was waited for, before its number is used again.
pub(crate) fn ended(pid: u32) {
    with(|left| left.pids.retain(|known| *known != pid as i32));
}

/// Notes a process of ours that leads a process group, with all of the group.
pub(crate) fn group(leader: u32) {
    with(|left| left.pids.push(-(leader as i32))); // kill and waitpid take a group as a negative number
}

/// Forgets a group whose leader was waited for.
pub(crate) fn group_ended(leader: u32) {
    with(|left| left.pids.retain(|known| *known != -(leader as i32)));
}

/// Notes a network namespace that is about to be made.
pub(crate) fn namespace(name: &str) {
    with(|left| left.namespaces.push(name.into()));
}

/// Notes a mount point that is about to be used.
pub(crate) fn mount(at: &Path) {
    with(|left| left.mounts.push(at.into()));
}

/// Notes a cgroup that is about to be made; children are to be noted after their parents.
pub(crate) fn cgroup(at: &Path) {
    with(|left| left.cgroups.push(at.into()));
}

/// Notes a folder of files.
pub(crate) fn folder(at: &Path) {
    with(|left| left.folders.push(at.into()));
}

/// Notes a command that removes something else, to be run at the end.
pub(crate) fn command(last: Command) {
    with(|left| left.commands.push(last));
}

/// From now on folders (logs) stay.
pub(crate) fn keep_folders() {
    KEEP_FOLDERS.store(true, Ordering::SeqCst);
}

/// Forgets everything without removing it: the cluster outlives us, until [`sweep`] is told to take it too.
pub(crate) fn abandon() {
    if let Some(left) = lock().take() {
        left.folders.iter().for_each(|at| drop(fs::write(at.join(KEPT), "")));
    }
}

/// From now on processes outlive us, for a cluster that is to be kept.
pub(crate) fn unleash() {
    LEASHED.store(false, Ordering::SeqCst);
}

/// Whether processes are to end when we do.
pub(crate) fn leashed() -> bool {
    LEASHED.load(Ordering::SeqCst)
}

/// Removes everything noted so far. May be called again.
pub(crate) fn clean() {
    clean_locked(&mut lock());
}

/// The lock is held to the end, so that nobody leaves the program in the middle of it.
fn clean_locked(noted: &mut Option<Leftovers>) {
    let Some(left) = noted.take() else { return };
    for pid in &left.pids {
        // SAFETY: kill takes numbers; the process was started by us and not yet waited for, so the number is its own.
        unsafe { libc::kill(*pid, libc::SIGKILL) };
    }
    for pid in &left.pids {
        // SAFETY: waitpid with a null status pointer writes nothing.
        unsafe { libc::waitpid(*pid, std::ptr::null_mut(), 0) };
    }
    for name in left.namespaces.iter().rev() {
        Command::new("ip").args(["netns", "delete", name]).status().ok();
    }
    for at in &left.mounts {
        unmount(at);
    }
    for at in left.cgroups.iter().rev() {
        let patience = Instant::now() + Duration::from_secs(2);
        while at.exists() && fs::remove_dir(at).is_err() && Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    for mut last in left.commands {
        last.status().ok();
    }
    for at in &left.folders {
        if KEEP_FOLDERS.load(Ordering::SeqCst) {
            fs::write(at.join(KEPT), "").ok();
        } else {
            fs::remove_dir_all(at).ok();
        }
    }
}

fn unmount(at: &Path) {
    if let Ok(path) = std::ffi::CString::new(at.as_os_str().as_encoded_bytes()) {
        // SAFETY: the path is a string with an end, alive during the call.
        unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
    }
}

extern "C" fn on_signal(number: libc::c_int) {
    let byte = [number as u8];
    // SAFETY: write is async-signal-safe, the buffer is one byte long.
    unsafe { libc::write(SIGNAL_PIPE.load(Ordering::SeqCst), byte.as_ptr().cast(), 1) };
}

/// From now on SIGINT, SIGTERM and SIGHUP clean up before they end the program.
pub(crate) fn watch_signals() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let mut ends = [0; 2];
        // SAFETY: pipe2 writes two descriptors into an array of two.
        if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
            return;
        }
        SIGNAL_PIPE.store(ends[1], Ordering::SeqCst);
        // SAFETY: the descriptor was just made and is owned by nobody else.
        let mut reader = unsafe { fs::File::from_raw_fd(ends[0]) };
        std::thread::spawn(move || {
            let mut number = [0];
            if reader.read_exact(&mut number).is_ok() {
                eprintln!("\nsignal {}: tidying up", number[0]);
                STOPPING.store(true, Ordering::SeqCst);
                std::thread::sleep(SETTLE);
                let mut noted = lock();
                clean_locked(&mut noted);
                std::process::exit(128 + i32::from(number[0]));
            }
        });
        for number in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            // SAFETY: the handler only writes to a pipe.
            unsafe { libc::signal(number, on_signal as *const () as libc::sighandler_t) };
        }
    });
}

/// Removes what a killed earlier run left: processes, namespaces, cgroups, mounts and folders named
/// `<prefix>-<pid>-...` whose process is gone. What was left on purpose stays, unless `kept` says otherwise.
pub(crate) fn sweep(prefixes: &[&str], cgroup_root: &Path, kept: bool) {
    let temporary = std::env::temp_dir();
    let left_over = |name: &str| -> bool {
        let Some(prefix) = prefixes.iter().find(|prefix| name.starts_with(&format!("{prefix}-"))) else {
            return false;
        };
        let pid = name[prefix.len() + 1..].split('-').next().unwrap_or_default();
        let alive = pid.parse::<u32>().is_err() || Path::new("/proc").join(pid).exists();
        !alive && (kept || !temporary.join(format!("{prefix}-{pid}")).join(KEPT).exists())
    };
    let names = |folder: &Path| -> Vec<String> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| left_over(name))
            .collect()
    };
    for name in names(Path::new("/run/netns")) {
        eprintln!("    removing {name}, left by an earlier run");
        let pids = Command::new("ip")
            .args(["netns", "pids", &name])
            .output()
            .map(|done| done.stdout)
            .unwrap_or_default();
        for pid in String::from_utf8_lossy(&pids).lines().filter_map(|line| line.trim().parse().ok()) {
            // SAFETY: kill takes numbers; only a process of that earlier run can be in its namespace.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        Command::new("ip").args(["netns", "delete", &name]).status().ok();
    }
    std::thread::sleep(Duration::from_millis(if names(cgroup_root).is_empty() { 0 } else { 200 }));
    for name in names(cgroup_root) {
        for child in ["workloads", "agent", ""] {
            fs::remove_dir(cgroup_root.join(&name).join(child)).ok();
        }
    }
    for name in names(&temporary) {
        let folder = temporary.join(name);
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        for at in mounts
            .lines()
            .filter_map(|line| line.split(' ').nth(1))
            .filter(|at| Path::new(at).starts_with(&folder))
        {
            unmount(Path::new(at));
        }
        fs::remove_dir_all(&folder).ok();
    }
}

/// Cleans when it is dropped. As the last field of a struct it does so after the others are gone.
pub(crate) struct Guard;

impl Drop for Guard {
    fn drop(&mut self) {
        clean();
    }
}
