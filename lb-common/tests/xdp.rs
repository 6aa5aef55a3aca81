//! XDP and TC at one node: what XDP sends on, what goes up as it came (invariant I2), and flows that change their hook in
//! mid-life.

use std::net::{IpAddr, SocketAddr};

use lb_common::abi::{NH_PORT, NextHop, port_row};
use lb_common::counter::Counter;
use lb_common::env::Hook;
use lb_common::packet::{ACK, FIN, RST, SYN, TCP, UDP};
use lb_common::testing::golden::{Net, POOL, net4, net6, world};
use lb_common::testing::packets::{at, checksums};
use lb_common::testing::world::{UPLINK, row};
use lb_common::testing::{Direction, Machine, PacketBuilder, Side};
use lb_common::verdict::{Verdict, XdpStep};

const NODE: [u8; 6] = lb_common::testing::packets::NODE_MAC;
const GATEWAY: [u8; 6] = [2, 9, 9, 9, 9, 1];
const OTHER: [u8; 6] = [2, 9, 9, 9, 9, 2];

/// The golden world with XDP on its uplink: the client behind one neighbour, the remote backend behind another.
fn node(n: &Net) -> Machine {
    let mut machine = world(n).machine();
    let env = &mut machine.env;
    let port = NextHop { ifindex: UPLINK, flags: NH_PORT, mtu: 1500, dmac: [0; 6], smac: NODE };
    env.next_hops.insert(port_row(UPLINK), port);
    for (ip, dmac) in [(n.client, GATEWAY), (n.remote, OTHER)] {
        env.next_hops
            .insert(row(UPLINK, ip), NextHop { ifindex: UPLINK, flags: 0, mtu: 1500, dmac, smac: NODE });
    }
    if n.v6 {
        routes::<lb_common::family::V6>(n, env)
    } else {
        routes::<lb_common::family::V4>(n, env)
    }
    machine
}

fn routes<F: Side>(n: &Net, env: &mut lb_common::testing::FakeEnv) {
    for ip in [n.client, n.remote] {
        F::side_mut(env).routes.insert(F::addr(ip), row(UPLINK, ip));
    }
}

/// Request and reply of one flow, as they come and as XDP sends them on.
struct Talk {
    request: [PacketBuilder; 2],
    reply: [PacketBuilder; 2],
}

fn talk(n: &Net, proto: u8, flags: [u8; 2]) -> Talk {
    let (port, target) = if proto == TCP { (30080, 8080) } else { (30053, 5353) };
    let (client, front, web, snat) =
        (at(n.client, 40000), at(n.node, port), at(n.remote, target), at(n.node, POOL));
    let packet = |from: SocketAddr, to, flags| match proto {
        TCP => PacketBuilder::tcp(from, to, flags),
        _ => PacketBuilder::udp(from, to),
    };
    let both = |flags, old: (_, _), new: (_, _), mac| {
        let packet: PacketBuilder = packet(old.0, old.1, flags);
        let sent = packet.between(new.0, new.1).with(|p| (p.macs, p.ttl) = ([mac, NODE], p.ttl - 1));
        [packet, sent]
    };
    Talk {
        request: both(flags[0], (client, front), (snat, web), OTHER),
        reply: both(flags[1], (web, snat), (front, client), GATEWAY),
    }
}

#[track_caller]
fn sends(machine: &mut Machine, [packet, sent]: &[PacketBuilder; 2]) {
    let mut frame = packet.build();
    assert_eq!(machine.run_xdp(UPLINK, &mut frame), XdpStep::Sent);
    assert_eq!(frame, sent.build());
    checksums(&frame, 14).expect("right checksums");
}

/// Goes up as it came, and becomes what TC makes of it.
#[track_caller]
fn up(machine: &mut Machine, packet: &PacketBuilder) -> (Verdict, Vec<u8>) {
    let mut frame = packet.build();
    assert_eq!(machine.run_xdp(UPLINK, &mut frame), XdpStep::Up);
    assert_eq!(frame, packet.build(), "I2: changed, and passed up");
    tc(machine, packet)
}

