//! The golden packets of `lb_common::testing` through the programs themselves (`BPF_PROG_TEST_RUN`), each story in
//! maps of its own. Needs root and the BPF object.
//!
//! What test_run cannot say, and is skipped, counted: packets without an Ethernet header (it always puts one in front
//! of a TC program's packet), and the passing of time (the programs read the kernel's clock).

#[path = "../lab/mod.rs"]
mod lab;

use std::collections::BTreeMap;

use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, MapData, PerCpuArray};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use aya::{Ebpf, EbpfLoader, Pod};
use lab::{Lab, sh};
use lb_agent::datapath::ObjectSource;
use lb_common::abi::{
    CT_REPLIED, CtKey4, CtKey6, CtValue4, CtValue6, PairFilter, ROLE_BACKEND, ROLE_FRONTEND, ROLE_SIZE,
    RoleFilter, names,
};
use lb_common::counter::{COUNTERS, Counter};
use lb_common::env::Hook;
use lb_common::family::V4;
use lb_common::flow::{Role, tag};
use lb_common::packet::{ACK, FIN, SYN, TCP, UDP};
use lb_common::testing::golden::{Event, Golden, goldens, net4, world};
use lb_common::testing::packets::at;
use lb_common::testing::world::{BARE, POD, UPLINK, World};
use lb_common::testing::{Direction, Expect, PacketBuilder};

/// `TCX_NEXT`, `TC_ACT_SHOT`, `TC_ACT_REDIRECT`: all that a program may return (invariant I3).
const NEXT: i32 = -1;
const SHOT: i32 = 2;
const REDIRECT: i32 = 7;

/// Devices with the numbers that the worlds use, in the test's own network namespace.
fn devices() {
    for (name, index) in [("uplink", UPLINK), ("pod", POD), ("bare", BARE)] {
        sh(&format!("ip link add {name} index {index} type veth peer name {name}-peer"));
    }
}

struct Kernel {
    ebpf: Ebpf,
}

/// Fate, bytes, and time of one packet, in nanoseconds.
struct Ran {
    code: i32,
    frame: Vec<u8>,
    ns: u128,
}

impl Kernel {
    /// Loads the TC programs with maps of their own and writes a world into these.
    fn new(lab: &Lab, world: &World) -> Kernel {
        Kernel::with_flows(lab, world, 1024, 1024)
    }

    /// The same with room for so many established and young entries.
    fn with_flows(lab: &Lab, world: &World, established: u32, young: u32) -> Kernel {
        let ObjectSource::File(object) = lab.options().object else { unreachable!("the lab names a file") };
        let mut loader = EbpfLoader::new();
        for (name, entries) in [
            (names::LB_CT4, established),
            (names::LB_CT6, established),
            (names::LB_EM4, young),
            (names::LB_EM6, young),
            (names::LB_AFF4, 1024),
            (names::LB_AFF6, 1024),
        ] {
            loader.map_max_entries(name, entries);
        }
        let mut ebpf = loader.load_file(object).expect("the object loads");
        for name in [names::LB_TC_IN, names::LB_TC_OUT] {
            let program: &mut SchedClassifier =
                ebpf.program_mut(name).expect(name).try_into().expect("a TC program");
            program.load().expect(name);
        }
        let mut kernel = Kernel { ebpf };
        kernel.fill(world);
        kernel
    }

    fn hash<K: Pod, V: Pod>(&mut self, name: &str, rows: impl IntoIterator<Item = (K, V)>) {
        let mut map: HashMap<&mut MapData, K, V> =
            self.ebpf.map_mut(name).expect(name).try_into().expect(name);
        for (key, value) in rows {
            map.insert(key, value, 0).expect(name);
        }
    }

    fn keys<K: Pod, V: Pod>(&self, name: &str) -> usize {
        let map: HashMap<&MapData, K, V> = self.ebpf.map(name).expect(name).try_into().expect(name);
        map.keys().count()
    }

