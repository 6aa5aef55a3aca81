//! The story of a packet at the two TC hooks: netfilter's own NAT positions, and no others (invariant I1).

use crate::abi::{
    CFG_FAST_FLOWS, CFG_MIGRATING, CFG_SOURCE_RULES, CT_DIRECT, CT_DSR, CT_FAST, CT_GUARD, CT_MASQ, CT_PASS,
    CT_SWITCHED, CT_XDP, CtKey, LbConfig,
};
use crate::abi::{NODE_NODEPORT, POS_IN, POS_OUT};
use crate::abi::{ROLE_BACKEND, ROLE_FRONTEND, ROLE_NODEPORT, ROLE_SNAT, ROLE_TUNNEL, SVC_LOCAL, SvcValue};
use crate::bound::{bound, bound_snat};
use crate::claim::{Claim, begin, in_pool};
use crate::counter::Counter;
use crate::decide::{Decision, Outcome, Source, Target, decide, is_nodeport, target};
use crate::dsr;
use crate::env::{Env, Table, Work};
use crate::fast;
use crate::flow::Role;
use crate::fragment::{is_ours, passes};
use crate::frame::{Frame, Note};
use crate::icmp;
use crate::nat::{rewrite, rewrite_fragment, rewrite_sctp, take_hop};
use crate::packet::{Fragment, LoadAddr, Packet, RST, SCTP, SYN, TCP, UDP, addresses, parse};
use crate::pair::shares_pool;
use crate::reject::{self, Complaint};
use crate::straight::straight;
use crate::switch::{master, switch};
use crate::track::{Follow, find, follow, pass_entry};
use crate::verdict::{Step, Verdict};

/// Whether a packet on its way in, at `work.hook`, may be the balancer's business: its destination may be a frontend, a SNAT
/// address or inside a service CIDR (invariant I5). Asked before anything else; `false` is certain.
#[inline(always)]
pub fn concerns_in<F: LoadAddr>(
    frame: &impl Frame,
    env: &impl Env<F>,
    config: &LbConfig,
    work: &mut Work<F>,
) -> bool {
    let l3 = work.hook.l3;
    let Some(dst) = F::load_address(frame, l3 + F::ADDRS + size_of::<F::Addr>()) else { return false };
    let roles = env.roles(dst);
    if roles & (ROLE_FRONTEND | ROLE_NODEPORT | ROLE_SNAT | ROLE_TUNNEL) != 0
        || F::near_service_cidr(config, dst)
    {
        return true;
    }
    // straight to a backend: only beside a flow of a Service between the two
    let straight = roles & ROLE_BACKEND != 0;
    if !straight && config.flags & CFG_FAST_FLOWS == 0 {
        return false;
    }
    F::load_address(frame, l3 + F::ADDRS).is_some_and(|src| {
        straight && env.pair(src, dst).to_backend() || fast::may_be_reply(env, config, src, dst)
    })
}

/// What the filters say of a packet on its way out: bits of `work.asked`.
mod asked {
    /// A flow of ours may have an entry for it; direct traffic of a backend has not.
    pub const OURS: u32 = 1 << 0;
    /// It may be a request to a backend of a flow that has none yet.
    pub const TO_BACKEND: u32 = 1 << 1;
    /// It goes to a frontend, or into a service CIDR.
    pub const SERVICE: u32 = 1 << 2;
    /// Another masquerade, or this host itself, may have taken a port of the pool.
    pub const SHARES_POOL: u32 = 1 << 3;
    /// It comes from a frontend.
    pub const FRONTEND: u32 = 1 << 4;
}

