//! The plain path: what nearly every packet is that the balancer sends on, one in the middle of an established flow, whose
//! entry was refreshed in this tick. [`crate::xdp`] and [`crate::tc`] do the same and everything else; here are no work
//! space, no offsets that are not constants, and no more than the look-ups that such a packet needs.
//!
//! The answers are the same on both paths, byte for byte (`tests/plain.rs`, `tests/plain_tc.rs`). Whatever is in any way
//! unusual is left to the general one, and nothing was written by then.

pub mod tc;
pub mod xdp;

use crate::abi::{CtKey, CtValue, NextHop};
use crate::csum::{apply, apply_l4, word_delta};
use crate::family::{Family, Ip4, Ip6, V4, V6};
use crate::flow::tag_of;
use crate::frame::{Direct, DirectMut, Head, HeadMut};
use crate::hash::{role_slot4, role_slot6_inline};
use crate::packet::{FIN, RST, SYN, TCP, UDP};

/// The fate of a packet on the plain path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Plain {
    /// To the stack, as it came.
    Up,
    /// Not plain: nothing was written, ask [`crate::xdp`] or [`crate::tc`].
    General,
    /// The packet is rewritten: to the stack (TC).
    Rewritten,
    /// The frame is rewritten, link layer included: out by this interface (XDP), or into the namespace of its peer (TC).
    Sent(u32),
    /// The hook refused a write, others were done (TC).
    Drop,
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
    fn destination(frame: &impl Direct) -> Option<Self::Addr>;
    /// Protocol, or first extension header, source and destination. `None` likewise.
    fn glance_at(frame: &impl Direct) -> Option<(u8, Self::Addr, Self::Addr)>;
    /// Protocol of TCP or UDP right behind a header without options, extension headers or fragmentation, with a hop
    /// left, and in the middle of a connection. `None`: anything else.
    fn proto(frame: &impl Direct) -> Option<u8>;
    /// The key of the packet at a position.
    fn words(frame: &impl Direct, proto: u8, position: u8) -> Option<Self::Words>;
    /// The packet's ports, source and destination, network order.
    fn ports(frame: &impl Direct) -> Option<[[u8; 2]; 2]>;
    /// The key that these words are.
    fn key(words: Self::Words) -> CtKey<Self>;
    /// [`crate::flow::tag`] of the key.
    fn tag(words: Self::Words) -> u32;
    /// Rewrites a packet, takes a hop and gives the frame its addresses (its first twelve bytes). `None`: nothing was
    /// written.
    fn change(frame: &mut impl DirectMut, proto: u8, to: &Change<Self>, macs: [u32; 3]) -> Option<()>;
    /// Rewrites a packet by the hook's own means, which know about offloaded checksums, and takes a hop if `hop`. `None`:
    /// the hook refused a write, others may have been done.
    fn translate(frame: &mut impl Direct, proto: u8, to: &Change<Self>, hop: bool) -> Option<()>;
}

/// The IP header of a family.
trait Ip: Layout {
    /// Protocol and hops of a header without options, extension headers or fragmentation.
    fn plain<const N: usize>(head: &impl Head<N>) -> Option<(u8, u8)>;
    /// The destination.
    fn dst<const N: usize>(head: &impl Head<N>) -> Self::Addr;
    /// Protocol or first extension header, and the source.
    fn first<const N: usize>(head: &impl Head<N>) -> (u8, Self::Addr);
    /// The addresses, and the last word of a key.
    fn words_of<const N: usize>(head: &impl Head<N>, last: u64) -> Self::Words;
    /// Writes addresses, header checksum and hops.
    fn put<const N: usize>(head: &mut impl HeadMut<N>, to: &Change<Self>);
    /// What a packet becomes from its 22nd byte to the end of its ports; with `hop` one hop is taken, if it is in there.
    fn rest<const N: usize>(head: &impl Head<N>, to: &Change<Self>, hop: bool) -> Self::Rest;
    /// Writes it, and takes the hop that is not in it.
    fn store_rest(frame: &mut impl Direct, rest: &Self::Rest, hops: Option<u8>) -> Option<()>;
    /// What [`Ip::rest`] gives, by words.
    type Rest;
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
    fn words_of<const N: usize>(head: &impl Head<N>, last: u64) -> [u64; 2] {
        [head.long::<26>(), last]
    }

    #[inline(always)]
    fn first<const N: usize>(head: &impl Head<N>) -> (u8, Ip4) {
        (head.byte::<23>(), head.word::<26>().to_ne_bytes().into())
    }

    type Rest = [u32; 4];

    #[inline(always)]
    fn rest<const N: usize>(head: &impl Head<N>, to: &Change<V4>, hop: bool) -> [u32; 4] {
        // hops, protocol, checksum
        let word = head.word::<22>();
        let mut sum = apply((word >> 16) as u16, to.addr_delta);
        if hop {
            sum = apply(sum, word_delta([1, 0], [0, 0]));
        }
        let first = (word & 0xffff).wrapping_sub(hop as u32) | (sum as u32) << 16;
        [first, u32::from_ne_bytes(to.src.addr), u32::from_ne_bytes(to.dst.addr), to.ports]
    }

