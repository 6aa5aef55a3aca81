//! Child processes and progress lines.

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::lab::janitor;

/// Variables of the calling cargo that would change what a nested build does.
const INHERITED: [&str; 8] = [
    "CARGO",
    "RUSTC",
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTUP_TOOLCHAIN",
    "RUSTFLAGS",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_TARGET_DIR",
];

/// Beginnings of the names by which cargo describes a package to the program it runs.
const DESCRIPTION: [&str; 3] = ["CARGO_PKG_", "CARGO_BIN_", "CARGO_MANIFEST_"];

/// The cargo that runs us, or the one on PATH.
pub(crate) fn cargo_program() -> std::ffi::OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// A command without the build variables of the calling cargo.
pub(crate) fn clean(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for name in INHERITED {
        command.env_remove(name);
    }
    // cargo's own description of the xtask package (CARGO_PKG_NAME, CARGO_MANIFEST_DIR, ...) is not for its children
    // either: build scripts that look at such a variable would run again, and all that depends on them be built again
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|n| DESCRIPTION.iter().any(|start| n.starts_with(start))) {
            command.env_remove(name);
        }
    }
    command
}

/// Runs a command with our own output streams.
///
/// # Errors
/// When it can't be started or ends with another status than 0.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("starting {}", shown(command)))?;
    if !status.success() {
        bail!("`{}` ended with {status}", shown(command));
    }
    Ok(())
}

/// As [`run`], for at most so long: then the command and all that it started are killed. Returns whether it ended by
/// itself. Signals end it too if the janitor watches them.
///
/// # Errors
/// As [`run`].
pub(crate) fn run_for(command: &mut Command, limit: Duration) -> Result<bool> {
    // a group of its own: what the command started ends with it, and nothing else
    let child = command.process_group(0).spawn().with_context(|| format!("starting {}", shown(command)))?;
    janitor::group(child.id());
    let mut group = Group(child);
    let begin = Instant::now();
    while begin.elapsed() < limit {
        if let Some(status) = group.0.try_wait()? {
            if !status.success() {
                bail!("`{}` ended with {status}", shown(command));
            }
            return Ok(true);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(false)
}

/// A child that leads a process group; the group is killed when this is dropped before the child has ended.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            // SAFETY: kill takes numbers; the child was not waited for, so its number is its own and its group's.
            unsafe { libc::kill(-(self.0.id() as i32), libc::SIGKILL) };
            self.0.wait().ok();
        }
        janitor::group_ended(self.0.id());
    }
}

/// Runs a command and returns what it wrote to standard output.
///
/// # Errors
/// When it can't be started or ends with another status than 0; its standard error is in the message.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let done =
        command.stdin(Stdio::null()).output().with_context(|| format!("starting {}", shown(command)))?;
    if !done.status.success() {
        bail!(
            "`{}` ended with {}: {}",
            shown(command),
            done.status,
            String::from_utf8_lossy(&done.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

/// The command as one would type it.
pub(crate) fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// Adds the folders of system programs (nft, tc, bpftool) to PATH, which `su` without `-` leaves out.
///
/// To be called before any thread is started.
pub(crate) fn reach_system_programs() {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders =
        std::env::split_paths(&path).chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(Into::into));
    if let Ok(path) = std::env::join_paths(folders) {
        // SAFETY: no other thread exists yet, so nobody reads the environment meanwhile.
        unsafe { std::env::set_var("PATH", path) };
    }
}

/// Whether a program of that name is on PATH.
pub(crate) fn on_path(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(name).is_file())
}

/// Whether we are root: the kernel's part and the installation of packages need it.
pub(crate) fn is_root() -> bool {
    // SAFETY: geteuid takes nothing and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Says what begins, does it, says how long it took.
///
/// # Errors
/// Those of `action`, with the step's name in front.
pub(crate) fn step<T>(what: &str, action: impl FnOnce() -> Result<T>) -> Result<T> {
    eprintln!("==> {what}");
    let begin = Instant::now();
    let value = action().with_context(|| what.to_owned())?;
    eprintln!("    done in {:.1} s", begin.elapsed().as_secs_f64());
    std::io::stderr().flush().ok();
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(line: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", line]);
        command
    }

    #[test]
    fn a_command_that_takes_too_long_is_killed_with_its_children() {
        let pid = std::env::temp_dir().join(format!("lb-run-for-{}", std::process::id()));
        let line = format!("sleep 100 & echo $! >{}; wait", pid.display());
        assert!(!run_for(&mut shell(&line), Duration::from_secs(1)).unwrap());
        let child = std::fs::read_to_string(&pid).unwrap();
        std::fs::remove_file(&pid).ok();
        // init may need a moment to wait for it
        let stat = std::path::Path::new("/proc").join(child.trim()).join("stat");
        let gone = || std::fs::read_to_string(&stat).map_or(true, |text| text.contains(") Z "));
        assert!((0..50).any(|_| gone() || {
            std::thread::sleep(Duration::from_millis(20));
            false
        }));
    }

    #[test]
    fn a_command_in_time_is_judged_by_its_status() {
        assert!(run_for(&mut shell("exit 0"), Duration::from_secs(60)).unwrap());
        assert!(run_for(&mut shell("exit 3"), Duration::from_secs(60)).is_err());
    }
}