fn tc(machine: &mut Machine, packet: &PacketBuilder) -> (Verdict, Vec<u8>) {
    let mut frame = packet.build();
    let hook = Hook { l3: 14, ifindex: UPLINK, ingress_ifindex: UPLINK };
    (machine.run(Direction::In, hook, &mut frame), frame)
}

/// What TC makes of a packet of an XDP flow: both steps and a hop; MAC addresses are the neighbour look-up's.
fn completed([packet, sent]: &[PacketBuilder; 2]) -> (Verdict, Vec<u8>) {
    (Verdict::Out, PacketBuilder { macs: packet.macs, ..sent.clone() }.build())
}

fn count(machine: &Machine, counter: Counter) -> u64 {
    machine.env.counters.get(&counter).copied().unwrap_or(0)
}

#[test]
fn i2_remote_traffic_is_sent_on_and_its_replies_are_turned_back() {
    for n in [net4(), net6()] {
        for proto in [TCP, UDP] {
            let mut machine = node(&n);
            let open = talk(&n, proto, [SYN, SYN | ACK]);
            sends(&mut machine, &open.request);
            sends(&mut machine, &open.reply);
            machine.env.advance(3); // a UDP stream by then
            let data = talk(&n, proto, [ACK, ACK]);
            for _ in 0..3 {
                sends(&mut machine, &data.request);
                sends(&mut machine, &data.reply);
            }
            assert_eq!((count(&machine, Counter::XdpFlow), count(&machine, Counter::NewFlow)), (1, 0));
            assert_eq!(count(&machine, Counter::FlowPromoted), 1, "{proto}");
            assert_eq!(count(&machine, Counter::XdpSent), 8);
        }
    }
}

#[test]
fn i2_what_xdp_does_not_do_goes_up_as_it_came() {
    for n in [net4(), net6()] {
        let Talk { request: [syn, _], .. } = talk(&n, TCP, [SYN, ACK]);
        let stranger = at(n.client, 40001);
        let options = |p: &mut PacketBuilder| match n.v6 {
            true => p.extensions = vec![(60, vec![0, 1, 4, 0, 0, 0, 0])],
            false => p.options = vec![1, 1, 1, 1],
        };
        let packets = [
            ("no service port", syn.between(stranger, at(n.node, 30999))),
            ("nobody's", syn.between(stranger, at(n.nobody, 80))),
            ("rejected", syn.between(stranger, at(n.empty, 80))),
            ("dropped by policy", syn.between(stranger, at(n.node, 30082))),
            ("dropped by range", syn.between(at(n.stranger, 4), at(n.vip, 443))),
            ("a local backend", syn.between(stranger, at(n.node, 30081))),
            ("a backend itself", syn.between(stranger, at(n.remote, 8080))),
            ("mid-stream", syn.clone().with(|p| p.kind = ACK)),
            ("last hop", syn.clone().with(|p| p.ttl = 1)),
            ("options", syn.clone().with(options)),
            ("first fragment", syn.clone().with(|p| p.fragment = Some((0, true)))),
            ("later fragment", syn.clone().with(|p| p.fragment = Some((3, false)))),
            ("another's frame", syn.clone().with(|p| p.macs[0] = GATEWAY)),
            ("a broadcast", syn.clone().with(|p| p.macs[0] = [255; 6])),
        ];
        for (what, packet) in packets {
            let mut frame = packet.build();
            let mut machine = node(&n);
            assert_eq!(machine.run_xdp(UPLINK, &mut frame), XdpStep::Up, "{what}");
            assert_eq!(frame, packet.build(), "{what}");
        }
        // a tagged frame
        let mut frame = syn.build();
        frame.splice(12..12, [0x81, 0, 0, 5]);
        let before = frame.clone();
        assert_eq!((node(&n).run_xdp(UPLINK, &mut frame), frame), (XdpStep::Up, before));
        // every truncation
        for length in 0..syn.build().len() - 8 {
            let mut frame = syn.build()[..length].to_vec();
            let before = frame.clone();
            let step = node(&n).run_xdp(UPLINK, &mut frame);
            assert!(
                step == XdpStep::Up && frame == before || step == XdpStep::Sent,
                "{length} bytes: {step:?}"
            );
        }
    }
}

