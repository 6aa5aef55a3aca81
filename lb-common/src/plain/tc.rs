//! The plain path at the TC hooks, of [`crate::tc`].

use super::{Change, Layout, Plain, Rest, macs, take};
use crate::abi::{
    CFG_FAST_FLOWS, CFG_SOURCE_RULES, CT_DSR, CT_FAST, CT_GUARD, CT_MASQ, CT_PASS, CT_REPLIED, CT_SWITCHED,
    CT_XDP, LbConfig, NH_POD, POS_IN, POS_OUT,
};
use crate::abi::{ROLE_BACKEND, ROLE_FRONTEND, ROLE_NODEPORT, ROLE_SNAT, ROLE_TUNNEL};
use crate::claim::in_pool;
use crate::counter::Counter;
use crate::env::{Env, ticks};
use crate::flow::Role;
use crate::frame::{Direct, Note};
use crate::packet::{TCP, UDP};
use crate::pair::{Pair, shares_pool};
use crate::xdp::meant;

/// A frame with an Ethernet header on its way in.
#[inline(always)]
pub fn inward<F: Layout>(frame: &mut impl Direct, env: &mut impl Env<F>, config: &LbConfig) -> Plain {
    let Some((_, src, dst)) = F::glance_at(frame) else { return Plain::General };
    let to = F::role_slot_inline(dst);
    let roles = env.roles_at(to);
    let near = F::near_service_cidr(config, dst);
    let fast = config.flags & CFG_FAST_FLOWS != 0;
    let mine = ROLE_FRONTEND | ROLE_NODEPORT | ROLE_SNAT | ROLE_TUNNEL;
    if roles & (mine | ROLE_BACKEND) == 0 && !near && !fast {
        return Plain::Up;
    }
    let from = F::role_slot_inline(src);
    let pair = Pair::of(from, to, |slot| env.pair_at(slot));
    let beside = roles & ROLE_BACKEND != 0 && pair.to_backend();
    let reply = fast && pair.is_fast() && env.roles_at(from) & ROLE_BACKEND != 0;
    if roles & mine == 0 && !near && !beside && !reply {
        return Plain::Up;
    }
    if roles & ROLE_TUNNEL != 0 {
        return Plain::General;
    }
    // two copies, in which the protocol is a constant
    match F::proto(frame) {
        Some(TCP) => inward_of(frame, env, config, Seen { roles, near, reply, pair, beside }, TCP),
        Some(UDP) => inward_of(frame, env, config, Seen { roles, near, reply, pair, beside }, UDP),
        _ => Plain::General,
    }
}

/// What the filters say of a packet on its way in.
#[derive(Clone, Copy)]
struct Seen {
    /// Of its destination.
    roles: u8,
    /// The destination is inside the service CIDR.
    near: bool,
    /// It may be a fast flow's reply.
    reply: bool,
    pair: Pair,
    /// It may be straight to a backend, beside flows of Services.
    beside: bool,
}

#[inline(always)]
fn inward_of<F: Layout>(
    frame: &mut impl Direct,
    env: &mut impl Env<F>,
    config: &LbConfig,
    seen: Seen,
    proto: u8,
) -> Plain {
    let (Some([_, dport]), Some(words)) = (F::ports(frame), F::words(frame, proto, POS_IN)) else {
        return Plain::General;
    };
    if !seen.near && meant(config, seen.roles, dport).is_none() && !seen.reply {
        // every datagram may begin a flow
        let general = seen.beside && (seen.pair.is_moved() || proto == UDP);
        return if general { Plain::General } else { Plain::Up };
    }
    let Some((change, rest)) = held(env, words) else { return Plain::General };
    let kind = rest.flags & (CT_XDP | CT_FAST | CT_DSR | CT_SWITCHED);
    match Role::of(rest.role) {
        Role::DnatForward if kind == 0 && holds(env, &rest, proto) => {}
        Role::SnatReply if kind == 0 && rest.flags & CT_REPLIED != 0 => {}
        Role::XdpForward if kind == CT_XDP | CT_FAST && holds(env, &rest, proto) => {
            return forward(frame, env, proto, &change, rest.nexthop & 0xffff);
        }
        Role::XdpReply if kind == CT_XDP | CT_FAST && rest.flags & CT_REPLIED != 0 => {
            return forward(frame, env, proto, &change, rest.nexthop >> 16);
        }
        _ => return Plain::General,
    }
    let fate = rewrite(frame, env, proto, &change);
    // as `tc::note`
    if rest.flags & CT_GUARD == 0 {
        frame.note(if rest.flags & CT_MASQ != 0 { Note::Owed } else { Note::Done });
    }
    fate
}

