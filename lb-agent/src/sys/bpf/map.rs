//! Maps: single entries and batches.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use super::{MapInfo, call, call_fd, map_info, obj_get, raw};
use crate::sys::possible_cpus;

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_MAP_GET_NEXT_KEY: libc::c_long = 4;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;
const BPF_MAP_DELETE_BATCH: libc::c_long = 27;
/// `BPF_MAP_TYPE_ARRAY`.
pub const ARRAY: u32 = 2;
/// `BPF_MAP_TYPE_PERCPU_ARRAY`.
pub const PERCPU_ARRAY: u32 = 6;

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
            5 | PERCPU_ARRAY | 10 => size.next_multiple_of(8) * possible_cpus()?,
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
        self.elem_with(command, key, value, 0)
    }

    fn elem_with(&self, command: libc::c_long, key: u64, value: u64, flags: u64) -> io::Result<()> {
        let mut attr = ElemAttr { map_fd: raw(&self.fd), key, value, flags, ..ElemAttr::default() };
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

    /// Inserts an entry unless there is one with this key; false if there is.
    ///
    /// # Errors
    /// `E2BIG` or `ENOSPC` when the map is full.
    pub fn insert(&self, key: &[u8], value: &[u8]) -> io::Result<bool> {
        const BPF_NOEXIST: u64 = 1;
        self.check(key.len(), Some(value.len()), 1)?;
        let (key, value) = (key.as_ptr() as u64, value.as_ptr() as u64);
        match self.elem_with(BPF_MAP_UPDATE_ELEM, key, value, BPF_NOEXIST) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        }
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

    /// Calls `visit` with the bytes of every entry (key, value); by batches where the kernel has them.
    ///
    /// # Errors
    /// As the kernel says; some entries were visited then.
    pub fn for_each(&self, mut visit: impl FnMut(&[u8], &[u8])) -> io::Result<()> {
        let key_size = self.info.key_size as usize;
        let mut from = None;
        let mut count = BATCH.min(self.info.max_entries.max(1));
        loop {
            match self.lookup_batch(from.as_deref(), count) {
                Ok(batch) => {
                    let values = batch.values.chunks_exact(self.value_len);
                    batch.keys.chunks_exact(key_size).zip(values).for_each(|(key, value)| visit(key, value));
                    from = batch.next;
                    if from.is_none() {
                        return Ok(());
                    }
                }
                // A bucket that is longer than the batch.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && count < 1 << 20 => count *= 2,
                Err(error) if no_batches(&error) && from.is_none() => break,
                Err(error) => return Err(error),
            }
        }
        let mut value = vec![0; self.value_len];
        let mut key = self.next_key(None)?;
        while let Some(found) = key {
            if self.lookup(&found, &mut value)? {
                visit(&found, &value);
            }
            key = self.next_key(Some(&found))?;
        }
        Ok(())
    }
}

/// Entries of one batch: some 100 kB of buffers at most.
pub const BATCH: u32 = 1024;

/// The kernel says that a type of map has no batches.
#[must_use]
pub fn no_batches(error: &io::Error) -> bool {
    /// The kernel's own errno for "no such operation on this map", unknown to libc.
    const ENOTSUPP: i32 = 524;
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | ENOTSUPP))
}
