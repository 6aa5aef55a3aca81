//! Capacities of the tables, by the settings that users know.

use std::collections::BTreeMap;

use lb_common::abi::names;

/// Capacities that differ from what the object was built with; empty = none does.
///
/// When a pinned map has another capacity, its entries are taken over into a new one (see [`super::migrate`]).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    entries: BTreeMap<&'static str, u32>,
}

/// Settings with the maps each stands for, and by what part of the number.
const SETTINGS: &[(&str, &[(&str, u32)])] = &[
    ("max-services", &[(names::LB_SVC4, 1), (names::LB_SVC6, 1)]),
    ("max-backends", &[(names::LB_BE4, 1), (names::LB_BE6, 1), (names::LB_GEN4, 1), (names::LB_GEN6, 1)]),
    ("max-slots", &[(names::LB_SLOTS, 1)]),
    ("max-source-ranges", &[(names::LB_RANGE4, 1), (names::LB_RANGE6, 1)]),
    ("max-affinity", &[(names::LB_AFF4, 1), (names::LB_AFF6, 1)]),
    // Embryonic flows have a quarter of the room.
    ("max-flows", &[(names::LB_CT4, 1), (names::LB_CT6, 1), (names::LB_EM4, 4), (names::LB_EM6, 4)]),
    ("max-udp-peers", &[(names::LB_SK_UDP, 1)]),
];

/// The setting that raises a map's capacity; `None` = it is fixed.
#[must_use]
pub fn setting(map: &str) -> Option<&'static str> {
    SETTINGS.iter().find(|(_, maps)| maps.iter().any(|(name, _)| *name == map)).map(|(setting, _)| *setting)
}

/// All settings, for help texts.
pub fn settings() -> impl Iterator<Item = &'static str> {
    SETTINGS.iter().map(|(setting, _)| *setting)
}

impl Sizes {
    /// Sets the capacity behind a setting; false if there is no such setting.
    #[must_use]
    pub fn set(&mut self, setting: &str, entries: u32) -> bool {
        let Some((_, maps)) = SETTINGS.iter().find(|(name, _)| *name == setting) else { return false };
        self.entries.extend(maps.iter().map(|(map, part)| (*map, (entries / part).max(1))));
        true
    }

    /// Capacity of a map, if it differs from the object's.
    #[must_use]
    pub fn of(&self, map: &str) -> Option<u32> {
        self.entries.get(map).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_setting_moves_all_its_maps() {
        let mut sizes = Sizes::default();
        assert!(sizes.set("max-flows", 100_000));
        assert_eq!(sizes.of(names::LB_CT6), Some(100_000));
        assert_eq!(sizes.of(names::LB_EM4), Some(25_000));
        assert_eq!(sizes.of(names::LB_SVC4), None);
        assert!(!sizes.set("max-nonsense", 1));
        assert_eq!(setting(names::LB_EM6), Some("max-flows"));
        assert_eq!(setting(names::LB_CONFIG), None);
    }
}
