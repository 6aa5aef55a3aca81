//! The story of a packet at XDP, in front of the stack: what goes to a backend of another node is rewritten at both NAT
//! positions in one step and sent out, or as it is in an outer header ([`crate::dsr`]); its replies are turned back;
//! everything else goes up byte for byte as it came (invariant I2), and TC does the rest. Nothing is written to a frame
//! before all that could keep it here was asked.
//!
//! The rules are TC's own: [`crate::decide`], [`crate::track`], [`crate::nat`]. A flow keeps the kind it was born with: what
//! has entries of TC is TC's, and TC completes what began here ([`crate::tc::complete`]); a DSR flow is either hook's. A new
//! flow whose backend TC is to serve is begun *for* TC: a decision is a random draw, and must not be drawn twice.

use crate::abi::{
    BE_LOCAL, CT_DSR, CT_FAST, CT_XDP, LbConfig, NH_POD, NH_PORT, NODE_NODEPORT, NextHop, POS_IN, port_row,
};
use crate::abi::{ROLE_FRONTEND, ROLE_NODEPORT, ROLE_SNAT};
use crate::claim::{Claim, in_pool};
use crate::counter::Counter;
use crate::decide::{Outcome, Source, Target, decide, is_nodeport, target};
use crate::dsr;
use crate::env::{Env, Table, Work, ticks};
use crate::family::Family;
use crate::flow::Role;
use crate::frame::Frame;
use crate::nat::{rewrite, take_hop};
use crate::packet::{LoadAddr, parse_plain};
use crate::tc::{aim, tuple};
use crate::track::{Follow, find, follow_at};
use crate::verdict::XdpStep;

/// `nexthop` of a DSR flow that was asked for its way and has none by XDP: nothing fits.
const NO_WAY: u32 = 1 << 16;

/// Offset of the IP header: frames have an Ethernet header and no tag, or are not ours.
pub const L3: usize = 14;

/// Roles of a packet's destination that may make it the balancer's business (invariant I5). Asked before anything else; 0
/// is certain.
#[inline(always)]
pub fn concerns_xdp<F: LoadAddr>(frame: &impl Frame, env: &impl Env<F>) -> u8 {
    let Some(dst) = F::load_address(frame, L3 + F::ADDRS + size_of::<F::Addr>()) else { return 0 };
    env.roles(dst) & (ROLE_FRONTEND | ROLE_NODEPORT | ROLE_SNAT)
}

/// Whether a packet to this port (network order) of an address with these roles is meant for a frontend (true), or is
/// a reply to a masquerade (false). `None`: neither.
#[inline(always)]
pub(crate) fn meant(config: &LbConfig, roles: u8, dport: [u8; 2]) -> Option<bool> {
    let frontend = roles & ROLE_FRONTEND != 0 || roles & ROLE_NODEPORT != 0 && is_nodeport(config, dport);
    let reply = roles & ROLE_SNAT != 0 && in_pool(config, dport);
    (frontend || reply).then_some(frontend)
}

/// A packet that came in by an interface with XDP; `roles` are [`concerns_xdp`]'s.
#[inline(always)]
pub fn xdp_in<F: LoadAddr>(
    frame: &impl Frame,
    env: &mut impl Env<F>,
    config: &LbConfig,
    work: &mut Work<F>,
    roles: u8,
) -> XdpStep {
    let packet = &mut work.packet;
    if !crate::packet::addresses::<F>(frame, L3, packet) || !parse_plain::<F>(frame, L3, packet) {
        return XdpStep::Up;
    }
    let Some(frontend) = meant(config, roles, packet.dport) else { return XdpStep::Up };
    work.key = tuple(&work.packet, POS_IN);
    let Some(table) = find(env, &work.key, &mut work.value) else {
        let begins = frontend && work.packet.begins_flow() && is_mine(frame, env, work.hook.ifindex);
        return if begins { XdpStep::NewFlow } else { XdpStep::Up };
    };
    let dsr = work.value.flags & CT_DSR != 0;
    if !dsr && work.value.flags & (CT_XDP | CT_FAST) != CT_XDP || !is_mine(frame, env, work.hook.ifindex) {
        return XdpStep::Up;
    }
    work.young = (table == Table::Young) as u32;
    let tick = ticks(env.now_ns());
    // TC begins DSR flows, too, and asks for no rows
    if work.value.last_tick != tick || dsr && work.value.nexthop == 0 {
        return XdpStep::Visit;
    }
    go_on(env, work, table, tick)
}

/// The frame is for this interface: its destination is the MAC address of the row. Others (promiscuous mode, a switch
/// that floods) are not for us to forward.
#[inline(always)]
fn is_mine<F: Family>(frame: &impl Frame, env: &impl Env<F>, ifindex: u32) -> bool {
    let port = env.next_hop(port_row(ifindex));
    let Some(mac) = frame.load::<6>(0) else { return false };
    port.ifindex == ifindex && port.flags & NH_PORT != 0 && port.smac == mac
}

