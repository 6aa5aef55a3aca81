//! Tuples that come again soon after their flow has ended.

use std::collections::BTreeMap;

use lb_common::abi::SVC_HAS_ANY;
use lb_common::counter::Counter;
use lb_common::env::Hook;
use lb_common::packet::{ACK, FIN, RST, SYN, TCP};
use lb_common::testing::golden::{Net, net4, net6, world};
use lb_common::testing::packets::at;
use lb_common::testing::world::UPLINK;
use lb_common::testing::{Direction, Machine, PacketBuilder as P};
use lb_common::verdict::Verdict;

const HOOK: Hook = Hook { l3: 14, ifindex: UPLINK, ingress_ifindex: UPLINK };

/// What a packet becomes behind these hooks of the uplink.
fn pass(machine: &mut Machine, hooks: &[Direction], packet: &P) -> Vec<u8> {
    let mut frame = packet.build();
    for hook in hooks {
        assert_eq!(machine.run(*hook, HOOK, &mut frame), Verdict::Pass);
    }
    frame
}

fn source_port(n: &Net, frame: &[u8]) -> u16 {
    let l4 = if n.v6 { 54 } else { 34 };
    u16::from_be_bytes([frame[l4], frame[l4 + 1]])
}

/// 512 short connections in a row, through masquerading and from changing clients' ports, two in a tick: the backend
/// keeps each in TIME_WAIT for 60 s, and none of its ports comes again before.
fn rests(n: &Net) {
    let mut w = world(n);
    w.pool(61000, 64999);
    let mut machine = w.machine();
    let (front, web) = (at(n.node, 30080), at(n.remote, 8080));
    let through = [Direction::In, Direction::Out];
    let mut used: BTreeMap<u16, u64> = BTreeMap::new();
    for number in 0..512u16 {
        let now = u64::from(number / 2);
        let client = at(n.client, 10_000 + number);
        let port = source_port(n, &pass(&mut machine, &through, &P::tcp(client, front, SYN)));
        if let Some(before) = used.insert(port, now) {
            assert!(now - before >= 60, "port {port} after {} ticks", now - before);
        }
        let masqueraded = at(n.node, port);
        pass(&mut machine, &through, &P::tcp(web, masqueraded, SYN | ACK));
        pass(&mut machine, &through, &P::tcp(client, front, ACK));
        pass(&mut machine, &through, &P::tcp(web, masqueraded, FIN | ACK));
        pass(&mut machine, &through, &P::tcp(client, front, FIN | ACK));
        machine.env.advance(u64::from(number % 2));
    }
}

#[test]
fn i6_a_port_rests_while_the_backend_is_in_time_wait() {
    rests(&net4());
    rests(&net6());
}

/// With fewer ports than resting flows, those of ended ones are used all the same.
#[test]
fn i6_resting_ports_are_used_before_a_flow_is_refused() {
    for n in [net4(), net6()] {
        let mut w = world(&n);
        w.pool(61000, 61003);
        let mut machine = w.machine();
        let (front, web) = (at(n.node, 30080), at(n.remote, 8080));
        for number in 0..64u16 {
            let client = at(n.client, 10_000 + number);
            let through = [Direction::In, Direction::Out];
            let port = source_port(&n, &pass(&mut machine, &through, &P::tcp(client, front, SYN)));
            pass(&mut machine, &through, &P::tcp(web, at(n.node, port), RST | ACK));
        }
    }
}

/// A connection straight to a backend, by the tuple of a Service's flow that has ended: its answers are its own.
#[test]
fn i6_a_flow_that_ended_leaves_its_tuple_to_a_straight_connection() {
    for n in [net4(), net6()] {
        let mut machine = world(&n).machine();
        let (client, front, backend) = (at(n.pod, 40000), at(n.cluster, 80), at(n.remote, 8080));
        let inwards = [Direction::In];
        let request = pass(&mut machine, &inwards, &P::tcp(client, front, SYN));
        assert_ne!(request, P::tcp(client, front, SYN).build(), "rewritten");
        pass(&mut machine, &[Direction::Out], &P::tcp(backend, client, RST | ACK));
        let straight = P::tcp(client, backend, SYN);
        assert_eq!(pass(&mut machine, &inwards, &straight), straight.build());
        let answer = P::tcp(backend, client, SYN | ACK);
        assert_eq!(pass(&mut machine, &[Direction::Out], &answer), answer.build());
    }
}

