//! Properties of the packet path, flows under random evictions among them (invariant I6).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use lb_common::abi::{CT_MASQ, CT_PASS, CT_XDP, CtKey, CtValue, POS_IN, POS_OUT, SVC_HAS_ANY};
use lb_common::counter::Counter;
use lb_common::env::{Env, Hook};
use lb_common::family::{Family, V4, V6};
use lb_common::flow::{Flow, Role};
use lb_common::packet::{ACK, FIN, RST, SCTP, SYN, TCP, UDP};
use lb_common::sock;
use lb_common::testing::golden::{Net, net4, net6, world};
use lb_common::testing::packets::{at, checksums};
use lb_common::testing::world::{POD, UPLINK};
use lb_common::testing::{Direction, Machine, PacketBuilder, Side};
use lb_common::verdict::{SockVerdict, Verdict};
use proptest::prelude::*;

/// A flow of any numbers; `addr` turns 16 bytes into an address.
fn flow<F: Family>(
    raw: [[u8; 16]; 4],
    ports: [[u8; 2]; 5],
    rest: [u32; 6],
    flags: u16,
    proto: u8,
) -> Flow<F> {
    let addr = |bytes: [u8; 16]| F::narrow(bytes.into());
    Flow {
        client: addr(raw[0]),
        frontend: addr(raw[1]),
        backend: addr(raw[2]),
        snat: addr(raw[3]),
        client_port: ports[0],
        moved_port: ports[1],
        frontend_port: ports[2],
        backend_port: ports[3],
        snat_port: ports[4],
        flags,
        proto,
        _pad: [0; 3],
        nexthop: rest[0],
        backend_id: rest[1],
        generation: rest[2],
        service: rest[3],
        born_tick: rest[4],
        last_tick: rest[5],
        ifindex: rest[0] ^ rest[1],
    }
}

fn entry<F: Family>(flow: &Flow<F>, role: Role) -> (CtKey<F>, CtValue<F>) {
    let (mut key, mut value) = (CtKey::default(), CtValue::default());
    flow.entry(role, &mut key, &mut value);
    (key, value)
}

fn entries_are_inverse_and_twins<F: Family>(flow: &Flow<F>) {
    for number in 0..4 {
        let role = Role::of(number);
        let (key, value) = entry(flow, role);
        let mut again = Flow::default();
        again.of(&key, &value);
        assert_eq!(&again, flow, "{role:?}");
        assert!(flow.owns(role, &value) || flow.flags & CT_PASS != 0);
        // the twin of an entry is the reverse of its new tuple at the other position, and back
        let (twin, back) = entry(flow, Role::of(number ^ 1));
        let reversed = (value.dst, value.dport, value.src, value.sport);
        assert_eq!((twin.src, twin.sport, twin.dst, twin.dport), reversed, "{role:?}");
        assert_ne!(twin.position, key.position);
        assert_eq!((back.dst, back.dport, back.src, back.sport), (key.src, key.sport, key.dst, key.dport));
    }
}

proptest! {
    #[test]
    fn any_entry_rebuilds_its_flow(
        raw: [[u8; 16]; 4], ports: [[u8; 2]; 5], rest: [u32; 6], flags: u16, proto: u8
    ) {
        entries_are_inverse_and_twins::<V4>(&flow(raw, ports, rest, flags, proto));
        entries_are_inverse_and_twins::<V6>(&flow(raw, ports, rest, flags, proto));
    }

    #[test]
    fn a_rewrite_keeps_checksums_right(
        raw: [[u8; 16]; 4], ports: [[u8; 2]; 5], proto in 0usize..3, v6: bool, role in 0u8..4,
        payload in proptest::collection::vec(any::<u8>(), 0..80),
    ) {
        let proto = [TCP, UDP, SCTP][proto];
        if v6 {
            rewritten::<V6>(&flow(raw, ports, [0; 6], 0, proto), Role::of(role), payload);
        } else {
            rewritten::<V4>(&flow(raw, ports, [0; 6], 0, proto), Role::of(role), payload);
        }
    }
}

