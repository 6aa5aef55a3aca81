//! The story of a socket: whose it is, which client it counts as, and that it agrees with the packets of the same client.

use std::collections::BTreeMap;
use std::net::IpAddr;

use lb_common::abi::*;
use lb_common::env::{Env, Hook};
use lb_common::packet::{SYN, TCP, UDP};
use lb_common::sock::{self, Owner, connect};
use lb_common::testing::golden::{Net, net4, net6, world};
use lb_common::testing::packets::at;
use lb_common::testing::world::{POD, UPLINK, World};
use lb_common::testing::{Direction, Machine, PacketBuilder, Side};
use lb_common::verdict::{SockVerdict, Verdict};
use proptest::prelude::*;

/// The namespace of a pod.
const NETNS: u64 = 4026;
/// A service port with affinity: ClusterIP, externalIP, NodePort, also on the loopback address.
const PORT: u16 = 90;
const NODE_PORT: u16 = 30090;
const TIMEOUT_S: u32 = 60;

/// The world of the golden packets with eight endpoints (ids given) behind a service port with affinity.
fn sticky(n: &Net) -> (World, Vec<u32>) {
    let mut w = world(n);
    let nth = |i: u8| match n.remote {
        IpAddr::V4(a) => IpAddr::from([a.octets()[0], a.octets()[1], 7, i]),
        IpAddr::V6(a) => {
            let mut a = a.octets();
            (a[14], a[15]) = (7, i);
            a.into()
        }
    };
    let ids: Vec<u32> = (1..=8).map(|i| w.backend(nth(i), 9000, TCP, 0)).collect();
    let service = SvcValue { affinity_s: TIMEOUT_S, ..w.service(SVC_HAS_ANY, &ids, &[]) };
    w.cluster_ip(n.cluster, PORT, TCP, service);
    w.frontend(n.external, PORT, TCP, service);
    w.nodeport(n.node, NODE_PORT, TCP, service);
    w.node(loopback(n), NODE_LOCAL | NODE_HOST_NODEPORT);
    (w, ids)
}

fn loopback(n: &Net) -> IpAddr {
    if n.v6 { std::net::Ipv6Addr::LOCALHOST.into() } else { std::net::Ipv4Addr::LOCALHOST.into() }
}

/// The agent has asked the kernel: towards everything the node uses its one address, towards loopback that.
fn sources<F: Side>(machine: &mut Machine, n: &Net) {
    let to = &mut F::side_mut(&mut machine.env).sources;
    for frontend in [n.cluster, n.external, n.node, n.vip] {
        to.insert(F::addr(frontend), F::addr(n.node));
    }
    to.insert(F::addr(loopback(n)), F::addr(loopback(n)));
}

fn open<F: Side>(
    machine: &mut Machine,
    owner: Owner,
    bound: Option<IpAddr>,
    to: (IpAddr, u16),
) -> SockVerdict<F::Addr> {
    let config = machine.config;
    let (addr, port) = (F::addr(to.0), to.1.to_be_bytes());
    connect::<F>(&mut machine.env, &config, owner, bound.map(F::addr), addr, port, TCP)
}

fn backend<A>(verdict: SockVerdict<A>) -> Option<u32> {
    match verdict {
        SockVerdict::Deliver { backend, .. } => Some(backend),
        _ => None,
    }
}

/// A SYN of a client that comes in by an interface; the backend's address if it was balanced.
fn syn<F: Side>(
    machine: &mut Machine,
    ifindex: u32,
    from: IpAddr,
    port: u16,
    to: (IpAddr, u16),
) -> Option<IpAddr> {
    let packet = PacketBuilder::new(TCP, at(from, port), at(to.0, to.1)).with(|p| p.kind = SYN);
    let mut frame = packet.build();
    let before = frame.clone();
    let hook = Hook { l3: 14, ifindex, ingress_ifindex: ifindex };
    let verdict = machine.run(Direction::In, hook, &mut frame);
    assert_eq!(verdict, Verdict::Pass, "{from} -> {to:?}");
    let dst = 14 + F::ADDRS + size_of::<F::Addr>();
    (frame != before).then(|| match F::V6 {
        true => <[u8; 16]>::try_from(&frame[dst..dst + 16]).expect("16 bytes").into(),
        false => <[u8; 4]>::try_from(&frame[dst..dst + 4]).expect("4 bytes").into(),
    })
}