    fn array<V: Pod>(&mut self, name: &str, rows: impl IntoIterator<Item = (u32, V)>) {
        let mut map: Array<&mut MapData, V> = self.ebpf.map_mut(name).expect(name).try_into().expect(name);
        for (index, value) in rows {
            map.set(index, value, 0).expect(name);
        }
    }

    fn trie<K: Pod>(&mut self, name: &str, rows: &[(u32, K)]) {
        let mut map: LpmTrie<&mut MapData, K, u32> =
            self.ebpf.map_mut(name).expect(name).try_into().expect(name);
        for (length, key) in rows {
            map.insert(&Key::new(*length, *key), 1, 0).expect(name);
        }
    }

    /// Says of every two addresses that a flow was made between them, as `claim` would have.
    fn mark_pairs(&mut self) {
        let filter = PairFilter { pairs: [1; ROLE_SIZE] };
        let map = self.ebpf.map_mut(names::LB_PAIRS).expect("pairs");
        let mut map: Array<&mut MapData, PairFilter> = map.try_into().expect("pairs");
        map.set(0, filter, 0).expect("pairs");
    }

    /// By reference: a filter is a quarter of a megabyte, and a test's stack two.
    fn filter(&mut self, w: &World) {
        let mut filter = RoleFilter { roles: [0; ROLE_SIZE] };
        filter.roles.copy_from_slice(&w.filter());
        let map = self.ebpf.map_mut(names::LB_ROLES).expect("roles");
        let mut map: Array<&mut MapData, RoleFilter> = map.try_into().expect("roles");
        map.set(0, filter, 0).expect("roles");
    }

    fn fill(&mut self, w: &World) {
        let w = w.clone();
        self.filter(&w);
        self.hash(names::LB_SVC4, w.svc4);
        self.hash(names::LB_SVC6, w.svc6);
        self.hash(names::LB_NODE4, w.node4);
        self.hash(names::LB_NODE6, w.node6);
        self.hash(names::LB_IF, w.ifaces);
        self.trie(names::LB_CIDR4, &w.cidr4);
        self.trie(names::LB_CIDR6, &w.cidr6);
        self.trie(names::LB_RANGE4, &w.range4);
        self.trie(names::LB_RANGE6, &w.range6);
        self.array(names::LB_BE4, w.be4);
        self.array(names::LB_BE6, w.be6);
        self.array(names::LB_GEN4, w.gen4);
        self.array(names::LB_GEN6, w.gen6);
        self.array(names::LB_SLOTS, w.slots);
        self.array(names::LB_CONFIG, [(0, w.config)]);
    }

    /// Every counter that is not zero, over all CPUs.
    fn counters(&self) -> BTreeMap<u32, u64> {
        let map: PerCpuArray<&MapData, u64> =
            self.ebpf.map(names::LB_COUNTERS).expect("counters").try_into().expect("counters");
        let sum = |number| map.get(&number, 0).expect("a counter").iter().sum();
        (0..COUNTERS as u32).map(|number| (number, sum(number))).filter(|(_, sum)| *sum != 0).collect()
    }

    /// Entries of all tables that the kernel writes.
    fn kernel_entries(&self) -> usize {
        use lb_common::abi::{AffKey4, AffKey6, AffValue};
        self.keys::<CtKey4, CtValue4>(names::LB_CT4)
            + self.keys::<CtKey4, CtValue4>(names::LB_EM4)
            + self.keys::<CtKey6, CtValue6>(names::LB_CT6)
            + self.keys::<CtKey6, CtValue6>(names::LB_EM6)
            + self.keys::<AffKey4, AffValue>(names::LB_AFF4)
            + self.keys::<AffKey6, AffValue>(names::LB_AFF6)
    }

