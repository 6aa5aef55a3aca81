//! Invariant I6: whatever part of a flow is evicted, no packet is rewritten wrongly, and the next packet that meets an
//! entry that is left makes the flow whole again. Every subset of entries, every packet, both families.

use lb_common::abi::{CFG_MIGRATING, CtValue};
use lb_common::counter::Counter;
use lb_common::env::{Hook, Table};
use lb_common::family::Family;
use lb_common::flow::Role;
use lb_common::frame::Note;
use lb_common::packet::{ACK, SYN};
use lb_common::testing::fake::Tables;
use lb_common::testing::golden::{Net, POOL, net4, net6, world};
use lb_common::testing::packets::at;
use lb_common::testing::world::{POD, UPLINK};
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

/// While entries are on their way into another table, a packet of a flow is rewritten rightly or dropped, to be sent
/// again: nobody who could answer it with a reset ever sees it. What begins a flow is not held back.
#[test]
fn i6_while_tables_move_nothing_of_a_flow_leaves_unchanged() {
    for n in [net4(), net6()] {
        let data = hops(&n, ACK, ACK);
        for kept in 0..16 {
            for hop in &data {
                let mut machine = established(&n);
                machine.config.flags |= CFG_MIGRATING;
                evict(&mut machine, kept);
                let (verdict, frame) = send(&mut machine, hop);
                let right = verdict == Verdict::Pass && frame == hop.becomes.build();
                let counted = machine.env.counters.get(&Counter::DropMigrating).copied().unwrap_or(0);
                let held_back = verdict == Verdict::Drop && counted == 1;
                assert!(right || held_back, "{kept:04b} left, {:?}: {verdict:?}", hop.role);
                machine.config.flags &= !CFG_MIGRATING;
            }
        }
        let mut machine = world(&n).machine();
        machine.config.flags |= CFG_MIGRATING;
        assert_whole(&mut machine, &hops(&n, SYN, SYN | ACK), "a handshake meanwhile");
    }
}

/// Entries are copied one by one into an empty table, in any order, while packets of the flow come: in the end it is
/// whole, and no packet left unchanged.
#[test]
fn i6_a_flow_that_is_copied_entry_by_entry_is_whole_again() {
    for n in [net4(), net6()] {
        let data = hops(&n, ACK, ACK);
        for rotation in 0..4u8 {
            for first in 0..data.len() {
                let mut machine = established(&n);
                let whole = machine.clone();
                evict(&mut machine, 0);
                machine.config.flags |= CFG_MIGRATING;
                for step in 0..4u8 {
                    let hop = &data[(first + usize::from(step)) % data.len()];
                    let (verdict, frame) = send(&mut machine, hop);
                    assert!(
                        verdict == Verdict::Drop || frame == hop.becomes.build(),
                        "{:?} {verdict:?}",
                        hop.role
                    );
                    copy(&whole, &mut machine, (step + rotation) % 4);
                }
                machine.config.flags &= !CFG_MIGRATING;
                assert_whole(&mut machine, &data, "after the last copy");
            }
        }
    }
}

/// Copies the entries with a role, unless they are there.
fn copy(from: &Machine, to: &mut Machine, role: u8) {
    fn each<F: Family>(from: &Tables<F>, to: &mut Tables<F>, role: u8) {
        for table in [Table::Established, Table::Young] {
            for (key, value) in from.flows(table).iter().filter(|(_, value)| value.role == role) {
                to.flows_mut(table).entry(*key).or_insert(*value);
            }
        }
    }
    each(&from.env.v4, &mut to.env.v4, role);
    each(&from.env.v6, &mut to.env.v6, role);
}

/// Sends a packet through ingress and egress; what is evicted, if anything, is so in between.
fn forward(machine: &mut Machine, hops: &[Hop], evicted: Option<u8>) -> (Verdict, Vec<u8>) {
    let hook = Hook { l3: 14, ifindex: UPLINK, ingress_ifindex: UPLINK };
    let mut frame = hops[0].packet.build();
    let verdict = machine.run(Direction::In, hook, &mut frame);
    assert_eq!((verdict, &frame), (Verdict::Pass, &hops[0].becomes.build()));
    if let Some(kept) = evicted {
        evict(machine, kept);
    }
    (machine.run_on(hook, &mut frame), frame)
}