fn rewritten<F: Side>(flow: &Flow<F>, role: Role, payload: Vec<u8>) {
    let (key, value) = entry(flow, role);
    let end = |addr, port| at(F::ip(addr), u16::from_be_bytes(port));
    let packet = PacketBuilder::new(flow.proto, end(key.src, key.sport), end(key.dst, key.dport))
        .with(|p| p.payload = payload);
    let mut frame = packet.build();
    let mut parsed = Default::default();
    assert!(lb_common::packet::addresses::<F>(&frame, 14, &mut parsed));
    assert!(lb_common::packet::parse::<F>(&mut frame, 14, &mut parsed));
    let rewritten = match flow.proto {
        SCTP => lb_common::nat::rewrite_sctp(&mut frame, &parsed, &value),
        _ => lb_common::nat::rewrite(&mut frame, &parsed, &value),
    };
    assert_eq!(rewritten, Some(()));
    assert_eq!(checksums(&frame, 14), Ok(()));
    let mut wanted = packet.between(end(value.src, value.sport), end(value.dst, value.dport)).build();
    // -0 and +0 are the same checksum, so these bytes may differ
    let l4 = match flow.proto {
        TCP => Some(parsed.l4 + 16),
        UDP => Some(parsed.l4 + 6),
        _ => None, // a CRC32c has one form
    };
    for csum in (!F::V6).then_some(14 + 10).into_iter().chain(l4) {
        wanted[csum..csum + 2].copy_from_slice(&frame[csum..csum + 2]);
    }
    assert_eq!(frame, wanted);
}

// ---- conversations ----

/// A client's flow and where its packets cross the node.
#[derive(Clone, Copy, Debug)]
struct Talk {
    client: SocketAddr,
    frontend: SocketAddr,
    proto: u8,
    /// The interface on the client's side.
    near: u32,
    /// Packets to the backend are masqueraded.
    masquerade: bool,
}

/// What came of a packet sent through the node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    /// Left the node with these ends.
    Left(SocketAddr, SocketAddr),
    /// Dropped, or answered with an error.
    Ended,
}

struct Node {
    machine: Machine,
    /// Addresses and ports of all backends.
    backends: BTreeSet<SocketAddr>,
    snat: IpAddr,
}

fn ends(frame: &[u8], v6: bool) -> (SocketAddr, SocketAddr) {
    let port = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    let ip = |at: usize| -> IpAddr {
        if v6 {
            <[u8; 16]>::try_from(&frame[at..at + 16]).expect("16 bytes").into()
        } else {
            <[u8; 4]>::try_from(&frame[at..at + 4]).expect("4 bytes").into()
        }
    };
    if v6 {
        (at(ip(22), port(54)), at(ip(38), port(56)))
    } else {
        (at(ip(26), port(34)), at(ip(30), port(36)))
    }
}

impl Node {
    fn new(n: &Net, backends: u8) -> Node {
        let mut w = world(n);
        w.pool(61000, 61999);
        let mut all = BTreeSet::new();
        for proto in [TCP, UDP] {
            let mut ids = Vec::new();
            for number in 0..backends {
                let ip: IpAddr = match n.remote {
                    IpAddr::V4(ip) => {
                        let [a, b, c, _] = ip.octets();
                        [a, b, c, 100 + number].into()
                    }
                    IpAddr::V6(ip) => {
                        let mut ip = ip.octets();
                        ip[15] = 100 + number;
                        ip.into()
                    }
                };
                all.insert(at(ip, 8080));
                ids.push(w.backend(ip, 8080, proto, 0));
            }
            let service = w.service(SVC_HAS_ANY, &ids, &[]);
            w.cluster_ip(n.cluster, 7000, proto, service);
            w.frontend(n.external, 7000, proto, service);
            w.frontend(n.vip, 7000, proto, service);
            w.nodeport(n.node, 31000, proto, service);
        }
        Node { machine: w.machine(), backends: all, snat: n.node }
    }

