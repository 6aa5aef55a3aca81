//! What the kernel's tables should hold: the output of `plan`, the input of `diff` and `apply`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use lb_common::abi::{
    Addr4, Addr6, Backend4, Backend6, Iface, LbConfig, NextHop, Peer, RangeKey4, RangeKey6, SvcKey4, SvcKey6,
    SvcValue,
};

/// A longest-prefix key: number of bits that count, and the key.
pub type Prefix<K> = (u32, K);

/// All tables, in ABI types. Kernel-written tables (flows, affinity, sockets, counters) are not here.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Desired {
    /// `LB_CONFIG`.
    pub config: LbConfig,
    /// `LB_SVC4`.
    pub services4: BTreeMap<SvcKey4, SvcValue>,
    /// `LB_SVC6`.
    pub services6: BTreeMap<SvcKey6, SvcValue>,
    /// `LB_BE4`, by id.
    pub backends4: BTreeMap<u32, Backend4>,
    /// `LB_BE6`, by id.
    pub backends6: BTreeMap<u32, Backend6>,
    /// `LB_GEN4`, by id; also ids whose endpoint left (their generation has moved).
    pub generations4: BTreeMap<u32, u32>,
    /// `LB_GEN6`, by id.
    pub generations6: BTreeMap<u32, u32>,
    /// `LB_SLOTS`, by slot: backend ids.
    pub slots: Slots,
    /// `LB_RANGE4`.
    pub ranges4: BTreeMap<Prefix<RangeKey4>, u32>,
    /// `LB_RANGE6`.
    pub ranges6: BTreeMap<Prefix<RangeKey6>, u32>,
    /// `LB_CIDR4`.
    pub cidrs4: BTreeMap<Prefix<Addr4>, u32>,
    /// `LB_CIDR6`.
    pub cidrs6: BTreeMap<Prefix<Addr6>, u32>,
    /// `LB_NODE4`: `NODE_*` bits.
    pub node4: BTreeMap<[u8; 4], u32>,
    /// `LB_NODE6`: `NODE_*` bits.
    pub node6: BTreeMap<[u8; 16], u32>,
    /// `LB_NH`, by row.
    pub nexthops: BTreeMap<u32, NextHop>,
    /// `LB_PEERS`, by row; row 0 is this node.
    pub peers: BTreeMap<u32, Peer>,
    /// `LB_PEER4`: the value is always 1.
    pub peers4: BTreeMap<[u8; 4], u32>,
    /// `LB_PEER6`: the value is always 1.
    pub peers6: BTreeMap<[u8; 16], u32>,
    /// `LB_IF`, by ifindex.
    pub interfaces: BTreeMap<u32, Iface>,
    /// `LB_ROLES`, as the addresses that have a role and the union of their `ROLE_*` bits.
    pub roles: BTreeMap<IpAddr, u8>,
    /// `LB_NETNS`: cookies of the namespaces whose sockets are translated (0 = all).
    pub namespaces: BTreeMap<u64, u32>,
}

/// Slots with their backend ids, as ranges that do not overlap. Ranges are shared, not copied: that two of them are the
/// same is seen without a look inside, so that what did not change costs next to nothing.
#[derive(Clone, Debug, Default)]
pub struct Slots(BTreeMap<u32, Arc<[u32]>>);

impl Slots {
    /// Adds a range; no slot of it may be in another one. An empty one is nothing.
    pub fn put(&mut self, start: u32, ids: Arc<[u32]>) {
        if !ids.is_empty() {
            self.0.insert(start, ids);
        }
    }

    /// First slot and ids of every range.
    pub fn ranges(&self) -> impl Iterator<Item = (u32, &Arc<[u32]>)> {
        self.0.iter().map(|(start, ids)| (*start, ids))
    }

    /// The range that begins here is this one, not merely an equal one.
    #[must_use]
    pub fn shares(&self, start: u32, ids: &Arc<[u32]>) -> bool {
        self.0.get(&start).is_some_and(|held| Arc::ptr_eq(held, ids))
    }

    /// All slots that hold something, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (u32, u32)> {
        self.0.iter().flat_map(|(start, ids)| (*start..).zip(ids.iter().copied()))
    }

    /// What a slot holds.
    #[must_use]
    pub fn get(&self, slot: u32) -> Option<u32> {
        let (start, ids) = self.0.range(..=slot).next_back()?;
        ids.get((slot - start) as usize).copied()
    }

    /// The ids of `len` slots from `start` on; `None` = some of them hold nothing.
    #[must_use]
    pub fn run(&self, start: u32, len: u32) -> Option<Vec<u32>> {
        let (mut found, mut at) = (Vec::new(), start);
        let end = start.checked_add(len)?;
        while at < end {
            let (first, ids) = self.0.range(..=at).next_back()?;
            let from = ids.get((at - first) as usize..).filter(|rest| !rest.is_empty())?;
            let taken = from.get(..((end - at) as usize).min(from.len())).unwrap_or_default();
            found.extend_from_slice(taken);
            at = start + found.len() as u32;
        }
        Some(found)
    }

    /// Number of slots that hold something.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.values().map(|ids| ids.len()).sum()
    }

    /// No slot holds anything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// By what the slots hold, not by how they are parted into ranges.
impl PartialEq for Slots {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl FromIterator<(u32, u32)> for Slots {
    fn from_iter<I: IntoIterator<Item = (u32, u32)>>(entries: I) -> Self {
        let mut entries: Vec<(u32, u32)> = entries.into_iter().collect();
        entries.sort_unstable();
        let runs = entries.chunk_by(|a, b| a.0.checked_add(1) == Some(b.0));
        let range = |run: &[(u32, u32)]| Some((run.first()?.0, run.iter().map(|(_, id)| *id).collect()));
        Self(runs.filter_map(range).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_what_they_hold_however_they_are_parted() {
        let mut parted = Slots::default();
        for (start, ids) in [(4, vec![7, 8]), (6, vec![9]), (20, vec![1]), (30, vec![])] {
            parted.put(start, ids.into());
        }
        let whole: Slots = [(20, 1), (5, 8), (4, 7), (6, 9)].into_iter().collect();
        assert_eq!(parted, whole);
        assert_eq!((parted.len(), whole.len(), whole.ranges().count()), (4, 4, 2));
        for slots in [&parted, &whole] {
            assert_eq!([3, 4, 6, 7, 20].map(|slot| slots.get(slot)), [None, Some(7), Some(9), None, Some(1)]);
            assert_eq!(slots.run(5, 2), Some(vec![8, 9]));
            assert_eq!(slots.run(4, 0), Some(vec![]));
            assert_eq!([slots.run(5, 3), slots.run(0, 5), slots.run(u32::MAX, 2)], [None, None, None]);
        }
        assert!(!parted.shares(6, &Arc::from([9])), "equal is not the same");
        let copy = parted.clone();
        assert!(parted.ranges().all(|(start, ids)| copy.shares(start, ids)));
    }
}
