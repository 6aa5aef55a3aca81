//! Ranges of `LB_SLOTS`, published RCU-style.
//!
//! **Invariants:** a range is never rewritten while the kernel may read it: a changed set gets a new range, and the
//! old one keeps its content until its quarantine ends. An unchanged set keeps its range, and its Maglev table is not
//! made again. A plan that looks at some service ports only costs nothing for the others.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::maglev::{self, Member};
use super::pool::Quarantine;
use crate::desired::Slots;
use crate::model::Family;

/// A range of slots; `len` 0 = empty, and then `start` is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// First slot.
    pub start: u32,
    /// Number of slots.
    pub len: u32,
}

#[derive(Clone, Debug)]
struct Held {
    start: u32,
    ids: Arc<[u32]>,
    /// What the Maglev table in it was made from; `None` = it is a plain list, or was read back.
    made_from: Option<Vec<Member>>,
    wanted: bool,
}

impl Held {
    fn range(&self) -> Range {
        Range { start: self.start, len: length(&self.ids) }
    }
}

/// All ranges.
#[derive(Clone, Debug)]
pub struct SlotTable {
    capacity: u32,
    /// Per service port and family one range for each distinct set (the Cluster and the Local set may share one).
    held: BTreeMap<(u32, Family), Vec<Held>>,
    quarantine: Quarantine<Held>,
    /// Start and length of everything that is free.
    free: BTreeMap<u32, u32>,
    /// What `LB_SLOTS` must hold: ranges in use, and those in quarantine as they were.
    rows: Slots,
    /// First slots of ranges that came to, or went from, `rows`.
    changed: BTreeSet<u32>,
}

impl SlotTable {
    /// A table of so many slots, all free.
    #[must_use]
    pub fn new(capacity: u32) -> Self {
        let free = BTreeMap::from([(0, capacity)]);
        Self {
            capacity,
            held: BTreeMap::new(),
            quarantine: Quarantine::default(),
            free,
            rows: Slots::default(),
            changed: BTreeSet::new(),
        }
    }

    /// Takes over a range that was read back; one that is not wholly free is ignored, and its set gets a new one.
    pub fn restore(&mut self, service: u32, family: Family, start: u32, ids: Vec<u32>) {
        let len = length(&ids);
        let Some((&at, &size)) = self.free.range(..=start).next_back() else { return };
        let (Some(end), Some(free_end)) = (start.checked_add(len), at.checked_add(size)) else { return };
        if len == 0 || end > free_end || end > self.capacity {
            return;
        }
        self.free.remove(&at);
        self.release(at, start - at);
        self.release(end, free_end - end);
        self.hold((service, family), Held { start, ids: ids.into(), made_from: None, wanted: false });
    }

    fn hold(&mut self, of: (u32, Family), held: Held) {
        self.rows.put(held.start, Arc::clone(&held.ids));
        self.changed.insert(held.start);
        self.held.entry(of).or_default().push(held);
    }

    /// Frees what has waited long enough; the start of a plan.
    pub fn age(&mut self, now: Duration) {
        for held in self.quarantine.free(now) {
            self.rows.remove(held.start);
            self.changed.insert(held.start);
            self.release(held.start, length(&held.ids));
        }
    }

    /// Asks anew for all ranges: those that [`SlotTable::sweep`] finds not asked for go.
    pub fn recall_all(&mut self) {
        self.held.values_mut().flatten().for_each(|h| h.wanted = false);
    }

    /// Asks anew for the ranges of a service port; see [`SlotTable::sweep_of`].
    pub fn recall(&mut self, service: u32) {
        for family in Family::ALL {
            self.held.get_mut(&(service, family)).into_iter().flatten().for_each(|h| h.wanted = false);
        }
    }

    /// The range that holds exactly `ids`; `None` = no room.
    pub fn range(&mut self, service: u32, family: Family, ids: &[u32]) -> Option<Range> {
        if ids.is_empty() {
            return Some(Range::default());
        }
        self.holding(service, family, ids, None)
    }

    /// The range that holds the Maglev table of `members` with so many slots; `None` = no room.
    ///
    /// Made only if the set or the size is another one than before.
    pub fn table(&mut self, service: u32, family: Family, members: Vec<Member>, size: u32) -> Option<Range> {
        if members.is_empty() {
            return Some(Range::default());
        }
        let held = self.held.entry((service, family)).or_default();
        let same = |h: &Held| h.made_from.as_ref() == Some(&members) && length(&h.ids) == size;
        if let Some(found) = held.iter_mut().find(|h| same(h)) {
            found.wanted = true;
            return Some(found.range());
        }
        let ids = maglev::table(&members, size);
        self.holding(service, family, &ids, Some(members))
    }

