//! DSR: a packet for a backend of another node is sent there as it is, in an outer header; that node undoes it, does the
//! DNAT, and its answers go straight to the client. See docs/design/dsr.md.
//!
//! *The node that the client sends to* has one entry per flow ([`crate::flow::Role::DsrForward`]) and puts an outer header
//! from itself to the backend's node in front: IP in IP (RFC 2003, RFC 2473), or UDP with the packet right behind it (GUE
//! variant 1). *The backend's node* takes it off a packet that comes from a node of the cluster and is for a Service, and
//! goes on as if the packet had come from outside, but never by DSR again: a backend of its own if it has one.

use crate::abi::{
    BE_LOCAL, CT_DIRECT, CT_DSR, LbConfig, NODE_LOCAL, POS_IN, SVC_DSR, SVC_EXTERNAL, SvcValue,
};
use crate::claim::insert_forward;
use crate::counter::Counter;
use crate::csum::word_delta;
use crate::decide::{Decision, Source, is_nodeport};
use crate::env::{Env, Insert, Work};
use crate::family::Family;
use crate::flow::{Role, tag};
use crate::frame::Frame;
use crate::icmp;
use crate::nat::take_hop;
use crate::packet::{Fragment, LoadAddr, TCP, UDP, addresses, parse};
use crate::reject::{self, Complaint, ipv4_header};
use crate::tc::{inward, onward, tuple};
use crate::track::find;
use crate::verdict::{Step, Verdict, XdpStep};
use crate::xdp::{L3, link};

/// UDP port of GUE (IANA), network order.
pub const GUE_PORT: [u8; 2] = 6080u16.to_be_bytes();
/// UDP header.
const UDP_HEADER: usize = 8;
/// Fixed part of a TCP header.
const TCP_HEADER: usize = 20;
/// TCP options that are looked at in search of the MSS: there is room for 40 bytes.
const OPTIONS: usize = 10;

/// Length of an IP header without options.
const fn header<F: Family>() -> usize {
    if F::V6 { 40 } else { 20 }
}

/// Bytes that are put in front of a packet; `port` is the UDP port, 0 for IP in IP.
#[must_use]
#[inline(always)]
pub fn overhead<F: Family>(port: [u8; 2]) -> usize {
    header::<F>() + if port == [0; 2] { 0 } else { UDP_HEADER }
}

/// Whether the flow of a decision that delivers may go by DSR: it came from outside, would be masqueraded, and goes to
/// another node that takes such packets.
#[inline(always)]
pub fn applies<F: LoadAddr>(
    work: &Work<F>,
    service: &SvcValue,
    source: &Source,
    decision: &Decision<F>,
) -> bool {
    let packet = &work.packet;
    service.flags & SVC_DSR != 0
        && decision.masquerade
        && decision.backend.nexthop != 0
        && decision.backend.flags & BE_LOCAL == 0
        && !source.pod_facing
        && source.pod != Some(true)
        && work.direct == 0
        // the kernel sends Ethernet frames past the stack, nothing else
        && work.hook.l3 != 0
        && (packet.proto == TCP || packet.proto == UDP)
        && packet.fragment == Fragment::None
}

/// Begins the flow in hand (see [`crate::tc::new_flow`]) as a DSR flow to `node`, a row of the table of nodes; leaves its
/// entry in `work.key`, `work.value`. False: it is none, and as it was.
///
/// A node of the cluster is no client from outside: its own address would come back to it as a source from there.
/// A frontend is good only if the other node knows it, too: an address of a Service, or one that a Node object names.
#[inline(always)]
pub fn begin<F: Family>(env: &mut impl Env<F>, work: &mut Work<F>, node: u32) -> bool {
    let (own, peer) = (env.peer(0), env.peer(node));
    let (from, to) = (F::peer_addr(&own), F::peer_addr(&peer));
    if peer.flags & F::PEER == 0 || from == F::ZERO || to == F::ZERO || from == to {
        return false;
    }
    if env.is_cluster_node(work.flow.client) {
        return false;
    }
    let (frontend, port) = (work.flow.frontend, work.flow.frontend_port);
    if env.node(frontend) & NODE_LOCAL != 0
        && !env.is_cluster_node(frontend)
        && env.service(&F::svc_key(frontend, port, work.flow.proto)).is_none()
    {
        return false;
    }
    let (backend, backend_port, flags) = (work.flow.backend, work.flow.backend_port, work.flow.flags);
    (work.flow.backend, work.flow.backend_port) = (to, peer.port);
    (work.flow.snat, work.flow.snat_port, work.flow.flags) = (from, [0; 2], CT_DSR);
    work.flow.entry(Role::DsrForward, &mut work.key, &mut work.value);
    match insert_forward(env, work) {
        Insert::Done => {
            env.count(Counter::DsrFlow);
            return true;
        }
        // another CPU was faster
        Insert::Exists => {
            if find(env, &work.key, &mut work.value).is_some() && work.value.flags & CT_DSR != 0 {
                return true;
            }
        }
        Insert::Full => {}
    }
    (work.flow.backend, work.flow.backend_port, work.flow.flags) = (backend, backend_port, flags);
    work.flow.snat = F::ZERO;
    false
}

