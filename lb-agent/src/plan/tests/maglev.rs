//! Services with Maglev tables.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use lb_common::abi::{SVC_MAGLEV, SvcValue};

use super::{CLUSTER, key};
use crate::desired::Desired;
use crate::fixture::{World, edge, endpoint, service, settings, slice};
use crate::model::settings::{Algorithm, Limits, Settings};
use crate::model::{EndpointSpec, ServiceSpec};

fn maglev() -> Settings {
    Settings { selection: Algorithm::Maglev, ..settings() }
}

fn frontend(tables: &Desired) -> SvcValue {
    tables.services4[&key(CLUSTER, 443)]
}

/// The endpoints' addresses, by slot of the Cluster set.
fn owners(tables: &Desired) -> Vec<Ipv4Addr> {
    let value = frontend(tables);
    let ids = tables.slots.run(value.cluster_start, value.cluster_len).unwrap();
    ids.iter().map(|id| tables.backends4[id].addr.into()).collect()
}

fn shares(tables: &Desired) -> BTreeMap<u8, usize> {
    let mut shares = BTreeMap::new();
    owners(tables).iter().for_each(|a| *shares.entry(a.octets()[3]).or_default() += 1);
    shares
}

/// A world with the Service `edge` and endpoints of these last bytes on another node.
fn world(last: &[u8]) -> World {
    let mut world = World::with(maglev());
    world.service(edge()).slice(slice("s", "edge", &endpoints(last)));
    world
}

fn endpoints(last: &[u8]) -> Vec<EndpointSpec> {
    last.iter().map(|n| endpoint(&format!("10.77.2.{n}"), "elm")).collect()
}

#[test]
fn the_service_says_or_else_the_operator() {
    use Algorithm::{Maglev, Random};
    for (selection, operator, size) in
        [(None, Random, 2), (None, Maglev, 251), (Some(Random), Maglev, 2), (Some(Maglev), Random, 251)]
    {
        let mut world = World::with(Settings { selection: operator, ..settings() });
        let spec = ServiceSpec { selection, ..edge() };
        let tables = world.service(spec).slice(slice("s", "edge", &endpoints(&[1, 2]))).after(0);
        let value = frontend(&tables);
        assert_eq!((value.cluster_len, value.local_len), (size, 0), "{selection:?} {operator:?}");
        assert_eq!(value.flags & SVC_MAGLEV != 0, size == 251);
    }
}

#[test]
fn two_nodes_with_other_ids_have_the_same_tables() {
    let here = world(&[1, 2, 3, 4, 5]).after(0);
    let mut there = World::with(maglev());
    // other Services and endpoints came and went, and the slices say the same in other words
    there.service(service("other", &["10.200.0.99"])).slice(slice("o", "other", &endpoints(&[9, 8, 1])));
    there.after(0);
    there.service(edge()).slice(slice("t", "edge", &endpoints(&[5, 2, 7])));
    there.after(1);
    there.slice(slice("t", "edge", &endpoints(&[5, 2])));
    there.slice(slice("u", "edge", &endpoints(&[4, 3, 1])));
    let there = there.after(2);
    assert_eq!(owners(&there), owners(&here));
    assert_ne!(there.slots.iter().map(|(_, id)| id).max(), here.slots.iter().map(|(_, id)| id).max());
}

#[test]
fn weights_of_slices_are_the_shares() {
    let mut world = world(&[1, 2]);
    let heavy = EndpointSpec { weight: 2, ..endpoint("10.77.2.3", "elm") };
    let drained = EndpointSpec { weight: 0, ..endpoint("10.77.2.4", "elm") };
    let shares = shares(&world.slice(slice("t", "edge", &[heavy, drained])).after(0));
    assert_eq!(shares.keys().copied().collect::<Vec<_>>(), [1, 2, 3]);
    assert!((shares[&3] - 2 * shares[&1]) <= 2 && shares[&1].abs_diff(shares[&2]) <= 1, "{shares:?}");
}

