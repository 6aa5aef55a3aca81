//! What the kernel's tables should hold: the output of `plan`, the input of `diff` and `apply`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;

use lb_common::abi::{
    Addr4, Addr6, Backend4, Backend6, Iface, LbConfig, NextHop, Peer, ROLE_SIZE, RangeKey4, RangeKey6,
    SVC_EXTERNAL, SVC_HAS_ANY, SVC_LOCAL, SVC_MAGLEV, SvcKey4, SvcKey6, SvcValue,
};
use lb_common::hash::{role_slot4, role_slot6};
use serde::Serialize;

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
    pub roles: Roles,
    /// `LB_NETNS`: cookies of the namespaces whose sockets are translated (0 = all).
    pub namespaces: BTreeMap<u64, u32>,
}

/// Calls `$then!` with all tables that are maps from keys to values, but for the slots: field of `Desired`, types, name.
macro_rules! for_each_table {
    ($then:ident) => {
        $then! {
            services4: SvcKey4 => SvcValue, LB_SVC4;
            services6: SvcKey6 => SvcValue, LB_SVC6;
            backends4: u32 => Backend4, LB_BE4;
            backends6: u32 => Backend6, LB_BE6;
            generations4: u32 => u32, LB_GEN4;
            generations6: u32 => u32, LB_GEN6;
            ranges4: Prefix<RangeKey4> => u32, LB_RANGE4;
            ranges6: Prefix<RangeKey6> => u32, LB_RANGE6;
            cidrs4: Prefix<Addr4> => u32, LB_CIDR4;
            cidrs6: Prefix<Addr6> => u32, LB_CIDR6;
            node4: [u8; 4] => u32, LB_NODE4;
            node6: [u8; 16] => u32, LB_NODE6;
            nexthops: u32 => NextHop, LB_NH;
            peers: u32 => Peer, LB_PEERS;
            peers4: [u8; 4] => u32, LB_PEER4;
            peers6: [u8; 16] => u32, LB_PEER6;
            interfaces: u32 => Iface, LB_IF;
            namespaces: u64 => u32, LB_NETNS;
        }
    };
}
pub(crate) use for_each_table;

macro_rules! keys {
    ($($field:ident: $key:ty => $value:ty, $name:ident;)*) => {
        /// Keys of rows, by table.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Keys {
            $(
                #[doc = concat!("`", stringify!($name), "`.")]
                pub $field: BTreeSet<$key>,
            )*
            /// First slots of ranges of `LB_SLOTS`.
            pub slots: BTreeSet<u32>,
            /// Addresses of `LB_ROLES`.
            pub roles: BTreeSet<IpAddr>,
        }

        impl Keys {
            /// How many there are.
            #[must_use]
            pub fn len(&self) -> usize {
                self.slots.len() + self.roles.len() $(+ self.$field.len())*
            }

            /// There are none.
            #[must_use]
            pub fn is_empty(&self) -> bool {
                self.len() == 0
            }
        }
    };
}
for_each_table!(keys);

/// Which rows may differ from those of the plan before; all others are the same. `config` is one row and always looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Changes {
    /// Any.
    #[default]
    All,
    /// These.
    Some(Box<Keys>),
}

impl Changes {
    /// The rows; `None` = any.
    #[must_use]
    pub fn keys(&self) -> Option<&Keys> {
        match self {
            Self::All => None,
            Self::Some(keys) => Some(keys),
        }
    }
}

/// What of the frontends is told to people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Service ports with Maglev tables.
    pub maglev: usize,
    /// Service ports of Local policy without an endpoint here although there are some elsewhere (B138), IPv4 and IPv6.
    pub no_local: [NoLocal; 2],
}

/// Counts of B138 in one family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NoLocal {
    /// By `internalTrafficPolicy`.
    pub internal: usize,
    /// By `externalTrafficPolicy`.
    pub external: usize,
}

