//! DSR between two nodes: what the one puts in front, and what the other makes of it.

use std::net::{IpAddr, SocketAddr};

use lb_common::abi::{
    BE_LOCAL, CT_DIRECT, CT_DSR, NH_PORT, NextHop, PEER_V4, PEER_V6, Peer, ROLE_TUNNEL, SVC_DSR,
    SVC_EXTERNAL, port_row,
};
use lb_common::counter::Counter;
use lb_common::csum::word_delta;
use lb_common::dsr::GUE_PORT;
use lb_common::env::{Hook, Table};
use lb_common::family::{V4, V6};
use lb_common::frame::Frame;
use lb_common::packet::{ACK, FIN, SYN, TCP, UDP};
use lb_common::testing::golden::{Net, net4, net6, world};
use lb_common::testing::packets::{at, checksums};
use lb_common::testing::world::{POD, UPLINK, row};
use lb_common::testing::{Direction, Machine, PacketBuilder, Side};
use lb_common::verdict::{Verdict, XdpStep};

/// The other node's address.
fn other(n: &Net) -> IpAddr {
    if n.v6 { "fd00:172::3".parse().expect("an address") } else { IpAddr::from([172, 18, 0, 3]) }
}

/// Bytes in front of a packet.
fn overhead(n: &Net, port: [u8; 2]) -> usize {
    (if n.v6 { 40 } else { 20 }) + if port == [0; 2] { 0 } else { 8 }
}

fn peer(ip: IpAddr, port: [u8; 2]) -> Peer {
    let (mut addr4, mut addr6) = ([0; 4], [0; 16]);
    match ip {
        IpAddr::V4(ip) => addr4 = ip.octets(),
        IpAddr::V6(ip) => addr6 = ip.octets(),
    }
    Peer { addr4, addr6, port, flags: PEER_V4 | PEER_V6, ..Peer::default() }
}

/// The golden world with DSR, as the node `own` has it, on which the backend `remote` is or is not.
fn node<F: Side>(n: &Net, own: IpAddr, here: bool, port: [u8; 2]) -> Machine {
    let mut world = world(&Net { node: own, ..*n });
    world.role(own, ROLE_TUNNEL);
    let mut machine = world.machine();
    let env = &mut machine.env;
    let far = if own == n.node { other(n) } else { n.node };
    env.peers.extend([(0, peer(own, port)), (1, peer(far, port))]);
    for iface in env.ifaces.values_mut() {
        iface.mtu = 1500;
    }
    let tables = F::side_mut(env);
    tables.cluster_nodes.extend([F::addr(own), F::addr(far)]);
    for backend in tables.backends.values_mut().filter(|b| b.addr == F::addr(n.remote)) {
        (backend.nexthop, backend.flags) =
            if here { (0, backend.flags | BE_LOCAL) } else { (1, backend.flags & !BE_LOCAL) };
    }
    for service in tables.services.values_mut().filter(|s| s.flags & SVC_EXTERNAL != 0) {
        service.flags |= SVC_DSR;
        if here {
            (service.local_start, service.local_len) = (service.cluster_start, service.cluster_len);
        }
    }
    machine
}

/// The node that clients send to, and the backend's.
fn nodes(n: &Net, port: [u8; 2]) -> [Machine; 2] {
    if n.v6 {
        [node::<V6>(n, n.node, false, port), node::<V6>(n, other(n), true, port)]
    } else {
        [node::<V4>(n, n.node, false, port), node::<V4>(n, other(n), true, port)]
    }
}

fn comes(machine: &mut Machine, frame: &[u8]) -> (Verdict, Vec<u8>) {
    let mut frame = frame.to_vec();
    let hook = Hook { l3: 14, ifindex: UPLINK, ingress_ifindex: UPLINK };
    (machine.run(Direction::In, hook, &mut frame), frame)
}

