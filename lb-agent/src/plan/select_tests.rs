use super::*;
use crate::model::{ObjectName, Protocol, SlicePort};

const PLACE: Place<'static> = Place { node: "ash", zone: "east" };

/// An endpoint that is ready, on `node`; the address is 10.0.0.`last`.
fn ep(last: u8, node: &str) -> EndpointSpec {
    EndpointSpec {
        address: IpAddr::from([10, 0, 0, last]),
        node: Some(node.to_owned()),
        ready: true,
        serving: true,
        terminating: false,
        weight: 1,
        zones: Vec::new(),
        nodes: Vec::new(),
    }
}

fn terminating(last: u8, node: &str) -> EndpointSpec {
    EndpointSpec { ready: false, terminating: true, ..ep(last, node) }
}

fn zoned(last: u8, node: &str, zone: &str) -> EndpointSpec {
    EndpointSpec { zones: vec![zone.to_owned()], ..ep(last, node) }
}

fn noded(last: u8, node: &str, hint: &str) -> EndpointSpec {
    EndpointSpec { nodes: vec![hint.to_owned()], ..ep(last, node) }
}

fn slice(endpoints: Vec<EndpointSpec>) -> Arc<SliceSpec> {
    Arc::new(SliceSpec {
        name: ObjectName::new("ns", "slice"),
        service: "web".to_owned(),
        family: Family::V4,
        ports: vec![SlicePort { name: "p".to_owned(), protocol: Protocol::Tcp, port: 8080 }],
        endpoints,
        triggered: crate::model::Trigger::default(),
    })
}

fn id() -> PortId {
    PortId { service: ObjectName::new("ns", "web"), port: "p".to_owned(), protocol: Protocol::Tcp }
}

fn selected<'a>(slices: &'a [Arc<SliceSpec>], place: Place<'_>) -> Selection<'a> {
    select(&id(), Family::V4, slices, place)
}

fn last(e: &Selected<'_>) -> u8 {
    match e.address {
        IpAddr::V4(a) => a.octets()[3],
        IpAddr::V6(_) => 0,
    }
}

/// (Cluster set, Local set, has any) by the last byte of the addresses.
fn sets(endpoints: Vec<EndpointSpec>) -> (Vec<u8>, Vec<u8>, bool) {
    sets_at(endpoints, PLACE)
}