/// Bytes of the packet in hand in its outer header, or of the largest one that the frame stands for. `None`: malformed.
#[inline(always)]
pub fn wrapped_size<F: LoadAddr>(frame: &impl Frame, work: &Work<F>) -> Option<usize> {
    let packet = &work.packet;
    let segment = frame.segment();
    let size = if segment == 0 {
        F::end(frame, packet.l3)?.checked_sub(packet.l3)?
    } else {
        let transport = if packet.proto == TCP {
            let [offset] = frame.load(packet.l4 + 12)?;
            ((offset >> 4) as usize) * 4
        } else {
            UDP_HEADER
        };
        (packet.l4 - packet.l3) + transport + segment
    };
    Some(size + overhead::<F>(work.value.dport))
}

/// Puts the outer header of the entry in hand in front of the packet in hand. `None`: the packet must be dropped; it is
/// counted.
///
/// One hop is taken, as any router does, so that a loop of nodes that disagree ends. The outer header's own DF is set: the
/// packet is known to fit.
#[inline(always)]
pub fn wrap<F: LoadAddr>(frame: &mut impl Frame, env: &mut impl Env<F>, work: &Work<F>) -> Option<()> {
    let l3 = work.packet.l3;
    let Some(end) = F::end(frame, l3) else { return refused(env, Counter::DropRewrite) };
    if take_hop::<F>(frame, l3).is_none() {
        return refused(env, Counter::DropNoRoute);
    }
    match outer(frame, work, end.wrapping_sub(l3)) {
        Some(()) => {
            env.count(Counter::DsrSent);
            Some(())
        }
        None => refused(env, Counter::DropRewrite),
    }
}

#[inline(always)]
fn refused<F: Family>(env: &mut impl Env<F>, why: Counter) -> Option<()> {
    env.count(why);
    None
}

#[inline(always)]
fn outer<F: LoadAddr>(frame: &mut impl Frame, work: &Work<F>, inner: usize) -> Option<()> {
    let (l3, port) = (work.packet.l3, work.value.dport);
    frame.wrap(l3, overhead::<F>(port), port != [0; 2])?;
    headers(frame, work, inner)
}

/// Writes the outer header of a packet of so many bytes into the room that was made for it.
#[inline(always)]
fn headers<F: LoadAddr>(frame: &mut impl Frame, work: &Work<F>, inner: usize) -> Option<()> {
    let (l3, port) = (work.packet.l3, work.value.dport);
    let udp = port != [0; 2];
    let payload = inner + if udp { UDP_HEADER } else { 0 };
    let proto = if udp { UDP } else { F::WRAPPED };
    let (src, dst) = (work.value.src, work.value.dst);
    if F::V6 {
        let [high, low] = (payload as u16).to_be_bytes();
        frame.store(l3, &[0x60, 0, 0, 0, high, low, proto, 64])?;
        F::store_addresses(frame, l3 + F::ADDRS, src, dst)?;
    } else {
        ipv4_header::<F>(frame, l3, (payload + header::<F>()) as u16, proto, src, dst)?;
    }
    if udp {
        // the source port tells flows apart for who spreads load by it; below the pool of masqueraded ones
        let [_, _, a, b] = tag(&work.key).to_be_bytes();
        let [high, low] = (payload as u16).to_be_bytes();
        let [c, d] = port;
        // no checksum: RFC 768, RFC 6935; the packet inside has its own
        frame.store(l3 + header::<F>(), &[0x80 | a & 0x3f, b, c, d, high, low, 0, 0])?;
    }
    Some(())
}

