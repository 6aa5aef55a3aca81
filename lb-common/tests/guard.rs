//! A packet of the node itself, or of another masquerade, that leaves with a port which a flow of ours has towards that
//! backend: it gets another port, by a SNAT pair and nothing else.

use lb_common::counter::Counter;
use lb_common::env::{Env, Hook};
use lb_common::family::{V4, V6};
use lb_common::packet::{ACK, SYN};
use lb_common::testing::golden::{Net, net4, net6, world};
use lb_common::testing::packets::at;
use lb_common::testing::world::UPLINK;
use lb_common::testing::{Direction, Machine, PacketBuilder, checksums};
use lb_common::verdict::Verdict;
use std::net::{IpAddr, SocketAddr};

/// Sends a packet and returns the ends that it leaves with.
fn cross(machine: &mut Machine, direction: Direction, packet: &PacketBuilder) -> (SocketAddr, SocketAddr) {
    let hook = Hook {
        l3: 14,
        ifindex: UPLINK,
        ingress_ifindex: if direction == Direction::In { UPLINK } else { 0 },
    };
    let mut frame = packet.build();
    assert_eq!(machine.run(direction, hook, &mut frame), Verdict::Pass);
    assert_eq!(checksums(&frame, 14), Ok(()));
    for ports in 61000..=61001 {
        for other in [packet.src.port(), packet.dst.port(), ports] {
            for (src, dst) in
                [(at(packet.src.ip(), other), packet.dst), (packet.src, at(packet.dst.ip(), other))]
            {
                if packet.between(src, dst).build() == frame {
                    return (src, dst);
                }
            }
        }
    }
    panic!("{packet:?} became {frame:02x?}");
}

fn moved(n: &Net) {
    let mut w = world(n);
    w.pool(61000, 61001);
    let mut machine = w.machine();
    let (client, web) = (at(n.client, 40000), at(n.remote, 8080));
    let uplink = Hook { l3: 14, ifindex: UPLINK, ingress_ifindex: UPLINK };
    let mut frame = PacketBuilder::tcp(client, at(n.node, 30080), SYN).build();
    assert_eq!(machine.run(Direction::In, uplink, &mut frame), Verdict::Pass);
    assert_eq!(machine.run(Direction::Out, uplink, &mut frame), Verdict::Pass);
    let l4 = if n.v6 { 54 } else { 34 };
    let taken = u16::from_be_bytes([frame[l4], frame[l4 + 1]]);
    assert!((61000..=61001).contains(&taken));

    // the host, by the same port to the same backend
    let own = at(n.node, taken);
    let free = at(n.node, 61000 + (61001 - taken));
    assert_eq!(cross(&mut machine, Direction::Out, &PacketBuilder::tcp(own, web, SYN)), (free, web));
    assert_eq!(cross(&mut machine, Direction::In, &PacketBuilder::tcp(web, free, SYN | ACK)), (web, own));
    // later packets refresh the flow's entries, and find all that it ever had
    for _ in 0..3 {
        machine.env.advance(2);
        assert_eq!(cross(&mut machine, Direction::Out, &PacketBuilder::tcp(own, web, ACK)), (free, web));
        assert_eq!(cross(&mut machine, Direction::In, &PacketBuilder::tcp(web, free, ACK)), (web, own));
    }
    assert_eq!(machine.env.counters.get(&Counter::FlowHealed), None);
    assert_eq!(machine.env.counters.get(&Counter::FlowDead), None);
    let entries = if n.v6 { keys(&machine.env.v6) } else { keys(&machine.env.v4) };
    // four of the client's flow, two of the host's
    assert_eq!(entries, 6);
}

fn keys<F: lb_common::family::Family>(tables: &lb_common::testing::Tables<F>) -> usize {
    let keys: std::collections::BTreeSet<_> = tables.entries().into_iter().map(|(_, key, _)| key).collect();
    keys.len()
}

#[test]
fn i6_a_moved_port_of_the_node_itself_has_a_snat_pair_only() {
    moved(&net4());
    moved(&net6());
}

/// A datagram of the host from a NodePort's number to a backend, beside a socket of the host that is masqueraded there.
fn answered(n: &Net) {
    let mut machine = world(n).machine();
    match (n.node, n.remote) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            Env::<V4>::mark_bound(&mut machine.env, a.octets().into(), b.octets().into());
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            Env::<V6>::mark_bound(&mut machine.env, a.octets().into(), b.octets().into());
        }
        _ => unreachable!("one family"),
    }
    let (own, server) = (at(n.node, 30053), at(n.remote, 5353));
    assert_eq!(cross(&mut machine, Direction::Out, &PacketBuilder::udp(own, server)), (own, server));
    assert_eq!(machine.env.counters.get(&Counter::PassEntry), Some(&1));
    assert_eq!(cross(&mut machine, Direction::In, &PacketBuilder::udp(server, own)), (server, own));
    assert_eq!(machine.env.counters.get(&Counter::NewFlow), None);
}

#[test]
fn an_answer_is_not_balanced_though_the_host_has_a_flow_to_that_backend() {
    answered(&net4());
    answered(&net6());
}
