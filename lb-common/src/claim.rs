//! The beginning of a flow: who may use a tuple, and the source port when that is somebody else's.
//!
//! A claim takes the reply half of a pair first, and only if its key is free; so two flows never share an answer. What
//! is held by another live flow costs another port, which is drawn from the SNAT pool.

use crate::abi::{CT_FAST, CT_MASQ, CT_MOVED, CT_PASS, CT_XDP, LbConfig, SNAT_RANGES};
use crate::counter::Counter;
use crate::env::{Env, Insert, Table, Work};
use crate::family::Family;
use crate::flow::{Flow, Role, is_closed, tag};
use crate::packet::TCP;
use crate::track::{find, with};

/// Source ports that are tried before a flow is given up: with 95 % of them taken, one flow in 400 finds none, ...
const PORT_TRIES: u32 = 128;
/// ... so many of them among those that have rested: see [`pick_port`].
const RESTED_TRIES: u32 = 12;
/// Parts of the SNAT pool, of which one is in use at a time, ...
const PARTS: u32 = 8;
/// ... for so long: a part rests for 7 x 9 ticks, 67 s.
const PART_TICKS: u32 = 9;

/// What became of a claim.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
#[repr(u32)]
pub enum Claim {
    /// The pair is new; its forward entry is in hand.
    New = 0,
    /// This very flow was there already; its forward entry is in hand.
    Known = 1,
    /// There is no pair, the packet must be dropped. The reason was counted.
    Refused = 2,
}

impl Claim {
    /// The claim with this number.
    #[inline(always)]
    pub const fn of(number: u32) -> Claim {
        match number {
            0 => Claim::New,
            1 => Claim::Known,
            _ => Claim::Refused,
        }
    }
}

#[inline(always)]
fn refuse<F: Family>(env: &mut impl Env<F>, why: Counter) -> Claim {
    env.count(why);
    Claim::Refused
}

/// Claims the DNAT pair of the flow in hand, reply half first; leaves the forward entry in `work.key`, `work.value`.
///
/// The reply half decides who may use (B -> C:c): held by another live flow, the client is moved to another source
/// port.
#[inline(always)]
pub fn claim<F: Family>(env: &mut impl Env<F>, config: &LbConfig, work: &mut Work<F>) -> Claim {
    match search_both(env, config, work, Role::DnatReply) {
        Reserve::Done => {}
        Reserve::Taken => return refuse(env, Counter::DropSnatExhausted),
        Reserve::Full => return refuse(env, Counter::DropTableFull),
    }
    if work.flow.flags & CT_MOVED != 0 {
        env.count(Counter::FlowMovedPort);
    }
    env.mark_pair(work);
    work.flow.entry(Role::DnatForward, &mut work.key, &mut work.value);
    match insert_forward(env, work) {
        Insert::Done => Claim::New,
        Insert::Full => {
            env.flow_delete(Table::Young, &work.key2);
            refuse(env, Counter::DropTableFull)
        }
        Insert::Exists => {
            // lost a race, or an orphan of an earlier flow: give the claim back unless the winner is this very pair
            let flow = &work.flow;
            let same = env.flow_with(Table::Young, &work.key, |value| flow.owns(Role::DnatForward, value));
            if same != Some(true) {
                env.flow_delete(Table::Young, &work.key2);
                if find(env, &work.key, &mut work.value).is_none() {
                    return refuse(env, Counter::DropTableFull);
                }
            }
            Claim::Known
        }
    }
}

/// Inserts the forward entry in hand into the young table, where one is expected (`work.renews`) in place of one that has
/// ended.
///
/// Such a one is asked for first: an insertion that finds its key takes an element from the table's free ones, or evicts
/// one, only to give it back. What answered that flow, and not this one, is left to the sweep.
#[inline(always)]
pub(crate) fn insert_forward<F: Family>(env: &mut impl Env<F>, work: &mut Work<F>) -> Insert {
    if work.renews != 0 {
        work.renews = 0;
        let new = &work.value;
        let ended = env.flow_tagged(Table::Young, &work.key, new.tag, |value| {
            let ended = value.flags & CT_PASS == 0 && is_closed(value.flags);
            if ended {
                *value = *new;
            }
            ended
        });
        if ended == Some(true) {
            return Insert::Done;
        }
    }
    env.flow_insert(Table::Young, &work.key, &work.value)
}

