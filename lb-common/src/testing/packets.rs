//! Packets: built with right checksums, and checked by summing everything up again.

use core::net::{IpAddr, SocketAddr};
use std::format;
use std::string::String;
use std::vec;
use std::vec::Vec;

use crate::packet::{SCTP, TCP, UDP};

pub const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const NODE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// A packet in the making. Whatever is not set has a plain value.
#[derive(Clone, Debug)]
pub struct PacketBuilder {
    pub src: SocketAddr,
    pub dst: SocketAddr,
    pub proto: u8,
    /// Ethernet header in front.
    pub ethernet: bool,
    pub macs: [[u8; 6]; 2],
    pub ttl: u8,
    pub id: u16,
    /// Low half of the identification in an IPv6 fragment header.
    pub ident6: u16,
    /// IPv4: the fragment word is 0x4000 unless this is a fragment.
    pub options: Vec<u8>,
    /// IPv6: (protocol number, body after the next-header byte; length a multiple of 8 less 1).
    pub extensions: Vec<(u8, Vec<u8>)>,
    /// (offset in units of 8 bytes, more fragments follow).
    pub fragment: Option<(u16, bool)>,
    /// TCP flags, or the type of the first SCTP chunk.
    pub kind: u8,
    pub seq: u32,
    pub ack: u32,
    /// ICMP: type, code and the four bytes behind the checksum.
    pub icmp: ([u8; 2], [u8; 4]),
    /// UDP without a checksum; SCTP whose checksum the sending device is to compute.
    pub no_checksum: bool,
    pub payload: Vec<u8>,
}

/// An address and a port from text.
#[must_use]
pub fn at(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip, port)
}

impl PacketBuilder {
    #[must_use]
    pub fn new(proto: u8, src: SocketAddr, dst: SocketAddr) -> PacketBuilder {
        assert_eq!(src.is_ipv4(), dst.is_ipv4());
        PacketBuilder {
            src,
            dst,
            proto,
            ethernet: true,
            macs: [NODE_MAC, CLIENT_MAC],
            ttl: 64,
            id: 0x1234,
            ident6: 0x1234,
            options: Vec::new(),
            extensions: Vec::new(),
            fragment: None,
            kind: 0,
            seq: 0x0102_0304,
            ack: 0,
            icmp: ([0; 2], [0; 4]),
            no_checksum: false,
            payload: b"payload!".to_vec(),
        }
    }

    /// TCP with these flags; no payload if one of them is SYN.
    #[must_use]
    pub fn tcp(src: SocketAddr, dst: SocketAddr, flags: u8) -> PacketBuilder {
        let payload =
            if flags & crate::packet::SYN != 0 { Vec::new() } else { b"GET / HTTP/1.1\r\n\r\n".to_vec() };
        let ack = if flags & crate::packet::ACK != 0 { 0x0a0b_0c0d } else { 0 };
        PacketBuilder { kind: flags, ack, payload, ..Self::new(TCP, src, dst) }
    }

    #[must_use]
    pub fn udp(src: SocketAddr, dst: SocketAddr) -> PacketBuilder {
        Self::new(UDP, src, dst)
    }

    /// SCTP whose first chunk has this type.
    #[must_use]
    pub fn sctp(src: SocketAddr, dst: SocketAddr, chunk: u8) -> PacketBuilder {
        PacketBuilder { kind: chunk, ..Self::new(SCTP, src, dst) }
    }

