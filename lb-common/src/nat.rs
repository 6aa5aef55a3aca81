//! A rewrite: addresses, ports and checksums of a packet, all or nothing.

use crate::abi::CtValue;
use crate::csum::word_delta;
use crate::frame::Frame;
use crate::packet::{Fragment, LoadAddr, Packet, TCP, UDP};

/// Offset of the IPv4 header checksum.
const IP_CSUM: usize = 10;

/// Rewrites the packet, TCP or UDP and not a later fragment, to the new tuple of `value`.
///
/// `None`: the packet ends before its checksum; nothing was written then. Also when the hook refuses a later write,
/// and then the packet must be dropped.
#[inline(always)]
pub fn rewrite<F: LoadAddr>(frame: &mut impl Frame, packet: &Packet<F>, value: &CtValue<F>) -> Option<()> {
    let csum = match packet.proto {
        TCP => packet.l4 + 16,
        UDP => packet.l4 + 6,
        _ => return None,
    };
    let _present: [u8; 2] = frame.load(csum)?;
    if !F::V6 {
        frame.fix_l3(packet.l3 + IP_CSUM, value.addr_delta)?;
    }
    frame.fix_l4(csum, value.addr_delta, value.port_delta, packet.proto == UDP)?;
    F::store_addresses(frame, packet.l3 + F::ADDRS, value.src, value.dst)?;
    if value.port_delta != 0 || value.sport != packet.sport || value.dport != packet.dport {
        store_ports(frame, packet, value)?;
    }
    Some(())
}

/// Takes one hop from the packet whose IP header is at `l3`. `None`: none would be left, or the hook refused the write.
#[inline(always)]
pub fn take_hop<F: LoadAddr>(frame: &mut impl Frame, l3: usize) -> Option<()> {
    let at = l3 + F::HOPS;
    let [hops] = frame.load(at)?;
    if hops <= 1 {
        return None;
    }
    if F::V6 {
        return frame.store_summed(at, &[hops - 1]);
    }
    // the word of hops and protocol; the same amount goes from one and comes to the checksum
    frame.fix_l3(l3 + IP_CSUM, word_delta([hops, 0], [hops - 1, 0]))?;
    frame.store(at, &[hops - 1])
}

#[inline(always)]
fn store_ports<F: LoadAddr>(frame: &mut impl Frame, packet: &Packet<F>, value: &CtValue<F>) -> Option<()> {
    let ([a, b], [c, d]) = (value.sport, value.dport);
    frame.store(packet.l4, &[a, b, c, d])
}

/// The same for SCTP, which has no pseudo-header: only ports move its CRC32c.
///
/// `None` as in [`rewrite`]; also for a first fragment whose ports would change: the CRC32c is over what is not here.
///
/// A CRC of zero is left alone: a sender whose device is to compute it (`CHECKSUM_PARTIAL`) leaves zero there. A real
/// one that happens to be zero (one in 2^32) makes a packet that the receiver drops, and the sender sends again.
#[inline(always)]
pub fn rewrite_sctp<F: LoadAddr>(
    frame: &mut impl Frame,
    packet: &Packet<F>,
    value: &CtValue<F>,
) -> Option<()> {
    let at = packet.l4 + 8;
    let old: [u8; 4] = frame.load(at)?;
    let ([a, b], [c, d]) = (packet.sport, packet.dport);
    let ([e, f], [g, h]) = (value.sport, value.dport);
    let change = [a ^ e, b ^ f, c ^ g, d ^ h];
    let moved = change != [0; 4];
    let mut crc = u32::from_le_bytes(old);
    if moved && crc != 0 {
        let length = F::end(frame, packet.l3)?.checked_sub(packet.l4)?;
        if packet.fragment != Fragment::None {
            return None;
        }
        crc ^= frame.crc32c_change(change, length as u32);
    }
    if !F::V6 {
        frame.fix_l3(packet.l3 + IP_CSUM, value.addr_delta)?;
    }
    F::store_addresses(frame, packet.l3 + F::ADDRS, value.src, value.dst)?;
    if moved {
        store_ports(frame, packet, value)?;
        frame.store(at, &crc.to_le_bytes())?;
    }
    Some(())
}

/// Gives a later fragment, which has no ports, the addresses of `value`.
///
/// `None`: the hook refused a write, the packet must be dropped.
#[inline(always)]
pub fn rewrite_fragment<F: LoadAddr>(
    frame: &mut impl Frame,
    packet: &Packet<F>,
    value: &CtValue<F>,
) -> Option<()> {
    if !F::V6 {
        frame.fix_l3(packet.l3 + IP_CSUM, value.addr_delta)?;
    }
    F::store_fragment_addresses(frame, packet.l3 + F::ADDRS, value.src, value.dst)
}
