//! Links: what holds a program at its place, also when the agent is gone.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::{call, call_fd, obj_info, raw};

const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_LINK_DETACH: libc::c_long = 34;
/// `BPF_XDP`.
const XDP: u32 = 37;
/// `XDP_FLAGS_DRV_MODE`: native or not at all.
const NATIVE: u32 = 1 << 2;
/// `BPF_LINK_TYPE_CGROUP`.
pub const LINK_CGROUP: u32 = 3;
/// `BPF_LINK_TYPE_XDP`.
pub const LINK_XDP: u32 = 6;
/// `BPF_LINK_TYPE_TCX`.
pub const LINK_TCX: u32 = 11;

/// The first fields of `struct bpf_link_info`; `target` is the union's first eight bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct LinkInfo {
    /// `BPF_LINK_TYPE_*`.
    pub link_type: u32,
    /// Number, unique while the link lives.
    pub id: u32,
    /// Number of the program it holds.
    pub prog_id: u32,
    _pad: u32,
    target: [u32; 2],
}

impl LinkInfo {
    /// ifindex of a TCX or XDP link; 0 once the interface is gone.
    #[must_use]
    pub fn ifindex(&self) -> u32 {
        self.target[0]
    }

    /// Number (inode) of the cgroup of a cgroup link.
    #[must_use]
    pub fn cgroup_id(&self) -> u64 {
        u64::from(self.target[0]) | u64::from(self.target[1]) << 32
    }
}

/// What the kernel knows of a link.
///
/// # Errors
/// `fd` is no link.
pub fn link_info(fd: impl AsFd) -> io::Result<LinkInfo> {
    // SAFETY: LinkInfo is the head of struct bpf_link_info and made of integers.
    unsafe { obj_info(fd) }
}

#[repr(C)]
#[derive(Default)]
struct LinkCreateAttr {
    prog_fd: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    relative: u64,
    expected_revision: u64,
}

/// Attaches a program to an interface (TCX) or a cgroup (`target` is then its descriptor).
///
/// # Errors
/// As the kernel says; nothing is attached.
pub fn link_create(program: impl AsFd, target: u32, attach_type: u32) -> io::Result<OwnedFd> {
    let mut attr =
        LinkCreateAttr { prog_fd: raw(&program), target, attach_type, ..LinkCreateAttr::default() };
    // SAFETY: LinkCreateAttr is the kernel's layout for BPF_LINK_CREATE of TCX and cgroup links; no pointers.
    unsafe { call_fd(BPF_LINK_CREATE, &mut attr) }
}

/// Attaches an XDP program to an interface, in native mode.
///
/// # Errors
/// As the kernel says (`EBUSY`: there is another one; `EOPNOTSUPP`: the driver has no XDP); nothing is attached.
pub fn link_create_xdp(program: impl AsFd, ifindex: u32) -> io::Result<OwnedFd> {
    let (prog_fd, attach_type) = (raw(&program), XDP);
    let mut attr =
        LinkCreateAttr { prog_fd, target: ifindex, attach_type, flags: NATIVE, ..LinkCreateAttr::default() };
    // SAFETY: LinkCreateAttr is the kernel's layout for BPF_LINK_CREATE; its end, zero, is not of XDP links; no pointers.
    unsafe { call_fd(BPF_LINK_CREATE, &mut attr) }
}

#[repr(C)]
#[derive(Default)]
struct LinkUpdateAttr {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// Puts another program into a link, in one step: no packet meets neither.
///
/// # Errors
/// As the kernel says (`ENOLINK`: the interface or cgroup is gone); the old program stays.
pub fn link_update(link: impl AsFd, program: impl AsFd) -> io::Result<()> {
    let mut attr =
        LinkUpdateAttr { link_fd: raw(&link), new_prog_fd: raw(&program), ..LinkUpdateAttr::default() };
    // SAFETY: LinkUpdateAttr is the kernel's layout for BPF_LINK_UPDATE; no pointers.
    unsafe { call(BPF_LINK_UPDATE, &mut attr).map(drop) }
}

/// Detaches a link at once, whoever else holds it.
///
/// # Errors
/// As the kernel says; a link whose interface is gone gives none.
pub fn link_detach(link: impl AsFd) -> io::Result<()> {
    let mut attr = raw(&link);
    // SAFETY: the head of bpf_attr for BPF_LINK_DETACH is the descriptor; no pointers.
    match unsafe { call(BPF_LINK_DETACH, &mut attr) } {
        Err(error) if error.raw_os_error() != Some(libc::ENOLINK) => Err(error),
        _ => Ok(()),
    }
}
