//! [`FakeEnv`]: the tables in plain collections.

use core::cell::Cell;
use core::net::IpAddr;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::vec::Vec;

use crate::abi::{
    AffValue, CtKey, CtValue, FragKey, FragValue, Iface, NextHop, Peer, SkUdpKey, SkUdpValue, SvcValue,
};
use crate::abi::{PAIR_BOUND, PAIR_SEEN};
use crate::counter::Counter;
use crate::env::{Env, Insert, Scratch, Sender, SockEnv, Table, Work};
use crate::family::{Backend, Family, Ip4, Ip6, V4, V6};
use crate::flow::tag;
use crate::hash::pair_slot;
use crate::packet::{LoadAddr, Packet};
use crate::plain::Layout;
use crate::switch::Neighbour;

/// A family with its side of a [`FakeEnv`].
pub trait Side: LoadAddr + Layout {
    fn side(env: &FakeEnv) -> &Tables<Self>;
    fn side_mut(env: &mut FakeEnv) -> &mut Tables<Self>;
    fn work(scratch: &mut Scratch) -> &mut Work<Self>;
    /// Panics for an address of the other family.
    fn addr(ip: IpAddr) -> Self::Addr;
    fn ip(addr: Self::Addr) -> IpAddr;
}

impl Side for V4 {
    fn side(env: &FakeEnv) -> &Tables<V4> {
        &env.v4
    }
    fn side_mut(env: &mut FakeEnv) -> &mut Tables<V4> {
        &mut env.v4
    }
    fn work(scratch: &mut Scratch) -> &mut Work<V4> {
        &mut scratch.v4
    }
    fn addr(ip: IpAddr) -> Ip4 {
        let IpAddr::V4(ip) = ip else { panic!("{ip} is not IPv4") };
        ip.octets().into()
    }
    fn ip(addr: Ip4) -> IpAddr {
        addr.addr.into()
    }
}

impl Side for V6 {
    fn side(env: &FakeEnv) -> &Tables<V6> {
        &env.v6
    }
    fn side_mut(env: &mut FakeEnv) -> &mut Tables<V6> {
        &mut env.v6
    }
    fn work(scratch: &mut Scratch) -> &mut Work<V6> {
        &mut scratch.v6
    }
    fn addr(ip: IpAddr) -> Ip6 {
        let IpAddr::V6(ip) = ip else { panic!("{ip} is not IPv6") };
        ip.octets().into()
    }
    fn ip(addr: Ip6) -> IpAddr {
        addr.addr.into()
    }
}

/// The tables of one family.
#[derive(Clone, Debug)]
pub struct Tables<F: Family> {
    pub services: BTreeMap<F::SvcKey, SvcValue>,
    pub nodes: BTreeMap<F::Addr, u32>,
    /// By frontend.
    pub sources: BTreeMap<F::Addr, F::Addr>,
    /// (prefix length, address).
    pub cidrs: Vec<(u32, F::Addr)>,
    /// (service port id, prefix length, address).
    pub ranges: Vec<(u32, u32, F::Addr)>,
    pub backends: BTreeMap<u32, Backend<F>>,
    pub generations: BTreeMap<u32, u32>,
    pub affinity: BTreeMap<F::AffKey, AffValue>,
    pub established: BTreeMap<CtKey<F>, CtValue<F>>,
    pub young: BTreeMap<CtKey<F>, CtValue<F>>,
    pub fragments: BTreeMap<FragKey<F>, FragValue<F>>,
    /// What a bridge finds, by (its ifindex, destination).
    pub neighbours: BTreeMap<(u32, F::Addr), Neighbour>,
    /// Row of the next hop towards a destination.
    pub routes: BTreeMap<F::Addr, u32>,
    /// Sockets of the host by (address, port) that they are bound to.
    pub senders: BTreeMap<(F::Addr, [u8; 2]), Sender<F>>,
    /// Addresses of the cluster's nodes.
    pub cluster_nodes: BTreeSet<F::Addr>,
}

impl<F: Family> Default for Tables<F> {
    fn default() -> Self {
        Tables {
            services: BTreeMap::new(),
            nodes: BTreeMap::new(),
            sources: BTreeMap::new(),
            cidrs: Vec::new(),
            ranges: Vec::new(),
            backends: BTreeMap::new(),
            generations: BTreeMap::new(),
            affinity: BTreeMap::new(),
            established: BTreeMap::new(),
            young: BTreeMap::new(),
            fragments: BTreeMap::new(),
            neighbours: BTreeMap::new(),
            routes: BTreeMap::new(),
            senders: BTreeMap::new(),
            cluster_nodes: BTreeSet::new(),
        }
    }
}

