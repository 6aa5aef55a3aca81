//! The plain path at XDP: what nearly every packet is that the balancer sends on, one in the middle of an established flow,
//! whose entry was refreshed in this tick. [`crate::xdp`] does the same and everything else; here are no work space, no
//! offsets that are not constants, and no more than the look-ups that such a packet needs.
//!
//! The answers are the same on both paths, byte for byte (`tests/plain.rs`). Whatever is in any way unusual is left to the
//! general one, and nothing was written by then.

use crate::abi::{CT_FAST, CT_PASS, CT_REPLIED, CT_XDP, CtKey, CtValue, LbConfig, NextHop, POS_IN};
use crate::abi::{NH_POD, NH_PORT};
use crate::abi::{ROLE_FRONTEND, ROLE_NODEPORT, ROLE_SNAT, port_row};
use crate::counter::Counter;
use crate::csum::{apply, apply_l4, word_delta};
use crate::env::{Env, ticks};
use crate::family::{Family, Ip4, Ip6, V4, V6};
use crate::flow::{Role, tag_of};
use crate::frame::{Direct, Head};
use crate::hash::{role_slot4, role_slot6_inline};
use crate::packet::{FIN, RST, SYN, TCP, UDP};
use crate::xdp::meant;

/// The fate of a packet on the plain path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Plain {
    /// To the stack, as it came.
    Up,
    /// Not plain: nothing was written, ask [`crate::xdp`].
    General,
    /// The frame is rewritten, link layer included: out by this interface.
    Sent(u32),
}

/// What of an entry a packet is rewritten to.
#[derive(Clone, Copy)]
pub struct Change<F: Family> {
    src: F::Addr,
    dst: F::Addr,
    /// Both, as they lie in a packet.
    ports: u32,
    addr_delta: u16,
    port_delta: u16,
}

/// What else of an entry decides about the packet.
#[derive(Clone, Copy)]
struct Rest {
    nexthop: u32,
    backend: u32,
    generation: u32,
    last_tick: u32,
    flags: u16,
    role: u8,
}

/// The headers of a family at constant offsets, behind an Ethernet header without a tag.
///
/// Whatever has more than one field of a packet or a key in it is little-endian: those are the machines that BPF is built for
/// here, and it is read and written as it lies in memory.
pub trait Layout: Family {
    /// A [`CtKey`] by words: addresses; ports, protocol and position. Built by bytes it would be written to the stack by
    /// bytes and read by words, for which a CPU waits until the bytes have reached its cache.
    type Words: Copy;

    /// Destination. `None`: the frame is too short to be plain.
    fn destination(frame: &mut impl Direct) -> Option<Self::Addr>;
    /// Protocol of TCP or UDP right behind a header without options, extension headers or fragmentation, with a hop
    /// left, and in the middle of a connection. `None`: anything else.
    fn proto(frame: &mut impl Direct) -> Option<u8>;
    /// The packet's tuple, and its destination port.
    fn tuple(frame: &mut impl Direct, proto: u8) -> Option<(Self::Words, [u8; 2])>;
    /// The key that these words are.
    fn key(words: Self::Words) -> CtKey<Self>;
    /// [`crate::flow::tag`] of the key.
    fn tag(words: Self::Words) -> u32;
    /// Rewrites a packet, takes a hop and gives the frame its addresses (its first twelve bytes). `None`: nothing was
    /// written.
    fn change(frame: &mut impl Direct, proto: u8, to: &Change<Self>, macs: [u32; 3]) -> Option<()>;
}

/// The IP header of a family.
trait Ip: Layout {
    /// Protocol and hops of a header without options, extension headers or fragmentation.
    fn plain<const N: usize>(head: &impl Head<N>) -> Option<(u8, u8)>;
    /// The destination.
    fn dst<const N: usize>(head: &impl Head<N>) -> Self::Addr;
    /// The addresses, and the last word of a key.
    fn words<const N: usize>(head: &impl Head<N>, last: u64) -> Self::Words;
    /// Writes addresses, header checksum and hops.
    fn put<const N: usize>(head: &mut impl Head<N>, to: &Change<Self>);
}

impl Ip for V4 {
    #[inline(always)]
    fn plain<const N: usize>(head: &impl Head<N>) -> Option<(u8, u8)> {
        let whole = head.half::<20>() & 0x3fff_u16.to_be() == 0;
        (head.byte::<14>() == 0x45 && whole).then(|| (head.byte::<23>(), head.byte::<22>()))
    }