/// Follows the entry in hand.
#[inline(always)]
fn go_on<F: LoadAddr>(env: &mut impl Env<F>, work: &mut Work<F>, table: Table, tick: u32) -> XdpStep {
    match follow_at(env, work, table, tick) {
        Follow::Rewrite => XdpStep::Send,
        Follow::Pass => XdpStep::Up,
        Follow::Anew if work.packet.begins_flow() => XdpStep::NewFlow,
        Follow::Anew => XdpStep::Up,
    }
}

/// The first packet of a flow in a while: `way` is its next hop as the kernel's routes have it now, a row in the lower half
/// and what the route takes at most in the upper one. So a flow follows its routes within a second, and the agent has to
/// tell of links and neighbours only.
#[inline(always)]
pub fn visit<F: LoadAddr>(env: &mut impl Env<F>, work: &mut Work<F>, way: u32) -> XdpStep {
    let table = if work.young != 0 { Table::Young } else { Table::Established };
    let row = way & 0xffff;
    if work.value.flags & CT_DSR != 0 {
        // a flow of one direction: the size is in the place of the other row
        work.value.nexthop = if row == 0 { NO_WAY } else { way };
        let (tag, way) = (work.value.tag, work.value.nexthop);
        env.flow_tagged(table, &work.key, tag, |value| value.nexthop = way);
    } else {
        let other = if Role::of(work.value.role).is_reply() { 0x0000_ffff } else { 0xffff_0000 };
        let shift = if Role::of(work.value.role).is_reply() { 16 } else { 0 };
        work.value.nexthop = (work.value.nexthop & other) | row << shift;
    }
    let tick = ticks(env.now_ns());
    go_on(env, work, table, tick)
}

/// Rewrites the packet by the entry in hand and addresses it to its next hop. Without a next hop it goes up as it came,
/// and TC sends it on.
#[inline(always)]
pub fn send<F: LoadAddr>(frame: &mut impl Frame, env: &mut impl Env<F>, work: &mut Work<F>) -> XdpStep {
    let rows = work.value.nexthop;
    let row = if Role::of(work.value.role).is_reply() { rows >> 16 } else { rows & 0xffff };
    work.way = env.next_hop(row);
    if row == 0 || work.way.ifindex == 0 || work.way.flags & (NH_PORT | NH_POD) != 0 {
        return XdpStep::Up;
    }
    if work.value.flags & CT_DSR != 0 {
        return dsr::enclose(frame, env, work, (rows >> 16) as usize);
    }
    match addressed(frame, work) {
        Some(()) => {
            env.count(Counter::XdpSent);
            XdpStep::Sent
        }
        None => {
            env.count(Counter::DropRewrite);
            XdpStep::Drop
        }
    }
}

/// Does both NAT positions of the packet in hand, takes a hop, and addresses it to `work.way`.
#[inline(always)]
pub(crate) fn addressed<F: LoadAddr>(frame: &mut impl Frame, work: &Work<F>) -> Option<()> {
    rewrite(frame, &work.packet, &work.value)?;
    take_hop::<F>(frame, L3)?;
    link(frame, &work.way)
}

/// Gives the frame the link layer's addresses of a next hop.
#[inline(always)]
pub(crate) fn link(frame: &mut impl Frame, way: &NextHop) -> Option<()> {
    let NextHop { dmac: [a, b, c, d, e, f], smac: [g, h, i, j, k, l], .. } = *way;
    frame.store(0, &[a, b, c, d, e, f, g, h, i, j, k, l])
}

/// What XDP is to do with a packet that begins a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Choice {
    /// Nothing: TC decides, and answers or drops where the rules say so.
    Tc,
    /// The flow in hand is TC's: its backend is on this node, or its source is kept.
    Near,
    /// The flow in hand goes to another node and its source is replaced: XDP's, if there is a next hop either way.
    Far,
    /// The entry in hand is that of a new DSR flow; [`visit`] it.
    Dsr,
}

