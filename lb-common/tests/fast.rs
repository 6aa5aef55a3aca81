//! Fast forwarding between two pods of a node: what is handed over, what is not, and flows that outlive the option.

use std::net::SocketAddr;

use lb_common::abi::{BE_LOCAL, CFG_FAST, CFG_FAST_FLOWS, IF_POD, NH_POD, NextHop, SVC_HAS_ANY};
use lb_common::counter::Counter;
use lb_common::env::Hook;
use lb_common::packet::{ACK, FIN, SYN, TCP, UDP};
use lb_common::testing::golden::{Net, net4, net6, world};
use lb_common::testing::packets::{NODE_MAC, at, checksums};
use lb_common::testing::world::{POD, row};
use lb_common::testing::{Direction, Machine, PacketBuilder};
use lb_common::verdict::Verdict;

/// The near end of the backend pod's link.
const THERE: u32 = 77;
const CLIENT: [u8; 6] = [2, 7, 7, 7, 7, 1];
const SERVER: [u8; 6] = [2, 7, 7, 7, 7, 2];
/// Source port of the connection.
const PORT: u16 = 40000;

/// Two Services (ports 800 and 801) with one backend in another pod of the node, TCP and UDP.
fn node(n: &Net) -> Machine {
    let mut w = world(n);
    w.iface(THERE, IF_POD, &[n.node]);
    w.config.flags |= CFG_FAST | CFG_FAST_FLOWS;
    for proto in [TCP, UDP] {
        for port in [800, 801] {
            let id = w.backend(n.local, 8080, proto, BE_LOCAL);
            let nexthop = row(THERE, n.local);
            w.be4.iter_mut().filter(|(i, _)| *i == id && !n.v6).for_each(|(_, be)| be.nexthop = nexthop);
            w.be6.iter_mut().filter(|(i, _)| *i == id && n.v6).for_each(|(_, be)| be.nexthop = nexthop);
            let service = w.service(SVC_HAS_ANY, &[id], &[]);
            w.cluster_ip(n.cluster, port, proto, service);
        }
    }
    let mut machine = w.machine();
    for (ifindex, ip, dmac) in [(POD, n.pod, CLIENT), (THERE, n.local, SERVER)] {
        let hop = NextHop { ifindex, flags: NH_POD, mtu: 1500, dmac, smac: NODE_MAC };
        machine.env.next_hops.insert(row(ifindex, ip), hop);
    }
    machine
}

/// A packet as it comes, by which interface, and as it is handed over.
struct Hop {
    ifindex: u32,
    packet: PacketBuilder,
    sent: PacketBuilder,
    to: Verdict,
}

fn packet(proto: u8, from: SocketAddr, to: SocketAddr, flags: u8) -> PacketBuilder {
    if proto == TCP { PacketBuilder::tcp(from, to, flags) } else { PacketBuilder::udp(from, to) }
}

/// Request and reply of the flow to a port of the ClusterIP, which the backend knows by `port`.
fn hops_of(n: &Net, proto: u8, flags: [u8; 2], front: u16, port: u16) -> [Hop; 2] {
    let (client, moved) = (at(n.pod, PORT), at(n.pod, port));
    let (front, web) = (at(n.cluster, front), at(n.local, 8080));
    let hop = |ifindex, flags, old: (_, _), new: (_, _), mac, to| {
        let packet = packet(proto, old.0, old.1, flags);
        let sent = packet.between(new.0, new.1).with(|p| (p.macs, p.ttl) = ([mac, NODE_MAC], p.ttl - 1));
        Hop { ifindex, packet, sent, to: Verdict::Peer(to) }
    };
    [
        hop(POD, flags[0], (client, front), (moved, web), SERVER, THERE),
        hop(THERE, flags[1], (web, moved), (front, client), CLIENT, POD),
    ]
}

fn hops(n: &Net, proto: u8, flags: [u8; 2]) -> [Hop; 2] {
    hops_of(n, proto, flags, 800, PORT)
}

fn run(machine: &mut Machine, ifindex: u32, packet: &PacketBuilder) -> (Verdict, Vec<u8>) {
    let mut frame = packet.build();
    let hook = Hook { l3: 14, ifindex, ingress_ifindex: ifindex };
    let verdict = machine.run(Direction::In, hook, &mut frame);
    (verdict, frame)
}

#[track_caller]
fn hands(machine: &mut Machine, hop: &Hop) {
    let (verdict, frame) = run(machine, hop.ifindex, &hop.packet);
    assert_eq!((verdict, &frame), (hop.to, &hop.sent.build()));
    checksums(&frame, 14).expect("right checksums");
}