fn goes(machine: &mut Machine, frame: &[u8]) -> (Verdict, Vec<u8>) {
    let mut frame = frame.to_vec();
    let hook = Hook { l3: 14, ifindex: UPLINK, ingress_ifindex: POD };
    (machine.run(Direction::Out, hook, &mut frame), frame)
}

fn count(machine: &Machine, counter: Counter) -> u64 {
    machine.env.counters.get(&counter).copied().unwrap_or(0)
}

/// Client, frontend on the first node, backend.
fn ends(n: &Net, proto: u8) -> [SocketAddr; 3] {
    let (port, target) = if proto == TCP { (30080, 8080) } else { (30053, 5353) };
    [at(n.client, 40000), at(n.node, port), at(n.remote, target)]
}

fn packet(proto: u8, from: SocketAddr, to: SocketAddr, flags: u8) -> PacketBuilder {
    if proto == TCP { PacketBuilder::tcp(from, to, flags) } else { PacketBuilder::udp(from, to) }
}

fn hop(packet: &PacketBuilder) -> PacketBuilder {
    packet.clone().with(|p| p.ttl -= 1)
}

/// Both families, both outer headers.
fn each(mut check: impl FnMut(&Net, [u8; 2])) {
    for n in [net4(), net6()] {
        for port in [[0; 2], GUE_PORT] {
            check(&n, port);
        }
    }
}

#[track_caller]
fn is_outer(n: &Net, port: [u8; 2], frame: &[u8], inner: &[u8]) {
    let over = overhead(n, port);
    assert_eq!(frame.len(), inner.len() + over);
    assert_eq!((&frame[..14], &frame[14 + over..]), (&inner[..14], &inner[14..]), "what is inside");
    let (proto, addresses, length) = if n.v6 { (20, 22, 18) } else { (23, 26, 16) };
    let wrapped = if n.v6 { 41 } else { 4 };
    assert_eq!(frame[proto], if port == [0; 2] { wrapped } else { UDP });
    let bytes = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let wanted = [bytes(n.node), bytes(other(n))].concat();
    assert_eq!(frame[addresses..addresses + wanted.len()], wanted, "from node to node");
    let said = u16::from_be_bytes([frame[length], frame[length + 1]]) as usize;
    assert_eq!(said + if n.v6 { 40 } else { 0 }, frame.len() - 14, "the outer header's length");
    if !n.v6 {
        assert_eq!(lb_common::testing::packets::internet_checksum(&frame[14..34]), 0);
        assert_eq!(frame[20] & 0x40, 0x40, "DF");
    }
    if port != [0; 2] {
        let udp = 14 + over - 8;
        assert_eq!(frame[udp + 2..udp + 4], port);
        let source = u16::from_be_bytes([frame[udp], frame[udp + 1]]);
        assert!((0x8000..0xc000).contains(&source), "source port {source}");
    }
}

#[test]
fn a_packet_goes_to_the_backends_node_and_its_answer_straight_to_the_client() {
    each(|n, port| {
        for proto in [TCP, UDP] {
            let [mut first, mut second] = nodes(n, port);
            let [client, front, web] = ends(n, proto);
            for (request, answer) in [(SYN, SYN | ACK), (ACK, ACK), (ACK, ACK)] {
                let sent = packet(proto, client, front, request);
                let (verdict, wrapped) = comes(&mut first, &sent.build());
                assert_eq!(verdict, Verdict::Out);
                is_outer(n, port, &wrapped, &hop(&sent).build());
                let (verdict, arrived) = comes(&mut second, &wrapped);
                assert_eq!(verdict, Verdict::Pass);
                assert_eq!(arrived, hop(&sent).between(client, web).build(), "the client's address is kept");
                let reply = packet(proto, web, client, answer);
                let (verdict, back) = goes(&mut second, &reply.build());
                assert_eq!((verdict, back), (Verdict::Pass, reply.between(front, client).build()));
                first.env.advance(3);
                second.env.advance(3);
            }
            assert_eq!((count(&first, Counter::DsrFlow), count(&first, Counter::DsrSent)), (1, 3));
            assert_eq!((count(&second, Counter::DsrReceived), count(&second, Counter::NewFlow)), (3, 1));
            assert_eq!(count(&first, Counter::FlowPromoted), 1, "without an answer here");
            assert_eq!(count(&first, Counter::SnatFlow) + count(&second, Counter::SnatFlow), 0);
        }
    });
}