/// A table that overflows may lose an entry within the microseconds that a packet needs from ingress to egress.
#[test]
fn i6_what_ingress_rewrote_leaves_with_the_right_source_or_not_at_all() {
    for n in [net4(), net6()] {
        let (syn, data) = (hops(&n, SYN, SYN | ACK), hops(&n, ACK, ACK));
        for kept in 0..16 {
            for (what, fresh, way) in
                [("SYN", true, &syn[..2]), ("data", false, &data[..2]), ("reply", false, &data[2..])]
            {
                let mut machine = if fresh { world(&n).machine() } else { established(&n) };
                let (verdict, frame) = forward(&mut machine, way, Some(kept));
                let lost = machine.env.counters.get(&Counter::DropFlowLost).copied().unwrap_or(0);
                let right = (verdict, lost) == (Verdict::Pass, 0) && frame == way[1].becomes.build();
                assert!(
                    right || (verdict, lost) == (Verdict::Drop, 1),
                    "{kept:04b} left, {what}: {verdict:?}"
                );
                // and the same packet is nobody's business when it did not come through ingress
                evict(&mut machine, 0);
                assert_eq!(
                    send(&mut machine, &way[1]),
                    (Verdict::Pass, way[1].packet.build()),
                    "{what}, direct"
                );
            }
        }
    }
}

/// The client's SYN comes again within the tick of the first one.
#[test]
fn i6_a_syn_that_is_sent_again_makes_the_flow_whole_at_once() {
    for n in [net4(), net6()] {
        let hops = hops(&n, SYN, SYN | ACK);
        for kept in 0..16 {
            let mut machine = world(&n).machine();
            let (verdict, frame) = forward(&mut machine, &hops[..2], Some(kept));
            assert!(verdict == Verdict::Drop || frame == hops[1].becomes.build(), "{kept:04b} left, first");
            let mut source = hops[1].becomes.build();
            if kept & 1 == 0 {
                // of the whole flow only the client's own tuple leads to it: it begins anew, from another port maybe
                source = forward(&mut machine, &hops[..2], None).1;
                assert_ne!(source, hops[1].packet.build(), "{kept:04b} left");
                continue;
            }
            let again = forward(&mut machine, &hops[..2], None);
            assert_eq!(again, (Verdict::Pass, source), "{kept:04b} left, again");
            assert_whole(&mut machine, &hops, &format!("{kept:04b} left, then"));
        }
    }
}

/// What needs no second rewrite passes egress without a look at the tables; unless another masquerade has changed it since,
/// which may have taken a port of the pool.
#[test]
fn i6_what_is_done_at_ingress_passes_egress() {
    for n in [net4(), net6()] {
        let mut machine = world(&n).machine();
        let (pod, web) = (at(n.pod, 40000), at(n.remote, 8080));
        let request = PacketBuilder::tcp(pod, at(n.cluster, 80), SYN);
        let hook = Hook { l3: 14, ifindex: POD, ingress_ifindex: POD };
        let out = Hook { l3: 14, ifindex: UPLINK, ingress_ifindex: POD };
        let mut frame = request.build();
        assert_eq!(machine.run(Direction::In, hook, &mut frame), Verdict::Pass);
        assert_eq!((&frame, machine.note), (&request.between(pod, web).build(), Some(Note::Done)));
        evict(&mut machine, 0);
        let before = (machine.env.counters.clone(), frame.clone());
        assert_eq!(machine.run_on(out, &mut frame), Verdict::Pass);
        assert_eq!((&machine.env.counters, &frame), (&before.0, &before.1));
        let mut masqueraded = request.between(at(n.node, POOL), web).build();
        machine.note = Some(Note::Done);
        assert_eq!(machine.run_on(out, &mut masqueraded), Verdict::Pass);
        assert_eq!(machine.env.counters.get(&Counter::PassEntry), Some(&1));
        // nor is it dropped when a rewrite of ours was due, too
        machine.note = Some(Note::Owed);
        assert_eq!(machine.run_on(out, &mut masqueraded), Verdict::Pass);
    }
}