fn both(test4: impl Fn(&Net), test6: impl Fn(&Net)) {
    test4(&net4());
    test6(&net6());
}

#[test]
fn b63_a_host_socket_is_one_client_with_and_without_bind() {
    fn check<F: Side>(n: &Net) {
        let (w, _) = sticky(n);
        let mut machine = w.machine();
        sources::<F>(&mut machine, n);
        let first = backend(open::<F>(&mut machine, Owner::Host, None, (n.cluster, PORT)));
        assert!(first.is_some());
        for bound in [None, Some(n.node)] {
            for to in [(n.cluster, PORT), (n.external, PORT), (n.node, NODE_PORT)] {
                let id = backend(open::<F>(&mut machine, Owner::Host, bound, to));
                assert_eq!(id, first, "{bound:?} {to:?}");
            }
        }
        // and a packet of the same address, whatever way it comes
        let row = F::side(&machine.env).backends[&first.expect("checked above")];
        let packet = syn::<F>(&mut machine, UPLINK, n.node, 40_000, (n.cluster, PORT));
        assert_eq!(packet, Some(F::ip(row.addr)));
    }
    both(check::<lb_common::family::V4>, check::<lb_common::family::V6>);
}

#[test]
fn b63_a_pods_socket_without_an_address_counts_as_its_pod() {
    fn check<F: Side>(n: &Net) {
        let (w, _) = sticky(n);
        let mut machine = w.machine();
        sources::<F>(&mut machine, n);
        let mut seen = std::collections::BTreeSet::new();
        for netns in 1..=40 {
            let id = backend(open::<F>(&mut machine, Owner::Pod(netns), None, (n.cluster, PORT)));
            let again = backend(open::<F>(&mut machine, Owner::Pod(netns), None, (n.external, PORT)));
            assert_eq!(again, id);
            seen.insert(id);
        }
        assert!(seen.len() > 5, "pods share an entry: {seen:?}");
    }
    both(check::<lb_common::family::V4>, check::<lb_common::family::V6>);
}

#[test]
fn b99_an_unbound_socket_is_judged_by_the_source_it_would_get() {
    fn check<F: Side>(n: &Net) {
        let w = world(n);
        let vip = (n.vip, 443);
        let mut machine = w.machine();
        // not known: left to the last word of the packet path
        assert_eq!(open::<F>(&mut machine, Owner::Host, None, vip), SockVerdict::Leave);
        // outside of the ranges
        sources::<F>(&mut machine, n);
        assert_eq!(open::<F>(&mut machine, Owner::Host, None, vip), SockVerdict::Leave);
        // inside
        F::side_mut(&mut machine.env).sources.insert(F::addr(n.vip), F::addr(n.client));
        assert!(backend(open::<F>(&mut machine, Owner::Host, None, vip)).is_some());
        // a pod's is judged at its packet
        assert_eq!(open::<F>(&mut machine, Owner::Pod(NETNS), None, vip), SockVerdict::Leave);
        assert!(backend(open::<F>(&mut machine, Owner::Pod(NETNS), Some(n.client), vip)).is_some());
    }
    both(check::<lb_common::family::V4>, check::<lb_common::family::V6>);
}

#[test]
fn b40_node_ports_on_loopback_are_for_the_hosts_own_sockets_only() {
    fn check<F: Side>(n: &Net) {
        let (w, _) = sticky(n);
        let mut machine = w.machine();
        sources::<F>(&mut machine, n);
        let to = (loopback(n), NODE_PORT);
        assert!(backend(open::<F>(&mut machine, Owner::Host, None, to)).is_some());
        assert!(backend(open::<F>(&mut machine, Owner::Host, Some(loopback(n)), to)).is_some());
        // a pod's 127.0.0.1 is its own
        assert_eq!(open::<F>(&mut machine, Owner::Pod(NETNS), None, to), SockVerdict::Leave);
        // a neighbour that sends to 127.0.0.1 gets what the stack gives to martians
        assert_eq!(syn::<F>(&mut machine, UPLINK, n.stranger, 40_000, to), None);
        assert_eq!(syn::<F>(&mut machine, POD, n.pod, 40_000, to), None);
    }
    both(check::<lb_common::family::V4>, check::<lb_common::family::V6>);
}