    #[inline(always)]
    fn dst<const N: usize>(head: &impl Head<N>) -> Ip4 {
        head.word::<30>().to_ne_bytes().into()
    }

    #[inline(always)]
    fn words<const N: usize>(head: &impl Head<N>, last: u64) -> [u64; 2] {
        [head.long::<26>(), last]
    }

    #[inline(always)]
    fn put<const N: usize>(head: &mut impl Head<N>, to: &Change<V4>) {
        // one's complement: it makes no difference whether corrections are summed before
        let hop = word_delta([1, 0], [0, 0]);
        let sum = apply(apply(head.half::<24>(), to.addr_delta), hop);
        head.set_byte::<22>(head.byte::<22>().wrapping_sub(1));
        head.set_half::<24>(sum);
        head.set_word::<26>(u32::from_ne_bytes(to.src.addr));
        head.set_word::<30>(u32::from_ne_bytes(to.dst.addr));
    }
}

#[inline(always)]
fn ip6(low: u64, high: u64) -> Ip6 {
    Ip6 { addr: (low as u128 | (high as u128) << 64).to_le_bytes() }
}

#[inline(always)]
fn longs(ip: Ip6) -> (u64, u64) {
    let value = u128::from_le_bytes(ip.addr);
    (value as u64, (value >> 64) as u64)
}

impl Ip for V6 {
    #[inline(always)]
    fn plain<const N: usize>(head: &impl Head<N>) -> Option<(u8, u8)> {
        (head.byte::<14>() >> 4 == 6).then(|| (head.byte::<20>(), head.byte::<21>()))
    }

    #[inline(always)]
    fn dst<const N: usize>(head: &impl Head<N>) -> Ip6 {
        ip6(head.long::<38>(), head.long::<46>())
    }

    #[inline(always)]
    fn words<const N: usize>(head: &impl Head<N>, last: u64) -> [u64; 5] {
        [head.long::<22>(), head.long::<30>(), head.long::<38>(), head.long::<46>(), last]
    }

    #[inline(always)]
    fn put<const N: usize>(head: &mut impl Head<N>, to: &Change<V6>) {
        let ((a, b), (c, d)) = (longs(to.src), longs(to.dst));
        head.set_byte::<21>(head.byte::<21>().wrapping_sub(1));
        head.set_long::<22>(a);
        head.set_long::<30>(b);
        head.set_long::<38>(c);
        head.set_long::<46>(d);
    }
}

/// The last word of a key.
#[inline(always)]
fn last_word(ports: u32, proto: u8) -> u64 {
    ports as u64 | (proto as u64) << 32 | (POS_IN as u64) << 40
}

/// Ports, protocol and position of the last word of a key.
#[inline(always)]
fn last_fields(word: u64) -> ([u8; 2], [u8; 2], u8, u8) {
    let [a, b, c, d, proto, position, ..] = word.to_le_bytes();
    ([a, b], [c, d], proto, position)
}

/// `$l4`: offset of the transport header; `$udp`, `$tcp`: of its end.
macro_rules! layout {
    ($family:ident $l4:literal $udp:literal $tcp:literal $words:ty; $tag:item $key:item) => {
        impl Layout for $family {
            type Words = $words;

            $tag
            $key

            #[inline(always)]
            fn destination(frame: &mut impl Direct) -> Option<<$family as Family>::Addr> {
                Some($family::dst(&frame.head::<$udp>()?))
            }

            #[inline(always)]
            fn proto(frame: &mut impl Direct) -> Option<u8> {
                let (proto, hops) = $family::plain(&frame.head::<$udp>()?)?;
                if hops <= 1 {
                    return None;
                }
                match proto {
                    TCP if frame.head::<$tcp>()?.byte::<{ $l4 + 13 }>() & (SYN | FIN | RST) != 0 => None,
                    TCP | UDP => Some(proto),
                    _ => None,
                }
            }

            #[inline(always)]
            fn tuple(frame: &mut impl Direct, proto: u8) -> Option<($words, [u8; 2])> {
                let head = frame.head::<$udp>()?;
                let last = last_word(head.word::<$l4>(), proto);
                Some(($family::words(&head, last), head.half::<{ $l4 + 2 }>().to_ne_bytes()))
            }

            #[inline(always)]
            fn change(
                frame: &mut impl Direct,
                proto: u8,
                to: &Change<$family>,
                [a, b, c]: [u32; 3],
            ) -> Option<()> {
                if proto == TCP {
                    let mut head = frame.head::<$tcp>()?;
                    let sum = head.half::<{ $l4 + 16 }>();
                    head.set_half::<{ $l4 + 16 }>(apply_l4(sum, to.addr_delta, to.port_delta, false));
                } else {
                    let mut head = frame.head::<$udp>()?;
                    let sum = head.half::<{ $l4 + 6 }>();
                    head.set_half::<{ $l4 + 6 }>(apply_l4(sum, to.addr_delta, to.port_delta, true));
                }
                let mut head = frame.head::<$udp>()?;
                head.set_word::<0>(a);
                head.set_word::<4>(b);
                head.set_word::<8>(c);
                $family::put(&mut head, to);
                head.set_word::<$l4>(to.ports);
                Some(())
            }
        }
    };
}

