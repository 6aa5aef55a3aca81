//! Answers to a sender: ICMP port unreachable (RFC 792, RFC 4443 section 3.1) and TCP reset (RFC 9293 section 3.5.2),
//! written over the packet that caused them.

use crate::csum::{fold, sum_words};
use crate::env::QUOTE;
use crate::family::Family;
use crate::frame::Frame;
use crate::packet::{ACK, FIN, LoadAddr, Packet, RST, SYN, TCP};

/// Swaps the MAC addresses of an Ethernet frame; nothing to do on an L3 device.
#[inline(always)]
fn turn_around(frame: &mut impl Frame, l3: usize) -> Option<()> {
    if l3 >= 14 {
        let to: [u8; 6] = frame.load(0)?;
        let from: [u8; 6] = frame.load(6)?;
        frame.store(0, &from)?;
        frame.store(6, &to)?;
    }
    Some(())
}

/// Copies up to [`QUOTE`] bytes from `off` on; the rest is zero. Returns how many are in the packet, and their sum.
///
/// That is an IPv4 header with most options and the 8 bytes that RFC 792 asks for; for IPv6 the header and what TCP
/// needs to find the socket.
#[inline(always)]
fn quote(frame: &impl Frame, off: usize, buffer: &mut [u8; QUOTE]) -> (usize, u32) {
    *buffer = [0; QUOTE];
    let (mut taken, mut sum) = (0, 0);
    let (words, _) = buffer.as_chunks_mut::<4>();
    for word in words {
        let Some(bytes) = frame.load::<4>(off + taken) else { break };
        *word = bytes;
        taken += 4;
        sum += sum_words(&bytes);
    }
    (taken, sum)
}

/// What an ICMP error says: the first four and the last four bytes of its header without the checksum.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Complaint {
    /// Type and code.
    pub kind: [u8; 2],
    /// What follows the checksum.
    pub rest: [u8; 4],
}

impl Complaint {
    /// Port unreachable.
    #[must_use]
    #[inline(always)]
    pub const fn port<F: Family>() -> Complaint {
        Complaint { kind: if F::V6 { [1, 4] } else { [3, 3] }, rest: [0; 4] }
    }

    /// Packets up to `mtu` bytes would fit (RFC 1191 section 4, RFC 4443 section 3.2).
    #[must_use]
    #[inline(always)]
    pub const fn too_big<F: Family>(mtu: u16) -> Complaint {
        let [high, low] = mtu.to_be_bytes();
        Complaint { kind: if F::V6 { [2, 0] } else { [3, 4] }, rest: [0, 0, high, low] }
    }
}

/// Turns the frame into an ICMP error from `from` to the packet's source.
///
/// The caller has made sure that the packet may be answered. `None`: the frame is in an undefined state, drop it.
#[inline(always)]
pub fn complain<F: LoadAddr>(
    frame: &mut impl Frame,
    packet: &Packet<F>,
    body: &mut [u8; QUOTE],
    from: F::Addr,
    what: Complaint,
) -> Option<()> {
    let l3 = packet.l3;
    let (taken, sum) = quote(frame, l3, body);
    let ([k0, k1], [r0, r1, r2, r3]) = (what.kind, what.rest);
    let sum = sum + u16::from_ne_bytes([k0, k1]) as u32 + sum_words(&what.rest);
    turn_around(frame, l3)?;
    if F::V6 {
        frame.resize(l3 + 48 + QUOTE)?;
        // pseudo-header: addresses, length, protocol (RFC 8200 section 8.1)
        let length = (8 + taken) as u16;
        let sum = sum + F::sum(from) + F::sum(packet.src) + pseudo(length, F::ICMP);
        let [c0, c1] = (!fold(sum)).to_ne_bytes();
        let [l0, l1] = length.to_be_bytes();
        frame.store(l3, &[0x60, 0, 0, 0, l0, l1, F::ICMP, 64])?;
        F::store_addresses(frame, l3 + F::ADDRS, from, packet.src)?;
        frame.store(l3 + 40, &[k0, k1, c0, c1, r0, r1, r2, r3])?;
        frame.store(l3 + 48, body)?;
        frame.resize(l3 + 48 + taken)
    } else {
        frame.resize(l3 + 28 + QUOTE)?;
        let [c0, c1] = (!fold(sum)).to_ne_bytes();
        ipv4_header::<F>(frame, l3, 28 + taken as u16, F::ICMP, from, packet.src)?;
        frame.store(l3 + 20, &[k0, k1, c0, c1, r0, r1, r2, r3])?;
        frame.store(l3 + 28, body)?;
        frame.resize(l3 + 28 + taken)
    }
}

