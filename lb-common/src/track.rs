//! Flows in the tables: finding, following, claiming, healing, promoting and forgetting them.

use crate::abi::{CT_DSR, CT_FAST, CT_SWITCHED, CT_XDP};
use crate::abi::{CT_FIN_BACKEND, CT_FIN_CLIENT, CT_GUARD, CT_MASQ, CT_MOVED, CT_PASS, CT_REPLIED, CT_RST};
use crate::abi::{CtKey, CtValue, LbConfig, SNAT_RANGES};
use crate::counter::Counter;
use crate::env::{Env, Insert, Table, Work};
use crate::family::Family;
use crate::flow::{Flow, Role, is_closed, tag};
use crate::packet::{ACK, FIN, RST, SCTP, SYN, TCP, UDP};
use crate::switch;

/// Ticks after which an answered UDP flow counts as a stream (netfilter's rule: 2 s).
const STREAM_TICKS: u32 = 2;
/// Source ports that are tried before a flow is given up: with 95 % of them taken, one flow in 400 finds none, ...
const PORT_TRIES: u32 = 128;
/// ... so many of them among those that have rested: see [`pick_port`].
const RESTED_TRIES: u32 = 12;
/// Parts of the SNAT pool, of which one is in use at a time, ...
const PARTS: u32 = 8;
/// ... for so long: a part rests for 7 x 9 ticks, 67 s.
const PART_TICKS: u32 = 9;

/// Behind the numbers of all roles. Loops over a flow's entries go to this constant: the verifier needs to see their end.
const ENTRIES: u8 = 9;

/// Copies the entry of a key, established first. `None`: no such entry.
#[inline(always)]
pub fn find<F: Family>(env: &mut impl Env<F>, key: &CtKey<F>, into: &mut CtValue<F>) -> Option<Table> {
    if env.flow_with(Table::Established, key, |value| *into = *value).is_some() {
        return Some(Table::Established);
    }
    env.flow_with(Table::Young, key, |value| *into = *value).map(|()| Table::Young)
}

/// Runs `f` on the entry of a key with this tag, established first.
#[inline(always)]
fn with<F: Family, R>(
    env: &mut impl Env<F>,
    key: &CtKey<F>,
    tag: u32,
    f: impl Fn(&mut CtValue<F>) -> R,
) -> Option<R> {
    // a loop: two calls would have `f` twice, or as a function of its own
    for table in [Table::Established, Table::Young] {
        let result = env.flow_tagged(table, key, tag, |value| f(value));
        if result.is_some() {
            return result;
        }
    }
    None
}

/// What to do with a packet whose entry was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Follow {
    /// Rewrite it by the entry in hand.
    Rewrite,
    /// Let it pass unchanged.
    Pass,
    /// Treat it as if there were no entry; there is none any more.
    Anew,
}

/// Follows the entry in hand (`work.key`, `work.value`, found in `table`): checks that it still holds, keeps its
/// times and state, heals and promotes the flow.
#[inline(always)]
pub fn follow<F: Family>(env: &mut impl Env<F>, work: &mut Work<F>, table: Table) -> Follow {
    let tick = crate::env::ticks(env.now_ns());
    follow_at(env, work, table, tick)
}