    /// Sends a packet across both hooks; each must leave it alone or rewrite it rightly (`right`), with right sums.
    fn cross(
        &mut self,
        packet: &PacketBuilder,
        way: [u32; 2],
        right: impl Fn(Direction, (SocketAddr, SocketAddr), (SocketAddr, SocketAddr)) -> bool,
    ) -> Fate {
        let v6 = !packet.src.is_ipv4();
        let mut frame = packet.build();
        for (direction, ifindex) in [(Direction::In, way[0]), (Direction::Out, way[1])] {
            let before = frame.clone();
            let hook = Hook { l3: 14, ifindex, ingress_ifindex: way[0] };
            let verdict = self.machine.run(direction, hook, &mut frame);
            match verdict {
                Verdict::Pass => {}
                Verdict::Drop => {
                    assert_eq!(frame, before);
                    return Fate::Ended;
                }
                Verdict::Out | Verdict::Peer(_) => panic!("no flow here is past the stack"),
                Verdict::Reply => {
                    assert_eq!(checksums(&frame, 14), Ok(()));
                    return Fate::Ended;
                }
            }
            if frame != before {
                let (was, is) = (ends(&before, v6), ends(&frame, v6));
                assert!(right(direction, was, is), "{direction:?}: {was:?} became {is:?}");
                assert_eq!(checksums(&frame, 14), Ok(()));
            }
        }
        let (src, dst) = ends(&frame, v6);
        Fate::Left(src, dst)
    }

    /// The client sends.
    fn request(&mut self, talk: &Talk, flags: u8) -> Fate {
        let packet = packet(talk.proto, talk.client, talk.frontend, flags);
        let (backends, snat) = (self.backends.clone(), self.snat);
        let talk = *talk;
        self.cross(&packet, [talk.near, UPLINK], move |direction, was, is| {
            backends.contains(&is.1)
                && match direction {
                    Direction::In => was == (talk.client, talk.frontend) && is.0.ip() == talk.client.ip(),
                    Direction::Out => was.1 == is.1 && is.0.ip() == snat && talk.masquerade,
                }
        })
    }

    /// The backend sends to what it took for the client.
    fn reply(&mut self, talk: &Talk, backend: SocketAddr, to: SocketAddr, flags: u8) -> Fate {
        let packet = packet(talk.proto, backend, to, flags);
        let talk = *talk;
        self.cross(&packet, [UPLINK, talk.near], move |direction, was, is| match direction {
            Direction::In => {
                was.1.ip() != talk.client.ip() && is.0 == backend && is.1.ip() == talk.client.ip()
            }
            Direction::Out => is == (talk.frontend, talk.client),
        })
    }

    fn evict<F: Side>(&mut self, per_cent: u32) {
        let env = self.machine.env.clone();
        F::side_mut(&mut self.machine.env).evict(|_, _, _| Env::<F>::random(&env) % 100 < per_cent);
        self.machine.env.seed.set(env.seed.get());
    }

    fn new_flows(&self) -> u64 {
        self.machine.env.counters.get(&Counter::NewFlow).copied().unwrap_or(0)
    }
}

fn packet(proto: u8, src: SocketAddr, dst: SocketAddr, flags: u8) -> PacketBuilder {
    if proto == TCP { PacketBuilder::tcp(src, dst, flags) } else { PacketBuilder::udp(src, dst) }
}

/// A whole exchange; `Err` says where it did not go through.
fn exchange(node: &mut Node, talk: &Talk) -> Result<(SocketAddr, SocketAddr), String> {
    let flags = if talk.proto == TCP { [SYN, SYN | ACK, ACK, ACK] } else { [0; 4] };
    let mut seen = None;
    for (step, flags) in flags.into_iter().enumerate() {
        if step % 2 == 0 {
            let fate = node.request(talk, flags);
            let Fate::Left(source, backend) = fate else { return Err(format!("step {step}: {fate:?}")) };
            if !node.backends.contains(&backend) || (source.ip() == node.snat) != talk.masquerade {
                return Err(format!("step {step}: left as {source} -> {backend}"));
            }
            if *seen.get_or_insert((source, backend)) != (source, backend) {
                return Err(format!("step {step}: {seen:?} became {source} -> {backend}"));
            }
        } else {
            let (source, backend) = seen.expect("a request came first");
            let fate = node.reply(talk, backend, source, flags);
            if fate != Fate::Left(talk.frontend, talk.client) {
                return Err(format!("step {step}: {fate:?}"));
            }
        }
    }
    Ok(seen.expect("set"))
}