    /// ICMP of the family of the addresses.
    #[must_use]
    pub fn icmp(src: IpAddr, dst: IpAddr, kind: u8, code: u8) -> PacketBuilder {
        let proto = if src.is_ipv4() { 1 } else { 58 };
        PacketBuilder { icmp: ([kind, code], [0, 1, 0, 1]), ..Self::new(proto, at(src, 0), at(dst, 0)) }
    }

    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut PacketBuilder)) -> PacketBuilder {
        change(&mut self);
        self
    }

    /// The same packet between other ends.
    #[must_use]
    pub fn between(&self, src: SocketAddr, dst: SocketAddr) -> PacketBuilder {
        PacketBuilder { src, dst, ..self.clone() }
    }

    /// The packet as an answer of this host would carry it back: MAC addresses swapped.
    #[must_use]
    pub fn swapped(&self) -> PacketBuilder {
        PacketBuilder { macs: [self.macs[1], self.macs[0]], ..self.clone() }
    }

    fn pseudo(&self, proto: u8, length: usize) -> Vec<u8> {
        let mut bytes = octets(self.src.ip());
        bytes.extend(octets(self.dst.ip()));
        bytes.extend((length as u32).to_be_bytes());
        bytes.extend([0, 0, 0, proto]);
        bytes
    }

    /// Header and payload above IP.
    fn transport(&self) -> Vec<u8> {
        let (sport, dport) = (self.src.port().to_be_bytes(), self.dst.port().to_be_bytes());
        let mut bytes = vec![sport[0], sport[1], dport[0], dport[1]];
        let check = match self.proto {
            TCP => {
                bytes.extend(self.seq.to_be_bytes());
                bytes.extend(self.ack.to_be_bytes());
                bytes.extend([0x50, self.kind, 0x72, 0x10, 0, 0, 0, 0]);
                16
            }
            UDP => {
                bytes.extend(((8 + self.payload.len()) as u16).to_be_bytes());
                bytes.extend([0, 0]);
                6
            }
            SCTP => {
                bytes.extend([0, 0, 0, 7, 0, 0, 0, 0]);
                bytes.extend([self.kind, 0]);
                bytes.extend(((4 + self.payload.len()) as u16).to_be_bytes());
                bytes.extend(&self.payload);
                if self.no_checksum {
                    return bytes;
                }
                let crc = crc32c(&bytes).to_le_bytes();
                bytes[8..12].copy_from_slice(&crc);
                return bytes;
            }
            1 | 58 => {
                bytes.clear();
                bytes.extend(self.icmp.0);
                bytes.extend([0, 0]);
                bytes.extend(self.icmp.1);
                2
            }
            _ => return self.payload.clone(),
        };
        bytes.extend(&self.payload);
        if self.proto == UDP && self.no_checksum {
            return bytes;
        }
        let mut covered = if self.proto == 1 { Vec::new() } else { self.pseudo(self.proto, bytes.len()) };
        covered.extend(&bytes);
        let sum = match internet_checksum(&covered) {
            0 if self.proto == UDP => 0xffff,
            sum => sum,
        };
        bytes[check..check + 2].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    /// The frame. A later fragment carries the payload alone.
    #[must_use]
    pub fn build(&self) -> Vec<u8> {
        let later = matches!(self.fragment, Some((1.., _)));
        let body = if later { self.payload.clone() } else { self.transport() };
        let mut ip = match (self.src.ip(), self.dst.ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let header = 20 + self.options.len();
                let mut ip = vec![0x40 | (header / 4) as u8, 0];
                ip.extend(((header + body.len()) as u16).to_be_bytes());
                ip.extend(self.id.to_be_bytes());
                let word = match self.fragment {
                    None => 0x4000,
                    Some((offset, more)) => offset | if more { 0x2000 } else { 0 },
                };
                ip.extend(word.to_be_bytes());
                ip.extend([self.ttl, self.proto, 0, 0]);
                ip.extend(src.octets());
                ip.extend(dst.octets());
                ip.extend(&self.options);
                let sum = internet_checksum(&ip).to_be_bytes();
                ip[10..12].copy_from_slice(&sum);
                ip
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let mut extensions = self.extensions.clone();
                if let Some((offset, more)) = self.fragment {
                    let [a, b] = ((offset << 3) | more as u16).to_be_bytes();
                    let [c, d] = self.ident6.to_be_bytes();
                    extensions.push((44, vec![0, a, b, 0, 0, c, d]));
                }
                let mut chain = Vec::new();
                for (number, (_, extension)) in extensions.iter().enumerate() {
                    assert_eq!(extension.len() % 8, 7);
                    chain.push(extensions.get(number + 1).map_or(self.proto, |next| next.0));
                    chain.extend(extension);
                }
                let mut ip = vec![0x60, 0, 0, 0];
                ip.extend(((chain.len() + body.len()) as u16).to_be_bytes());
                ip.extend([extensions.first().map_or(self.proto, |first| first.0), self.ttl]);
                ip.extend(src.octets());
                ip.extend(dst.octets());
                ip.extend(chain);
                ip
            }
            _ => unreachable!("checked in new()"),
        };
        ip.extend(body);
        if !self.ethernet {
            return ip;
        }
        let mut frame = self.macs.concat();
        frame.extend(if self.src.is_ipv4() { [0x08, 0x00] } else { [0x86, 0xdd] });
        frame.extend(ip);
        frame
    }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// RFC 1071, the slow way; not the arithmetic that is under test.
