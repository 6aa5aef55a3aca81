//! Cost stays in proportion to services and endpoints.

use std::time::{Duration, Instant};

use crate::fixture::{World, endpoint, service, slice};
use crate::plan::ids::IdTable;

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
    world.after(0);
    let tables = world.after(1);
    assert_eq!(tables.services4.len(), services as usize * 2);
    world.ids = IdTable::new(&world.settings.limits, 1);
    world.ids.restore(&tables);
    assert_eq!(world.after(1).services4, tables.services4);
    began.elapsed()
}

#[test]
fn eight_times_the_services_cost_far_less_than_the_square() {
    // The slowest of few against the fastest of many: a busy machine must not fail it.
    let few = (0..3).map(|_| times(500)).max().unwrap();
    let many = (0..2).map(|_| times(4_000)).min().unwrap();
    assert!(many < few * 32, "500 services: {few:?}, 4000 services: {many:?}");
}