fn talks(n: &Net, proto: u8) -> Vec<Talk> {
    let talk = |client, port, frontend, near, masquerade| Talk {
        client: at(client, port),
        frontend,
        proto,
        near,
        masquerade,
    };
    vec![
        talk(n.pod, 40000, at(n.cluster, 7000), POD, false),
        talk(n.client, 40000, at(n.node, 31000), UPLINK, true),
        talk(n.client, 40000, at(n.external, 7000), UPLINK, true),
        talk(n.client, 40000, at(n.cluster, 7000), UPLINK, true),
        talk(n.client, 40000, at(n.vip, 7000), UPLINK, true),
        talk(n.stranger, 40000, at(n.node, 31000), UPLINK, true),
        talk(n.pod, 40000, at(n.external, 7000), POD, false),
        talk(n.pod, 40001, at(n.external, 7000), POD, false),
    ]
}

#[derive(Clone, Debug)]
enum Op {
    Request(u8),
    Reply(u8),
    Evict(u32),
    Advance(u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => prop_oneof![5 => Just(ACK), 1 => Just(SYN), 1 => Just(FIN | ACK), 1 => Just(RST)].prop_map(Op::Request),
        6 => prop_oneof![5 => Just(ACK), 1 => Just(SYN | ACK), 1 => Just(FIN | ACK), 1 => Just(RST)]
            .prop_map(Op::Reply),
        4 => (0u32..=100).prop_map(Op::Evict),
        3 => (0u64..4).prop_map(Op::Advance),
    ]
}

fn converse<F: Side>(n: &Net, talk: usize, proto: u8, ops: &[Op], seed: u64) {
    let mut node = Node::new(n, 3);
    node.machine.env.seed.set(seed);
    let talk = talks(n, proto)[talk];
    let mut seen = exchange(&mut node, &talk).expect("without evictions all goes through");
    let mut born = node.new_flows();
    let mut evicted = false;
    for op in ops {
        match *op {
            Op::Request(flags) => {
                let fate = node.request(&talk, flags);
                if let Fate::Left(source, backend) = fate
                    && node.backends.contains(&backend)
                    && (source.ip() == node.snat) == talk.masquerade
                {
                    // One consistent source and backend for as long as no new flow was begun. Of a second flow with
                    // the same ends, entries of the first may be left with another SNAT port, and an eviction may
                    // bring those to light: backends then see a stray, and the client begins anew.
                    if node.new_flows() == born && (born == 1 || !evicted) {
                        assert_eq!((source, backend), seen, "the flow changed without a new one");
                    }
                    evicted = false;
                    (seen, born) = ((source, backend), node.new_flows());
                }
            }
            Op::Reply(flags) => {
                let _ = node.reply(&talk, seen.1, seen.0, flags);
            }
            Op::Evict(per_cent) => {
                node.evict::<F>(per_cent);
                evicted = true;
            }
            Op::Advance(ticks) => node.machine.env.advance(ticks),
        }
    }
    // never stuck: the next try of the client goes through, a tick later
    node.machine.env.advance(1);
    let first = exchange(&mut node, &talk);
    if let Err(error) = first {
        node.machine.env.advance(1);
        exchange(&mut node, &talk).unwrap_or_else(|again| panic!("stuck: {error}; again: {again}"));
    }
}

