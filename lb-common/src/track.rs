//! Flows in the tables: finding, following, healing, promoting and forgetting them. [`crate::claim`] makes them.

use crate::abi::{CT_DSR, CT_FAST, CT_SWITCHED, CT_XDP};
use crate::abi::{CT_FIN_BACKEND, CT_FIN_CLIENT, CT_GUARD, CT_PASS, CT_REPLIED, CT_RST, CtKey, CtValue};
use crate::counter::Counter;
use crate::env::{Env, Insert, Table, Work};
use crate::family::Family;
use crate::flow::{Role, is_closed};
use crate::packet::{ACK, FIN, RST, SCTP, SYN, TCP, UDP};
use crate::switch;

/// Ticks after which an answered UDP flow counts as a stream (netfilter's rule: 2 s).
const STREAM_TICKS: u32 = 2;

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
pub(crate) fn with<F: Family, R>(
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
            // of one that has ended, and has no port of the pool, the entries are overwritten (see `insert_forward`)
            let one_pair = role == Role::DnatForward && !work.flow.has_snat() || flags & CT_FAST != 0;
            let renews = !stale && one_pair && table == Table::Young && !work.flow.is_straight();
            work.renews = renews as u32;
            if work.renews == 0 {
                env.forget(work);
            }
            return Follow::Anew;
        }
    }
    let mut set = state_bits(proto, kind, role) & !flags;
    let mut clear = 0;
    if work.value.last_tick != tick && flags & CT_RST != 0 && set & CT_RST == 0 {
        clear = CT_RST; // the flow lives: that reset was not believed
        set &= !CT_RST;
    }
    // a SYN that is sent again, before any answer, may tell of an entry that is gone
    let unheard = table == Table::Young && proto == TCP && flags & CT_REPLIED == 0;
    if work.value.last_tick != tick || set != 0 || unheard {
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
        let new = &work.value2;
        if to == Table::Established {
            if env.flow_insert(to, &work.key2, new) == Insert::Full {
                env.count(Counter::PromotionFailed);
                return;
            }
            continue;
        }
        // Mostly there is the copy that the promotion left. It is asked for first: an insertion that finds it takes an
        // element from the table's free ones, or evicts one, only to give it back.
        let copy = env.flow_tagged(Table::Young, &work.key2, new.tag, |value| {
            (value.last_tick, value.flags, value.nexthop) = (new.last_tick, new.flags, new.nexthop);
        });
        // that it is the flow's own entry, `refresh` has just seen
        if copy.is_none() && env.flow_insert(Table::Young, &work.key2, new) == Insert::Full {
            return; // the sweep takes it
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
