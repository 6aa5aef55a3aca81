//! TC's plain path and its general one are one: whatever comes, the same packets leave, and the same is remembered.

mod random;

use std::net::SocketAddr;

use lb_common::abi::{
    BE_LOCAL, CFG_FAST, CFG_FAST_FLOWS, CFG_SOURCE_RULES, IF_POD, NH_POD, NextHop, SVC_HAS_ANY,
};
use lb_common::env::Hook;
use lb_common::packet::{ACK, SYN, TCP, UDP};
use lb_common::testing::golden::{Net, POOL, net4, net6, world};
use lb_common::testing::packets::{NODE_MAC, at};
use lb_common::testing::world::{POD, UPLINK, row};
use lb_common::testing::{Direction, Machine};
use lb_common::verdict::Verdict;
use proptest::prelude::*;
use random::{Change, MIDDLE, Shape, change, shape};

/// The near end of the local backend pod's link.
const THERE: u32 = 77;

/// The golden world, with a Service (port 800) whose backend is a pod of the node that fast flows lead to.
fn node(n: &Net) -> Machine {
    let mut w = world(n);
    w.iface(THERE, IF_POD, &[n.node]);
    w.config.flags |= CFG_FAST | CFG_FAST_FLOWS;
    for proto in [TCP, UDP] {
        let id = w.backend(n.local, 8080, proto, BE_LOCAL);
        let nexthop = row(THERE, n.local);
        w.be4.iter_mut().filter(|(i, _)| *i == id && !n.v6).for_each(|(_, be)| be.nexthop = nexthop);
        w.be6.iter_mut().filter(|(i, _)| *i == id && n.v6).for_each(|(_, be)| be.nexthop = nexthop);
        let service = w.service(SVC_HAS_ANY, &[id], &[]);
        w.cluster_ip(n.cluster, 800, proto, service);
    }
    let mut machine = w.machine();
    for (ifindex, ip) in [(POD, n.pod), (THERE, n.local)] {
        let hop = NextHop { ifindex, flags: NH_POD, mtu: 1500, dmac: [2, 7, 7, 7, 7, 1], smac: NODE_MAC };
        machine.env.next_hops.insert(row(ifindex, ip), hop);
    }
    machine
}

/// Who talks to whom.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Talk {
    /// A pod to a ClusterIP, its source is kept.
    Cluster,
    /// A client to a NodePort, masqueraded.
    NodePort,
    /// A pod to another of this node, by a fast flow.
    Fast,
    /// The same pod straight to the backend of the first.
    Straight,
    /// The node to that backend, from a port of its own and from one of the pool.
    Host,
    Pooled,
}

const TALKS: [Talk; 6] =
    [Talk::Cluster, Talk::NodePort, Talk::Fast, Talk::Straight, Talk::Host, Talk::Pooled];

#[derive(Clone, Debug)]
enum Event {
    Packet { talk: Talk, packet: Shape },
    Change(Change),
    NextHop(bool),
    SourceRules(bool),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        20 => (prop::sample::select(&TALKS[..]), shape()).prop_map(|(talk, packet)| Event::Packet { talk, packet }),
        5 => change().prop_map(Event::Change),
        1 => any::<bool>().prop_map(Event::NextHop),
        1 => any::<bool>().prop_map(Event::SourceRules),
    ]
}

/// Two ends, and the interfaces by which the packet comes and goes; 0: it is the node's own.
type Way = (SocketAddr, SocketAddr, u32, u32);

fn way(n: &Net, talk: Talk, udp: bool, reply: bool) -> Way {
    let target = at(n.remote, if udp { 5353 } else { 8080 });
    let (client, front, backend, near, far) = match talk {
        Talk::Cluster => (at(n.pod, 40_000), at(n.cluster, if udp { 53 } else { 80 }), target, POD, UPLINK),
        Talk::NodePort => {
            (at(n.client, 40_000), at(n.node, if udp { 30_053 } else { 30_080 }), target, UPLINK, UPLINK)
        }
        Talk::Fast => (at(n.pod, 40_001), at(n.cluster, 800), at(n.local, 8080), POD, THERE),
        Talk::Straight => (at(n.pod, 40_002), target, target, POD, UPLINK),
        Talk::Host => (at(n.node, 40_003), target, target, 0, UPLINK),
        Talk::Pooled => (at(n.node, POOL), target, target, 0, UPLINK),
    };
    let known = if talk == Talk::NodePort { at(n.node, POOL) } else { client };
    if reply { (backend, known, far, near) } else { (client, front, near, far) }
}

