//! Child processes and progress lines.

use std::ffi::OsStr;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

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