layout! {
    V4 34 42 54 [u64; 2];

    #[inline(always)]
    fn tag([addrs, last]: [u64; 2]) -> u32 {
        let (src, dst) = ((addrs as u32).to_le_bytes(), ((addrs >> 32) as u32).to_le_bytes());
        tag_of(role_slot4(src), role_slot4(dst), last as u32, (last >> 32) as u32)
    }

    fn key([addrs, last]: [u64; 2]) -> CtKey<V4> {
        let (src, dst) = ((addrs as u32).to_le_bytes().into(), ((addrs >> 32) as u32).to_le_bytes().into());
        let (sport, dport, proto, position) = last_fields(last);
        CtKey { src, dst, sport, dport, proto, position, _pad: [0; 2] }
    }
}

layout! {
    V6 54 62 74 [u64; 5];

    #[inline(always)]
    fn tag([a, b, c, d, last]: [u64; 5]) -> u32 {
        let (src, dst) = (role_slot6_inline(&ip6(a, b)), role_slot6_inline(&ip6(c, d)));
        tag_of(src, dst, last as u32, (last >> 32) as u32)
    }

    fn key([a, b, c, d, last]: [u64; 5]) -> CtKey<V6> {
        let (sport, dport, proto, position) = last_fields(last);
        CtKey { src: ip6(a, b), dst: ip6(c, d), sport, dport, proto, position, _pad: [0; 2] }
    }
}

/// The first twelve bytes of a frame by this next hop.
#[inline(always)]
fn macs(way: &NextHop) -> [u32; 3] {
    let ([a, b, c, d, e, f], [g, h, i, j, k, l]) = (way.dmac, way.smac);
    [[a, b, c, d], [e, f, g, h], [i, j, k, l]].map(u32::from_ne_bytes)
}

/// What is needed of an entry.
#[inline(always)]
fn take<F: Family>(value: &CtValue<F>) -> (Change<F>, Rest) {
    let ([a, b], [c, d]) = (value.sport, value.dport);
    let change = Change {
        src: value.src,
        dst: value.dst,
        ports: u32::from_ne_bytes([a, b, c, d]),
        addr_delta: value.addr_delta,
        port_delta: value.port_delta,
    };
    let rest = Rest {
        nexthop: value.nexthop,
        backend: value.backend,
        generation: value.generation,
        last_tick: value.last_tick,
        flags: value.flags,
        role: value.role,
    };
    (change, rest)
}

/// Roles of a packet's destination, as of [`crate::xdp::concerns_xdp`]; 0 is certain. `None`: not plain.
#[inline(always)]
pub fn concerns<F: Layout>(frame: &mut impl Direct, env: &impl Env<F>) -> Option<u8> {
    let dst = F::destination(frame)?;
    Some(env.roles_at(F::role_slot_inline(dst)) & (ROLE_FRONTEND | ROLE_NODEPORT | ROLE_SNAT))
}

/// A packet that came in by an interface with XDP; `roles` are [`concerns`]'s, not 0.
#[inline(always)]
pub fn plain<F: Layout>(
    frame: &mut impl Direct,
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
    frame: &mut impl Direct,
    env: &mut impl Env<F>,
    config: &LbConfig,
    ifindex: u32,
    roles: u8,
    proto: u8,
) -> Plain {
    let Some((words, dport)) = F::tuple(frame, proto) else { return Plain::General };
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
fn is_mine<F: Family>(frame: &mut impl Direct, env: &impl Env<F>, ifindex: u32) -> bool {
    let port = env.next_hop(port_row(ifindex));
    let Some(head) = frame.head::<6>() else { return false };
    let [a, b, c, d, e, f] = port.smac;
    let mac = (u32::from_ne_bytes([a, b, c, d]), u16::from_ne_bytes([e, f]));
    port.ifindex == ifindex && port.flags & NH_PORT != 0 && (head.word::<0>(), head.half::<4>()) == mac
}
