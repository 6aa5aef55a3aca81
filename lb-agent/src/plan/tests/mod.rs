//! Rules about whole plans: one test per rule.

mod change;
mod maglev;
mod network;
mod order;
mod scale;

use std::sync::Arc;

use lb_common::abi::{
    BE_IN_CLUSTER, BE_IN_LOCAL, BE_LOCAL, NODE_NODEPORT, ROLE_BACKEND, ROLE_FRONTEND, SVC_ADDRESS,
    SVC_EXTERNAL, SVC_HAS_ANY, SVC_LOCAL, SVC_MASQ_ALL, SVC_RANGES, SvcKey4, SvcValue,
};

use crate::desired::Desired;
use crate::fixture::{World, cidr, edge, endpoint, ip, node, port, service, settings, slice};
use crate::model::settings::{Limits, Settings};
use crate::model::{
    EndpointSpec, Ignored, Key, NodeSpec, Object, ObjectName, Policy, Protocol, ServiceKind, ServiceSpec,
};

fn key(address: [u8; 4], port: u16) -> SvcKey4 {
    SvcKey4 { addr: address, port: port.to_be_bytes(), proto: 6, _pad: 0 }
}

const CLUSTER: [u8; 4] = [10, 200, 0, 12];
const EXTERNAL: [u8; 4] = [198, 51, 100, 1];
const VIP: [u8; 4] = [203, 0, 113, 1];
const ANY: [u8; 4] = [0; 4];

/// The flags of the four IPv4 frontends of [`edge`]: ClusterIP, externalIP, VIP, NodePort.
fn flags(tables: &Desired) -> [u32; 4] {
    [key(CLUSTER, 443), key(EXTERNAL, 443), key(VIP, 443), key(ANY, 30443)]
        .map(|k| tables.services4[&k].flags)
}

fn edge_with(change: impl FnOnce(&mut ServiceSpec), endpoints: &[EndpointSpec]) -> Desired {
    let mut spec = edge();
    change(&mut spec);
    World::new().service(spec).slice(slice("s", "edge", endpoints)).after(0)
}

/// The backend addresses of a set of a frontend.
fn set(tables: &Desired, start: u32, len: u32) -> Vec<String> {
    let ids = (start..start + len).map(|slot| tables.slots.get(slot).unwrap());
    ids.map(|id| std::net::Ipv4Addr::from(tables.backends4[&id].addr).to_string()).collect()
}

fn sets(tables: &Desired, value: SvcValue) -> (Vec<String>, Vec<String>) {
    (set(tables, value.cluster_start, value.cluster_len), set(tables, value.local_start, value.local_len))
}

#[test]
fn b1_to_b4_ignored_services_give_nothing() {
    for ignored in [Ignored::Headless, Ignored::ExternalName, Ignored::OtherProxy, Ignored::HeadlessLabel] {
        let tables = edge_with(|s| s.ignored = Some(ignored), &[endpoint("10.77.1.5", "ash")]);
        assert!(tables.services4.is_empty() && tables.services6.is_empty() && tables.backends4.is_empty());
    }
}

#[test]
fn b30_to_b34_every_kind_of_frontend_in_both_families() {
    let tables = edge_with(|_| (), &[endpoint("10.77.1.5", "ash")]);
    let frontends: Vec<SvcKey4> = tables.services4.keys().filter(|k| k.port != [0; 2]).copied().collect();
    assert_eq!(frontends, [key(ANY, 30443), key(CLUSTER, 443), key(EXTERNAL, 443), key(VIP, 443)]);
    assert_eq!(tables.services6.keys().filter(|k| k.port != [0; 2]).count(), 4);
    let ids: std::collections::BTreeSet<u32> = tables
        .services4
        .values()
        .chain(tables.services6.values())
        .map(|v| v.id)
        .filter(|id| *id != 0)
        .collect();
    assert_eq!(ids.len(), 1, "one id for all frontends of a service port, in both families");
}

#[test]
fn b15_nothing_in_a_family_without_a_cluster_ip() {
    let tables = edge_with(|s| s.cluster_ips.truncate(1), &[endpoint("10.77.1.5", "ash")]);
    assert!(tables.services6.is_empty());
}

#[test]
fn b17_endpoints_serve_their_own_family_only() {
    let tables = edge_with(|_| (), &[endpoint("fd77:0:1:1::5", "ash")]);
    assert!(tables.backends4.is_empty());
    assert_eq!(tables.backends6.len(), 1);
    assert_eq!(tables.services4[&key(CLUSTER, 443)].cluster_len, 0);
}