/// What became of the reservation of one key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
#[repr(u32)]
pub enum Reserve {
    /// The flow in hand holds it.
    Done = 0,
    /// Another live flow holds it.
    Taken = 1,
    /// The table refused.
    Full = 2,
}

impl Reserve {
    /// The reservation with this number.
    #[inline(always)]
    pub const fn of(number: u32) -> Reserve {
        match number {
            0 => Reserve::Done,
            1 => Reserve::Taken,
            _ => Reserve::Full,
        }
    }
}

/// Reserves the key of the flow's entry with this role, with one port after another; `Taken`: none was free.
#[inline(always)]
fn search<F: Family>(
    env: &mut impl Env<F>,
    config: &LbConfig,
    work: &mut Work<F>,
    table: Table,
    role: Role,
) -> Reserve {
    // the verifier needs a counter in a register to see the end of this
    for tries in 0..PORT_TRIES {
        match env.attempt(config, work, table, role, tries) {
            Reserve::Taken => {}
            other => return other,
        }
    }
    Reserve::Taken
}

/// [`search`] in the young table for a reply that may be met at either position. Another port is tried once: that it is
/// taken at the other position is next to impossible.
#[inline(always)]
fn search_both<F: Family>(
    env: &mut impl Env<F>,
    config: &LbConfig,
    work: &mut Work<F>,
    role: Role,
) -> Reserve {
    let mut found = search(env, config, work, Table::Young, role);
    if found == Reserve::Done && env.is_crossed(work, role) {
        env.flow_delete(Table::Young, &work.key2);
        found = env.attempt(config, work, Table::Young, role, 1);
        if found == Reserve::Done && env.is_crossed(work, role) {
            env.flow_delete(Table::Young, &work.key2);
            found = Reserve::Taken;
        }
    }
    found
}

/// [`reserve`] with the port that the flow in hand has, if it is the first try and there is one; else with another one.
#[inline(always)]
pub fn attempt<F: Family>(
    env: &mut impl Env<F>,
    config: &LbConfig,
    work: &mut Work<F>,
    table: Table,
    role: Role,
    tries: u32,
) -> Reserve {
    work.tries = tries;
    if role == Role::DnatReply {
        if tries > 0 {
            work.flow.flags |= CT_MOVED;
            work.flow.moved_port = pick_port(config, env.random(), work.flow.last_tick, tries);
        }
    } else if tries > 0 || work.flow.snat_port == [0; 2] {
        work.flow.snat_port = pick_port(config, env.random(), work.flow.last_tick, tries);
    }
    reserve(env, work, table, role)
}

/// Inserts the entry of the flow in hand with this role into `table` (and leaves it in `work.key2`, `work.value2`),
/// unless another live flow holds its key in either table. An entry of this very flow is adopted, a closed or stale
/// one replaced; but the source port of a closed flow is left to rest while others can be had.
#[inline(always)]
pub fn reserve<F: Family>(env: &mut impl Env<F>, work: &mut Work<F>, table: Table, role: Role) -> Reserve {
    work.flow.entry(role, &mut work.key2, &mut work.value2);
    let other = if table == Table::Young { Table::Established } else { Table::Young };
    let (mut inserted, mut settled) = (false, false);
    // twice this table, since what is over makes room once, then the other: one loop, so that `holder` is in the program once
    for turn in 0..3 {
        let last = turn == 2;
        let at = if last { other } else { table };
        if !last {
            if settled {
                continue;
            }
            // what is expected to be there is asked for first, as in `insert_forward`
            if work.renews == 0 || turn > 0 {
                match env.flow_insert(table, &work.key2, &work.value2) {
                    Insert::Done => {
                        (inserted, settled) = (true, true);
                        continue;
                    }
                    Insert::Full => return Reserve::Full,
                    Insert::Exists => {}
                }
            }
        }
        match holder(env, at, work, work.value2.tag, role) {
            Holder::Ours if last => return Reserve::Done,
            // adopt it, and bring it up to date
            Holder::Ours => {
                let new = &work.value2;
                env.flow_tagged(table, &work.key2, new.tag, |value| *value = *new);
                settled = true;
            }
            Holder::Gone if last => {
                env.flow_delete(other, &work.key2);
                return Reserve::Done;
            }
            Holder::Gone if turn == 0 => env.flow_delete(table, &work.key2),
            Holder::Gone | Holder::Other => {
                if inserted {
                    env.flow_delete(table, &work.key2);
                }
                return Reserve::Taken;
            }
        }
    }
    Reserve::Taken
}