impl<F: Family> Tables<F> {
    #[must_use]
    pub fn flows(&self, table: Table) -> &BTreeMap<CtKey<F>, CtValue<F>> {
        match table {
            Table::Established => &self.established,
            Table::Young => &self.young,
        }
    }

    pub fn flows_mut(&mut self, table: Table) -> &mut BTreeMap<CtKey<F>, CtValue<F>> {
        match table {
            Table::Established => &mut self.established,
            Table::Young => &mut self.young,
        }
    }

    /// Every entry of both flow tables.
    #[must_use]
    pub fn entries(&self) -> Vec<(Table, CtKey<F>, CtValue<F>)> {
        let mut all = Vec::new();
        for table in [Table::Established, Table::Young] {
            all.extend(self.flows(table).iter().map(|(key, value)| (table, *key, *value)));
        }
        all
    }

    /// Takes away what `doomed` chooses, as an LRU might.
    pub fn evict(&mut self, mut doomed: impl FnMut(Table, &CtKey<F>, &CtValue<F>) -> bool) -> usize {
        let before = self.established.len() + self.young.len();
        self.established.retain(|key, value| !doomed(Table::Established, key, value));
        self.young.retain(|key, value| !doomed(Table::Young, key, value));
        before - self.established.len() - self.young.len()
    }
}

/// Everything the pipeline asks for, in plain collections, with a clock and a randomness that tests set.
#[derive(Clone, Debug)]
pub struct FakeEnv {
    pub v4: Tables<V4>,
    pub v6: Tables<V6>,
    pub slots: BTreeMap<u32, u32>,
    pub ifaces: BTreeMap<u32, Iface>,
    pub next_hops: BTreeMap<u32, NextHop>,
    pub peers: BTreeMap<u32, Peer>,
    /// Largest packet towards other nodes.
    pub path_mtu: usize,
    /// Bytes of the role filter; shared, so that a clone is cheap.
    pub roles: Arc<Vec<u8>>,
    /// Slots of the pair filter that are not 0.
    pub pairs: BTreeMap<u32, u8>,
    pub correspondents: BTreeMap<SkUdpKey, SkUdpValue>,
    pub now_ns: u64,
    /// State of the generator (SplitMix64).
    pub seed: Cell<u64>,
    /// What moved; counters that did not are not in it.
    pub counters: BTreeMap<Counter, u64>,
    /// Entries that a flow table takes before it refuses; `None` = no limit.
    pub capacity: Option<usize>,
}

impl Default for FakeEnv {
    fn default() -> Self {
        FakeEnv {
            v4: Tables::default(),
            v6: Tables::default(),
            slots: BTreeMap::new(),
            ifaces: BTreeMap::new(),
            next_hops: BTreeMap::new(),
            peers: BTreeMap::new(),
            path_mtu: 1500,
            roles: Arc::new(std::vec![0; crate::abi::ROLE_SIZE]),
            pairs: BTreeMap::new(),
            correspondents: BTreeMap::new(),
            now_ns: 1_000 << 30,
            seed: Cell::new(1),
            counters: BTreeMap::new(),
            capacity: None,
        }
    }
}

impl FakeEnv {
    /// Moves the clock by ticks of 2^30 ns.
    pub fn advance(&mut self, ticks: u64) {
        self.now_ns += ticks << 30;
    }
}

/// Whether two addresses agree in their first `len` bits.
fn agree(a: &[u8], b: &[u8], len: u32) -> bool {
    (0..len as usize).all(|bit| (a[bit / 8] ^ b[bit / 8]) & (0x80 >> (bit % 8)) == 0)
}

