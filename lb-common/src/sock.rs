//! The story of a socket of the host: translated once, at connect(), or per datagram; no flow entries.

use crate::abi::{LbConfig, NODE_HOST_NODEPORT, NODE_NODEPORT, ROLE_FRONTEND, ROLE_NODEPORT};
use crate::abi::{SK_MASQ, SVC_RANGES, SkUdpKey, SkUdpValue, SvcValue};
use crate::counter::Counter;
use crate::decide::{Outcome, Source, Target, decide, target};
use crate::env::{Env, SockEnv, ticks};
use crate::family::{Family, Ip6};
use crate::packet::UDP;
use crate::verdict::SockVerdict;

/// Ticks after which an unconnected UDP socket's choice is forgotten: netfilter's timeout of a UDP stream (120 s).
const UDP_TICKS: u32 = 112;
/// [`SkUdpKey::direction`]: what a frontend became.
pub const FORWARD: u8 = 0;
/// [`SkUdpKey::direction`]: what a backend stands for.
pub const REPLY: u8 = 1;

/// Whose socket it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    /// A process in the host's network namespace.
    Host,
    /// A process in the namespace with this cookie (`--socket-lb all`).
    Pod(u64),
}

/// Decides a connection, or the first datagram, of a socket to (`addr`, `port`, `proto`).
///
/// `client` is the address the socket is bound to; `None` = not yet known: see [`counts_as`]. A verdict to drop is carried out by
/// `lb_tc_out`, which sees the packet still addressed to the frontend; so is one to reject for protocols without a
/// socket-level refusal.
#[inline(always)]
pub fn connect<F: Family>(
    env: &mut impl Env<F>,
    config: &LbConfig,
    owner: Owner,
    client: Option<F::Addr>,
    addr: F::Addr,
    port: [u8; 2],
    proto: u8,
) -> SockVerdict<F::Addr> {
    let roles = env.roles(addr);
    if !may_be_frontend(roles) {
        return SockVerdict::Leave;
    }
    let answers = match owner {
        Owner::Host => NODE_NODEPORT | NODE_HOST_NODEPORT,
        Owner::Pod(_) => NODE_NODEPORT, // a pod's 127.0.0.1 is its own
    };
    let service = match target(env, config, roles, answers, addr, port, proto) {
        Target::NotOurs | Target::UnknownAddress => return SockVerdict::Leave,
        Target::UnknownPort => {
            env.count(Counter::RejectUnknownPort);
            return SockVerdict::Refuse(Counter::RejectUnknownPort);
        }
        Target::Service(service) => service,
    };
    let source = match owner {
        Owner::Host => Source::host::<F>(config, client),
        Owner::Pod(_) => Source::pod::<F>(config, client),
    };
    let client = client.unwrap_or_else(|| counts_as(env, &service, owner, addr));
    // the kernel picks the source port later
    let decision = decide(env, config, &service, client, 0, &source);
    match decision.outcome {
        Outcome::Drop => SockVerdict::Leave,
        Outcome::Reject => {
            env.count(decision.reason);
            SockVerdict::Refuse(decision.reason)
        }
        Outcome::Deliver => {
            env.count(Counter::SockForward);
            SockVerdict::Deliver {
                addr: decision.backend.addr,
                port: decision.backend.port,
                backend: decision.id,
                generation: decision.generation,
                masquerade: decision.masquerade & (owner == Owner::Host),
            }
        }
    }
}

/// An address with these roles may be some frontend's. If not, [`connect`] leaves the socket alone whoever owns it, and
/// [`known`] is not to be asked: hooks look at this first.
#[must_use]
#[inline(always)]
pub fn may_be_frontend(roles: u8) -> bool {
    roles & (ROLE_FRONTEND | ROLE_NODEPORT) != 0
}

/// The client that a socket without an address counts as, so that it is the same client with and without bind(), and
/// by whatever hook: one of the host as the address it would leave with towards the frontend, one of a pod as its
/// pod. Zero if nobody asks for the client, or the address is not known.
#[inline(always)]
fn counts_as<F: Family>(env: &impl Env<F>, service: &SvcValue, owner: Owner, frontend: F::Addr) -> F::Addr {
    if service.affinity_s == 0 && service.flags & SVC_RANGES == 0 {
        return F::ZERO;
    }
    match owner {
        Owner::Host => env.source_towards(frontend),
        Owner::Pod(netns) => F::stand_in(netns),
    }
}

