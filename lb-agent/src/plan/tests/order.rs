//! Same objects, in any order and any batch, same tables up to the numbers given out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::subsequence;

use lb_common::abi::SvcValue;

use crate::desired::Desired;
use crate::fixture::{World, edge, endpoint, node, port, service, slice};
use crate::model::{EndpointSpec, Key, Object, Policy, Protocol, ServiceSpec};
use crate::plan::roles::LINGER;

/// A backend without its number.
type Target = (IpAddr, [u8; 2], u8, u8);

/// A frontend without its numbers: what it is, and the two sets.
type Frontend = (IpAddr, [u8; 2], u8, u32, u32, BTreeSet<Target>, BTreeSet<Target>);

/// Tables without the numbers that an id table gave out.
#[derive(Debug, PartialEq)]
struct Bare {
    frontends: BTreeSet<Frontend>,
    targets: BTreeSet<Target>,
    rest: Desired,
}

fn bare(tables: &Desired) -> Bare {
    let four: BTreeMap<u32, Target> =
        tables.backends4.iter().map(|(id, b)| (*id, (b.addr.into(), b.port, b.proto, b.flags))).collect();
    let six: BTreeMap<u32, Target> =
        tables.backends6.iter().map(|(id, b)| (*id, (b.addr.into(), b.port, b.proto, b.flags))).collect();
    let set = |targets: &BTreeMap<u32, Target>, start: u32, len: u32| {
        (start..start + len)
            .map(|slot| targets[&tables.slots.get(slot).unwrap()])
            .collect::<BTreeSet<Target>>()
    };
    let frontend = |address, port, proto, v: &SvcValue, targets: &BTreeMap<u32, Target>| {
        let cluster = set(targets, v.cluster_start, v.cluster_len);
        let local = set(targets, v.local_start, v.local_len);
        (address, port, proto, v.flags, v.affinity_s, cluster, local)
    };
    let frontends4 = tables.services4.iter().map(|(k, v)| frontend(k.addr.into(), k.port, k.proto, v, &four));
    let frontends6 = tables.services6.iter().map(|(k, v)| frontend(k.addr.into(), k.port, k.proto, v, &six));
    Bare {
        frontends: frontends4.chain(frontends6).collect(),
        targets: four.values().chain(six.values()).copied().collect(),
        rest: Desired {
            config: tables.config,
            node4: tables.node4.clone(),
            node6: tables.node6.clone(),
            cidrs4: tables.cidrs4.clone(),
            interfaces: tables.interfaces.clone(),
            roles: tables.roles.clone(),
            namespaces: tables.namespaces.clone(),
            ..Desired::default()
        },
    }
}

/// Everything there is to choose from; several versions of one object differ.
fn universe() -> Vec<Object> {
    let draining = |a, n| EndpointSpec { ready: false, terminating: true, ..endpoint(a, n) };
    let local = ServiceSpec { external: Policy::Local, affinity_s: Some(30), ..edge() };
    let two = ServiceSpec {
        ports: vec![port("p", Protocol::Tcp, 80, 30080), port("q", Protocol::Udp, 53, 30053)],
        ..service("two", &["10.200.0.20", "fd00:200::20"])
    };
    let services = [edge(), local, two, service("web", &["10.200.0.12"]), service("web", &["10.200.0.13"])];
    let slices = [
        slice("e1", "edge", &[endpoint("10.77.1.5", "ash"), endpoint("10.77.2.5", "elm")]),
        slice("e1", "edge", &[draining("10.77.1.5", "ash"), endpoint("10.77.2.5", "elm")]),
        slice("e1", "web", &[endpoint("10.77.1.5", "ash")]),
        slice("e2", "edge", &[endpoint("fd77:0:1:1::5", "ash")]),
        slice("e3", "edge", &[draining("10.77.2.5", "oak"), endpoint("10.77.3.5", "oak")]),
        slice("w1", "web", &[draining("10.77.1.6", "ash")]),
        slice("t1", "two", &[endpoint("10.77.1.7", "ash"), endpoint("10.77.2.7", "elm")]),
    ];
    let services = services.into_iter().map(|s| Object::Service(Arc::new(s)));
    let slices = slices.into_iter().map(|s| Object::Slice(Arc::new(s)));
    services.chain(slices).chain([Object::Node(Arc::new(node()))]).collect()
}

/// Steps: put an object or remove its key, and whether a plan is made behind it.
fn steps() -> impl Strategy<Value = Vec<(Object, bool, bool)>> {
    let object = proptest::sample::select(universe());
    proptest::collection::vec((object, any::<bool>(), any::<bool>()), 0..30)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn same_objects_in_any_order_and_batch_give_the_same_tables(
        history in steps(),
        last in subsequence(universe(), 0..13).prop_shuffle(),
    ) {
        // Of several versions of one object one is chosen, whatever the order.
        let mut chosen: BTreeMap<Key, Object> = BTreeMap::new();
        for object in last {
            chosen.insert(object.key(), object);
        }
        let mut fresh = World::new();
        fresh.remove(Key::Node("ash".to_owned()));
        for object in chosen.values() {
            fresh.put(object.clone());
        }
        let expected = bare(&fresh.after(0));

        let mut world = World::new();
        for (object, put, plan_now) in history {
            if put { world.put(object) } else { world.remove(object.key()); }
            if plan_now {
                let tables = world.after(1);
                prop_assert!(consistent(&tables), "{tables:?}");
            }
        }
        for object in universe() {
            if !chosen.contains_key(&object.key()) {
                world.remove(object.key());
            }
        }
        for object in chosen.into_values().rev() {
            world.put(object);
        }
        world.after(1);
        world.now += LINGER + Duration::from_secs(1);
        let tables = world.after(0);
        prop_assert!(consistent(&tables));
        prop_assert_eq!(bare(&tables), expected);
    }

    #[test]
    fn a_restart_at_any_moment_changes_no_number(history in steps()) {
        let mut world = World::new();
        for (object, put, _) in history {
            if put { world.put(object) } else { world.remove(object.key()); }
            world.after(1);
        }
        // Quarantine over: what is read back is what is served.
        world.after(3);
        let before = world.after(3);
        world.restart(9_999_999, &before);
        let after = world.after(3);
        prop_assert_eq!(&after.services4, &before.services4);
        prop_assert_eq!(&after.services6, &before.services6);
        prop_assert_eq!(&after.backends4, &before.backends4);
        prop_assert_eq!(&after.backends6, &before.backends6);
        prop_assert_eq!(&after.generations4, &before.generations4);
        prop_assert_eq!(&after.generations6, &before.generations6);
        prop_assert_eq!(&after.slots, &before.slots);
    }
}

/// No frontend names a slot that is empty, no slot in use a backend of another service port.
fn consistent(tables: &Desired) -> bool {
    tables.services4.values().filter(|v| v.id != 0).all(|v| {
        let cluster = v.cluster_start..v.cluster_start + v.cluster_len;
        cluster.chain(v.local_start..v.local_start + v.local_len).all(|slot| {
            let backend = tables.slots.get(slot).and_then(|id| tables.backends4.get(&id));
            backend.is_some_and(|b| b.service == v.id)
        })
    })
}