/// Another live flow holds `work.key2` at the other position: (B -> C:c) is met on its way out if it answers a DNAT
/// pair, on its way in if it answers a fast flow. What has ended there is deleted.
#[inline(always)]
pub fn is_crossed<F: Family>(env: &mut impl Env<F>, work: &mut Work<F>, role: Role) -> bool {
    let (a, b) = (work.key2.src, work.key2.dst);
    let between = match role {
        Role::DnatReply => env.pair(a, b).is_fast(),
        Role::XdpReply => work.flow.flags & CT_FAST != 0 && env.pair(a, b).from_backend(),
        _ => false,
    };
    if !between {
        return false;
    }
    let mut held = false;
    work.key2.position ^= 1;
    for table in [Table::Established, Table::Young] {
        match holder(env, table, work, tag(&work.key2), role) {
            Holder::Gone => env.flow_delete(table, &work.key2),
            Holder::Ours | Holder::Other => held = true,
        }
    }
    work.key2.position ^= 1;
    held
}

enum Holder {
    /// The entry is of the flow in hand.
    Ours,
    /// It is of a flow that has ended, or of none.
    Gone,
    /// It is of another live flow.
    Other,
}

/// Who holds `work.key2`, whose tag this is, in a table.
#[inline(always)]
fn holder<F: Family>(env: &mut impl Env<F>, table: Table, work: &Work<F>, tag: u32, role: Role) -> Holder {
    let flow = &work.flow;
    let seen = env.flow_tagged(table, &work.key2, tag, |value| {
        (flow.owns(role, value), value.flags, value.backend, value.generation)
    });
    match seen {
        None => Holder::Gone,
        Some((true, ..)) => Holder::Ours,
        Some((false, flags, backend, generation)) => {
            let stale = flow.proto != TCP && flags & CT_PASS == 0 && env.generation(backend) != generation;
            let pooled = match role {
                Role::SnatReply => true,
                Role::XdpReply => flow.flags & CT_FAST == 0,
                _ => false,
            };
            let rests = pooled && work.tries < RESTED_TRIES;
            if stale || (is_closed(flags) && !rests) { Holder::Gone } else { Holder::Other }
        }
    }
}

/// Claims the SNAT pair of the flow in hand towards the address of the device it leaves by, in
/// the table of its DNAT pair, and tells the DNAT pair;
/// leaves the forward entry in `work.key`, `work.value`. A port that the flow already had is tried first.
#[inline(always)]
pub fn claim_snat<F: Family>(
    env: &mut impl Env<F>,
    config: &LbConfig,
    work: &mut Work<F>,
    table: Table,
) -> Claim {
    let snat = env.iface(work.hook.ifindex).map_or(F::ZERO, |iface| F::snat_addr(&iface));
    if snat == F::ZERO {
        return refuse(env, Counter::DropNoSnatAddress);
    }
    work.flow.flags |= CT_MASQ;
    let mut found = Reserve::Taken;
    if work.flow.snat_port != [0; 2] {
        found = env.attempt(config, work, table, Role::SnatReply, 0);
    }
    if found == Reserve::Taken {
        (work.flow.snat, work.flow.snat_port) = (snat, [0; 2]);
        found = search(env, config, work, table, Role::SnatReply);
    }
    match found {
        Reserve::Done => {}
        Reserve::Taken => return refuse(env, Counter::DropSnatExhausted),
        Reserve::Full => return refuse(env, Counter::DropTableFull),
    }
    env.mark_pair(work);
    work.flow.entry(Role::SnatForward, &mut work.key, &mut work.value);
    if env.flow_insert(table, &work.key, &work.value) == Insert::Exists {
        let new = &work.value;
        env.flow_tagged(table, &work.key, new.tag, |value| *value = *new);
    }
    for role in [Role::DnatForward, Role::DnatReply] {
        work.flow.key(role, &mut work.key2);
        let flow = &work.flow;
        with(env, &work.key2, tag(&work.key2), |value| {
            if flow.owns(role, value) {
                (value.aux_addr, value.aux_port) = (flow.snat, flow.snat_port);
            }
        });
    }
    env.count(Counter::SnatFlow);
    Claim::New
}

