//! What the pipeline needs from the outside: tables, a clock, randomness.

use crate::abi::{
    AffValue, CtKey, CtValue, FragKey, FragValue, Iface, LbConfig, NextHop, Peer, SkUdpKey, SkUdpValue,
    SvcValue,
};
use crate::claim::{self, Claim, Reserve};
use crate::counter::Counter;
use crate::dsr;
use crate::family::{Backend, Family, V4, V6};
use crate::flow::{Flow, Role, tag};
use crate::fragment;
use crate::packet::Packet;
use crate::pair::Pair;
use crate::plain::Layout;
use crate::switch::Neighbour;
use crate::track;

/// The two flow tables of a family.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Table {
    /// `LB_CT4/6`.
    Established,
    /// `LB_EM4/6`: embryonic TCP, young UDP.
    Young,
}

/// What became of an insertion that must not replace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Insert {
    /// The entry is new.
    Done,
    /// The key is taken; nothing was changed.
    Exists,
    /// The table refused; nothing was changed.
    Full,
}

/// The tables of one family. Implemented over BPF maps, and over plain collections in tests.
///
/// Laws: reads have no effect but on LRU order; `flow_with` never sees an entry whose tag is not its key's.
pub trait Env<F: Family> {
    /// `ROLE_*` bits that some address with the same hash has; 0 is certain.
    fn roles(&self, addr: F::Addr) -> u8 {
        self.roles_at(F::role_slot(addr))
    }
    /// The same of a slot of the role filter.
    fn roles_at(&self, slot: u32) -> u8;
    /// The service port behind a frontend.
    fn service(&self, key: &F::SvcKey) -> Option<SvcValue>;
    /// `NODE_*` bits of an address; 0 = not the node's.
    fn node(&self, addr: F::Addr) -> u32;
    /// The address that a socket of the host, which has none yet, leaves with towards a frontend; zero = not known.
    /// Known for frontends whose service port asks for the client: affinity, source ranges.
    fn source_towards(&self, frontend: F::Addr) -> F::Addr;
    /// The address is inside a service CIDR.
    fn in_service_cidr(&self, addr: F::Addr) -> bool;
    /// The address is inside the source ranges of a service port.
    fn in_source_ranges(&self, service: u32, addr: F::Addr) -> bool;
    /// The backend id in a slot.
    fn slot(&self, slot: u32) -> Option<u32>;
    /// A backend row.
    fn backend(&self, id: u32) -> Option<Backend<F>>;
    /// The present generation of a backend id.
    fn generation(&self, id: u32) -> u32;
    /// A client's affinity to a service port.
    fn affinity(&self, key: &F::AffKey) -> Option<AffValue>;
    /// Remembers it.
    fn set_affinity(&mut self, key: &F::AffKey, value: &AffValue);
    /// Runs `f` on an entry of a table, in place. `None`: no such entry.
    #[inline(always)]
    fn flow_with<R>(
        &mut self,
        table: Table,
        key: &CtKey<F>,
        f: impl FnOnce(&mut CtValue<F>) -> R,
    ) -> Option<R> {
        self.flow_tagged(table, key, tag(key), f)
    }
    /// [`Env::flow_with`] for a key whose tag is known: the one that [`Flow::entry`] gave.
    fn flow_tagged<R>(
        &mut self,
        table: Table,
        key: &CtKey<F>,
        tag: u32,
        f: impl FnOnce(&mut CtValue<F>) -> R,
    ) -> Option<R>;
    /// Runs `f` on an established entry whose key is these words.
    #[inline(always)]
    fn established<R>(&mut self, words: F::Words, f: impl FnOnce(&CtValue<F>) -> R) -> Option<R>
    where
        F: Layout,
    {
        self.flow_with(Table::Established, &F::key(words), |value| f(value))
    }
    /// Adds an entry unless its key is taken.
    fn flow_insert(&mut self, table: Table, key: &CtKey<F>, value: &CtValue<F>) -> Insert;
    /// Deletes an entry; one that is not there is fine.
    fn flow_delete(&mut self, table: Table, key: &CtKey<F>);
    /// `PAIR_*` bits of two addresses, or others with the same hash, by their slot in the pair filter.
    fn pair_at(&self, slot: u32) -> u8;
    /// What is known of a packet's source and destination.
    #[inline(always)]
    fn pair(&self, src: F::Addr, dst: F::Addr) -> Pair {
        Pair::of(F::role_slot(src), F::role_slot(dst), |slot| self.pair_at(slot))
    }
    /// Remembers that some socket of the host has the one as its source, and was aimed at the other.
    fn mark_bound(&mut self, a: F::Addr, b: F::Addr);
    /// Remembers that a flow was made between the client and the backend of the flow in hand.
    fn mark_pair(&mut self, work: &mut Work<F>);
    /// Copies what is remembered of a fragmented datagram; false: nothing is. The tag is the caller's to compare.
    fn fragment(&self, key: &FragKey<F>, into: &mut FragValue<F>) -> bool;
    /// Remembers it, in place of what was.
    fn fragment_set(&mut self, key: &FragKey<F>, value: &FragValue<F>);
    /// Forgets it.
    fn fragment_forget(&mut self, key: &FragKey<F>);
    /// An interface of the attach set.
    fn iface(&self, ifindex: u32) -> Option<Iface>;
    /// A row of the next-hop table.
    fn next_hop(&self, row: u32) -> NextHop;
    /// A row of the table of nodes; row 0 is this one.
    fn peer(&self, row: u32) -> Peer;
    /// The address is one of a node of the cluster, this one included.
    fn is_cluster_node(&self, addr: F::Addr) -> bool;
    /// Nanoseconds since boot, coarse.
    fn now_ns(&self) -> u64;
    /// 32 random bits.
    fn random(&self) -> u32;
    /// Adds one to a counter.
    fn count(&mut self, counter: Counter);