/// The choice that an unconnected socket made for a frontend before, if it still stands: netfilter would keep it for
/// the flow, too. To be asked before [`sendmsg`].
#[inline(always)]
pub fn known<F: Family>(
    env: &mut (impl Env<F> + SockEnv),
    cookie: u64,
    addr: F::Addr,
    port: [u8; 2],
) -> Option<SockVerdict<F::Addr>> {
    let tick = ticks(Env::<F>::now_ns(env));
    let forward = key::<F>(cookie, addr, port, FORWARD);
    let known = env.correspondent(&forward)?;
    let SkUdpValue { addr, port, flags, backend, generation, last_tick } = known;
    if tick.wrapping_sub(last_tick) >= UDP_TICKS || Env::<F>::generation(env, backend) != generation {
        return None;
    }
    if last_tick != tick {
        remember(env, forward, SkUdpValue { last_tick: tick, ..known });
    }
    let masquerade = flags & SK_MASQ != 0;
    Some(SockVerdict::Deliver { addr: F::narrow(addr), port, backend, generation, masquerade })
}

/// Decides a datagram of an unconnected socket: as [`connect`], and remembers the choice, so that it is kept and the
/// answer's source can be told back to the caller.
#[inline(always)]
pub fn sendmsg<F: Family>(
    env: &mut (impl Env<F> + SockEnv),
    config: &LbConfig,
    owner: Owner,
    cookie: u64,
    client: Option<F::Addr>,
    addr: F::Addr,
    port: [u8; 2],
) -> SockVerdict<F::Addr> {
    let verdict = connect(env, config, owner, client, addr, port, UDP);
    if let SockVerdict::Deliver { addr: to, port: to_port, backend, generation, masquerade } = verdict {
        keep::<F>(env, cookie, (addr, port), (to, to_port), backend, generation, masquerade);
    }
    verdict
}

/// To be called for a verdict that masquerades: has the packets from `source` to this backend looked at when they leave
/// (see [`crate::bound`]). `None`: the socket takes the address that fits the backend, and needs no masquerade.
#[inline(always)]
pub fn masquerade<F: Family>(env: &mut impl Env<F>, source: Option<F::Addr>, backend: F::Addr) {
    if let Some(source) = source {
        env.mark_bound(source, backend);
    }
}

/// Remembers the choice that [`connect`] made for a datagram to a frontend: the second half of [`sendmsg`]. The BPF side
/// calls both halves itself, each with a stack of its own.
#[inline(always)]
pub fn keep<F: Family>(
    env: &mut (impl Env<F> + SockEnv),
    cookie: u64,
    frontend: (F::Addr, [u8; 2]),
    to: (F::Addr, [u8; 2]),
    backend: u32,
    generation: u32,
    masquerade: bool,
) {
    let last_tick = ticks(Env::<F>::now_ns(env));
    let flags = masquerade as u16 * SK_MASQ;
    let value = SkUdpValue { addr: F::wide(to.0), port: to.1, flags, backend, generation, last_tick };
    remember(env, key::<F>(cookie, frontend.0, frontend.1, FORWARD), value);
}

/// Remembers what a frontend became, and what the backend stands for.
#[inline(always)]
fn remember(env: &mut impl SockEnv, mut key: SkUdpKey, mut value: SkUdpValue) {
    env.set_correspondent(&key, &value);
    // in place: a BPF stack is small
    core::mem::swap(&mut key.addr, &mut value.addr);
    core::mem::swap(&mut key.port, &mut value.port);
    key.direction = REPLY;
    env.set_correspondent(&key, &value);
}

/// The frontend that a datagram's source stands for on this socket; `None` = the source is what it says.
///
/// A datagram that comes keeps the knowledge alive (netfilter's way, too): a stream in one direction does not lose its
/// source's name.
#[inline(always)]
pub fn recvmsg<F: Family>(
    env: &mut (impl Env<F> + SockEnv),
    cookie: u64,
    addr: F::Addr,
    port: [u8; 2],
) -> Option<(Ip6, [u8; 2])> {
    let tick = ticks(Env::<F>::now_ns(env));
    let reply = key::<F>(cookie, addr, port, REPLY);
    let known = env.correspondent(&reply)?;
    if known.last_tick != tick {
        env.set_correspondent(&reply, &SkUdpValue { last_tick: tick, ..known });
    }
    Some((known.addr, known.port))
}

/// Key of what is remembered of a correspondent (`addr`, `port`) of a socket; `direction`: [`FORWARD`] or [`REPLY`].
#[inline(always)]
pub fn key<F: Family>(cookie: u64, addr: F::Addr, port: [u8; 2], direction: u8) -> SkUdpKey {
    let family = if F::V6 { 6 } else { 4 };
    SkUdpKey { cookie, addr: F::wide(addr), port, family, direction, _pad: [0; 4] }
}