fn flags_of(machine: &Machine, v6: bool) -> Vec<(Table, u16)> {
    if v6 {
        V6::side(&machine.env).entries().into_iter().map(|(t, _, v)| (t, v.flags)).collect()
    } else {
        V4::side(&machine.env).entries().into_iter().map(|(t, _, v)| (t, v.flags)).collect()
    }
}

#[test]
fn a_flow_has_one_entry_at_the_first_node_and_a_dnat_pair_at_the_second() {
    each(|n, port| {
        let [mut first, mut second] = nodes(n, port);
        let [client, front, _] = ends(n, TCP);
        let (_, wrapped) = comes(&mut first, &packet(TCP, client, front, SYN).build());
        let _ = comes(&mut second, &wrapped);
        assert_eq!(flags_of(&first, n.v6), [(Table::Young, CT_DSR)]);
        assert_eq!(flags_of(&second, n.v6), [(Table::Young, CT_DIRECT); 2]);
        // the client's FIN is all that the first node sees of an end; a SYN then begins anew
        let _ = comes(&mut first, &packet(TCP, client, front, ACK | FIN).build());
        let _ = comes(&mut first, &packet(TCP, client, front, SYN).build());
        assert_eq!(count(&first, Counter::DsrFlow), 2);
    });
}

#[test]
fn what_no_node_of_the_cluster_sent_stays_as_it_came() {
    each(|n, port| {
        let [mut first, mut second] = nodes(n, port);
        let [client, front, _] = ends(n, TCP);
        let (_, wrapped) = comes(&mut first, &packet(TCP, client, front, SYN).build());
        if n.v6 {
            V6::side_mut(&mut second.env).cluster_nodes.remove(&V6::addr(n.node));
        } else {
            V4::side_mut(&mut second.env).cluster_nodes.remove(&V4::addr(n.node));
        }
        assert_eq!(comes(&mut second, &wrapped), (Verdict::Pass, wrapped));
        assert!(flags_of(&second, n.v6).is_empty());
    });
}

#[test]
fn the_hosts_own_tunnels_stay_as_they_are() {
    each(|n, port| {
        let [mut first, mut second] = nodes(n, port);
        let [client, front, web] = ends(n, TCP);
        // a pod of the other node, on a port that is a NodePort, too; a port that nobody serves
        for to in [web, at(n.pod, 30080), at(n.node, 30999), at(n.node, 22)] {
            let (_, wrapped) = comes(&mut first, &packet(TCP, client, front, SYN).build());
            let over = overhead(n, port);
            let inner = packet(TCP, at(n.pod, 1234), to, SYN).build();
            let frame = [&wrapped[..14 + over], &inner[14..]].concat();
            assert_eq!(comes(&mut second, &frame), (Verdict::Pass, frame.clone()), "{to}");
        }
        assert_eq!(count(&second, Counter::DsrReceived), 0);
    });
}

