//! Golden packets: what goes into a hook, what must come out, and every counter that must have moved. Counters that
//! a walk does not name must not move.

use core::net::{IpAddr, SocketAddr};
use std::format;
use std::string::String;
use std::vec;
use std::vec::Vec;

use super::machine::Direction;
pub use super::net::{Net, POOL, net4, net6, world};
use super::packets::{PacketBuilder, at, port_unreachable, reset};
use super::world::{BARE, POD, UPLINK, World};
use crate::counter::Counter;
use crate::env::Hook;
use crate::packet::{ACK, FIN, RST, SYN};

/// What must become of a frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Expect {
    /// It passes, untouched.
    Pass,
    /// It passes with these bytes.
    Rewritten(Vec<u8>),
    /// It is dropped, untouched.
    Drop,
    /// It became this answer to its sender.
    Reply(Vec<u8>),
}

/// A packet at a hook.
#[derive(Clone, Debug)]
pub struct Walk {
    pub direction: Direction,
    pub hook: Hook,
    pub frame: Vec<u8>,
    pub expect: Expect,
    /// How far each counter moves; all others must not.
    pub counters: Vec<(Counter, u64)>,
}

/// One thing that happens.
#[derive(Clone, Debug)]
pub enum Event {
    Packet(Walk),
    /// So many ticks pass. A kernel cannot be told to.
    Advance(u64),
    /// The generation of a backend id changes.
    Generation {
        v6: bool,
        id: u32,
        value: u32,
    },
}

/// A named story of packets in one world.
#[derive(Clone, Debug)]
pub struct Golden {
    /// Name, with the family's digit at its end.
    pub name: String,
    /// The rules of BEHAVIOUR.md or the invariants that it shows.
    pub rules: &'static str,
    pub world: World,
    pub events: Vec<Event>,
}

impl Golden {
    /// The packets, without what happens between them.
    pub fn walks(&self) -> impl Iterator<Item = &Walk> {
        self.events.iter().filter_map(|event| match event {
            Event::Packet(walk) => Some(walk),
            _ => None,
        })
    }
}

/// Walks, written down one after the other.
pub(super) struct Story {
    events: Vec<Event>,
}

/// A story in a world of the family of `n`.
pub(super) fn tell(
    n: &Net,
    name: &str,
    rules: &'static str,
    world: &World,
    story: &dyn Fn(Story) -> Story,
) -> Golden {
    let name = format!("{name}_{}", if n.v6 { 6 } else { 4 });
    Golden { name, rules, world: world.clone(), events: story(Story { events: vec![] }).events }
}

/// A hook: direction, interface, and the interface by which the packet came in (at egress).
pub(super) type At = (Direction, u32, u32);
pub(super) const IN_UPLINK: At = (Direction::In, UPLINK, UPLINK);
pub(super) const IN_POD: At = (Direction::In, POD, POD);
const IN_BARE: At = (Direction::In, BARE, BARE);
pub(super) const OUT_UPLINK: At = (Direction::Out, UPLINK, POD);
pub(super) const OUT_POD: At = (Direction::Out, POD, UPLINK);
const OUT_BARE: At = (Direction::Out, BARE, UPLINK);
/// Made on this host.
pub(super) const HOST: At = (Direction::Out, UPLINK, 0);

impl Story {
    fn add(mut self, at: At, packet: &PacketBuilder, expect: Expect, counters: &[Counter]) -> Story {
        let (direction, ifindex, ingress_ifindex) = at;
        let hook = Hook { l3: if packet.ethernet { 14 } else { 0 }, ifindex, ingress_ifindex };
        let counters = counters.iter().map(|counter| (*counter, 1)).collect();
        self.events.push(Event::Packet(Walk { direction, hook, frame: packet.build(), expect, counters }));
        self
    }

    pub(super) fn passes(self, at: At, packet: &PacketBuilder, counters: &[Counter]) -> Story {
        self.add(at, packet, Expect::Pass, counters)
    }

    fn drops(self, at: At, packet: &PacketBuilder, counters: &[Counter]) -> Story {
        self.add(at, packet, Expect::Drop, counters)
    }

    /// The packet leaves between these ends.
    pub(super) fn becomes(
        self,
        at: At,
        packet: &PacketBuilder,
        (src, dst): (SocketAddr, SocketAddr),
        counters: &[Counter],
    ) -> Story {
        let out = packet.between(src, dst).build();
        self.add(at, packet, Expect::Rewritten(out), counters)
    }

