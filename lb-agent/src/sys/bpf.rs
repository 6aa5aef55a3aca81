//! bpf(2) by hand, for what aya does not offer: batches, information on pinned objects, links that outlive us.
//!
//! **Invariants:** keys and values cross as byte slices whose lengths are checked against the map's own before the
//! kernel sees a pointer; no function here keeps a pointer after it returns.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_MAP_GET_NEXT_KEY: libc::c_long = 4;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_PROG_GET_FD_BY_ID: libc::c_long = 13;
const BPF_MAP_GET_FD_BY_ID: libc::c_long = 14;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;
const BPF_MAP_DELETE_BATCH: libc::c_long = 27;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_LINK_GET_FD_BY_ID: libc::c_long = 30;
const BPF_LINK_DETACH: libc::c_long = 34;

/// `BPF_MAP_TYPE_ARRAY`.
pub const ARRAY: u32 = 2;
/// `BPF_MAP_TYPE_PERCPU_ARRAY`.
pub const PERCPU_ARRAY: u32 = 6;

/// `BPF_LINK_TYPE_CGROUP`.
pub const LINK_CGROUP: u32 = 3;
/// `BPF_LINK_TYPE_TCX`.
pub const LINK_TCX: u32 = 11;

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
    /// ifindex of a TCX link; 0 once the interface is gone.
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

#[repr(C)]
#[derive(Default)]
struct MapCreateAttr {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    map_name: [u8; 16],
}

/// Makes a map.
///
/// # Errors
/// As the kernel says.
pub fn map_create(
    name: &str,
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
) -> io::Result<OwnedFd> {
    let mut attr = MapCreateAttr { map_type, key_size, value_size, max_entries, ..MapCreateAttr::default() };
    // The sixteenth byte stays zero.
    for (to, from) in attr.map_name[..15].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    // SAFETY: MapCreateAttr is the head of bpf_attr for BPF_MAP_CREATE; no pointers.
    unsafe { call_fd(BPF_MAP_CREATE, &mut attr) }
}

#[repr(C)]
#[derive(Default)]
struct ElemAttr {
    map_fd: u32,
    _pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// A map by its descriptor, with what it takes to check lengths.
#[derive(Debug)]
pub struct RawMap {
    fd: OwnedFd,
    info: MapInfo,
    /// Bytes of a value as user space sees it: all CPUs' for per-CPU maps.
    value_len: usize,
}

impl AsFd for RawMap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// One round of [`RawMap::lookup_batch`].
#[derive(Debug, Default)]
pub struct Batch {
    /// Keys, one after the other.
    pub keys: Vec<u8>,
    /// Values, one after the other.
    pub values: Vec<u8>,
    /// Where the next round goes on; `None` = the end was reached.
    pub next: Option<Vec<u8>>,
}

impl RawMap {
    /// Takes over a map's descriptor.
    ///
    /// # Errors
    /// `fd` is no map.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let info = map_info(&fd)?;
        let size = info.value_size as usize;
        // BPF_MAP_TYPE_PERCPU_HASH = 5, _PERCPU_ARRAY = 6, _LRU_PERCPU_HASH = 10.
        let value_len = match info.map_type {
            5 | PERCPU_ARRAY | 10 => size.next_multiple_of(8) * super::possible_cpus()?,
            _ => size,
        };
        Ok(RawMap { fd, info, value_len })
    }

