//! Which layout each table has, and how the entries of an earlier one become entries of this one.
//!
//! **Rules for a change of layout:** bump [`super::ABI_VERSION`]; give the map its new number in [`layout`]; keep the
//! old layout as a type or as offsets beside its converter; add the pair to [`carry`]. A pair that is not listed is
//! never reinterpreted: its entries are forgotten. See docs/design/migration.md.

use super::ABI_VERSION;
use super::names::{LB_CT4, LB_CT6, LB_EM4, LB_EM6};

/// Layout number of a pinned map: the ABI version that gave it the layout it has now.
#[must_use]
pub fn layout(map: &str) -> u32 {
    match map {
        LB_CT4 | LB_CT6 | LB_EM4 | LB_EM6 => ABI_VERSION.min(2),
        _ => 1,
    }
}

/// What becomes of the entries of a map of an earlier agent.
#[cfg(any(feature = "std", test))]
#[derive(Clone, Copy, Debug)]
pub enum Carry {
    /// Layout and meaning are the same.
    Same,
    /// Each entry is converted.
    Convert(Converter),
    /// They are not understood here: a later layout, or one that nobody wrote a converter for.
    Forget,
}

/// Makes of an entry (key, value) of an earlier layout one of this layout; `None` = the bytes are no such entry.
#[cfg(any(feature = "std", test))]
pub type Converter = fn(&[u8], &[u8]) -> Option<(std::vec::Vec<u8>, std::vec::Vec<u8>)>;

/// What becomes of the entries of `map` that have layout number `from`.
#[cfg(any(feature = "std", test))]
#[must_use]
pub fn carry(map: &str, from: u32) -> Carry {
    match (map, from, layout(map)) {
        (_, from, to) if from == to => Carry::Same,
        (LB_CT4 | LB_EM4, 1, 2) => Carry::Convert(super::next::flow4),
        (LB_CT6 | LB_EM6, 1, 2) => Carry::Convert(super::next::flow6),
        _ => Carry::Forget,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_understood_is_forgotten() {
        assert!(matches!(carry("LB_GEN4", 1), Carry::Same));
        assert!(matches!(carry("LB_GEN4", 2), Carry::Forget), "a later layout");
        assert!(matches!(carry("LB_CT4", layout("LB_CT4")), Carry::Same));
        assert!(matches!(carry("LB_CT4", ABI_VERSION + 1), Carry::Forget), "a later layout");
        assert!(matches!(carry("LB_CT4", 0), Carry::Forget));
    }
}