/// A decision is a random draw: made once, at whichever hook the packet meets first.
#[test]
fn what_xdp_decides_for_tc_is_what_tc_does() {
    for n in [net4(), net6()] {
        let mut machine = node(&n);
        let syn = PacketBuilder::tcp(at(n.client, 40000), at(n.node, 30081), SYN);
        let (verdict, frame) = up(&mut machine, &syn);
        let dnat = syn.between(at(n.client, 40000), at(n.local, 8080));
        assert_eq!((verdict, frame), (Verdict::Pass, dnat.build()));
        assert_eq!((count(&machine, Counter::NewFlow), count(&machine, Counter::XdpFlow)), (1, 0));
    }
}

#[test]
fn without_a_next_hop_a_flow_is_tcs() {
    for n in [net4(), net6()] {
        for gone in [n.client, n.remote] {
            let mut machine = node(&n);
            machine.env.next_hops.remove(&row(UPLINK, gone));
            let open = talk(&n, TCP, [SYN, SYN | ACK]);
            let (verdict, frame) = up(&mut machine, &open.request[0]);
            let dnat = open.request[0].between(at(n.client, 40000), at(n.remote, 8080));
            assert_eq!((verdict, frame), (Verdict::Pass, dnat.build()));
            // the next hop is back: the flow stays what it was
            let machine = &mut machine;
            machine.env.next_hops.extend(node(&n).env.next_hops);
            assert_eq!(up(machine, &open.request[0]).0, Verdict::Pass);
            assert_eq!(count(machine, Counter::XdpFlow), 0);
        }
    }
}

#[test]
fn a_flow_of_tc_stays_with_tc_when_xdp_comes() {
    for n in [net4(), net6()] {
        let mut machine = node(&n);
        let [syn, _] = talk(&n, TCP, [SYN, 0]).request;
        let first = tc(&mut machine, &syn);
        assert_eq!(up(&mut machine, &syn), first);
        assert_eq!(count(&machine, Counter::XdpFlow), 0);
    }
}

#[test]
fn a_flow_of_xdp_is_completed_by_tc_and_goes_back() {
    for n in [net4(), net6()] {
        for proto in [TCP, UDP] {
            let mut machine = node(&n);
            let open = talk(&n, proto, [SYN, SYN | ACK]);
            sends(&mut machine, &open.request);
            // the program is taken off
            assert_eq!(tc(&mut machine, &open.reply[0]), completed(&open.reply));
            machine.env.advance(3);
            let data = talk(&n, proto, [ACK, ACK]);
            assert_eq!(tc(&mut machine, &data.request[0]), completed(&data.request));
            assert_eq!(tc(&mut machine, &data.reply[0]), completed(&data.reply));
            // and put back
            sends(&mut machine, &data.request);
            sends(&mut machine, &data.reply);
            assert_eq!(count(&machine, Counter::XdpCompleted), 3);
            assert_eq!(count(&machine, Counter::XdpFlow), 1);
        }
    }
}

/// What TC completed leaves by an uplink with `lb_tc_out` on it, which has pool ports to guard.
#[test]
fn a_completed_packet_passes_egress() {
    for n in [net4(), net6()] {
        for proto in [TCP, UDP] {
            let mut machine = node(&n);
            let open = talk(&n, proto, [SYN, SYN | ACK]);
            sends(&mut machine, &open.request);
            for [packet, _] in [&open.request, &open.reply] {
                let (verdict, out) = tc(&mut machine, packet);
                let mut frame = out.clone();
                let hook = Hook { l3: 14, ifindex: UPLINK, ingress_ifindex: UPLINK };
                assert_eq!(verdict, Verdict::Out);
                assert_eq!(machine.run(Direction::Out, hook, &mut frame), Verdict::Pass);
                assert_eq!(frame, out);
            }
        }
    }
}