    /// [`track::refresh`], which the BPF side calls as a global function (see [`crate::verdict::Step`]).
    #[inline(always)]
    fn refresh(&mut self, work: &mut Work<F>, table: Table) -> bool
    where
        Self: Sized,
    {
        track::refresh(self, work, table)
    }
    /// [`track::bring`], likewise.
    #[inline(always)]
    fn bring(&mut self, work: &mut Work<F>, to: Table)
    where
        Self: Sized,
    {
        track::bring(self, work, to);
    }
    /// [`track::forget`], likewise.
    #[inline(always)]
    fn forget(&mut self, work: &mut Work<F>)
    where
        Self: Sized,
    {
        track::forget(self, work);
    }
    /// [`claim::claim`], likewise.
    #[inline(always)]
    fn claim(&mut self, config: &LbConfig, work: &mut Work<F>) -> Claim
    where
        Self: Sized,
    {
        claim::claim(self, config, work)
    }
    /// [`claim::claim_snat`], likewise.
    #[inline(always)]
    fn claim_snat(&mut self, config: &LbConfig, work: &mut Work<F>, table: Table) -> Claim
    where
        Self: Sized,
    {
        claim::claim_snat(self, config, work, table)
    }
    /// [`claim::claim_xdp`], likewise.
    #[inline(always)]
    fn claim_xdp(&mut self, config: &LbConfig, work: &mut Work<F>) -> bool
    where
        Self: Sized,
    {
        claim::claim_xdp(self, config, work)
    }
    /// [`dsr::begin`], likewise.
    #[inline(always)]
    fn begin_dsr(&mut self, work: &mut Work<F>, node: u32) -> bool
    where
        Self: Sized,
    {
        dsr::begin(self, work, node)
    }
    /// Largest packet that goes from this node to another by the kernel's routes. The BPF side asks the kernel instead, in
    /// the step itself.
    fn path_mtu(&self, _dst: F::Addr) -> usize {
        usize::MAX
    }
    /// Row of the next hop of a packet from `src` to `dst` that came in by this interface, as the stack would route it;
    /// 0: none by which XDP may send packets of `mtu` bytes. The BPF side asks the kernel instead, in the step itself.
    fn route(&self, _ifindex: u32, _src: F::Addr, _dst: F::Addr, _mtu: u16) -> u32 {
        0
    }
    /// Finds the destination `dst` of a packet of `src` that came to a bridge, as the stack would; the BPF side asks the
    /// kernel instead, in the step itself.
    fn neighbour(&self, _bridge: u32, _src: F::Addr, _dst: F::Addr) -> Neighbour {
        Neighbour::default()
    }
    /// What a socket hook remembers of the socket that sent this packet. The BPF side looks into the socket instead, in
    /// the step itself.
    fn sender(&self, _packet: &Packet<F>) -> Sender<F> {
        Sender::default()
    }
    /// [`track::give_way`], likewise.
    #[inline(always)]
    fn give_way(&mut self, work: &mut Work<F>)
    where
        Self: Sized,
    {
        track::give_way(self, work);
    }
    /// [`fragment::meet`], likewise.
    #[inline(always)]
    fn meet_fragment(&mut self, work: &mut Work<F>, position: u8) -> bool
    where
        Self: Sized,
    {
        fragment::meet(self, work, position)
    }
    /// [`fragment::remember`], likewise.
    #[inline(always)]
    fn remember_fragment(&mut self, work: &mut Work<F>, position: u8)
    where
        Self: Sized,
    {
        fragment::remember(self, work, position);
    }
    /// [`claim::is_crossed`], likewise.
    #[inline(always)]
    fn is_crossed(&mut self, work: &mut Work<F>, role: Role) -> bool
    where
        Self: Sized,
    {
        claim::is_crossed(self, work, role)
    }
    /// [`claim::attempt`], likewise.
    #[inline(always)]
    fn attempt(
        &mut self,
        config: &LbConfig,
        work: &mut Work<F>,
        table: Table,
        role: Role,
        tries: u32,
    ) -> Reserve
    where
        Self: Sized,
    {
        claim::attempt(self, config, work, table, role, tries)
    }
}