/// A frame with an Ethernet header on its way out.
#[inline(always)]
pub fn outward<F: Layout>(frame: &mut impl Direct, env: &mut impl Env<F>, config: &LbConfig) -> Plain {
    let Some((first, src, dst)) = F::glance_at(frame) else { return Plain::General };
    let (from_slot, to_slot) = (F::role_slot_inline(src), F::role_slot_inline(dst));
    let (from, to) = (env.roles_at(from_slot), env.roles_at(to_slot));
    let ours = (from | to) & ROLE_BACKEND != 0
        && Pair::of(from_slot, to_slot, |slot| env.pair_at(slot)).has_entries_out(from, to);
    if !ours {
        // an error of any router may quote a packet of ours; answers to a datagram with a frontend's number are guarded
        let other = to & ROLE_FRONTEND != 0
            || F::near_service_cidr(config, dst)
            || first == F::ICMP
            || first != TCP && from & (ROLE_FRONTEND | ROLE_NODEPORT) != 0
            || shares_pool(from, to) && !is_own::<F>(frame, config);
        return if other { Plain::General } else { Plain::Up };
    }
    match F::proto(frame) {
        Some(TCP) => outward_of(frame, env, config, TCP),
        Some(UDP) => outward_of(frame, env, config, UDP),
        _ => Plain::General,
    }
}

/// A segment in mid-stream whose source port is not of the pool, whatever its address is.
#[inline(always)]
fn is_own<F: Layout>(frame: &impl Direct, config: &LbConfig) -> bool {
    F::proto(frame) == Some(TCP) && F::ports(frame).is_some_and(|[sport, _]| !in_pool(config, sport))
}

#[inline(always)]
fn outward_of<F: Layout>(
    frame: &mut impl Direct,
    env: &mut impl Env<F>,
    config: &LbConfig,
    proto: u8,
) -> Plain {
    let Some(words) = F::words(frame, proto, POS_OUT) else { return Plain::General };
    let Some((change, rest)) = held(env, words) else { return Plain::General };
    let plain = match Role::of(rest.role) {
        Role::DnatReply => rest.flags & CT_REPLIED != 0 && config.flags & CFG_SOURCE_RULES == 0,
        Role::SnatForward => rest.flags & CT_GUARD == 0 || holds(env, &rest, proto),
        _ => false,
    };
    if plain { rewrite(frame, env, proto, &change) } else { Plain::General }
}

/// The established entry of this key, if it was refreshed in this tick: nothing is to be written to it.
#[inline(always)]
fn held<F: Layout>(env: &mut impl Env<F>, words: F::Words) -> Option<(Change<F>, Rest)> {
    let (change, rest) = env.established(words, take)?;
    (rest.flags & CT_PASS == 0 && rest.last_tick == ticks(env.now_ns())).then_some((change, rest))
}

/// As in [`crate::track::follow_at`]: a datagram follows its backend's generation.
#[inline(always)]
fn holds<F: Layout>(env: &impl Env<F>, rest: &Rest, proto: u8) -> bool {
    proto != UDP || env.generation(rest.backend) == rest.generation
}

#[inline(always)]
fn rewrite<F: Layout>(
    frame: &mut impl Direct,
    env: &mut impl Env<F>,
    proto: u8,
    change: &Change<F>,
) -> Plain {
    match F::translate(frame, proto, change, false) {
        Some(()) => Plain::Rewritten,
        None => refused(env),
    }
}

/// As [`crate::fast::forward`]: by this row, into a pod.
#[inline(always)]
fn forward<F: Layout>(
    frame: &mut impl Direct,
    env: &mut impl Env<F>,
    proto: u8,
    change: &Change<F>,
    row: u32,
) -> Plain {
    let way = env.next_hop(row);
    if way.ifindex == 0 || way.flags & NH_POD == 0 {
        return Plain::General;
    }
    let written = F::translate(frame, proto, change, true).and_then(|()| frame.store_words(0, &macs(&way)));
    if written.is_none() {
        return refused(env);
    }
    env.count(Counter::FastSent);
    Plain::Sent(way.ifindex)
}

#[inline(always)]
fn refused<F: Layout>(env: &mut impl Env<F>) -> Plain {
    env.count(Counter::DropRewrite);
    Plain::Drop
}
