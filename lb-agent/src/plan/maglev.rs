//! The Maglev table of a set of endpoints: which endpoint owns which slot, the same on every node.
//!
//! **Invariants:** a table depends on nothing but the endpoints' addresses, ports, protocol and weights, and on its
//! size: not on ids, on the order in which endpoints came, on what was before. Every endpoint has its turns in
//! proportion to its weight; one that goes moves the slots it had, and few others.
//!
//! The algorithm is section 3.4 of "Maglev: A Fast and Reliable Software Network Load Balancer" (NSDI 2016), with weights as
//! turns. Figures: docs/design/maglev.md.

use std::net::IpAddr;

use lb_common::maglev::mix64;

/// Sizes of tables: primes, so that every skip walks through all slots, each four times the one before. Few sizes, since
/// tables of different sizes have nothing in common.
pub const SIZES: [u32; 7] = [251, 1021, 4093, 16_381, 65_521, 262_139, 1_048_573];
/// Least number of slots per endpoint: shares are even to one part in so many.
const SLOTS_PER_ENDPOINT: usize = 100;
/// The weight of an endpoint whose slice names none.
pub const DEFAULT_WEIGHT: u16 = 1;
/// The largest weight.
pub const MAX_WEIGHT: u16 = 1000;

/// A member of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// The backend's id: what its slots hold.
    pub id: u32,
    /// What tells endpoints apart on every node: [`identity`].
    pub identity: u64,
    /// Its weight; 0 = no slots, unless all have 0.
    pub weight: u16,
}

/// A number that stands for an endpoint, the same on every node.
#[must_use]
pub fn identity(address: IpAddr, port: u16, protocol: u8) -> u64 {
    let address = match address {
        IpAddr::V4(a) => a.to_ipv6_mapped(),
        IpAddr::V6(a) => a,
    };
    let bits = address.to_bits();
    let tail = u64::from(port) << 8 | u64::from(protocol);
    // Truncation takes the low half.
    mix64(mix64(mix64((bits >> 64) as u64 ^ SEED) ^ bits as u64) ^ tail)
}

/// Part of the agreement between nodes, as the constants of `lb_common::maglev` are.
const SEED: u64 = 0x6c62_2d61_6765_6e74;

/// The size of a table of so many `members` of a set that has up to `endpoints`. `fixed` is the operator's.
///
/// By the endpoints and not the members, so that one that is not ready for a while does not change it. One member owns
/// everything whatever the size: one slot will do.
#[must_use]
pub fn size(members: usize, endpoints: usize, fixed: Option<u32>) -> u32 {
    if members <= 1 {
        return 1;
    }
    let holds = |size: &u32| *size as usize > members;
    let least = members.max(endpoints).saturating_mul(SLOTS_PER_ENDPOINT);
    let enough = |size: &&u32| **size as usize >= least;
    let [.., largest] = SIZES;
    fixed.filter(holds).unwrap_or_else(|| SIZES.iter().find(enough).copied().unwrap_or(largest))
}

/// One endpoint while slots are given out.
struct Player {
    id: u32,
    weight: u32,
    credit: u32,
    next: u64,
    skip: u64,
}

/// The table: `size` backend ids. Empty if there are no members.
///
/// `size` is 1 or a prime. Members may come in any order as long as no two have the same identity. Cost: about `size` x log(`size`) steps.
#[must_use]
pub fn table(members: &[Member], size: u32) -> Vec<u32> {
    let mut sorted: Vec<&Member> = members.iter().collect();
    sorted.sort_by_key(|m| m.identity);
    let most = sorted.iter().map(|m| m.weight).max().unwrap_or(0);
    let weight = |m: &Member| u32::from(if most == 0 { 1 } else { m.weight });
    let size = u64::from(size);
    let mut players: Vec<Player> = sorted
        .into_iter()
        .filter(|m| weight(m) > 0)
        .map(|m| Player {
            id: m.id,
            weight: weight(m),
            credit: 0,
            next: mix64(m.identity) % size,
            skip: if size > 1 { mix64(!m.identity) % (size - 1) + 1 } else { 0 },
        })
        .collect();
    if let [only] = players.as_slice() {
        return std::iter::repeat_n(only.id, usize::try_from(size).unwrap_or(usize::MAX)).collect();
    }
    let most = u32::from(most.max(1));
    let mut slots = vec![0_u32; usize::try_from(size).unwrap_or(usize::MAX)];
    let mut left = if players.is_empty() { 0 } else { slots.len() };
    while left > 0 {
        for player in &mut players {
            // A turn for whoever has the largest weight in every round, for the others as often as their part of it.
            player.credit += player.weight;
            if player.credit < most {
                continue;
            }
            player.credit -= most;
            if left > 0 {
                take(&mut slots, player, size);
                left -= 1;
            }
        }
    }
    slots
}

/// Gives a player the first slot of its permutation that is free (0: backend ids are not). There must be one.
fn take(slots: &mut [u32], player: &mut Player, size: u64) {
    loop {
        let at = usize::try_from(player.next).unwrap_or(usize::MAX);
        player.next += player.skip;
        if player.next >= size {
            player.next -= size;
        }
        match slots.get_mut(at) {
            Some(slot) if *slot != 0 => {}
            Some(slot) => {
                *slot = player.id;
                return;
            }
            None => return,
        }
    }
}

#[cfg(test)]
#[path = "maglev_tests.rs"]
mod tests;
