//! `cargo xtask bench xdp`: what `lb_xdp` costs per packet, by `BPF_PROG_TEST_RUN` (scenario S1).
//!
//! test_run gives the program its own output again, so packets go round in a ring: what flow i makes of a packet is
//! the packet of flow i + 1, and every turn rewrites addresses, ports and checksums for real. A packet lives for 250
//! turns, then its hops are used up and the next call puts a fresh one in. The programs run in a network
//! namespace with a veth, a route and a neighbour, so that a flow's visit to the routes, once a second, is in it.
//!
//! Every call's last packet is compared with what the ring says (the gate); figures are CPU nanoseconds as the kernel
//! measures them, above those of a program that only passes, which runs in the same shuffled slices, twice (A/A).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, HashMap, MapData, PerCpuArray};
use aya::programs::{ProgramFd, Xdp};
use aya::{Ebpf, EbpfLoader, Pod};
use lb_common::abi::{
    CT_MASQ, CT_REPLIED, CT_XDP, CtKey, CtValue, NH_PORT, NextHop, PortRange, ROLE_FRONTEND, ROLE_SIZE,
    ROLE_SNAT, RoleFilter, SVC_HAS_ANY, names, neighbour_row, port_row,
};
use lb_common::counter::Counter;
use lb_common::env::ticks;
use lb_common::family::{Ip6, V4, V6};
use lb_common::flow::{Flow, Role};
use lb_common::packet::{ACK, SYN, TCP, UDP};
use lb_common::testing::packets::{at, checksums};
use lb_common::testing::world::World;
use lb_common::testing::{PacketBuilder, Side};

use super::{interval, median};
use crate::lab::netns::{inside, ip, sysctl};
use crate::lab::xdp::{attach, pass_program};
use crate::lab::{janitor, namespace};
use crate::paths;

/// Rings up to this size share one table.
const SMALL: usize = 100_000;
/// Turns of one packet: hops are 255 at first and 1 would go up.
const TURNS: u32 = 250;
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;
/// The device, its address, its neighbour.
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// Entries of the table of young flows.
const YOUNG: u64 = 131_072;
/// Source ports of the pool.
const POOL: PortRange = PortRange { min: 1024, max: 29_999 };

/// How much is measured.
#[derive(Clone, Copy, Debug)]
struct Effort {
    slices: usize,
    calls: usize,
    sizes: &'static [usize],
}

const WHOLE: Effort = Effort { slices: 24, calls: 200, sizes: &[1, 20_000, 1_000_000] };
const QUICK: Effort = Effort { slices: 16, calls: 60, sizes: &[1, 20_000] };

/// One line of the result.
#[derive(Debug, serde::Serialize)]
struct Row {
    case: String,
    flows: usize,
    /// Above the empty program, min / min and of the medians, ns.
    min_ns: f64,
    median_ns: f64,
    /// 95 % interval of the ratio of medians to the empty program's.
    ratio: [f64; 2],
    /// Turns that were measured.
    packets: u64,
}