impl Tally {
    /// Counts the service ports among the values of the frontends of both families.
    #[must_use]
    pub fn of<'a>(
        four: impl Iterator<Item = &'a SvcValue> + Clone,
        six: impl Iterator<Item = &'a SvcValue> + Clone,
    ) -> Self {
        let maglev = four.clone().chain(six.clone()).filter(|v| v.flags & SVC_MAGLEV != 0);
        let maglev = maglev.map(|v| v.id).collect::<BTreeSet<u32>>().len();
        Self { maglev, no_local: [starved(four), starved(six)] }
    }

    /// Replaces each count by what `with` makes of it and the other's.
    fn each(&mut self, other: &Self, with: fn(usize, usize) -> usize) {
        self.maglev = with(self.maglev, other.maglev);
        for (own, other) in self.no_local.iter_mut().zip(other.no_local) {
            own.internal = with(own.internal, other.internal);
            own.external = with(own.external, other.external);
        }
    }

    /// Adds the service ports of another one, none of which are counted here.
    pub fn add(&mut self, other: &Self) {
        self.each(other, |own, other| own + other);
    }

    /// Takes those of another one out again.
    pub fn take(&mut self, other: &Self) {
        self.each(other, usize::saturating_sub);
    }
}

fn starved<'a>(values: impl Iterator<Item = &'a SvcValue> + Clone) -> NoLocal {
    let ports = |external: u32| {
        let without = values.clone().filter(|v| {
            v.flags & (SVC_LOCAL | SVC_HAS_ANY) == SVC_LOCAL | SVC_HAS_ANY
                && v.local_len == 0
                && v.flags & SVC_EXTERNAL == external
        });
        without.map(|v| v.id).collect::<BTreeSet<u32>>().len()
    };
    NoLocal { internal: ports(0), external: ports(SVC_EXTERNAL) }
}

/// Addresses with the union of their `ROLE_*` bits, and the filter that they make. The filter is kept up address by
/// address: a change costs nothing for the others.
#[derive(Clone, Default)]
pub struct Roles {
    rows: BTreeMap<IpAddr, u8>,
    /// How many addresses share a bit of the filter, by its number.
    shared: BTreeMap<u32, u32>,
    /// The filter; empty = all zero.
    bytes: Vec<u8>,
}

impl Roles {
    /// Gives an address exactly these roles; 0 = none.
    pub fn insert(&mut self, address: IpAddr, roles: u8) {
        let old = if roles == 0 { self.rows.remove(&address) } else { self.rows.insert(address, roles) };
        let old = old.unwrap_or(0);
        let slot = Self::slot(address);
        if self.bytes.is_empty() {
            self.bytes = vec![0; ROLE_SIZE];
        }
        let Some(byte) = self.bytes.get_mut(slot) else { return };
        for bit in (0..u8::BITS).filter(|bit| (old ^ roles) >> bit & 1 != 0) {
            // 2^18 slots
            let count = self.shared.entry(slot as u32 * u8::BITS + bit).or_default();
            if roles >> bit & 1 != 0 {
                *count += 1;
                *byte |= 1 << bit;
            } else {
                *count -= 1;
                if *count == 0 {
                    self.shared.remove(&(slot as u32 * u8::BITS + bit));
                    *byte &= !(1 << bit);
                }
            }
        }
    }

    /// The byte of the filter that stands for an address, and for others.
    #[must_use]
    pub fn slot(address: IpAddr) -> usize {
        let slot = match address {
            IpAddr::V4(a) => role_slot4(a.octets()),
            IpAddr::V6(a) => role_slot6(&a.octets().into()),
        };
        slot as usize
    }

    /// The filter; empty = all zero.
    #[cfg(test)]
    pub(crate) fn filter(&self) -> &[u8] {
        &self.bytes
    }

    /// A byte of the filter.
    #[must_use]
    pub fn byte(&self, slot: usize) -> u8 {
        self.bytes.get(slot).copied().unwrap_or(0)
    }
}

impl Deref for Roles {
    type Target = BTreeMap<IpAddr, u8>;

    fn deref(&self) -> &Self::Target {
        &self.rows
    }
}

