//! Many masqueraded flows at once: made by the XDP program itself (`BPF_PROG_TEST_RUN`: SYN, answer, third packet), in
//! the tables that the agent makes, counted by its sweep. Needs root and the BPF object.
//!
//! 100,000 flows always; `a_million_flows` is ignored unless it is named: `cargo xtask bench capacity`.

mod lab;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use lab::{Lab, link_ids, sh};
use lb_agent::apply::Applier;
use lb_agent::attachset::attach_set;
use lb_agent::datapath::Datapath;
use lb_agent::datapath::memory::mebibytes;
use lb_agent::datapath::sizes::{MAX_FLOWS, MAX_FLOWS_IPV6};
use lb_agent::desired::{Changes, Desired};
use lb_agent::gc::alerts::{About, alerts};
use lb_agent::gc::{Occupancy, Sweeper, Timeouts};
use lb_agent::kernel::Usage;
use lb_agent::model::Family;
use lb_common::abi::{NH_PORT, NextHop, ROLE_SNAT, SVC_EXTERNAL, SVC_HAS_ANY, neighbour_row, port_row};
use lb_common::counter::Counter;
use lb_common::family::Ip6;
use lb_common::packet::{ACK, SYN, TCP};
use lb_common::testing::PacketBuilder;
use lb_common::testing::packets::NODE_MAC;
use lb_common::testing::world::World;

const ROUTER: [u8; 6] = [2, 0, 0, 0, 0, 9];
const FRONT: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
const SNAT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const XDP_TX: u32 = 3;
/// The pool of a node with the usual ephemeral range.
const POOL: (u16, u16) = (1024, 29_999);
const PORTS: u32 = POOL.1 as u32 - POOL.0 as u32 + 1;

/// A node with XDP on its one uplink and a Service with so many backends on other nodes.
struct Node {
    datapath: Datapath,
    program: OwnedFd,
    ifindex: u32,
    sweeper: Sweeper,
    /// The packet that is patched: a correct checksum is nobody's business here, a correct change of it is, and that is
    /// the golden packets'.
    frame: Vec<u8>,
}

impl Node {
    fn new(lab: &Lab, max_flows: u32, backends: u8) -> Node {
        let mac = |bytes: [u8; 6]| bytes.map(|byte| format!("{byte:02x}")).join(":");
        for command in [
            &format!("ip link add up0 address {} type veth peer name up1", mac(NODE_MAC)),
            "ip link set up0 up",
            "ip link set up1 up",
            &format!("ip address add {SNAT}/24 dev up0"),
            &format!("ip neigh replace 192.0.2.1 lladdr {} dev up0 nud permanent", mac(ROUTER)),
            "ip route add default via 192.0.2.1",
        ] {
            sh(command);
        }
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("forwarding");
        let mut options = lab.options();
        assert!(options.sizes.set(MAX_FLOWS, max_flows) && options.sizes.set(MAX_FLOWS_IPV6, 8192));
        let mut datapath = Datapath::open(&options).expect("open");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let net = runtime.block_on(lb_agent::net::snapshot()).expect("the node's network");
        let ifindex = *net.links.iter().find(|(_, link)| link.name == "up0").expect("up0").0;
        let mut set = attach_set(&net);
        set.get_mut(&ifindex).expect("up0 is an uplink").xdp = true;
        let report = datapath.attach(&net, &set);
        assert!(report.errors.is_empty() && report.refused.is_empty(), "{report:?}");
        let mut applier = Applier::new(datapath.maps().expect("the maps")).expect("reading");
        let report = applier.apply(&desired(ifindex, backends), &Changes::All);
        assert!(report.complete(), "{:?}", report.errors);
        let (_, id) = link_ids(&lab.links().join(format!("xdp-{ifindex}")));
        let sweeper = Sweeper::open(datapath.pin_folder(), Timeouts::default()).expect("the flow tables");
        let packet = PacketBuilder::tcp((SNAT, 1).into(), (FRONT, 80).into(), SYN);
        let frame = packet.with(|p| p.macs = [NODE_MAC, ROUTER]).build();
        Node { datapath, program: program(id), ifindex, sweeper, frame }
    }

    /// Sends a packet through the program; what left, if it was sent on.
    fn send(
        &mut self,
        from: (Ipv4Addr, u16),
        to: (Ipv4Addr, u16),
        flags: u8,
    ) -> Option<[(Ipv4Addr, u16); 2]> {
        for (start, (ip, port)) in [(0, from), (1, to)] {
            self.frame[26 + 4 * start..30 + 4 * start].copy_from_slice(&ip.octets());
            self.frame[34 + 2 * start..36 + 2 * start].copy_from_slice(&port.to_be_bytes());
        }
        self.frame[47] = flags;
        let (code, out) = test_run(&self.program, &self.frame, self.ifindex);
        let end = |start: usize| {
            let ip = <[u8; 4]>::try_from(&out[26 + 4 * start..30 + 4 * start]).expect("four bytes");
            (Ipv4Addr::from(ip), u16::from_be_bytes([out[34 + 2 * start], out[35 + 2 * start]]))
        };
        (code == XDP_TX).then(|| [end(0), end(1)])
    }

