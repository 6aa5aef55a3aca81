//! What a bound socket of the host sends to a Service is masqueraded, as kube-proxy does it (B80, B81): who is, which
//! packets are, and for how long.

use std::net::{IpAddr, SocketAddr};

use lb_common::abi::*;
use lb_common::counter::Counter;
use lb_common::env::{Hook, Sender};
use lb_common::family::{V4, V6};
use lb_common::packet::{ACK, FIN, RST, SYN, TCP};
use lb_common::sock::{self, Owner, REPLY, connect, key, known, sendmsg};
use lb_common::testing::golden::{Net, net4, net6, world};
use lb_common::testing::packets::at;
use lb_common::testing::world::{UPLINK, World};
use lb_common::testing::{Direction, Machine, PacketBuilder, Side, checksums};
use lb_common::verdict::{SockVerdict, Verdict};

/// The socket's own port.
const PORT: u16 = 40_000;
/// Ports of the pool.
const POOL: std::ops::RangeInclusive<u16> = 61_000..=61_031;

fn machine(n: &Net) -> Machine {
    let mut w = world(n);
    w.pool(*POOL.start(), *POOL.end());
    w.machine()
}

/// What the connect hook does; `Some`: it was translated, and the packets are to be masqueraded or not.
fn open<F: Side>(
    m: &mut Machine,
    owner: Owner,
    bound: Option<IpAddr>,
    to: (IpAddr, u16),
    proto: u8,
) -> Option<bool> {
    let config = m.config;
    let (addr, port) = (F::addr(to.0), to.1.to_be_bytes());
    let SockVerdict::Deliver { addr: backend, masquerade, .. } =
        connect::<F>(&mut m.env, &config, owner, bound.map(F::addr), addr, port, proto)
    else {
        return None;
    };
    if masquerade {
        sock::masquerade::<F>(&mut m.env, bound.map(F::addr), backend);
    }
    if let Some(bound) = bound {
        let flags = if masquerade { SK_MASQ } else { 0 };
        let sender = Sender { frontend: addr, port, flags, ..Sender::default() };
        F::side_mut(&mut m.env).senders.insert((F::addr(bound), PORT.to_be_bytes()), sender);
    }
    Some(masquerade)
}

/// A packet at the uplink; the ends that it has then. `sent`: keeps in the socket what the hook would keep there.
fn cross<F: Side>(m: &mut Machine, direction: Direction, packet: &PacketBuilder) -> (SocketAddr, SocketAddr) {
    let ingress_ifindex = if direction == Direction::In { UPLINK } else { 0 };
    let mut frame = packet.build();
    let hook = Hook { l3: 14, ifindex: UPLINK, ingress_ifindex };
    assert_eq!(m.run(direction, hook, &mut frame), Verdict::Pass, "{packet:?}");
    assert_eq!(checksums(&frame, 14), Ok(()));
    let (l3, size) = (14 + F::ADDRS, size_of::<F::Addr>());
    let l4 = if F::V6 { 54 } else { 34 };
    let ip = |from: usize| match F::V6 {
        true => IpAddr::from(<[u8; 16]>::try_from(&frame[from..from + 16]).expect("16 bytes")),
        false => IpAddr::from(<[u8; 4]>::try_from(&frame[from..from + 4]).expect("4 bytes")),
    };
    let port = |from: usize| u16::from_be_bytes([frame[from], frame[from + 1]]);
    let work = F::work(&mut m.scratch);
    let (sender, source) = (work.sender, (work.packet.src, work.packet.sport));
    if direction == Direction::Out
        && let Some(kept) = F::side_mut(&mut m.env).senders.get_mut(&source)
        && kept.flags != 0
        && sender.flags != 0
    {
        kept.snat_port = sender.snat_port;
    }
    (at(ip(l3), port(l4)), at(ip(l3 + size), port(l4 + 2)))
}

fn count(m: &Machine, counter: Counter) -> u64 {
    m.env.counters.get(&counter).copied().unwrap_or(0)
}

fn both(test4: impl Fn(&Net), test6: impl Fn(&Net)) {
    test4(&net4());
    test6(&net6());
}

