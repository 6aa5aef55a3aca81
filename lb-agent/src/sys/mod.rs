//! Safe wrappers around the few system calls that no crate offers: the `unsafe` of the agent lives here.

pub mod bpf;
pub mod ethtool;
pub mod iptables;
pub mod memory;
pub mod proc_sys;
pub mod xfrm;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// `SO_NETNS_COOKIE` (kernel 5.14).
const SO_NETNS_COOKIE: libc::c_int = 71;

/// The cookie of the calling thread's network namespace: unique since boot, never 0.
///
/// # Errors
/// No socket, or a kernel below 5.14.
pub fn netns_cookie() -> io::Result<u64> {
    // SAFETY: socket() takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: socket() has just returned this descriptor and nobody else knows it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut cookie = 0u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: `cookie` and `len` are live for the call, and `len` is the size of `cookie`.
    let rc = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if rc == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// Whether the calling process is root in its user namespace.
#[must_use]
pub fn is_root() -> bool {
    // SAFETY: geteuid() takes nothing and can't fail.
    unsafe { libc::geteuid() == 0 }
}

/// Nanoseconds of `CLOCK_MONOTONIC`, the clock of `bpf_ktime_get_ns`.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is live for the call; CLOCK_MONOTONIC always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// Bytes of a page of memory.
#[must_use]
pub fn page_size() -> u64 {
    // SAFETY: sysconf() takes no pointers.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(size).unwrap_or(4096)
}

/// Number of CPUs the kernel may ever have: the length of a per-CPU value.
///
/// # Errors
/// /sys/devices/system/cpu/possible can't be read.
pub fn possible_cpus() -> io::Result<usize> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    let last = text.trim().rsplit(['-', ',']).next().and_then(|n| n.parse::<usize>().ok());
    last.map(|n| n + 1).ok_or_else(|| io::Error::other(format!("unexpected cpu list {text:?}")))
}

/// Magic number of the file system a path is on.
///
/// # Errors
/// The path does not exist.
pub fn fs_type(path: &Path) -> io::Result<i64> {
    let path = c_path(path)?;
    let mut stat = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: `path` ends with NUL and lives; `stat` has room for a statfs.
    let rc = unsafe { libc::statfs(path.as_ptr(), stat.as_mut_ptr()) };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: statfs() returned 0, so it has filled the structure.
    let kind = unsafe { stat.assume_init() }.f_type;
    // signed with glibc, unsigned with musl
    #[allow(clippy::unnecessary_cast, reason = "the type is the C library's")]
    Ok(kind as i64)
}

/// Mounts a BPF file system.
///
/// # Errors
/// As mount(2) says.
pub fn mount_bpffs(folder: &Path) -> io::Result<()> {
    let path = c_path(folder)?;
    // SAFETY: all strings end with NUL and live; the last argument may be null.
    let rc = unsafe { libc::mount(c"bpf".as_ptr(), path.as_ptr(), c"bpf".as_ptr(), 0, std::ptr::null()) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

pub(crate) fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))
}