/// Claims the one pair of the flow in hand, which begins at XDP and leaves with the address `snat`, or is fast and keeps
/// its source, reply half first;
/// leaves the forward entry in `work.key`, `work.value`. False: there is no pair, and nothing was counted; the flow
/// is a plain one of TC's, as yet.
#[inline(always)]
pub fn claim_xdp<F: Family>(env: &mut impl Env<F>, config: &LbConfig, work: &mut Work<F>) -> bool {
    let fast = work.flow.flags & CT_FAST != 0;
    work.flow.flags |= if fast { CT_XDP } else { CT_MASQ | CT_XDP };
    work.flow.snat_port = [0; 2];
    if fast {
        (work.flow.snat, work.flow.snat_port) = (work.flow.client, work.flow.client_port);
    }
    if search_both(env, config, work, Role::XdpReply) == Reserve::Done {
        if fast {
            env.mark_pair(work);
            if work.flow.snat_port != work.flow.client_port {
                env.count(Counter::FlowMovedPort);
            }
        }
        work.flow.entry(Role::XdpForward, &mut work.key, &mut work.value);
        if insert_forward(env, work) == Insert::Done {
            env.count(if fast { Counter::FastFlow } else { Counter::XdpFlow });
            return true;
        }
        // another CPU was faster, or the table is full
        env.flow_delete(Table::Young, &work.key2);
    }
    work.flow.flags &= !(CT_MASQ | CT_XDP | CT_FAST);
    (work.flow.snat, work.flow.snat_port, work.flow.nexthop) = (F::ZERO, [0; 2], 0);
    false
}

/// A port of the SNAT pool, network order, evenly drawn from a part of it; zero if the pool is empty. After
/// [`RESTED_TRIES`] from all of it.
///
/// The parts take turns, so that a port is seldom used again while the backend still has the last connection of it in
/// TIME_WAIT (60 s in Linux): it would answer another client's SYN by an ACK (RFC 9293 section 3.10.7.4; timestamps of
/// two clients can't be compared), which costs that client a second.
#[inline(always)]
fn pick_port(config: &LbConfig, random: u32, tick: u32, tries: u32) -> [u8; 2] {
    let (mut first, mut size) = (0, config.snat_total);
    if tries < RESTED_TRIES && size >= PARTS {
        size /= PARTS;
        first = tick / PART_TICKS % PARTS * size;
    }
    let mut left = first + ((random as u64 * size as u64) >> 32) as u32;
    for number in 0..SNAT_RANGES {
        let Some(range) = config.snat.get(number) else { break };
        if range.min == 0 {
            break;
        }
        let size = (range.max as u32).wrapping_sub(range.min as u32).wrapping_add(1);
        if left < size {
            return (range.min.wrapping_add(left as u16)).to_be_bytes();
        }
        left = left.wrapping_sub(size);
    }
    [0; 2]
}

/// The port (network order) is in the SNAT pool.
#[must_use]
#[inline(always)]
pub fn in_pool(config: &LbConfig, port: [u8; 2]) -> bool {
    let port = u16::from_be_bytes(port);
    for number in 0..SNAT_RANGES {
        let Some(range) = config.snat.get(number) else { break };
        if range.min != 0 && port >= range.min && port <= range.max {
            return true;
        }
    }
    false
}

/// Begins the flow in hand with the packet in hand: client and frontend, no backend yet.
#[inline(always)]
pub fn begin<F: Family>(work: &mut Work<F>, now_ns: u64) {
    let (packet, tick) = (&work.packet, crate::env::ticks(now_ns));
    work.flow = Flow {
        client: packet.src,
        frontend: packet.dst,
        client_port: packet.sport,
        moved_port: packet.sport,
        frontend_port: packet.dport,
        proto: packet.proto,
        born_tick: tick,
        last_tick: tick,
        ifindex: work.hook.ifindex,
        ..Flow::default()
    };
}
