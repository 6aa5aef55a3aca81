//! What the pipeline may know about a packet, and how it is found: bounded, without panics, for any bytes.

use crate::family::{Family, Ip4, Ip6};
use crate::frame::Frame;

/// TCP.
pub const TCP: u8 = 6;
/// UDP.
pub const UDP: u8 = 17;
/// SCTP (RFC 9260).
pub const SCTP: u8 = 132;

/// TCP flag bits (RFC 9293 section 3.1).
pub const FIN: u8 = 0x01;
/// Synchronise.
pub const SYN: u8 = 0x02;
/// Reset.
pub const RST: u8 = 0x04;
/// Acknowledgement.
pub const ACK: u8 = 0x10;

/// Extension headers that are walked before a packet is given up (RFC 8200 section 4.1 recommends five kinds).
const EXTENSIONS: usize = 6;

/// Where in a fragmented datagram a packet is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Fragment {
    /// Not fragmented.
    #[default]
    None,
    /// The first fragment: has the ports.
    First,
    /// A later one: has no ports.
    Later,
}

/// A parsed packet. Addresses and ports in network order; ports are zero where the protocol has none, and for later
/// fragments.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Packet<F: Family> {
    /// Source address.
    pub src: F::Addr,
    /// Destination address.
    pub dst: F::Addr,
    /// Source port.
    pub sport: [u8; 2],
    /// Destination port.
    pub dport: [u8; 2],
    /// IP protocol of the payload, behind extension headers.
    pub proto: u8,
    /// TCP flags; for SCTP the type of the first chunk; for ICMP the type; else 0.
    pub kind: u8,
    /// Fragmentation.
    pub fragment: Fragment,
    /// Identification of the datagram, network order, IPv4's in the first two bytes; set for fragments only.
    pub ident: [u8; 4],
    /// Offset of the IP header in the frame.
    pub l3: usize,
    /// Offset of the payload's header; below `l3` + 256.
    pub l4: usize,
}

impl<F: Family> Packet<F> {
    /// The packet begins a TCP connection, an SCTP association, or is a datagram.
    #[must_use]
    #[inline(always)]
    pub fn begins_flow(&self) -> bool {
        match self.proto {
            TCP => self.kind & (SYN | ACK | RST | FIN) == SYN,
            SCTP => self.kind == 1,
            _ => true,
        }
    }

    /// Has ports that the balancer understands.
    #[must_use]
    #[inline(always)]
    pub fn has_ports(&self) -> bool {
        matches!(self.proto, TCP | UDP | SCTP)
    }

    /// Its ports as the draw from a Maglev table takes them.
    #[must_use]
    #[inline(always)]
    pub fn ports(&self) -> u32 {
        crate::maglev::ports(self.sport, self.dport)
    }
}

impl<F: Family> Packet<F> {
    /// An ICMP error that quotes a packet and concerns its flow: destination unreachable (with fragmentation needed),
    /// time exceeded, parameter problem; for IPv6 packet too big, too. Redirects are between neighbours.
    #[must_use]
    #[inline(always)]
    pub fn is_error(&self) -> bool {
        self.proto == F::ICMP
            && self.fragment != Fragment::Later
            && if F::V6 { matches!(self.kind, 1..=4) } else { matches!(self.kind, 3 | 11 | 12) }
    }
}

/// Reads source and destination address of an IP header at `l3` into `packet`. False: too short.
#[inline(always)]
pub fn addresses<F: LoadAddr>(frame: &impl Frame, l3: usize, packet: &mut Packet<F>) -> bool {
    let Some(src) = F::load_address(frame, l3 + F::ADDRS) else { return false };
    packet.src = src;
    let Some(dst) = F::load_address(frame, l3 + F::ADDRS + size_of::<F::Addr>()) else { return false };
    packet.dst = dst;
    true
}

/// How the addresses of a family are read: 8 or 32 bytes at once.
pub trait LoadAddr: Family {
    /// The address at `off`.
    fn load_address(frame: &impl Frame, off: usize) -> Option<Self::Addr>;
    /// Protocol (for IPv6 the first next header), source and destination of the header at `l3`, by one read.
    fn glance(frame: &impl Frame, l3: usize) -> Option<(u8, Self::Addr, Self::Addr)>;
    /// Writes source and destination, which lie one behind the other at `off`.
    fn store_addresses(frame: &mut impl Frame, off: usize, src: Self::Addr, dst: Self::Addr) -> Option<()>;
    /// The same in a later fragment, which has no transport checksum to make up for the change.
    fn store_fragment_addresses(
        frame: &mut impl Frame,
        off: usize,
        src: Self::Addr,
        dst: Self::Addr,
    ) -> Option<()>;
    /// Protocol, payload offset and fragmentation of the header at `l3`; a fragment's identification goes into
    /// `ident`. `None`: malformed, or too many extension headers, or none that is followed by a payload we know.
    fn walk(frame: &impl Frame, l3: usize, ident: &mut [u8; 4]) -> Option<(u8, usize, Fragment)>;
    /// Offset of the time to live, or hop limit, in the header.
    const HOPS: usize;
    /// Length of the header if it has neither options, extension headers nor fragmentation, its protocol and its hops
    /// left. `None`: it has, or is malformed.
    fn plain(frame: &impl Frame, l3: usize) -> Option<(usize, u8, u8)>;
    /// Offset of the end of the packet whose header is at `l3`, by the header's own length.
    fn end(frame: &impl Frame, l3: usize) -> Option<usize>;
}