    fn run(&self, direction: Direction, hook: Hook, frame: &[u8], repeat: u32) -> Ran {
        let name = match direction {
            Direction::In => names::LB_TC_IN,
            Direction::Out => names::LB_TC_OUT,
        };
        let program: &SchedClassifier =
            self.ebpf.program(name).expect(name).try_into().expect("a TC program");
        // struct __sk_buff, of which test_run takes ingress_ifindex and ifindex
        let mut context = [0u8; 192];
        context[36..40].copy_from_slice(&hook.ingress_ifindex.to_ne_bytes());
        context[40..44].copy_from_slice(&hook.ifindex.to_ne_bytes());
        let mut out = vec![0; 4096];
        let ran = program
            .test_run(TestRunOptions {
                data_in: Some(frame),
                data_out: Some(&mut out),
                ctx_in: Some(&context),
                repeat,
                ..TestRunOptions::new()
            })
            .expect("BPF_PROG_TEST_RUN");
        out.truncate(ran.data_size_out as usize);
        Ran { code: ran.return_value as i32, frame: out, ns: ran.duration.as_nanos() }
    }
}

/// Entries made and deleted are counted by the maps' side alone: they are no part of the story.
fn is_bookkeeping(number: u32) -> bool {
    (Counter::Established4Made as u32..=Counter::Established6Gone as u32).contains(&number)
}

/// Why test_run cannot play a story; `None` = it can.
fn skipped(golden: &Golden) -> Option<&'static str> {
    if golden.walks().any(|walk| walk.hook.l3 == 0) {
        return Some("test_run has no packets without an Ethernet header");
    }
    if golden.events.iter().any(|event| matches!(event, Event::Advance(_))) {
        return Some("a kernel's clock cannot be moved");
    }
    None
}

fn play(kernel: &mut Kernel, golden: &Golden, faults: &mut Vec<String>) {
    for (number, event) in golden.events.iter().enumerate() {
        let walk = match event {
            Event::Packet(walk) => walk,
            Event::Advance(_) => unreachable!("skipped"),
            Event::Generation { v6, id, value } => {
                kernel.array(if *v6 { names::LB_GEN6 } else { names::LB_GEN4 }, [(*id, *value)]);
                continue;
            }
        };
        let what = format!("{} ({}), event {number}", golden.name, golden.rules);
        let before = kernel.counters();
        let ran = kernel.run(walk.direction, walk.hook, &walk.frame, 1);
        let (code, bytes) = match &walk.expect {
            Expect::Pass => (NEXT, &walk.frame),
            Expect::Rewritten(bytes) => (NEXT, bytes),
            Expect::Drop => (SHOT, &walk.frame),
            Expect::Reply(bytes) => (REDIRECT, bytes),
        };
        if ran.code != code {
            faults.push(format!("{what}: returned {}, not {code}", ran.code));
        }
        if &ran.frame != bytes {
            faults.push(format!("{what}:\n  got {:02x?}\n want {bytes:02x?}", ran.frame));
        }
        let moved: BTreeMap<u32, u64> = kernel
            .counters()
            .into_iter()
            .map(|(number, count)| (number, count - before.get(&number).copied().unwrap_or(0)))
            .filter(|(number, count)| *count != 0 && !is_bookkeeping(*number))
            .collect();
        let wanted: BTreeMap<u32, u64> =
            walk.counters.iter().map(|(counter, count)| (*counter as u32, *count)).collect();
        if moved != wanted {
            let name = |set: &BTreeMap<u32, u64>| {
                let name = |(number, count): (&u32, &u64)| {
                    format!("{} +{count}", Counter::ALL.get(*number as usize).map_or("?", |c| c.name()))
                };
                set.iter().map(name).collect::<Vec<_>>().join(", ")
            };
            faults.push(format!("{what}: counters [{}], not [{}]", name(&moved), name(&wanted)));
        }
    }
}

/// The same table as lb-common's test `golden`, in the kernel: verdicts (I3), bytes, counters.
#[test]
fn golden_packets_walk_the_same_in_the_kernel() {
    lab::run(|lab| {
        devices();
        let (mut faults, mut played, mut skips) = (Vec::new(), 0, BTreeMap::<_, usize>::new());
        for golden in goldens() {
            if let Some(why) = skipped(&golden) {
                *skips.entry(why).or_default() += 1;
                continue;
            }
            play(&mut Kernel::new(lab, &golden.world), &golden, &mut faults);
            played += 1;
        }
        for (why, count) in skips {
            println!("SKIPPED: {count} golden stories: {why}");
        }
        println!("{played} golden stories");
        assert!(faults.is_empty(), "{} faults\n{}", faults.len(), faults.join("\n"));
        assert!(played > 50);
    });
}

