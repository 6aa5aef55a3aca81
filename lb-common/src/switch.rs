//! Client and backend on ports of one bridge.
//!
//! The client sends to its gateway, the bridge; the backend answers to the client itself, if it sees the client on its
//! own segment. Its answers are then switched, and netfilter sees one direction only: what follows the handshake would
//! be INVALID. So once an answer was switched, requests are switched as well: they get the backend's MAC address. Where
//! answers are routed, or the neighbour is not known, requests are routed, as the first packet of a flow always is: it
//! meets the FORWARD policy, and makes the bridge resolve the backend's address.

use crate::abi::{CT_MASQ, CT_SWITCHED};
use crate::counter::Counter;
use crate::env::{Env, Work};
use crate::family::Family;
use crate::flow::Role;
use crate::frame::Frame;
use crate::packet::LoadAddr;
use crate::verdict::Step;

/// Where a destination is, by the routes of the bridge.
#[repr(C, align(4))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Neighbour {
    /// The interface it is reached by; 0 = not known.
    pub ifindex: u32,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Zero.
    pub _pad: [u8; 2],
}

/// The packet in hand is an answer (its entry is in hand, too) that comes from a port of the bridge to which the
/// hook's interface belongs, and the flow is not known as switched yet.
#[inline(always)]
pub(crate) fn is_switched<F: Family>(env: &impl Env<F>, work: &Work<F>) -> bool {
    if Role::of(work.value.role) != Role::DnatReply || work.value.flags & (CT_MASQ | CT_SWITCHED) != 0 {
        return false;
    }
    let bridge = master(env, work.hook.ifindex);
    bridge != 0 && bridge == master(env, work.hook.ingress_ifindex)
}

/// ifindex of the bridge that an interface of the attach set is a port of; 0 = none.
#[inline(always)]
pub fn master<F: Family>(env: &impl Env<F>, ifindex: u32) -> u32 {
    env.iface(ifindex).map_or(0, |iface| iface.master)
}

/// Gives a rewritten request of a switched flow the MAC address of its backend, `work.neighbour`, if that is reached
/// over the bridge of which the hook's interface is a port.
#[inline(always)]
pub fn switch<F: LoadAddr>(frame: &mut impl Frame, env: &mut impl Env<F>, work: &mut Work<F>) -> Step {
    let Neighbour { ifindex, mac, .. } = work.neighbour;
    if ifindex == 0 || work.hook.l3 < 14 || ifindex != master(env, work.hook.ifindex) {
        return Step::Pass;
    }
    match frame.store(0, &mac) {
        Some(()) => Step::Pass,
        None => {
            env.count(Counter::DropRewrite);
            Step::Drop
        }
    }
}