    #[inline(always)]
    fn store_rest(frame: &mut impl Direct, rest: &[u32; 4], _hops: Option<u8>) -> Option<()> {
        frame.store_words(22, rest)
    }

    #[inline(always)]
    fn put<const N: usize>(head: &mut impl HeadMut<N>, to: &Change<V4>) {
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
    fn words_of<const N: usize>(head: &impl Head<N>, last: u64) -> [u64; 5] {
        [head.long::<22>(), head.long::<30>(), head.long::<38>(), head.long::<46>(), last]
    }

    #[inline(always)]
    fn first<const N: usize>(head: &impl Head<N>) -> (u8, Ip6) {
        (head.byte::<20>(), ip6(head.long::<22>(), head.long::<30>()))
    }

    type Rest = [u32; 9];

    #[inline(always)]
    fn rest<const N: usize>(_head: &impl Head<N>, to: &Change<V6>, _hop: bool) -> [u32; 9] {
        let ((a, b), (c, d)) = (longs(to.src), longs(to.dst));
        let high = |long: u64| (long >> 32) as u32;
        [a as u32, high(a), b as u32, high(b), c as u32, high(c), d as u32, high(d), to.ports]
    }

    #[inline(always)]
    fn store_rest(frame: &mut impl Direct, rest: &[u32; 9], hops: Option<u8>) -> Option<()> {
        frame.store_words(22, rest)?;
        match hops {
            Some(hops) => frame.store_summed(21, &[hops]),
            None => Some(()),
        }
    }

    #[inline(always)]
    fn put<const N: usize>(head: &mut impl HeadMut<N>, to: &Change<V6>) {
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
fn last_word(ports: u32, proto: u8, position: u8) -> u64 {
    ports as u64 | (proto as u64) << 32 | (position as u64) << 40
}

/// Ports, protocol and position of the last word of a key.
#[inline(always)]
fn last_fields(word: u64) -> ([u8; 2], [u8; 2], u8, u8) {
    let [a, b, c, d, proto, position, ..] = word.to_le_bytes();
    ([a, b], [c, d], proto, position)
}

/// `$hops`: offset of the hops; `$l4`: of the transport header; `$udp`, `$tcp`: of its end.
macro_rules! layout {
    ($family:ident $hops:literal $l4:literal $udp:literal $tcp:literal $words:ty; $tag:item $key:item) => {
        impl Layout for $family {
            type Words = $words;

            $tag
            $key

            #[inline(always)]
            fn destination(frame: &impl Direct) -> Option<<$family as Family>::Addr> {
                Some($family::dst(&frame.head::<$udp>()?))
            }

            #[inline(always)]
            fn glance_at(
                frame: &impl Direct,
            ) -> Option<(u8, <$family as Family>::Addr, <$family as Family>::Addr)> {
                let head = frame.head::<$udp>()?;
                let (proto, src) = $family::first(&head);
                Some((proto, src, $family::dst(&head)))
            }

            #[inline(always)]
            fn proto(frame: &impl Direct) -> Option<u8> {
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
            fn ports(frame: &impl Direct) -> Option<[[u8; 2]; 2]> {
                let [a, b, c, d] = frame.head::<$udp>()?.word::<$l4>().to_ne_bytes();
                Some([[a, b], [c, d]])
            }

            #[inline(always)]
            fn words(frame: &impl Direct, proto: u8, position: u8) -> Option<$words> {
                let head = frame.head::<$udp>()?;
                let last = last_word(head.word::<$l4>(), proto, position);
                Some(<$family as Ip>::words_of(&head, last))
            }

            #[inline(always)]
            fn translate(
                frame: &mut impl Direct,
                proto: u8,
                to: &Change<$family>,
                hop: bool,
            ) -> Option<()> {
                let (rest, hops) = {
                    let head = frame.head::<$udp>()?;
                    ($family::rest(&head, to, hop), hop.then(|| head.byte::<{ $hops }>().wrapping_sub(1)))
                };
                let (at, udp) = if proto == TCP { ($l4 + 16, false) } else { ($l4 + 6, true) };
                frame.fix_l4(at, to.addr_delta, to.port_delta, udp)?;
                $family::store_rest(frame, &rest, hops)
            }

            #[inline(always)]
            fn change(
                frame: &mut impl DirectMut,
                proto: u8,
                to: &Change<$family>,
                [a, b, c]: [u32; 3],
            ) -> Option<()> {
                if proto == TCP {
                    let mut head = frame.head_mut::<$tcp>()?;
                    let sum = head.half::<{ $l4 + 16 }>();
                    head.set_half::<{ $l4 + 16 }>(apply_l4(sum, to.addr_delta, to.port_delta, false));
                } else {
                    let mut head = frame.head_mut::<$udp>()?;
                    let sum = head.half::<{ $l4 + 6 }>();
                    head.set_half::<{ $l4 + 6 }>(apply_l4(sum, to.addr_delta, to.port_delta, true));
                }
                let mut head = frame.head_mut::<$udp>()?;
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
    V4 22 34 42 54 [u64; 2];

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
    V6 21 54 62 74 [u64; 5];

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
