//! Whom a refusal is never sent to, and how many are sent (B86, RFC 1122 section 3.2.2, RFC 4443 section 2.4).

use lb_common::counter::Counter;
use lb_common::env::Hook;
use lb_common::packet::{SYN, UDP};
use lb_common::testing::golden::{Net, net4, net6, world};
use lb_common::testing::packets::at;
use lb_common::testing::world::{BARE, POD, UPLINK};
use lb_common::testing::{Direction, Machine, PacketBuilder, checksums};
use lb_common::verdict::Verdict;

const FROM_POD: Hook = Hook { l3: 14, ifindex: POD, ingress_ifindex: POD };

fn refused(n: &Net) -> PacketBuilder {
    PacketBuilder::udp(at(n.pod, 40000), at(n.empty, 80))
}

fn run(machine: &mut Machine, hook: Hook, packet: &PacketBuilder) -> (Verdict, Vec<u8>) {
    let mut frame = packet.build();
    let verdict = machine.run(Direction::In, hook, &mut frame);
    (verdict, frame)
}

#[test]
fn b86_refusals_are_limited_per_second() {
    for n in [net4(), net6()] {
        let mut w = world(&n);
        w.config.reject_rate = 2;
        let mut machine = w.machine();
        let verdicts = |machine: &mut Machine| [0; 4].map(|_| run(machine, FROM_POD, &refused(&n)).0);
        use Verdict::{Drop, Reply};
        assert_eq!(verdicts(&mut machine), [Reply, Reply, Drop, Drop]);
        assert_eq!(machine.env.counters[&Counter::RejectSuppressed], 2);
        assert_eq!(machine.env.counters[&Counter::RejectNoEndpoints], 4);
        machine.env.advance(1);
        assert_eq!(verdicts(&mut machine), [Reply, Reply, Drop, Drop]);
    }
}

#[test]
fn b86_nobody_and_groups_are_never_answered() {
    for (n, sources) in [
        (net4(), ["0.0.0.0", "224.0.0.1", "239.255.255.250", "255.255.255.255"]),
        (net6(), ["::", "ff02::1", "ff05::2", "ff0e::1"]),
    ] {
        let mut machine = world(&n).machine();
        for source in sources {
            let packet = PacketBuilder::udp(at(source.parse().expect("an address"), 1), at(n.empty, 80));
            let (verdict, frame) = run(&mut machine, FROM_POD, &packet);
            assert_eq!((verdict, frame), (Verdict::Drop, packet.build()), "{source}");
        }
        // RFC 1122: nor what came in a frame for many
        for mac in [[0xff; 6], [0x01, 0, 0x5e, 0, 0, 1], [0x33, 0x33, 0, 0, 0, 1]] {
            let packet = refused(&n).with(|p| p.macs[0] = mac);
            assert_eq!(run(&mut machine, FROM_POD, &packet).0, Verdict::Drop, "{mac:02x?}");
        }
        assert_eq!(run(&mut machine, FROM_POD, &refused(&n)).0, Verdict::Reply);
    }
}

/// Every way to be refused, by every protocol: source, hop limit, sums. An interface without an address of its own
/// answers with the frontend's.
#[test]
fn b86_b91_a_refusal_has_a_source_that_the_sender_can_use() {
    for n in [net4(), net6()] {
        let mut machine = world(&n).machine();
        for (hook, source) in [
            (FROM_POD, n.node),
            (Hook { ifindex: UPLINK, ingress_ifindex: UPLINK, l3: 14 }, n.node),
            (Hook { ifindex: BARE, ingress_ifindex: BARE, l3: 14 }, n.empty),
        ] {
            let (from, to) = (at(n.pod, 40000), at(n.empty, 80));
            for packet in [
                PacketBuilder::tcp(from, to, SYN),
                PacketBuilder::udp(from, to),
                PacketBuilder::sctp(from, to, 1),
                PacketBuilder::new(UDP, from, to).with(|p| p.payload = vec![7; 1400]),
            ] {
                let packet = packet.with(|p| p.ttl = 3);
                let (verdict, frame) = run(&mut machine, hook, &packet);
                assert_eq!(verdict, Verdict::Reply);
                assert_eq!(checksums(&frame, 14), Ok(()));
                let (hops, src, dst, kind) =
                    if n.v6 { (7, 8..24, 24..40, 40..42) } else { (8, 12..16, 16..20, 20..22) };
                let octets = |ip: std::net::IpAddr| match ip {
                    std::net::IpAddr::V4(ip) => ip.octets().to_vec(),
                    std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
                };
                assert_eq!(frame[14 + hops], 64, "not the offender's hop limit");
                assert_eq!(frame[14 + src.start..14 + src.end], octets(source));
                assert_eq!(frame[14 + dst.start..14 + dst.end], octets(n.pod));
                assert_eq!(frame[14 + kind.start..14 + kind.end], if n.v6 { [1, 4] } else { [3, 3] });
            }
        }
    }
}