/// Whether a packet on its way out, at `work.hook`, may be the balancer's business (invariant I5): a flow of ours may be
/// between its addresses, or its source or destination may be a frontend. `false` is certain. Leaves its addresses and
/// what was asked of them in `work`.
#[inline(always)]
pub fn concerns_out<F: LoadAddr>(
    frame: &impl Frame,
    env: &impl Env<F>,
    config: &LbConfig,
    work: &mut Work<F>,
) -> bool {
    let Some((proto, src, dst)) = F::glance(frame, work.hook.l3) else { return false };
    (work.packet.src, work.packet.dst) = (src, dst);
    let (from, to, pair) = (env.roles(src), env.roles(dst), env.pair(src, dst));
    let service = to & ROLE_FRONTEND != 0 || F::near_service_cidr(config, dst);
    // a backend's address may be a frontend as well, and its requests are nobody's stray packets
    let to_backend =
        to & ROLE_BACKEND != 0 && pair.to_backend() && (service || pair.to_backend_masqueraded());
    let bit = |is: bool, bit: u32| if is { bit } else { 0 };
    work.asked = bit(pair.has_entries_out(from, to) || to_backend, asked::OURS)
        | bit(to_backend, asked::TO_BACKEND)
        | bit(service, asked::SERVICE)
        | bit(shares_pool(from, to), asked::SHARES_POOL)
        | bit(from & (ROLE_FRONTEND | ROLE_NODEPORT) != 0, asked::FRONTEND);
    // an error of any router may quote a packet of ours
    work.asked != 0 || proto == F::ICMP
}

/// A packet on its way in: DNAT of requests, un-SNAT of replies.
///
/// Looks further only for a destination that is a frontend, a SNAT address or inside a service CIDR (invariant I5).
#[inline(always)]
pub fn tc_in<F: LoadAddr>(
    frame: &mut impl Frame,
    env: &mut impl Env<F>,
    config: &LbConfig,
    work: &mut Work<F>,
) -> Step {
    let l3 = work.hook.l3;
    if !addresses::<F>(frame, l3, &mut work.packet) {
        return Step::Pass;
    }
    if env.roles(work.packet.dst) & ROLE_TUNNEL != 0 && dsr::may_be_wrapped(frame, env, work, l3) {
        return Step::Unwrap;
    }
    work.direct = 0;
    inward(frame, env, config, work)
}

/// [`tc_in`] of a packet without an outer header; `work.direct` says whether it had one.
#[inline(always)]
pub(crate) fn inward<F: LoadAddr>(
    frame: &mut impl Frame,
    env: &mut impl Env<F>,
    config: &LbConfig,
    work: &mut Work<F>,
) -> Step {
    let l3 = work.hook.l3;
    let direct = work.direct != 0;
    if direct && !addresses::<F>(frame, l3, &mut work.packet) {
        return Step::Drop;
    }
    let roles = env.roles(work.packet.dst);
    let service_address =
        direct || roles & ROLE_FRONTEND != 0 || F::near_service_cidr(config, work.packet.dst);
    let pair = env.pair(work.packet.src, work.packet.dst);
    let beside = roles & ROLE_BACKEND != 0 && pair.to_backend();
    let reply = fast::may_be_reply(env, config, work.packet.src, work.packet.dst);
    if !service_address && roles & (ROLE_NODEPORT | ROLE_SNAT) == 0 && !beside && !reply {
        return Step::Pass;
    }
    if !parse::<F>(frame, l3, &mut work.packet) {
        return Step::Pass;
    }
    if work.packet.fragment != Fragment::None && env.meet_fragment(work, POS_IN) {
        return Step::Fragment;
    }
    if work.packet.fragment == Fragment::Later {
        // no ports, and the first fragment was not seen
        return if is_ours(env, work.packet.dst) {
            drop(env, Counter::DropFragment)
        } else {
            unknown(env, work)
        };
    }
    let node_port = roles & ROLE_NODEPORT != 0 && is_nodeport(config, work.packet.dport);
    let masqueraded = roles & ROLE_SNAT != 0 && in_pool(config, work.packet.dport);
    if !service_address && !node_port && !masqueraded {
        if work.packet.is_error() {
            return Step::ErrorIn;
        }
        let moved = beside && pair.is_moved();
        let straight = reply || moved || beside && work.packet.begins_flow();
        return if straight { Step::Straight } else { Step::Pass };
    }
    work.renews = 0;
    if work.packet.has_ports() {
        work.key = tuple(&work.packet, POS_IN);
        let mut found = find(env, &work.key, &mut work.value);
        if direct && found.is_some() && work.value.flags & CT_DSR != 0 {
            // nodes disagree; it must not go round between them
            work.flow.of(&work.key, &work.value);
            env.forget(work);
            found = None;
        }
        if let Some(table) = found {
            match follow(env, work, table) {
                Follow::Rewrite => return finish(frame, env, config, work),
                Follow::Pass => return Step::Pass,
                Follow::Anew => {}
            }
        }
    }
    if is_moving(config, &work.packet) {
        return drop(env, Counter::DropMigrating);
    }
    // no other node's netfilter carries it, and the client, who knows nothing of this, goes on sending
    if direct && work.packet.has_ports() && work.packet.kind & RST == 0 {
        return Step::NewFlow;
    }
    // a TCP packet in mid-stream without state may be of a connection that netfilter carries
    if !work.packet.begins_flow() || (!work.packet.has_ports() && !is_echo_request(&work.packet)) {
        return if work.packet.is_error() { Step::ErrorIn } else { unknown(env, work) };
    }
    Step::NewFlow
}

