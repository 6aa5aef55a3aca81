use crate::desired::Desired;
use crate::fixture::{World, edge, endpoint, service, slice};
use crate::model::{Key, ObjectName};
use crate::plan::pool::QUARANTINE;

fn world() -> World {
    let mut world = World::new();
    world.service(edge());
    world.slice(slice("s", "edge", &[endpoint("10.77.1.5", "ash"), endpoint("10.77.2.5", "elm")]));
    world
}

fn id_of(tables: &Desired, last: u8) -> Option<u32> {
    tables.backends4.iter().find(|(_, b)| b.addr[3] == last && b.addr[2] == 1).map(|(id, _)| *id)
}

#[test]
fn ids_are_never_zero_and_new_generations_begin_at_the_seed() {
    let tables = world().after(0);
    assert!(!tables.backends4.contains_key(&0));
    assert!(
        tables.services4.values().filter(|v| v.flags & lb_common::abi::SVC_ADDRESS == 0).all(|v| v.id != 0)
    );
    assert!(tables.generations4.values().all(|g| *g == 1000));
    assert!(tables.services4.values().filter(|v| v.id != 0).all(|v| v.generation == 1000));
}

#[test]
fn an_endpoint_of_two_service_ports_has_two_ids() {
    let mut world = world();
    world.service(service("web", &["10.200.0.20"])).slice(slice("w", "web", &[endpoint("10.77.1.5", "ash")]));
    let tables = world.after(0);
    assert_eq!(tables.backends4.values().filter(|b| b.addr == [10, 77, 1, 5]).count(), 2);
}

#[test]
fn numbers_stay_when_other_objects_come_and_go() {
    let mut world = world();
    let before = world.after(0);
    world.service(service("aaa", &["10.200.0.20"])).slice(slice("a", "aaa", &[endpoint("10.77.1.4", "ash")]));
    let after = world.after(1);
    assert_eq!(id_of(&after, 5), id_of(&before, 5));
    for (key, value) in &before.services4 {
        assert_eq!(after.services4[key], *value);
    }
}

#[test]
fn a_generation_moves_when_the_endpoint_leaves_and_when_the_id_is_reused() {
    let mut world = world();
    let tables = world.after(0);
    let id = id_of(&tables, 5).unwrap();
    world.slice(slice("s", "edge", &[endpoint("10.77.2.5", "elm")]));
    let left = world.after(1);
    assert_eq!((left.backends4.contains_key(&id), left.generations4[&id]), (false, 1001));
    world.slice(slice("s", "edge", &[endpoint("10.77.2.5", "elm"), endpoint("10.77.1.6", "ash")]));
    let early = world.after(1);
    assert_ne!(id_of(&early, 6), Some(id), "in quarantine");
    world.slice(slice("t", "edge", &[endpoint("10.77.1.7", "ash")]));
    let late = world.after(QUARANTINE.as_secs());
    assert_eq!((id_of(&late, 7), late.generations4[&id]), (Some(id), 1002));
}

#[test]
fn a_draining_endpoint_keeps_its_id_and_generation_while_it_serves() {
    let mut world = world();
    let before = world.after(0);
    let mut draining = endpoint("10.77.1.5", "ash");
    (draining.ready, draining.terminating) = (false, true);
    world.slice(slice("s", "edge", &[draining, endpoint("10.77.2.5", "elm")]));
    let after = world.after(1);
    assert_eq!(id_of(&after, 5), id_of(&before, 5));
    assert_eq!(after.generations4, before.generations4);
}

#[test]
fn a_reused_service_id_has_another_generation() {
    let mut world = world();
    let before = world.after(0);
    let old = before.services4.values().find(|v| v.id != 0).copied().unwrap();
    world.remove(Key::Service(ObjectName::new("shop", "edge")));
    world.after(1);
    world.service(service("web", &["10.200.0.20"]));
    let after = world.after(QUARANTINE.as_secs());
    let new = after.services4.values().find(|v| v.id != 0).copied().unwrap();
    assert_eq!((new.id, new.generation), (old.id, old.generation.wrapping_add(1)));
}

#[test]
fn nothing_is_reused_while_applies_fail() {
    let mut world = world();
    let before = world.after(0);
    let id = id_of(&before, 5).unwrap();
    world.slice(slice("s", "edge", &[endpoint("10.77.2.5", "elm"), endpoint("10.77.1.6", "ash")]));
    world.now += QUARANTINE * 10;
    world.plan();
    world.now += QUARANTINE * 10;
    world.slice(slice("t", "edge", &[endpoint("10.77.1.7", "ash")]));
    let (tables, _) = world.plan();
    assert_ne!(id_of(&tables, 7), Some(id));
    for (slot, backend) in before.slots.iter() {
        assert_eq!(
            tables.slots.get(slot),
            Some(backend),
            "a range that the kernel may still name is as it was"
        );
    }
}

#[test]
fn restored_ids_that_nobody_claims_are_given_back_with_a_new_generation() {
    let before = world().after(0);
    let mut world = World::new();
    world.restart(5, &before);
    let after = world.after(0);
    assert!(
        after.backends4.is_empty() && after.services4.is_empty(),
        "nothing is trusted without the API's word"
    );
    for (id, generation) in &before.generations4 {
        assert_eq!(after.generations4[id], generation + 1);
    }
    world.service(service("web", &["10.200.0.20"]));
    let old = before.services4.values().map(|v| v.id).max().unwrap();
    assert!(world.after(1).services4.values().all(|v| v.id != old), "in quarantine");
}

#[test]
fn a_restored_service_port_keeps_its_id_when_one_frontend_changed_meanwhile() {
    let before = world().after(0);
    let mut world = world();
    world.restart(5, &before);
    world.service(crate::model::ServiceSpec { vips: Vec::new(), external_ips: Vec::new(), ..edge() });
    let after = world.after(0);
    assert_eq!(after.backends4, before.backends4);
    assert!(after.services4.iter().all(|(k, v)| before.services4[k].id == v.id));
}

#[test]
fn nonsense_in_the_kernel_is_survived() {
    let mut world = world();
    let mut broken = world.after(0);
    broken.services4.values_mut().for_each(|v| (v.cluster_start, v.cluster_len) = (u32::MAX - 1, u32::MAX));
    broken.services6.values_mut().for_each(|v| v.id = u32::MAX);
    let row = *broken.backends4.values().next().unwrap();
    broken.backends4.insert(u32::MAX, row);
    broken.backends4.insert(60_000, row);
    world.restart(5, &broken);
    let tables = world.after(0);
    assert_eq!(tables.backends4.values().filter(|b| b.addr == row.addr).count(), 1);
    assert!(tables.slots.iter().all(|(slot, _)| slot < world.settings.limits.slots));
}