#[test]
fn an_endpoint_that_is_not_ready_gives_up_its_slots_and_no_others() {
    let mut world = world(&[1, 2, 3]);
    let before = owners(&world.after(0));
    let mut some = endpoints(&[1, 2, 3]);
    some[1].ready = false;
    let after = owners(&world.slice(slice("s", "edge", &some)).after(1));
    assert_eq!(after.len(), before.len(), "the size stays");
    let gone: Ipv4Addr = [10, 77, 2, 2].into();
    assert!(!after.contains(&gone));
    let moved = before.iter().zip(&after).filter(|(b, a)| **b != gone && b != a).count();
    assert!(moved < before.len() / 50, "{moved} of {}", before.len());
}

#[test]
fn an_unchanged_table_keeps_its_range_also_over_a_restart() {
    let mut world = world(&[1, 2, 3]);
    let before = world.after(0);
    world.service(service("web", &["10.200.0.20"]));
    let again = world.after(1);
    assert!(before.slots.ranges().all(|(start, ids)| again.slots.shares(start, ids)), "made again");
    world.restart(5, &again);
    let after = world.after(2);
    assert_eq!((&after.services4, &after.slots), (&again.services4, &again.slots));
}

#[test]
fn a_table_without_room_is_named_and_the_choice_is_random() {
    let limits = Limits { slots: 600, ..Limits::PRODUCT };
    let mut world = World::with(Settings { limits, ..maglev() });
    world.service(edge()).slice(slice("s", "edge", &endpoints(&[1, 2, 3])));
    let (tables, issues) = world.plan();
    let value = frontend(&tables);
    assert_eq!((value.cluster_len, value.flags & SVC_MAGLEV), (3, 0));
    assert!(issues.iter().any(|i| i.cure.contains("--max-slots")), "{issues:?}");
}

/// What a plan costs with so many services of ten endpoints: the first, one after one endpoint went, and one after a
/// restart.
fn times(services: u32, selection: Algorithm) -> [Duration; 3] {
    let limits = Limits { slots: 1 << 24, ..Limits::PRODUCT };
    let mut world = World::with(Settings { limits, selection, ..settings() });
    let ten = |n: u32| -> Vec<EndpointSpec> {
        let [_, _, high, low] = n.to_be_bytes();
        (10..20).map(|net| endpoint(&format!("10.{net}.{high}.{low}"), "elm")).collect()
    };
    for n in 0..services {
        let [_, _, high, low] = n.to_be_bytes();
        let (name, address) = (format!("s{n}"), format!("10.201.{high}.{low}"));
        world.service(service(&name, &[&address]));
        world.slice(slice(&name, &name, &ten(n)));
    }
    let timed = |world: &mut World| {
        let began = Instant::now();
        world.quick_plan();
        let took = began.elapsed();
        world.ids.applied(world.now);
        (took, world.planner.desired().clone())
    };
    let (first, before) = timed(&mut world);
    assert_eq!(before.services4.len(), services as usize * 2);
    let mut fewer = ten(7);
    fewer.pop();
    world.slice(slice("s7", "s7", &fewer));
    let (changed, after) = timed(&mut world);
    if selection == Algorithm::Maglev {
        let other = after.slots.ranges().filter(|(start, ids)| !before.slots.shares(*start, ids)).count();
        assert_eq!(other, 1, "one changed service makes one table");
    }
    world.restart(1, &after);
    let (restarted, _) = timed(&mut world);
    [first, changed, restarted]
}

#[test]
fn one_changed_service_makes_one_table() {
    times(200, Algorithm::Maglev);
}

/// The figures of docs/design/maglev.md: `cargo test --release -p lb-agent --lib plan_figures -- --ignored --nocapture`.
#[test]
#[ignore = "prints figures"]
fn plan_figures() {
    for selection in [Algorithm::Random, Algorithm::Maglev] {
        let [first, changed, restarted] = times(10_000, selection);
        println!(
            "{selection:?}: 10,000 services of 10 endpoints: first plan {first:.0?}, one endpoint less {changed:.0?}, after a \
             restart {restarted:.0?}"
        );
    }
}
