//! Connections straight to a backend, beside flows of Services between the same two.
//!
//! A client may use one source port towards a frontend and towards the backend behind it. Behind the DNAT both would
//! be C:c -> B, and B's answers could not be told apart. So the later one, which is the straight one here, is moved to
//! another source port of the same address: it becomes a flow whose frontend is the backend itself. (The other order
//! is [`crate::track::give_way`].)

use crate::abi::{CT_FAST, CT_PASS, LbConfig, POS_IN, POS_OUT};
use crate::claim::begin;
use crate::env::{Env, Work};
use crate::flow::{Role, is_closed};
use crate::frame::Frame;
use crate::packet::LoadAddr;
use crate::pair::Pair;
use crate::tc::{finish, reverse, tuple};
use crate::track::{Follow, find, follow};
use crate::verdict::Step;

/// A packet on its way in between two addresses that have a flow of a Service, to neither a frontend nor a SNAT address.
///
/// Passes unchanged unless it is a fast flow's reply, belongs to a connection that was moved, or begins one whose tuple
/// a Service's flow holds. A packet of that flow itself, which left and came in again by another interface, looks the same; it is told
/// by the interface.
#[inline(always)]
pub fn straight<F: LoadAddr>(
    frame: &mut impl Frame,
    env: &mut impl Env<F>,
    config: &LbConfig,
    work: &mut Work<F>,
) -> Step {
    if !work.packet.has_ports() {
        return Step::Pass;
    }
    work.key = tuple(&work.packet, POS_IN);
    let pair = env.pair(work.packet.src, work.packet.dst);
    // nothing else has an entry here, and most have none: to look for it in tables of this size is what costs
    let may_have = pair.is_moved() || pair.is_fast();
    if may_have && let Some(table) = find(env, &work.key, &mut work.value) {
        if work.value.flags & CT_FAST == 0 && work.value.ifindex != work.hook.ifindex {
            return Step::Pass;
        }
        match follow(env, work, table) {
            Follow::Rewrite => return finish(frame, env, config, work),
            Follow::Pass => return Step::Pass,
            Follow::Anew => {}
        }
    }
    if !work.packet.begins_flow() || !is_held(env, work, pair) {
        return Step::Pass;
    }
    begin(work, env.now_ns());
    (work.flow.backend, work.flow.backend_port) = (work.packet.dst, work.packet.dport);
    work.flow.generation = env.generation(0);
    Step::Start
}

/// A live flow of a Service that came in by the same interface holds the tuple of the packet in hand. One that has
/// ended is forgotten: its entry would turn the answers of the new connection into its own.
#[inline(always)]
fn is_held<F: LoadAddr>(env: &mut impl Env<F>, work: &mut Work<F>, pair: Pair) -> bool {
    work.key2 = reverse(&work.packet, POS_OUT);
    let mut role = Role::DnatReply;
    if find(env, &work.key2, &mut work.value2).is_none() {
        // a fast flow has its reply on its way in
        work.key2.position = POS_IN;
        role = Role::XdpReply;
        if !pair.is_fast()
            || find(env, &work.key2, &mut work.value2).is_none()
            || work.value2.flags & CT_FAST == 0
        {
            return false;
        }
    }
    let holder = &work.value2;
    if holder.role != role as u8 || holder.flags & CT_PASS != 0 {
        return false;
    }
    if is_closed(holder.flags) {
        work.flow.of(&work.key2, &work.value2);
        env.forget(work);
        return false;
    }
    holder.ifindex == work.hook.ifindex
}