/// A client that goes on connecting by one source port: each connection is decided anew, and the entries of the last one are
/// its own, whichever backend that had. What its backend still sends does not disturb it.
#[test]
fn i6_an_ended_flow_leaves_its_entries_to_the_next_one_of_its_tuple() {
    for n in [net4(), net6()] {
        let mut w = world(&n);
        let ids = [w.backend(n.remote, 8081, TCP, 0), w.backend(n.stranger, 8081, TCP, 0)];
        let service = w.service(SVC_HAS_ANY, &ids, &[]);
        w.cluster_ip(n.cluster, 801, TCP, service);
        let mut machine = w.machine();
        let (client, front) = (at(n.pod, 40000), at(n.cluster, 801));
        let backends = [at(n.remote, 8081), at(n.stranger, 8081)];
        let inwards =
            |machine: &mut Machine, flags| pass(machine, &[Direction::In], &P::tcp(client, front, flags));
        let outwards = |machine: &mut Machine, backend, flags| {
            pass(machine, &[Direction::Out], &P::tcp(backend, client, flags))
        };
        let mut drawn = [0; 2];
        let mut last = None;
        for _ in 0..64 {
            let request = inwards(&mut machine, SYN);
            let chosen = backends.iter().position(|b| P::tcp(client, *b, SYN).build() == request);
            let chosen = chosen.expect("to one of the two");
            let backend = backends[chosen];
            drawn[chosen] += 1;
            let to = |flags| P::tcp(client, backend, flags).build();
            let from = |flags| P::tcp(front, client, flags).build();
            if let Some(last) = last.filter(|last| *last != backend) {
                outwards(&mut machine, last, FIN | ACK); // the one that it did not see acknowledged
            }
            assert_eq!(outwards(&mut machine, backend, SYN | ACK), from(SYN | ACK));
            for flags in [ACK, ACK, FIN | ACK] {
                assert_eq!(inwards(&mut machine, flags), to(flags));
            }
            assert_eq!(outwards(&mut machine, backend, FIN | ACK), from(FIN | ACK));
            assert_eq!(inwards(&mut machine, ACK), to(ACK));
            last = Some(backend);
        }
        assert!(drawn.iter().all(|times| *times > 8), "decided anew: {drawn:?}");
        let left = if n.v6 { machine.env.v6.young.len() } else { machine.env.v4.young.len() };
        assert!(left <= 3, "the forward entry, and what answers by either backend: {left}");
        assert_eq!(machine.env.counters.get(&Counter::NewFlow), Some(&64));
    }
}

/// A flow ended, and its Service is gone: what the client sends there now is not the balancer's.
#[test]
fn i6_an_ended_flow_is_forgotten_when_its_tuple_is_nobodys() {
    for n in [net4(), net6()] {
        let mut machine = world(&n).machine();
        let (client, front, backend) = (at(n.client, 40000), at(n.external, 80), at(n.remote, 8080));
        let inwards =
            |machine: &mut Machine, flags| pass(machine, &[Direction::In], &P::tcp(client, front, flags));
        assert_ne!(inwards(&mut machine, SYN), P::tcp(client, front, SYN).build(), "rewritten");
        inwards(&mut machine, RST);
        machine.env.v4.services.clear();
        machine.env.v6.services.clear();
        for flags in [SYN, ACK, FIN | ACK] {
            assert_eq!(inwards(&mut machine, flags), P::tcp(client, front, flags).build());
        }
        let answer = P::tcp(backend, client, ACK);
        assert_eq!(pass(&mut machine, &[Direction::Out], &answer), answer.build());
    }
}

/// A straight connection was moved beside a flow of a Service; both have ended, and the next one need not be.
#[test]
fn i6_a_moved_connection_that_ended_leaves_its_tuple_to_an_unmoved_one() {
    for n in [net4(), net6()] {
        let mut machine = world(&n).machine();
        let (client, front, backend) = (at(n.pod, 40000), at(n.cluster, 80), at(n.remote, 8080));
        let inwards =
            |machine: &mut Machine, to, flags| pass(machine, &[Direction::In], &P::tcp(client, to, flags));
        inwards(&mut machine, front, SYN);
        let moved = inwards(&mut machine, backend, SYN);
        assert_ne!(moved, P::tcp(client, backend, SYN).build(), "moved");
        inwards(&mut machine, backend, RST);
        inwards(&mut machine, front, RST);
        for flags in [SYN, ACK, FIN | ACK] {
            assert_eq!(inwards(&mut machine, backend, flags), P::tcp(client, backend, flags).build());
        }
    }
}