/// I3: with every golden packet the programs return nothing but NEXT, SHOT and REDIRECT: `TC_ACT_OK` (0) would end
/// the chain of programs and silently bypass the next one. One set of maps, so each packet also meets others' flows.
#[test]
fn i3_no_program_ends_the_chain() {
    lab::run(|lab| {
        devices();
        let all = goldens();
        let kernel = Kernel::new(lab, &all[0].world);
        let mut packets = 0;
        for golden in &all {
            for walk in golden.walks().filter(|walk| walk.hook.l3 != 0) {
                for direction in [Direction::In, Direction::Out] {
                    let code = kernel.run(direction, walk.hook, &walk.frame, 1).code;
                    assert!([NEXT, SHOT, REDIRECT].contains(&code), "{}: {direction:?} {code}", golden.name);
                    packets += 1;
                }
            }
        }
        assert!(packets > 300, "{packets}");
    });
}

/// I5: a packet that is not ours leaves every table and every counter as it was.
#[test]
fn i5_a_packet_that_is_not_ours_changes_nothing() {
    lab::run(|lab| {
        devices();
        for golden in goldens().iter().filter(|golden| golden.name.starts_with("not_ours")) {
            let kernel = Kernel::new(lab, &golden.world);
            for walk in golden.walks() {
                let ran = kernel.run(walk.direction, walk.hook, &walk.frame, 1);
                assert_eq!((ran.code, &ran.frame), (NEXT, &walk.frame));
            }
            assert_eq!(kernel.kernel_entries(), 0);
            assert!(kernel.counters().is_empty());
        }
    });
}

/// Information, never asserted: nanoseconds per packet, 100,000 times the same one. An established flow is a pair of
/// entries that rewrite to each other, so that each run finds what the one before it left.
#[test]
fn nanoseconds_per_packet() {
    const REPEAT: u32 = 100_000;
    lab::run(|lab| {
        devices();
        let n = net4();
        let mut world = world(&n);
        for ip in [n.remote, n.external] {
            world.role(ip, ROLE_FRONTEND | ROLE_BACKEND);
        }
        let mut kernel = Kernel::new(lab, &world);
        let hook = Hook { l3: 14, ifindex: UPLINK, ingress_ifindex: UPLINK };
        let (a, b) = (at(n.client, 40000), at(n.stranger, 80));
        for direction in [Direction::In, Direction::Out] {
            let frame = PacketBuilder::tcp(a, b, ACK).build();
            let ns = kernel.run(direction, hook, &frame, REPEAT).ns;
            println!("not ours, {direction:?}: {ns} ns");
        }
        for (direction, position, role) in
            [(Direction::In, 0, Role::DnatForward), (Direction::Out, 1, Role::SnatForward)]
        {
            for proto in [TCP, UDP] {
                // a client port per direction: the entries of one flow are not those of another
                let a = at(n.client, 40001 + u16::from(position));
                let ends = [at(n.external, 80), at(n.remote, 8080)];
                for (from, to) in [(ends[0], ends[1]), (ends[1], ends[0])] {
                    let (
                        std::net::SocketAddr::V4(client),
                        std::net::SocketAddr::V4(from),
                        std::net::SocketAddr::V4(to),
                    ) = (a, from, to)
                    else {
                        unreachable!("IPv4")
                    };
                    let key = CtKey4 {
                        src: client.ip().octets().into(),
                        dst: from.ip().octets().into(),
                        sport: client.port().to_be_bytes(),
                        dport: from.port().to_be_bytes(),
                        proto,
                        position,
                        _pad: [0; 2],
                    };
                    let dst = to.ip().octets().into();
                    let dport = to.port().to_be_bytes();
                    let value = CtValue4 {
                        src: key.src,
                        dst,
                        sport: key.sport,
                        dport,
                        addr_delta: lb_common::csum::addr_delta::<V4>([key.src, key.dst], [key.src, dst]),
                        port_delta: lb_common::csum::port_delta([key.sport, key.dport], [key.sport, dport]),
                        client_port: key.sport,
                        aux_addr: dst,
                        aux_port: dport,
                        backend: 1,
                        generation: world.gen4[0].1,
                        tag: tag(&key),
                        flags: CT_REPLIED,
                        role: role as u8,
                        ..CtValue4::default()
                    };
                    kernel.hash(names::LB_CT4, [(key, value)]);
                }
                kernel.mark_pairs();
                let frame = PacketBuilder {
                    kind: ACK,
                    payload: vec![0; 64],
                    ..PacketBuilder::new(proto, a, ends[0])
                };
                let once = kernel.run(direction, hook, &frame.build(), 1).frame;
                assert_eq!(once, frame.between(a, ends[1]).build(), "the pair rewrites");
                let ns = kernel.run(direction, hook, &frame.build(), REPEAT).ns;
                println!("established IPv4 flow, protocol {proto}, {direction:?}: {ns} ns");
            }
        }
    });
}