/// A packet that nobody here has a use for: on to the stack as it came, and with a first fragment those that follow it;
/// unless another node sent it, to which the stack might send it back.
#[inline(always)]
fn unknown<F: LoadAddr>(env: &mut impl Env<F>, work: &mut Work<F>) -> Step {
    if work.direct != 0 {
        return drop(env, Counter::DropDsrUnknown);
    }
    if work.packet.fragment == Fragment::First {
        passes(env, work, POS_IN);
    }
    Step::Pass
}

/// Decides a packet that begins a flow, or may be rejected.
///
/// A flow that has ended, and was to be replaced by the new one, is forgotten if there is none: what follows is
/// somebody else's.
#[inline(always)]
pub fn new_flow<F: LoadAddr>(
    frame: &mut impl Frame,
    env: &mut impl Env<F>,
    config: &LbConfig,
    work: &mut Work<F>,
) -> Step {
    let step = decided(frame, env, config, work);
    if work.renews != 0 && step != Step::Start {
        env.forget(work);
    }
    step
}

/// The new flow in hand, or why there is none.
#[inline(always)]
fn decided<F: LoadAddr>(
    frame: &mut impl Frame,
    env: &mut impl Env<F>,
    config: &LbConfig,
    work: &mut Work<F>,
) -> Step {
    let (src, dst) = (work.packet.src, work.packet.dst);
    let roles = env.roles(dst);
    let direct = work.direct != 0;
    let aimed = if direct {
        dsr::frontend(env, config, work).map_or(Target::NotOurs, Target::Service)
    } else {
        target(env, config, roles, NODE_NODEPORT, dst, work.packet.dport, work.packet.proto)
    };
    let service = match aimed {
        Target::NotOurs if direct => return drop(env, Counter::DropDsrUnknown),
        Target::NotOurs if roles & ROLE_BACKEND != 0 => return Step::Straight,
        Target::NotOurs => return unknown(env, work),
        Target::UnknownAddress => return drop(env, Counter::DropUnknownAddress),
        Target::UnknownPort => return answer_for(work, Counter::RejectUnknownPort),
        // another node chose this one for an endpoint here: as if the policy said so, and the answer leaves from here
        Target::Service(service) if direct && service.local_len != 0 => {
            SvcValue { flags: service.flags | SVC_LOCAL, ..service }
        }
        Target::Service(service) => service,
    };
    let if_flags = env.iface(work.hook.ifindex).map_or(0, |iface| iface.flags);
    let source = Source::packet::<F>(config, src, if_flags);
    let decision = decide(env, config, &service, src, work.packet.ports(), &source);
    match decision.outcome {
        Outcome::Drop => return drop(env, decision.reason),
        Outcome::Reject => return answer_for(work, decision.reason),
        Outcome::Deliver => {}
    }
    aim(env, work, service.id, &decision);
    if direct {
        work.flow.flags |= CT_DIRECT;
    }
    if dsr::applies(work, &service, &source, &decision) && env.begin_dsr(work, decision.backend.nexthop) {
        return Step::Wrap;
    }
    fast::prepare(frame, env, config, work, &decision);
    Step::Start
}