/// [`wrap`] at XDP: puts the outer header in front of the packet in hand and addresses the frame to `work.way`, whose route
/// takes packets of `mtu` bytes. The bytes are those of TC. What does not fit goes up as it came, and TC answers it.
#[inline(always)]
pub fn enclose<F: LoadAddr>(
    frame: &mut impl Frame,
    env: &mut impl Env<F>,
    work: &Work<F>,
    mtu: usize,
) -> XdpStep {
    let port = work.value.dport;
    let over = overhead::<F>(port);
    let Some(inner) = F::end(frame, L3).map(|end| end.wrapping_sub(L3)) else { return XdpStep::Up };
    // there is more than one hop, or it would not be here
    if inner + over > mtu || frame.wrap(L3, over, port != [0; 2]).is_none() {
        return XdpStep::Up;
    }
    let done = headers(frame, work, inner)
        .and_then(|()| take_hop::<F>(frame, L3 + over))
        .and_then(|()| link(frame, &work.way));
    if done.is_none() {
        env.count(Counter::DropRewrite);
        return XdpStep::Drop;
    }
    env.count(Counter::DsrSent);
    env.count(Counter::XdpSent);
    XdpStep::Sent
}

/// Tells the sender of the packet in hand, which does not fit with its outer header, what would: `mtu` is that of the way
/// to the other node. Within the rate.
#[inline(always)]
pub fn too_big<F: LoadAddr>(
    frame: &mut impl Frame,
    env: &mut impl Env<F>,
    config: &LbConfig,
    work: &mut Work<F>,
    mtu: usize,
) -> Verdict {
    env.count(Counter::DsrTooBig);
    if work.packet.fragment == Fragment::Later
        // errors are not answered by errors (RFC 1122 section 3.2.2)
        || !work.packet.has_ports()
        || !reject::may_answer::<F>(work.packet.src)
        || reject::is_for_many(frame, work.hook.l3)
    {
        return Verdict::Drop;
    }
    if !work.rate.take(env.now_ns(), config.reject_rate) {
        env.count(Counter::RejectSuppressed);
        return Verdict::Drop;
    }
    let from = env.iface(work.hook.ifindex).map_or(F::ZERO, |iface| F::snat_addr(&iface));
    let from = if from == F::ZERO { work.packet.dst } else { from };
    let fits = mtu.saturating_sub(overhead::<F>(work.value.dport)) as u16;
    match reject::complain(frame, &work.packet, &mut work.quote, from, Complaint::too_big::<F>(fits)) {
        Some(()) => Verdict::Reply,
        None => {
            env.count(Counter::DropRewrite);
            Verdict::Drop
        }
    }
}

/// Carries out [`Step::Wrap`] where the kernel can't be asked.
pub fn send<F: LoadAddr>(
    frame: &mut impl Frame,
    env: &mut impl Env<F>,
    config: &LbConfig,
    work: &mut Work<F>,
) -> Verdict {
    let mtu = env.path_mtu(work.value.dst);
    match wrapped_size(frame, work) {
        Some(size) if size > mtu => too_big(frame, env, config, work, mtu),
        Some(_) => wrap(frame, env, work).map_or(Verdict::Drop, |()| Verdict::Out),
        None => refused(env, Counter::DropRewrite).map_or(Verdict::Drop, |()| Verdict::Drop),
    }
}

/// Whether the packet, whose IP header is at `l3` and whose addresses are in `work.packet`, may have been sent here by
/// another node's DSR: it has the outer header, and comes from a node of the cluster.
#[inline(always)]
pub fn may_be_wrapped<F: LoadAddr>(frame: &impl Frame, env: &impl Env<F>, work: &Work<F>, l3: usize) -> bool {
    let Some((length, proto, _)) = F::plain(frame, l3) else { return false };
    let shaped = proto == F::WRAPPED || proto == UDP && frame.load::<2>(l3 + length + 2) == Some(GUE_PORT);
    shaped && env.is_cluster_node(work.packet.src)
}

/// Takes the packet in hand out of its outer header, and goes on with it as with one from outside. One that is not for a
/// Service passes as it came: the node may have tunnels of its own.
#[inline(always)]
pub fn unwrap<F: LoadAddr>(
    frame: &mut impl Frame,
    env: &mut impl Env<F>,
    config: &LbConfig,
    work: &mut Work<F>,
) -> Step {
    let l3 = work.hook.l3;
    let own = env.peer(0);
    if own.flags & F::PEER == 0 || F::peer_addr(&own) != work.packet.dst {
        return Step::Pass;
    }
    let Some((length, proto, _)) = F::plain(frame, l3) else { return Step::Pass };
    let length = length + if proto == UDP { UDP_HEADER } else { 0 };
    if !is_for_service(frame, env, config, work, l3 + length) {
        return Step::Pass;
    }
    if frame.unwrap(l3, length).is_none() {
        env.count(Counter::DropRewrite);
        return Step::Drop;
    }
    env.count(Counter::DsrReceived);
    work.direct = 1;
    inward(frame, env, config, work)
}

