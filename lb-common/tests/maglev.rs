//! Maglev: every node and hook makes the same choice, whatever ids its agent gave out.

use std::net::IpAddr;

use lb_common::abi::*;
use lb_common::decide::{Source, decide};
use lb_common::env::Hook;
use lb_common::family::{V4, V6};
use lb_common::maglev::{below, ports};
use lb_common::packet::{SYN, TCP};
use lb_common::sock::{Owner, connect};
use lb_common::testing::golden::{Net, net4, net6, world};
use lb_common::testing::packets::at;
use lb_common::testing::world::UPLINK;
use lb_common::testing::{Direction, Machine, PacketBuilder, Side};
use lb_common::verdict::{SockVerdict, Verdict};
use proptest::prelude::*;

const PORT: u16 = 90;
const NODE_PORT: u16 = 30090;
const ENDPOINTS: usize = 8;
/// Ports as the draw takes them when there is affinity.
const ANY_PORT: u32 = u32::MAX;

fn nth(n: &Net, i: usize) -> IpAddr {
    let last = i as u8 + 1;
    match n.remote {
        IpAddr::V4(a) => IpAddr::from([a.octets()[0], a.octets()[1], 7, last]),
        IpAddr::V6(a) => {
            let mut a = a.octets();
            (a[14], a[15]) = (7, last);
            a.into()
        }
    }
}

/// A node whose agent met the endpoints in this order, and its service port. `table` says which endpoint owns each slot.
fn node(n: &Net, order: &[usize], table: &[usize], affinity_s: u32) -> (Machine, SvcValue) {
    let mut w = world(n);
    let mut ids = [0; ENDPOINTS];
    for i in order {
        ids[*i] = w.backend(nth(n, *i), 9000, TCP, 0);
    }
    let slots: Vec<u32> = table.iter().map(|owner| ids[*owner]).collect();
    let service = SvcValue { affinity_s, ..w.service(SVC_HAS_ANY | SVC_MAGLEV, &slots, &[]) };
    w.frontend(n.external, PORT, TCP, service);
    w.frontend(n.vip, PORT, TCP, service);
    w.cluster_ip(n.cluster, PORT, TCP, service);
    w.nodeport(n.node, NODE_PORT, TCP, service);
    (w.machine(), service)
}

/// The address to which a SYN from outside went.
fn syn<F: Side>(machine: &mut Machine, client: IpAddr, port: u16, to: (IpAddr, u16)) -> IpAddr {
    let hook = Hook { l3: 14, ifindex: UPLINK, ingress_ifindex: UPLINK };
    let mut frame = PacketBuilder::new(TCP, at(client, port), at(to.0, to.1)).with(|p| p.kind = SYN).build();
    assert_eq!(machine.run(Direction::In, hook, &mut frame), Verdict::Pass);
    let dst = 14 + F::ADDRS + size_of::<F::Addr>();
    match F::V6 {
        true => <[u8; 16]>::try_from(&frame[dst..dst + 16]).expect("16 bytes").into(),
        false => <[u8; 4]>::try_from(&frame[dst..dst + 4]).expect("4 bytes").into(),
    }
}

fn owner<F: Side>(n: &Net, table: &[usize], client: IpAddr, ports: u32) -> IpAddr {
    nth(n, table[below(F::flow_hash(F::addr(client), ports), table.len() as u32) as usize])
}

fn orders() -> impl Strategy<Value = Vec<usize>> {
    Just((0..ENDPOINTS).collect::<Vec<_>>()).prop_shuffle()
}

fn same<F: Side>(n: &Net, orders: [&[usize]; 2], table: &[usize], port: u16) {
    let ports = |to: u16| ports(port.to_be_bytes(), to.to_be_bytes());
    for (affinity_s, to, draw) in [
        (0, (n.external, PORT), ports(PORT)),
        (0, (n.node, NODE_PORT), ports(NODE_PORT)),
        (60, (n.external, PORT), ANY_PORT),
        (60, (n.node, NODE_PORT), ANY_PORT),
    ] {
        let due = owner::<F>(n, table, n.client, draw);
        for order in orders {
            let (mut machine, _) = node(n, order, table, affinity_s);
            assert_eq!(syn::<F>(&mut machine, n.client, port, to), due, "{to:?} affinity {affinity_s}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn two_nodes_choose_the_same_endpoint(
        (here, there) in (orders(), orders()),
        table in prop::collection::vec(0..ENDPOINTS, 1..300),
        port in 1024_u16..,
    ) {
        same::<V4>(&net4(), [&here, &there], &table, port);
        same::<V6>(&net6(), [&here, &there], &table, port);
    }
}

/// A load balancer in front may hand a flow to any node: the address it dials there does not count.
#[test]
fn the_choice_is_the_same_by_whatever_address_of_a_service() {
    let table: Vec<usize> = (0..251).map(|i| i % ENDPOINTS).collect();
    let n = net4();
    let order: Vec<usize> = (0..ENDPOINTS).collect();
    for port in 40_000..40_050 {
        let (mut machine, _) = node(&n, &order, &table, 0);
        let by_vip = syn::<V4>(&mut machine, n.client, port, (n.external, PORT));
        let (mut machine, _) = node(&n, &order, &table, 0);
        assert_eq!(syn::<V4>(&mut machine, n.client, port, (n.vip, PORT)), by_vip);
    }
}

#[test]
fn all_endpoints_of_a_table_are_chosen_by_packets_and_by_sockets() {
    let table: Vec<usize> = (0..251).map(|i| i % ENDPOINTS).collect();
    let n = net6();
    let order: Vec<usize> = (0..ENDPOINTS).rev().collect();
    let (mut machine, service) = node(&n, &order, &table, 0);
    let source = Source { pod: Some(false), host: false, pod_facing: false };
    let (mut packets, mut sockets) = ([0; ENDPOINTS], [0; ENDPOINTS]);
    for port in 1024..9024_u16 {
        let ports = ports(port.to_be_bytes(), PORT.to_be_bytes());
        let client = V6::addr(n.client);
        let by_packet =
            decide::<V6>(&mut machine.env, &machine.config, &service, client, ports, &source).backend.addr;
        let to = PORT.to_be_bytes();
        let config = machine.config;
        let by_socket =
            connect::<V6>(&mut machine.env, &config, Owner::Host, None, V6::addr(n.cluster), to, TCP);
        let SockVerdict::Deliver { addr: by_socket, .. } = by_socket else { panic!("{by_socket:?}") };
        for (counts, addr) in [(&mut packets, by_packet), (&mut sockets, by_socket)] {
            counts[usize::from(addr.addr[15]) - 1] += 1;
        }
    }
    for counts in [packets, sockets] {
        assert!(counts.iter().all(|n| (850..1150).contains(n)), "1000 each are due: {counts:?}");
    }
}

#[test]
fn an_affinity_that_stands_wins_over_the_table() {
    let n = net4();
    let order: Vec<usize> = (0..ENDPOINTS).collect();
    let (mut machine, service) = node(&n, &order, &[3, 5], 60);
    let source = Source { pod: Some(false), host: false, pod_facing: false };
    // a table in which one endpoint has all slots
    let ask = |machine: &mut Machine, slot: u32| {
        let service = SvcValue { cluster_start: service.cluster_start + slot, cluster_len: 1, ..service };
        decide::<V4>(&mut machine.env, &machine.config, &service, V4::addr(n.client), 1, &source).id
    };
    let kept = ask(&mut machine, 0);
    assert_eq!(ask(&mut machine, 1), kept);
    machine.env.v4.affinity.clear();
    assert_ne!(ask(&mut machine, 1), kept);
}