/// Writes an IPv4 header with DF and without options; `length` is the whole packet's.
#[inline(always)]
pub(crate) fn ipv4_header<F: LoadAddr>(
    frame: &mut impl Frame,
    l3: usize,
    length: u16,
    proto: u8,
    src: F::Addr,
    dst: F::Addr,
) -> Option<()> {
    let [l0, l1] = length.to_be_bytes();
    let head = [0x45, 0, l0, l1, 0, 0, 0x40, 0, 64, proto, 0, 0];
    let [c0, c1] = (!fold(sum_words(&head) + F::sum(src) + F::sum(dst))).to_ne_bytes();
    frame.store(l3, &[0x45, 0, l0, l1, 0, 0, 0x40, 0, 64, proto, c0, c1])?;
    F::store_addresses(frame, l3 + 12, src, dst)
}

/// Turns the TCP segment in the frame into the reset that answers it, from its destination to its source.
///
/// The packet is TCP, not a reset itself, and not a later fragment. `None`: the frame is in an undefined state.
#[inline(always)]
pub fn tcp_reset<F: LoadAddr>(frame: &mut impl Frame, packet: &Packet<F>) -> Option<()> {
    let l3 = packet.l3;
    let seq: [u8; 4] = frame.load(packet.l4 + 4)?;
    let ack: [u8; 4] = frame.load(packet.l4 + 8)?;
    let (seq, ack, flags) = if packet.kind & ACK != 0 {
        (ack, [0; 4], RST)
    } else {
        let used = (packet.kind & SYN != 0) as u32 + (packet.kind & FIN != 0) as u32;
        ([0; 4], u32::from_be_bytes(seq).wrapping_add(used).to_be_bytes(), RST | ACK)
    };
    turn_around(frame, l3)?;
    let header = if F::V6 { 40 } else { 20 };
    frame.resize(l3 + header + 20)?;
    let ([s0, s1], [d0, d1]) = (packet.dport, packet.sport);
    let mut segment = [
        s0, s1, d0, d1, seq[0], seq[1], seq[2], seq[3], ack[0], ack[1], ack[2], ack[3], 0x50, flags, 0, 0, 0,
        0, 0, 0,
    ];
    let sum = sum_words(&segment) + F::sum(packet.src) + F::sum(packet.dst) + pseudo(20, TCP);
    let [c0, c1] = (!fold(sum)).to_ne_bytes();
    (segment[16], segment[17]) = (c0, c1);
    if F::V6 {
        frame.store(l3, &[0x60, 0, 0, 0, 0, 20, TCP, 64])?;
        F::store_addresses(frame, l3 + F::ADDRS, packet.dst, packet.src)?;
    } else {
        ipv4_header::<F>(frame, l3, 40, TCP, packet.dst, packet.src)?;
    }
    frame.store(l3 + header, &segment)
}

/// Length and protocol of a pseudo-header.
#[inline(always)]
fn pseudo(length: u16, proto: u8) -> u32 {
    u16::from_ne_bytes(length.to_be_bytes()) as u32 + u16::from_ne_bytes([0, proto]) as u32
}

/// The frame was sent to a link-layer group or broadcast address (RFC 1122 section 3.2.2: no answer).
#[must_use]
#[inline(always)]
pub fn is_for_many(frame: &impl Frame, l3: usize) -> bool {
    l3 >= 14 && frame.load::<1>(0).is_some_and(|[first]| first & 1 != 0)
}

/// Whether an answer to this source is allowed at all (RFC 1122 section 3.2.2): not to nobody, not to a group.
#[must_use]
#[inline(always)]
pub fn may_answer<F: Family>(src: F::Addr) -> bool {
    let first = src.as_ref().first().copied().unwrap_or(0);
    src != F::ZERO && if F::V6 { first != 0xff } else { first < 224 }
}
