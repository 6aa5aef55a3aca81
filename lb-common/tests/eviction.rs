//! Invariant I6: whatever part of a flow is evicted, no packet is rewritten wrongly, and the next packet that meets an
//! entry that is left makes the flow whole again. Every subset of entries, every packet, both families.

use lb_common::abi::CtValue;
use lb_common::env::Hook;
use lb_common::family::Family;
use lb_common::flow::Role;
use lb_common::packet::{ACK, SYN};
use lb_common::testing::golden::{Net, POOL, net4, net6, world};
use lb_common::testing::packets::at;
use lb_common::testing::world::UPLINK;
use lb_common::testing::{Direction, Machine, PacketBuilder};
use lb_common::verdict::Verdict;

/// A packet of the flow at a hook, and what becomes of it.
struct Hop {
    direction: Direction,
    role: Role,
    packet: PacketBuilder,
    becomes: PacketBuilder,
}

/// The four hops of a masqueraded flow to a NodePort, in the order of a round trip.
fn hops(n: &Net, request: u8, reply: u8) -> [Hop; 4] {
    let (client, front, web, snat) =
        (at(n.client, 40000), at(n.node, 30080), at(n.remote, 8080), at(n.node, POOL));
    let hop = |direction, role, flags, from: (_, _), to: (_, _)| {
        let packet = PacketBuilder::tcp(from.0, from.1, flags);
        Hop { direction, role, becomes: packet.between(to.0, to.1), packet }
    };
    [
        hop(Direction::In, Role::DnatForward, request, (client, front), (client, web)),
        hop(Direction::Out, Role::SnatForward, request, (client, web), (snat, web)),
        hop(Direction::In, Role::SnatReply, reply, (web, snat), (web, client)),
        hop(Direction::Out, Role::DnatReply, reply, (web, client), (front, client)),
    ]
}

fn send(machine: &mut Machine, hop: &Hop) -> (Verdict, Vec<u8>) {
    let mut frame = hop.packet.build();
    let hook = Hook { l3: 14, ifindex: UPLINK, ingress_ifindex: UPLINK };
    let verdict = machine.run(hop.direction, hook, &mut frame);
    (verdict, frame)
}

fn assert_whole(machine: &mut Machine, hops: &[Hop], what: &str) {
    for hop in hops {
        let role = hop.role;
        assert_eq!(send(machine, hop), (Verdict::Pass, hop.becomes.build()), "{what}: then {role:?}");
    }
}

/// A flow after its handshake, a second after its last packet.
fn established(n: &Net) -> Machine {
    let mut machine = world(n).machine();
    assert_whole(&mut machine, &hops(n, SYN, SYN | ACK), "handshake");
    assert_whole(&mut machine, &hops(n, ACK, ACK), "data");
    machine.env.advance(2);
    machine
}

/// Leaves the entries whose roles are in `kept` (a bit per role).
fn evict(machine: &mut Machine, kept: u8) {
    fn doomed<F: Family>(value: &CtValue<F>, kept: u8) -> bool {
        kept & (1 << value.role) == 0
    }
    machine.env.v4.evict(|_, _, value| doomed(value, kept));
    machine.env.v6.evict(|_, _, value| doomed(value, kept));
}

#[test]
fn i6_no_eviction_leads_to_a_wrong_rewrite() {
    for n in [net4(), net6()] {
        let hops = hops(&n, ACK, ACK);
        for kept in 0..16 {
            for hop in &hops {
                let mut machine = established(&n);
                evict(&mut machine, kept);
                let (verdict, frame) = send(&mut machine, hop);
                let passed = frame == hop.becomes.build() || frame == hop.packet.build();
                assert!(verdict != Verdict::Pass || passed, "{kept:04b} left, {:?}", hop.role);
            }
        }
    }
}

#[test]
fn i6_any_entry_that_is_left_makes_the_flow_whole() {
    for n in [net4(), net6()] {
        let hops = hops(&n, ACK, ACK);
        for kept in 1..16 {
            for hop in hops.iter().filter(|hop| kept & (1 << hop.role as u8) != 0) {
                let mut machine = established(&n);
                evict(&mut machine, kept);
                let what = format!("{kept:04b} left, first {:?}", hop.role);
                assert_eq!(send(&mut machine, hop), (Verdict::Pass, hop.becomes.build()), "{what}");
                assert_whole(&mut machine, &hops, &what);
            }
        }
    }
}

#[test]
fn i6_a_bit_that_the_other_direction_set_meanwhile_is_kept() {
    use lb_common::abi::{CT_FIN_BACKEND, CT_FIN_CLIENT};
    use lb_common::packet::FIN;
    let n = net4();
    let mut machine = established(&n);
    // the backend's FIN has reached all entries but the one that the client's FIN then reads
    for value in machine.env.v4.established.values_mut().filter(|v| v.role != Role::DnatForward as u8) {
        value.flags |= CT_FIN_BACKEND;
    }
    let [first, ..] = hops(&n, FIN | ACK, ACK);
    assert_eq!(send(&mut machine, &first).0, Verdict::Pass);
    let both = CT_FIN_CLIENT | CT_FIN_BACKEND;
    for value in machine.env.v4.established.values().filter(|v| v.role != Role::DnatForward as u8) {
        assert_eq!(value.flags & both, both, "{:?}", Role::of(value.role));
    }
}