fn happen(machine: &mut Machine, n: &Net, event: &Event) {
    let env = &mut machine.env;
    match event {
        Event::Packet { .. } => {}
        Event::Change(change) => change.happen(env),
        Event::NextHop(there) => {
            let (at, way) =
                (row(THERE, n.local), *node(n).env.next_hops.get(&row(THERE, n.local)).expect("a row"));
            if *there {
                env.next_hops.insert(at, way)
            } else {
                env.next_hops.remove(&at)
            };
        }
        Event::SourceRules(on) => {
            machine.config.flags &= !CFG_SOURCE_RULES;
            machine.config.flags |= if *on { CFG_SOURCE_RULES } else { 0 };
        }
    }
}

/// Both machines meet the same; how many packets were plain.
fn agree(n: &Net, events: &[Event]) -> Result<u64, TestCaseError> {
    let (mut both, mut general) = (node(n), node(n));
    let opening = TALKS.into_iter().flat_map(|talk| {
        [(SYN, false), (SYN | ACK, true), (ACK, false), (ACK, true)].into_iter().flat_map(
            move |(kind, reply)| {
                [false, true].map(|udp| Event::Packet { talk, packet: Shape { udp, reply, kind, ..MIDDLE } })
            },
        )
    });
    for event in opening.chain(events.iter().cloned()) {
        happen(&mut both, n, &event);
        happen(&mut general, n, &event);
        let Event::Packet { talk, packet } = event else { continue };
        let (from, to, inward, outward) = way(n, talk, packet.udp, packet.reply);
        let mut one = packet.frame(from, to);
        let mut two = one.clone();
        for (direction, ifindex) in [(Direction::In, inward), (Direction::Out, outward)] {
            if ifindex == 0 {
                continue; // the node's own: made here, or for itself
            }
            let hook = Hook { l3: 14, ifindex, ingress_ifindex: inward };
            let fates =
                (both.run(direction, hook, &mut one), general.run_generally(direction, hook, &mut two));
            prop_assert_eq!(fates.0, fates.1, "{:?} {:?} {:?}", talk, packet, direction);
            prop_assert_eq!(&one, &two, "{:?} {:?} {:?}", talk, packet, direction);
            prop_assert_eq!(&both.env.counters, &general.env.counters, "{:?} {:?}", talk, packet);
            prop_assert_eq!(both.env.v4.entries(), general.env.v4.entries(), "{:?} {:?}", talk, packet);
            prop_assert_eq!(both.env.v6.entries(), general.env.v6.entries(), "{:?} {:?}", talk, packet);
            if fates.0 != Verdict::Pass {
                break;
            }
        }
    }
    Ok(both.plain)
}

proptest! {
    #[test]
    fn the_plain_path_and_the_general_one_agree(events in prop::collection::vec(event(), 1..60)) {
        for n in [net4(), net6()] {
            agree(&n, &events)?;
        }
    }
}

/// The property above is about something: what should be plain is, at every hook where something is rewritten.
#[test]
fn the_middle_of_a_flow_is_plain() {
    for n in [net4(), net6()] {
        for (talk, hooks) in [(Talk::Cluster, 1), (Talk::NodePort, 2), (Talk::Fast, 1)] {
            for udp in [false, true] {
                let packet = |reply| Event::Packet { talk, packet: Shape { udp, reply, ..MIDDLE } };
                let round = [packet(false), packet(true)];
                // a UDP stream is one after two ticks, and the first packet of a tick refreshes its flow
                let events: Vec<_> = [Event::Change(Change::Advance(3))]
                    .into_iter()
                    .chain(round.iter().cycle().take(12).cloned())
                    .collect();
                let before = agree(&n, &events[..1]).expect("agreement");
                let plain = agree(&n, &events).expect("agreement") - before;
                assert!(plain >= 8 * hooks, "{talk:?}, udp {udp}: {plain} of {}", 12 * hooks);
            }
        }
    }
}
