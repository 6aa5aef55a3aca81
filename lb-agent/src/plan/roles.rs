//! Roles of addresses, kept for as long as flows may need them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

/// How long an address keeps a role that it lost: established flows outlive their Service (B79), and the kernel finds
/// them only if the role filter names their addresses. As long as netfilter keeps an idle TCP flow by kube-proxy's
/// default (24 h). A role too many costs a look-up per packet of that address and changes nothing.
pub const LINGER: Duration = Duration::from_secs(24 * 3600);

/// All addresses with a role.
#[derive(Clone, Debug, Default)]
pub struct Roles {
    /// Per address and single `ROLE_*` bit, when it was last wanted.
    seen: BTreeMap<(IpAddr, u8), Duration>,
}

impl Roles {
    /// Gives an address a role bit at a time.
    pub fn give(&mut self, address: IpAddr, role: u8, now: Duration) {
        self.seen.insert((address, role), now);
    }

    /// The roles of all addresses; forgets those lost longer than [`LINGER`] ago.
    pub fn rows(&mut self, now: Duration) -> BTreeMap<IpAddr, u8> {
        self.seen.retain(|_, seen| now.saturating_sub(*seen) <= LINGER);
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
        let a = IpAddr::from([10, 0, 0, 1]);
        roles.give(a, 1, Duration::ZERO);
        roles.give(a, 2, Duration::from_secs(10));
        assert_eq!(roles.rows(LINGER), BTreeMap::from([(a, 3)]));
        assert_eq!(roles.rows(LINGER + Duration::from_secs(1)), BTreeMap::from([(a, 2)]));
        assert_eq!(roles.rows(LINGER + Duration::from_secs(11)), BTreeMap::new());
    }
}