/// [`follow`] at a tick that is known already.
#[inline(always)]
pub fn follow_at<F: Family>(env: &mut impl Env<F>, work: &mut Work<F>, table: Table, tick: u32) -> Follow {
    let (proto, kind) = (work.packet.proto, work.packet.kind);
    let flags = work.value.flags;
    if flags & CT_PASS != 0 {
        if work.value.last_tick != tick {
            env.flow_with(table, &work.key, |value| value.last_tick = tick);
        }
        return Follow::Pass;
    }
    let role = Role::of(work.value.role);
    let syn = proto == TCP && kind & (SYN | ACK) == SYN;
    // a generation says whether the endpoint still serves: asked for UDP, young TCP and every SYN, not for
    // established TCP data, which keeps its pod while that terminates, nor for what ends (see [`bring`])
    let begins = matches!(role, Role::DnatForward | Role::XdpForward | Role::DsrForward)
        || role == Role::SnatForward && flags & CT_GUARD != 0;
    if begins && (proto == UDP || syn || (table == Table::Young && !is_closed(flags))) {
        let stale = env.generation(work.value.backend) != work.value.generation;
        if stale || (work.packet.begins_flow() && proto != UDP && is_closed(flags)) {
            if stale {
                env.count(Counter::FlowMovedBackend);
            }
            work.flow.of(&work.key, &work.value);
            env.forget(work);
            return Follow::Anew;
        }
    }
    let mut set = state_bits(proto, kind, role) & !flags;
    let mut clear = 0;
    if work.value.last_tick != tick && flags & CT_RST != 0 && set & CT_RST == 0 {
        clear = CT_RST; // the flow lives: that reset was not believed
        set &= !CT_RST;
    }
    if work.value.last_tick != tick || set != 0 {
        if is_challenge(proto, kind, role, flags, set) && table == Table::Young {
            env.give_way(work);
            return Follow::Pass;
        }
        work.flow.of(&work.key, &work.value);
        work.flow.last_tick = tick;
        work.flow.flags = (flags | set) & !clear;
        if !env.refresh(work, table) {
            env.count(Counter::FlowDead);
            env.forget(work);
            return Follow::Anew;
        }
        if table == Table::Established && is_closed(work.flow.flags) {
            env.bring(work, Table::Young);
        }
    }
    if table == Table::Young
        && !role.is_reply()
        // the backend of a DSR flow is not heard here
        && flags & (CT_REPLIED | CT_DSR) != 0
        && !is_closed((flags | set) & !clear)
        && is_ripe(proto, kind, tick.wrapping_sub(work.value.born_tick))
    {
        work.flow.of(&work.key, &work.value);
        work.flow.last_tick = tick;
        work.flow.flags = (flags | set) & !clear; // the copies must know of a FIN that the packet carries
        env.bring(work, Table::Established);
    }
    Follow::Rewrite
}

/// `CT_*` bits that a packet sets.
#[inline(always)]
fn state_bits(proto: u8, kind: u8, role: Role) -> u16 {
    let mut bits = 0;
    if role.is_reply() {
        bits |= CT_REPLIED;
    }
    if proto == TCP {
        if kind & FIN != 0 {
            bits |= if role.is_reply() { CT_FIN_BACKEND } else { CT_FIN_CLIENT };
        }
        if kind & RST != 0 {
            bits |= CT_RST;
        }
    }
    // ABORT, SHUTDOWN COMPLETE (RFC 9260 section 3.2)
    if proto == SCTP && (kind == 6 || kind == 14) {
        bits |= CT_RST;
    }
    bits
}

/// A packet of the client that follows an answer: the third of a TCP handshake, or of a UDP stream.
#[inline(always)]
fn is_ripe(proto: u8, kind: u8, age: u32) -> bool {
    match proto {
        TCP => kind & (SYN | ACK | RST) == ACK,
        UDP => age >= STREAM_TICKS,
        _ => true,
    }
}

/// The backend's first packet of a TCP flow (`set`: `CT_*` bits that it sets) is an ACK alone: there is a connection
/// between the backend and the client's own port already, which this answers for (RFC 9293 section 3.10.7.4).
#[inline(always)]
fn is_challenge(proto: u8, kind: u8, role: Role, flags: u16, set: u16) -> bool {
    let keeps_source = role == Role::DnatReply || role == Role::XdpReply && flags & CT_FAST != 0;
    proto == TCP && keeps_source && set & CT_REPLIED != 0 && kind & (SYN | ACK | RST) == ACK
}

/// Gives up the flow of the entry in hand, whose tuple turned out to be another connection's, and leaves a pass entry
/// under its key: that connection goes on, and the client's next SYN is moved to another source port.
#[inline(always)]
pub fn give_way<F: Family>(env: &mut impl Env<F>, work: &mut Work<F>) {
    take_up(work);
    env.forget(work);
    make_way(env, work);
}

/// The flow of the entry in hand is the flow in hand: the first part of [`give_way`]. The BPF side calls its parts one
/// after the other, for the sake of the stack.
#[inline(always)]
pub fn take_up<F: Family>(work: &mut Work<F>) {
    work.flow.of(&work.key, &work.value);
}

/// Leaves the pass entry: the last part of [`give_way`].
#[inline(always)]
pub fn make_way<F: Family>(env: &mut impl Env<F>, work: &mut Work<F>) {
    env.count(Counter::FlowDead);
    work.key2 = work.key;
    pass_entry(env, work);
}

/// Inserts a pass entry under `work.key2`: such packets pass unchanged.
#[inline(always)]
pub fn pass_entry<F: Family>(env: &mut impl Env<F>, work: &mut Work<F>) {
    let tick = crate::env::ticks(env.now_ns());
    work.value2 = Default::default();
    work.value2.flags = CT_PASS;
    work.value2.tag = crate::flow::tag(&work.key2);
    (work.value2.born_tick, work.value2.last_tick) = (tick, tick);
    if env.flow_insert(Table::Young, &work.key2, &work.value2) == Insert::Done {
        env.count(Counter::PassEntry);
    }
}