#[test]
fn b43_protocols_share_a_port_number_as_separate_service_ports() {
    let mut spec = edge();
    spec.ports.push(port("u", Protocol::Udp, 443, 30443));
    let tables = World::new().service(spec).after(0);
    let udp = SvcKey4 { proto: 17, ..key(CLUSTER, 443) };
    assert_ne!(tables.services4[&udp].id, tables.services4[&key(CLUSTER, 443)].id);
}

#[test]
fn b44_b45_sets_and_flags_of_backends() {
    let (here, there) = (endpoint("10.77.1.5", "ash"), endpoint("10.77.2.5", "elm"));
    let tables = edge_with(|_| (), &[here, there]);
    let found = sets(&tables, tables.services4[&key(CLUSTER, 443)]);
    assert_eq!(found, (vec!["10.77.1.5".to_owned(), "10.77.2.5".to_owned()], vec!["10.77.1.5".to_owned()]));
    let flags: Vec<u8> = tables.backends4.values().map(|b| b.flags).collect();
    assert_eq!(flags, [BE_LOCAL | BE_IN_CLUSTER | BE_IN_LOCAL, BE_IN_CLUSTER]);
    assert!(tables.backends4.values().all(|b| b.port == 8080_u16.to_be_bytes() && b.proto == 6));
}

#[test]
fn b46_has_any_counts_endpoints_of_other_nodes_and_draining_ones() {
    let draining = EndpointSpec { ready: false, terminating: true, ..endpoint("10.77.2.5", "elm") };
    let gone = EndpointSpec { serving: false, ..draining.clone() };
    let any = |endpoints: &[EndpointSpec]| flags(&edge_with(|_| (), endpoints))[0] & SVC_HAS_ANY != 0;
    assert_eq!(
        [any(&[endpoint("10.77.2.5", "elm")]), any(&[draining]), any(&[gone]), any(&[])],
        [true, true, false, false]
    );
}

#[test]
fn b47_b48_policies_govern_their_own_frontends() {
    let etp = edge_with(|s| s.external = Policy::Local, &[]);
    let external = SVC_EXTERNAL | SVC_LOCAL;
    assert_eq!(flags(&etp), [0, external, external, external]);
    let itp = edge_with(|s| s.internal = Policy::Local, &[]);
    assert_eq!(flags(&itp), [SVC_LOCAL, SVC_EXTERNAL, SVC_EXTERNAL, SVC_EXTERNAL]);
}

#[test]
fn b50_external_policy_counts_for_cluster_ip_services_only_with_external_ips() {
    let policy = |kind, external_ips: &[&str]| {
        let external_ips = external_ips.iter().map(|a| ip(a)).collect();
        let spec = ServiceSpec { kind, external_ips, external: Policy::Local, ..edge() };
        spec.external_policy()
    };
    assert_eq!(policy(ServiceKind::ClusterIp, &[]), Policy::Cluster);
    assert_eq!(policy(ServiceKind::ClusterIp, &["198.51.100.1"]), Policy::Local);
    assert_eq!(policy(ServiceKind::NodePort, &[]), Policy::Local);
}

#[test]
fn b16_b18_addresses_serve_their_own_family_and_nothing_is_translated() {
    let tables = edge_with(
        |s| s.source_ranges = vec![cidr("198.18.0.0/16"), cidr("2001:db8:9::/48")],
        &[endpoint("10.77.1.5", "ash")],
    );
    assert_eq!(tables.services4.len(), tables.services6.len());
    assert_eq!((tables.ranges4.len(), tables.ranges6.len()), (1, 1));
    // an IPv4 endpoint is no endpoint of the IPv6 frontends
    assert!(tables.services6.values().all(|v| v.cluster_len == 0 && v.flags & SVC_HAS_ANY == 0));
}

#[test]
fn b35_b88_node_ports_are_told_from_addresses_and_have_one_entry() {
    let tables = edge_with(|_| (), &[]);
    let node_ports: Vec<_> = tables.services4.keys().filter(|k| k.addr == ANY).collect();
    assert_eq!(node_ports, [&key(ANY, 30443)]);
    // without endpoints it is refused where NodePorts answer, and nowhere else (nftables mode's way)
    assert_eq!(tables.services4[&key(ANY, 30443)].flags & SVC_HAS_ANY, 0);
    assert_eq!(tables.node4.values().filter(|flags| **flags & NODE_NODEPORT != 0).count(), 1);
}

