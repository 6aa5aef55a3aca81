//! The node's own rows.

use lb_common::abi::{
    CFG_CIDR4, CFG_CIDR6, CFG_DETECT_CIDR4, CFG_DETECT_CIDR6, CFG_DETECT_IF, CFG_MASQ_LOCAL,
    CFG_REJECT_UNKNOWN, IF_DETECT, IF_POD, NODE_HOST_NODEPORT, NODE_LOCAL, NODE_NODEPORT, PortRange,
    ROLE_NODEPORT, ROLE_SNAT,
};

use std::sync::Arc;

use crate::fixture::{World, cidr, edge, ip, node, settings};
use crate::model::settings::{DetectLocal, Mode, Settings, SocketLb};
use crate::model::{NodeSpec, Object};

#[test]
fn interfaces_masquerade_to_their_own_address_their_bridges_or_the_nodes() {
    let tables = World::new().after(0);
    let snat = |index| std::net::Ipv4Addr::from(tables.interfaces[&index].snat4).to_string();
    assert_eq!([snat(2), snat(4), snat(5)], ["192.0.2.11", "10.77.1.1", "192.0.2.11"]);
    assert_eq!([2, 4, 5].map(|i| tables.interfaces[&i].master), [0, 3, 0]);
    assert_eq!([2, 4, 5].map(|i| tables.interfaces[&i].flags), [0, IF_POD, IF_POD]);
    assert_eq!(tables.roles[&ip("10.77.1.1")], ROLE_SNAT);
}

#[test]
fn b73_cluster_cidr_detects_by_the_first_of_each_family() {
    let config = World::new().after(0).config;
    assert_eq!(
        config.flags & (CFG_DETECT_CIDR4 | CFG_DETECT_CIDR6 | CFG_DETECT_IF),
        CFG_DETECT_CIDR4 | CFG_DETECT_CIDR6
    );
    assert_eq!((config.pod_cidr4, config.pod_mask4), ([10, 77, 0, 0], [255, 255, 0, 0]));
    assert_eq!(config.pod_mask6[..7], [255, 255, 255, 255, 255, 255, 0]);
}

#[test]
fn b74_node_cidr_detects_by_the_nodes_pod_cidrs() {
    let config = World::with(Settings { detect: DetectLocal::NodeCidr, ..settings() }).after(0).config;
    assert_eq!((config.pod_cidr4, config.pod_mask4), ([10, 77, 1, 0], [255, 255, 255, 0]));
}

/// kube-proxy exits then, to be started with the new facts.
#[test]
fn b155_pod_cidrs_and_addresses_of_the_node_that_change_act_at_once() {
    let mut world = World::with(Settings { detect: DetectLocal::NodeCidr, ..settings() });
    world.after(0);
    let become_node = |world: &mut World, node: NodeSpec| world.put(Object::Node(Arc::new(node)));
    let moved = NodeSpec {
        pod_cidrs: vec![cidr("fd77:0:9::/64"), cidr("10.99.0.0/16")],
        addresses: vec![ip("198.18.7.11")],
        ..node()
    };
    become_node(&mut world, moved);
    world.net.links.get_mut(&2).unwrap().addresses.push((ip("198.18.7.11"), 32));
    let tables = world.after(1);
    let config = &tables.config;
    assert_eq!((config.pod_cidr4, config.pod_mask4), ([10, 99, 0, 0], [255, 255, 0, 0]));
    assert_eq!(config.pod_cidr6[..6], [0xfd, 0x77, 0, 0, 0, 9]);
    assert_eq!(tables.node4[&[198, 18, 7, 11]], NODE_LOCAL | NODE_NODEPORT, "`primary` follows");
    assert_eq!(tables.node4[&[192, 0, 2, 11]], NODE_LOCAL);
    let none = NodeSpec { pod_cidrs: Vec::new(), ..node() };
    become_node(&mut world, none);
    assert_eq!(world.after(2).config.flags & (CFG_DETECT_CIDR4 | CFG_DETECT_CIDR6), 0);
}

#[test]
fn b165_a_cluster_cidr_without_the_primary_family_is_named() {
    let named = |cidrs: &[&str], bind: Option<&str>| {
        let detect = DetectLocal::ClusterCidr(cidrs.iter().map(|c| cidr(c)).collect());
        let mut world = World::with(Settings { detect, bind_address: bind.map(ip), ..settings() });
        let (_, issues) = world.plan();
        issues.iter().map(|issue| issue.to_string()).collect::<Vec<_>>()
    };
    for right in [&["10.77.0.0/16"][..], &["fd77::/32", "10.77.0.0/16"], &[]] {
        assert_eq!(named(right, None), [""; 0]);
    }
    assert_eq!(named(&["fd77::/32"], Some("2001:db8::11")), [""; 0], "IPv6 is the primary family");
    let issues = named(&["fd77::/32"], None);
    assert!(issues.len() == 1 && issues[0].contains("clusterCIDR: has no IPv4 range"), "{issues:?}");
    let issues = named(&["10.77.0.0/16"], Some("2001:db8::11"));
    assert!(issues.len() == 1 && issues[0].contains("clusterCIDR: has no IPv6 range"), "{issues:?}");
}