    /// Opens connection `number`: its backend and its source port there; `None`: XDP left it to TC.
    fn open(&mut self, number: u32) -> Option<[(Ipv4Addr, u16); 2]> {
        let client = (Ipv4Addr::from(0x0a00_0000 + number / 16), 40_000 + (number % 16) as u16);
        let [source, backend] = self.send(client, (FRONT, 80), SYN)?;
        let back = self.send(backend, source, SYN | ACK);
        assert_eq!(back, Some([(FRONT, 80), client]), "the answer to flow {number}");
        assert_eq!(
            self.send(client, (FRONT, 80), ACK),
            Some([source, backend]),
            "flow {number}, third packet"
        );
        Some([source, backend])
    }

    fn counter(&self, counter: Counter) -> u64 {
        self.datapath.counters().expect("counters")[counter as usize]
    }

    /// Turns until every table was seen: what was found, and the longest turn.
    fn sweep(&mut self) -> (BTreeMap<&'static str, Occupancy>, Duration) {
        let (mut found, mut longest) = (BTreeMap::new(), Duration::ZERO);
        // twice: the first time round it may have been in the middle
        for _ in 0..2 {
            let mut seen = BTreeMap::new();
            while seen.len() < 5 {
                let begin = Instant::now();
                let tables = self.sweeper.turn(4096).expect("a turn");
                longest = longest.max(begin.elapsed());
                seen.extend(tables.into_iter().map(|table| (table.table, table)));
            }
            found = seen;
        }
        (found, longest)
    }
}

fn desired(ifindex: u32, backends: u8) -> Desired {
    let mut world = World::default();
    let ids: Vec<u32> =
        (0..backends).map(|n| world.backend([198, 51, 100, n + 1].into(), 8080, TCP, 0)).collect();
    let service = world.service(SVC_EXTERNAL | SVC_HAS_ANY, &ids, &[]);
    world.frontend(FRONT.into(), 80, TCP, service);
    world.iface(ifindex, 0, &[SNAT.into()]);
    world.pool(POOL.0, POOL.1);
    world.role(SNAT.into(), ROLE_SNAT);
    let port = NextHop { ifindex, flags: NH_PORT, mtu: 1500, dmac: [0; 6], smac: NODE_MAC };
    let mut gateway = [0; 16];
    gateway[..4].copy_from_slice(&[192, 0, 2, 1]);
    let row = neighbour_row(ifindex, &Ip6 { addr: gateway });
    let mut roles: BTreeMap<IpAddr, u8> = BTreeMap::new();
    for (ip, role) in &world.roles {
        *roles.entry(*ip).or_default() |= role;
    }
    Desired {
        config: world.config,
        services4: world.svc4.into_iter().collect(),
        backends4: world.be4.into_iter().collect(),
        generations4: world.gen4.into_iter().collect(),
        slots: world.slots.into_iter().collect(),
        interfaces: world.ifaces.into_iter().collect(),
        nexthops: [(port_row(ifindex), port), (row, NextHop { flags: 0, dmac: ROUTER, ..port })].into(),
        roles: roles.into_iter().collect(),
        ..Desired::default()
    }
}

/// A descriptor of a loaded program.
fn program(id: u32) -> OwnedFd {
    let all = aya::programs::loaded_programs();
    let info = all.map(|info| info.expect("a program")).find(|info| info.id() == id).expect("the program");
    use std::os::fd::AsFd as _;
    info.fd().expect("its descriptor").as_fd().try_clone_to_owned().expect("a copy")
}

/// `bpf_attr.test`.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    code: u32,
    size_in: u32,
    size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_in: u32,
    context_out: u32,
    context: u64,
    context_back: u64,
}

/// The program's verdict, and the packet behind it.
fn test_run(program: &OwnedFd, frame: &[u8], ifindex: u32) -> (u32, [u8; 128]) {
    const BPF_PROG_TEST_RUN: libc::c_long = 10;
    let mut out = [0; 128];
    // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index
    let context: [u32; 5] = [0, frame.len() as u32, 0, ifindex, 0];
    let mut attributes = TestRun {
        program: program.as_raw_fd() as u32,
        size_in: frame.len() as u32,
        size_out: out.len() as u32,
        data_in: frame.as_ptr() as u64,
        data_out: out.as_mut_ptr() as u64,
        repeat: 1,
        context_in: size_of_val(&context) as u32,
        context: context.as_ptr() as u64,
        ..TestRun::default()
    };
    // SAFETY: the attributes are a prefix of `union bpf_attr`; every buffer they name lives and has the size given.
    let done =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut attributes, size_of::<TestRun>()) };
    assert_eq!(done, 0, "BPF_PROG_TEST_RUN: {}", std::io::Error::last_os_error());
    (attributes.code, out)
}

/// CPU time of this thread.
fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Resident memory of this process, MiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc/self/status");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS");
    line.split_whitespace().nth(1).expect("kB").parse::<u64>().expect("kB") / 1024
}