#[test]
fn who_is_not_outside_and_what_the_other_node_can_not_know_goes_by_snat() {
    each(|n, port| {
        let [client, front, _] = ends(n, TCP);
        let dsr = |machine: &mut Machine, from: SocketAddr, to: SocketAddr| {
            let _ = comes(machine, &packet(TCP, from, to, SYN).build());
            count(machine, Counter::DsrFlow)
        };
        let [mut first, _] = nodes(n, port);
        assert_eq!(dsr(&mut first, at(other(n), 40000), front), 0, "a node of the cluster");
        let [mut first, _] = nodes(n, port);
        if n.v6 {
            V6::side_mut(&mut first.env).cluster_nodes.remove(&V6::addr(n.node));
        } else {
            V4::side_mut(&mut first.env).cluster_nodes.remove(&V4::addr(n.node));
        }
        assert_eq!(dsr(&mut first, client, front), 0, "an address that no Node object names");
        let [mut first, _] = nodes(n, port);
        first.env.peers.remove(&1);
        assert_eq!(dsr(&mut first, client, front), 0, "a node that does not take them");
        let [mut first, _] = nodes(n, port);
        assert_eq!(dsr(&mut first, client, front), 1);
    });
}

#[test]
fn a_packet_that_does_not_fit_is_answered_with_what_would() {
    each(|n, port| {
        let [mut first, _] = nodes(n, port);
        first.env.path_mtu = 1400;
        let [client, front, _] = ends(n, UDP);
        let over = overhead(n, port);
        let headers = if n.v6 { 48 } else { 28 };
        let fits = packet(UDP, client, front, 0).with(|p| p.payload = vec![7; 1400 - over - headers]);
        assert_eq!(comes(&mut first, &fits.build()).0, Verdict::Out);
        let large = fits.with(|p| p.payload.push(7));
        let (verdict, answer) = comes(&mut first, &large.build());
        assert_eq!(verdict, Verdict::Reply);
        checksums(&answer, 14).expect("right checksums");
        let (icmp, kind) = if n.v6 { (54, [2, 0]) } else { (34, [3, 4]) };
        assert_eq!(answer[icmp..icmp + 2], kind);
        assert_eq!(answer[icmp + 4..icmp + 8], (1400 - over as u32).to_be_bytes());
        assert_eq!(answer[icmp + 8..icmp + 20], large.build()[14..26], "the packet is quoted");
        assert_eq!(count(&first, Counter::DsrTooBig), 1);
    });
}

#[test]
fn an_error_about_an_answer_finds_its_way_to_the_backend() {
    each(|n, port| {
        let [mut first, mut second] = nodes(n, port);
        let [client, front, web] = ends(n, TCP);
        let (_, wrapped) = comes(&mut first, &packet(TCP, client, front, SYN).build());
        let _ = comes(&mut second, &wrapped);
        // a router towards the client quotes the answer, and so sends to the frontend
        let answer = packet(TCP, front, client, ACK).build();
        let (kind, code) = if n.v6 { (2, 0) } else { (3, 4) };
        let error = PacketBuilder::icmp(n.stranger, front.ip(), kind, code)
            .with(|p| (p.icmp.1, p.payload) = ([0, 0, 5, 0], answer[14..].to_vec()));
        let (verdict, wrapped) = comes(&mut first, &error.build());
        assert_eq!(verdict, Verdict::Out);
        is_outer(n, port, &wrapped, &hop(&error).build());
        let (verdict, arrived) = comes(&mut second, &wrapped);
        assert_eq!(verdict, Verdict::Pass);
        checksums(&arrived, 14).expect("right checksums");
        let quoted = packet(TCP, web, client, ACK).build();
        let (to, inside) = if n.v6 { (14 + 24, 14 + 48) } else { (14 + 16, 14 + 28) };
        let length = if n.v6 { 16 } else { 4 };
        let addresses = if n.v6 { 8 } else { 12 };
        assert_eq!(
            arrived[to..to + length],
            quoted[14 + addresses..14 + addresses + length],
            "to the backend"
        );
        assert_eq!(
            arrived[inside + addresses..inside + addresses + 2 * length],
            quoted[14 + addresses..14 + addresses + 2 * length],
            "as the backend sent it"
        );
    });
}