/// Makes the entries of the flow in hand, which is aimed at its backend, and rewrites its first packet. A step of its own:
/// the decision's stack is free again.
#[inline(always)]
pub fn start<F: LoadAddr>(
    frame: &mut impl Frame,
    env: &mut impl Env<F>,
    config: &LbConfig,
    work: &mut Work<F>,
) -> Step {
    if work.flow.flags & CT_FAST != 0 {
        if env.claim_xdp(config, work) {
            env.count(Counter::NewFlow);
            return Step::Fast;
        }
        work.flow.flags = 0;
    }
    match env.claim(config, work) {
        Claim::Refused => return Step::Drop,
        Claim::New if !work.flow.is_straight() => env.count(Counter::NewFlow),
        Claim::New | Claim::Known => {}
    }
    finish(frame, env, config, work)
}

/// Begins the flow in hand with the packet in hand, to the backend of a decision that delivers.
#[inline(always)]
pub(crate) fn aim<F: LoadAddr>(
    env: &mut impl Env<F>,
    work: &mut Work<F>,
    service: u32,
    decision: &Decision<F>,
) {
    begin(work, env.now_ns());
    let backend = &decision.backend;
    (work.flow.backend, work.flow.backend_port) = (backend.addr, backend.port);
    (work.flow.backend_id, work.flow.generation) = (decision.id, decision.generation);
    work.flow.service = service;
    work.flow.flags = if decision.masquerade { CT_MASQ } else { 0 };
}

/// A packet on its way out, of which [`concerns_out`] was true: SNAT of requests, un-DNAT of replies, and the last word on
/// packets that are still addressed to a frontend.
#[inline(always)]
pub fn tc_out<F: LoadAddr>(
    frame: &mut impl Frame,
    env: &mut impl Env<F>,
    config: &LbConfig,
    work: &mut Work<F>,
) -> Step {
    if env.roles(work.packet.src) & (ROLE_SNAT | ROLE_FRONTEND | ROLE_NODEPORT) != 0 {
        work.note = 0; // another masquerade has changed it since
    }
    if work.note & Note::Done as u32 != 0 {
        return Step::Pass;
    }
    if !parse::<F>(frame, work.hook.l3, &mut work.packet) {
        return Step::Pass;
    }
    if work.packet.fragment != Fragment::None && env.meet_fragment(work, POS_OUT) {
        return Step::Fragment;
    }
    if work.packet.fragment == Fragment::Later {
        return if owed(work) { Step::ToBackend } else { Step::Pass };
    }
    if work.asked & asked::OURS != 0 && work.packet.has_ports() {
        work.key = tuple(&work.packet, POS_OUT);
        if let Some(table) = find(env, &work.key, &mut work.value) {
            match follow(env, work, table) {
                Follow::Rewrite => return finish(frame, env, config, work),
                Follow::Pass => return Step::Pass,
                Follow::Anew => {}
            }
        }
    }
    if work.packet.is_error() {
        return Step::ErrorOut;
    }
    let asked = work.asked;
    // a reply whose entry is still on its way; a request is looked at below
    if asked & (asked::OURS | asked::TO_BACKEND) == asked::OURS && is_moving(config, &work.packet) {
        return drop(env, Counter::DropMigrating);
    }
    let pooled = asked & asked::SHARES_POOL != 0 && in_pool(config, work.packet.sport);
    if owed(work) || work.packet.has_ports() && (asked & asked::TO_BACKEND != 0 || pooled) {
        return Step::ToBackend;
    }
    if asked & asked::SERVICE != 0 {
        return Step::LastWord;
    }
    guarded(env, config, work)
}

/// Egress must not let the packet in hand pass as it is.
#[inline(always)]
fn owed<F: LoadAddr>(work: &Work<F>) -> bool {
    work.note & Note::Owed as u32 != 0
}

/// [`Step::GuardReply`] for a datagram that may leave with a frontend's address and port as its source.
#[inline(always)]
fn guarded<F: LoadAddr>(env: &impl Env<F>, config: &LbConfig, work: &Work<F>) -> Step {
    let from = env.roles(work.packet.src);
    let frontend =
        from & ROLE_FRONTEND != 0 || from & ROLE_NODEPORT != 0 && is_nodeport(config, work.packet.sport);
    if work.packet.proto == UDP && frontend { Step::GuardReply } else { Step::Pass }
}

