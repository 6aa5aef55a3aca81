//! Golden packets of ICMP errors inside flows: who sends them, what they quote, how much of it.

use core::net::{IpAddr, SocketAddr};
use std::vec;
use std::vec::Vec;

use super::golden::{
    At, Golden, HOST, IN_POD, IN_UPLINK, Net, OUT_POD, OUT_UPLINK, POOL, Story, tell, world,
};
use super::machine::Direction;
use super::packets::{PacketBuilder, at};
use crate::counter::Counter::{IcmpTranslated, NewFlow, SnatFlow};
use crate::packet::{ACK, SYN};

/// Types and codes of the errors that concern flows, with the word behind the checksum.
fn kinds(v6: bool) -> Vec<(u8, u8, [u8; 4])> {
    let (mtu4, mtu6) = ([0, 0, 0x05, 0x14], [0, 0, 0x05, 0x14]);
    if v6 {
        vec![(2, 0, mtu6), (1, 4, [0; 4]), (1, 0, [0; 4]), (3, 0, [0; 4]), (4, 1, [0, 0, 0, 6])]
    } else {
        vec![(3, 4, mtu4), (3, 3, [0; 4]), (3, 1, [0; 4]), (11, 0, [0; 4]), (12, 0, [20, 0, 0, 0])]
    }
}

/// An error from `from` that quotes the first bytes of a packet to its sender.
fn error(from: IpAddr, kind: (u8, u8, [u8; 4]), quoted: &PacketBuilder, bytes: usize) -> PacketBuilder {
    let mut packet = quoted.clone().with(|p| p.ethernet = false).build();
    packet.truncate(bytes);
    PacketBuilder::icmp(from, quoted.src.ip(), kind.0, kind.1).with(|p| {
        (p.icmp.1, p.payload, p.ethernet) = (kind.2, packet, quoted.ethernet);
    })
}

/// The same packet between other ends, as a pair for [`Case`].
type Ends = (SocketAddr, SocketAddr);

/// An error about a packet at a hook, and what it must be behind it.
struct Case {
    at: At,
    /// The error's source, before and behind; at egress for time exceeded alone, everything else is the frontend's.
    from: (IpAddr, IpAddr),
    /// Ends of the quoted packet, before and behind.
    quoted: (Ends, Ends),
}

impl Case {
    fn tell(&self, mut story: Story, v6: bool, offender: &PacketBuilder) -> Story {
        let (before, behind) = (
            offender.between(self.quoted.0.0, self.quoted.0.1),
            offender.between(self.quoted.1.0, self.quoted.1.1),
        );
        let header = if v6 { 40 } else { 20 };
        for (number, kind) in kinds(v6).into_iter().enumerate() {
            // 8 bytes of transport are what RFC 792 asks for; with 20 TCP's checksum is in it; all of it
            let lengths = [header + 8, header + 16, header + 20, 1000];
            for bytes in lengths.into_iter().take(if number == 0 { 4 } else { 1 }) {
                let error_in = error(self.from.0, kind, &before, bytes);
                let told = kind.0 == if v6 { 3 } else { 11 } || self.at.0 == Direction::In;
                let from = if told { self.from.1 } else { self.quoted.1.1.ip() };
                let error_out = error(from, kind, &behind, bytes);
                story = story.turns_into(self.at, &error_in, error_out.build(), &[IcmpTranslated]);
            }
        }
        story
    }
}