/// A SYN-ACK with these options.
fn syn_ack(from: SocketAddr, to: SocketAddr, options: &[u8]) -> Vec<u8> {
    assert_eq!(options.len() % 4, 0);
    let mut frame = packet(TCP, from, to, SYN | ACK).with(|p| p.payload = options.to_vec()).build();
    let l4 = if from.is_ipv6() { 54 } else { 34 };
    let old = [frame[l4 + 12], frame[l4 + 13]];
    let new = [old[0] + ((options.len() as u8 / 4) << 4), old[1]];
    frame[l4 + 12] = new[0];
    frame.fix_l4(l4 + 16, 0, word_delta(old, new), false).expect("in the frame");
    checksums(&frame, 14).expect("right checksums");
    frame
}

#[test]
fn a_syn_ack_offers_what_fits_with_an_outer_header() {
    each(|n, port| {
        let [client, front, web] = ends(n, TCP);
        let limit: u16 = 1500 - if n.v6 { 48 + 60 } else { 28 + 40 };
        let [high, low] = limit.to_be_bytes();
        for (options, wanted) in [
            (vec![2, 4, 5, 180, 1, 1, 4, 2], vec![2, 4, high, low, 1, 1, 4, 2]),
            (vec![1, 2, 4, 5, 180, 1, 4, 2], vec![1, 2, 4, high, low, 1, 4, 2]),
            (vec![4, 2, 2, 4, 2, 24, 1, 1], vec![4, 2, 2, 4, 2, 24, 1, 1]),
            (vec![1, 3, 0, 2, 4, 5, 180, 0], vec![1, 3, 0, 2, 4, 5, 180, 0]),
        ] {
            let [mut first, mut second] = nodes(n, port);
            let (_, wrapped) = comes(&mut first, &packet(TCP, client, front, SYN).build());
            let _ = comes(&mut second, &wrapped);
            let (verdict, sent) = goes(&mut second, &syn_ack(web, client, &options));
            assert_eq!(verdict, Verdict::Pass);
            checksums(&sent, 14).expect("right checksums");
            assert_eq!(sent[sent.len() - wanted.len()..], wanted);
        }
    });
}

#[test]
fn nodes_that_disagree_do_not_send_to_each_other_for_ever() {
    each(|n, port| {
        let [mut first, _] = nodes(n, port);
        let mut second =
            if n.v6 { node::<V6>(n, other(n), false, port) } else { node::<V4>(n, other(n), false, port) };
        let [client, front, web] = ends(n, TCP);
        // the second one has the backend on the first, and even the flow
        let direct = packet(TCP, at(n.client, 40001), at(other(n), 30080), SYN);
        assert_eq!(comes(&mut second, &direct.build()).0, Verdict::Out);
        for sent in [packet(TCP, client, front, SYN), direct] {
            let (_, wrapped) = comes(&mut first, &sent.build());
            let wrapped = if sent.dst == front {
                wrapped
            } else {
                let (_, outer) = comes(&mut first, &packet(TCP, client, front, SYN).build());
                [&outer[..14 + overhead(n, port)], &sent.build()[14..]].concat()
            };
            let (verdict, frame) = comes(&mut second, &wrapped);
            assert_eq!(verdict, Verdict::Pass);
            let ttl = if sent.dst == front { hop(&sent) } else { sent.clone() };
            assert_eq!(
                frame,
                ttl.between(sent.src, web).build(),
                "by SNAT, for the second node's own address"
            );
        }
    });
}

#[test]
fn any_bytes_behind_an_outer_header_are_harmless() {
    each(|n, port| {
        let [mut first, mut second] = nodes(n, port);
        let [client, front, _] = ends(n, TCP);
        let (_, wrapped) = comes(&mut first, &packet(TCP, client, front, SYN).build());
        let mut seed = 7_u32;
        for cut in 14..wrapped.len() {
            let _ = comes(&mut second, &wrapped[..cut]);
            let mut noisy = wrapped.clone();
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            noisy[cut] ^= (seed >> 24) as u8;
            let _ = comes(&mut second, &noisy);
        }
    });
}

