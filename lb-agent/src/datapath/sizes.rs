//! Capacities of the tables: the settings that users know, what they cost, and their default by memory.

use std::collections::BTreeMap;

use lb_common::abi::{capacity, names};

use crate::model::settings::Limits;

/// Capacities that differ from what the object was built with; empty = none does.
///
/// When a pinned map has another capacity, its entries are taken over into a new one (see [`super::migrate`]).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    entries: BTreeMap<&'static str, u32>,
}

/// A setting: its flag, and the maps it stands for with the part of the number each gets.
struct Setting {
    name: &'static str,
    maps: &'static [(&'static str, u32)],
}

const SETTINGS: &[Setting] = &[
    Setting { name: MAX_FRONTENDS, maps: &[(names::LB_SVC4, 1), (names::LB_SVC6, 1)] },
    Setting {
        name: MAX_BACKENDS,
        maps: &[(names::LB_BE4, 1), (names::LB_BE6, 1), (names::LB_GEN4, 1), (names::LB_GEN6, 1)],
    },
    Setting { name: MAX_SLOTS, maps: &[(names::LB_SLOTS, 1)] },
    Setting { name: MAX_SOURCE_RANGES, maps: &[(names::LB_RANGE4, 1), (names::LB_RANGE6, 1)] },
    Setting { name: MAX_AFFINITY, maps: &[(names::LB_AFF4, 1), (names::LB_AFF6, 1)] },
    Setting {
        name: MAX_FLOWS,
        // Embryonic flows have a quarter of the room.
        maps: &[(names::LB_CT4, 1), (names::LB_CT6, 1), (names::LB_EM4, 4), (names::LB_EM6, 4)],
    },
    // After the one for both families, whose number it replaces.
    Setting { name: MAX_FLOWS_IPV6, maps: &[(names::LB_CT6, 1), (names::LB_EM6, 4)] },
    Setting { name: MAX_UDP_PEERS, maps: &[(names::LB_SK_UDP, 1)] },
];

/// Frontends of a family: an address and port that clients dial.
pub const MAX_FRONTENDS: &str = "max-frontends";
/// Backends of a family.
pub const MAX_BACKENDS: &str = "max-backends";
/// Slots: a Service's usable backends, once for each of its ports and policies.
pub const MAX_SLOTS: &str = "max-slots";
/// Source ranges of a family.
pub const MAX_SOURCE_RANGES: &str = "max-source-ranges";
/// Clients with session affinity of a family.
pub const MAX_AFFINITY: &str = "max-affinity";
/// Established flow entries of a family.
pub const MAX_FLOWS: &str = "max-flows";
/// The same of IPv6 alone.
pub const MAX_FLOWS_IPV6: &str = "max-flows-ipv6";
/// Correspondents of unconnected UDP sockets.
pub const MAX_UDP_PEERS: &str = "max-udp-peers";

/// The setting that raises a map's capacity; `None` = it is fixed.
#[must_use]
pub fn setting(map: &str) -> Option<&'static str> {
    SETTINGS.iter().find(|s| s.maps.iter().any(|(name, _)| *name == map)).map(|s| s.name)
}

impl Sizes {
    /// Sets the capacity behind a setting; false if there is no such setting.
    #[must_use]
    pub fn set(&mut self, setting: &str, entries: u32) -> bool {
        let Some(found) = SETTINGS.iter().find(|s| s.name == setting) else { return false };
        self.entries.extend(found.maps.iter().map(|(map, part)| (*map, (entries / part).max(1))));
        true
    }

    /// Capacity of a map, if it differs from the object's.
    #[must_use]
    pub fn of(&self, map: &str) -> Option<u32> {
        self.entries.get(map).copied()
    }
}

/// How many flow entries a node with so much memory gets unless told otherwise.
///
/// An entry of each family and their share of the young ones take about 440 bytes. Up to 4 GiB it is 1.25 % of the
/// memory, which gives 131,072 entries there; more memory adds entries when 0.2 % of it holds more. At most
/// 1,048,576, in steps of 8192, so that a node's size does not change with every kernel's idea of its memory.
#[must_use]
pub fn flows_for(memory: u64) -> u32 {
    const ENTRY: u64 = 440; // seen on Linux 6.18: 57.7 MB for 131,072
    const STEP: u64 = 8192;
    let small = (memory / 80 / ENTRY).min(capacity::FLOWS as u64);
    let large = memory / 512 / ENTRY;
    let entries = small.max(large).clamp(STEP, 1_048_576) / STEP * STEP;
    u32::try_from(entries).unwrap_or(u32::MAX)
}

