//! Fast forwarding between two pods of one node: an option, since netfilter's FORWARD does not see such packets.
//!
//! ```text
//! request   XdpForward   C:c -> F    => C:c' -> B     into the backend's pod
//! reply     XdpReply     B -> C:c'   => F -> C:c      into the client's pod
//! ```
//! A fast flow is of the XDP kind: one pair of entries, both at ingress, each with both NAT positions in one step, so that
//! both directions bypass the stack (which would otherwise see half a flow). Its source is kept. It is born at the ingress
//! hook of the client's interface, if the agent has made rows of `LB_NH` for both pods; a packet for which there is no
//! row any more is TC's to complete ([`crate::tc::complete`]), like one of a flow that began at XDP.

use crate::abi::{
    BE_LOCAL, CFG_FAST, CFG_FAST_FLOWS, CT_FAST, LbConfig, NH_POD, NextHop, ROLE_BACKEND, neighbour_row,
};
use crate::counter::Counter;
use crate::decide::Decision;
use crate::env::{Env, Work};
use crate::flow::Role;
use crate::frame::Frame;
use crate::packet::{Fragment, LoadAddr, TCP, UDP};
use crate::verdict::Step;
use crate::xdp::{L3, addressed};

/// A packet on its way in may be a reply of a fast flow (invariant I5); `false` is certain.
#[inline(always)]
pub(crate) fn may_be_reply<F: LoadAddr>(
    env: &impl Env<F>,
    config: &LbConfig,
    src: F::Addr,
    dst: F::Addr,
) -> bool {
    config.flags & CFG_FAST_FLOWS != 0 && env.roles(src) & ROLE_BACKEND != 0 && env.pair(src, dst).is_fast()
}

/// Makes the flow in hand, just aimed, a fast one (`CT_FAST` and no other flag) if it may be: the frame in hand came from a
/// pod and was sent to this node, its source is kept, and both pods have their rows. It is not claimed yet.
#[inline(always)]
pub(crate) fn prepare<F: LoadAddr>(
    frame: &impl Frame,
    env: &impl Env<F>,
    config: &LbConfig,
    work: &mut Work<F>,
    decision: &Decision<F>,
) {
    let (packet, hook) = (&work.packet, &work.hook);
    let plain = (packet.proto == TCP || packet.proto == UDP) && packet.fragment == Fragment::None;
    // of another node's endpoint it is something else
    let request = if decision.backend.flags & BE_LOCAL != 0 { decision.backend.nexthop } else { 0 };
    if config.flags & CFG_FAST == 0 || decision.masquerade || request == 0 || !plain || hook.l3 != L3 {
        return;
    }
    let reply = neighbour_row(hook.ifindex, &F::wide(packet.src));
    let (to, back) = (env.next_hop(request), env.next_hop(reply));
    // the row that the client's address leads to may be another one's
    if !is_pod(&to) || !is_pod(&back) || back.ifindex != hook.ifindex || to.ifindex == hook.ifindex {
        return;
    }
    if frame.load::<6>(0) != Some(back.smac) {
        return;
    }
    work.flow.nexthop = request | reply << 16;
    work.flow.flags = CT_FAST;
}

#[inline(always)]
fn is_pod(hop: &NextHop) -> bool {
    hop.ifindex != 0 && hop.flags & NH_POD != 0
}

/// Rewrites a packet of a fast flow by the entry in hand and addresses it to its pod: [`Step::Peer`]. Without a row TC
/// completes it; the last hop goes up as it came, so that the stack answers.
#[inline(always)]
pub fn forward<F: LoadAddr>(frame: &mut impl Frame, env: &mut impl Env<F>, work: &mut Work<F>) -> Step {
    let rows = work.value.nexthop;
    let row = if Role::of(work.value.role).is_reply() { rows >> 16 } else { rows & 0xffff };
    work.way = env.next_hop(row);
    if !is_pod(&work.way) || work.hook.l3 != L3 {
        return Step::Complete;
    }
    if let Some([0 | 1]) = frame.load::<1>(work.packet.l3 + F::HOPS) {
        return Step::Pass;
    }
    match addressed(frame, work) {
        Some(()) => {
            env.count(Counter::FastSent);
            Step::Peer
        }
        None => {
            env.count(Counter::DropRewrite);
            Step::Drop
        }
    }
}