/// Whether the packet whose IP header is at `l3` belongs to a flow that came by DSR, or to a frontend that others may
/// send here.
#[inline(always)]
fn is_for_service<F: LoadAddr>(
    frame: &mut impl Frame,
    env: &mut impl Env<F>,
    config: &LbConfig,
    work: &mut Work<F>,
    l3: usize,
) -> bool {
    let version = if F::V6 { 6 } else { 4 };
    if frame.load::<1>(l3).is_none() {
        frame.pull();
    }
    if frame.load::<1>(l3).is_none_or(|[first]| first >> 4 != version) {
        return false;
    }
    if !addresses::<F>(frame, l3, &mut work.packet) || !parse::<F>(frame, l3, &mut work.packet) {
        return false;
    }
    if work.packet.fragment == Fragment::Later {
        return env.meet_fragment(work, POS_IN) && work.value.flags & CT_DIRECT != 0;
    }
    if work.packet.is_error() {
        return icmp::meets_flow(frame, env, work, POS_IN) && work.value.flags & CT_DIRECT != 0;
    }
    if !work.packet.has_ports() {
        return false;
    }
    if frontend(env, config, work).is_some() {
        return true;
    }
    work.key = tuple(&work.packet, POS_IN);
    find(env, &work.key, &mut work.value).is_some() && work.value.flags & CT_DIRECT != 0
}

/// The external frontend that the packet in hand, which came by DSR, is for: a Service's address, or a NodePort of any
/// node of the cluster.
#[inline(always)]
pub fn frontend<F: LoadAddr>(env: &impl Env<F>, config: &LbConfig, work: &Work<F>) -> Option<SvcValue> {
    let packet = &work.packet;
    let exact = env.service(&F::svc_key(packet.dst, packet.dport, packet.proto));
    let found = match exact {
        Some(service) => Some(service),
        None if is_nodeport(config, packet.dport) && env.is_cluster_node(packet.dst) => {
            env.service(&F::svc_key(F::ZERO, packet.dport, packet.proto))
        }
        None => None,
    };
    found.filter(|service| service.flags & SVC_EXTERNAL != 0)
}

/// Lowers the MSS that the SYN-ACK in hand offers (rewritten by the entry in hand) to what fits with an outer header on
/// the interface that it leaves by, so that the client's segments need no error to shrink. Then it goes on.
#[inline(always)]
pub fn clamp<F: LoadAddr>(
    frame: &mut impl Frame,
    env: &mut impl Env<F>,
    config: &LbConfig,
    work: &mut Work<F>,
) -> Step {
    let mtu = env.iface(work.hook.ifindex).map_or(0, |iface| iface.mtu) as usize;
    // of the larger of the two, since this node does not know what others put in front
    let outer = overhead::<F>(GUE_PORT);
    if let Some(limit) = mtu.checked_sub(outer + header::<F>() + TCP_HEADER)
        && limit != 0
        && lower_mss(frame, work, limit as u16).is_none()
    {
        env.count(Counter::DropRewrite);
        return Step::Drop;
    }
    onward(config, work)
}

/// `None`: a write was refused.
#[inline(always)]
fn lower_mss<F: LoadAddr>(frame: &mut impl Frame, work: &Work<F>, limit: u16) -> Option<()> {
    let l4 = work.packet.l4;
    let Some([offset]) = frame.load::<1>(l4 + 12) else { return Some(()) };
    let end = ((offset >> 4) as usize) * 4;
    let mut at = TCP_HEADER;
    for _ in 0..OPTIONS {
        if at + 4 > end {
            break;
        }
        let Some([kind, length, high, low]) = frame.load::<4>(l4 + at) else { break };
        match kind {
            0 => break,
            1 => at += 1,
            2 => {
                if u16::from_be_bytes([high, low]) <= limit {
                    break;
                }
                let new = limit.to_be_bytes();
                let (old, now) = ([high, low], new);
                // words of the checksum begin at even offsets
                let swap = |[a, b]: [u8; 2]| if at.is_multiple_of(2) { [a, b] } else { [b, a] };
                frame.fix_l4(l4 + 16, 0, word_delta(swap(old), swap(now)), false)?;
                return frame.store(l4 + at + 2, &new);
            }
            _ if length < 2 => break,
            _ => at += length as usize,
        }
    }
    Some(())
}