const NODE: [u8; 6] = lb_common::testing::packets::NODE_MAC;
const GATEWAY: [u8; 6] = [2, 9, 9, 9, 9, 1];

/// The node that clients send to, with XDP on its uplink: everybody is behind one gateway each.
fn with_xdp(n: &Net, port: [u8; 2]) -> Machine {
    fn routes<F: Side>(machine: &mut Machine, to: [IpAddr; 3]) {
        for ip in to {
            F::side_mut(&mut machine.env).routes.insert(F::addr(ip), row(UPLINK, ip));
        }
    }
    let [mut machine, _] = nodes(n, port);
    let own = NextHop { ifindex: UPLINK, flags: NH_PORT, mtu: 1500, dmac: [0; 6], smac: NODE };
    machine.env.next_hops.insert(port_row(UPLINK), own);
    let to = [n.client, n.remote, other(n)];
    for ip in to {
        machine.env.next_hops.insert(row(UPLINK, ip), NextHop { flags: 0, dmac: GATEWAY, ..own });
    }
    if n.v6 {
        routes::<V6>(&mut machine, to)
    } else {
        routes::<V4>(&mut machine, to)
    }
    machine
}

/// Sent by XDP, as TC (of another machine) sends it.
#[track_caller]
fn sends_as_tc(xdp: &mut Machine, tc: &mut Machine, packet: &PacketBuilder) {
    let mut frame = packet.build();
    assert_eq!(xdp.run_xdp(UPLINK, &mut frame), XdpStep::Sent);
    let (verdict, wrapped) = comes(tc, &packet.build());
    assert_eq!(verdict, Verdict::Out);
    assert_eq!(frame[..12], [GATEWAY, NODE].concat(), "to the next hop");
    assert_eq!(frame[12..], wrapped[12..], "the bytes of TC");
}

/// Goes up from XDP as it came; what TC makes of it then.
#[track_caller]
fn up(machine: &mut Machine, packet: &PacketBuilder) -> (Verdict, Vec<u8>) {
    let mut frame = packet.build();
    assert_eq!(machine.run_xdp(UPLINK, &mut frame), XdpStep::Up);
    assert_eq!(frame, packet.build(), "I2: changed, and passed up");
    comes(machine, &frame)
}

#[test]
fn xdp_puts_the_same_bytes_in_front_as_tc() {
    each(|n, port| {
        for proto in [TCP, UDP] {
            let (mut xdp, [mut tc, mut second]) = (with_xdp(n, port), nodes(n, port));
            let [client, front, web] = ends(n, proto);
            for (flags, payload) in [(SYN, 0), (ACK, 0), (ACK, 1), (ACK, 777), (ACK | FIN, 3)] {
                let sent = packet(proto, client, front, flags).with(|p| p.payload = vec![7; payload]);
                sends_as_tc(&mut xdp, &mut tc, &sent);
                let (_, wrapped) = comes(&mut tc.clone(), &sent.build());
                let arrived = hop(&sent).between(client, web).build();
                assert_eq!(comes(&mut second, &wrapped), (Verdict::Pass, arrived));
                xdp.env.advance(3);
                tc.env.advance(3);
            }
            for counter in [Counter::DsrFlow, Counter::DsrSent, Counter::FlowPromoted, Counter::NewFlow] {
                assert_eq!(count(&xdp, counter), count(&tc, counter), "{counter:?}");
            }
            assert_eq!((count(&xdp, Counter::XdpSent), count(&xdp, Counter::XdpFlow)), (5, 0));
            assert_eq!(flags_of(&xdp, n.v6), flags_of(&tc, n.v6), "the same is remembered");
        }
    });
}

