//! The plain path at XDP, of [`crate::xdp`].

use super::{Layout, Plain, macs, take};
use crate::abi::{CT_FAST, CT_PASS, CT_REPLIED, CT_XDP, LbConfig, NH_POD, NH_PORT, POS_IN, port_row};
use crate::abi::{ROLE_FRONTEND, ROLE_NODEPORT, ROLE_SNAT};
use crate::counter::Counter;
use crate::env::{Env, ticks};
use crate::family::Family;
use crate::flow::Role;
use crate::frame::{Direct, DirectMut, Head};
use crate::packet::{TCP, UDP};
use crate::xdp::meant;

/// Roles of a packet's destination, as of [`crate::xdp::concerns_xdp`]; 0 is certain. `None`: not plain.
#[inline(always)]
pub fn concerns<F: Layout>(frame: &impl Direct, env: &impl Env<F>) -> Option<u8> {
    let dst = F::destination(frame)?;
    Some(env.roles_at(F::role_slot_inline(dst)) & (ROLE_FRONTEND | ROLE_NODEPORT | ROLE_SNAT))
}

/// A packet that came in by an interface with XDP; `roles` are [`concerns`]'s, not 0.
#[inline(always)]
pub fn plain<F: Layout>(
    frame: &mut impl DirectMut,
    env: &mut impl Env<F>,
    config: &LbConfig,
    ifindex: u32,
    roles: u8,
) -> Plain {
    // two copies, in which the protocol is a constant
    match F::proto(frame) {
        Some(TCP) => of_proto(frame, env, config, ifindex, roles, TCP),
        Some(UDP) => of_proto(frame, env, config, ifindex, roles, UDP),
        _ => Plain::General,
    }
}

#[inline(always)]
fn of_proto<F: Layout>(
    frame: &mut impl DirectMut,
    env: &mut impl Env<F>,
    config: &LbConfig,
    ifindex: u32,
    roles: u8,
    proto: u8,
) -> Plain {
    let (Some([_, dport]), Some(words)) = (F::ports(frame), F::words(frame, proto, POS_IN)) else {
        return Plain::General;
    };
    if meant(config, roles, dport).is_none() {
        return Plain::Up;
    }
    let Some((change, rest)) = env.established(words, take) else { return Plain::General };
    let reply = match Role::of(rest.role) {
        Role::XdpForward => false,
        Role::XdpReply if rest.flags & CT_REPLIED != 0 => true,
        _ => return Plain::General,
    };
    if rest.flags & (CT_XDP | CT_PASS | CT_FAST) != CT_XDP || rest.last_tick != ticks(env.now_ns()) {
        return Plain::General;
    }
    // as in `track::follow_at`: a datagram follows its backend's generation
    if proto == UDP && !reply && env.generation(rest.backend) != rest.generation {
        return Plain::General;
    }
    let row = if reply { rest.nexthop >> 16 } else { rest.nexthop & 0xffff };
    let way = env.next_hop(row);
    let macs = macs(&way);
    if row == 0 || way.ifindex == 0 || way.flags & (NH_PORT | NH_POD) != 0 || !is_mine(frame, env, ifindex) {
        return Plain::General;
    }
    if F::change(frame, proto, &change, macs).is_none() {
        return Plain::General;
    }
    env.count(Counter::XdpSent);
    Plain::Sent(way.ifindex)
}

/// As in [`crate::xdp`].
#[inline(always)]
fn is_mine<F: Family>(frame: &impl Direct, env: &impl Env<F>, ifindex: u32) -> bool {
    let port = env.next_hop(port_row(ifindex));
    let Some(head) = frame.head::<6>() else { return false };
    let [a, b, c, d, e, f] = port.smac;
    let mac = (u32::from_ne_bytes([a, b, c, d]), u16::from_ne_bytes([e, f]));
    port.ifindex == ifindex && port.flags & NH_PORT != 0 && (head.word::<0>(), head.half::<4>()) == mac
}
