//! What separates a table from what it should hold. Pure.

use std::collections::{BTreeMap, BTreeSet};

/// The steps from an actual table to a desired one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delta<K, V> {
    /// To be inserted or replaced.
    pub write: Vec<(K, V)>,
    /// To be deleted.
    pub remove: Vec<K>,
}

impl<K: Ord + Copy, V: PartialEq + Copy> Delta<K, V> {
    /// Compares two tables, keys ascending: these rows, where all others are the same, or all rows if there are none given.
    /// Linear in the rows compared.
    #[must_use]
    pub fn between(actual: &BTreeMap<K, V>, desired: &BTreeMap<K, V>, rows: Option<&BTreeSet<K>>) -> Self {
        if let Some(rows) = rows {
            let differ = |k: &K| desired.get(k).filter(|v| actual.get(k) != Some(v)).map(|v| (*k, *v));
            let gone = |k: &&K| actual.contains_key(k) && !desired.contains_key(k);
            return Delta {
                write: rows.iter().filter_map(differ).collect(),
                remove: rows.iter().filter(gone).copied().collect(),
            };
        }
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
        let delta = Delta::between(&actual, &desired, None);
        assert_eq!(delta, Delta { write: vec![(3, 'x'), (4, 'd')], remove: vec![1] });
        assert_eq!(Delta::between(&desired, &desired, None), Delta { write: vec![], remove: vec![] });
        assert_eq!(Delta::between(&actual, &desired, Some(&(0..9).collect())), delta);
        let some = Delta::between(&actual, &desired, Some(&BTreeSet::from([1, 2, 3])));
        assert_eq!(some, Delta { write: vec![(3, 'x')], remove: vec![1] });
    }
}