/// A packet to a backend that has no entry of its own at egress: the first one of a flow that is to be masqueraded, or
/// one of a flow that is not, or of no flow at all. Or any packet whose entry there was lost since it was at ingress.
#[inline(always)]
pub fn to_backend<F: LoadAddr>(env: &mut impl Env<F>, config: &LbConfig, work: &mut Work<F>) -> Step {
    work.key2 = reverse(&work.packet, POS_OUT);
    let found = find(env, &work.key2, &mut work.value2);
    if let Some(table) = found
        && work.value2.role == Role::DnatReply as u8
        && work.value2.flags & CT_MASQ != 0
    {
        work.flow.of(&work.key2, &work.value2);
        return to_snat(work, table);
    }
    if found.is_none() && is_moving(config, &work.packet) {
        return drop(env, Counter::DropMigrating);
    }
    if owed(work) {
        return drop(env, Counter::DropFlowLost);
    }
    if found.is_some() {
        return Step::Pass;
    }
    if work.hook.ingress_ifindex == 0 && env.pair(work.packet.src, work.packet.dst).is_bound() {
        return Step::Bound;
    }
    guard_port(env, config, work)
}

/// A datagram that leaves with a frontend's address and port as its source (a host port in the NodePort range, a
/// masqueraded query): its answer must not be balanced as a new flow.
#[inline(always)]
pub fn guard_reply<F: LoadAddr>(env: &mut impl Env<F>, config: &LbConfig, work: &mut Work<F>) -> Step {
    let (src, port) = (work.packet.src, work.packet.sport);
    if let Target::Service(_) = target(env, config, env.roles(src), NODE_NODEPORT, src, port, UDP) {
        work.key2 = reverse(&work.packet, POS_IN);
        // an answer of a flow that was sent on to another uplink looks the same
        if find(env, &work.key2, &mut work.value2).is_none() {
            pass_reply(env, work);
        }
    }
    Step::Pass
}

/// A packet that is still addressed to a frontend when it leaves. There is no DNAT this late: reject and drop are
/// carried out for what this host sends, and a TCP packet without state is reset, or it would loop to the gateway.
#[inline(always)]
pub fn last_word<F: LoadAddr>(env: &mut impl Env<F>, config: &LbConfig, work: &mut Work<F>) -> Step {
    let packet = work.packet;
    let local = work.hook.ingress_ifindex == 0;
    let stray = packet.proto == TCP && !packet.begins_flow();
    if is_moving(config, &packet) {
        return drop(env, Counter::DropMigrating);
    }
    if !stray && (!local || (!packet.has_ports() && !is_echo_request(&packet))) {
        return Step::Pass;
    }
    let service = match target(
        env,
        config,
        env.roles(packet.dst),
        NODE_NODEPORT,
        packet.dst,
        packet.dport,
        packet.proto,
    ) {
        Target::NotOurs => return Step::Pass,
        Target::UnknownAddress => return drop(env, Counter::DropUnknownAddress),
        Target::UnknownPort if stray => return Step::Reset,
        Target::UnknownPort => return answer_for(work, Counter::RejectUnknownPort),
        Target::Service(_) if stray => return Step::Reset,
        Target::Service(service) => service,
    };
    let source = Source::host::<F>(config, Some(packet.src));
    let decision = decide(env, config, &service, packet.src, packet.ports(), &source);
    match decision.outcome {
        Outcome::Drop => drop(env, decision.reason),
        Outcome::Reject => answer_for(work, decision.reason),
        Outcome::Deliver => Step::Pass,
    }
}

/// The packet may belong to a flow whose entries are on their way into another table.
#[inline(always)]
fn is_moving<F: LoadAddr>(config: &LbConfig, packet: &Packet<F>) -> bool {
    config.flags & CFG_MIGRATING != 0 && !packet.begins_flow()
}

/// On to [`snat`], for the flow in hand, whose reply half is in this table.
#[inline(always)]
pub(crate) fn to_snat<F: LoadAddr>(work: &mut Work<F>, table: Table) -> Step {
    work.young = (table == Table::Young) as u32;
    Step::Snat
}