/// Gives all entries of the flow in hand its time and flags, which also refreshes their place in the LRU order, and
/// puts back those that are gone. False: an entry belongs to another flow, this one must be given up.
#[inline(always)]
pub fn refresh<F: Family>(env: &mut impl Env<F>, work: &mut Work<F>, table: Table) -> bool {
    if switch::is_switched(env, work) {
        work.flow.flags |= CT_SWITCHED;
    }
    let entries = work.flow.entry_set();
    for number in 0..ENTRIES {
        if entries >> number & 1 == 0 {
            continue;
        }
        let role = Role::of(number);
        work.flow.entry(role, &mut work.key2, &mut work.value2);
        let flow = &work.flow;
        let owned = with(env, &work.key2, work.value2.tag, |value| {
            let owned = flow.owns(role, value);
            if owned {
                value.last_tick = flow.last_tick;
                // the other direction may have set bits since this entry was copied; a reset can be taken back
                value.flags = (value.flags & !CT_RST) | flow.flags;
                // the SNAT pair may have been made since this entry was written
                if matches!(role, Role::DnatForward | Role::DnatReply) && flow.has_snat() {
                    (value.aux_addr, value.aux_port) = (flow.snat, flow.snat_port);
                }
                if flow.flags & CT_XDP != 0 {
                    value.nexthop = flow.nexthop;
                }
            }
            owned
        });
        match owned {
            Some(true) => {}
            Some(false) => return false,
            None => {
                if env.flow_insert(table, &work.key2, &work.value2) == Insert::Done {
                    env.count(Counter::FlowHealed);
                }
            }
        }
    }
    true
}

/// Brings all entries of the flow in hand into a table, reply half first.
///
/// Into the established one they are copied: look-ups ask that one first, and the sweep takes the rest. Into the young
/// one, once the flow has ended, they are moved: what lives is never evicted for what has ended, however many short
/// connections there are. Each is in the young table before it leaves the other, so that a look-up always finds it.
#[inline(always)]
pub fn bring<F: Family>(env: &mut impl Env<F>, work: &mut Work<F>, to: Table) {
    let entries = work.flow.entry_set();
    for number in 0..ENTRIES {
        if entries >> number & 1 == 0 {
            continue;
        }
        let role = Role::of(number ^ 1);
        work.flow.entry(role, &mut work.key2, &mut work.value2);
        let inserted = env.flow_insert(to, &work.key2, &work.value2);
        if to == Table::Established {
            if inserted == Insert::Full {
                env.count(Counter::PromotionFailed);
                return;
            }
            continue;
        }
        // that it is the flow's own entry, `refresh` has just seen
        if inserted == Insert::Full {
            return; // the sweep takes it
        }
        if inserted == Insert::Exists {
            // the copy that the promotion left
            let new = &work.value2;
            env.flow_tagged(Table::Young, &work.key2, new.tag, |value| {
                (value.last_tick, value.flags, value.nexthop) = (new.last_tick, new.flags, new.nexthop);
            });
        }
        env.flow_delete(Table::Established, &work.key2);
    }
    env.count(if to == Table::Established { Counter::FlowPromoted } else { Counter::FlowRetired });
}

/// Deletes all entries of the flow in hand from both tables, but none that belongs to another flow.
#[inline(always)]
pub fn forget<F: Family>(env: &mut impl Env<F>, work: &mut Work<F>) {
    let entries = work.flow.entry_set();
    for number in 0..ENTRIES {
        if entries >> number & 1 == 0 {
            continue;
        }
        let role = Role::of(number);
        work.flow.key(role, &mut work.key2);
        for table in [Table::Established, Table::Young] {
            let flow = &work.flow;
            if env.flow_with(table, &work.key2, |value| flow.owns(role, value)) == Some(true) {
                env.flow_delete(table, &work.key2);
            }
        }
    }
}

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
    match env.flow_insert(Table::Young, &work.key, &work.value) {
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
            match env.flow_insert(table, &work.key2, &work.value2) {
                Insert::Done => {
                    (inserted, settled) = (true, true);
                    continue;
                }
                Insert::Full => return Reserve::Full,
                Insert::Exists => {}
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
        if env.flow_insert(Table::Young, &work.key, &work.value) == Insert::Done {
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