/// Information, never asserted: what the packets of a short connection to a ClusterIP cost, while 20,000 such pass through
/// young tables that are much smaller.
#[test]
fn nanoseconds_of_a_connections_life() {
    const CONNECTIONS: u16 = 20_000;
    lab::run(|lab| {
        devices();
        let n = net4();
        let kernel = Kernel::with_flows(lab, &world(&n), 32_768, 8192);
        let (front, backend) = (at(n.cluster, 80), at(n.remote, 8080));
        let request = |direction| match direction {
            Direction::In => (Hook { l3: 14, ifindex: POD, ingress_ifindex: POD }, front),
            Direction::Out => (Hook { l3: 14, ifindex: UPLINK, ingress_ifindex: POD }, backend),
        };
        let reply = |direction| match direction {
            Direction::In => Hook { l3: 14, ifindex: UPLINK, ingress_ifindex: UPLINK },
            Direction::Out => Hook { l3: 14, ifindex: POD, ingress_ifindex: UPLINK },
        };
        let packets = [
            ("SYN", true, SYN),
            ("SYN ACK", false, SYN | ACK),
            ("third", true, ACK),
            ("request", true, ACK),
            ("answer", false, ACK),
            ("client's FIN", true, FIN | ACK),
            ("backend's FIN", false, FIN | ACK),
            ("last", true, ACK),
        ];
        let mut times = vec![Vec::new(); 2 * packets.len()];
        for number in 0..CONNECTIONS {
            let client = at(n.pod, 20_000 + number);
            for (at, (what, asks, flags)) in packets.into_iter().enumerate() {
                for (side, direction) in [Direction::In, Direction::Out].into_iter().enumerate() {
                    let (hook, from, to) = if asks {
                        let (hook, to) = request(direction);
                        (hook, client, to)
                    } else {
                        (reply(direction), backend, client)
                    };
                    let ran = kernel.run(direction, hook, &PacketBuilder::tcp(from, to, flags).build(), 1);
                    assert_eq!(ran.code, NEXT, "{what} of connection {number}");
                    times[2 * at + side].push(ran.ns);
                }
            }
        }
        let mut sum = 0;
        for (number, times) in times.iter_mut().enumerate() {
            times.sort_unstable();
            let (what, ..) = packets[number / 2];
            let side = if number % 2 == 0 { "in" } else { "out" };
            let mean = times.iter().sum::<u128>() / u128::from(CONNECTIONS);
            println!("{what}, {side}: median {} ns, mean {mean}", times[times.len() / 2]);
            sum += times[times.len() / 2];
        }
        println!("all of it: {sum} ns by medians");
    });
}