impl LoadAddr for crate::family::V4 {
    #[inline(always)]
    fn load_address(frame: &impl Frame, off: usize) -> Option<Ip4> {
        Some(Ip4 { addr: frame.load(off)? })
    }

    #[inline(always)]
    fn glance(frame: &impl Frame, l3: usize) -> Option<(u8, Ip4, Ip4)> {
        let [_, proto, _, _, a, b, c, d, e, f, g, h]: [u8; 12] = frame.load(l3 + 8)?;
        Some((proto, [a, b, c, d].into(), [e, f, g, h].into()))
    }

    #[inline(always)]
    fn store_addresses(frame: &mut impl Frame, off: usize, src: Ip4, dst: Ip4) -> Option<()> {
        frame.store(off, &src.addr)?;
        frame.store(off + 4, &dst.addr)
    }

    // the header's own checksum makes up for it
    #[inline(always)]
    fn store_fragment_addresses(frame: &mut impl Frame, off: usize, src: Ip4, dst: Ip4) -> Option<()> {
        Self::store_addresses(frame, off, src, dst)
    }

    #[inline(always)]
    fn walk(frame: &impl Frame, l3: usize, ident: &mut [u8; 4]) -> Option<(u8, usize, Fragment)> {
        let [version_ihl] = frame.load(l3)?;
        let bits = u16::from_be_bytes(frame.load(l3 + 6)?);
        let [proto] = frame.load(l3 + 9)?;
        let ihl = ((version_ihl & 0x0f) as usize) * 4;
        if version_ihl >> 4 != 4 || ihl < 20 {
            return None;
        }
        let fragment = match (bits & 0x1fff, bits & 0x2000) {
            (0, 0) => Fragment::None,
            (0, _) => Fragment::First,
            _ => Fragment::Later,
        };
        if fragment != Fragment::None {
            let [high, low] = frame.load(l3 + 4)?;
            *ident = [high, low, 0, 0];
        }
        Some((proto, l3 + ihl, fragment))
    }

    const HOPS: usize = 8;

    #[inline(always)]
    fn plain(frame: &impl Frame, l3: usize) -> Option<(usize, u8, u8)> {
        let [version_ihl, _, _, _, _, _, a, b, hops, proto]: [u8; 10] = frame.load(l3)?;
        let fragment = u16::from_be_bytes([a, b]) & 0x3fff;
        (version_ihl == 0x45 && fragment == 0).then_some((20, proto, hops))
    }

    #[inline(always)]
    fn end(frame: &impl Frame, l3: usize) -> Option<usize> {
        Some(l3 + u16::from_be_bytes(frame.load(l3 + 2)?) as usize)
    }
}

impl LoadAddr for crate::family::V6 {
    #[inline(always)]
    fn load_address(frame: &impl Frame, off: usize) -> Option<Ip6> {
        Some(Ip6 { addr: frame.load(off)? })
    }

    #[inline(always)]
    fn glance(frame: &impl Frame, l3: usize) -> Option<(u8, Ip6, Ip6)> {
        let header: [u8; 40] = frame.load(l3)?;
        let (first, rest) = header.split_first_chunk::<8>()?;
        let (src, dst) = rest.split_first_chunk::<16>()?;
        Some((first[6], (*src).into(), (*dst.first_chunk::<16>()?).into()))
    }

    #[inline(always)]
    fn store_addresses(frame: &mut impl Frame, off: usize, src: Ip6, dst: Ip6) -> Option<()> {
        frame.store(off, &src.addr)?;
        frame.store(off + 16, &dst.addr)
    }

    #[inline(always)]
    fn store_fragment_addresses(frame: &mut impl Frame, off: usize, src: Ip6, dst: Ip6) -> Option<()> {
        frame.store_summed(off, &src.addr)?;
        frame.store_summed(off + 16, &dst.addr)
    }

