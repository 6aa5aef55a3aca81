//! Small numbers that come back: given out in order, kept aside for a while before they are given out again.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

/// Time between the apply that took a number or range out of the tables and its reuse: programs that read it before
/// the apply have ended long before (they run for microseconds).
pub const QUARANTINE: Duration = Duration::from_secs(2);

/// What is waiting to become free.
#[derive(Clone, Debug)]
pub struct Quarantine<T> {
    /// Not yet known to be out of the kernel's tables.
    leaving: Vec<T>,
    /// Out since the given time, oldest first.
    gone: VecDeque<(Duration, T)>,
}

impl<T> Default for Quarantine<T> {
    fn default() -> Self {
        Self { leaving: Vec::new(), gone: VecDeque::new() }
    }
}

impl<T> Quarantine<T> {
    /// Puts something aside; its time starts with [`Quarantine::applied`].
    pub fn put(&mut self, item: T) {
        self.leaving.push(item);
    }

    /// Starts the time of everything put aside so far: the tables without it are in the kernel.
    pub fn applied(&mut self, now: Duration) {
        self.gone.extend(self.leaving.drain(..).map(|item| (now, item)));
    }

    /// Takes out what has waited long enough.
    pub fn free(&mut self, now: Duration) -> Vec<T> {
        let done = self.gone.iter().take_while(|(since, _)| now.saturating_sub(*since) >= QUARANTINE).count();
        self.gone.drain(..done).map(|(_, item)| item).collect()
    }

    /// Everything that waits.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.leaving.iter().chain(self.gone.iter().map(|(_, item)| item))
    }
}

/// Numbers 1 up to a limit; 0 is never given out, since the kernel takes it for "none".
#[derive(Clone, Debug)]
pub struct Pool {
    /// Every number from here on has never been given out.
    next: u32,
    /// One more than the last number.
    end: u32,
    free: BTreeSet<u32>,
    quarantine: Quarantine<u32>,
}

impl Pool {
    /// Numbers from 1 up to but not including `end`.
    #[must_use]
    pub fn new(end: u32) -> Self {
        Self { next: 1, end, free: BTreeSet::new(), quarantine: Quarantine::default() }
    }

    /// Marks a number as given out before the first [`Pool::take`]; false if it cannot be.
    pub fn restore(&mut self, number: u32) -> bool {
        if number == 0 || number >= self.end {
            return false;
        }
        if number < self.next {
            return self.free.remove(&number);
        }
        self.free.extend(self.next..number);
        self.next = number + 1;
        true
    }

    /// Gives out a number; `None` = all are in use or in quarantine.
    pub fn take(&mut self) -> Option<u32> {
        if let Some(number) = self.free.pop_first() {
            return Some(number);
        }
        let number = self.next;
        (number < self.end).then(|| {
            self.next += 1;
            number
        })
    }

    /// Takes a number back; it is given out again after the quarantine.
    pub fn give_back(&mut self, number: u32) {
        self.quarantine.put(number);
    }

    /// The tables of the last plan are in the kernel.
    pub fn applied(&mut self, now: Duration) {
        self.quarantine.applied(now);
    }

    /// Frees what has waited long enough.
    pub fn age(&mut self, now: Duration) {
        self.free.extend(self.quarantine.free(now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_never_given_out_and_the_end_is_known() {
        let mut pool = Pool::new(3);
        assert_eq!([pool.take(), pool.take(), pool.take()], [Some(1), Some(2), None]);
    }

    #[test]
    fn a_number_comes_back_two_seconds_after_the_apply_not_after_the_plan() {
        let mut pool = Pool::new(2);
        let at = Duration::from_millis;
        assert_eq!(pool.take(), Some(1));
        pool.give_back(1);
        pool.age(at(60_000));
        assert_eq!(pool.take(), None, "the kernel may still use it");
        pool.applied(at(60_000));
        pool.age(at(61_999));
        assert_eq!(pool.take(), None);
        pool.age(at(62_000));
        assert_eq!(pool.take(), Some(1));
    }

    #[test]
    fn restored_numbers_are_not_given_out_twice() {
        let mut pool = Pool::new(5);
        assert!(pool.restore(3) && !pool.restore(3) && pool.restore(1));
        assert!(!pool.restore(0) && !pool.restore(5));
        assert_eq!([pool.take(), pool.take(), pool.take()], [Some(2), Some(4), None]);
    }
}