/// What socket hooks remember of unconnected UDP sockets.
pub trait SockEnv {
    /// What is remembered under a key.
    fn correspondent(&self, key: &SkUdpKey) -> Option<SkUdpValue>;
    /// Remembers it.
    fn set_correspondent(&mut self, key: &SkUdpKey, value: &SkUdpValue);
}

/// What a socket hook remembers of the socket that sent a packet, towards the packet's destination.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sender<F: Family> {
    /// The frontend that the socket was aimed at.
    pub frontend: F::Addr,
    /// Its port, network order.
    pub port: [u8; 2],
    /// The source port that its packets were given before, network order; 0 = none.
    pub snat_port: [u8; 2],
    /// `SK_*` bits; 0 = no hook translated the socket.
    pub flags: u16,
    /// Zero.
    pub _pad: [u8; 2],
}

/// Where and how a packet was met.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Hook {
    /// Offset of the IP header: 14 behind an Ethernet header, 0 on L3 devices.
    pub l3: usize,
    /// The hook's interface.
    pub ifindex: u32,
    /// The interface the packet came in by; 0 = made on this host.
    pub ingress_ifindex: u32,
}

/// Work space of one family: the packet and the flow in hand, its entry, and another one. Too large for a BPF stack,
/// so the packet path keeps in it whatever is not needed in every packet.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug)]
pub struct Work<F: Family> {
    /// Where the packet was met.
    pub hook: Hook,
    /// The packet.
    pub packet: Packet<F>,
    /// It came from another node by DSR: 1, else 0.
    pub direct: u32,
    /// What the filters say of it, on its way out; [`crate::tc::concerns_out`] alone knows how.
    pub asked: u32,
    /// What ingress has noted of it, at egress: bits of [`crate::frame::Note`], 0 = nothing.
    pub note: u32,
    /// Why it is to be answered.
    pub reason: Counter,
    /// Rate limit of rejections.
    pub rate: Rate,
    /// The flow in hand.
    pub flow: Flow<F>,
    /// Source ports that were tried for it without success.
    pub tries: u32,
    /// Its client had another one by this tuple, which has ended and whose entries are still there: 1, else 0.
    pub renews: u32,
    /// Key of the entry in hand.
    pub key: CtKey<F>,
    /// The entry in hand.
    pub value: CtValue<F>,
    /// Key of another entry.
    pub key2: CtKey<F>,
    /// Another entry.
    pub value2: CtValue<F>,
    /// Key of the fragments in hand.
    pub frag_key: FragKey<F>,
    /// What they become.
    pub frag_value: FragValue<F>,
    /// The socket that sent the packet in hand; looked up for [`crate::bound::bound`] only.
    pub sender: Sender<F>,
    /// Where the destination of the packet in hand is; looked up for [`crate::switch::switch`] only.
    pub neighbour: Neighbour,
    /// The next hop of the packet in hand, at XDP or of a fast flow.
    pub way: NextHop,
    /// The table that holds the entry in hand, at XDP and for [`crate::tc::snat`]: 0 established, 1 young.
    pub young: u32,
    /// What an ICMP error of ours quotes.
    pub quote: [u8; QUOTE],
    /// The packet that an ICMP error in hand quotes.
    pub quoted: Packet<F>,
    /// Where in the frame that quote ends.
    pub quote_end: usize,
}