impl<F: Side> Env<F> for FakeEnv {
    fn roles_at(&self, slot: u32) -> u8 {
        self.roles[slot as usize]
    }
    fn service(&self, key: &F::SvcKey) -> Option<SvcValue> {
        F::side(self).services.get(key).copied()
    }
    fn node(&self, addr: F::Addr) -> u32 {
        F::side(self).nodes.get(&addr).copied().unwrap_or(0)
    }
    fn source_towards(&self, frontend: F::Addr) -> F::Addr {
        F::side(self).sources.get(&frontend).copied().unwrap_or(F::ZERO)
    }
    fn in_service_cidr(&self, addr: F::Addr) -> bool {
        F::side(self).cidrs.iter().any(|(len, net)| agree(addr.as_ref(), net.as_ref(), *len))
    }
    fn in_source_ranges(&self, service: u32, addr: F::Addr) -> bool {
        let ranges = &F::side(self).ranges;
        ranges.iter().any(|(id, len, net)| *id == service && agree(addr.as_ref(), net.as_ref(), *len))
    }
    fn slot(&self, slot: u32) -> Option<u32> {
        // an array: rows that were never written are zero
        Some(self.slots.get(&slot).copied().unwrap_or(0))
    }
    fn backend(&self, id: u32) -> Option<Backend<F>> {
        F::side(self).backends.get(&id).copied().filter(|row| row.proto != 0)
    }
    fn generation(&self, id: u32) -> u32 {
        F::side(self).generations.get(&id).copied().unwrap_or(0)
    }
    fn affinity(&self, key: &F::AffKey) -> Option<AffValue> {
        F::side(self).affinity.get(key).copied()
    }
    fn set_affinity(&mut self, key: &F::AffKey, value: &AffValue) {
        F::side_mut(self).affinity.insert(*key, *value);
    }
    fn flow_tagged<R>(
        &mut self,
        table: Table,
        key: &CtKey<F>,
        known: u32,
        f: impl FnOnce(&mut CtValue<F>) -> R,
    ) -> Option<R> {
        assert_eq!(known, tag(key), "not the key's tag");
        let value = F::side_mut(self).flows_mut(table).get_mut(key)?;
        (value.tag == known).then(|| f(value))
    }
    fn flow_insert(&mut self, table: Table, key: &CtKey<F>, value: &CtValue<F>) -> Insert {
        let capacity = self.capacity;
        let flows = F::side_mut(self).flows_mut(table);
        if flows.contains_key(key) {
            return Insert::Exists;
        }
        if capacity.is_some_and(|capacity| flows.len() >= capacity) {
            return Insert::Full;
        }
        flows.insert(*key, *value);
        Insert::Done
    }
    fn flow_delete(&mut self, table: Table, key: &CtKey<F>) {
        F::side_mut(self).flows_mut(table).remove(key);
    }
    fn pair_at(&self, slot: u32) -> u8 {
        self.pairs.get(&slot).copied().unwrap_or(0)
    }
    fn mark_bound(&mut self, a: F::Addr, b: F::Addr) {
        *self.pairs.entry(pair_slot(F::role_slot(a), F::role_slot(b))).or_default() |= PAIR_SEEN | PAIR_BOUND;
    }
    fn sender(&self, packet: &Packet<F>) -> Sender<F> {
        F::side(self).senders.get(&(packet.src, packet.sport)).copied().unwrap_or_default()
    }
    fn mark_pair(&mut self, work: &mut Work<F>) {
        let (client, backend) = (F::role_slot(work.flow.client), F::role_slot(work.flow.backend));
        *self.pairs.entry(pair_slot(client, backend)).or_default() |= work.flow.pair_bits(client, backend);
    }
    fn fragment(&self, key: &FragKey<F>, into: &mut FragValue<F>) -> bool {
        F::side(self).fragments.get(key).map(|value| *into = *value).is_some()
    }
    fn fragment_set(&mut self, key: &FragKey<F>, value: &FragValue<F>) {
        F::side_mut(self).fragments.insert(*key, *value);
    }
    fn fragment_forget(&mut self, key: &FragKey<F>) {
        F::side_mut(self).fragments.remove(key);
    }
    fn neighbour(&self, bridge: u32, _src: F::Addr, dst: F::Addr) -> Neighbour {
        F::side(self).neighbours.get(&(bridge, dst)).copied().unwrap_or_default()
    }
    fn iface(&self, ifindex: u32) -> Option<Iface> {
        self.ifaces.get(&ifindex).copied()
    }
    fn next_hop(&self, row: u32) -> NextHop {
        self.next_hops.get(&row).copied().unwrap_or_default()
    }
    fn peer(&self, row: u32) -> Peer {
        self.peers.get(&row).copied().unwrap_or_default()
    }
    fn is_cluster_node(&self, addr: F::Addr) -> bool {
        F::side(self).cluster_nodes.contains(&addr)
    }
    fn path_mtu(&self, _dst: F::Addr) -> usize {
        self.path_mtu
    }
    fn route(&self, _ifindex: u32, _src: F::Addr, dst: F::Addr, mtu: u16) -> u32 {
        let row = F::side(self).routes.get(&dst).copied().unwrap_or(0);
        if self.next_hops.get(&row).is_some_and(|hop| hop.mtu >= mtu) { row } else { 0 }
    }
    fn now_ns(&self) -> u64 {
        self.now_ns
    }
    fn random(&self) -> u32 {
        let state = self.seed.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.seed.set(state);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 32) as u32
    }
    fn count(&mut self, counter: Counter) {
        *self.counters.entry(counter).or_default() += 1;
    }
}

impl SockEnv for FakeEnv {
    fn correspondent(&self, key: &SkUdpKey) -> Option<SkUdpValue> {
        self.correspondents.get(key).copied()
    }
    fn set_correspondent(&mut self, key: &SkUdpKey, value: &SkUdpValue) {
        self.correspondents.insert(*key, *value);
    }
}