/// What is left of a flow heals it: with one packet that meets a survivor, a tick later, all entries are back.
fn heals<F: Side>(n: &Net, talk: usize, proto: u8, lost: u8) {
    let mut node = Node::new(n, 1);
    let talk = talks(n, proto)[talk];
    let (source, backend) = exchange(&mut node, &talk).expect("goes through");
    let all = F::side(&node.machine.env).entries();
    let roles: BTreeSet<u8> = all.iter().map(|(.., value)| value.role).collect();
    assert_eq!(roles.len(), if talk.masquerade { 4 } else { 2 });
    let doomed = |value: &CtValue<F>| lost & (1 << value.role) != 0;
    let survivors: Vec<u8> = roles.into_iter().filter(|role| lost & (1 << role) == 0).collect();
    for survivor in survivors {
        let mut node =
            Node { machine: node.machine.clone(), backends: node.backends.clone(), snat: node.snat };
        F::side_mut(&mut node.machine.env).evict(|_, _, value| doomed(value));
        node.machine.env.advance(1);
        // the packet that meets this entry, at its hook
        let (key, value) =
            all.iter().find(|(.., value)| value.role == survivor).map(|(_, k, v)| (*k, *v)).expect("there");
        let end = |addr, port| at(F::ip(addr), u16::from_be_bytes(port));
        let direction = if key.position == POS_IN { Direction::In } else { Direction::Out };
        let mut frame = packet(proto, end(key.src, key.sport), end(key.dst, key.dport), ACK).build();
        let hook = Hook { l3: 14, ifindex: UPLINK, ingress_ifindex: UPLINK };
        assert_eq!(node.machine.run(direction, hook, &mut frame), Verdict::Pass);
        assert_eq!(ends(&frame, F::V6), (end(value.src, value.sport), end(value.dst, value.dport)));
        let now: BTreeMap<_, _> =
            F::side(&node.machine.env).entries().into_iter().map(|(_, key, value)| (key, value)).collect();
        for (_, key, value) in &all {
            let healed =
                now.get(key).unwrap_or_else(|| panic!("role {} is gone (met {survivor})", value.role));
            let timeless = |v: &CtValue<F>| CtValue { last_tick: 0, flags: 0, ..*v };
            assert_eq!(timeless(healed), timeless(value), "met {survivor}");
        }
        assert_eq!(node.request(&talk, ACK), Fate::Left(source, backend));
        assert_eq!(node.reply(&talk, backend, source, ACK), Fate::Left(talk.frontend, talk.client));
    }
}

#[test]
fn i6_any_survivor_heals_its_flow() {
    for lost in 0..16 {
        for talk in 0..3 {
            for proto in [TCP, UDP] {
                heals::<V4>(&net4(), talk, proto, lost);
                heals::<V6>(&net6(), talk, proto, lost);
            }
        }
    }
}