#[test]
fn b80_b81_a_connection_of_a_bound_socket_is_masqueraded() {
    fn check<F: Side>(n: &Net) {
        let mut m = machine(n);
        let (vip, web) = (at(n.vip, PORT), at(n.remote, 8080));
        assert_eq!(open::<F>(&mut m, Owner::Host, Some(n.vip), (n.external, 80), TCP), Some(true));
        let (snat, to) = cross::<F>(&mut m, Direction::Out, &PacketBuilder::tcp(vip, web, SYN));
        assert_eq!((snat.ip(), to), (n.node, web));
        assert!(POOL.contains(&snat.port()));
        let answer = |kind| PacketBuilder::tcp(web, snat, kind);
        let request = |kind| PacketBuilder::tcp(vip, web, kind);
        assert_eq!(cross::<F>(&mut m, Direction::In, &answer(SYN | ACK)), (web, vip));
        assert_eq!(cross::<F>(&mut m, Direction::Out, &request(ACK)), (snat, web));
        assert_eq!(count(&m, Counter::FlowPromoted), 1);
        for _ in 0..3 {
            m.env.advance(2);
            assert_eq!(cross::<F>(&mut m, Direction::Out, &request(ACK)), (snat, web));
            assert_eq!(cross::<F>(&mut m, Direction::In, &answer(ACK)), (web, vip));
        }
        let entries = F::side(&m.env).flows(lb_common::env::Table::Established);
        assert_eq!(entries.len(), 2, "a SNAT pair and no other");
        assert!(entries.values().all(|e| e.aux_addr == F::addr(n.external)), "the frontend is told");
        for counter in [Counter::FlowHealed, Counter::FlowDead, Counter::NewFlow] {
            assert_eq!(count(&m, counter), 0, "{counter:?}");
        }
        // all of it lost: it goes on with the port that it had, whatever comes next
        F::side_mut(&mut m.env).evict(|_, _, _| true);
        assert_eq!(cross::<F>(&mut m, Direction::Out, &request(ACK)), (snat, web));
        // half of it, and the other half comes first
        F::side_mut(&mut m.env).evict(|_, key, _| key.position == POS_OUT);
        m.env.advance(2);
        assert_eq!(cross::<F>(&mut m, Direction::In, &answer(ACK)), (web, vip));
        assert_eq!(count(&m, Counter::FlowHealed), 1);
        assert_eq!(cross::<F>(&mut m, Direction::Out, &request(ACK)), (snat, web));
        // the end; a new connection by the same ports is another flow
        for kind in [FIN | ACK, ACK] {
            cross::<F>(&mut m, Direction::Out, &request(kind));
            cross::<F>(&mut m, Direction::In, &answer(FIN | ACK));
        }
        open::<F>(&mut m, Owner::Host, Some(n.vip), (n.external, 80), TCP);
        let (again, _) = cross::<F>(&mut m, Direction::Out, &request(SYN));
        assert_eq!(again.ip(), n.node);
        assert_ne!(again.port(), snat.port(), "the backend may have the old one in TIME_WAIT");
        assert_eq!(cross::<F>(&mut m, Direction::In, &PacketBuilder::tcp(web, again, SYN | ACK)), (web, vip));
        assert_eq!(cross::<F>(&mut m, Direction::Out, &request(RST)), (again, web));
    }
    both(check::<V4>, check::<V6>);
}

#[test]
fn sockets_that_were_not_translated_keep_their_source() {
    fn check<F: Side>(n: &Net) {
        let mut m = machine(n);
        let (vip, web) = (at(n.vip, PORT), at(n.remote, 8080));
        // straight to the pod, before and after another socket marked the pair
        let direct = PacketBuilder::tcp(vip, web, SYN);
        assert_eq!(cross::<F>(&mut m, Direction::Out, &direct), (vip, web));
        open::<F>(&mut m, Owner::Host, Some(n.vip), (n.external, 80), TCP);
        F::side_mut(&mut m.env).senders.clear();
        assert_eq!(cross::<F>(&mut m, Direction::Out, &direct), (vip, web));
        // forwarded packets have no socket
        open::<F>(&mut m, Owner::Host, Some(n.vip), (n.external, 80), TCP);
        let mut frame = direct.build();
        let hook = Hook { l3: 14, ifindex: UPLINK, ingress_ifindex: UPLINK };
        assert_eq!(m.run(Direction::Out, hook, &mut frame), Verdict::Pass);
        assert_eq!(frame, direct.build());
        // the interface's own address is what masquerading would give
        open::<F>(&mut m, Owner::Host, Some(n.node), (n.external, 80), TCP);
        let node = at(n.node, PORT);
        assert_eq!(cross::<F>(&mut m, Direction::Out, &PacketBuilder::tcp(node, web, SYN)), (node, web));
        assert_eq!(count(&m, Counter::SnatFlow), 0);
    }
    both(check::<V4>, check::<V6>);
}

