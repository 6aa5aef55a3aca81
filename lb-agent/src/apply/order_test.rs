//! The order of `apply`, checked after every single operation over random states and faults.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use lb_common::abi::{Backend4, ROLE_BACKEND, ROLE_FRONTEND, SvcKey4, SvcValue};
use proptest::prelude::*;

use super::fake::{FakeMaps, State};
use super::{Applier, ApplyError};
use crate::desired::{Changes, Desired, for_each_table};
use crate::fixture::{World, endpoint, ip, port, service, slice};
use crate::model::{Key, ObjectName, Protocol, ServiceSpec};

/// Slots of one service: a service that changes moves between two ranges, as the planner's quarantine makes it.
const RANGE: u32 = 8;

/// A service and its backends, as small numbers.
#[derive(Clone, Debug)]
struct Service {
    port: u8,
    half: bool,
    backends: Vec<u8>,
}

fn services() -> impl Strategy<Value = Vec<Service>> {
    let service = (0u8..12, any::<bool>(), prop::collection::vec(0u8..6, 0..6));
    prop::collection::vec(service.prop_map(|(port, half, backends)| Service { port, half, backends }), 0..8)
}

/// The id of a backend belongs to one service, and tells its generation apart.
fn backend_id(service: &Service, backend: u8) -> u32 {
    1 + u32::from(service.port) * 16 + u32::from(backend)
}

fn desired(services: &[Service], round: u32) -> Desired {
    let mut desired = Desired::default();
    for service in services {
        let addr = [10, 96, 0, service.port];
        let key = SvcKey4 { addr, port: [0, 80], proto: 6, _pad: 0 };
        let start = (u32::from(service.port) * 4 + (round % 2) * 2 + u32::from(service.half)) * RANGE;
        let len = service.backends.len() as u32;
        let value = SvcValue {
            id: service.port.into(),
            cluster_start: start,
            cluster_len: len,
            ..SvcValue::default()
        };
        desired.services4.insert(key, value);
        let ids = service.backends.iter().map(|backend| backend_id(service, *backend));
        desired.slots.put(start, ids.collect());
        desired.roles.insert(IpAddr::V4(Ipv4Addr::from(addr)), ROLE_FRONTEND);
        for backend in &service.backends {
            let id = backend_id(service, *backend);
            let addr = [10, 244, service.port, *backend];
            desired.generations4.insert(id, round + 1);
            desired.backends4.insert(id, Backend4 { addr, port: [31, 144], proto: 6, ..Backend4::default() });
            desired.roles.insert(IpAddr::V4(Ipv4Addr::from(addr)), ROLE_BACKEND);
        }
    }
    desired
}

/// What a packet may rely on, whatever instant it comes at.
fn invariants(state: &State) {
    let role = |addr: [u8; 4]| state.roles[lb_common::hash::role_slot4(addr) as usize];
    for (key, value) in &state.tables.services4 {
        assert!(key.addr == [0; 4] || role(key.addr) & ROLE_FRONTEND != 0, "a frontend without its role");
        for slot in value.cluster_start..value.cluster_start + value.cluster_len {
            let id = state.slots.get(&slot).expect("a frontend names a missing slot");
            let backend = state.tables.backends4.get(id).expect("a frontend names a missing backend");
            assert!(role(backend.addr) & ROLE_BACKEND != 0, "a backend in use without its role");
            assert!(state.tables.generations4.contains_key(id), "a backend in use without a generation");
        }
    }
}

/// What must be equal in the end; slots and generations may outlive their use.
fn assert_holds(state: &State, desired: &Desired) {
    assert_eq!(state.tables.services4, desired.services4);
    assert_eq!(state.tables.backends4, desired.backends4);
    assert!(desired.slots.iter().all(|(slot, id)| state.slots.get(&slot) == Some(&id)));
    assert!(desired.generations4.iter().all(|(id, g)| state.tables.generations4.get(id) == Some(g)));
}

fn role_bytes(desired: &Desired) -> Vec<u8> {
    lb_common::hash::role_filter(desired.roles.iter().map(|(address, role)| (*address, *role)))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn no_frontend_ever_names_what_is_missing(states in prop::collection::vec(services(), 1..6), seed in any::<u64>()) {
        let (maps, state) = FakeMaps::new(seed, 100, invariants);
        let mut applier = Applier::new(maps).expect("reading memory");
        for (round, services) in states.iter().enumerate() {
            let desired = desired(services, round as u32);
            // With one fault in ten, a plan of up to 100 operations needs some rounds.
            let done = (0..400).any(|_| applier.apply(&desired, &Changes::All).complete());
            prop_assert!(done, "it does not converge");
            assert_holds(&state.borrow(), &desired);
            prop_assert_eq!(&state.borrow().roles, &role_bytes(&desired));
            let before = state.borrow().ops;
            let again = applier.apply(&desired, &Changes::All);
            prop_assert!(again.changed.is_empty() && state.borrow().ops == before, "applying again does something");
        }
    }

    #[test]
    fn a_restart_sweeps_what_the_old_agent_left(old in services(), new in services()) {
        let (maps, state) = FakeMaps::new(1, 0, invariants);
        let mut first = Applier::new(maps).expect("reading memory");
        prop_assert!(first.apply(&desired(&old, 0), &Changes::All).complete());
        let left = state.borrow().roles.clone();
        let maps = first.maps;
        let mut second = Applier::new(maps).expect("reading memory");
        let wanted = desired(&new, 1);
        prop_assert!(second.apply(&wanted, &Changes::All).complete());
        assert_holds(&state.borrow(), &wanted);
        // flows of what went before the restart are still found, for as long as they may live
        let roles = role_bytes(&wanted);
        let both: Vec<u8> = roles.iter().zip(&left).map(|(new, old)| new | old).collect();
        prop_assert_eq!(&state.borrow().roles, &both);
        second.inherited.1 = std::time::Instant::now();
        prop_assert!(second.apply(&wanted, &Changes::All).complete());
        prop_assert_eq!(&state.borrow().roles, &roles);
    }
}