/// By the route, past the stack: the neighbour look-up addresses it.
#[track_caller]
fn routes(machine: &mut Machine, hop: &Hop) {
    let by_route = PacketBuilder { macs: hop.packet.macs, ..hop.sent.clone() };
    assert_eq!(run(machine, hop.ifindex, &hop.packet), (Verdict::Out, by_route.build()));
}

fn count(machine: &Machine, counter: Counter) -> u64 {
    machine.env.counters.get(&counter).copied().unwrap_or(0)
}

fn established(n: &Net) -> Machine {
    let mut machine = node(n);
    for flags in [[SYN, SYN | ACK], [ACK, ACK]] {
        hops(n, TCP, flags).iter().for_each(|hop| hands(&mut machine, hop));
    }
    machine.env.advance(2);
    machine
}

#[test]
fn both_directions_are_handed_over() {
    for n in [net4(), net6()] {
        for proto in [TCP, UDP] {
            let mut machine = node(&n);
            hops(&n, proto, [SYN, SYN | ACK]).iter().for_each(|hop| hands(&mut machine, hop));
            machine.env.advance(3); // a UDP stream by then
            for _ in 0..3 {
                hops(&n, proto, [ACK, ACK]).iter().for_each(|hop| hands(&mut machine, hop));
            }
            assert_eq!((count(&machine, Counter::FastFlow), count(&machine, Counter::NewFlow)), (1, 1));
            assert_eq!(count(&machine, Counter::FlowPromoted), 1, "{proto}");
            assert_eq!(count(&machine, Counter::FastSent), 8);
        }
    }
}

#[test]
fn what_may_not_be_fast_goes_through_the_stack() {
    for n in [net4(), net6()] {
        let [Hop { packet: syn, .. }, _] = hops(&n, TCP, [SYN, ACK]);
        type Change = fn(&Net, &mut Machine);
        let changes: [(&str, Change); 5] = [
            ("the option is off", |_, machine| machine.config.flags &= !CFG_FAST),
            ("the backend has no row", |n, machine| {
                machine.env.next_hops.remove(&row(THERE, n.local));
            }),
            ("the client has no row", |n, machine| {
                machine.env.next_hops.remove(&row(POD, n.pod));
            }),
            ("the client's row is of another interface", |n, machine| {
                machine.env.next_hops.get_mut(&row(POD, n.pod)).expect("a row").ifindex = 99;
            }),
            ("a frame for somebody else", |n, machine| {
                machine.env.next_hops.get_mut(&row(POD, n.pod)).expect("a row").smac = [2; 6];
            }),
        ];
        for (what, change) in changes {
            let mut machine = node(&n);
            change(&n, &mut machine);
            let dnat = syn.between(at(n.pod, PORT), at(n.local, 8080));
            assert_eq!(run(&mut machine, POD, &syn), (Verdict::Pass, dnat.build()), "{what}");
            assert_eq!(count(&machine, Counter::FastFlow), 0, "{what}");
        }
        // the last hop: the stack answers
        let mut machine = established(&n);
        let last = hops(&n, TCP, [ACK, ACK]).map(|hop| (hop.ifindex, hop.packet.with(|p| p.ttl = 1)));
        for (ifindex, packet) in last {
            assert_eq!(run(&mut machine, ifindex, &packet), (Verdict::Pass, packet.build()));
        }
    }
}

/// Connections one after the other by one source port, to two Services of the backend in turn.
#[test]
fn i6_an_ended_flow_leaves_its_entries_to_the_next_one_of_its_tuple() {
    for n in [net4(), net6()] {
        let mut machine = node(&n);
        let fin = FIN | ACK;
        for number in 0..8 {
            for flags in [[SYN, SYN | ACK], [ACK, ACK], [fin, fin]] {
                hops_of(&n, TCP, flags, 800 + number % 2, PORT)
                    .iter()
                    .for_each(|hop| hands(&mut machine, hop));
            }
        }
        assert_eq!((count(&machine, Counter::FastFlow), count(&machine, Counter::NewFlow)), (8, 8));
        assert_eq!(count(&machine, Counter::FlowMovedPort), 0);
        let left = if n.v6 { machine.env.v6.young.len() } else { machine.env.v4.young.len() };
        assert!(left <= 3, "two forward entries, and what answers the last: {left}");
    }
}