/// Makes the SNAT pair of the flow in hand and rewrites its first packet.
#[inline(always)]
pub fn snat<F: LoadAddr>(
    frame: &mut impl Frame,
    env: &mut impl Env<F>,
    config: &LbConfig,
    work: &mut Work<F>,
) -> Step {
    let table = if work.young != 0 { Table::Young } else { Table::Established };
    match env.claim_snat(config, work, table) {
        Claim::Refused => Step::Drop,
        Claim::New | Claim::Known => finish(frame, env, config, work),
    }
}

/// A packet of this host, or of another masquerade, with a source port of the pool: takes the port out of the pool
/// towards this backend by a pass entry, or moves it to another port if a flow of ours has it.
#[inline(always)]
pub(crate) fn guard_port<F: LoadAddr>(env: &mut impl Env<F>, config: &LbConfig, work: &mut Work<F>) -> Step {
    if env.roles(work.packet.src) & ROLE_SNAT == 0 || !in_pool(config, work.packet.sport) {
        // some other flow is between the two, maybe
        return guarded(env, config, work);
    }
    work.key2 = reverse(&work.packet, POS_IN);
    if find(env, &work.key2, &mut work.value2).is_none() {
        pass_reply(env, work);
        return Step::Pass;
    }
    if work.value2.flags & CT_PASS != 0 {
        return Step::Pass;
    }
    // a packet of that very flow, which TC completed at its ingress
    if work.value2.flags & CT_XDP != 0 && work.hook.ingress_ifindex != 0 {
        return Step::Pass;
    }
    begin(work, env.now_ns());
    (work.flow.backend, work.flow.backend_port) = (work.packet.dst, work.packet.dport);
    work.flow.flags = CT_GUARD;
    to_snat(work, Table::Young)
}

/// Lets the answer to this packet pass unchanged.
#[inline(always)]
fn pass_reply<F: LoadAddr>(env: &mut impl Env<F>, work: &mut Work<F>) {
    work.key2 = reverse(&work.packet, POS_IN);
    pass_entry(env, work);
}

/// The key of a packet at a position.
#[inline(always)]
pub(crate) fn tuple<F: LoadAddr>(packet: &Packet<F>, position: u8) -> CtKey<F> {
    CtKey {
        src: packet.src,
        dst: packet.dst,
        sport: packet.sport,
        dport: packet.dport,
        proto: packet.proto,
        position,
        _pad: [0; 2],
    }
}

/// The key of the packet's answer at a position.
#[inline(always)]
pub(crate) fn reverse<F: LoadAddr>(packet: &Packet<F>, position: u8) -> CtKey<F> {
    CtKey {
        src: packet.dst,
        dst: packet.src,
        sport: packet.dport,
        dport: packet.sport,
        proto: packet.proto,
        position,
        _pad: [0; 2],
    }
}

/// Rewrites by the entry in hand.
#[inline(always)]
pub(crate) fn finish<F: LoadAddr>(
    frame: &mut impl Frame,
    env: &mut impl Env<F>,
    config: &LbConfig,
    work: &mut Work<F>,
) -> Step {
    if work.value.flags & CT_DSR != 0 {
        if work.packet.fragment == Fragment::First {
            env.remember_fragment(work, POS_IN);
        }
        return Step::Wrap;
    }
    if work.packet.proto == SCTP {
        return Step::Sctp;
    }
    if work.value.flags & CT_XDP != 0 {
        let fast = work.value.flags & CT_FAST != 0 && work.packet.fragment == Fragment::None;
        return if fast { Step::Fast } else { Step::Complete };
    }
    match rewrite(frame, &work.packet, &work.value) {
        Some(()) => rewritten(env, config, work),
        None => drop(env, Counter::DropRewrite),
    }
}

/// Tells egress what it is to know of a packet that ingress has rewritten by the entry in hand.
#[inline(always)]
pub fn note<F: LoadAddr>(frame: &mut impl Frame, work: &Work<F>) -> Step {
    if work.value.flags & CT_GUARD == 0 {
        frame.note(if work.value.flags & CT_MASQ != 0 { Note::Owed } else { Note::Done });
    }
    Step::Pass
}