#[test]
fn the_checker_sees_a_wrong_order() {
    let (mut maps, _) = FakeMaps::new(1, 0, invariants);
    let wanted = desired(&[Service { port: 1, half: false, backends: vec![1] }], 0);
    let entries: Vec<_> = wanted.services4.iter().map(|(k, v)| (*k, *v)).collect();
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        use super::mapset::MapSet;
        maps.services4().write(&entries)
    }));
    assert!(result.is_err(), "a frontend was written before its backend, and nobody noticed");
}

#[test]
fn a_failed_stage_stops_the_next_and_names_the_cure() {
    let (maps, state) = FakeMaps::new(1, 1000, invariants);
    let mut applier = Applier::new(maps).expect("reading memory");
    let wanted = desired(&[Service { port: 1, half: false, backends: vec![1, 2] }], 0);
    let report = applier.apply(&wanted, &Changes::All);
    // Both generations were tried, and nothing after them.
    assert_eq!(report.errors.len(), 2);
    assert!(report.errors.iter().all(|error: &ApplyError| error.table == "LB_GEN4"));
    let text = report.errors[0].to_string();
    assert!(text.contains("--max-backends"), "{text}");
    assert_eq!(state.borrow().tables, Desired::default());
    assert!(state.borrow().slots.is_empty());
}

macro_rules! lacking {
    ($($field:ident: $key:ty => $value:ty, $name:ident;)*) => {
        /// Tables that are not as desired; generations may outlive their use.
        fn lacking(state: &State, desired: &Desired) -> Vec<&'static str> {
            let mut found = Vec::new();
            $(if state.tables.$field != desired.$field && !stringify!($field).starts_with("generations") {
                found.push(stringify!($field));
            })*
            if desired.slots.iter().any(|(slot, id)| state.slots.get(&slot) != Some(&id)) {
                found.push("slots");
            }
            if state.tables.config != desired.config {
                found.push("config");
            }
            found
        }
    };
}
for_each_table!(lacking);

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn what_changed_brings_the_tables_there_whatever_fails(
        steps in prop::collection::vec((0_usize..6, 0_u8..6, any::<bool>()), 1..30),
        seed in any::<u64>(),
    ) {
        let (maps, state) = FakeMaps::new(seed, 20, invariants);
        let mut applier = Applier::new(maps).expect("reading memory");
        let mut world = World::new();
        for (number, endpoints, there) in steps {
            let name = format!("s{number}");
            if there {
                let node_port = 30_000 + number as u16;
                let ports = vec![port("p", Protocol::Tcp, 80, node_port)];
                let external_ips = vec![ip("198.51.100.1")];
                world.service(ServiceSpec { ports, external_ips, ..service(&name, &[&format!("10.200.0.{number}")]) });
                let list: Vec<_> =
                    (0..endpoints).map(|n| endpoint(&format!("10.77.{number}.{n}"), "elm")).collect();
                world.slice(slice(&name, &name, &list));
            } else {
                world.remove(Key::Service(ObjectName::new("shop", &name)));
            }
            world.now += Duration::from_secs(1);
            world.plan();
            if applier.apply(world.planner.desired(), world.planner.changes()).complete() {
                world.ids.applied(world.now);
                prop_assert_eq!(lacking(&state.borrow(), world.planner.desired()), Vec::<&str>::new());
                prop_assert_eq!(&state.borrow().roles, &role_bytes(world.planner.desired()));
            }
        }
        world.plan();
        let done = (0..400).any(|_| applier.apply(world.planner.desired(), world.planner.changes()).complete());
        prop_assert!(done, "it does not converge");
        prop_assert_eq!(lacking(&state.borrow(), world.planner.desired()), Vec::<&str>::new());
    }
}

/// Operations on the maps for one endpoint less, among so many services of ten endpoints.
fn operations(services: u32) -> usize {
    let (maps, state) = FakeMaps::new(1, 0, |_| ());
    let mut applier = Applier::new(maps).expect("reading memory");
    let mut world = World::new();
    let ten = |n: u32, count: u32| -> Vec<_> {
        (0..count).map(|net| endpoint(&format!("10.{net}.{}.{}", n / 250, n % 250), "elm")).collect()
    };
    for n in 0..services {
        let name = format!("s{n}");
        world.service(service(&name, &[&format!("10.201.{}.{}", n / 250, n % 250)]));
        world.slice(slice(&name, &name, &ten(n, 10)));
    }
    world.quick_plan();
    assert!(applier.apply(world.planner.desired(), world.planner.changes()).complete());
    let before = state.borrow().ops;
    world.slice(slice("s1", "s1", &ten(1, 9)));
    world.quick_plan();
    assert!(applier.apply(world.planner.desired(), world.planner.changes()).complete());
    assert_eq!(lacking(&state.borrow(), world.planner.desired()), Vec::<&str>::new());
    state.borrow().ops - before
}

#[test]
fn one_endpoint_less_writes_the_same_rows_among_few_services_and_many() {
    // the frontend, the generation, nine slots, and the backend that goes
    assert_eq!([operations(3), operations(500)], [12, 12]);
}