/// Sends on many flows that share clients, ports and one backend: none may ever look to the backend like another.
fn crowd<F: Side>(n: &Net, proto: u8, order: &[(usize, bool)], evictions: bool, seed: u64) {
    let mut node = Node::new(n, 1);
    node.machine.env.seed.set(seed);
    let talks = talks(n, proto);
    let mut last: BTreeMap<(SocketAddr, SocketAddr), usize> = BTreeMap::new();
    let mut own: BTreeMap<usize, (SocketAddr, SocketAddr)> = BTreeMap::new();
    for (number, begin) in order {
        let talk = talks[number % talks.len()];
        let number = number % talks.len();
        if evictions {
            node.evict::<F>(20);
            node.machine.env.advance(1); // entries that contradict each other are found once per tick
        }
        let flags = if *begin || !own.contains_key(&number) { SYN } else { ACK };
        if let Fate::Left(source, backend) = node.request(&talk, flags)
            && node.backends.contains(&backend)
            && (source.ip() == node.snat) == talk.masquerade
        {
            if let Some(other) = last.insert((source, backend), number)
                && other != number
            {
                assert!(evictions, "{number} and {other} share {source} -> {backend}");
                own.remove(&other);
            }
            own.insert(number, (source, backend));
            let fate = node.reply(&talk, backend, source, if flags == SYN { SYN | ACK } else { ACK });
            assert_eq!(fate, Fate::Left(talk.frontend, talk.client), "{number}: {source} -> {backend}");
        } else {
            assert!(evictions, "{number} did not get through");
        }
    }
    if !evictions {
        for (number, (source, backend)) in own {
            let fate = node.reply(&talks[number], backend, source, ACK);
            assert_eq!(fate, Fate::Left(talks[number].frontend, talks[number].client));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn i6_evictions_never_misdirect_and_never_stick(
        talk in 0usize..8, udp: bool, v6: bool, seed: u64, ops in proptest::collection::vec(op(), 1..30),
    ) {
        let proto = if udp { UDP } else { TCP };
        if v6 { converse::<V6>(&net6(), talk, proto, &ops, seed) } else { converse::<V4>(&net4(), talk, proto, &ops, seed) }
    }

    #[test]
    fn i6_flows_never_share_a_tuple_towards_a_backend(
        udp: bool, v6: bool, evictions: bool, seed: u64,
        order in proptest::collection::vec((0usize..8, any::<bool>()), 1..40),
    ) {
        let proto = if udp { UDP } else { TCP };
        if v6 {
            crowd::<V6>(&net6(), proto, &order, evictions, seed);
        } else {
            crowd::<V4>(&net4(), proto, &order, evictions, seed);
        }
    }
}

/// Unused bits that the flows here never have.
#[test]
fn flows_of_tc_are_neither_pass_entries_nor_of_the_xdp_kind() {
    let mut node = Node::new(&net4(), 1);
    for talk in talks(&net4(), TCP) {
        exchange(&mut node, &talk).expect("goes through");
    }
    for (_, key, value) in node.machine.env.v4.entries() {
        assert_eq!(value.flags & (CT_PASS | CT_XDP), 0);
        assert!(value.flags & CT_MASQ != 0 || value.role < 2);
        assert_eq!(
            key.position,
            if matches!(Role::of(value.role), Role::DnatForward | Role::SnatReply) {
                POS_IN
            } else {
                POS_OUT
            }
        );
    }
}

// ---- the one decision ----

/// Same inputs, same answer, on every hook: a socket of the host, and a packet at egress and at ingress.
#[test]
fn all_hooks_decide_alike() {
    for n in [net4(), net6()] {
        if n.v6 { alike::<V6>(&n) } else { alike::<V4>(&n) }
    }
}

fn alike<F: Side>(n: &Net) {
    let w = world(n);
    let mut outcomes = BTreeSet::new();
    for (ip, port, proto) in [
        (n.cluster, 80u16, TCP),
        (n.cluster, 53, UDP),
        (n.cluster, 81, TCP),
        (n.cluster, 999, TCP),
        (n.empty, 80, TCP),
        (n.empty, 80, UDP),
        (n.itp, 80, TCP),
        (n.vip, 443, TCP),
        (n.external, 80, TCP),
        (n.external, 81, TCP),
        (n.node, 30080, TCP),
        (n.node, 30081, TCP),
        (n.node, 30082, TCP),
        (n.stranger, 80, TCP),
    ] {
        // a client that is no pod, outside of the ranges; and the node, at the socket and at egress
        let client = at(n.stranger, 50000);
        let mut machine = w.machine();
        let socket = sock::connect::<F>(
            &mut machine.env,
            &w.config,
            sock::Owner::Host,
            Some(F::addr(client.ip())),
            F::addr(ip),
            port.to_be_bytes(),
            proto,
        );
        let packet = packet(proto, client, at(ip, port), SYN);
        let run = |direction, ingress_ifindex| {
            let mut machine = w.machine();
            let mut frame = packet.build();
            let hook = Hook { l3: 14, ifindex: UPLINK, ingress_ifindex };
            let verdict = machine.run(direction, hook, &mut frame);
            (verdict, ends(&frame, F::V6).1)
        };
        let egress = run(Direction::Out, 0).0;
        let ingress = run(Direction::In, UPLINK);
        let what = format!("{ip} {port} {proto}: {socket:?} {egress:?} {ingress:?}");
        outcomes.insert(egress == Verdict::Pass);
        match socket {
            SockVerdict::Deliver { addr, port, .. } => {
                assert_eq!(egress, Verdict::Pass, "{what}");
                // a host's own traffic takes the short circuit (B49), a stranger's does not
                let short_circuit = ip == n.node && packet.dst.port() != 30080;
                if !short_circuit {
                    assert_eq!(ingress, (Verdict::Pass, at(F::ip(addr), u16::from_be_bytes(port))), "{what}");
                }
            }
            SockVerdict::Refuse(_) => {
                assert_eq!((egress, ingress.0), (Verdict::Reply, Verdict::Reply), "{what}");
            }
            // left alone: not ours, or a drop that egress carries out
            SockVerdict::Leave => assert_eq!(egress, ingress.0, "{what}"),
        }
    }
    assert_eq!(outcomes.len(), 2);
}