    /// The range that holds exactly `ids`.
    fn holding(
        &mut self,
        service: u32,
        family: Family,
        ids: &[u32],
        made_from: Option<Vec<Member>>,
    ) -> Option<Range> {
        let held = self.held.entry((service, family)).or_default();
        if let Some(found) = held.iter_mut().find(|h| *h.ids == *ids) {
            found.wanted = true;
            found.made_from = made_from.or(found.made_from.take());
            return Some(found.range());
        }
        let len = length(ids);
        let (&at, &size) = self.free.iter().find(|(_, size)| **size >= len)?;
        self.free.remove(&at);
        if size > len {
            self.free.insert(at + len, size - len);
        }
        self.hold((service, family), Held { start: at, ids: ids.into(), made_from, wanted: true });
        Some(Range { start: at, len })
    }

    /// Puts every range aside that no set asked for since [`SlotTable::recall_all`]; the end of a plan.
    pub fn sweep(&mut self) {
        for ranges in self.held.values_mut() {
            for held in ranges.extract_if(.., |h| !h.wanted) {
                self.quarantine.put(held);
            }
        }
        self.held.retain(|_, ranges| !ranges.is_empty());
    }

    /// The same for a service port since [`SlotTable::recall`].
    pub fn sweep_of(&mut self, service: u32) {
        for family in Family::ALL {
            let Some(ranges) = self.held.get_mut(&(service, family)) else { continue };
            for held in ranges.extract_if(.., |h| !h.wanted) {
                self.quarantine.put(held);
            }
            if ranges.is_empty() {
                self.held.remove(&(service, family));
            }
        }
    }

    /// The tables of the last plan are in the kernel.
    pub fn applied(&mut self, now: Duration) {
        self.quarantine.applied(now);
    }

    /// What `LB_SLOTS` must hold: ranges in use, and those in quarantine as they were.
    #[must_use]
    pub fn rows(&self) -> &Slots {
        &self.rows
    }

    /// First slots of the ranges of [`SlotTable::rows`] that came or went since the last call.
    pub fn take_changed(&mut self) -> BTreeSet<u32> {
        std::mem::take(&mut self.changed)
    }

    fn release(&mut self, start: u32, len: u32) {
        if len == 0 {
            return;
        }
        let (mut start, mut len) = (start, len);
        if let Some(next) = self.free.remove(&(start + len)) {
            len += next;
        }
        if let Some((&before, &size)) = self.free.range(..start).next_back()
            && before + size == start
        {
            (start, len) = (before, size + len);
        }
        self.free.insert(start, len);
    }
}

/// Ranges are bounded by the capacity, which is a `u32`.
fn length(ids: &[u32]) -> u32 {
    u32::try_from(ids.len()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: Family = Family::V4;
    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn an_unchanged_set_keeps_its_range_and_equal_sets_share_one() {
        let mut slots = SlotTable::new(8);
        slots.age(at(0));
        let first = slots.range(1, V4, &[5, 6]);
        assert_eq!(slots.range(1, V4, &[5, 6]), first);
        slots.sweep();
        slots.age(at(1));
        slots.recall_all();
        assert_eq!(slots.range(1, V4, &[5, 6]), first);
    }

    #[test]
    fn a_changed_set_moves_and_the_old_range_keeps_its_content_until_the_quarantine_ends() {
        let mut slots = SlotTable::new(8);
        slots.age(at(0));
        slots.range(1, V4, &[5, 6]);
        slots.sweep();
        slots.applied(at(0));
        slots.age(at(10));
        slots.recall(1);
        assert_eq!(slots.range(1, V4, &[5]), Some(Range { start: 2, len: 1 }));
        slots.sweep_of(1);
        assert_eq!(*slots.rows(), Slots::from_iter([(0, 5), (1, 6), (2, 5)]));
        slots.age(at(100));
        assert_eq!(slots.rows().len(), 3, "not applied yet");
        slots.applied(at(100));
        slots.range(1, V4, &[5]);
        slots.age(at(102));
        assert_eq!(*slots.rows(), Slots::from_iter([(2, 5)]));
        assert_eq!(slots.range(2, V4, &[9]), Some(Range { start: 0, len: 1 }), "reused");
    }

    #[test]
    fn no_room_is_an_answer_and_freed_neighbours_join() {
        let mut slots = SlotTable::new(4);
        slots.age(at(0));
        assert!(slots.range(1, V4, &[1, 2]).is_some());
        assert!(slots.range(2, V4, &[3, 4]).is_some());
        assert_eq!(slots.range(3, V4, &[5]), None);
        slots.recall_all();
        slots.sweep();
        slots.applied(at(0));
        slots.age(at(2));
        assert_eq!(slots.range(4, V4, &[1, 2, 3, 4]), Some(Range { start: 0, len: 4 }));
    }

    #[test]
    fn restored_ranges_are_kept_and_overlapping_ones_refused() {
        let mut slots = SlotTable::new(10);
        slots.restore(1, V4, 4, vec![7, 8]);
        slots.restore(2, V4, 5, vec![9]);
        slots.restore(3, V4, 9, vec![1, 2]);
        slots.age(at(0));
        assert_eq!(slots.range(1, V4, &[7, 8]), Some(Range { start: 4, len: 2 }));
        assert_eq!(slots.range(2, V4, &[9]), Some(Range { start: 0, len: 1 }));
        assert_eq!(slots.range(3, V4, &[1, 2, 3, 4]), Some(Range { start: 6, len: 4 }));
    }
}