/// Direct traffic of the two beside the flow, in both directions.
#[test]
fn i5_other_packets_between_the_two_are_not_changed() {
    for n in [net4(), net6()] {
        let mut machine = established(&n);
        for (ifindex, from, to) in [
            (THERE, at(n.local, 8080), at(n.pod, 4)),
            (THERE, at(n.local, 9), at(n.pod, PORT)),
            (POD, at(n.pod, 4), at(n.local, 8080)),
        ] {
            for flags in [SYN, ACK] {
                let packet = PacketBuilder::tcp(from, to, flags);
                assert_eq!(run(&mut machine, ifindex, &packet), (Verdict::Pass, packet.build()));
            }
        }
    }
}

#[test]
fn a_flow_outlives_the_option_and_its_rows() {
    for n in [net4(), net6()] {
        let mut machine = established(&n);
        let data = hops(&n, TCP, [ACK, ACK]);
        machine.config.flags &= !CFG_FAST;
        data.iter().for_each(|hop| hands(&mut machine, hop));
        let rows = std::mem::take(&mut machine.env.next_hops);
        data.iter().for_each(|hop| routes(&mut machine, hop));
        machine.env.next_hops = rows;
        data.iter().for_each(|hop| hands(&mut machine, hop));
        // the next one is a plain flow
        hops(&n, TCP, [FIN | ACK, FIN | ACK]).iter().for_each(|hop| hands(&mut machine, hop));
        let [again, _] = hops(&n, TCP, [SYN, ACK]);
        let (verdict, _) = run(&mut machine, POD, &again.packet);
        assert_eq!((verdict, count(&machine, Counter::FastFlow)), (Verdict::Pass, 1));
    }
}

#[test]
fn i6_either_half_makes_the_other_again() {
    for n in [net4(), net6()] {
        for lost in [4, 5] {
            let mut machine = established(&n);
            machine.env.v4.evict(|_, _, value| value.role == lost);
            machine.env.v6.evict(|_, _, value| value.role == lost);
            let [request, reply] = hops(&n, TCP, [ACK, ACK]);
            let (first, second) = if lost == 4 { (reply, request) } else { (request, reply) };
            hands(&mut machine, &first);
            hands(&mut machine, &second);
            assert!(count(&machine, Counter::FlowHealed) > 0);
        }
    }
}

/// The backend could not tell two flows of one tuple apart, whatever their kinds: the later one is moved.
#[test]
fn flows_of_one_tuple_are_told_apart() {
    for n in [net4(), net6()] {
        for (first, second) in [(true, true), (true, false), (false, true)] {
            let mut machine = node(&n);
            let set = |machine: &mut Machine, fast: bool| {
                machine.config.flags &= !CFG_FAST;
                machine.config.flags |= if fast { CFG_FAST } else { 0 };
            };
            set(&mut machine, first);
            let [one, _] = hops_of(&n, TCP, [SYN, ACK], 800, PORT);
            let (_, seen) = run(&mut machine, POD, &one.packet);
            set(&mut machine, second);
            let [two, _] = hops_of(&n, TCP, [SYN, ACK], 801, PORT);
            let (_, other) = run(&mut machine, POD, &two.packet);
            let l4 = if n.v6 { 14 + 40 } else { 14 + 20 };
            assert_eq!(seen[l4..l4 + 2], PORT.to_be_bytes());
            assert_ne!(other[l4..l4 + 2], PORT.to_be_bytes(), "{first} {second}");
            assert_eq!(count(&machine, Counter::FlowMovedPort), 1);
        }
    }
}

#[test]
fn a_straight_connection_beside_a_fast_flow_is_moved() {
    for n in [net4(), net6()] {
        let mut machine = established(&n);
        let straight = PacketBuilder::tcp(at(n.pod, PORT), at(n.local, 8080), SYN);
        let (verdict, frame) = run(&mut machine, POD, &straight);
        assert_eq!(verdict, Verdict::Pass);
        let l4 = if n.v6 { 14 + 40 } else { 14 + 20 };
        assert_ne!(frame[l4..l4 + 2], PORT.to_be_bytes());
        // once the flow has ended, the tuple is free
        hops(&n, TCP, [FIN | ACK, FIN | ACK]).iter().for_each(|hop| hands(&mut machine, hop));
        let other = PacketBuilder::tcp(at(n.pod, PORT), at(n.local, 8080), SYN);
        let mut fresh = established(&n);
        hops(&n, TCP, [FIN | ACK, FIN | ACK]).iter().for_each(|hop| hands(&mut fresh, hop));
        assert_eq!(run(&mut fresh, POD, &other), (Verdict::Pass, other.build()));
        let answer = other.swapped().between(at(n.local, 8080), at(n.pod, PORT)).with(|p| p.kind = SYN | ACK);
        assert_eq!(run(&mut fresh, THERE, &answer), (Verdict::Pass, answer.build()));
    }
}