/// Measures and prints a table; `json` gets the same for machines.
///
/// # Errors
/// When the object is missing, the kernel refuses, or a packet does not become what it should.
pub(crate) fn measure(quick: bool, json: Option<&Path>) -> Result<()> {
    let effort = if quick { QUICK } else { WHOLE };
    let tag = format!("lbbench-{}", std::process::id());
    janitor::watch_signals();
    let own = namespace(&tag, "ring")?;
    let mac = MAC.map(|byte| format!("{byte:02x}")).join(":");
    sysctl(&own, &[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")])?;
    ip(
        &own,
        &[
            format!("link add up0 address {mac} type veth peer name up1"),
            "link add up2 type veth peer name up3".into(),
            "link set up1 up".into(),
            "link set up0 up".into(),
            "address add 192.0.2.2/24 dev up0".into(),
            "address add 2001:db8:1::2/64 dev up0 nodad".into(),
            format!("neigh replace 192.0.2.1 lladdr {mac} dev up0 nud permanent"),
            format!("neigh replace 2001:db8:1::1 lladdr {mac} dev up0 nud permanent"),
            "route add default via 192.0.2.1".into(),
            "route add default via 2001:db8:1::1".into(),
        ],
    )?;
    let rows = inside(&own, || bench(&effort));
    janitor::clean();
    let (rows, noise, empty) = rows?;
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    println!(
        "    S1 lb_xdp, ns above the empty program ({empty:.0} ns; A/A x{noise:.3}), Linux {}{}",
        kernel.trim(),
        if (noise - 1.0).abs() > super::NOISE { " - void: the machine is too noisy" } else { "" }
    );
    println!("    {:34} {:>9} {:>7} {:>7}", "case", "flows", "min", "median");
    for row in &rows {
        println!("    {:34} {:>9} {:>7.0} {:>7.0}", row.case, row.flows, row.min_ns, row.median_ns);
    }
    if let Some(path) = json {
        let text = serde_json::json!({
            "scenario": "S1", "program": "lb_xdp", "kernel": kernel.trim(), "empty_ns": empty, "aa": noise,
            "date": jiff::Timestamp::now().to_string(), "rows": rows,
        });
        std::fs::write(path, serde_json::to_string_pretty(&text)? + "\n")
            .with_context(|| path.display().to_string())?;
    }
    Ok(())
}

fn bench(effort: &Effort) -> Result<(Vec<Row>, f64, f64)> {
    super::pin_to_one_core()?;
    let ifindex = ifindex("up0")?;
    let empty = pass_program()?;
    // test_run tells the kernel's dispatcher of a program that it does not know, for each call: 10 ms
    let _known = attach(&empty, self::ifindex("up2")?)?;
    let mut run = Run { effort: *effort, ifindex, empty, idle: Default::default(), rows: Vec::new() };
    let small: Vec<Ring> =
        effort.sizes.iter().filter(|flows| **flows <= SMALL).flat_map(|flows| run.rings(*flows)).collect();
    let mut kernel = Loaded::new(small.iter().map(|ring| ring.flows.max(2)).sum(), ifindex)?;
    for ring in &small {
        run.ring(ring, &mut kernel)?;
    }
    run.others(&mut kernel)?;
    drop(kernel);
    for flows in effort.sizes.iter().filter(|flows| **flows > SMALL) {
        // once each way: it is the table that costs, not the family
        for ring in run.rings(*flows).into_iter().filter(|ring| !ring.v6 && ring.proto == TCP) {
            run.ring(&ring, &mut Loaded::new(*flows, ifindex)?)?;
        }
    }
    Ok(run.result())
}

/// A run: slices of the empty program go with those of each case.
struct Run {
    effort: Effort,
    ifindex: u32,
    empty: OwnedFd,
    /// Costs of the empty program, two arms.
    idle: [Vec<f64>; 2],
    rows: Vec<(Row, Vec<f64>)>,
}

impl Run {
    fn rings(&self, flows: usize) -> Vec<Ring> {
        let mut rings = Vec::new();
        for (v6, proto) in [(false, TCP), (true, TCP), (false, UDP)] {
            for reply in [false, true] {
                rings.push(Ring { v6, proto, reply, flows, ifindex: self.ifindex });
            }
        }
        rings
    }

    /// Slices of both empty arms and of `call`, in random order; `calls` make a slice.
    fn slices(
        &mut self,
        case: String,
        flows: usize,
        calls: usize,
        mut call: impl FnMut() -> Result<f64>,
    ) -> Result<()> {
        // any frame: nothing looks at it
        let frame = PacketBuilder::tcp(at(ip4(1, 0), 1), at(ip4(1, 1), 1), ACK).build();
        let mut costs = Vec::new();
        for arm in super::order(self.effort.slices) {
            let mut slice = 0.0;
            for _ in 0..calls {
                slice += match arm {
                    0 | 1 => {
                        let ran = test_run(&self.empty, &frame, self.ifindex, TURNS)?;
                        ensure!(ran.code == XDP_PASS, "the empty program returned {}", ran.code);
                        ran.ns
                    }
                    _ => call()?,
                };
            }
            let cost = slice / calls as f64;
            self.idle.get_mut(arm).unwrap_or(&mut costs).push(cost);
        }
        let packets = (self.effort.slices * calls) as u64 * u64::from(TURNS);
        self.rows.push((Row { case, flows, min_ns: 0.0, median_ns: 0.0, ratio: [0.0; 2], packets }, costs));
        Ok(())
    }

    fn ring(&mut self, ring: &Ring, kernel: &mut Loaded) -> Result<()> {
        eprintln!("    {} with {} flows", ring.name(), ring.flows);
        if ring.v6 {
            ring.fill::<V6>(kernel)?
        } else {
            ring.fill::<V4>(kernel)?
        }
        let fd = kernel.fd()?;
        let mut place = 0;
        let mut call = || -> Result<f64> {
            let ran = test_run(&fd, &ring.packet(place, 255).build(), ring.ifindex, TURNS)?;
            let end = place + TURNS as usize;
            let want = ring.packet(end, 255 - TURNS as u8).build();
            ensure!(
                ran.code == XDP_TX && ran.frame == want,
                "{} at {place} of {}: code {}, got {:02x?}, wanted {want:02x?}",
                ring.name(),
                ring.flows,
                ran.code,
                ran.frame
            );
            checksums(&ran.frame, 14).map_err(anyhow::Error::msg)?;
            place = end % ring.flows.max(2);
            Ok(ran.ns)
        };
        // the whole ring once: every entry was visited
        for _ in 0..ring.flows.div_ceil(TURNS as usize) + 4 {
            call()?;
        }
        self.slices(ring.name(), ring.flows, self.effort.calls, call)
    }

    /// A packet that is not ours, and one that begins a flow.
    fn others(&mut self, kernel: &mut Loaded) -> Result<()> {
        let fd = kernel.fd()?;
        let ifindex = self.ifindex;
        let stranger = PacketBuilder::tcp(at(ip4(1, 0), 1234), at(IpAddr::from([198, 18, 0, 1]), 80), ACK);
        let stranger = stranger.with(|p| p.macs = [MAC, [2, 0, 0, 0, 0, 9]]).build();
        self.slices("not ours".into(), 0, self.effort.calls, || {
            let ran = test_run(&fd, &stranger, ifindex, TURNS)?;
            ensure!(ran.code == XDP_PASS && ran.frame == stranger, "a stranger's packet: {}", ran.code);
            Ok(ran.ns)
        })?;
        let mut flows = NewFlows { ifindex, place: 0 };
        // a flow takes two entries
        while kernel.counter(Counter::XdpFlow)? < YOUNG / 4 {
            flows.call(&fd)?;
        }
        let before = kernel.counter(Counter::XdpFlow)?;
        self.slices("new flow, table half full".into(), (YOUNG / 4) as usize, 3, || flows.call(&fd))?;
        let (begun, turns) =
            (kernel.counter(Counter::XdpFlow)? - before, (self.effort.slices * 3) as u64 * u64::from(TURNS));
        ensure!(begun * 100 >= turns * 95, "only {begun} of {turns} packets began a flow");
        Ok(())
    }

    /// Rows, the second empty arm's cost as a multiple of the first's, and the empty program's cost.
    fn result(self) -> (Vec<Row>, f64, f64) {
        let least = |costs: &[f64]| costs.iter().copied().fold(f64::INFINITY, f64::min);
        let noise = least(&self.idle[1]) / least(&self.idle[0]);
        let idle: Vec<f64> = self.idle.concat();
        let rows = self.rows.into_iter().map(|(mut row, costs)| {
            let (low, high) = interval(&costs, &idle);
            row.min_ns = least(&costs) - least(&idle);
            row.median_ns = median(&costs) - median(&idle);
            row.ratio = [low, high];
            row
        });
        (rows.collect(), noise, least(&idle))
    }
}

fn ip4(high: u8, number: usize) -> IpAddr {
    let [_, b, c, d] = (number as u32).to_be_bytes();
    Ipv4Addr::new(10 + high, b, c, d).into()
}

/// Flows whose packets are each other's.
struct Ring {
    v6: bool,
    proto: u8,
    reply: bool,
    flows: usize,
    ifindex: u32,
}

impl Ring {
    fn name(&self) -> String {
        format!(
            "{} {} {}",
            if self.reply { "reply" } else { "established" },
            if self.proto == TCP { "TCP" } else { "UDP" },
            if self.v6 { "IPv6" } else { "IPv4" }
        )
    }

    /// Ends of the packet that flow `number` takes. Sources differ; destinations alternate, so that they are rewritten, too.
    fn ends(&self, number: usize) -> (SocketAddr, SocketAddr) {
        // one flow: two, so that there is something to rewrite
        let number = number % self.flows.max(2);
        let side = (number % 2) as u8;
        let src = match self.v6 {
            // each ring its own
            false => ip4(0, number / 16 + 256 + self.flows),
            true => Ipv6Addr::from(0x2001_0db8_0010_u128 << 80 | (number / 16 + self.flows) as u128).into(),
        };
        let port = 2000 + (number % 16) as u16;
        (at(src, 40_000 + (number % 16) as u16), at(self.front(side), port))
    }

    /// What the packets are sent to: a frontend, or the node's own masquerade address.
    fn front(&self, side: u8) -> IpAddr {
        let last = 10 + side + if self.reply { 100 } else { 0 };
        match self.v6 {
            false => Ipv4Addr::new(203, 0, 113, last).into(),
            true => Ipv6Addr::new(0x2001, 0xdb8, 0x80, 0, 0, 0, 0, last.into()).into(),
        }
    }

    fn packet(&self, number: usize, hops: u8) -> PacketBuilder {
        let (src, dst) = self.ends(number);
        let packet = match self.proto {
            TCP => PacketBuilder::tcp(src, dst, ACK),
            _ => PacketBuilder::udp(src, dst),
        };
        packet.with(|p| (p.macs, p.ttl) = ([MAC, MAC], hops))
    }

    fn fill<F: Side>(&self, kernel: &mut Loaded) -> Result<()>
    where
        CtKey<F>: Pod,
        CtValue<F>: Pod,
    {
        let gateway: IpAddr = if F::V6 { "2001:db8:1::1".parse()? } else { IpAddr::from([192, 0, 2, 1]) };
        let row = neighbour_row(self.ifindex, &F::wide(F::addr(gateway)));
        let tick = ticks(monotonic());
        let mut map: HashMap<&mut MapData, CtKey<F>, CtValue<F>> = kernel
            .ebpf
            .map_mut(if F::V6 { names::LB_CT6 } else { names::LB_CT4 })
            .context("flows")?
            .try_into()?;
        let port = |end: SocketAddr| end.port().to_be_bytes();
        for number in 0..self.flows.max(2) {
            let ((a, b), (c, d)) = (self.ends(number), self.ends(number + 1));
            let ends = if self.reply { [d, c, a, b] } else { [a, b, d, c] };
            let [client, frontend, backend, snat] = ends;
            let flow = Flow::<F> {
                client: F::addr(client.ip()),
                client_port: port(client),
                moved_port: port(client),
                frontend: F::addr(frontend.ip()),
                frontend_port: port(frontend),
                backend: F::addr(backend.ip()),
                backend_port: port(backend),
                snat: F::addr(snat.ip()),
                snat_port: port(snat),
                flags: CT_MASQ | CT_XDP | CT_REPLIED,
                proto: self.proto,
                nexthop: row | row << 16,
                backend_id: 1,
                generation: 1001,
                born_tick: tick.wrapping_sub(10),
                last_tick: tick.wrapping_sub(10),
                ifindex: self.ifindex,
                ..Flow::default()
            };
            for role in [Role::XdpForward, Role::XdpReply] {
                let (mut key, mut value) = (CtKey::default(), CtValue::default());
                flow.entry(role, &mut key, &mut value);
                map.insert(key, value, 0)?;
            }
        }
        Ok(())
    }
}

/// SYNs, each of which becomes the SYN of another flow: backends that are frontends.
struct NewFlows {
    ifindex: u32,
    place: usize,
}

impl NewFlows {
    const FRONTS: usize = 64;

    fn front(number: usize) -> IpAddr {
        Ipv4Addr::new(203, 0, 114, 100 + (number % Self::FRONTS) as u8).into()
    }

    fn call(&mut self, fd: &OwnedFd) -> Result<f64> {
        self.place += 1;
        let packet = PacketBuilder::tcp(at(ip4(1, self.place), 5000), at(Self::front(self.place), 80), SYN)
            .with(|p| (p.macs, p.ttl) = ([MAC, MAC], 255));
        let ran = test_run(fd, &packet.build(), self.ifindex, TURNS)?;
        ensure!(ran.code == XDP_TX, "a new flow: code {}", ran.code);
        checksums(&ran.frame, 14).map_err(anyhow::Error::msg)?;
        Ok(ran.ns)
    }
}

/// The XDP program with maps of its own.
struct Loaded {
    ebpf: Ebpf,
    ifindex: u32,
    /// Keeps it attached somewhere, as the empty program is.
    known: Option<OwnedFd>,
}

impl Loaded {
    /// Room for so many flows in each table.
    fn new(flows: usize, ifindex: u32) -> Result<Self> {
        let object = std::fs::read(paths::object())
            .with_context(|| format!("{}: run `cargo xtask build-ebpf` first", paths::object().display()))?;
        let entries = (flows * 2 + flows / 2).max(4096) as u32;
        let mut loader = EbpfLoader::new();
        for name in [names::LB_CT4, names::LB_CT6] {
            // never full, so that nothing is evicted
            loader.map_max_entries(name, entries);
        }
        for name in [names::LB_EM4, names::LB_EM6] {
            loader.map_max_entries(name, YOUNG as u32);
        }
        let mut ebpf = loader.load(&object)?;
        let program: &mut Xdp = ebpf.program_mut(names::LB_XDP).context("lb_xdp")?.try_into()?;
        program.load()?;
        let mut loaded = Loaded { ebpf, ifindex, known: None };
        loaded.known = Some(attach(&loaded.fd()?, self::ifindex("up1")?)?);
        loaded.write()?;
        Ok(loaded)
    }

    fn fd(&self) -> Result<OwnedFd> {
        use std::os::fd::AsFd;
        let program: &Xdp = self.ebpf.program(names::LB_XDP).context("lb_xdp")?.try_into()?;
        let fd: &ProgramFd = program.fd()?;
        Ok(fd.as_fd().try_clone_to_owned()?)
    }

    fn array<V: Pod>(&mut self, name: &str, rows: impl IntoIterator<Item = (u32, V)>) -> Result<()> {
        let mut map: Array<&mut MapData, V> = self.ebpf.map_mut(name).context("a map")?.try_into()?;
        for (row, value) in rows {
            map.set(row, value, 0)?;
        }
        Ok(())
    }

    fn hash<K: Pod, V: Pod>(&mut self, name: &str, rows: impl IntoIterator<Item = (K, V)>) -> Result<()> {
        let mut map: HashMap<&mut MapData, K, V> = self.ebpf.map_mut(name).context("a map")?.try_into()?;
        for (key, value) in rows {
            map.insert(key, value, 0)?;
        }
        Ok(())
    }

    /// What the agent would have written: addresses of all cases, the interface and its neighbour.
    fn write(&mut self) -> Result<()> {
        let mut world = World::default();
        for (v6, reply) in [(false, false), (false, true), (true, false), (true, true)] {
            let ring = Ring { v6, proto: TCP, reply, flows: 0, ifindex: self.ifindex };
            let role = if reply { ROLE_SNAT } else { ROLE_FRONTEND };
            (0..2).for_each(|side| world.role(ring.front(side), role));
        }
        for number in 0..NewFlows::FRONTS {
            let backend = world.backend(NewFlows::front(number + 1), 80, TCP, 0);
            let service = world.service(SVC_HAS_ANY, &[backend], &[]);
            world.frontend(NewFlows::front(number), 80, TCP, service);
        }
        // the next flow's client: a neighbour's, not the node's own, which would have no route back
        world.iface(self.ifindex, 0, &[IpAddr::from([198, 51, 100, 7])]);
        world.pool(POOL.min, POOL.max);
        let world = &world;
        self.filter(world)?;
        self.array(names::LB_CONFIG, [(0, world.config)])?;
        self.hash(names::LB_SVC4, world.svc4.clone())?;
        self.hash(names::LB_IF, world.ifaces.clone())?;
        self.array(names::LB_BE4, world.be4.clone())?;
        self.array(names::LB_GEN4, world.gen4.clone())?;
        self.array(names::LB_SLOTS, world.slots.clone())?;
        let port = NextHop { ifindex: self.ifindex, flags: NH_PORT, mtu: 1500, dmac: [0; 6], smac: MAC };
        let hop = NextHop { flags: 0, dmac: MAC, ..port };
        let mut four = [0; 16];
        four[..4].copy_from_slice(&[192, 0, 2, 1]);
        let six = "2001:db8:1::1".parse::<Ipv6Addr>()?.octets();
        let rows: BTreeMap<u32, NextHop> = [
            (port_row(self.ifindex), port),
            (neighbour_row(self.ifindex, &Ip6 { addr: four }), hop),
            (neighbour_row(self.ifindex, &Ip6 { addr: six }), hop),
        ]
        .into();
        self.array(names::LB_NH, rows)
    }

    /// By reference: a filter is a quarter of a megabyte, and a thread's stack two.
    fn filter(&mut self, world: &World) -> Result<()> {
        let mut filter = RoleFilter { roles: [0; ROLE_SIZE] };
        filter.roles.copy_from_slice(&world.filter());
        let mut map: Array<&mut MapData, RoleFilter> =
            self.ebpf.map_mut(names::LB_ROLES).context("roles")?.try_into()?;
        Ok(map.set(0, filter, 0)?)
    }

    fn counter(&self, counter: Counter) -> Result<u64> {
        let map: PerCpuArray<&MapData, u64> =
            self.ebpf.map(names::LB_COUNTERS).context("counters")?.try_into()?;
        Ok(map.get(&(counter as u32), 0)?.iter().sum())
    }
}

/// What test_run gave back.
struct Ran {
    code: u32,
    frame: Vec<u8>,
    ns: f64,
}

/// `bpf_attr.test` (Linux 5.18).
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

fn test_run(program: &OwnedFd, frame: &[u8], ifindex: u32, repeat: u32) -> Result<Ran> {
    use std::os::fd::AsRawFd;
    const BPF_PROG_TEST_RUN: libc::c_long = 10;
    let mut out = vec![0_u8; 2048];
    // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index
    let context: [u32; 5] = [0, frame.len() as u32, 0, ifindex, 0];
    let mut attributes = TestRun {
        program: program.as_raw_fd() as u32,
        size_in: frame.len() as u32,
        size_out: out.len() as u32,
        data_in: frame.as_ptr() as u64,
        data_out: out.as_mut_ptr() as u64,
        repeat,
        context_in: size_of_val(&context) as u32,
        context: context.as_ptr() as u64,
        ..TestRun::default()
    };
    // SAFETY: the attributes are a prefix of `union bpf_attr`; every buffer they name lives and has the size given.
    let done =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut attributes, size_of::<TestRun>()) };
    ensure!(done == 0, "BPF_PROG_TEST_RUN: {}", std::io::Error::last_os_error());
    out.truncate(attributes.size_out as usize);
    Ok(Ran { code: attributes.code, frame: out, ns: f64::from(attributes.duration) })
}

fn ifindex(name: &str) -> Result<u32> {
    let name = std::ffi::CString::new(name)?;
    // SAFETY: the name ends with NUL and lives.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    ensure!(index != 0, "no interface {name:?}");
    Ok(index)
}

/// Nanoseconds of `CLOCK_MONOTONIC`, the programs' clock.
fn monotonic() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
