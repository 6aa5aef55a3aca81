use super::*;
use crate::fixture::{World, edge, ip, port, service};
use crate::model::{Protocol, ServiceSpec};

#[test]
fn b12_of_two_services_with_one_external_ip_the_first_by_name_wins() {
    let with = |name: &str, cluster: &str| ServiceSpec {
        external_ips: vec![ip("198.51.100.9")],
        ..service(name, &[cluster])
    };
    for order in [["a", "b"], ["b", "a"]] {
        let mut world = World::new();
        for name in order {
            world.service(with(name, if name == "a" { "10.200.0.1" } else { "10.200.0.2" }));
        }
        let (owned, mut claims, mut issues) = (BTreeSet::new(), Claims::default(), Vec::new());
        let services: Vec<_> = world.store.snapshot().services.values().cloned().collect();
        services.iter().rev().for_each(|service| _ = claims.add(service, &owned));
        let found = services.iter().flat_map(|service| expand(service, &owned, &claims, &mut issues));
        let counts: Vec<usize> = found.map(|p| p.frontends.len()).collect();
        assert_eq!(counts, [2, 1]);
        assert_eq!(issues.iter().map(|i| i.object.as_str()).collect::<Vec<_>>(), ["Service shop/b"]);
    }
}

#[test]
fn two_ports_with_one_name_and_protocol_are_an_issue_and_the_first_is_served() {
    let mut world = World::new();
    let ports = vec![port("p", Protocol::Tcp, 80, 0), port("p", Protocol::Tcp, 81, 0)];
    world.service(ServiceSpec { ports, ..service("a", &["10.200.0.1"]) });
    let (tables, issues) = world.plan();
    assert_eq!(issues.iter().map(|i| i.field.as_str()).collect::<Vec<_>>(), ["spec.ports"]);
    let ports: Vec<u16> = tables.services4.keys().map(|k| u16::from_be_bytes(k.port)).collect();
    assert_eq!(ports, [0, 80]);
}

#[test]
fn an_address_that_is_external_ip_and_filtered_vip_of_one_service_is_filtered() {
    let mut world = World::new();
    let address = ip("198.51.100.1");
    let ranges = vec![crate::fixture::cidr("198.18.0.0/16")];
    world.service(ServiceSpec {
        external_ips: vec![address],
        vips: vec![address],
        source_ranges: ranges,
        ..edge()
    });
    let (tables, issues) = world.plan();
    let found =
        tables.services4.iter().find(|(k, _)| k.addr == [198, 51, 100, 1] && k.port != [0; 2]).unwrap();
    assert_ne!(found.1.flags & lb_common::abi::SVC_RANGES, 0);
    assert!(issues.is_empty(), "{issues:?}");
}

#[test]
fn b31_external_ips_serve_whatever_the_type_and_an_address_of_the_node_is_no_obstacle() {
    let mut world = World::new();
    world.service(ServiceSpec { external_ips: vec![ip("192.0.2.11")], ..service("a", &["10.200.0.1"]) });
    let (tables, issues) = world.plan();
    assert!(tables.services4.keys().any(|k| k.addr == [192, 0, 2, 11]));
    assert!(issues.is_empty());
}
