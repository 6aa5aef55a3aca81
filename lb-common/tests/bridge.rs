//! Client and backend on ports of one bridge: requests go the way of the answers.

use lb_common::abi::{CFG_MASQ_LOCAL, IF_POD, SVC_HAS_ANY, SVC_MASQ_ALL};
use lb_common::env::Hook;
use lb_common::family::{V4, V6};
use lb_common::packet::{ACK, SYN, TCP, UDP};
use lb_common::switch::Neighbour;
use lb_common::testing::golden::{Net, net4, net6, world};
use lb_common::testing::packets::at;
use lb_common::testing::{Direction, Machine, PacketBuilder as P, Side};
use lb_common::verdict::Verdict;

/// Ports of the bridge with the client and with the backend, and the bridge.
const CLIENT: u32 = 21;
const SERVER: u32 = 22;
const BRIDGE: u32 = 20;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x77];

fn machine(n: &Net, known: bool, flags: u32) -> Machine {
    let mut w = world(n);
    let web = w.backend(n.local, 8080, TCP, lb_common::abi::BE_LOCAL);
    let dns = w.backend(n.local, 5353, UDP, lb_common::abi::BE_LOCAL);
    let service = w.service(SVC_HAS_ANY | flags, &[web], &[]);
    w.cluster_ip(n.cluster, 8000, TCP, service);
    let service = w.service(SVC_HAS_ANY | flags, &[dns], &[]);
    w.cluster_ip(n.cluster, 8053, UDP, service);
    w.config.flags |= CFG_MASQ_LOCAL;
    for port in [CLIENT, SERVER] {
        w.iface(port, IF_POD, &[n.node]);
        w.ifaces.last_mut().expect("just pushed").1.master = BRIDGE;
    }
    let mut machine = w.machine();
    let neighbour = Neighbour { ifindex: BRIDGE, mac: MAC, _pad: [0; 2] };
    if known && n.v6 {
        machine.env.v6.neighbours.insert((BRIDGE, V6::addr(n.local)), neighbour);
    } else if known {
        machine.env.v4.neighbours.insert((BRIDGE, V4::addr(n.local)), neighbour);
    }
    machine
}

/// Sends a request in by the client's port; returns the MAC address it goes on to.
fn request(machine: &mut Machine, packet: &P) -> [u8; 6] {
    let mut frame = packet.build();
    let hook = Hook { l3: 14, ifindex: CLIENT, ingress_ifindex: CLIENT };
    assert_eq!(machine.run(Direction::In, hook, &mut frame), Verdict::Pass);
    assert_ne!(frame[14..], packet.build()[14..], "rewritten");
    frame[..6].try_into().expect("six bytes")
}

/// Sends an answer out by the client's port, that came in by another.
fn answer(machine: &mut Machine, packet: &P, from: u32) {
    let mut frame = packet.build();
    let hook = Hook { l3: 14, ifindex: CLIENT, ingress_ifindex: from };
    assert_eq!(machine.run(Direction::Out, hook, &mut frame), Verdict::Pass);
    assert_ne!(frame, packet.build(), "rewritten");
}

/// The gateway's MAC address, to which the client sends.
fn gateway() -> [u8; 6] {
    lb_common::testing::packets::NODE_MAC
}

fn talk(n: &Net, known: bool, flags: u32, answers_from: u32) -> [[u8; 6]; 2] {
    let mut m = machine(n, known, flags);
    let (client, front, backend) = (at(n.pod, 40000), at(n.cluster, 8000), at(n.local, 8080));
    let first = request(&mut m, &P::tcp(client, front, SYN));
    answer(&mut m, &P::tcp(backend, client, SYN | ACK), answers_from);
    [first, request(&mut m, &P::tcp(client, front, ACK))]
}

#[test]
fn requests_are_switched_once_an_answer_was() {
    for n in [net4(), net6()] {
        assert_eq!(talk(&n, true, 0, SERVER), [gateway(), MAC]);
    }
}

#[test]
fn requests_are_routed_where_answers_are_or_the_neighbour_is_not_known() {
    for n in [net4(), net6()] {
        assert_eq!(talk(&n, true, 0, BRIDGE), [gateway(); 2], "routed answers");
        assert_eq!(talk(&n, false, 0, SERVER), [gateway(); 2], "no neighbour");
    }
}

#[test]
fn a_masqueraded_flow_is_routed_since_its_answers_come_to_the_node() {
    for n in [net4(), net6()] {
        let mut m = machine(&n, true, SVC_MASQ_ALL);
        let (client, front) = (at(n.pod, 40000), at(n.cluster, 8000));
        for _ in 0..3 {
            assert_eq!(request(&mut m, &P::tcp(client, front, SYN)), gateway());
        }
    }
}

#[test]
fn fragments_are_switched_with_their_first_fragment() {
    for n in [net4(), net6()] {
        let mut m = machine(&n, true, 0);
        let (client, front, backend) = (at(n.pod, 40000), at(n.cluster, 8053), at(n.local, 5353));
        let part = |offset, more| P::udp(client, front).with(|p| p.fragment = Some((offset, more)));
        assert_eq!(request(&mut m, &P::udp(client, front)), gateway());
        answer(&mut m, &P::udp(backend, client), SERVER);
        assert_eq!(request(&mut m, &part(0, true)), MAC);
        assert_eq!(request(&mut m, &part(185, false)), MAC);
    }
}