/// B49, B82: the Cluster set for host and pods, the Local set for a pod that no detector knows.
#[test]
fn b49_b82_sockets_take_the_short_circuit_as_their_packets_would() {
    fn check<F: Side>(n: &Net) {
        // ETP Local without a local endpoint
        let to = (n.node, 30082);
        let w = world(n);
        let reached =
            |w: &World, owner, bound| backend(open::<F>(&mut w.machine(), owner, bound, to)).is_some();
        assert!(reached(&w, Owner::Host, None));
        assert!(reached(&w, Owner::Pod(NETNS), None));
        assert!(reached(&w, Owner::Pod(NETNS), Some(n.pod)));
        assert!(!reached(&w, Owner::Pod(NETNS), Some(n.stranger)), "outside of the pod CIDR");
        let mut by_interface = world(n);
        by_interface.config.flags = CFG_DETECT_IF;
        assert!(reached(&by_interface, Owner::Pod(NETNS), None));
        let mut unknown = world(n);
        unknown.config.flags = 0;
        assert!(reached(&unknown, Owner::Host, None), "needs no detector");
        assert!(!reached(&unknown, Owner::Pod(NETNS), None), "no detector: the Local set (B80)");
    }
    both(check::<lb_common::family::V4>, check::<lb_common::family::V6>);
}

#[test]
fn a_stream_in_one_direction_keeps_its_sources_name() {
    let n = net4();
    let mut machine = world(&n).machine();
    let config = machine.config;
    let (addr, port) = (<lb_common::family::V4 as Side>::addr(n.cluster), 53u16.to_be_bytes());
    let sent =
        sock::sendmsg::<lb_common::family::V4>(&mut machine.env, &config, Owner::Host, 7, None, addr, port);
    let SockVerdict::Deliver { addr: to, port: to_port, .. } = sent else { panic!("{sent:?}") };
    for _ in 0..10 {
        machine.env.advance(100);
        let name = sock::recvmsg::<lb_common::family::V4>(&mut machine.env, 7, to, to_port);
        assert_eq!(name.map(|(_, port)| port), Some(port));
    }
    let now = lb_common::env::ticks(machine.env.now_ns);
    let last = machine.env.correspondents.iter().find(|(key, _)| key.direction == sock::REPLY);
    assert_eq!(last.map(|(_, value)| value.last_tick), Some(now), "the sweep must not take it");
    let _ = UDP;
}

/// Hooks ask the role filter first, and then nothing else: that must be the answer of the whole decision.
#[test]
fn i4_i5_what_cannot_be_a_frontend_is_left_whoever_asks() {
    fn check<F: Side>(n: &Net) {
        let (w, _) = sticky(n);
        let mut machine = w.machine();
        sources::<F>(&mut machine, n);
        let frontends = [n.cluster, n.empty, n.itp, n.external, n.vip, n.node, loopback(n)];
        let others = [n.client, n.stranger, n.pod, n.remote, n.local, n.nobody];
        for address in frontends.into_iter().chain(others) {
            let roles = Env::<F>::roles(&machine.env, F::addr(address));
            let may_be = sock::may_be_frontend(roles);
            assert!(may_be || !frontends.contains(&address), "{address}");
            for (owner, port) in [Owner::Host, Owner::Pod(NETNS)]
                .into_iter()
                .flat_map(|owner| [80, PORT, NODE_PORT, 1].map(|port| (owner, port)))
            {
                let before = machine.env.counters.clone();
                let verdict = open::<F>(&mut machine, owner, None, (address, port));
                if !may_be {
                    assert_eq!(verdict, SockVerdict::Leave, "{owner:?} {address} {port}");
                    assert_eq!(before, machine.env.counters, "{owner:?} {address} {port}");
                }
            }
        }
        // the test is about something
        assert!(!sock::may_be_frontend(Env::<F>::roles(&machine.env, F::addr(n.stranger))));
    }
    both(check::<lb_common::family::V4>, check::<lb_common::family::V6>);
}