/// Carries out both NAT positions of a packet whose flow began at XDP, which left it to TC (the program was taken off
/// the interface, a fragment, no next hop): the stack knows neither of the addresses and would meet the flow in
/// mid-stream. What follows is [`Step::Out`].
#[inline(always)]
pub fn complete<F: LoadAddr>(frame: &mut impl Frame, env: &mut impl Env<F>, work: &mut Work<F>) -> Step {
    if take_hop::<F>(frame, work.packet.l3).is_none() {
        return drop(env, Counter::DropNoRoute);
    }
    let written = match work.packet.fragment {
        Fragment::Later => rewrite_fragment(frame, &work.packet, &work.value),
        _ => rewrite(frame, &work.packet, &work.value),
    };
    if written.is_none() {
        return drop(env, Counter::DropRewrite);
    }
    if work.packet.fragment == Fragment::First {
        env.remember_fragment(work, POS_IN);
    }
    env.count(Counter::XdpCompleted);
    Step::Out
}

/// Rewrites an SCTP packet by the entry in hand.
#[inline(always)]
pub fn sctp<F: LoadAddr>(
    frame: &mut impl Frame,
    env: &mut impl Env<F>,
    config: &LbConfig,
    work: &mut Work<F>,
) -> Step {
    match rewrite_sctp(frame, &work.packet, &work.value) {
        Some(()) => rewritten(env, config, work),
        None => drop(env, Counter::DropSctpPort),
    }
}

/// Remembers what a first fragment became, and says where the packet goes.
#[inline(always)]
fn rewritten<F: LoadAddr>(env: &mut impl Env<F>, config: &LbConfig, work: &mut Work<F>) -> Step {
    if work.packet.fragment != Fragment::None {
        env.remember_fragment(work, work.key.position);
    }
    // the answer to the first packet of a flow that came by DSR
    if work.value.flags & CT_DIRECT != 0
        && work.value.role == Role::DnatReply as u8
        && work.packet.proto == TCP
        && work.packet.kind & SYN != 0
    {
        return Step::Clamp;
    }
    onward(config, work)
}

/// Where a rewritten packet goes: up or out; between two ports of a bridge across; and a reply whose source is now the
/// frontend may belong on another uplink than the one that the stack chose for the backend's address. L3 devices are
/// left out there: the kernel redirects Ethernet frames only.
#[inline(always)]
pub(crate) fn onward<F: LoadAddr>(config: &LbConfig, work: &Work<F>) -> Step {
    if work.value.flags & CT_SWITCHED != 0 && work.value.role == Role::DnatForward as u8 {
        return Step::Switch;
    }
    let asked =
        config.flags & CFG_SOURCE_RULES != 0 && work.value.role == Role::DnatReply as u8 && work.hook.l3 != 0;
    if asked {
        return Step::Reroute;
    }
    let inward = work.value.role == Role::DnatForward as u8 || work.value.role == Role::SnatReply as u8;
    if inward { Step::Note } else { Step::Pass }
}

/// A later fragment whose first fragment was seen: it becomes what that one became.
#[inline(always)]
pub fn fragment<F: LoadAddr>(
    frame: &mut impl Frame,
    env: &mut impl Env<F>,
    config: &LbConfig,
    work: &mut Work<F>,
) -> Step {
    if work.value.flags & CT_DSR != 0 {
        return Step::Wrap;
    }
    if work.value.flags & CT_XDP != 0 {
        return Step::Complete;
    }
    match rewrite_fragment(frame, &work.packet, &work.value) {
        Some(()) => onward(config, work),
        None => drop(env, Counter::DropRewrite),
    }
}

#[inline(always)]
fn drop<F: LoadAddr>(env: &mut impl Env<F>, counter: Counter) -> Step {
    env.count(counter);
    Step::Drop
}

/// The step that answers the packet in hand for this reason.
#[inline(always)]
fn answer_for<F: LoadAddr>(work: &mut Work<F>, reason: Counter) -> Step {
    work.reason = reason;
    Step::Answer
}

