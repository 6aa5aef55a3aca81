//! `BPF_PROG_TEST_RUN`: on a packet of ours, whose last state comes back, or with live frames that the program's
//! verdict sends on their way.

use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Result, ensure};

/// Frames that are sent on (Linux 5.18).
const LIVE_FRAMES: u32 = 1 << 1;
const BATCH: u32 = 64;

/// What test_run gave back.
pub(crate) struct Ran {
    /// The last verdict.
    pub(crate) code: u32,
    /// The packet as the last turn left it.
    pub(crate) frame: Vec<u8>,
    /// Mean of a turn.
    pub(crate) ns: f64,
}

/// `bpf_attr.test` (Linux 5.18).
#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    code: u32,
    size_in: u32,
    size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_in: u32,
    context_out: u32,
    context: u64,
    context_back: u64,
    flags: u32,
    cpu: u32,
    batch: u32,
    pad: u32,
}

impl TestRun {
    fn call(&mut self) -> Result<()> {
        const BPF_PROG_TEST_RUN: libc::c_long = 10;
        // SAFETY: the attributes are a prefix of `union bpf_attr`; every buffer they name lives in the caller and has
        // the size given.
        let done = unsafe {
            libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, std::ptr::from_mut(self), size_of::<TestRun>())
        };
        ensure!(done == 0, "BPF_PROG_TEST_RUN: {}", std::io::Error::last_os_error());
        Ok(())
    }
}

/// struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index.
fn context(frame: &[u8], ifindex: u32) -> [u32; 5] {
    [0, frame.len() as u32, 0, ifindex, 0]
}

/// Runs an XDP program so often on one packet, each turn on what the one before left.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn test_run(program: &OwnedFd, frame: &[u8], ifindex: u32, repeat: u32) -> Result<Ran> {
    let mut out = vec![0_u8; 2048];
    let context = context(frame, ifindex);
    let mut attributes = TestRun {
        program: program.as_raw_fd() as u32,
        size_in: frame.len() as u32,
        size_out: out.len() as u32,
        data_in: frame.as_ptr() as u64,
        data_out: out.as_mut_ptr() as u64,
        repeat,
        context_in: size_of_val(&context) as u32,
        context: context.as_ptr() as u64,
        ..TestRun::default()
    };
    attributes.call()?;
    out.truncate(attributes.size_out as usize);
    Ok(Ran { code: attributes.code, frame: out, ns: f64::from(attributes.duration) })
}

/// Runs a TC program so often on one packet.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn test_run_tc(program: &OwnedFd, frame: &[u8], repeat: u32) -> Result<Ran> {
    let mut out = vec![0_u8; 2048];
    let mut attributes = TestRun {
        program: program.as_raw_fd() as u32,
        size_in: frame.len() as u32,
        size_out: out.len() as u32,
        data_in: frame.as_ptr() as u64,
        data_out: out.as_mut_ptr() as u64,
        repeat,
        ..TestRun::default()
    };
    attributes.call()?;
    out.truncate(attributes.size_out as usize);
    Ok(Ran { code: attributes.code, frame: out, ns: f64::from(attributes.duration) })
}

/// Runs an XDP program on so many frames as if they had come in by the interface; what it says is done with them.
/// A frame holds what its page's last use left, so the program has to write all of it.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn live(program: &OwnedFd, frame: &[u8], ifindex: u32, frames: u32) -> Result<()> {
    let context = context(frame, ifindex);
    TestRun {
        program: program.as_raw_fd() as u32,
        size_in: frame.len() as u32,
        data_in: frame.as_ptr() as u64,
        repeat: frames,
        context_in: size_of_val(&context) as u32,
        context: context.as_ptr() as u64,
        flags: LIVE_FRAMES,
        batch: BATCH,
        ..TestRun::default()
    }
    .call()
}

/// Number of an interface of the calling thread's namespace.
///
/// # Errors
/// When there is none of that name.
pub(crate) fn ifindex(name: &str) -> Result<u32> {
    let name = std::ffi::CString::new(name)?;
    // SAFETY: the name ends with NUL and lives.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    ensure!(index != 0, "no interface {name:?}");
    Ok(index)
}