/// How many slots a node with so much memory gets when all Services have Maglev tables.
///
/// A slot takes 8 bytes in the kernel: 1/128 of the memory, 4,194,304 slots at 4 GiB (some 4000 Service ports of three to
/// ten endpoints), 16,777,216 at 16 GiB, and no more than that.
#[must_use]
pub fn slots_for(memory: u64) -> u32 {
    const SLOT: u64 = 8;
    const STEP: u64 = 1 << 19;
    let slots = (memory / 128 / SLOT).clamp(capacity::SLOTS as u64, 1 << 24) / STEP * STEP;
    u32::try_from(slots).unwrap_or(u32::MAX)
}

/// What a plan may use of tables with these capacities; `entries` = capacity by map.
#[must_use]
pub fn limits(entries: impl Fn(&str) -> Option<u32>) -> Limits {
    let least = |maps: [&str; 2], built: usize| {
        maps.iter().filter_map(|map| entries(map)).min().map_or(built, |n| n as usize)
    };
    let id = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Limits {
        frontends: least([names::LB_SVC4, names::LB_SVC6], capacity::FRONTENDS),
        backends: id(least([names::LB_BE4, names::LB_BE6], capacity::BACKENDS)
            .min(least([names::LB_GEN4, names::LB_GEN6], capacity::BACKENDS))),
        slots: id(least([names::LB_SLOTS, names::LB_SLOTS], capacity::SLOTS)),
        ranges: least([names::LB_RANGE4, names::LB_RANGE6], capacity::RANGES),
        ..Limits::PRODUCT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_setting_moves_all_its_maps() {
        let mut sizes = Sizes::default();
        assert!(sizes.set(MAX_FLOWS, 100_000));
        assert!(!sizes.set("max-nonsense", 1));
        assert_eq!(sizes.of(names::LB_CT6), Some(100_000));
        assert_eq!(sizes.of(names::LB_EM4), Some(25_000));
        assert_eq!(sizes.of(names::LB_SVC4), None);
        assert!(sizes.set(MAX_FLOWS_IPV6, 8192));
        assert_eq!(
            [names::LB_CT4, names::LB_CT6, names::LB_EM6].map(|map| sizes.of(map)),
            [100_000, 8192, 2048].map(Some)
        );
        assert_eq!(setting(names::LB_EM6), Some(MAX_FLOWS));
        assert_eq!(setting(names::LB_CONFIG), None);
    }

    #[test]
    fn flow_entries_follow_the_memory() {
        const GIB: u64 = 1 << 30;
        assert_eq!(flows_for(0), 8192);
        assert_eq!(flows_for(GIB), 24_576);
        assert_eq!(flows_for(4 * GIB), 114_688);
        assert_eq!(flows_for(5 * GIB), 131_072);
        assert_eq!(flows_for(24 * GIB), 131_072);
        assert_eq!(flows_for(64 * GIB), 303_104);
        assert_eq!(flows_for(1024 * GIB), 1_048_576);
        let steps: Vec<u32> = (0..300).map(|n| flows_for(n * GIB)).collect();
        assert!(steps.is_sorted());
    }

    #[test]
    fn slots_of_maglev_tables_follow_the_memory() {
        const GIB: u64 = 1 << 30;
        let at = |gib| slots_for(gib * GIB);
        assert_eq!([0, 1, 4, 16, 64].map(at), [1 << 19, 1 << 20, 1 << 22, 1 << 24, 1 << 24]);
    }

    #[test]
    fn a_plan_gets_the_smaller_of_two_tables() {
        assert_eq!(limits(|_| None), Limits::PRODUCT);
        let found = limits(|map| match map {
            names::LB_SVC4 => Some(2000),
            names::LB_SVC6 => Some(3000),
            names::LB_GEN6 => Some(1024),
            _ => None,
        });
        assert_eq!((found.frontends, found.backends, found.slots), (2000, 1024, Limits::PRODUCT.slots));
    }
}
