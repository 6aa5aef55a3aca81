//! What separates a table from what it should hold. Pure.

use std::collections::BTreeMap;

/// The steps from an actual table to a desired one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delta<K, V> {
    /// To be inserted or replaced.
    pub write: Vec<(K, V)>,
    /// To be deleted.
    pub remove: Vec<K>,
}

impl<K: Ord + Copy, V: PartialEq + Copy> Delta<K, V> {
    /// Compares two tables; linear in their sizes, keys ascending.
    #[must_use]
    pub fn between(actual: &BTreeMap<K, V>, desired: &BTreeMap<K, V>) -> Self {
        Delta {
            write: desired.iter().filter(|(k, v)| actual.get(k) != Some(v)).map(|(k, v)| (*k, *v)).collect(),
            remove: actual.keys().filter(|k| !desired.contains_key(k)).copied().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs() {
        let actual = BTreeMap::from([(1, 'a'), (2, 'b'), (3, 'c')]);
        let desired = BTreeMap::from([(2, 'b'), (3, 'x'), (4, 'd')]);
        let delta = Delta::between(&actual, &desired);
        assert_eq!(delta, Delta { write: vec![(3, 'x'), (4, 'd')], remove: vec![1] });
        assert_eq!(Delta::between(&desired, &desired), Delta { write: vec![], remove: vec![] });
    }
}
