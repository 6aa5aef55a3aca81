//! Cost stays in proportion to services and endpoints.

use std::time::{Duration, Instant};

use crate::fixture::{World, endpoint, service, slice};

/// The time of a first plan, a second one, and one after a restart, for so many services of two endpoints.
fn times(services: u32) -> Duration {
    let mut world = World::new();
    for n in 0..services {
        let [_, _, high, low] = n.to_be_bytes();
        let (name, address) = (format!("s{n}"), format!("10.201.{high}.{low}"));
        world.service(service(&name, &[&address]));
        let endpoints =
            [format!("10.77.{high}.{low}"), format!("10.78.{high}.{low}")].map(|a| endpoint(&a, "elm"));
        world.slice(slice(&name, &name, &endpoints));
    }
    let began = Instant::now();
    world.quick_plan();
    world.quick_plan();
    let tables = world.planner.desired().clone();
    assert_eq!(tables.services4.len(), services as usize * 2);
    world.restart(1, &tables);
    world.quick_plan();
    let took = began.elapsed();
    assert_eq!(world.planner.desired().services4, tables.services4);
    took
}

#[test]
fn eight_times_the_services_cost_far_less_than_the_square() {
    // The slowest of few against the fastest of many: a busy machine must not fail it.
    let few = (0..3).map(|_| times(500)).max().unwrap();
    let many = (0..2).map(|_| times(4_000)).min().unwrap();
    assert!(many < few * 32, "500 services: {few:?}, 4000 services: {many:?}");
}
