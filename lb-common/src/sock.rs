//! The story of a socket of the host: translated once, at connect(), or per datagram; no flow entries.

use crate::abi::{LbConfig, ROLE_FRONTEND, ROLE_NODEPORT, SkUdpKey, SkUdpValue};
use crate::counter::Counter;
use crate::decide::{Outcome, Source, Target, decide, target};
use crate::env::{Env, SockEnv, ticks};
use crate::family::{Family, Ip6};
use crate::verdict::SockVerdict;

/// Ticks after which an unconnected UDP socket's choice is forgotten: netfilter's timeout of a UDP stream (120 s).
const UDP_TICKS: u32 = 112;
/// [`SkUdpKey::direction`]: what a frontend became.
pub const FORWARD: u8 = 0;
/// [`SkUdpKey::direction`]: what a backend stands for.
pub const REPLY: u8 = 1;

/// Decides a connection, or the first datagram, of a host socket to (`addr`, `port`, `proto`).
///
/// `client` is the address the socket is bound to; `None` = not yet known. A verdict to drop is carried out by
/// `lb_tc_out`, which sees the packet still addressed to the frontend; so is one to reject for protocols without a
/// socket-level refusal.
#[inline(always)]
pub fn connect<F: Family>(
    env: &mut impl Env<F>,
    config: &LbConfig,
    client: Option<F::Addr>,
    addr: F::Addr,
    port: [u8; 2],
    proto: u8,
) -> SockVerdict<F::Addr> {
    let roles = env.roles(addr);
    if roles & (ROLE_FRONTEND | ROLE_NODEPORT) == 0 {
        return SockVerdict::Leave;
    }
    let service = match target(env, config, roles, addr, port, proto) {
        Target::NotOurs | Target::UnknownAddress => return SockVerdict::Leave,
        Target::UnknownPort => {
            env.count(Counter::RejectUnknownPort);
            return SockVerdict::Refuse(Counter::RejectUnknownPort);
        }
        Target::Service(service) => service,
    };
    let source = Source::host::<F>(config, client);
    let client = client.unwrap_or(F::ZERO);
    let decision = decide(env, config, &service, client, &source);
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
            }
        }
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
    let SkUdpValue { addr, port, backend, generation, last_tick, .. } = known;
    if tick.wrapping_sub(last_tick) >= UDP_TICKS || Env::<F>::generation(env, backend) != generation {
        return None;
    }
    if last_tick != tick {
        remember(env, &forward, &SkUdpValue { last_tick: tick, ..known });
    }
    Some(SockVerdict::Deliver { addr: F::narrow(addr), port, backend, generation })
}

/// Decides a datagram of an unconnected socket: as [`connect`], and remembers the choice, so that it is kept and the
/// answer's source can be told back to the caller.
#[inline(always)]
pub fn sendmsg<F: Family>(
    env: &mut (impl Env<F> + SockEnv),
    config: &LbConfig,
    cookie: u64,
    client: Option<F::Addr>,
    addr: F::Addr,
    port: [u8; 2],
    proto: u8,
) -> SockVerdict<F::Addr> {
    let verdict = connect(env, config, client, addr, port, proto);
    if let SockVerdict::Deliver { addr: to, port: to_port, backend, generation } = verdict {
        let last_tick = ticks(Env::<F>::now_ns(env));
        let value =
            SkUdpValue { addr: F::wide(to), port: to_port, backend, generation, last_tick, _pad: [0; 2] };
        remember(env, &key::<F>(cookie, addr, port, FORWARD), &value);
    }
    verdict
}

/// Remembers what a frontend became, and what the backend stands for. Not inlined: a BPF stack is small.
#[inline(never)]
fn remember(env: &mut impl SockEnv, forward: &SkUdpKey, value: &SkUdpValue) {
    env.set_correspondent(forward, value);
    let reply = SkUdpKey { addr: value.addr, port: value.port, direction: REPLY, ..*forward };
    env.set_correspondent(&reply, &SkUdpValue { addr: forward.addr, port: forward.port, ..*value });
}

/// The frontend that a datagram's source stands for on this socket; `None` = the source is what it says.
#[inline(always)]
pub fn recvmsg<F: Family>(
    env: &impl SockEnv,
    cookie: u64,
    addr: F::Addr,
    port: [u8; 2],
) -> Option<(Ip6, [u8; 2])> {
    let known = env.correspondent(&key::<F>(cookie, addr, port, REPLY))?;
    Some((known.addr, known.port))
}

#[inline(always)]
fn key<F: Family>(cookie: u64, addr: F::Addr, port: [u8; 2], direction: u8) -> SkUdpKey {
    let family = if F::V6 { 6 } else { 4 };
    SkUdpKey { cookie, addr: F::wide(addr), port, family, direction, _pad: [0; 4] }
}