#[test]
fn a_dead_next_hop_falls_back_to_tc_and_is_taken_again() {
    for n in [net4(), net6()] {
        let mut machine = node(&n);
        let open = talk(&n, TCP, [SYN, SYN | ACK]);
        sends(&mut machine, &open.request);
        let kept = machine.env.next_hops.remove(&row(UPLINK, n.remote)).expect("a row");
        assert_eq!(up(&mut machine, &open.request[0]), completed(&open.request));
        // another neighbour took its place: within a tick the routes are asked again
        machine.env.next_hops.insert(row(UPLINK, n.remote), NextHop { dmac: GATEWAY, ..kept });
        machine.env.advance(1);
        let data = talk(&n, TCP, [ACK, ACK]);
        let by_gateway = data.request[1].clone().with(|p| p.macs[0] = GATEWAY);
        sends(&mut machine, &[data.request[0].clone(), by_gateway]);
        sends(&mut machine, &data.reply);
    }
}

#[test]
fn i6_either_half_of_an_xdp_flow_makes_the_other_again() {
    for n in [net4(), net6()] {
        for lost in [4, 5] {
            let mut machine = node(&n);
            let open = talk(&n, TCP, [SYN, SYN | ACK]);
            sends(&mut machine, &open.request);
            sends(&mut machine, &open.reply);
            let data = talk(&n, TCP, [ACK, ACK]);
            sends(&mut machine, &data.request);
            machine.env.advance(2);
            machine.env.v4.evict(|_, _, value| value.role == lost);
            machine.env.v6.evict(|_, _, value| value.role == lost);
            let (first, second) =
                if lost == 4 { (&data.reply, &data.request) } else { (&data.request, &data.reply) };
            sends(&mut machine, first);
            sends(&mut machine, second);
            assert!(count(&machine, Counter::FlowHealed) > 0);
        }
    }
}

#[test]
fn a_closed_flow_makes_room_for_the_next() {
    for n in [net4(), net6()] {
        for end in [RST, FIN | ACK] {
            let mut machine = node(&n);
            let open = talk(&n, TCP, [SYN, SYN | ACK]);
            sends(&mut machine, &open.request);
            sends(&mut machine, &open.reply);
            let close = talk(&n, TCP, [end, end]);
            sends(&mut machine, &close.request);
            sends(&mut machine, &close.reply);
            // the pool has one port only: the next flow takes it over
            sends(&mut machine, &open.request);
            sends(&mut machine, &open.reply);
            assert_eq!(count(&machine, Counter::XdpFlow), 2, "{end:02x} v6 {}", n.v6);
        }
    }
}

#[test]
fn udp_moves_with_its_backends_generation() {
    for n in [net4(), net6()] {
        let mut machine = node(&n);
        let ask = talk(&n, UDP, [0, 0]);
        sends(&mut machine, &ask.request);
        for generations in [&mut machine.env.v4.generations, &mut machine.env.v6.generations] {
            generations.values_mut().for_each(|generation| *generation += 1);
        }
        sends(&mut machine, &ask.request);
        assert_eq!(count(&machine, Counter::FlowMovedBackend), 1);
        assert_eq!(count(&machine, Counter::XdpFlow), 2);
    }
}

/// A router's "too big" about a request of an XDP flow goes to the client, past the stack.
#[test]
fn an_error_about_an_xdp_flow_is_translated_in_both_positions() {
    let n = net4();
    let mut machine = node(&n);
    let open = talk(&n, TCP, [SYN, SYN | ACK]);
    sends(&mut machine, &open.request);
    let quote = |p: &PacketBuilder| p.build()[14..14 + 28].to_vec();
    let error =
        |to: IpAddr, quoted: Vec<u8>| PacketBuilder::icmp(n.remote, to, 3, 4).with(|p| p.payload = quoted);
    let sent = open.request[1].clone();
    let original = open.request[0].clone().with(|p| p.ttl = sent.ttl);
    let (verdict, frame) = up(&mut machine, &error(n.node, quote(&sent)));
    assert_eq!(verdict, Verdict::Out);
    let want = error(n.client, quote(&original)).with(|p| p.src = at(n.node, 0)).build();
    assert_eq!(frame[26..34], want[26..34], "from the frontend to the client");
    assert_eq!(frame[14 + 20 + 8 + 12..14 + 20 + 8 + 24], want[14 + 20 + 8 + 12..14 + 20 + 8 + 24]);
    checksums(&frame, 14).expect("right checksums");
}
