use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn member(n: u32, weight: u16) -> Member {
    let address = IpAddr::from([10, 244, (n >> 8) as u8, n as u8]);
    Member { id: n + 1, identity: identity(address, 8080, 6), weight }
}

fn members(count: u32) -> Vec<Member> {
    (0..count).map(|n| member(n, DEFAULT_WEIGHT)).collect()
}

fn table_of(members: &[Member]) -> Vec<u32> {
    table(members, size(members.len(), members.len(), None))
}

fn shares(table: &[u32]) -> BTreeMap<u32, usize> {
    let mut counts = BTreeMap::new();
    table.iter().for_each(|id| *counts.entry(*id).or_default() += 1);
    counts
}

/// The part of all slots in which two tables of one size differ.
fn moved(a: &[u32], b: &[u32]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).filter(|(a, b)| a != b).count() as f64 / a.len() as f64
}

#[test]
fn sizes_are_primes_that_change_seldom_and_hold_all_members() {
    let prime = |n: u32| (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d));
    assert!(SIZES.iter().all(|size| prime(*size)) && SIZES.is_sorted());
    let size = |n| size(n, n, None);
    assert_eq!([0, 1, 2, 3, 10, 11, 40, 41].map(size), [1, 1, 251, 1021, 1021, 4093, 4093, 16_381]);
    assert_eq!(size(100_000), 1_048_573);
    assert_eq!(super::size(3, 11, None), 4093, "eight are not ready");
    assert_eq!(super::size(1, 11, Some(1021)), 1);
    assert_eq!(super::size(12, 12, Some(1021)), 1021);
    assert_eq!(super::size(1021, 1021, Some(1021)), 262_139, "too many for the operator's size");
}

#[test]
fn the_agreement_between_nodes_has_not_changed() {
    let six: IpAddr = "2001:db8::1".parse().unwrap();
    let seen = [identity([10, 244, 1, 2].into(), 8080, 6), identity(six, 53, 17)];
    assert_eq!(seen, IDENTITIES);
    assert_eq!(table(&members(5), 251)[..12], FIRST);
}
const IDENTITIES: [u64; 2] = [10_820_047_128_774_722_316, 9_400_248_358_424_537_945];
const FIRST: [u32; 12] = [5, 2, 4, 1, 1, 2, 5, 5, 3, 3, 3, 3];

#[test]
fn weights_of_zero_take_nothing_unless_all_are_zero() {
    let drained = shares(&table(&[member(1, 0), member(2, 1), member(3, 1)], 251));
    assert_eq!(drained.keys().copied().collect::<Vec<_>>(), [3, 4]);
    let all = shares(&table(&[member(1, 0), member(2, 0)], 251));
    assert_eq!(all.values().copied().collect::<Vec<_>>(), [126, 125]);
    assert_eq!(table(&[member(1, 0), member(2, 7)], 5), [3; 5]);
    assert_eq!(table(&[], 251), [0; 251]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn all_shares_are_equal_to_one_slot(count in 2_u32..60) {
        let shares = shares(&table_of(&members(count)));
        prop_assert_eq!(shares.len(), count as usize);
        let (least, most) = (shares.values().min(), shares.values().max());
        prop_assert!(most.unwrap() - least.unwrap() <= 1);
    }

    #[test]
    fn shares_follow_the_weights(weights in prop::collection::vec(0_u16..=MAX_WEIGHT, 2..40)) {
        let members: Vec<Member> = (0..).zip(&weights).map(|(n, w)| member(n, *w)).collect();
        let table = table_of(&members);
        let shares = shares(&table);
        let total: f64 = weights.iter().map(|w| f64::from(*w)).sum();
        for m in members.iter().filter(|_| total > 0.0) {
            let part = f64::from(m.weight) / total;
            let due = part * table.len() as f64;
            let has = shares.get(&m.id).copied().unwrap_or(0) as f64;
            // Each is owed less than a turn when the slots are out, and what all are owed was given out in proportion;
            // the last round is not whole.
            let off = 2.0 + part * members.len() as f64;
            prop_assert!((has - due).abs() <= off, "{m:?}: {has} slots of {due}");
        }
    }

    #[test]
    fn the_order_and_the_ids_do_not_matter(
        (order, base) in (Just((0..30_u32).collect::<Vec<_>>()).prop_shuffle(), 1_u32..1000),
        weights in prop::collection::vec(0_u16..10, 30),
    ) {
        let here: Vec<Member> = (0..30).map(|n| member(n, weights[n as usize])).collect();
        // another node: other ids, another order
        let there: Vec<Member> = order
            .iter()
            .enumerate()
            .map(|(i, n)| Member { id: base + i as u32, ..here[*n as usize] })
            .collect();
        let name = |members: &[Member]| -> BTreeMap<u32, u64> {
            members.iter().map(|m| (m.id, m.identity)).collect()
        };
        let (names, theirs) = (name(&here), name(&there));
        let owners: Vec<u64> = table_of(&here).iter().map(|id| names[id]).collect();
        let others: Vec<u64> = table_of(&there).iter().map(|id| theirs[id]).collect();
        prop_assert_eq!(owners, others);
    }

    /// What must move is what the one had that goes; a few slots more change hands between the others.
    #[test]
    fn one_that_goes_moves_its_own_slots_and_few_others(count in 3_u32..60, gone in any::<prop::sample::Index>()) {
        let before = members(count);
        let mut after = before.clone();
        let gone = after.remove(gone.index(before.len()));
        let size = size(before.len(), before.len(), None);
        let (before, after) = (table(&before, size), table(&after, size));
        let kept = before.iter().zip(&after).filter(|(b, _)| **b != gone.id);
        let needless = kept.clone().filter(|(b, a)| a != b).count() as f64 / kept.count() as f64;
        prop_assert!(needless < 0.05, "{needless} of the others' slots moved");
        prop_assert!(moved(&before, &after) < 1.0 / f64::from(count) + 0.05);
    }
}

/// The figures of docs/design/maglev.md: `cargo test --release -p lb-agent --lib maglev_figures -- --ignored --nocapture`.
#[test]
#[ignore = "prints figures"]
fn maglev_figures() {
    for count in [2, 3, 5, 10, 20, 40, 100, 163, 500] {
        let before = members(count);
        let size = size(count as usize, count as usize, None);
        let start = std::time::Instant::now();
        let whole = table(&before, size);
        let built = start.elapsed();
        let needless: Vec<f64> = (0..count.min(40) as usize)
            .map(|gone| {
                let mut after = before.clone();
                after.remove(gone);
                moved(&whole, &table(&after, size))
                    - shares(&whole)[&before[gone].id] as f64 / f64::from(size)
            })
            .collect();
        let mean = needless.iter().sum::<f64>() / needless.len() as f64;
        let most = needless.iter().copied().fold(0.0, f64::max);
        let even = shares(&whole);
        println!(
            "{count:4} endpoints, {size:7} slots, built in {built:9.1?}: due {:.2} %, needless {:.2} % (at most {:.2} %), \
             shares {}..{}",
            100.0 / f64::from(count),
            100.0 * mean,
            100.0 * most,
            even.values().min().unwrap(),
            even.values().max().unwrap(),
        );
    }
}