impl FromIterator<(IpAddr, u8)> for Roles {
    fn from_iter<I: IntoIterator<Item = (IpAddr, u8)>>(entries: I) -> Self {
        let mut roles = Self::default();
        entries.into_iter().for_each(|(address, of)| roles.insert(address, of));
        roles
    }
}

impl PartialEq for Roles {
    fn eq(&self, other: &Self) -> bool {
        self.rows == other.rows
    }
}

impl std::fmt::Debug for Roles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.rows.fmt(f)
    }
}

/// Slots with their backend ids, as ranges that do not overlap. Ranges are shared, not copied: that two of them are the
/// same is seen without a look inside, so that what did not change costs next to nothing.
#[derive(Clone, Debug, Default)]
pub struct Slots {
    ranges: BTreeMap<u32, Arc<[u32]>>,
    /// Slots in all ranges.
    len: usize,
}

impl Slots {
    /// Adds a range, in the place of one with the same first slot; no slot of it may be in another one. An empty one is
    /// nothing.
    pub fn put(&mut self, start: u32, ids: Arc<[u32]>) {
        if !ids.is_empty() {
            self.len += ids.len();
            let old = self.ranges.insert(start, ids);
            self.len -= old.map_or(0, |old| old.len());
        }
    }

    /// Takes away the range that begins here.
    pub fn remove(&mut self, start: u32) {
        let old = self.ranges.remove(&start);
        self.len -= old.map_or(0, |old| old.len());
    }

    /// The range that begins here.
    #[must_use]
    pub fn at(&self, start: u32) -> Option<&Arc<[u32]>> {
        self.ranges.get(&start)
    }

    /// First slot and ids of every range.
    pub fn ranges(&self) -> impl Iterator<Item = (u32, &Arc<[u32]>)> {
        self.ranges.iter().map(|(start, ids)| (*start, ids))
    }

    /// The range that begins here is this one, not merely an equal one.
    #[must_use]
    pub fn shares(&self, start: u32, ids: &Arc<[u32]>) -> bool {
        self.ranges.get(&start).is_some_and(|held| Arc::ptr_eq(held, ids))
    }

    /// All slots that hold something, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (u32, u32)> {
        self.ranges.iter().flat_map(|(start, ids)| (*start..).zip(ids.iter().copied()))
    }

    /// What a slot holds.
    #[must_use]
    pub fn get(&self, slot: u32) -> Option<u32> {
        let (start, ids) = self.ranges.range(..=slot).next_back()?;
        ids.get((slot - start) as usize).copied()
    }

    /// The ids of `len` slots from `start` on; `None` = some of them hold nothing.
    #[must_use]
    pub fn run(&self, start: u32, len: u32) -> Option<Vec<u32>> {
        let (mut found, mut at) = (Vec::new(), start);
        let end = start.checked_add(len)?;
        while at < end {
            let (first, ids) = self.ranges.range(..=at).next_back()?;
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
        self.len
    }

    /// No slot holds anything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
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
        let mut slots = Self::default();
        for run in runs {
            let Some((start, _)) = run.first() else { continue };
            slots.put(*start, run.iter().map(|(_, id)| *id).collect());
        }
        slots
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_is_kept_up_is_the_one_made_anew() {
        let mut roles = Roles::default();
        let address = |n: u32| IpAddr::from((0x0a00_0000 + n).to_be_bytes());
        // so many that they share bits
        for n in 0..60_000_u32 {
            roles.insert(address(n), (n % 7 + 1) as u8);
        }
        for n in (0..60_000).filter(|n| n % 3 != 0) {
            roles.insert(address(n), if n % 2 == 0 { 0 } else { 4 });
        }
        let anew = lb_common::hash::role_filter(roles.iter().map(|(a, r)| (*a, *r)));
        assert!(*roles.filter() == *anew);
        assert_eq!(roles.get(&address(1)), Some(&4));
        assert!(!roles.contains_key(&address(2)));
    }

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
