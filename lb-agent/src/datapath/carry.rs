//! Entries from a map of an earlier agent into one of ours.

use std::io;

use lb_common::abi::layout::{Carry, Converter};

use crate::sys::bpf::{ARRAY, BATCH, MapInfo, PERCPU_ARRAY, RawMap};

/// `BPF_F_RDONLY_PROG` and `BPF_F_WRONLY_PROG` aside, flags that change how a map behaves: `BPF_F_NO_PREALLOC`,
/// `BPF_F_NO_COMMON_LRU`, `BPF_F_MMAPABLE`.
const FLAGS: u32 = 1 | 2 | 1 << 10;
/// `BPF_MAP_TYPE_SK_STORAGE`: nobody but a program can read it.
const SK_STORAGE: u32 = 24;

/// The first difference between two maps that matters, in words; `None` = the same.
pub(super) fn difference(pinned: MapInfo, wanted: MapInfo) -> Option<String> {
    [
        ("map type", pinned.map_type, wanted.map_type),
        ("key size", pinned.key_size, wanted.key_size),
        ("value size", pinned.value_size, wanted.value_size),
        ("flags", pinned.flags & FLAGS, wanted.flags & FLAGS),
        ("max entries", pinned.max_entries, wanted.max_entries),
    ]
    .into_iter()
    .find(|(_, pinned, wanted)| pinned != wanted)
    .map(|(what, pinned, wanted)| format!("{what} is {pinned}, this agent wants {wanted}"))
}

/// What to do with a key that the new map has already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Existing {
    /// The old entry is the later one: no program uses the new map yet.
    Replace,
    /// The new entry is the later one.
    Keep,
}

/// What a copy did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Copied {
    /// Entries written.
    pub(super) written: u64,
    /// Entries that did not fit: not of the layout they should have, or the map is smaller and full.
    pub(super) left: u64,
}

impl Copied {
    pub(super) fn add(&mut self, other: Copied) {
        self.written += other.written;
        self.left += other.left;
    }
}

/// Copies all entries of `old` into `new` by `how`; [`Carry::Forget`] copies nothing.
///
/// Of an array the zero entries are left out, and those beyond the end of a smaller one are `left`. Never replaces an
/// entry of an array with `Existing::Keep`: arrays have no missing entries.
///
/// # Errors
/// `old` can't be read; single entries that can't be written are counted.
pub(super) fn copy(old: &RawMap, new: &RawMap, how: Carry, existing: Existing) -> io::Result<Copied> {
    let mut copied = Copied::default();
    let array = matches!(new.info().map_type, ARRAY | PERCPU_ARRAY);
    let convert = match how {
        Carry::Forget => return Ok(copied),
        _ if old.info().map_type == SK_STORAGE || array && existing == Existing::Keep => return Ok(copied),
        Carry::Same => None,
        Carry::Convert(convert) => Some(convert),
    };
    let mut sink =
        Sink { new, existing, keys: Vec::new(), values: Vec::new(), count: 0, copied: Copied::default() };
    old.for_each(|key, value| {
        if array && value.iter().all(|byte| *byte == 0) {
            return;
        }
        if !sink.take(key, value, convert) {
            copied.left += 1;
        }
    })?;
    sink.flush();
    copied.add(sink.copied);
    Ok(copied)
}

/// Entries on their way, written by batches where that is possible.
struct Sink<'a> {
    new: &'a RawMap,
    existing: Existing,
    keys: Vec<u8>,
    values: Vec<u8>,
    count: u32,
    copied: Copied,
}

impl Sink<'_> {
    /// False: the entry is not of the layout it should have.
    fn take(&mut self, key: &[u8], value: &[u8], convert: Option<Converter>) -> bool {
        let converted = match convert {
            Some(convert) => convert(key, value),
            None => Some((key.to_vec(), value.to_vec())),
        };
        let Some((key, value)) = converted else { return false };
        if key.len() != self.new.info().key_size as usize || value.len() != self.new.value_len() {
            return false;
        }
        self.keys.extend(key);
        self.values.extend(value);
        self.count += 1;
        if self.count >= BATCH {
            self.flush();
        }
        true
    }

    fn flush(&mut self) {
        let mut at = 0;
        if self.existing == Existing::Replace && self.count > 0 {
            let (done, result) = self.new.update_batch(&self.keys, &self.values, self.count);
            at = if result.is_ok() { self.count } else { done };
            self.copied.written += u64::from(at);
        }
        let (key_size, value_size) = (self.new.info().key_size as usize, self.new.value_len());
        let entries = self.keys.chunks_exact(key_size).zip(self.values.chunks_exact(value_size));
        for (key, value) in entries.skip(at as usize) {
            let written = match self.existing {
                Existing::Replace => self.new.update(key, value).map(|()| true),
                Existing::Keep => self.new.insert(key, value),
            };
            match written {
                Ok(written) => self.copied.written += u64::from(written),
                Err(_full) => self.copied.left += 1,
            }
        }
        self.keys.clear();
        self.values.clear();
        self.count = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_of_another_shape_is_told_from_the_same_one() {
        let wanted = MapInfo { map_type: 1, id: 0, key_size: 8, value_size: 32, max_entries: 100, flags: 0 };
        // Ids and access flags don't matter.
        assert_eq!(difference(MapInfo { id: 9, flags: 1 << 7, ..wanted }, wanted), None);
        let found = difference(MapInfo { value_size: 40, ..wanted }, wanted);
        assert_eq!(found.as_deref(), Some("value size is 40, this agent wants 32"));
        assert!(difference(MapInfo { max_entries: 99, ..wanted }, wanted).is_some());
        assert!(difference(MapInfo { flags: 1, ..wanted }, wanted).is_some());
    }
}