#[test]
fn a_dsr_flow_changes_its_hook_at_any_packet() {
    each(|n, port| {
        let (mut xdp, [mut tc, _]) = (with_xdp(n, port), nodes(n, port));
        let [client, front, _] = ends(n, TCP);
        let [syn, data] = [SYN, ACK].map(|flags| packet(TCP, client, front, flags));
        // it begins at TC, which knows nothing of rows
        let _ = comes(&mut xdp, &syn.build());
        let _ = comes(&mut tc, &syn.build());
        sends_as_tc(&mut xdp, &mut tc, &data);
        // the next hop goes and comes back: nothing has to be asked
        let way = xdp.env.next_hops.remove(&row(UPLINK, other(n))).expect("a row");
        assert_eq!(up(&mut xdp, &data), comes(&mut tc, &data.build()));
        xdp.env.next_hops.insert(row(UPLINK, other(n)), way);
        sends_as_tc(&mut xdp, &mut tc, &data);
        // a route that XDP can't send by: asked for once in a tick
        let routes = |machine: &mut Machine, there: bool| {
            if n.v6 {
                let to = if there { row(UPLINK, other(n)) } else { 0 };
                V6::side_mut(&mut machine.env).routes.insert(V6::addr(other(n)), to);
            } else {
                let to = if there { row(UPLINK, other(n)) } else { 0 };
                V4::side_mut(&mut machine.env).routes.insert(V4::addr(other(n)), to);
            }
        };
        routes(&mut xdp, false);
        sends_as_tc(&mut xdp, &mut tc, &data);
        xdp.env.advance(1);
        tc.env.advance(1);
        assert_eq!(up(&mut xdp, &data), comes(&mut tc, &data.build()));
        routes(&mut xdp, true);
        assert_eq!(up(&mut xdp, &data), comes(&mut tc, &data.build()));
        xdp.env.advance(1);
        tc.env.advance(1);
        sends_as_tc(&mut xdp, &mut tc, &data);
        assert_eq!((count(&xdp, Counter::DsrFlow), count(&xdp, Counter::DropNoRoute)), (1, 0));
    });
}

#[test]
fn what_does_not_fit_at_xdp_is_answered_by_tc() {
    each(|n, port| {
        let mut xdp = with_xdp(n, port);
        xdp.env.path_mtu = 1400;
        let [client, front, _] = ends(n, UDP);
        let headers = overhead(n, port) + if n.v6 { 48 } else { 28 };
        let fits = packet(UDP, client, front, 0).with(|p| p.payload = vec![7; 1400 - headers]);
        assert_eq!(xdp.run_xdp(UPLINK, &mut fits.build()), XdpStep::Sent);
        let large = fits.clone().with(|p| p.payload.push(7));
        assert_eq!(up(&mut xdp, &large).0, Verdict::Reply);
        assert_eq!(up(&mut xdp, &fits.with(|p| p.ttl = 1)).0, Verdict::Drop);
        assert_eq!((count(&xdp, Counter::DsrTooBig), count(&xdp, Counter::DsrSent)), (1, 1));
    });
}

#[test]
fn what_of_a_service_with_dsr_is_none_goes_as_without_it() {
    each(|n, port| {
        let [client, front, _] = ends(n, TCP);
        let syn = packet(TCP, client, front, SYN);
        let mut old = with_xdp(n, port);
        old.env.peers.remove(&1);
        let mut frame = syn.build();
        assert_eq!(old.run_xdp(UPLINK, &mut frame), XdpStep::Sent, "a node that does not take them: by SNAT");
        assert_eq!((count(&old, Counter::XdpFlow), count(&old, Counter::DsrFlow)), (1, 0));
        let mut near = with_xdp(n, port);
        let local = syn.between(client, at(n.node, 30081));
        let (verdict, frame) = up(&mut near, &local);
        assert_eq!((verdict, frame), (Verdict::Pass, local.between(client, at(n.local, 8080)).build()));
        assert_eq!((count(&near, Counter::NewFlow), count(&near, Counter::DsrFlow)), (1, 0));
    });
}
