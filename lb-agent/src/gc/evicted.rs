//! How many entries of established flows the kernel evicted. It does not say: an LRU table that is full takes the place
//! of what was idle longest. But it is known what was put in, what was taken out, and what is there.

/// What the programs and the sweep did to one table, ever increasing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Balance {
    /// Entries that the programs made.
    pub made: u64,
    /// Entries that the programs deleted.
    pub gone: u64,
    /// Entries that the sweep deleted.
    pub swept: u64,
}

impl Balance {
    /// Entries there would be, but for a constant, if none was ever evicted.
    fn kept(self) -> i128 {
        i128::from(self.made) - i128::from(self.gone) - i128::from(self.swept)
    }
}

/// Counts for one table, since the first whole pass.
#[derive(Clone, Copy, Debug, Default)]
pub struct Evicted {
    begun: Option<Balance>,
    /// Entries at the first pass beyond its balance.
    base: Option<i128>,
    count: u64,
}

impl Evicted {
    /// Entries that were evicted, at least: what a pass may have missed because it was made or deleted meanwhile is not
    /// counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// A step of a pass begins.
    pub fn begin(&mut self, now: Balance) {
        self.begun.get_or_insert(now);
    }

    /// The pass that has begun is not finished.
    pub fn abandon(&mut self) {
        self.begun = None;
    }

    /// A pass has ended, which met so many entries.
    pub fn end(&mut self, now: Balance, met: u64) {
        let Some(begun) = self.begun.take() else { return };
        let met = i128::from(met);
        let (made, gone) = (i128::from(now.made - begun.made), i128::from(now.gone - begun.gone));
        match self.base {
            // it may have met all that was made meanwhile
            None => self.base = Some(met - begun.kept() - made),
            Some(base) => {
                let missing = begun.kept() + base - gone - met;
                self.count = self.count.max(u64::try_from(missing).unwrap_or(0));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_was_evicted() {
        let mut evicted = Evicted::default();
        let at = |made, gone, swept| Balance { made, gone, swept };
        // an agent that starts over tables with entries
        evicted.begin(at(1000, 400, 0));
        evicted.end(at(1000, 400, 10), 300);
        assert_eq!(evicted.count(), 0, "what was before is not known");
        // 200 made, 50 deleted, 10 swept: 440 are expected
        evicted.begin(at(1200, 450, 10));
        evicted.end(at(1200, 450, 10), 440);
        assert_eq!(evicted.count(), 0);
        evicted.begin(at(1300, 450, 10));
        evicted.end(at(1300, 450, 10), 500);
        assert_eq!(evicted.count(), 40);
    }

    #[test]
    fn what_comes_and_goes_during_a_pass_is_not_counted() {
        let mut evicted = Evicted::default();
        let at = |made, gone| Balance { made, gone, swept: 0 };
        evicted.begin(at(0, 0));
        evicted.end(at(100, 0), 60);
        for met in [0..=100, 300..=400].into_iter().flatten() {
            evicted.begin(at(200, 100));
            evicted.begin(at(230, 130)); // a later step of the same pass
            evicted.end(at(300, 200), met);
            assert_eq!(evicted.count(), 0, "{met}");
        }
    }
}
