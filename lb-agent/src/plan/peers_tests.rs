use std::sync::Arc;

use lb_common::abi::{ROLE_TUNNEL, SVC_DSR, SVC_EXTERNAL};

use super::*;
use crate::fixture::{World, edge, endpoint, ip, settings, slice};
use crate::model::{Object, ServiceSpec};

/// Node `ash` with DSR, and `oak`, which has the one endpoint and takes these outer headers.
fn world(dsr: Dsr, takes: &[&str], service: ServiceSpec) -> World {
    let mut world = World::with(Settings { dsr, ..settings() });
    world.answers = Answers::of("oak", takes);
    let addresses = vec![ip("192.0.2.12"), ip("198.18.0.12"), ip("2001:db8:aa::12")];
    let oak = NodeSpec { name: "oak".to_owned(), addresses, ..NodeSpec::default() };
    world.put(Object::Node(Arc::new(oak)));
    world.service(service).slice(slice("s", "edge", &[endpoint("10.77.2.9", "oak")]));
    world
}

fn rows(tables: &Desired) -> Vec<u32> {
    tables.backends4.values().map(|row| row.nexthop).collect()
}

fn dsr_services(tables: &Desired) -> usize {
    let marked =
        tables.services4.values().chain(tables.services6.values()).filter(|v| v.flags & SVC_DSR != 0);
    marked.inspect(|v| assert!(v.flags & SVC_EXTERNAL != 0, "a ClusterIP is for pods")).count()
}

#[test]
fn backends_name_the_row_of_a_node_that_takes_the_header_in_use() {
    for (dsr, takes, row, port) in [
        (Dsr::Ipip, vec!["ipip", "gue"], 1, [0; 2]),
        (Dsr::Gue, vec!["ipip", "gue"], 1, GUE_PORT),
        (Dsr::Gue, vec!["ipip"], 0, GUE_PORT),
        (Dsr::Ipip, vec![], 0, [0; 2]),
    ] {
        let tables = world(dsr, &takes, edge()).after(0);
        assert_eq!(rows(&tables), [row], "{dsr:?} {takes:?}");
        let own = tables.peers[&0];
        assert_eq!((own.addr4, own.port, own.flags), ([192, 0, 2, 11], port, PEER_V4 | PEER_V6));
        assert_eq!(tables.peers.get(&1).map(|p| p.addr4), (row == 1).then_some([192, 0, 2, 12]));
        // every address of every node, whatever it takes
        assert_eq!(tables.peers4.len() + tables.peers6.len(), 5);
        assert_ne!(tables.roles[&ip("192.0.2.11")] & ROLE_TUNNEL, 0);
        assert!(dsr_services(&tables) == 6, "{}", dsr_services(&tables));
    }
}

#[test]
fn without_dsr_nothing_is_there_and_who_asks_for_it_is_told() {
    let asking = ServiceSpec { forwarding: Some(Forwarding::Dsr), ..edge() };
    let (tables, issues) = world(Dsr::Off, &["ipip", "gue"], asking).plan();
    assert!(tables.peers.is_empty() && tables.peers4.is_empty() && tables.peers6.is_empty());
    assert_eq!((rows(&tables), dsr_services(&tables)), (vec![0], 0));
    assert!(tables.roles.values().all(|roles| roles & ROLE_TUNNEL == 0));
    assert!(issues.iter().any(|i| i.field.contains("forwarding")), "{issues:?}");
}

#[test]
fn a_service_may_stay_with_snat() {
    let snat = ServiceSpec { forwarding: Some(Forwarding::Snat), ..edge() };
    let (tables, issues) = world(Dsr::Gue, &["gue"], snat).plan();
    assert_eq!(dsr_services(&tables), 0);
    assert!(issues.is_empty(), "{issues:?}");
}

#[test]
fn a_row_stays_a_nodes_own_while_others_come_and_go() {
    let mut world = world(Dsr::Gue, &["gue"], edge());
    assert_eq!(rows(&world.after(0)), [1]);
    let elm = NodeSpec { name: "elm".to_owned(), addresses: vec![ip("192.0.2.13")], ..NodeSpec::default() };
    world.put(Object::Node(Arc::new(elm)));
    assert_eq!(rows(&world.after(1)), [1]);
    world.remove(Key::Node("oak".to_owned()));
    assert_eq!(rows(&world.after(1)), [0]);
}