fn sets_at(endpoints: Vec<EndpointSpec>, place: Place<'_>) -> (Vec<u8>, Vec<u8>, bool) {
    let slices = [slice(endpoints)];
    let found = selected(&slices, place);
    let of = |f: fn(&Selected<'_>) -> bool| found.endpoints.iter().filter(|e| f(e)).map(last).collect();
    (of(|e| e.in_cluster), of(|e| e.in_local), found.has_any)
}

#[test]
fn b22_port_name_and_protocol_must_match() {
    let mut other = (*slice(vec![ep(1, "ash")])).clone();
    other.ports[0].name = "q".to_owned();
    let mut udp = (*slice(vec![ep(2, "ash")])).clone();
    udp.ports[0].protocol = Protocol::Udp;
    assert_eq!(selected(&[Arc::new(other), Arc::new(udp)], PLACE), Selection::default());
}

#[test]
fn b17_slices_of_the_other_family_do_not_count() {
    let mut six = (*slice(vec![ep(1, "ash")])).clone();
    six.family = Family::V6;
    assert_eq!(selected(&[Arc::new(six)], PLACE), Selection::default());
}

#[test]
fn b22_slices_merge_and_b29_are_ordered() {
    let slices = [slice(vec![ep(9, "x")]), slice(vec![ep(2, "x")])];
    let found = selected(&slices, PLACE);
    assert_eq!(found.endpoints.iter().map(last).collect::<Vec<_>>(), [2, 9]);
}

#[test]
fn b25_of_duplicates_the_one_not_terminating_wins_in_either_order() {
    let (old, new) = (slice(vec![terminating(1, "ash")]), slice(vec![ep(1, "elm")]));
    for slices in [[old.clone(), new.clone()], [new, old]] {
        let found = selected(&slices, PLACE);
        assert_eq!(found.endpoints.len(), 1);
        assert!(found.endpoints[0].in_cluster && !found.endpoints[0].local);
    }
}

#[test]
fn b26_no_node_name_is_never_local() {
    let nowhere = EndpointSpec { node: None, ..ep(1, "") };
    assert_eq!(sets_at(vec![nowhere], Place { node: "", zone: "" }), (vec![1], vec![], true));
}

#[test]
fn b28_not_ready_and_not_terminating_is_never_used() {
    let cold = EndpointSpec { ready: false, ..ep(1, "ash") };
    assert_eq!(sets(vec![cold]), (vec![], vec![], false));
}

#[test]
fn b44_cluster_set_is_the_ready_ones() {
    assert_eq!(sets(vec![ep(1, "elm"), terminating(2, "elm")]), (vec![1], vec![], true));
}

#[test]
fn b44_falls_back_to_terminating_on_any_node() {
    assert_eq!(sets(vec![terminating(1, "elm"), terminating(2, "ash")]), (vec![1, 2], vec![2], true));
}

#[test]
fn b45_local_set_falls_back_by_itself() {
    assert_eq!(sets(vec![ep(1, "elm"), terminating(2, "ash")]), (vec![1], vec![2], true));
    assert_eq!(sets(vec![ep(1, "ash"), terminating(2, "ash")]), (vec![1], vec![1], true));
}

#[test]
fn b51_terminating_and_not_serving_is_never_used() {
    let gone = EndpointSpec { serving: false, ..terminating(1, "ash") };
    assert_eq!(sets(vec![gone]), (vec![], vec![], false));
}

#[test]
fn b107_an_endpoint_that_still_serves_keeps_its_flows() {
    let cold = EndpointSpec { ready: false, ..ep(1, "ash") };
    let gone = EndpointSpec { serving: false, ..terminating(2, "ash") };
    let slices = [slice(vec![cold, gone])];
    let found = selected(&slices, PLACE);
    assert_eq!(found.endpoints.iter().map(|e| e.serving).collect::<Vec<_>>(), [true, false]);
}

#[test]
fn b53_hints_are_not_consulted_without_ready_endpoints() {
    let hinted = EndpointSpec { zones: vec!["west".to_owned()], ..terminating(1, "elm") };
    assert_eq!(sets(vec![hinted, terminating(2, "elm")]).0, [1, 2]);
}

#[test]
fn b54_same_node_wins_when_all_have_a_node_hint_and_one_names_us() {
    assert_eq!(sets(vec![noded(1, "ash", "ash"), noded(2, "elm", "elm")]).0, [1]);
    assert_eq!(sets(vec![noded(1, "oak", "oak"), noded(2, "elm", "elm")]).0, [1, 2]);
}

#[test]
fn b55_same_zone_wins_when_all_have_a_zone_hint_and_one_names_ours() {
    assert_eq!(sets(vec![zoned(1, "x", "east"), zoned(2, "y", "west")]).0, [1]);
    assert_eq!(sets(vec![zoned(1, "x", "north"), zoned(2, "y", "west")]).0, [1, 2]);
}

#[test]
fn b57_one_ready_endpoint_without_hint_disables_hints_but_others_do_not() {
    assert_eq!(sets(vec![zoned(1, "x", "east"), ep(2, "y")]).0, [1, 2]);
    assert_eq!(sets(vec![zoned(1, "x", "east"), zoned(3, "x", "west"), terminating(2, "y")]).0, [1]);
}

#[test]
fn b58_without_a_zone_zone_hints_are_unusable() {
    let place = Place { node: "ash", zone: "" };
    assert_eq!(sets_at(vec![zoned(1, "x", ""), zoned(2, "y", "west")], place).0, [1, 2]);
}

#[test]
fn b59_failed_node_hints_fall_through_to_zone_hints() {
    let both = |n, zone: &str| EndpointSpec { nodes: vec!["elm".to_owned()], ..zoned(n, "elm", zone) };
    assert_eq!(sets(vec![both(1, "east"), both(2, "west")]).0, [1]);
}

#[test]
fn b45_hints_do_not_shape_the_local_set() {
    assert_eq!(sets(vec![zoned(1, "ash", "west"), zoned(2, "elm", "east")]), (vec![2], vec![1], true));
}
