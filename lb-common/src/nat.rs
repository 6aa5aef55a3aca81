//! A rewrite: addresses, ports and checksums of a packet, all or nothing.

use crate::abi::CtValue;
use crate::frame::Frame;
use crate::packet::{LoadAddr, Packet, SCTP, TCP, UDP};

/// Offset of the IPv4 header checksum.
const IP_CSUM: usize = 10;

/// Rewrites the packet to the new tuple of `value`.
///
/// `None`: the packet ends before its checksum, or is SCTP whose ports would change (its CRC32c is not updated yet);
/// nothing was written then. Also when the hook refuses a later write, and then the packet must be dropped.
#[inline(always)]
pub fn rewrite<F: LoadAddr>(frame: &mut impl Frame, packet: &Packet<F>, value: &CtValue<F>) -> Option<()> {
    let csum = match packet.proto {
        TCP => packet.l4 + 16,
        UDP => packet.l4 + 6,
        SCTP if value.sport == packet.sport && value.dport == packet.dport => 0,
        _ => return None,
    };
    if csum != 0 {
        let _present: [u8; 2] = frame.load(csum)?;
    }
    if !F::V6 {
        frame.fix_l3(packet.l3 + IP_CSUM, value.addr_delta)?;
    }
    if csum != 0 {
        frame.fix_l4(csum, value.addr_delta, value.port_delta, packet.proto == UDP)?;
    }
    F::store_addresses(frame, packet.l3 + F::ADDRS, value.src, value.dst)?;
    if value.port_delta != 0 || value.sport != packet.sport || value.dport != packet.dport {
        let ([a, b], [c, d]) = (value.sport, value.dport);
        frame.store(packet.l4, &[a, b, c, d])?;
    }
    Some(())
}
