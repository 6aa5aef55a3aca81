//! ICMP errors inside flows (RFC 792, RFC 4443; for NATs RFC 5508): the quoted packet is turned back into the one that
//! the receiver of the error had sent, so that its socket finds itself, and path-MTU discovery works.
//!
//! An error follows the packets of the direction opposite to the one it quotes: the reverse of the quoted tuple is a
//! key of the flow tables at this very position. Flow entries are read, never touched: an error keeps no flow alive.

use crate::abi::{CT_DSR, CT_PASS, CT_XDP, CtKey};
use crate::counter::Counter;
use crate::csum::{addr_delta, apply, fold, word_delta};
use crate::env::{Env, Work};
use crate::flow::Role;
use crate::frame::Frame;
use crate::packet::{Fragment, LoadAddr, TCP, UDP, addresses};
use crate::track::find;
use crate::verdict::Step;

/// Bytes of an ICMP error before the packet that it quotes.
const HEADER: usize = 8;

/// Translates the ICMP error in hand, met at `position`.
///
/// Passed untouched: an error about no flow of ours, one that does not go to the sender of what it quotes, one whose
/// quote ends before the ports. Dropped only if the hook refuses a write.
#[inline(always)]
pub fn translate<F: LoadAddr>(
    frame: &mut impl Frame,
    env: &mut impl Env<F>,
    work: &mut Work<F>,
    position: u8,
) -> Step {
    if !meets_flow(frame, env, work, position) {
        return Step::Pass;
    }
    // the backend's node has the flow
    if work.value.flags & CT_DSR != 0 {
        return if work.direct != 0 { Step::Pass } else { Step::Wrap };
    }
    let Some(plan) = plan(frame, work) else { return Step::Pass };
    match carry_out(frame, work, &plan) {
        Some(()) => {
            env.count(Counter::IcmpTranslated);
            // both positions at once: the stack knows neither of the addresses
            if work.value.flags & CT_XDP != 0 { Step::Out } else { Step::Pass }
        }
        None => {
            env.count(Counter::DropRewrite);
            Step::Drop
        }
    }
}

/// Finds the flow of the packet that the ICMP error in hand quotes: its entry for packets of the error's own direction is
/// then in hand. False: it is of no flow of ours, or does not go to the sender of what it quotes.
#[inline(always)]
pub fn meets_flow<F: LoadAddr>(
    frame: &mut impl Frame,
    env: &mut impl Env<F>,
    work: &mut Work<F>,
    position: u8,
) -> bool {
    if read(frame, work).is_none() {
        frame.pull();
        if read(frame, work).is_none() {
            return false;
        }
    }
    let quoted = &work.quoted;
    if work.packet.dst != quoted.src {
        return false;
    }
    work.key = CtKey {
        src: quoted.dst,
        dst: quoted.src,
        sport: quoted.dport,
        dport: quoted.sport,
        proto: quoted.proto,
        position,
        _pad: [0; 2],
    };
    find(env, &work.key, &mut work.value).is_some() && work.value.flags & CT_PASS == 0
}

/// Reads the quoted packet up to its ports. `None`: malformed, or cut before that.
#[inline(always)]
fn read<F: LoadAddr>(frame: &impl Frame, work: &mut Work<F>) -> Option<()> {
    let l3 = work.packet.l4 + HEADER;
    let (proto, l4, fragment) = F::walk(frame, l3, &mut work.quoted.ident)?;
    let quoted = &mut work.quoted;
    if fragment == Fragment::Later || !addresses::<F>(frame, l3, quoted) {
        return None;
    }
    let [a, b, c, d]: [u8; 4] = frame.load(l4)?;
    (quoted.sport, quoted.dport, quoted.proto) = ([a, b], [c, d], proto);
    (quoted.l3, quoted.l4, quoted.fragment) = (l3, l4, fragment);
    // the error may end before the frame does (padding of Ethernet), but not in the middle of the ports
    let length = u16::from_be_bytes(frame.load(work.packet.l3 + if F::V6 { 4 } else { 2 })?) as usize;
    work.quote_end = work.packet.l3 + length + if F::V6 { 40 } else { 0 };
    (l4 + 4 <= work.quote_end).then_some(())
}

