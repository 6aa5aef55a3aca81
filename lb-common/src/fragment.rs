//! Fragments follow their first fragment (RFC 791, RFC 8200 section 4.5).
//!
//! Only the first fragment has ports. What it became is remembered under the identification of the datagram, in a table
//! of its own that all CPUs share; later fragments become the same. They are seldom, so none of this is on the way of
//! whole packets.

use crate::abi::{FragKey, FragValue, NODE_LOCAL, PROTO_EXTERNAL};
use crate::env::{Env, Work, ticks};
use crate::family::Family;
use crate::packet::Fragment;

/// Ticks for which a first fragment is followed: fragments of one datagram travel together, and a sender that counts
/// its datagrams may use an identification again (IPv4 has 65,536 of them).
const LIFE: u32 = 3;

/// A fragment at a position, before anything else is done with it. True: it is a later one whose first fragment was
/// seen, and the addresses of `work.value`, with their checksum difference, are what it becomes.
///
/// A first fragment ends what is remembered of an earlier datagram with its identification.
#[inline(always)]
pub fn meet<F: Family>(env: &mut impl Env<F>, work: &mut Work<F>, position: u8) -> bool {
    key(work, position);
    if work.packet.fragment != Fragment::Later {
        env.fragment_forget(&work.frag_key);
        return false;
    }
    if !env.fragment(&work.frag_key, &mut work.frag_value) {
        return false;
    }
    let first = work.frag_value;
    if first.tag != tag(&work.frag_key) || ticks(env.now_ns()).wrapping_sub(first.tick) > LIFE {
        return false;
    }
    (work.value.src, work.value.dst, work.value.addr_delta) = (first.src, first.dst, first.addr_delta);
    (work.value.sport, work.value.dport) = ([0; 2], [0; 2]);
    (work.value.flags, work.value.role) = (first.flags, first.role);
    true
}

/// A later fragment to this address whose first was not seen is ours, or nobody's: the address is an active ClusterIP, or
/// an external address that is not the node's own. What comes to an address of the node may be for a process of it.
#[inline(always)]
pub fn is_ours<F: Family>(env: &impl Env<F>, addr: F::Addr) -> bool {
    env.service(&F::svc_key(addr, [0; 2], 0)).is_some()
        || env.service(&F::svc_key(addr, [0; 2], PROTO_EXTERNAL)).is_some()
            && env.node(addr) & NODE_LOCAL == 0
}

/// Remembers that the first fragment in hand passed as it came: to a port that no Service has (B93), say.
#[inline(always)]
pub fn passes<F: Family>(env: &mut impl Env<F>, work: &mut Work<F>, position: u8) {
    (work.value.src, work.value.dst, work.value.addr_delta) = (work.packet.src, work.packet.dst, 0);
    (work.value.flags, work.value.role) = (0, 0);
    env.remember_fragment(work, position);
}

/// Remembers what the first fragment in hand became: `work.value`.
#[inline(always)]
pub fn remember<F: Family>(env: &mut impl Env<F>, work: &mut Work<F>, position: u8) {
    key(work, position);
    work.frag_value = FragValue {
        src: work.value.src,
        dst: work.value.dst,
        tick: ticks(env.now_ns()),
        tag: tag(&work.frag_key),
        addr_delta: work.value.addr_delta,
        flags: work.value.flags,
        role: work.value.role,
        _pad: [0; 3],
    };
    env.fragment_set(&work.frag_key, &work.frag_value);
}

/// Puts the key of the fragment in hand into `work.frag_key`.
#[inline(always)]
fn key<F: Family>(work: &mut Work<F>, position: u8) {
    let packet = &work.packet;
    work.frag_key = FragKey {
        src: packet.src,
        dst: packet.dst,
        ident: packet.ident,
        proto: if F::V6 { 0 } else { packet.proto },
        position,
        _pad: [0; 2],
    };
}

/// As [`crate::flow::tag`].
#[inline(always)]
fn tag<F: Family>(key: &FragKey<F>) -> u32 {
    let rest = u32::from_le_bytes([key.proto, key.position, 0x5a, 0xa5]);
    let addrs = F::role_slot(key.src) ^ F::role_slot(key.dst).rotate_left(13);
    (addrs.wrapping_mul(0x85eb_ca6b) ^ u32::from_le_bytes(key.ident)).wrapping_mul(0xc2b2_ae35) ^ rest
}
