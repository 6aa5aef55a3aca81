//! Network namespaces: made, entered, configured.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// This very program, also when a build replaced its file meanwhile.
pub(crate) const OWN_PROGRAM: &str = "/proc/self/exe";

/// A program that runs in a network namespace, and in a cgroup if one is named; it ends with the thread that
/// started it, so start it from a thread that lives long enough.
///
/// # Errors
/// When the namespace or the cgroup is not there.
pub(crate) fn command(namespace: &str, cgroup: Option<&Path>, program: &Path) -> Result<Command> {
    let net = File::open(path(namespace)).with_context(|| format!("network namespace {namespace}"))?;
    let procs = cgroup.map(|group| {
        let file = group.join("cgroup.procs");
        File::options().write(true).open(&file).with_context(|| file.display().to_string())
    });
    let procs = procs.transpose()?;
    let mut command = Command::new(program);
    let leashed = super::janitor::leashed();
    let enter = move || {
        if leashed {
            // SAFETY: prctl with PR_SET_PDEATHSIG takes a number only.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        }
        if let Some(mut procs) = procs.as_ref() {
            procs.write_all(b"0")?;
        }
        // SAFETY: the closure owns the descriptor, so it is open; CLONE_NEWNET concerns the calling thread only.
        match unsafe { libc::setns(net.as_raw_fd(), libc::CLONE_NEWNET) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: between fork and exec the closure makes three system calls on open descriptors and allocates nothing.
    unsafe { command.pre_exec(enter) };
    Ok(command)
}

/// Runs a program in a namespace, gives it `input` and returns its standard output.
///
/// # Errors
/// When it ends with another status than 0; the message holds its standard error.
pub(crate) fn run_in(namespace: &str, words: &[&str], input: &str) -> Result<String> {
    let [program, arguments @ ..] = words else { bail!("an empty command") };
    let mut child = Command::new("nsenter")
        .arg(format!("--net={}", path(namespace).display()))
        .arg(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting nsenter")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).ok();
    }
    let done = child.wait_with_output()?;
    if !done.status.success() {
        bail!("in {namespace}: `{}`: {}", words.join(" "), String::from_utf8_lossy(&done.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

/// Runs many `ip` commands in a namespace with one process.
///
/// # Errors
/// At the first command that fails.
pub(crate) fn ip(namespace: &str, lines: &[String]) -> Result<()> {
    run_in(namespace, &["ip", "-batch", "-"], &(lines.join("\n") + "\n")).map(drop)
}

/// Writes `net.*` settings, given as (path below /proc/sys/net, value).
///
/// # Errors
/// When a setting does not exist or refuses the value.
pub(crate) fn sysctl(namespace: &str, values: &[(&str, &str)]) -> Result<()> {
    inside(namespace, || {
        for (name, value) in values {
            let file = format!("/proc/sys/net/{name}");
            std::fs::write(&file, value).with_context(|| format!("{file} = {value}"))?;
        }
        Ok(())
    })
}

/// Runs a function on a thread of its own inside a namespace.
///
/// # Errors
/// When the namespace can't be entered, and those of the function.
pub(crate) fn inside<T: Send>(namespace: &str, action: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let net =
                File::open(path(namespace)).with_context(|| format!("network namespace {namespace}"))?;
            enter(&net)?;
            action()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Moves the calling thread into a namespace.
///
/// # Errors
/// When the descriptor is no network namespace, or we aren't root.
pub(crate) fn enter(net: &File) -> Result<()> {
    // SAFETY: the descriptor is open as long as `net` is borrowed.
    match unsafe { libc::setns(net.as_raw_fd(), libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()).context("setns"),
    }
}

/// Where `ip netns` keeps a namespace.
pub(crate) fn path(namespace: &str) -> PathBuf {
    Path::new("/run/netns").join(namespace)
}