#[test]
fn b75_b76_interface_modes_mark_interfaces() {
    let marked = |detect| {
        let tables = World::with(Settings { detect, ..settings() }).after(0);
        assert_eq!(
            tables.config.flags & (CFG_DETECT_CIDR4 | CFG_DETECT_CIDR6 | CFG_DETECT_IF),
            CFG_DETECT_IF
        );
        let marked = tables.interfaces.iter().filter(|(_, i)| i.flags & IF_DETECT != 0);
        marked.map(|(index, _)| *index).collect::<Vec<u32>>()
    };
    assert_eq!(marked(DetectLocal::Bridge("cni0".to_owned())), [4]);
    assert_eq!(marked(DetectLocal::InterfacePrefix("cali".to_owned())), [5]);
}

#[test]
fn b77_a_family_without_cidr_has_no_detector() {
    let detect = DetectLocal::ClusterCidr(vec![cidr("10.77.0.0/16")]);
    let config = World::with(Settings { detect, ..settings() }).after(0).config;
    assert_eq!(config.flags & (CFG_DETECT_CIDR4 | CFG_DETECT_CIDR6), CFG_DETECT_CIDR4);
}

#[test]
fn b92_service_cidrs_with_the_prefix_that_covers_them() {
    let mut world = World::new();
    world.cidrs("a", &["10.200.0.0/16", "fd00:200::/112"]).cidrs("b", &["10.203.4.0/24"]);
    let tables = world.after(0);
    let keys: Vec<_> = tables.cidrs4.keys().map(|(len, k)| (*len, k.addr)).collect();
    assert_eq!(keys, [(16, [10, 200, 0, 0]), (24, [10, 203, 4, 0])]);
    let config = tables.config;
    assert_eq!((config.svc_cidr4, config.svc_mask4), ([10, 200, 0, 0], [255, 252, 0, 0]));
    let all = CFG_CIDR4 | CFG_CIDR6 | CFG_REJECT_UNKNOWN;
    assert_eq!(config.flags & all, all);
}

#[test]
fn b91_b92_nothing_unknown_is_touched_in_iptables_mode() {
    let mut world = World::with(Settings { mode: Mode::Iptables, ..settings() });
    let tables = world.cidrs("a", &["10.200.0.0/16"]).after(0);
    assert_eq!(tables.config.flags & (CFG_CIDR4 | CFG_CIDR6 | CFG_REJECT_UNKNOWN), 0);
    assert!(tables.cidrs4.is_empty());
}

#[test]
fn node_addresses_are_local_and_the_chosen_ones_answer_node_ports() {
    let tables = World::new().after(0);
    assert_eq!(tables.node4[&[192, 0, 2, 11]], NODE_LOCAL | NODE_NODEPORT);
    assert_eq!(tables.node4[&[10, 77, 1, 1]], NODE_LOCAL);
    assert_eq!(tables.node4[&[127, 0, 0, 1]], NODE_LOCAL);
    assert_eq!(tables.roles[&ip("192.0.2.11")], ROLE_NODEPORT | ROLE_SNAT);
}

#[test]
fn b40_loopback_answers_the_hosts_sockets_only_and_b39_addresses_come_and_go() {
    let mut world = World::with(Settings { mode: Mode::Iptables, ..settings() });
    let tables = world.after(0);
    for answers in [tables.node4[&[127, 0, 0, 1]], tables.node6[&std::net::Ipv6Addr::LOCALHOST.octets()]] {
        assert_eq!(answers, NODE_LOCAL | NODE_HOST_NODEPORT);
    }
    assert_eq!(tables.roles[&ip("127.0.0.1")], ROLE_NODEPORT);
    world.net.links.get_mut(&2).unwrap().addresses.push((ip("198.18.7.11"), 32));
    assert_eq!(world.after(1).node4[&[198, 18, 7, 11]], NODE_LOCAL | NODE_NODEPORT);
    world.net.links.get_mut(&2).unwrap().addresses.pop();
    assert!(!world.after(1).node4.contains_key(&[198, 18, 7, 11]));
}

#[test]
fn the_node_port_range_holds_every_node_port_and_is_empty_without_any() {
    let mut world = World::new();
    assert_eq!(world.after(0).config.nodeports, PortRange { min: 1, max: 0 });
    assert_eq!(world.service(edge()).after(0).config.nodeports, PortRange { min: 30443, max: 30443 });
}

#[test]
fn socket_lb_names_the_namespaces() {
    let cookies = |socket_lb| {
        let tables = World::with(Settings { socket_lb, ..settings() }).after(0);
        tables.namespaces.into_keys().collect::<Vec<u64>>()
    };
    assert_eq!(cookies(SocketLb::Host), [77]);
    assert_eq!(cookies(SocketLb::All), [0, 77]);
    assert_eq!(cookies(SocketLb::Off), [0; 0]);
}

#[test]
fn masquerade_local_and_kernel_flags_reach_the_kernel() {
    let settings = Settings { masquerade_local: true, kernel_flags: 1 << 7, ..settings() };
    let flags = World::with(settings).after(0).config.flags;
    assert_eq!(flags & (CFG_MASQ_LOCAL | 1 << 7), CFG_MASQ_LOCAL | 1 << 7);
}

#[test]
fn a_node_without_free_ports_is_an_issue() {
    let mut world = World::new();
    world.net.ephemeral = (1024, 65_535);
    let (_, issues) = world.plan();
    assert_eq!(issues.iter().map(|i| i.field.as_str()).collect::<Vec<_>>(), ["net.ipv4.ip_local_port_range"]);
}