/// Answers the packet in hand with an ICMP error, within the rate: from the interface's own address; to this host
/// itself from the packet's destination, since its own address as a source from outside would be a martian.
#[inline(always)]
pub fn answer<F: LoadAddr>(
    frame: &mut impl Frame,
    env: &mut impl Env<F>,
    config: &LbConfig,
    work: &mut Work<F>,
) -> Verdict {
    env.count(work.reason);
    if !reject::may_answer::<F>(work.packet.src) || reject::is_for_many(frame, work.hook.l3) {
        return Verdict::Drop;
    }
    if !work.rate.take(env.now_ns(), config.reject_rate) {
        env.count(Counter::RejectSuppressed);
        return Verdict::Drop;
    }
    let from = env.iface(work.hook.ifindex).map_or(F::ZERO, |iface| F::snat_addr(&iface));
    let local = work.hook.ingress_ifindex == 0;
    let from = if local || from == F::ZERO { work.packet.dst } else { from };
    reply(env, reject::complain(frame, &work.packet, &mut work.quote, from, Complaint::port::<F>()))
}

/// Answers the TCP packet in hand with a reset, within the rate.
#[inline(always)]
pub fn reset<F: LoadAddr>(
    frame: &mut impl Frame,
    env: &mut impl Env<F>,
    config: &LbConfig,
    work: &mut Work<F>,
) -> Verdict {
    if work.packet.kind & RST != 0 || !work.rate.take(env.now_ns(), config.reject_rate) {
        return Verdict::Drop;
    }
    env.count(Counter::ResetNoState);
    reply(env, reject::tcp_reset(frame, &work.packet))
}

#[inline(always)]
fn reply<F: LoadAddr>(env: &mut impl Env<F>, written: Option<()>) -> Verdict {
    match written {
        Some(()) => Verdict::Reply,
        None => {
            env.count(Counter::DropRewrite);
            Verdict::Drop
        }
    }
}

/// Carries out the rare steps until there is a verdict: what the BPF side does by global functions.
pub fn walk<F: LoadAddr>(
    frame: &mut impl Frame,
    env: &mut impl Env<F>,
    config: &LbConfig,
    work: &mut Work<F>,
    first: Step,
) -> Verdict {
    let mut step = first;
    loop {
        step = match step {
            Step::Pass | Step::Reroute => return Verdict::Pass,
            Step::Drop => return Verdict::Drop,
            Step::Out => return Verdict::Out,
            Step::Complete => complete(frame, env, work),
            Step::Fast => fast::forward(frame, env, work),
            Step::Peer => return Verdict::Peer(work.way.ifindex),
            Step::Answer => return answer(frame, env, config, work),
            Step::Reset => return reset(frame, env, config, work),
            Step::NewFlow => new_flow(frame, env, config, work),
            Step::Start => start(frame, env, config, work),
            Step::LastWord => last_word(env, config, work),
            Step::GuardReply => guard_reply(env, config, work),
            Step::ToBackend => to_backend(env, config, work),
            Step::Snat => snat(frame, env, config, work),
            Step::Fragment => fragment(frame, env, config, work),
            Step::Sctp => sctp(frame, env, config, work),
            Step::Straight => straight(frame, env, config, work),
            Step::Bound => {
                work.sender = env.sender(&work.packet);
                bound(env, config, work)
            }
            Step::BoundSnat => bound_snat(frame, env, config, work),
            Step::Switch => {
                let bridge = master(env, work.hook.ifindex);
                work.neighbour = env.neighbour(bridge, work.value.src, work.value.dst);
                switch(frame, env, work)
            }
            Step::Unwrap => dsr::unwrap(frame, env, config, work),
            Step::Wrap => return dsr::send(frame, env, config, work),
            Step::Clamp => dsr::clamp(frame, env, config, work),
            Step::Note => note(frame, work),
            Step::ErrorIn => icmp::translate(frame, env, work, POS_IN),
            Step::ErrorOut => icmp::translate(frame, env, work, POS_OUT),
        };
    }
}

/// An ICMP echo request: the only ICMP that a ClusterIP rejects (errors belong to flows).
#[inline(always)]
fn is_echo_request<F: LoadAddr>(packet: &Packet<F>) -> bool {
    packet.proto == F::ICMP && packet.kind == if F::V6 { 128 } else { 8 }
}