/// What happens to a service port with affinity.
#[derive(Clone, Copy, Debug)]
enum Happens {
    /// A new connection of client number .0, by way number .1.
    Connect(usize, usize),
    /// So many seconds pass.
    Wait(u64),
    /// An endpoint leaves the service port and comes back at once.
    Return(usize),
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        8 => (0usize..4, 0usize..6).prop_map(|(client, way)| Happens::Connect(client, way)),
        1 => (1u64..70).prop_map(Happens::Wait),
        1 => (0usize..8).prop_map(Happens::Return),
    ]
}

/// One client by one way: the id of its backend.
fn come<F: Side>(machine: &mut Machine, n: &Net, client: usize, way: usize, port: u16, ids: &[u32]) -> u32 {
    let frontends = [(n.cluster, PORT), (n.external, PORT), (n.node, NODE_PORT)];
    let to = frontends[way % 3];
    let of = |machine: &Machine, address: IpAddr| {
        let rows = &F::side(&machine.env).backends;
        *ids.iter().find(|id| F::ip(rows[*id].addr) == address).expect("one of ours")
    };
    match client {
        // the host: a socket without, or with, an address
        0 => {
            let bound = (way >= 3).then_some(n.node);
            backend(open::<F>(machine, Owner::Host, bound, to)).expect("a backend")
        }
        // a pod, by its packets, or by its bound socket
        1 if way >= 3 => backend(open::<F>(machine, Owner::Pod(NETNS), Some(n.pod), to)).expect("a backend"),
        1 => {
            let address = syn::<F>(machine, POD, n.pod, port, to).expect("balanced");
            of(machine, address)
        }
        // outside
        _ => {
            let from = if client == 2 { n.client } else { n.stranger };
            let address = syn::<F>(machine, UPLINK, from, port, to).expect("balanced");
            of(machine, address)
        }
    }
}

fn follows_the_model<F: Side>(n: &Net, story: &[Happens], seed: u64) {
    let (w, ids) = sticky(n);
    let mut machine = w.machine();
    machine.env.seed.set(seed);
    sources::<F>(&mut machine, n);
    // client -> (backend, second of its last new connection): B63-B68 in five lines
    let mut model = BTreeMap::<usize, (u32, u64)>::new();
    let mut second = 0;
    for (i, event) in story.iter().enumerate() {
        match *event {
            Happens::Wait(seconds) => {
                second += seconds;
                machine.env.now_ns += seconds * 1_000_000_000;
            }
            Happens::Return(which) => {
                let id = ids[which];
                *F::side_mut(&mut machine.env).generations.entry(id).or_default() += 1;
                model.retain(|_, (backend, _)| *backend != id);
            }
            Happens::Connect(client, way) => {
                // another source port each time, or it would be the flow that is there already
                let id = come::<F>(&mut machine, n, client, way, 20_000 + i as u16, &ids);
                if let Some((known, last)) = model.get(&client)
                    && second - last < u64::from(TIMEOUT_S)
                {
                    assert_eq!(id, *known, "event {i}: client {client} by way {way}");
                }
                model.insert(client, (id, second));
            }
        }
    }
}

proptest! {
    /// B63, B65, B66, B68 on all hooks: stickiness is shared by frontends, sockets and packets, ends with its timeout
    /// or its endpoint, and nothing else ends it.
    #[test]
    fn b63_b65_b66_b68_affinity_is_one_table_for_all_hooks(
        story in proptest::collection::vec(happens(), 1..60), seed: u64, v6: bool
    ) {
        if v6 {
            follows_the_model::<lb_common::family::V6>(&net6(), &story, seed);
        } else {
            follows_the_model::<lb_common::family::V4>(&net4(), &story, seed);
        }
    }
}