#[test]
fn b56_b60_a_new_zone_label_chooses_endpoints_anew() {
    let hinted =
        |address: &str, zone: &str| EndpointSpec { zones: vec![zone.to_owned()], ..endpoint(address, "elm") };
    let mut world = World::new();
    world.service(edge());
    world.slice(slice("s", "edge", &[hinted("10.77.2.5", "east"), hinted("10.77.2.6", "west")]));
    let mut chosen = |zone: &str| {
        world.put(Object::Node(Arc::new(NodeSpec { zone: zone.to_owned(), ..node() })));
        let tables = world.after(1);
        sets(&tables, tables.services4[&key(CLUSTER, 443)]).0
    };
    assert_eq!(chosen("east"), ["10.77.2.5"]);
    assert_eq!(chosen("west"), ["10.77.2.6"]);
    assert_eq!(chosen("north"), ["10.77.2.5", "10.77.2.6"]);
    assert_eq!(chosen(""), ["10.77.2.5", "10.77.2.6"]);
    assert_eq!(chosen("east"), ["10.77.2.5"]);
}

#[test]
fn b68_b105_b107_what_moves_a_generation_and_what_does_not() {
    let pod = endpoint("10.77.2.5", "elm");
    let drains = EndpointSpec { ready: false, terminating: true, ..pod.clone() };
    let gone = EndpointSpec { serving: false, ..drains.clone() };
    let other = endpoint("10.77.2.6", "elm");
    let mut world = World::new();
    world.service(ServiceSpec { affinity_s: Some(60), ..edge() });
    let mut generation = |endpoints: &[EndpointSpec]| {
        world.slice(slice("s", "edge", endpoints));
        let tables = world.after(1);
        let id = tables.backends4.iter().find(|(_, row)| row.addr == [10, 77, 2, 5]).map(|(id, _)| *id);
        (id, tables.generations4[&1])
    };
    let first = generation(&[pod.clone(), other.clone()]);
    assert_eq!(first.0, Some(1));
    // it finishes what it has: flows and sockets stay, but it is in no set (B44), so affinity does not follow it (B67)
    assert_eq!(generation(&[drains, other.clone()]), first);
    // it serves no longer
    let after = generation(&[gone, other.clone()]);
    assert_eq!((after.0, after.1), (None, first.1 + 1));
    // and comes back: another generation than all before
    let back = generation(&[pod, other]);
    assert_ne!(back.1, first.1);
}

#[test]
fn b64_b69_affinity_off_and_on_is_on_the_frontends_at_the_next_plan() {
    let mut world = World::new();
    for affinity_s in [None, Some(60), None] {
        world.service(ServiceSpec { affinity_s, ..edge() });
        let tables = world.after(1);
        assert_eq!(tables.services4[&key(CLUSTER, 443)].affinity_s, affinity_s.unwrap_or(0));
    }
}

#[test]
fn b66_the_affinity_timeout_is_on_every_frontend() {
    let tables = edge_with(|s| s.affinity_s = Some(60), &[]);
    assert!(tables.services4.values().filter(|v| v.id != 0).all(|v| v.affinity_s == 60));
}

#[test]
fn b80_masquerade_all_is_for_cluster_ips_only() {
    let mut world = World::with(Settings { masquerade_all: true, ..settings() });
    let tables = world.service(edge()).after(0);
    assert_eq!(flags(&tables).map(|f| f & SVC_MASQ_ALL != 0), [true, false, false, false]);
}

#[test]
fn b91_active_cluster_ips_have_an_entry_without_port_also_without_endpoints() {
    let tables = edge_with(|_| (), &[]);
    let active = SvcKey4 { addr: CLUSTER, ..SvcKey4::default() };
    assert_eq!(tables.services4[&active], SvcValue { flags: SVC_ADDRESS, ..SvcValue::default() });
    let marked = |mark: u32| {
        let mark = |v: &&SvcValue| v.flags & (SVC_ADDRESS | SVC_EXTERNAL) == mark;
        tables.services4.values().filter(mark).count()
    };
    assert_eq!(marked(SVC_ADDRESS), 1);
    // and external addresses theirs, by which fragments know them; not NodePorts
    assert_eq!(marked(SVC_ADDRESS | SVC_EXTERNAL), 2);
    for addr in [EXTERNAL, VIP] {
        let key = SvcKey4 { addr, proto: lb_common::abi::PROTO_EXTERNAL, ..SvcKey4::default() };
        assert!(tables.services4.contains_key(&key));
    }
}