#[must_use]
pub fn internet_checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0u64;
    for pair in bytes.chunks(2) {
        sum += u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// CRC32c (RFC 9260 appendix A), bit by bit.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}

/// Sums up a whole frame again. `Err` says which checksum is wrong.
///
/// # Errors
/// A checksum is wrong, or a length does not fit.
pub fn checksums(frame: &[u8], l3: usize) -> Result<(), String> {
    let ip = frame.get(l3..).ok_or("no IP header")?;
    let (mut proto, mut l4, end, pseudo, mut whole) = match ip.first().map(|byte| byte >> 4) {
        Some(4) => {
            let header = (ip[0] & 15) as usize * 4;
            if internet_checksum(&ip[..header]) != 0 {
                return Err(format!("IPv4 header checksum: {:02x?}", &ip[..header]));
            }
            let whole = u16::from_be_bytes([ip[6], ip[7]]) & 0x3fff == 0;
            (ip[9], header, u16::from_be_bytes([ip[2], ip[3]]) as usize, ip[12..20].to_vec(), whole)
        }
        Some(6) => {
            let end = 40 + u16::from_be_bytes([ip[4], ip[5]]) as usize;
            (ip[6], 40, end, ip[8..40].to_vec(), true)
        }
        other => return Err(format!("IP version {other:?}")),
    };
    while pseudo.len() == 32 && matches!(proto, 0 | 43 | 44 | 60) {
        let next = ip[l4];
        if proto == 44 {
            whole &= u16::from_be_bytes([ip[l4 + 2], ip[l4 + 3]]) & 0xfff9 == 0;
        }
        l4 += if proto == 44 { 8 } else { 8 + ip[l4 + 1] as usize * 8 };
        proto = next;
    }
    let body = ip.get(l4..end).ok_or_else(|| format!("length {end}, have {}", ip.len()))?;
    if !whole {
        return Ok(()); // the checksum covers the datagram
    }
    let mut covered = pseudo;
    covered.extend((body.len() as u32).to_be_bytes());
    covered.extend([0, 0, 0, proto]);
    match proto {
        UDP if body[6..8] == [0, 0] => return Ok(()),
        SCTP if body[8..12] == [0; 4] => return Ok(()), // left to the device
        1 => covered.clear(),
        TCP | UDP | 58 => {}
        SCTP => {
            let mut zeroed = body.to_vec();
            zeroed[8..12].fill(0);
            let right = crc32c(&zeroed).to_le_bytes() == body[8..12];
            return if right { Ok(()) } else { Err("SCTP CRC32c".into()) };
        }
        _ => return Ok(()),
    }
    covered.extend(body);
    match internet_checksum(&covered) {
        0 => Ok(()),
        sum => Err(format!("checksum of protocol {proto} is off by {sum:#06x}")),
    }
}

/// [`checksums`] as an assertion.
pub fn check(frame: &[u8], l3: usize, what: &str) {
    if let Err(error) = checksums(frame, l3) {
        panic!("{what}: {error}: {frame:02x?}");
    }
}

/// The ICMP error "port unreachable" that answers `offender` (with its Ethernet header, if it has one).
#[must_use]
pub fn port_unreachable(from: IpAddr, offender: &PacketBuilder) -> Vec<u8> {
    let frame = offender.build();
    let packet = &frame[if offender.ethernet { 14 } else { 0 }..];
    let quoted = (packet.len() / 4 * 4).min(crate::env::QUOTE);
    let (kind, code) = if from.is_ipv4() { (3, 3) } else { (1, 4) };
    PacketBuilder::icmp(from, offender.src.ip(), kind, code)
        .with(|p| {
            p.icmp.1 = [0; 4];
            p.id = 0;
            p.ethernet = offender.ethernet;
            p.macs = [offender.macs[1], offender.macs[0]];
            p.payload = packet[..quoted].to_vec();
        })
        .build()
}

/// The reset that answers a TCP segment.
#[must_use]
pub fn reset(offender: &PacketBuilder) -> Vec<u8> {
    use crate::packet::{ACK, FIN, RST, SYN};
    let length = (offender.kind & SYN != 0) as u32 + (offender.kind & FIN != 0) as u32;
    let (flags, seq, ack) = if offender.kind & ACK != 0 {
        (RST, offender.ack, 0)
    } else {
        (RST | ACK, 0, offender.seq.wrapping_add(length))
    };
    let mut answer = PacketBuilder::tcp(offender.dst, offender.src, flags).with(|p| {
        (p.seq, p.ack, p.id) = (seq, ack, 0);
        p.ethernet = offender.ethernet;
        p.macs = [offender.macs[1], offender.macs[0]];
        p.payload.clear();
    });
    answer.options.clear();
    let mut frame = answer.build();
    // the window of a reset means nothing; ours is zero
    let l4 = if offender.ethernet { 14 } else { 0 } + if offender.src.is_ipv4() { 20 } else { 40 };
    frame[l4 + 14..l4 + 18].fill(0);
    let mut covered = answer.pseudo(TCP, 20);
    covered.extend(&frame[l4..]);
    let sum = internet_checksum(&covered).to_be_bytes();
    frame[l4 + 16..l4 + 18].copy_from_slice(&sum);
    frame
}
