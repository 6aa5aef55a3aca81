//! What veth devices need around native XDP: XDP_TX is delivered only to a peer that has a program, too, and what the same
//! machine sends has no checksum yet unless the device is told to compute it.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::netns::run_in;

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_PROG_TYPE_XDP: u32 = 6;

#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    licence: u64,
    log: [u32; 2],
    log_buffer: u64,
    kernel: u32,
    /// `BPF_F_XDP_HAS_FRAGS`, so that it does not stand in the way of large frames.
    flags: u32,
}

#[repr(C)]
struct Pin {
    path: u64,
    fd: u32,
    flags: u32,
}

fn bpf<T>(command: libc::c_long, attributes: &mut T) -> Result<i64> {
    // SAFETY: all structures here are prefixes of `union bpf_attr` for their commands, and what they point to lives until
    // the call returns.
    let done =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    ensure!(done >= 0, "bpf command {command}: {}", std::io::Error::last_os_error());
    Ok(done)
}

/// A program that passes everything.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn pass_program() -> Result<OwnedFd> {
    // XDP_PASS, BPF_F_XDP_HAS_FRAGS
    constant(BPF_PROG_TYPE_XDP, 2, 1 << 5)
}

/// A TC program that passes everything on to the next one.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn pass_classifier() -> Result<OwnedFd> {
    // BPF_PROG_TYPE_SCHED_CLS, TCX_NEXT
    constant(3, -1, 0)
}

/// A program that only returns a number.
fn constant(kind: u32, code: i32, flags: u32) -> Result<OwnedFd> {
    // r0 = code; exit
    let instructions: [u64; 2] = [0xb7 | (code as u32 as u64) << 32, 0x95];
    let mut load = Load {
        kind,
        count: 2,
        instructions: instructions.as_ptr() as u64,
        licence: c"GPL".as_ptr() as u64,
        log: [0; 2],
        log_buffer: 0,
        kernel: 0,
        flags,
    };
    let fd = bpf(BPF_PROG_LOAD, &mut load)?;
    // SAFETY: the kernel has just returned this descriptor and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Attaches a program to a device of the calling thread's namespace, in native mode, until the answer is dropped.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn attach(program: &OwnedFd, ifindex: u32) -> Result<OwnedFd> {
    const BPF_LINK_CREATE: libc::c_long = 28;
    // prog_fd, target_ifindex, attach_type (BPF_XDP), flags (XDP_FLAGS_DRV_MODE)
    let mut attributes = [program.as_raw_fd() as u32, ifindex, 37, 4];
    let fd = bpf(BPF_LINK_CREATE, &mut attributes)?;
    // SAFETY: the kernel has just returned this descriptor and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Attaches a program that passes everything to a device, in native mode. `bpffs` is a mounted bpf file system.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn pass_everything(namespace: &str, device: &str, bpffs: &Path) -> Result<()> {
    let program = pass_program()?;
    let path = bpffs.join("pass-everything");
    let text = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    let mut pin = Pin { path: text.as_ptr() as u64, fd: program.as_raw_fd() as u32, flags: 0 };
    bpf(BPF_OBJ_PIN, &mut pin)?;
    let shown = path.display().to_string();
    let done = run_in(namespace, &["ip", "link", "set", "dev", device, "xdpdrv", "pinned", &shown], "");
    std::fs::remove_file(&path)?;
    done.map(drop).with_context(|| format!("XDP on {device}"))
}

/// Takes any XDP program off.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn take_off(namespace: &str, device: &str) -> Result<()> {
    run_in(namespace, &["ip", "link", "set", "dev", device, "xdpdrv", "off"], "").map(drop)
}

/// Has a device send full checksums.
///
/// # Errors
/// When ethtool fails.
pub(crate) fn full_checksums(namespace: &str, device: &str) -> Result<()> {
    run_in(namespace, &["ethtool", "-K", device, "tx", "off"], "").map(drop)
}
