//! Roles of addresses, kept for as long as flows may need them.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

/// How long an address keeps a role that it lost: established flows outlive their Service (B79), and the kernel finds
/// them only if the role filter names their addresses. As long as netfilter keeps an idle TCP flow by kube-proxy's
/// default (24 h). A role too many costs a look-up per packet of that address and changes nothing.
pub const LINGER: Duration = Duration::from_secs(24 * 3600);

/// Who wants a role, or when it was last wanted.
#[derive(Clone, Copy, Debug)]
struct Seen {
    /// How many want it.
    wanted: u32,
    /// When a plan wanted it last; means nothing while one does.
    last: Duration,
}

/// All addresses with a role.
#[derive(Clone, Debug, Default)]
pub struct Roles {
    /// Per address and single `ROLE_*` bit.
    seen: BTreeMap<(IpAddr, u8), Seen>,
    /// Those that nobody wants, the oldest first.
    lost: BTreeSet<(Duration, IpAddr, u8)>,
    /// Time of the last plan.
    last: Duration,
    /// Addresses whose roles changed.
    changed: BTreeSet<IpAddr>,
}

impl Roles {
    /// Somebody, or somebody else too, wants a role bit of an address.
    pub fn give(&mut self, address: IpAddr, role: u8) {
        let new = Seen { wanted: 0, last: Duration::ZERO };
        let seen = match self.seen.entry((address, role)) {
            Entry::Occupied(seen) => {
                let seen = seen.into_mut();
                if seen.wanted == 0 {
                    self.lost.remove(&(seen.last, address, role));
                }
                seen
            }
            Entry::Vacant(free) => {
                self.changed.insert(address);
                free.insert(new)
            }
        };
        seen.wanted += 1;
    }

    /// One that wanted a role bit of an address wants it no more: the last plan was the last that it did.
    pub fn take(&mut self, address: IpAddr, role: u8) {
        let Some(seen) = self.seen.get_mut(&(address, role)) else { return };
        seen.wanted = seen.wanted.saturating_sub(1);
        if seen.wanted == 0 {
            seen.last = self.last;
            self.lost.insert((self.last, address, role));
        }
    }

    /// Nobody wants anything any more, as with [`Roles::take`].
    pub fn recall_all(&mut self) {
        for ((address, role), seen) in self.seen.iter_mut().filter(|(_, seen)| seen.wanted > 0) {
            *seen = Seen { wanted: 0, last: self.last };
            self.lost.insert((self.last, *address, *role));
        }
    }

    /// Ends a plan: forgets what was lost longer than [`LINGER`] ago.
    pub fn finish(&mut self, now: Duration) {
        self.last = now;
        while let Some((last, address, role)) = self.lost.first().copied()
            && now.saturating_sub(last) > LINGER
        {
            self.lost.pop_first();
            self.seen.remove(&(address, role));
            self.changed.insert(address);
        }
    }

    /// All roles of an address.
    #[must_use]
    pub fn of(&self, address: IpAddr) -> u8 {
        self.seen.range((address, 0)..=(address, u8::MAX)).fold(0, |roles, ((_, role), _)| roles | role)
    }

    /// Addresses whose roles changed since the last call.
    pub fn take_changed(&mut self) -> BTreeSet<IpAddr> {
        std::mem::take(&mut self.changed)
    }

    /// The roles of all addresses.
    #[must_use]
    pub fn rows(&self) -> BTreeMap<IpAddr, u8> {
        let mut rows = BTreeMap::new();
        for (address, role) in self.seen.keys() {
            *rows.entry(*address).or_default() |= role;
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn b79_a_role_outlives_its_service_by_a_day_and_no_more() {
        let mut roles = Roles::default();
        let (a, second) = (IpAddr::from([10, 0, 0, 1]), Duration::from_secs(1));
        // wanted by a plan at 0 only, and by one at 0 and one at 10
        roles.give(a, 1);
        roles.give(a, 2);
        roles.finish(Duration::ZERO);
        roles.take(a, 1);
        roles.finish(second * 10);
        roles.take(a, 2);
        let rows = |roles: &mut Roles, now| {
            roles.finish(now);
            assert_eq!(roles.rows().get(&a).copied().unwrap_or(0), roles.of(a));
            roles.of(a)
        };
        assert_eq!(rows(&mut roles, LINGER), 3);
        assert_eq!(rows(&mut roles, LINGER + second), 2);
        roles.take_changed();
        assert_eq!(rows(&mut roles, LINGER + second * 10), 2);
        assert!(roles.take_changed().is_empty());
        assert_eq!(rows(&mut roles, LINGER + second * 11), 0);
        assert!(roles.take_changed().contains(&a) && roles.lost.is_empty());
    }

    #[test]
    fn a_role_that_several_want_is_lost_with_the_last_of_them_and_comes_back() {
        let mut roles = Roles::default();
        let a = IpAddr::from([10, 0, 0, 1]);
        roles.give(a, 1);
        roles.give(a, 1);
        roles.take(a, 1);
        roles.finish(LINGER * 2);
        assert_eq!(roles.of(a), 1, "one wants it still");
        roles.take(a, 1);
        roles.give(a, 1);
        roles.finish(LINGER * 4);
        assert_eq!(roles.of(a), 1);
        roles.recall_all();
        roles.finish(LINGER * 5);
        assert_eq!(roles.of(a), 1, "it was wanted a day ago");
        roles.finish(LINGER * 6);
        assert_eq!(roles.of(a), 0);
    }
}
