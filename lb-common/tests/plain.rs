//! XDP's plain path and its general one are one: whatever comes, the same frames leave, and the same is remembered.

use std::net::IpAddr;

use lb_common::abi::{NH_PORT, NextHop, neighbour_row, port_row};
use lb_common::family::Ip6;
use lb_common::packet::{ACK, FIN, RST, SYN};
use lb_common::testing::golden::{Net, POOL, net4, net6, world};
use lb_common::testing::packets::{NODE_MAC, at};
use lb_common::testing::world::UPLINK;
use lb_common::testing::{FakeEnv, Machine, PacketBuilder, Side};
use lb_common::verdict::XdpStep;
use proptest::prelude::*;

const GATEWAY: [u8; 6] = [2, 9, 9, 9, 9, 1];
/// Another interface with XDP.
const SECOND: u32 = UPLINK + 1;

fn row(ifindex: u32, ip: IpAddr) -> u32 {
    let mut wide = [0; 16];
    match ip {
        IpAddr::V4(ip) => wide[..4].copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => wide = ip.octets(),
    }
    neighbour_row(ifindex, &Ip6 { addr: wide })
}

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
    Packet {
        udp: bool,
        reply: bool,
        kind: u8,
        ttl: u8,
        change: Option<(usize, u8)>,
        cut: Option<usize>,
        sum: bool,
    },
    Advance(u64),
    Evict(u8),
    Generation,
    NextHop(bool),
    Forgotten,
}

fn event() -> impl Strategy<Value = Event> {
    let kind = prop_oneof![6 => Just(ACK), 1 => Just(SYN), 1 => Just(SYN | ACK), 1 => Just(FIN | ACK), 1 => Just(RST)];
    let ttl = prop_oneof![12 => Just(64_u8), 1 => 0..3_u8];
    let change = prop::option::weighted(0.1, (0..80_usize, any::<u8>()));
    let cut = prop::option::weighted(0.05, 0..90_usize);
    let packet = (any::<bool>(), any::<bool>(), kind, ttl, change, cut, prop::bool::weighted(0.9));
    prop_oneof![
        20 => packet.prop_map(|(udp, reply, kind, ttl, change, cut, sum)| {
            Event::Packet { udp, reply, kind, ttl, change, cut, sum }
        }),
        2 => (1..4_u64).prop_map(Event::Advance),
        1 => (4..6_u8).prop_map(Event::Evict),
        1 => Just(Event::Generation),
        1 => any::<bool>().prop_map(Event::NextHop),
        1 => Just(Event::Forgotten),
    ]
}

/// The frame that an event sends, and the interface by which it comes.
fn frame(n: &Net, event: &Event) -> Option<(u32, Vec<u8>)> {
    let Event::Packet { udp, reply, kind, ttl, change, cut, sum } = event else { return None };
    let (port, target) = if *udp { (30053, 5353) } else { (30080, 8080) };
    let (from, to) = match reply {
        false => (at(n.client, 40000), at(n.node, port)),
        true => (at(n.remote, target), at(n.node, POOL)),
    };
    let packet = if *udp { PacketBuilder::udp(from, to) } else { PacketBuilder::tcp(from, to, *kind) };
    let mut frame = packet.with(|p| p.ttl = *ttl).build();
    if *udp && !sum {
        let at = if n.v6 { 60 } else { 40 };
        frame[at..at + 2].fill(0);
    }
    if let Some((at, byte)) = change
        && let Some(old) = frame.get_mut(*at)
    {
        *old = *byte;
    }
    if let Some(length) = cut {
        frame.truncate(*length);
    }
    Some((if *reply { SECOND } else { UPLINK }, frame))
}

fn happen(machine: &mut Machine, n: &Net, event: &Event) {
    let env = &mut machine.env;
    match event {
        Event::Packet { .. } => {}
        Event::Advance(ticks) => env.advance(*ticks),
        Event::Evict(role) => {
            env.v4.evict(|_, _, value| value.role == *role);
            env.v6.evict(|_, _, value| value.role == *role);
        }
        Event::Generation => {
            for generations in [&mut env.v4.generations, &mut env.v6.generations] {
                generations.values_mut().for_each(|generation| *generation += 1);
            }
        }
        Event::NextHop(there) => {
            let (at, way) =
                (row(SECOND, n.remote), *node(n).env.next_hops.get(&row(SECOND, n.remote)).expect("a row"));
            if *there {
                env.next_hops.insert(at, way)
            } else {
                env.next_hops.remove(&at)
            };
        }
        // no answer was seen yet
        Event::Forgotten => {
            env.v4.established.values_mut().for_each(|value| value.flags &= !lb_common::abi::CT_REPLIED);
            env.v6.established.values_mut().for_each(|value| value.flags &= !lb_common::abi::CT_REPLIED);
        }
    }
}

fn agree(n: &Net, events: &[Event]) -> Result<u64, TestCaseError> {
    let (mut both, mut general) = (node(n), node(n));
    let opening =
        [SYN, SYN | ACK, ACK, ACK].into_iter().zip([false, true, false, true]).flat_map(|(kind, reply)| {
            [false, true].map(|udp| Event::Packet {
                udp,
                reply,
                kind,
                ttl: 64,
                change: None,
                cut: None,
                sum: true,
            })
        });
    for event in opening.chain(events.iter().cloned()) {
        happen(&mut both, n, &event);
        happen(&mut general, n, &event);
        let Some((ifindex, sent)) = frame(n, &event) else { continue };
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
            let packet =
                |reply| Event::Packet { udp, reply, kind: ACK, ttl: 64, change: None, cut: None, sum: true };
            let round = [packet(false), packet(true)];
            // a UDP stream is one after two ticks, and the first packet of a tick visits the routes
            let events: Vec<_> =
                [Event::Advance(3)].into_iter().chain(round.iter().cycle().take(12).cloned()).collect();
            let plain = agree(&n, &events).expect("agreement");
            assert!(plain >= 8, "udp {udp}: {plain} of 12");
        }
    }
}
