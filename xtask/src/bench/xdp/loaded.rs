//! `lb_xdp` with maps of its own, filled as the agent would fill them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use aya::maps::{Array, HashMap, MapData, PerCpuArray};
use aya::programs::{ProgramFd, Xdp};
use aya::{Ebpf, EbpfLoader, Pod};
use lb_common::abi::{
    NH_PORT, NextHop, PortRange, ROLE_FRONTEND, ROLE_SIZE, ROLE_SNAT, RoleFilter, SVC_HAS_ANY, names,
    neighbour_row, port_row,
};
use lb_common::counter::Counter;
use lb_common::family::Ip6;
use lb_common::packet::TCP;
use lb_common::testing::world::World;

use super::ring::{NewFlows, Ring};
use super::{MAC, YOUNG};
use crate::lab::xdp::attach;
use crate::paths;

/// Source ports of the pool.
const POOL: PortRange = PortRange { min: 1024, max: 29_999 };

/// The XDP program with maps of its own.
pub(super) struct Loaded {
    pub(super) ebpf: Ebpf,
    ifindex: u32,
    /// Keeps it attached somewhere, as the empty program is.
    known: Option<OwnedFd>,
}

impl Loaded {
    /// Room for so many flows in each table.
    pub(super) fn new(flows: usize, ifindex: u32) -> Result<Self> {
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
        loaded.known = Some(attach(&loaded.fd()?, super::ifindex("up1")?)?);
        loaded.write()?;
        Ok(loaded)
    }

    pub(super) fn fd(&self) -> Result<OwnedFd> {
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

    pub(super) fn counter(&self, counter: Counter) -> Result<u64> {
        let map: PerCpuArray<&MapData, u64> =
            self.ebpf.map(names::LB_COUNTERS).context("counters")?.try_into()?;
        Ok(map.get(&(counter as u32), 0)?.iter().sum())
    }
}

/// Nanoseconds of `CLOCK_MONOTONIC`, the programs' clock.
pub(super) fn monotonic() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
