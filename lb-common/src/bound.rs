//! Sockets of the host that are bound to an address, and were translated by a socket hook.
//!
//! The hook leaves the socket its address, and a backend elsewhere would answer to it: to a VIP that another node has, to
//! the uplink's address from behind an overlay. kube-proxy masquerades what the host sends to a Service (B80, B81). So
//! does this, with a SNAT pair and no other; the hook has decided, and left word in the socket. What is asked first is
//! the pair filter, so that packets of other sockets never get here.

use crate::abi::{CT_GUARD, LbConfig, SK_MASQ};
use crate::claim::begin;
use crate::env::{Env, Table, Work};
use crate::frame::Frame;
use crate::packet::LoadAddr;
use crate::tc::{guard_port, snat, to_snat};
use crate::verdict::Step;

/// A packet of this host to a backend, without an entry of its own: masquerades it if its socket (`work.sender`) is to
/// be, and comes from another address than the interface's: [`bound_snat`] is next.
///
/// A connection whose entries were lost goes on with the port that it had.
#[inline(always)]
pub fn bound<F: LoadAddr>(env: &mut impl Env<F>, config: &LbConfig, work: &mut Work<F>) -> Step {
    let own = env.iface(work.hook.ifindex).map_or(F::ZERO, |iface| F::snat_addr(&iface));
    if work.sender.flags & SK_MASQ == 0 || work.packet.src == own {
        return guard_port(env, config, work);
    }
    begin(work, env.now_ns());
    (work.flow.backend, work.flow.backend_port) = (work.packet.dst, work.packet.dport);
    (work.flow.frontend, work.flow.frontend_port) = (work.sender.frontend, work.sender.port);
    if !work.packet.begins_flow() {
        (work.flow.snat, work.flow.snat_port) = (own, work.sender.snat_port);
    }
    work.flow.flags = CT_GUARD;
    let _ = to_snat(work, Table::Young);
    Step::BoundSnat
}

/// [`snat`] of the flow that [`bound`] began; leaves the source port that it was given in `work.sender`.
#[inline(always)]
pub fn bound_snat<F: LoadAddr>(
    frame: &mut impl Frame,
    env: &mut impl Env<F>,
    config: &LbConfig,
    work: &mut Work<F>,
) -> Step {
    let step = snat(frame, env, config, work);
    work.sender.snat_port = work.flow.snat_port;
    step
}