    #[inline(always)]
    fn walk(frame: &impl Frame, l3: usize, ident: &mut [u8; 4]) -> Option<(u8, usize, Fragment)> {
        let [version] = frame.load(l3)?;
        let [mut next] = frame.load(l3 + 6)?;
        if version >> 4 != 6 {
            return None;
        }
        let mut off = 40;
        let mut fragment = Fragment::None;
        for _ in 0..EXTENSIONS {
            match next {
                TCP | UDP | SCTP | 58 => return Some((next, l3 + off, fragment)),
                // hop-by-hop, routing, destination options (RFC 8200): length in units of 8 bytes, without the first
                0 | 43 | 60 => {
                    let [following, length]: [u8; 2] = frame.load(l3 + off)?;
                    (next, off) = (following, off + 8 + (length as usize) * 8);
                }
                44 => {
                    let [following, _, bits0, bits1, id @ ..]: [u8; 8] = frame.load(l3 + off)?;
                    let bits = u16::from_be_bytes([bits0, bits1]);
                    (next, off, *ident) = (following, off + 8, id);
                    fragment = match (bits & 0xfff8, bits & 1) {
                        (0, 0) => Fragment::None,
                        (0, _) => Fragment::First,
                        _ => return Some((next, l3 + off, Fragment::Later)),
                    };
                }
                _ => return None,
            }
            if off > 200 {
                return None;
            }
        }
        None
    }

    const HOPS: usize = 7;

    #[inline(always)]
    fn plain(frame: &impl Frame, l3: usize) -> Option<(usize, u8, u8)> {
        let [version, _, _, _, _, _, next, hops]: [u8; 8] = frame.load(l3)?;
        (version >> 4 == 6).then_some((40, next, hops))
    }

    #[inline(always)]
    fn end(frame: &impl Frame, l3: usize) -> Option<usize> {
        Some(l3 + 40 + u16::from_be_bytes(frame.load(l3 + 4)?) as usize)
    }
}

/// Parses the packet whose IP header is at `l3` (0 or 14) into `packet`, whose addresses are already known.
///
/// False: malformed, truncated, or a protocol without ports that is not ICMP: not the balancer's business, and the
/// rest of `packet` is not to be used. Not inlined: a BPF stack is small.
#[inline(never)]
pub fn parse<F: LoadAddr>(frame: &mut impl Frame, l3: usize, packet: &mut Packet<F>) -> bool {
    if parse_ports(frame, l3, packet).is_some() {
        return true;
    }
    frame.pull();
    parse_ports(frame, l3, packet).is_some()
}

/// Parses the packet, whose addresses are already known, if it is what nearly all are: TCP or UDP right behind a header
/// without options, extension headers or fragmentation, with a hop left. False: anything else; `packet` is then
/// not to be used.
#[inline(always)]
pub fn parse_plain<F: LoadAddr>(frame: &impl Frame, l3: usize, packet: &mut Packet<F>) -> bool {
    let Some((length, proto, hops)) = F::plain(frame, l3) else { return false };
    if (proto != TCP && proto != UDP) || hops <= 1 {
        return false;
    }
    let l4 = l3 + length;
    let Some([a, b, c, d, ..]) = frame.load::<8>(l4) else { return false };
    packet.kind = 0;
    if proto == TCP {
        // up to the checksum, so that a rewrite finds it in memory
        let Some([_, flags, ..]) = frame.load::<6>(l4 + 12) else { return false };
        packet.kind = flags;
    }
    (packet.sport, packet.dport) = ([a, b], [c, d]);
    (packet.proto, packet.fragment, packet.l3, packet.l4) = (proto, Fragment::None, l3, l4);
    true
}

#[inline(always)]
fn parse_ports<F: LoadAddr>(frame: &impl Frame, l3: usize, packet: &mut Packet<F>) -> Option<()> {
    let (proto, l4, fragment) = F::walk(frame, l3, &mut packet.ident)?;
    (packet.proto, packet.fragment) = (proto, fragment);
    (packet.sport, packet.dport, packet.kind, packet.l3, packet.l4) = ([0; 2], [0; 2], 0, l3, l4);
    if fragment == Fragment::Later {
        return Some(());
    }
    match proto {
        // up to the checksum, so that a rewrite finds it in memory
        TCP => {
            let [a, b, c, d] = frame.load(l4)?;
            (packet.sport, packet.dport) = ([a, b], [c, d]);
            let [_, flags, ..]: [u8; 8] = frame.load(l4 + 12)?;
            packet.kind = flags;
        }
        UDP => {
            let [a, b, c, d, ..]: [u8; 8] = frame.load(l4)?;
            (packet.sport, packet.dport) = ([a, b], [c, d]);
        }
        SCTP => {
            let [a, b, c, d] = frame.load(l4)?;
            (packet.sport, packet.dport) = ([a, b], [c, d]);
            [packet.kind] = frame.load(l4 + 12)?;
        }
        _ if proto == F::ICMP => [packet.kind] = frame.load(l4)?,
        _ => return None,
    }
    Some(())
}
