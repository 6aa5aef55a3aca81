//! bpf(2) by hand, for what aya does not offer: batches, information on pinned objects, links that outlive us.
//!
//! **Invariants:** keys and values cross as byte slices whose lengths are checked against the map's own before the
//! kernel sees a pointer; no function here keeps a pointer after it returns.

mod link;
mod map;

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

pub use link::{
    LINK_CGROUP, LINK_TCX, LINK_XDP, LinkInfo, link_create, link_create_xdp, link_detach, link_info,
    link_update,
};
pub use map::{ARRAY, BATCH, Batch, PERCPU_ARRAY, RawMap, map_create, no_batches};

const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_PROG_GET_FD_BY_ID: libc::c_long = 13;
const BPF_MAP_GET_FD_BY_ID: libc::c_long = 14;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_LINK_GET_FD_BY_ID: libc::c_long = 30;

/// Runs one command.
///
/// # Safety
/// - `attr` is a prefix of `union bpf_attr` for `command`, `repr(C)` and without uninitialised padding;
/// - every address in it points to memory that is valid for what the kernel reads or writes there, until return.
unsafe fn call<T>(command: libc::c_long, attr: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: the caller vouches for `attr`; its size is passed along.
    let rc = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(rc) }
}

/// As [`call`], for commands that return a file descriptor.
///
/// # Safety
/// As [`call`]; and `command` returns a new descriptor.
unsafe fn call_fd<T>(command: libc::c_long, attr: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the caller's obligations are the same.
    let fd = unsafe { call(command, attr)? };
    // SAFETY: the kernel has just made this descriptor for us, close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// The number of a descriptor. By reference: the owner must outlive the system call.
fn raw(fd: &impl AsFd) -> u32 {
    fd.as_fd().as_raw_fd() as u32
}

#[repr(C)]
#[derive(Default)]
struct ObjAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// Opens a pinned map, program or link.
///
/// # Errors
/// `NotFound` if there is no such pin.
pub fn obj_get(path: &Path) -> io::Result<OwnedFd> {
    let name = super::c_path(path)?;
    let mut attr = ObjAttr { pathname: name.as_ptr() as u64, ..ObjAttr::default() };
    // SAFETY: ObjAttr is the kernel's layout for BPF_OBJ_GET; `name` lives until the call is over.
    unsafe { call_fd(BPF_OBJ_GET, &mut attr) }
}

/// Pins a map, program or link; the folder must exist on a bpffs.
///
/// # Errors
/// `AlreadyExists` if the path is taken.
pub fn obj_pin(fd: impl AsFd, path: &Path) -> io::Result<()> {
    let name = super::c_path(path)?;
    let mut attr = ObjAttr { pathname: name.as_ptr() as u64, bpf_fd: raw(&fd), file_flags: 0 };
    // SAFETY: ObjAttr is the kernel's layout for BPF_OBJ_PIN; `name` lives until the call is over.
    unsafe { call(BPF_OBJ_PIN, &mut attr).map(drop) }
}

/// A kind of object in the kernel, each with numbers of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A program.
    Program,
    /// A map.
    Map,
    /// A link.
    Link,
}

/// Whether an object with this number is in the kernel.
///
/// # Errors
/// `EPERM` without `CAP_SYS_ADMIN`.
pub fn exists(kind: Kind, id: u32) -> io::Result<bool> {
    let command = match kind {
        Kind::Program => BPF_PROG_GET_FD_BY_ID,
        Kind::Map => BPF_MAP_GET_FD_BY_ID,
        Kind::Link => BPF_LINK_GET_FD_BY_ID,
    };
    // The number, a position that these commands don't use, flags for opening.
    let mut attr = [id, 0, 0];
    // SAFETY: these three numbers are the kernel's layout for the GET_FD_BY_ID commands; no pointers.
    match unsafe { call_fd(command, &mut attr) } {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

#[repr(C)]
#[derive(Default)]
struct InfoAttr {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// Fills `info` with what the kernel knows of an object.
///
/// # Safety
/// `T` is a prefix of the kernel's info struct for the kind of object behind `fd`, and any bytes are a valid `T`.
unsafe fn obj_info<T: Default>(fd: impl AsFd) -> io::Result<T> {
    let mut info = T::default();
    let mut attr =
        InfoAttr { bpf_fd: raw(&fd), info_len: size_of::<T>() as u32, info: (&raw mut info) as u64 };
    // SAFETY: InfoAttr is the kernel's layout; `info` is live, and its size is what `info_len` says.
    unsafe { call(BPF_OBJ_GET_INFO_BY_FD, &mut attr)? };
    Ok(info)
}

/// The first fields of `struct bpf_map_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MapInfo {
    /// `BPF_MAP_TYPE_*`.
    pub map_type: u32,
    /// Number, unique while the map lives.
    pub id: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value (of one CPU's value for per-CPU maps).
    pub value_size: u32,
    /// Capacity.
    pub max_entries: u32,
    /// `BPF_F_*` the map was made with.
    pub flags: u32,
}

/// What the kernel knows of a map.
///
/// # Errors
/// `fd` is no map.
pub fn map_info(fd: impl AsFd) -> io::Result<MapInfo> {
    // SAFETY: MapInfo is the head of struct bpf_map_info and made of integers.
    unsafe { obj_info(fd) }
}

/// The first fields of `struct bpf_prog_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct ProgInfo {
    _prog_type: u32,
    id: u32,
}

/// Number of a program, unique while it lives.
///
/// # Errors
/// `fd` is no program.
pub fn prog_id(fd: impl AsFd) -> io::Result<u32> {
    // SAFETY: ProgInfo is the head of struct bpf_prog_info and made of integers.
    unsafe { obj_info::<ProgInfo>(fd).map(|info| info.id) }
}