/// Everything that is written, worked out before the first write.
struct Plan<F: LoadAddr> {
    /// Source of the error itself.
    src: F::Addr,
    /// Checksum of the quoted IPv4 header.
    ip: [u8; 2],
    /// Offset of the quoted TCP or UDP checksum; 0 = not quoted, or none.
    at: usize,
    /// That checksum.
    transport: [u8; 2],
    /// What all that is quoted moves the error's own checksum by.
    change: u16,
}

/// `None`: the frame ends before the error does.
#[inline(always)]
fn plan<F: LoadAddr>(frame: &impl Frame, work: &Work<F>) -> Option<Plan<F>> {
    let (outer, quoted, value) = (&work.packet, &work.quoted, &work.value);
    let _present: [u8; 2] = frame.load(outer.l4 + 2)?;
    // The other end of the flow must not be known to the receiver by its own address. A router in between is
    // replaced, too, where sources change (egress): its address may be a martian where the error goes, on strict
    // nodes or at that very router. But who it was is all that time exceeded has to say, and a client can hear it.
    let replaced = match Role::of(value.role) {
        Role::SnatForward | Role::XdpForward => true,
        Role::DnatReply | Role::XdpReply => outer.kind != F::TIME_EXCEEDED,
        Role::DnatForward | Role::SnatReply | Role::DsrForward => false,
    };
    let src = if replaced || outer.src == quoted.dst { value.src } else { outer.src };
    // the entry's deltas are those of the reverse tuple; the sums are the same
    let mut change = fold(value.addr_delta as u32 + value.port_delta as u32);
    let mut ip = [0; 2];
    if !F::V6 {
        let old: [u8; 2] = frame.load(quoted.l3 + 10)?;
        ip = apply(u16::from_ne_bytes(old), value.addr_delta).to_ne_bytes();
        change = fold(change as u32 + word_delta(old, ip) as u32);
    }
    let (mut at, mut transport) = (0, [0; 2]);
    let place = quoted.l4 + if quoted.proto == TCP { 16 } else { 6 };
    // SCTP's checksum covers what is not quoted: nobody can have a use for it
    if (quoted.proto == TCP || quoted.proto == UDP) && place + 2 <= work.quote_end {
        let old: [u8; 2] = frame.load(place)?;
        if quoted.proto == TCP || old != [0; 2] {
            let new = apply(apply(u16::from_ne_bytes(old), value.addr_delta), value.port_delta);
            let new = if quoted.proto == UDP && new == 0 { 0xffff } else { new };
            (at, transport) = (place, new.to_ne_bytes());
            change = fold(change as u32 + word_delta(old, transport) as u32);
        }
    }
    Some(Plan { src, ip, at, transport, change })
}

#[inline(always)]
fn carry_out<F: LoadAddr>(frame: &mut impl Frame, work: &Work<F>, plan: &Plan<F>) -> Option<()> {
    let (outer, quoted, value) = (&work.packet, &work.quoted, &work.value);
    let delta = addr_delta::<F>([outer.src, outer.dst], [plan.src, value.dst]);
    // ICMP for IPv4 has no pseudo-header
    frame.fix_l4(outer.l4 + 2, if F::V6 { delta } else { 0 }, plan.change, false)?;
    if !F::V6 {
        frame.fix_l3(outer.l3 + 10, delta)?;
        frame.store(quoted.l3 + 10, &plan.ip)?;
    }
    F::store_addresses(frame, outer.l3 + F::ADDRS, plan.src, value.dst)?;
    F::store_addresses(frame, quoted.l3 + F::ADDRS, value.dst, value.src)?;
    let ([a, b], [c, d]) = (value.dport, value.sport);
    frame.store(quoted.l4, &[a, b, c, d])?;
    if plan.at != 0 {
        frame.store(plan.at, &plan.transport)?;
    }
    Some(())
}