#[test]
fn b96_b97_ranges_filter_vips_of_their_family_only() {
    let tables = edge_with(|s| s.source_ranges = vec![cidr("198.18.0.0/16")], &[]);
    assert_eq!(flags(&tables).map(|f| f & SVC_RANGES != 0), [false, false, true, false]);
    assert!(tables.services6.values().all(|v| v.flags & SVC_RANGES == 0));
    let id = tables.services4[&key(VIP, 443)].id;
    let keys: Vec<_> = tables.ranges4.keys().map(|(len, k)| (*len, k.service, k.addr)).collect();
    assert_eq!(keys, [(48, id.to_be_bytes(), [198, 18, 0, 0])]);
}

#[test]
fn b100_a_range_with_the_nodes_primary_admits_the_vips_as_sources() {
    let tables = edge_with(|s| s.source_ranges = vec![cidr("192.0.2.0/24")], &[]);
    assert!(tables.ranges4.keys().any(|(len, k)| *len == 64 && k.addr == VIP));
}

#[test]
fn a_cluster_ip_that_the_node_owns_is_left_out_with_a_note() {
    let mut world = World::new();
    world.service(ServiceSpec { cluster_ips: vec![ip("10.77.1.1")], ..edge() });
    let (tables, issues) = world.plan();
    assert!(tables.services4.keys().all(|k| k.addr != [10, 77, 1, 1]));
    assert!(tables.services4.contains_key(&key(ANY, 30443)), "its other frontends stay");
    assert_eq!(issues.iter().map(|i| i.field.as_str()).collect::<Vec<_>>(), ["spec.clusterIPs"]);
}

#[test]
fn b12_a_conflict_is_named_and_a_cluster_ip_wins_over_an_external_ip() {
    let mut world = World::new();
    let thief = ServiceSpec {
        external_ips: vec![ip("10.200.0.12")],
        ports: vec![port("p", Protocol::Tcp, 443, 0)],
        ..service("aaa", &["10.200.0.9"])
    };
    let (tables, issues) = world.service(thief).service(edge()).plan();
    assert_eq!(tables.services4[&key(CLUSTER, 443)].flags & SVC_EXTERNAL, 0);
    assert_eq!(issues.len(), 1);
    assert_eq!(issues[0].object, "Service shop/aaa");
    assert!(issues[0].problem.contains("shop/edge"), "{}", issues[0]);
}

#[test]
fn roles_say_which_addresses_matter_also_of_endpoints_that_only_drain() {
    let gone =
        EndpointSpec { ready: false, serving: false, terminating: true, ..endpoint("10.77.2.5", "elm") };
    let tables = edge_with(|_| (), &[gone]);
    assert!(tables.backends4.is_empty());
    assert_eq!(tables.roles[&ip("10.77.2.5")], ROLE_BACKEND);
    for frontend in ["10.200.0.12", "198.51.100.1", "203.0.113.1", "fd00:200::12"] {
        assert_eq!(tables.roles[&ip(frontend)] & ROLE_FRONTEND, ROLE_FRONTEND, "{frontend}");
    }
}

#[test]
fn full_tables_are_issues_that_name_the_service_and_the_rest_is_served() {
    let product = Limits::PRODUCT;
    let cases = [
        (Limits { services: 1, ..product }, "service ids"),
        (Limits { backends: 2, ..product }, "backend ids"),
        (Limits { slots: 1, ..product }, "slots"),
        (Limits { frontends: 1, ..product }, "frontends"),
    ];
    for (limits, word) in cases {
        let mut world = World::with(Settings { limits, ..settings() });
        world.service(service("a", &["10.200.0.1"])).service(service("b", &["10.200.0.2"]));
        world.slice(slice("a", "a", &[endpoint("10.77.1.5", "elm")]));
        world.slice(slice("b", "b", &[endpoint("10.77.1.6", "elm")]));
        let (tables, issues) = world.plan();
        assert!(tables.services4.contains_key(&key([10, 200, 0, 1], 80)), "{word}: the first is served");
        let named = issues.iter().any(|i| i.object == "Service shop/b" && i.problem.contains(word));
        assert!(named, "{word}: {issues:?}");
    }
}

#[test]
fn deleting_everything_leaves_only_what_waits() {
    let mut world = World::new();
    world.service(edge()).slice(slice("s", "edge", &[endpoint("10.77.1.5", "ash")]));
    world.after(0);
    world.remove(Key::Service(ObjectName::new("shop", "edge")));
    world.after(1);
    let tables = world.after(5);
    assert!(tables.services4.is_empty() && tables.backends4.is_empty() && tables.slots.is_empty());
    assert_eq!(tables.generations4.len(), 1, "the generation of the id that left stays");
}