    /// Opens a pinned map.
    ///
    /// # Errors
    /// `NotFound` if there is no such pin.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::new(obj_get(path)?)
    }

    /// What the kernel knows of it.
    #[must_use]
    pub fn info(&self) -> MapInfo {
        self.info
    }

    /// Bytes of a value as user space sees it.
    #[must_use]
    pub fn value_len(&self) -> usize {
        self.value_len
    }

    fn check(&self, keys: usize, values: Option<usize>, count: usize) -> io::Result<()> {
        let good =
            keys == self.info.key_size as usize * count && values.is_none_or(|v| v == self.value_len * count);
        if good {
            Ok(())
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidInput, "key or value of another size"))
        }
    }

    fn elem(&self, command: libc::c_long, key: u64, value: u64) -> io::Result<()> {
        let mut attr = ElemAttr { map_fd: raw(&self.fd), key, value, ..ElemAttr::default() };
        // SAFETY: ElemAttr is the kernel's layout for element commands; every caller in this block passes addresses
        // of slices whose lengths `check` has compared with the map's.
        unsafe { call(command, &mut attr).map(drop) }
    }

    /// Copies the value of `key` to `value`; false if there is none.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn lookup(&self, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
        self.check(key.len(), Some(value.len()), 1)?;
        match self.elem(BPF_MAP_LOOKUP_ELEM, key.as_ptr() as u64, value.as_mut_ptr() as u64) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Inserts or replaces an entry.
    ///
    /// # Errors
    /// `E2BIG` or `ENOSPC` when the map is full.
    pub fn update(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.check(key.len(), Some(value.len()), 1)?;
        self.elem(BPF_MAP_UPDATE_ELEM, key.as_ptr() as u64, value.as_ptr() as u64)
    }

    /// Deletes an entry; one that is not there is no error.
    ///
    /// # Errors
    /// As the kernel says (arrays have no deletion).
    pub fn delete(&self, key: &[u8]) -> io::Result<()> {
        self.check(key.len(), None, 1)?;
        match self.elem(BPF_MAP_DELETE_ELEM, key.as_ptr() as u64, 0) {
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
            _ => Ok(()),
        }
    }

    /// The key after `key` (`None`: the first one); `None` at the end.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn next_key(&self, key: Option<&[u8]>) -> io::Result<Option<Vec<u8>>> {
        let mut next = vec![0; self.info.key_size as usize];
        if let Some(key) = key {
            self.check(key.len(), None, 1)?;
        }
        let from = key.map_or(0, |key| key.as_ptr() as u64);
        match self.elem(BPF_MAP_GET_NEXT_KEY, from, next.as_mut_ptr() as u64) {
            Ok(()) => Ok(Some(next)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Inserts or replaces `count` entries; returns how many were written before an error, and the error.
    pub fn update_batch(&self, keys: &[u8], values: &[u8], count: u32) -> (u32, io::Result<()>) {
        if let Err(error) = self.check(keys.len(), Some(values.len()), count as usize) {
            return (0, Err(error));
        }
        let mut attr = BatchAttr {
            keys: keys.as_ptr() as u64,
            values: values.as_ptr() as u64,
            count,
            map_fd: raw(&self.fd),
            ..BatchAttr::default()
        };
        // SAFETY: BatchAttr is the kernel's layout; the slices hold `count` keys and values (checked above).
        let result = unsafe { call(BPF_MAP_UPDATE_BATCH, &mut attr) }.map(drop);
        // A command that is refused as a whole leaves `count` as it was.
        let done = if result.is_err() && attr.count == count { 0 } else { attr.count };
        (done, result)
    }

    /// Deletes `count` entries; returns how many were deleted before an error, and the error. One that is not there
    /// is an error here (`ENOENT`).
    pub fn delete_batch(&self, keys: &[u8], count: u32) -> (u32, io::Result<()>) {
        if let Err(error) = self.check(keys.len(), None, count as usize) {
            return (0, Err(error));
        }
        let mut attr =
            BatchAttr { keys: keys.as_ptr() as u64, count, map_fd: raw(&self.fd), ..BatchAttr::default() };
        // SAFETY: BatchAttr is the kernel's layout; the slice holds `count` keys (checked above).
        let result = unsafe { call(BPF_MAP_DELETE_BATCH, &mut attr) }.map(drop);
        let done = if result.is_err() && attr.count == count { 0 } else { attr.count };
        (done, result)
    }

    /// Reads up to `count` entries from where the last round ended (`None`: from the start).
    ///
    /// Hash maps give whole buckets: a bucket bigger than `count` is `ENOSPC`, to be tried with a larger one. Entries
    /// that others insert or delete meanwhile may be missed or seen.
    ///
    /// # Errors
    /// `EINVAL`/`ENOTSUPP` (524): the map type has no batches.
    pub fn lookup_batch(&self, from: Option<&[u8]>, count: u32) -> io::Result<Batch> {
        let key_size = self.info.key_size as usize;
        // The position is a bucket number (4 bytes) for hashes and a key for the others.
        let mut position = vec![0; key_size.max(4)];
        let mut batch = Batch {
            keys: vec![0; key_size * count as usize],
            values: vec![0; self.value_len * count as usize],
            next: None,
        };
        if from.is_some_and(|from| from.len() < position.len()) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a position of another map"));
        }
        let mut attr = BatchAttr {
            in_batch: from.map_or(0, |from| from.as_ptr() as u64),
            out_batch: position.as_mut_ptr() as u64,
            keys: batch.keys.as_mut_ptr() as u64,
            values: batch.values.as_mut_ptr() as u64,
            count,
            map_fd: raw(&self.fd),
            ..BatchAttr::default()
        };
        // SAFETY: BatchAttr is the kernel's layout; keys and values have room for `count` entries, and the positions
        // for a key or a bucket number, whichever is longer.
        let end = match unsafe { call(BPF_MAP_LOOKUP_BATCH, &mut attr) } {
            Ok(_) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            Err(error) => return Err(error),
        };
        let found = attr.count as usize;
        batch.keys.truncate(key_size * found);
        batch.values.truncate(self.value_len * found);
        batch.next = (!end).then_some(position);
        Ok(batch)
    }
}