#[test]
fn b80_which_sockets_are_masqueraded() {
    fn check<F: Side>(n: &Net) {
        let local = |w: &mut World| {
            let near = w.backend(n.local, 8081, TCP, BE_LOCAL);
            let service = w.service(SVC_HAS_ANY, &[near], &[near]);
            w.frontend(n.external, 81, TCP, service);
            w.nodeport(n.node, 30090, TCP, service);
        };
        let loopback: IpAddr = if n.v6 { "::1" } else { "127.0.0.1" }.parse().expect("an address");
        let pod = |w: &World, owner, bound, to| {
            let mut m = w.machine();
            open::<F>(&mut m, owner, bound, to, TCP)
        };
        let mut w = world(n);
        local(&mut w);
        let host = |w: &World, bound, to| pod(w, Owner::Host, Some(bound), to);
        // to another node: all, whatever the address; but what counts as pod traffic keeps it at a ClusterIP (B73)
        for bound in [n.vip, n.node, loopback, n.stranger] {
            for to in [(n.external, 80), (n.cluster, 80), (n.node, 30080)] {
                assert_eq!(host(&w, bound, to), Some(true), "{bound} {to:?}");
            }
        }
        assert_eq!(host(&w, n.pod, (n.cluster, 80)), Some(false));
        assert_eq!(host(&w, n.pod, (n.external, 80)), Some(true));
        // ETP Local: host traffic takes the short circuit, masqueraded (B49)
        assert_eq!(host(&w, n.vip, (n.node, 30082)), Some(true));
        // a pod's socket can't be (--socket-lb all)
        assert_eq!(pod(&w, Owner::Pod(7), Some(n.stranger), (n.external, 80)), Some(false));
        // to a pod of this node: the answer comes back, but not to a loopback address
        for to in [(n.external, 81), (n.node, 30090)] {
            assert_eq!(host(&w, n.vip, to), Some(false));
            assert_eq!(host(&w, loopback, to), Some(true));
        }
        w.config.flags |= CFG_MASQ_LOCAL;
        assert_eq!(host(&w, n.vip, (n.external, 81)), Some(true));
    }
    both(check::<V4>, check::<V6>);
}

#[test]
fn datagrams_of_an_unconnected_socket_are_masqueraded_by_the_choice_that_is_remembered() {
    fn check<F: Side>(n: &Net) {
        let mut m = machine(n);
        let config = m.config;
        let (frontend, port) = (F::addr(n.cluster), 53u16.to_be_bytes());
        // first without an address, then with one
        let first = sendmsg::<F>(&mut m.env, &config, Owner::Host, 7, None, frontend, port);
        let SockVerdict::Deliver { addr, masquerade: true, .. } = first else { panic!("{first:?}") };
        let then = known::<F>(&mut m.env, 7, frontend, port);
        assert_eq!(then, Some(first));
        sock::masquerade::<F>(&mut m.env, Some(F::addr(n.vip)), addr);
        let reply = m.env.correspondents[&key::<F>(7, addr, 5353u16.to_be_bytes(), REPLY)];
        assert_eq!((reply.flags, reply.port, F::narrow(reply.addr)), (SK_MASQ, port, frontend));
        let sender = Sender { frontend, port, flags: reply.flags, ..Sender::default() };
        F::side_mut(&mut m.env).senders.insert((F::addr(n.vip), PORT.to_be_bytes()), sender);
        let (vip, dns) = (at(n.vip, PORT), at(n.remote, 5353));
        let (snat, to) = cross::<F>(&mut m, Direction::Out, &PacketBuilder::udp(vip, dns));
        assert_eq!((snat.ip(), to), (n.node, dns));
        assert_eq!(cross::<F>(&mut m, Direction::In, &PacketBuilder::udp(dns, snat)), (dns, vip));
        assert_eq!(cross::<F>(&mut m, Direction::Out, &PacketBuilder::udp(vip, dns)), (snat, dns));
        assert_eq!(count(&m, Counter::SnatFlow), 1);
    }
    both(check::<V4>, check::<V6>);
}