    /// The packet leaves as these bytes.
    pub(super) fn turns_into(
        self,
        at: At,
        packet: &PacketBuilder,
        out: Vec<u8>,
        counters: &[Counter],
    ) -> Story {
        self.add(at, packet, Expect::Rewritten(out), counters)
    }

    /// The packet, with padding behind it, leaves as these bytes.
    pub(super) fn pads_into(
        self,
        at: At,
        packet: &PacketBuilder,
        padding: &[u8],
        out: Vec<u8>,
        counters: &[Counter],
    ) -> Story {
        let mut story = self.add(at, packet, Expect::Rewritten(out), counters);
        if let Some(Event::Packet(walk)) = story.events.last_mut() {
            walk.frame.extend(padding);
        }
        story
    }

    fn rejects(self, at: At, packet: &PacketBuilder, from: IpAddr, counters: &[Counter]) -> Story {
        self.add(at, packet, Expect::Reply(port_unreachable(from, packet)), counters)
    }

    fn event(mut self, event: Event) -> Story {
        self.events.push(event);
        self
    }
}

/// All golden packets.
#[must_use]
pub fn goldens() -> Vec<Golden> {
    [net4(), net6()].iter().flat_map(|n| family(n).into_iter().chain(super::errors::stories(n))).collect()
}