/// The stories of one family.
pub(super) fn stories(n: &Net) -> Vec<Golden> {
    use PacketBuilder as P;
    let world = world(n);
    let mut all = Vec::new();
    let mut golden = |name: &str, rules: &'static str, story: &dyn Fn(Story) -> Story| {
        all.push(tell(n, name, rules, &world, story));
    };
    let (client, pod) = (at(n.client, 40000), at(n.pod, 40000));
    let (web, snat, nodeport) = (at(n.remote, 8080), at(n.node, POOL), at(n.node, 30080));
    let router = n.stranger;

    let ways = |(front, backend, snat): (SocketAddr, SocketAddr, SocketAddr)| {
        let (to_backend, to_client) = ((client, backend), (backend, client));
        vec![
            // about a request: in front of the backend, by the backend itself, by this node
            Case { at: IN_UPLINK, from: (router, router), quoted: ((snat, backend), to_backend) },
            Case { at: OUT_UPLINK, from: (router, router), quoted: (to_backend, (client, front)) },
            Case { at: IN_UPLINK, from: (backend.ip(), backend.ip()), quoted: ((snat, backend), to_backend) },
            Case { at: OUT_UPLINK, from: (backend.ip(), front.ip()), quoted: (to_backend, (client, front)) },
            Case { at: HOST, from: (n.node, n.node), quoted: (to_backend, (client, front)) },
            // about a reply: in front of the client, by the client itself, by this node
            Case { at: IN_UPLINK, from: (router, router), quoted: ((front, client), to_client) },
            Case { at: OUT_UPLINK, from: (router, snat.ip()), quoted: (to_client, (backend, snat)) },
            Case { at: IN_UPLINK, from: (n.client, n.client), quoted: ((front, client), to_client) },
            Case { at: OUT_UPLINK, from: (n.client, snat.ip()), quoted: (to_client, (backend, snat)) },
            Case { at: HOST, from: (n.pod, snat.ip()), quoted: (to_client, (backend, snat)) },
        ]
    };
    golden("icmp_errors_in_a_masqueraded_tcp_flow", "I1", &|s| {
        let s = s.becomes(IN_UPLINK, &P::tcp(client, nodeport, SYN), (client, web), &[NewFlow]).becomes(
            OUT_UPLINK,
            &P::tcp(client, web, SYN),
            (snat, web),
            &[SnatFlow],
        );
        let offender = P::tcp(client, web, ACK);
        ways((nodeport, web, snat)).iter().fold(s, |s, case| case.tell(s, n.v6, &offender))
    });
    for (name, without) in [("udp", false), ("udp_without_checksum", true)] {
        if without && n.v6 {
            continue;
        }
        golden(&std::format!("icmp_errors_in_a_masqueraded_{name}_flow"), "I1", &|s| {
            let (front, backend) = (at(n.node, 30053), at(n.remote, 5353));
            let change = |p: &mut P| p.no_checksum = without;
            let s = s
                .becomes(IN_UPLINK, &P::udp(client, front).with(change), (client, backend), &[NewFlow])
                .becomes(OUT_UPLINK, &P::udp(client, backend).with(change), (snat, backend), &[SnatFlow]);
            let offender = P::udp(client, backend).with(change);
            ways((front, backend, snat)).iter().fold(s, |s, case| case.tell(s, n.v6, &offender))
        });
    }
    golden("icmp_errors_to_a_pod", "I1", &|s| {
        let (cluster, offender) = (at(n.cluster, 80), P::tcp(pod, web, ACK));
        let s = s.becomes(IN_POD, &P::tcp(pod, cluster, SYN), (pod, web), &[NewFlow]);
        [
            Case { at: OUT_POD, from: (router, router), quoted: ((pod, web), (pod, cluster)) },
            Case { at: OUT_POD, from: (n.remote, n.cluster), quoted: ((pod, web), (pod, cluster)) },
            Case { at: IN_POD, from: (n.pod, n.pod), quoted: ((cluster, pod), (web, pod)) },
        ]
        .iter()
        .fold(s, |s, case| case.tell(s, n.v6, &offender))
    });
    golden("icmp_errors_about_sctp_and_on_an_l3_device", "I1", &|s| {
        let (front, backend) = (at(n.cluster, 9999), at(n.remote, 9999));
        let bare = |p: &mut P| p.ethernet = false;
        let s = s.becomes(IN_POD, &P::sctp(pod, front, 1).with(bare), (pod, backend), &[NewFlow]).becomes(
            IN_POD,
            &P::tcp(pod, at(n.cluster, 80), SYN).with(bare),
            (pod, web),
            &[NewFlow],
        );
        let case =
            Case { at: OUT_POD, from: (router, router), quoted: ((pod, web), (pod, at(n.cluster, 80))) };
        let s = case.tell(s, n.v6, &P::tcp(pod, web, ACK).with(bare));
        let kind = kinds(n.v6)[0];
        let header = if n.v6 { 40 } else { 20 };
        // the quoted CRC32c covers what is not quoted; it stays
        let before = error(router, kind, &P::sctp(pod, backend, 0).with(bare), header + 8);
        let behind = error(front.ip(), kind, &P::sctp(pod, front, 0).with(bare), header + 8);
        s.turns_into(OUT_POD, &before, behind.build(), &[IcmpTranslated])
    });
    golden("icmp_errors_with_options_and_padding", "I1", &|s| {
        let kind = kinds(n.v6)[0];
        let options = |p: &mut P| match n.v6 {
            true => p.extensions = vec![(60, vec![0, 1, 4, 0, 0, 0, 0])],
            false => p.options = vec![1, 1, 1, 1, 0x94, 4, 0, 0],
        };
        let cluster = at(n.cluster, 80);
        let s = s.becomes(IN_POD, &P::tcp(pod, cluster, SYN), (pod, web), &[NewFlow]);
        let pair = |outer: &dyn Fn(&mut P), inner: &dyn Fn(&mut P), bytes: usize| {
            let quoted = P::tcp(pod, web, ACK).with(inner);
            let mut outer = error(router, kind, &quoted, bytes).with(outer);
            outer.ethernet = true;
            let mut behind = error(n.cluster, kind, &quoted.between(pod, cluster), bytes);
            (behind.options, behind.extensions) = (outer.options.clone(), outer.extensions.clone());
            (outer, behind.build())
        };
        let mut s = s;
        for (outer, behind) in
            [pair(&|_| (), &options, 1000), pair(&|_| (), &options, 8 + if n.v6 { 48 } else { 28 })]
        {
            s = s.turns_into(OUT_POD, &outer, behind, &[IcmpTranslated]);
        }
        if !n.v6 {
            let (outer, behind) = pair(&options, &options, 1000);
            s = s.turns_into(OUT_POD, &outer, behind, &[IcmpTranslated]);
        }
        // Ethernet pads a frame: the bytes behind the error are not a checksum that it quotes
        let (short, mut behind) = pair(&|_| (), &|_| (), 8 + if n.v6 { 40 } else { 20 });
        behind.extend([0xee; 12]);
        s.pads_into(OUT_POD, &short, &[0xee; 12], behind, &[IcmpTranslated])
    });
    golden("icmp_that_belongs_to_no_flow", "I1 I5", &|s| {
        let kind = kinds(n.v6)[0];
        let header = if n.v6 { 40 } else { 20 };
        let about = |src, dst| error(router, kind, &P::tcp(src, dst, ACK), 1000);
        let redirect =
            error(router, if n.v6 { (137, 0, [0; 4]) } else { (5, 1, [0; 4]) }, &P::tcp(pod, web, ACK), 1000);
        let other = at(n.client, 40001);
        s.becomes(IN_POD, &P::tcp(pod, at(n.cluster, 80), SYN), (pod, web), &[NewFlow])
            .passes(OUT_POD, &about(at(n.pod, 40001), web), &[])
            .passes(OUT_UPLINK, &about(other, web), &[])
            .passes(IN_UPLINK, &about(nodeport, other), &[])
            .passes(IN_UPLINK, &about(snat, web), &[])
            .passes(IN_POD, &about(at(n.cluster, 80), other), &[])
            // not to the sender of what it quotes
            .passes(OUT_POD, &about(pod, web).with(|p| p.dst = at(n.client, 0)), &[])
            .passes(OUT_POD, &redirect, &[])
            // no ports in the quote
            .passes(OUT_POD, &error(router, kind, &P::tcp(pod, web, ACK), header + 2), &[])
            .passes(OUT_POD, &error(router, kind, &P::tcp(pod, web, ACK), header - 1), &[])
            .passes(OUT_POD, &error(router, kind, &P::tcp(pod, web, ACK), 0), &[])
            .passes(
                OUT_POD,
                &error(router, kind, &P::tcp(pod, web, ACK).with(|p| p.fragment = Some((185, false))), 1000),
                &[],
            )
            // the host's own: its socket knows the backend
            .passes(HOST, &P::icmp(n.node, n.client, if n.v6 { 129 } else { 0 }, 0), &[])
    });
    all
}