impl<F: Family> Default for Work<F> {
    fn default() -> Self {
        Work {
            hook: Hook::default(),
            packet: Packet::default(),
            direct: 0,
            asked: 0,
            note: 0,
            reason: Counter::NewFlow,
            rate: Rate::default(),
            flow: Flow::default(),
            tries: 0,
            renews: 0,
            key: CtKey::default(),
            value: CtValue::default(),
            key2: CtKey::default(),
            value2: CtValue::default(),
            frag_key: FragKey::default(),
            frag_value: FragValue::default(),
            sender: Sender::default(),
            neighbour: Neighbour::default(),
            way: NextHop::default(),
            young: 0,
            quote: [0; QUOTE],
            quoted: Packet::default(),
            quote_end: 0,
        }
    }
}

/// Room for the part of an offending packet that an ICMP error quotes.
pub const QUOTE: usize = 64;

/// Work space of the TC programs: too large for a BPF stack.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default)]
pub struct Scratch {
    /// IPv4.
    pub v4: Work<V4>,
    /// IPv6.
    pub v6: Work<V6>,
}

/// A limit per second and CPU.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default)]
pub struct Rate {
    /// The second that is counted, in ticks of 2^30 ns.
    pub tick: u32,
    /// What was spent in it.
    pub spent: u32,
}

impl Rate {
    /// Takes one of `limit` per tick (0 = no limit); false when none is left.
    #[inline(always)]
    pub fn take(&mut self, now_ns: u64, limit: u32) -> bool {
        let tick = ticks(now_ns);
        if self.tick != tick {
            (self.tick, self.spent) = (tick, 0);
        }
        self.spent = self.spent.wrapping_add(1);
        limit == 0 || self.spent <= limit
    }
}

/// Nanoseconds as ticks of 2^30 ns (1.07 s): the unit of flow times.
#[must_use]
#[inline(always)]
pub const fn ticks(ns: u64) -> u32 {
    (ns >> 30) as u32
}

/// The configuration with nothing in it: what the pipeline sees before the agent wrote one.
pub const NO_CONFIG: LbConfig = LbConfig {
    flags: 0,
    nodeports: crate::abi::PortRange { min: 1, max: 0 },
    snat: [crate::abi::PortRange { min: 0, max: 0 }; crate::abi::SNAT_RANGES],
    snat_total: 0,
    reject_rate: 0,
    pod_cidr4: [0; 4],
    pod_mask4: [0; 4],
    svc_cidr4: [0; 4],
    svc_mask4: [0; 4],
    pod_cidr6: [0; 16],
    pod_mask6: [0; 16],
    svc_cidr6: [0; 16],
    svc_mask6: [0; 16],
};