fn family(n: &Net) -> Vec<Golden> {
    use Counter::*;
    use PacketBuilder as P;

    let world = world(n);
    let mut all: Vec<Golden> = Vec::new();
    let mut golden = |name: &str, rules: &'static str, story: &dyn Fn(Story) -> Story| {
        all.push(tell(n, name, rules, &world, story));
    };
    let (client, pod) = (at(n.client, 40000), at(n.pod, 40000));
    let web = at(n.remote, 8080);
    let cluster = at(n.cluster, 80);
    let nodeport = at(n.node, 30080);
    let snat = at(n.node, POOL);

    golden("clusterip_tcp_from_a_pod", "B47 B80 I1 I3", &|s| {
        s.becomes(IN_POD, &P::tcp(pod, cluster, SYN), (pod, web), &[NewFlow])
            .becomes(IN_POD, &P::tcp(pod, cluster, SYN), (pod, web), &[])
            .passes(OUT_UPLINK, &P::tcp(pod, web, SYN), &[])
            .becomes(OUT_POD, &P::tcp(web, pod, SYN | ACK), (cluster, pod), &[])
            .becomes(IN_POD, &P::tcp(pod, cluster, ACK), (pod, web), &[FlowPromoted])
            .becomes(OUT_POD, &P::tcp(web, pod, ACK), (cluster, pod), &[])
            .becomes(IN_POD, &P::tcp(pod, cluster, FIN | ACK), (pod, web), &[])
            .becomes(OUT_POD, &P::tcp(web, pod, FIN | ACK), (cluster, pod), &[FlowRetired])
            .becomes(IN_POD, &P::tcp(pod, cluster, ACK), (pod, web), &[])
            // the same tuple again, after the end: a new flow
            .becomes(IN_POD, &P::tcp(pod, cluster, SYN), (pod, web), &[NewFlow])
    });
    golden("clusterip_udp_from_a_pod", "B47 B80", &|s| {
        let (dns, backend) = (at(n.cluster, 53), at(n.remote, 5353));
        s.becomes(IN_POD, &P::udp(pod, dns), (pod, backend), &[NewFlow])
            .becomes(OUT_POD, &P::udp(backend, pod), (dns, pod), &[])
            .becomes(IN_POD, &P::udp(pod, dns), (pod, backend), &[])
    });
    golden("udp_stream_is_promoted", "I6", &|s| {
        let (dns, backend) = (at(n.cluster, 53), at(n.remote, 5353));
        s.becomes(IN_POD, &P::udp(pod, dns), (pod, backend), &[NewFlow])
            .becomes(OUT_POD, &P::udp(backend, pod), (dns, pod), &[])
            .event(Event::Advance(3))
            .becomes(IN_POD, &P::udp(pod, dns), (pod, backend), &[FlowPromoted])
            .becomes(IN_POD, &P::udp(pod, dns), (pod, backend), &[])
    });
    golden("udp_moves_with_its_backends_generation", "I6 B68", &|s| {
        let (dns, backend) = (at(n.cluster, 53), at(n.remote, 5353));
        s.becomes(IN_POD, &P::udp(pod, dns), (pod, backend), &[NewFlow])
            .event(Event::Generation { v6: n.v6, id: 3, value: 7 })
            .becomes(IN_POD, &P::udp(pod, dns), (pod, backend), &[FlowMovedBackend, NewFlow])
            .becomes(IN_POD, &P::udp(pod, dns), (pod, backend), &[])
    });
    for (name, rules, front) in [
        ("nodeport_tcp", "B48 B80", nodeport),
        ("externalip_tcp", "B48 B80", at(n.external, 80)),
        ("clusterip_tcp_from_outside", "B47 B80", cluster),
    ] {
        golden(name, rules, &|s| {
            s.becomes(IN_UPLINK, &P::tcp(client, front, SYN), (client, web), &[NewFlow])
                .becomes(OUT_UPLINK, &P::tcp(client, web, SYN), (snat, web), &[SnatFlow])
                .becomes(IN_UPLINK, &P::tcp(web, snat, SYN | ACK), (web, client), &[])
                .becomes(OUT_UPLINK, &P::tcp(web, client, SYN | ACK), (front, client), &[])
                .becomes(IN_UPLINK, &P::tcp(client, front, ACK), (client, web), &[FlowPromoted])
                .becomes(OUT_UPLINK, &P::tcp(client, web, ACK), (snat, web), &[])
                .becomes(IN_UPLINK, &P::tcp(web, snat, ACK), (web, client), &[])
                .becomes(OUT_UPLINK, &P::tcp(web, client, ACK), (front, client), &[])
        });
    }
    golden("nodeport_udp", "B48 B80", &|s| {
        let (front, backend) = (at(n.node, 30053), at(n.remote, 5353));
        s.becomes(IN_UPLINK, &P::udp(client, front), (client, backend), &[NewFlow])
            .becomes(OUT_UPLINK, &P::udp(client, backend), (snat, backend), &[SnatFlow])
            .becomes(IN_UPLINK, &P::udp(backend, snat), (backend, client), &[])
            .becomes(OUT_UPLINK, &P::udp(backend, client), (front, client), &[])
    });
    golden("hairpin", "B80", &|s| {
        let (front, backend) = (at(n.cluster, 81), at(n.pod, 8080));
        s.becomes(IN_POD, &P::tcp(pod, front, SYN), (pod, backend), &[NewFlow])
            .becomes(OUT_POD, &P::tcp(pod, backend, SYN), (snat, backend), &[SnatFlow])
            .becomes(IN_POD, &P::tcp(backend, snat, SYN | ACK), (backend, pod), &[])
            .becomes(OUT_POD, &P::tcp(backend, pod, SYN | ACK), (front, pod), &[])
    });
    golden("vip_and_its_source_ranges", "B96 B97 B99", &|s| {
        let front = at(n.vip, 443);
        let stranger = at(n.stranger, 40000);
        s.becomes(IN_UPLINK, &P::tcp(client, front, SYN), (client, web), &[NewFlow])
            .drops(IN_UPLINK, &P::tcp(stranger, front, SYN), &[DropSourceRange])
            .drops(IN_POD, &P::tcp(pod, front, SYN), &[DropSourceRange])
            .drops(HOST, &P::tcp(at(n.node, 50000), front, SYN), &[DropSourceRange])
            // another frontend of a service is never filtered
            .becomes(IN_UPLINK, &P::tcp(stranger, nodeport, SYN), (stranger, web), &[NewFlow])
            .passes(IN_UPLINK, &P::tcp(client, at(n.vip, 444), SYN), &[])
    });
    golden("no_endpoints", "B86", &|s| {
        let front = at(n.empty, 80);
        s.rejects(IN_POD, &P::tcp(pod, front, SYN), n.node, &[RejectNoEndpoints])
            .rejects(IN_POD, &P::udp(pod, front), n.node, &[RejectNoEndpoints])
            .rejects(IN_POD, &P::sctp(pod, front, 1), n.node, &[RejectNoEndpoints])
            .rejects(IN_UPLINK, &P::udp(client, front), n.node, &[RejectNoEndpoints])
            // the host's own packet: an address of its own as source would be a martian
            .rejects(HOST, &P::udp(at(n.node, 50000), front), n.empty, &[RejectNoEndpoints])
            .rejects(
                IN_POD,
                &P::udp(pod, front).with(|p| p.payload = (0u8..200).collect()),
                n.node,
                &[RejectNoEndpoints],
            )
            .rejects(IN_POD, &P::udp(pod, front).with(|p| p.payload = vec![]), n.node, &[RejectNoEndpoints])
            .passes(HOST, &P::udp(at(n.node, 50000), at(n.cluster, 53)), &[])
    });
    golden("itp_local_without_local_endpoint", "B52 B87", &|s| {
        s.drops(IN_POD, &P::tcp(pod, at(n.itp, 80), SYN), &[DropNoLocalEndpoints]).drops(
            HOST,
            &P::tcp(at(n.node, 50000), at(n.itp, 80), SYN),
            &[DropNoLocalEndpoints],
        )
    });
    golden("etp_local", "B49 B80 B82 B87 B90", &|s| {
        let (front, none) = (at(n.node, 30081), at(n.node, 30082));
        let near = at(n.local, 8080);
        s.becomes(IN_POD, &P::tcp(pod, front, SYN), (pod, web), &[NewFlow])
            .becomes(IN_UPLINK, &P::tcp(client, front, SYN), (client, near), &[NewFlow])
            .passes(OUT_POD, &P::tcp(client, near, SYN), &[])
            .becomes(OUT_UPLINK, &P::tcp(near, client, SYN | ACK), (front, client), &[])
            .drops(IN_UPLINK, &P::tcp(client, none, SYN), &[DropNoLocalEndpoints])
            .becomes(IN_POD, &P::tcp(at(n.pod, 40001), none, SYN), (at(n.pod, 40001), web), &[NewFlow])
    });
    golden("unknown_port", "B91", &|s| {
        let echo = if n.v6 { 128 } else { 8 };
        s.rejects(IN_POD, &P::tcp(pod, at(n.cluster, 999), SYN), n.node, &[RejectUnknownPort])
            .rejects(IN_POD, &P::udp(pod, at(n.cluster, 80)), n.node, &[RejectUnknownPort])
            .rejects(IN_POD, &P::icmp(n.pod, n.cluster, echo, 0), n.node, &[RejectUnknownPort])
            .rejects(HOST, &P::icmp(n.node, n.cluster, echo, 0), n.cluster, &[RejectUnknownPort])
            // an error belongs to a flow
            .passes(IN_POD, &P::icmp(n.pod, n.cluster, if n.v6 { 1 } else { 3 }, 1), &[])
    });
    golden("unknown_address", "B92", &|s| {
        let echo = if n.v6 { 128 } else { 8 };
        s.drops(IN_POD, &P::tcp(pod, at(n.nobody, 80), SYN), &[DropUnknownAddress])
            .drops(IN_POD, &P::udp(pod, at(n.nobody, 80)), &[DropUnknownAddress])
            .drops(IN_POD, &P::icmp(n.pod, n.nobody, echo, 0), &[DropUnknownAddress])
            .drops(HOST, &P::udp(at(n.node, 50000), at(n.nobody, 80)), &[DropUnknownAddress])
    });
    golden("unknown_nodeport_and_external_port", "B93 B94", &|s| {
        s.passes(IN_UPLINK, &P::tcp(client, at(n.node, 30099), SYN), &[])
            .passes(IN_UPLINK, &P::tcp(client, at(n.node, 22), SYN), &[])
            .passes(IN_UPLINK, &P::tcp(client, at(n.external, 81), SYN), &[])
            .passes(IN_UPLINK, &P::udp(client, at(n.node, 30080)), &[])
    });
    golden("not_ours", "I5", &|s| {
        let (a, b) = (at(n.client, 40000), at(n.stranger, 80));
        s.passes(IN_UPLINK, &P::tcp(a, b, SYN), &[])
            .passes(OUT_UPLINK, &P::tcp(a, b, SYN), &[])
            .passes(IN_POD, &P::udp(pod, b), &[])
            .passes(OUT_POD, &P::udp(b, at(n.node, 53)), &[])
            .passes(IN_UPLINK, &P::icmp(n.client, n.node, 8, 0), &[])
            // straight to a backend
            .passes(IN_UPLINK, &P::tcp(a, web, SYN), &[])
            .passes(OUT_POD, &P::tcp(a, web, SYN), &[])
            .passes(OUT_UPLINK, &P::tcp(web, a, SYN | ACK), &[])
            .passes(IN_UPLINK, &P::new(47, a, at(n.cluster, 0)), &[])
    });
    golden("mid_stream_without_state", "I6", &|s| {
        s.passes(IN_POD, &P::tcp(pod, cluster, ACK), &[])
            .passes(IN_POD, &P::tcp(pod, cluster, FIN | ACK), &[])
            .passes(IN_POD, &P::tcp(pod, cluster, RST), &[])
            .passes(IN_UPLINK, &P::tcp(client, nodeport, ACK), &[])
            .passes(IN_POD, &P::tcp(pod, at(n.empty, 80), ACK), &[])
    });
    golden("stray_at_egress", "I6 B91", &|s| {
        let stray = |dst: SocketAddr, flags| P::tcp(pod, dst, flags);
        let mut s = s;
        for packet in [
            stray(cluster, ACK),
            stray(cluster, FIN | ACK),
            stray(cluster, SYN | ACK),
            stray(cluster, FIN),
            stray(at(n.cluster, 999), ACK),
            stray(at(n.external, 80), ACK).with(|p| p.payload = vec![]),
        ] {
            s = s.add(OUT_UPLINK, &packet, Expect::Reply(reset(&packet)), &[ResetNoState]);
        }
        s.drops(OUT_UPLINK, &stray(cluster, RST), &[])
            .drops(OUT_UPLINK, &stray(cluster, RST | ACK), &[])
            // the beginning of a forwarded flow is what other tables route
            .passes(OUT_UPLINK, &stray(cluster, SYN), &[])
    });
    golden("reset_ends_a_flow", "I6", &|s| {
        s.becomes(IN_POD, &P::tcp(pod, cluster, SYN), (pod, web), &[NewFlow])
            .becomes(OUT_POD, &P::tcp(web, pod, RST | ACK), (cluster, pod), &[])
            .becomes(IN_POD, &P::tcp(pod, cluster, SYN), (pod, web), &[NewFlow])
            .becomes(OUT_POD, &P::tcp(web, pod, SYN | ACK), (cluster, pod), &[])
    });
    // (offset in units of 8 bytes, more fragments follow)
    let part = |offset, more| move |p: &mut P| p.fragment = Some((offset, more));
    golden("fragments_follow_the_first", "B116 I5", &|s| {
        let (dns, backend) = (at(n.cluster, 53), at(n.remote, 5353));
        let mut s = s.becomes(IN_POD, &P::udp(pod, dns).with(part(0, true)), (pod, backend), &[NewFlow]);
        for (offset, more) in [(185, true), (370, false)] {
            s = s
                .becomes(IN_POD, &P::udp(pod, dns).with(part(offset, more)), (pod, backend), &[])
                // of a datagram that is not masqueraded
                .passes(OUT_UPLINK, &P::udp(pod, backend).with(part(offset, more)), &[]);
        }
        s.becomes(OUT_POD, &P::udp(backend, pod).with(part(0, true)), (dns, pod), &[])
            .becomes(OUT_POD, &P::udp(backend, pod).with(part(185, false)), (dns, pod), &[])
            // a whole datagram with the same identification
            .becomes(IN_POD, &P::udp(pod, dns), (pod, backend), &[])
    });
    golden("fragments_at_both_nat_positions", "B80 I5", &|s| {
        let (front, backend) = (at(n.node, 30053), at(n.remote, 5353));
        let udp = |src, dst, offset, more| P::udp(src, dst).with(part(offset, more));
        s.becomes(IN_UPLINK, &udp(client, front, 0, true), (client, backend), &[NewFlow])
            .becomes(IN_UPLINK, &udp(client, front, 185, false), (client, backend), &[])
            .becomes(OUT_UPLINK, &udp(client, backend, 0, true), (snat, backend), &[SnatFlow])
            .becomes(OUT_UPLINK, &udp(client, backend, 185, false), (snat, backend), &[])
            .becomes(IN_UPLINK, &udp(backend, snat, 0, true), (backend, client), &[])
            .becomes(IN_UPLINK, &udp(backend, snat, 185, false), (backend, client), &[])
            .becomes(OUT_UPLINK, &udp(backend, client, 0, true), (front, client), &[])
            .becomes(OUT_UPLINK, &udp(backend, client, 185, false), (front, client), &[])
    });
    golden("fragments_before_the_first", "I5", &|s| {
        let (dns, backend) = (at(n.cluster, 53), at(n.remote, 5353));
        let other = if n.v6 { at(n.cluster, 54) } else { dns };
        let id = |p: &mut P| p.id = 0x4321;
        s.drops(IN_POD, &P::udp(pod, dns).with(part(185, false)), &[DropFragment])
            // an address of the node has traffic that is not ours
            .passes(IN_UPLINK, &P::udp(client, at(n.node, 30053)).with(part(185, false)), &[])
            .passes(IN_UPLINK, &P::udp(client, at(n.stranger, 53)).with(part(185, false)), &[])
            .passes(OUT_UPLINK, &P::udp(pod, backend).with(part(185, false)), &[])
            .becomes(IN_POD, &P::udp(pod, dns).with(part(0, true)), (pod, backend), &[NewFlow])
            .becomes(IN_POD, &P::udp(pod, dns).with(part(185, true)), (pod, backend), &[])
            // another source, another protocol or identification: another datagram
            .drops(IN_POD, &P::udp(client, dns).with(part(185, true)), &[DropFragment])
            .drops(
                IN_POD,
                &P::udp(pod, other).with(part(185, true)).with(id).with(|p| p.ident6 = 7),
                &[DropFragment],
            )
    });
    golden("fragments_to_an_external_address_before_the_first", "B93 I5", &|s| {
        let udp = |port, offset, more| P::udp(client, at(n.external, port)).with(part(offset, more));
        s.drops(IN_UPLINK, &udp(80, 185, false), &[DropFragment])
            // to a port that no Service has: not ours, nor what follows
            .passes(IN_UPLINK, &udp(500, 0, true), &[])
            .passes(IN_UPLINK, &udp(500, 185, false), &[])
    });
    golden("a_refused_first_fragment_ends_the_memory_of_its_number", "B86 B91 I5", &|s| {
        let (dns, backend) = (at(n.cluster, 53), at(n.remote, 5353));
        let first = P::udp(pod, at(n.cluster, 999)).with(part(0, true));
        s.becomes(IN_POD, &P::udp(pod, dns).with(part(0, true)), (pod, backend), &[NewFlow])
            .rejects(IN_POD, &first, n.node, &[RejectUnknownPort])
            .drops(IN_POD, &P::udp(pod, dns).with(part(185, false)), &[DropFragment])
    });
    golden("fragments_are_followed_for_seconds_only", "I5", &|s| {
        let (dns, backend) = (at(n.cluster, 53), at(n.remote, 5353));
        s.becomes(IN_POD, &P::udp(pod, dns).with(part(0, true)), (pod, backend), &[NewFlow])
            .event(Event::Advance(3))
            .becomes(IN_POD, &P::udp(pod, dns).with(part(185, true)), (pod, backend), &[])
            .event(Event::Advance(1))
            .drops(IN_POD, &P::udp(pod, dns).with(part(185, false)), &[DropFragment])
    });
    golden("header_options", "I1", &|s| {
        let options = |p: &mut P| {
            if n.v6 {
                // hop-by-hop with a PadN, then destination options of 16 bytes
                p.extensions = vec![
                    (0, vec![0, 1, 4, 0, 0, 0, 0]),
                    (60, {
                        let mut body = vec![1, 1, 12];
                        body.resize(15, 0);
                        body
                    }),
                ];
            } else {
                p.options = vec![1, 1, 1, 1, 0x94, 4, 0, 0];
            }
        };
        s.becomes(IN_POD, &P::tcp(pod, cluster, SYN).with(options), (pod, web), &[NewFlow])
            .becomes(OUT_POD, &P::tcp(web, pod, SYN | ACK).with(options), (cluster, pod), &[])
            .rejects(IN_POD, &P::tcp(pod, at(n.empty, 80), SYN).with(options), n.node, &[RejectNoEndpoints])
    });
    if !n.v6 {
        golden("udp_without_checksum", "I1", &|s| {
            let (dns, backend) = (at(n.cluster, 53), at(n.remote, 5353));
            let none = |p: &mut P| p.no_checksum = true;
            s.becomes(IN_POD, &P::udp(pod, dns).with(none), (pod, backend), &[NewFlow]).becomes(
                OUT_POD,
                &P::udp(backend, pod).with(none),
                (dns, pod),
                &[],
            )
        });
    }
    golden("sctp", "B47", &|s| {
        let (front, backend) = (at(n.cluster, 9999), at(n.remote, 9999));
        s.becomes(IN_POD, &P::sctp(pod, front, 1), (pod, backend), &[NewFlow])
            .becomes(OUT_POD, &P::sctp(backend, pod, 2), (front, pod), &[])
            // data in mid-association without state
            .passes(IN_POD, &P::sctp(at(n.pod, 40001), front, 0), &[])
            // every length has its own push of the CRC32c
            .becomes(IN_POD, &P::sctp(pod, at(n.cluster, 9998), 1), (pod, web), &[NewFlow])
            .becomes(OUT_POD, &P::sctp(web, pod, 2), (at(n.cluster, 9998), pod), &[])
            .becomes(
                IN_POD,
                &P::sctp(pod, at(n.cluster, 9998), 10).with(|p| p.payload = (0..=255).collect()),
                (pod, web),
                &[FlowPromoted],
            )
            .becomes(
                IN_POD,
                &P::sctp(pod, at(n.cluster, 9998), 0).with(|p| p.payload = vec![]),
                (pod, web),
                &[],
            )
    });
    golden("sctp_is_masqueraded", "B80 B116", &|s| {
        let front = at(n.node, 30098);
        s.becomes(IN_UPLINK, &P::sctp(client, front, 1), (client, web), &[NewFlow])
            .becomes(OUT_UPLINK, &P::sctp(client, web, 1), (snat, web), &[SnatFlow])
            .becomes(IN_UPLINK, &P::sctp(web, snat, 2), (web, client), &[])
            .becomes(OUT_UPLINK, &P::sctp(web, client, 2), (front, client), &[])
    });
    golden("sctp_checksum_left_to_the_device", "B116", &|s| {
        let none = |p: &mut P| p.no_checksum = true;
        let front = at(n.cluster, 9998);
        s.becomes(IN_POD, &P::sctp(pod, front, 1).with(none), (pod, web), &[NewFlow]).becomes(
            OUT_POD,
            &P::sctp(web, pod, 2).with(none),
            (front, pod),
            &[],
        )
    });
    golden("sctp_fragments", "B116", &|s| {
        let first = |front| P::sctp(pod, at(n.cluster, front), 1).with(part(0, true));
        s.becomes(IN_POD, &first(9999), (pod, at(n.remote, 9999)), &[NewFlow])
            // the checksum is over what is still to come
            .drops(IN_POD, &first(9998), &[NewFlow, DropSctpPort])
            .drops(IN_POD, &P::sctp(pod, at(n.cluster, 9998), 1).with(part(185, false)), &[DropFragment])
    });
    golden("colliding_tuples", "I6", &|s| {
        let (other, moved) = (at(n.external, 80), at(n.pod, POOL));
        s.becomes(IN_POD, &P::tcp(pod, cluster, SYN), (pod, web), &[NewFlow])
            .becomes(IN_POD, &P::tcp(pod, other, SYN), (moved, web), &[NewFlow, FlowMovedPort])
            .becomes(OUT_POD, &P::tcp(web, moved, SYN | ACK), (other, pod), &[])
            .becomes(OUT_POD, &P::tcp(web, pod, SYN | ACK), (cluster, pod), &[])
            .becomes(IN_POD, &P::tcp(pod, other, ACK), (moved, web), &[FlowPromoted])
            .becomes(IN_POD, &P::tcp(pod, cluster, ACK), (pod, web), &[FlowPromoted])
    });
    golden("a_straight_connection_beside_a_flow_is_moved", "I6", &|s| {
        let moved = at(n.pod, POOL);
        s.becomes(IN_POD, &P::tcp(pod, cluster, SYN), (pod, web), &[NewFlow])
            .becomes(OUT_POD, &P::tcp(web, pod, SYN | ACK), (cluster, pod), &[])
            .becomes(IN_POD, &P::tcp(pod, web, SYN), (moved, web), &[FlowMovedPort])
            .becomes(IN_POD, &P::tcp(pod, web, SYN), (moved, web), &[])
            .passes(OUT_UPLINK, &P::tcp(moved, web, SYN), &[])
            .becomes(OUT_POD, &P::tcp(web, moved, SYN | ACK), (web, pod), &[])
            .becomes(IN_POD, &P::tcp(pod, web, ACK), (moved, web), &[FlowPromoted])
            .becomes(IN_POD, &P::tcp(pod, cluster, ACK), (pod, web), &[FlowPromoted])
            .becomes(OUT_POD, &P::tcp(web, moved, ACK), (web, pod), &[])
            .becomes(OUT_POD, &P::tcp(web, pod, ACK), (cluster, pod), &[])
            // another source port collides with nothing
            .passes(IN_POD, &P::tcp(at(n.pod, 40001), web, SYN), &[])
            .passes(OUT_POD, &P::tcp(web, at(n.pod, 40001), SYN | ACK), &[])
            // the flow itself, on its way in a second time
            .passes(IN_UPLINK, &P::tcp(pod, at(n.remote, 8080), SYN).with(|p| p.seq = 9), &[])
    });
    golden("straight_datagrams_beside_a_flow_are_moved", "I6", &|s| {
        let (dns, backend, moved) = (at(n.cluster, 53), at(n.remote, 5353), at(n.pod, POOL));
        let udp = |src, dst, offset, more| P::udp(src, dst).with(part(offset, more));
        s.passes(IN_POD, &P::udp(pod, backend), &[])
            .becomes(IN_POD, &P::udp(pod, dns), (pod, backend), &[NewFlow])
            .becomes(IN_POD, &P::udp(pod, backend), (moved, backend), &[FlowMovedPort])
            .becomes(OUT_POD, &P::udp(backend, moved), (backend, pod), &[])
            .becomes(OUT_POD, &P::udp(backend, pod), (dns, pod), &[])
            .becomes(IN_POD, &udp(pod, backend, 0, true), (moved, backend), &[])
            .becomes(IN_POD, &udp(pod, backend, 185, false), (pod, backend), &[])
    });
    golden("a_straight_connection_that_came_first_keeps_its_tuple", "I6", &|s| {
        let moved = at(n.pod, POOL);
        s.passes(IN_POD, &P::tcp(pod, web, SYN), &[])
            .passes(OUT_POD, &P::tcp(web, pod, SYN | ACK), &[])
            .passes(IN_POD, &P::tcp(pod, web, ACK), &[])
            .becomes(IN_POD, &P::tcp(pod, cluster, SYN), (pod, web), &[NewFlow])
            // the backend answers for the connection that it knows, and the flow gives way
            .passes(OUT_POD, &P::tcp(web, pod, ACK), &[FlowDead, PassEntry])
            .passes(IN_POD, &P::tcp(pod, web, ACK), &[])
            .passes(OUT_POD, &P::tcp(web, pod, ACK), &[])
            .becomes(IN_POD, &P::tcp(pod, cluster, SYN), (moved, web), &[NewFlow, FlowMovedPort])
            .becomes(OUT_POD, &P::tcp(web, moved, SYN | ACK), (cluster, pod), &[])
            .becomes(IN_POD, &P::tcp(pod, cluster, ACK), (moved, web), &[FlowPromoted])
            .passes(OUT_POD, &P::tcp(web, pod, ACK), &[])
    });
    golden("reply_of_the_hosts_own_datagram", "I5", &|s| {
        let (own, server) = (at(n.node, 30053), at(n.client, 53));
        s.passes(HOST, &P::udp(own, server), &[PassEntry])
            .passes(IN_UPLINK, &P::udp(server, own), &[])
            .becomes(
                IN_UPLINK,
                &P::udp(at(n.client, 54), own),
                (at(n.client, 54), at(n.remote, 5353)),
                &[NewFlow],
            )
    });
    golden("pool_port_in_use_by_the_host", "I6", &|s| {
        s.passes(HOST, &P::tcp(snat, web, SYN), &[PassEntry])
            .passes(IN_UPLINK, &P::tcp(web, snat, SYN | ACK), &[])
            .becomes(IN_UPLINK, &P::tcp(client, nodeport, SYN), (client, web), &[NewFlow])
            .drops(OUT_UPLINK, &P::tcp(client, web, SYN), &[DropSnatExhausted])
    });
    golden("pool_exhausted", "B80", &|s| {
        let other = at(n.client, 40001);
        s.becomes(IN_UPLINK, &P::tcp(client, nodeport, SYN), (client, web), &[NewFlow])
            .becomes(OUT_UPLINK, &P::tcp(client, web, SYN), (snat, web), &[SnatFlow])
            .becomes(IN_UPLINK, &P::tcp(other, nodeport, SYN), (other, web), &[NewFlow])
            .drops(OUT_UPLINK, &P::tcp(other, web, SYN), &[DropSnatExhausted])
    });
    golden("no_address_to_masquerade_to", "B80", &|s| {
        s.becomes(IN_BARE, &P::tcp(client, nodeport, SYN), (client, web), &[NewFlow]).drops(
            OUT_BARE,
            &P::tcp(client, web, SYN),
            &[DropNoSnatAddress],
        )
    });
    golden("l3_device", "I1", &|s| {
        let bare = |p: &mut P| p.ethernet = false;
        let empty = at(n.empty, 80);
        s.becomes(IN_UPLINK, &P::tcp(client, nodeport, SYN).with(bare), (client, web), &[NewFlow])
            .becomes(OUT_UPLINK, &P::tcp(client, web, SYN).with(bare), (snat, web), &[SnatFlow])
            .becomes(IN_UPLINK, &P::tcp(web, snat, SYN | ACK).with(bare), (web, client), &[])
            .becomes(OUT_UPLINK, &P::tcp(web, client, SYN | ACK).with(bare), (nodeport, client), &[])
            .rejects(IN_UPLINK, &P::udp(client, empty).with(bare), n.node, &[RejectNoEndpoints])
            .passes(IN_UPLINK, &P::tcp(client, at(n.stranger, 80), SYN).with(bare), &[])
    });
    all
}
