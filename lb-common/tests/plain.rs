//! XDP's plain path and its general one are one: whatever comes, the same frames leave, and the same is remembered.

mod random;

use std::net::IpAddr;

use lb_common::abi::{NH_PORT, NextHop, port_row};
use lb_common::packet::{ACK, SYN};
use lb_common::testing::golden::{Net, POOL, net4, net6, world};
use lb_common::testing::packets::{NODE_MAC, at};
use lb_common::testing::world::{UPLINK, row};
use lb_common::testing::{FakeEnv, Machine, Side};
use lb_common::verdict::XdpStep;
use proptest::prelude::*;
use random::{Change, MIDDLE, Shape, change, shape};

const GATEWAY: [u8; 6] = [2, 9, 9, 9, 9, 1];
/// Another interface with XDP.
const SECOND: u32 = UPLINK + 1;

/// The golden world with XDP on two interfaces: clients behind the one, the remote backend behind the other.
fn node(n: &Net) -> Machine {
    fn routes<F: Side>(env: &mut FakeEnv, ways: [(u32, IpAddr); 2]) {
        for (ifindex, ip) in ways {
            F::side_mut(env).routes.insert(F::addr(ip), row(ifindex, ip));
        }
    }
    let mut world = world(n);
    world.iface(SECOND, 0, &[n.node]);
    let mut machine = world.machine();
    let ways = [(UPLINK, n.client), (SECOND, n.remote)];
    for (ifindex, ip) in ways {
        let port = NextHop { ifindex, flags: NH_PORT, mtu: 1500, dmac: [0; 6], smac: NODE_MAC };
        machine.env.next_hops.insert(port_row(ifindex), port);
        machine.env.next_hops.insert(row(ifindex, ip), NextHop { flags: 0, dmac: GATEWAY, ..port });
    }
    if n.v6 {
        routes::<lb_common::family::V6>(&mut machine.env, ways)
    } else {
        routes::<lb_common::family::V4>(&mut machine.env, ways)
    }
    machine
}

#[derive(Clone, Debug)]
enum Event {
    Packet(Shape),
    Change(Change),
    NextHop(bool),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        20 => shape().prop_map(Event::Packet),
        5 => change().prop_map(Event::Change),
        1 => any::<bool>().prop_map(Event::NextHop),
    ]
}

/// The frame that a packet is, and the interface by which it comes.
fn frame(n: &Net, shape: &Shape) -> (u32, Vec<u8>) {
    let (port, target) = if shape.udp { (30053, 5353) } else { (30080, 8080) };
    match shape.reply {
        false => (UPLINK, shape.frame(at(n.client, 40000), at(n.node, port))),
        true => (SECOND, shape.frame(at(n.remote, target), at(n.node, POOL))),
    }
}

fn happen(machine: &mut Machine, n: &Net, event: &Event) {
    let env = &mut machine.env;
    match event {
        Event::Packet(_) => {}
        Event::Change(change) => change.happen(env),
        Event::NextHop(there) => {
            let (at, way) =
                (row(SECOND, n.remote), *node(n).env.next_hops.get(&row(SECOND, n.remote)).expect("a row"));
            if *there {
                env.next_hops.insert(at, way)
            } else {
                env.next_hops.remove(&at)
            };
        }
    }
}

fn agree(n: &Net, events: &[Event]) -> Result<u64, TestCaseError> {
    let (mut both, mut general) = (node(n), node(n));
    let opening =
        [SYN, SYN | ACK, ACK, ACK].into_iter().zip([false, true, false, true]).flat_map(|(kind, reply)| {
            [false, true].map(|udp| Event::Packet(Shape { udp, reply, kind, ..MIDDLE }))
        });
    for event in opening.chain(events.iter().cloned()) {
        happen(&mut both, n, &event);
        happen(&mut general, n, &event);
        let Event::Packet(shape) = &event else { continue };
        let (ifindex, sent) = frame(n, shape);
        let (mut one, mut two) = (sent.clone(), sent.clone());
        let steps = (both.run_xdp(ifindex, &mut one), general.run_xdp_generally(ifindex, &mut two));
        prop_assert_eq!(steps.0, steps.1, "{:?}", event);
        prop_assert_eq!(&one, &two, "{:?}", event);
        match steps.0 {
            XdpStep::Sent if n.v6 => {
                prop_assert_eq!(both.scratch.v6.way.ifindex, general.scratch.v6.way.ifindex)
            }
            XdpStep::Sent => prop_assert_eq!(both.scratch.v4.way.ifindex, general.scratch.v4.way.ifindex),
            _ => prop_assert_eq!(one, sent, "I2: changed, and not sent"),
        }
        prop_assert_eq!(&both.env.counters, &general.env.counters, "{:?}", event);
        prop_assert_eq!(both.env.v4.entries(), general.env.v4.entries(), "{:?}", event);
        prop_assert_eq!(both.env.v6.entries(), general.env.v6.entries(), "{:?}", event);
    }
    Ok(both.plain)
}

proptest! {
    #[test]
    fn i2_the_plain_path_and_the_general_one_agree(events in prop::collection::vec(event(), 1..60)) {
        for n in [net4(), net6()] {
            agree(&n, &events)?;
        }
    }
}

/// The property above is about something: what should be plain is.
#[test]
fn the_middle_of_a_flow_is_plain() {
    for n in [net4(), net6()] {
        for udp in [false, true] {
            let packet = |reply| Event::Packet(Shape { udp, reply, ..MIDDLE });
            let round = [packet(false), packet(true)];
            // a UDP stream is one after two ticks, and the first packet of a tick visits the routes
            let events: Vec<_> = [Event::Change(Change::Advance(3))]
                .into_iter()
                .chain(round.iter().cycle().take(12).cloned())
                .collect();
            let plain = agree(&n, &events).expect("agreement");
            assert!(plain >= 8, "udp {udp}: {plain} of 12");
        }
    }
}