/// Decides a packet that begins a flow.
#[inline(always)]
pub fn choose<F: LoadAddr>(env: &mut impl Env<F>, config: &LbConfig, work: &mut Work<F>) -> Choice {
    let (src, dst) = (work.packet.src, work.packet.dst);
    let roles = env.roles(dst);
    let Target::Service(service) =
        target(env, config, roles, NODE_NODEPORT, dst, work.packet.dport, work.packet.proto)
    else {
        return Choice::Tc;
    };
    let if_flags = env.iface(work.hook.ifindex).map_or(0, |iface| iface.flags);
    let source = Source::packet::<F>(config, src, if_flags);
    let decision = decide(env, config, &service, src, work.packet.ports(), &source);
    if decision.outcome != Outcome::Deliver {
        return Choice::Tc;
    }
    aim(env, work, service.id, &decision);
    // what comes from other nodes this way has an outer header, and is TC's
    work.direct = 0;
    if dsr::applies(work, &service, &source, &decision) && env.begin_dsr(work, decision.backend.nexthop) {
        work.young = 1;
        return Choice::Dsr;
    }
    if decision.masquerade && decision.backend.flags & BE_LOCAL == 0 { Choice::Far } else { Choice::Near }
}

/// Begins the flow in hand: at XDP if its next hops are known, `request` towards the backend and `reply` towards the
/// client (rows of the next-hop table, 0 = none), and the interface it leaves by has an address to masquerade to;
/// otherwise for TC, which then finds its entries.
#[inline(always)]
pub fn begin_flow<F: LoadAddr>(
    env: &mut impl Env<F>,
    config: &LbConfig,
    work: &mut Work<F>,
    request: u32,
    reply: u32,
) -> XdpStep {
    let hop = env.next_hop(request);
    let back = env.next_hop(reply);
    if request != 0 && reply != 0 && hop.ifindex != 0 && back.ifindex != 0 {
        let snat = env.iface(hop.ifindex).map_or(F::ZERO, |iface| F::snat_addr(&iface));
        let flags = work.flow.flags;
        if snat != F::ZERO {
            work.flow.snat = snat;
            work.flow.nexthop = request | reply << 16;
            if env.claim_xdp(config, work) {
                return XdpStep::Send;
            }
            work.flow.flags = flags;
        }
    }
    for_tc(env, config, work)
}

/// Begins the flow in hand for TC.
#[inline(always)]
pub fn for_tc<F: LoadAddr>(env: &mut impl Env<F>, config: &LbConfig, work: &mut Work<F>) -> XdpStep {
    match env.claim(config, work) {
        Claim::New => env.count(Counter::NewFlow),
        // a refusal has been counted; TC tries once more, and drops the packet
        Claim::Known | Claim::Refused => {}
    }
    XdpStep::Up
}

/// Carries out the rare steps until the packet's fate is known: what the BPF side does by global functions.
pub fn walk<F: LoadAddr>(
    frame: &mut impl Frame,
    env: &mut impl Env<F>,
    config: &LbConfig,
    work: &mut Work<F>,
    first: XdpStep,
) -> XdpStep {
    let port = env.next_hop(port_row(work.hook.ifindex));
    let mut step = first;
    if step == XdpStep::Visit {
        let way = way(env, work, port.mtu);
        step = visit(env, work, way);
    }
    if step == XdpStep::NewFlow {
        step = match choose(env, config, work) {
            Choice::Tc => XdpStep::Up,
            Choice::Near => for_tc(env, config, work),
            Choice::Dsr => {
                let way = way(env, work, port.mtu);
                visit(env, work, way)
            }
            Choice::Far => {
                let flow = work.flow;
                let request = env.route(work.hook.ifindex, flow.client, flow.backend, port.mtu);
                let mtu = env.next_hop(request).mtu; // replies come in there
                let reply = env.route(work.hook.ifindex, flow.frontend, flow.client, mtu);
                begin_flow(env, config, work, request, reply)
            }
        };
    }
    if step == XdpStep::Send { send(frame, env, work) } else { step }
}

/// [`visit`]'s `way` where the kernel can't be asked.
fn way<F: LoadAddr>(env: &impl Env<F>, work: &Work<F>, mtu: u16) -> u32 {
    let (src, dst) = ends(work);
    let fits = env.path_mtu(work.value.dst).min(u16::MAX as usize) as u32;
    env.route(work.hook.ifindex, src, dst, least(work, mtu)) | fits << 16
}

/// What the route of the entry in hand has to take: all that comes in by an interface of this MTU. Of a DSR flow each packet
/// is asked for itself, since a full one has no room for an outer header.
#[inline(always)]
#[must_use]
pub fn least<F: LoadAddr>(work: &Work<F>, mtu: u16) -> u16 {
    if work.value.flags & CT_DSR != 0 { 1 } else { mtu }
}

/// Between whom the packet of the entry in hand is routed: as at TC, where the stack routes a request before its source
/// is replaced, and a reply belongs on the uplink of its new source; an outer header between nodes.
#[inline(always)]
#[must_use]
pub fn ends<F: LoadAddr>(work: &Work<F>) -> (F::Addr, F::Addr) {
    let new = Role::of(work.value.role).is_reply() || work.value.flags & CT_DSR != 0;
    (if new { work.value.src } else { work.packet.src }, work.value.dst)
}