/// Opens so many connections to 64 backends, and looks at what is there.
///
/// The tables are as large as docs/operations.md says that so many flows need (2,359,296 entries for a million). No sweep
/// comes while they are opened, tens of thousands a second: the young table, a quarter as large, is full of the copies that
/// promotions leave, and evicts the oldest of these.
fn opens(lab: &Lab, flows: u32) {
    let mut node = Node::new(lab, flows / 1000 * 2359, 64);
    let (before, _) = node.sweep();
    assert_eq!(before["LB_CT4"].met, 0);
    let begin = Instant::now();
    let mut last = BTreeMap::new();
    for number in 0..flows {
        let ends = node.open(number).unwrap_or_else(|| panic!("flow {number} was left to TC"));
        last.insert(ends[1], (number, ends[0]));
    }
    let took = begin.elapsed();
    let (begin, spent, before) = (Instant::now(), cpu_time(), resident());
    let (found, longest) = node.sweep();
    println!(
        "{flows} flows in {:.1} s; two sweeps over all of it {} ms, {} ms of CPU time, longest turn {} ms; resident {before} \
         MiB before and {} MiB behind them",
        took.as_secs_f64(),
        begin.elapsed().as_millis(),
        (cpu_time() - spent).as_millis(),
        longest.as_millis(),
        resident(),
    );
    let table = found["LB_CT4"];
    assert_eq!((table.live, table.evicted), (u64::from(flows) * 2, 0), "{table:?}");
    assert_eq!(node.counter(Counter::FlowPromoted), u64::from(flows));
    assert_eq!(node.counter(Counter::DropSnatExhausted), 0);
    // by backend: all flows are there, and the draw was even
    let top = node.sweeper.ports(Family::V4).top().to_vec();
    let mean = f64::from(flows) / 64.0;
    let most = f64::from(top[0].1);
    assert!(
        most >= mean && most < mean * 1.0 + 6.0 * mean.sqrt(),
        "{most} flows to one backend, {mean} on average"
    );
    // still there: the last flow of each backend
    assert_eq!(last.len(), 64);
    for (backend, (number, source)) in last {
        let client = (Ipv4Addr::from(0x0a00_0000 + number / 16), 40_000 + (number % 16) as u16);
        assert_eq!(node.send(client, (FRONT, 80), ACK), Some([source, backend]));
    }
    let memory = node.datapath.memory();
    println!("memory: {} in all; {}", mebibytes(memory.total()), memory.largest(4));
}

#[test]
fn a_hundred_thousand_flows() {
    lab::run(|lab| opens(lab, 100_000));
}

#[test]
#[ignore = "half a minute and 0.5 GB: cargo xtask bench capacity"]
fn a_million_flows() {
    lab::run(|lab| opens(lab, 1_000_000));
}

/// One backend: up to 95 % of the pool every flow finds a port; it is told at 80 %, with the backend's name, and over
/// when the flows have ended.
#[test]
fn ports_that_run_out_are_told_of_in_time() {
    lab::run(|lab| {
        let mut node = Node::new(lab, 262_144, 1);
        let (mut flows, mut tried) = (Vec::new(), 0);
        let mut open = |node: &mut Node, share: u32| {
            let (from, to) = (tried, PORTS / 100 * share);
            // with 95 % taken one in 400 finds no port at XDP, and is left to TC, which tries as often again
            flows.extend((from..to).filter_map(|number| Some((number, node.open(number)?))));
            assert!(flows.len() as u32 + 6 > to, "{} flows of {to}", flows.len());
            tried = to;
        };
        let told = |node: &mut Node| {
            let (found, _) = node.sweep();
            let table = found["LB_CT4"];
            let usage = Usage {
                table: table.table,
                used: Some(table.live),
                capacity: u64::from(table.capacity),
                evicted: table.evicted,
            };
            alerts(&[usage], node.sweeper.ports(Family::V4).top(), PORTS, &[].into())
        };
        open(&mut node, 78);
        assert_eq!(told(&mut node), []);
        open(&mut node, 95);
        let found = told(&mut node);
        let [alert] = &found[..] else { panic!("{found:?}") };
        let backend: SocketAddr = ([198, 51, 100, 1], 8080).into();
        assert!(matches!(&alert.about, About::Ports(tuple) if tuple.backend == backend), "{alert:?}");
        let text = format!("backend {backend}/TCP from {SNAT}: 9");
        assert!(alert.text.starts_with(&text), "{}", alert.text);
        // all ports are taken in the end: what finds none is left to TC, which counts and drops it
        let mut number = PORTS / 100 * 95;
        let missed = loop {
            number += 1;
            if node.open(number).is_none() {
                break number;
            }
            assert!(number <= PORTS, "more flows than ports");
        };
        println!("the first flow without a port: {missed} of {PORTS}");
        assert!(missed > PORTS / 100 * 95);
        for (number, [source, backend]) in flows {
            let client = (Ipv4Addr::from(0x0a00_0000 + number / 16), 40_000 + (number % 16) as u16);
            node.send(client, (FRONT, 80), lb_common::packet::FIN | ACK);
            node.send(backend, source, lb_common::packet::FIN | ACK);
        }
        assert_eq!(told(&mut node), []);
    });
}
