//! What the programs of `cargo xtask bench` (`lb-ebpf/src/bin/lb-bench.rs`) share with the bench itself. Nothing of it
//! is in the agent's programs.
//!
//! The generator's frames are UDP/IPv4 of 60 bytes: Ethernet 14, IPv4 20, UDP 8, 18 bytes of zeros.

use crate::csum::{fold, sum_words};

/// Length of a frame.
pub const FRAME: usize = 60;
/// Offset of the time to live.
pub const TTL: usize = 22;
/// Offset of the IPv4 header checksum.
pub const IP_CHECK: usize = 24;
/// Offset of the source address; the destination follows.
pub const SOURCE: usize = 26;
/// Offset of the destination address; the ports follow, source first.
pub const DESTINATION: usize = 30;
/// Offset of the source port.
pub const SOURCE_PORT: usize = 34;
/// Offset of the destination port.
pub const DESTINATION_PORT: usize = 36;
/// Offset of the UDP checksum.
pub const UDP_CHECK: usize = 40;

/// The sink checks checksums and the source address of every packet.
pub const CHECK: u32 = 1;
/// The sink sends every packet back.
pub const ECHO: u32 = 2;

/// Flows that come from one client address, each from its own port.
const PORTS: u32 = 16;
/// The first client port.
const FIRST_PORT: u32 = 20_000;

/// Where in the table of counts a program counts.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Count {
    /// Frames made by the generator.
    Made = 0,
    /// At the sink, as they should be.
    Arrived = 1,
    /// At the sink, with a wrong checksum.
    Spoilt = 2,
    /// Replies that came back as they should be.
    Back = 3,
    /// Replies with a wrong checksum.
    BackSpoilt = 4,
    /// Dropped by the program that only drops.
    Dropped = 5,
    /// At the sink, from a wrong source.
    Stray = 6,
}

/// Number of counts.
pub const COUNTS: u32 = 8;

/// What the programs of one bench are told. Numbers in host order; the bench writes, the programs read.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BenchConfig {
    /// The generator's frame without addresses, ports and checksums.
    pub frame: [u8; FRAME],
    /// Sum of its IPv4 header's words, and of its UDP datagram's with the pseudo-header, as they lie in memory.
    pub sums: [u32; 2],
    /// First client address.
    pub client: u32,
    /// Number of flows, a power of two.
    pub flows: u32,
    /// First address that the generator sends to, and how many follow it in turn (a power of two).
    pub target: u32,
    /// See `target`.
    pub targets: u32,
    /// The port it sends to.
    pub target_port: u32,
    /// First address that the sink counts, and how many.
    pub backend: u32,
    /// See `backend`.
    pub backends: u32,
    /// The port that the sink counts.
    pub backend_port: u32,
    /// Source address at the sink; 0 = any.
    pub source: u32,
    /// Interface that the ideal program and the plain redirect send by.
    pub out: u32,
    /// [`CHECK`], [`ECHO`].
    pub flags: u32,
    /// Destination and source MAC address that the ideal program writes.
    pub next: [u8; 12],
}

/// A flow to the ideal program. Network order.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BenchKey {
    /// Source and destination address.
    pub addresses: [[u8; 4]; 2],
    /// Source and destination port.
    pub ports: [[u8; 2]; 2],
}

/// What the ideal program makes of it. Network order.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BenchValue {
    /// New destination.
    pub address: [u8; 4],
    /// Its port.
    pub port: [u8; 2],
    /// Zero.
    pub pad: [u8; 2],
}

/// A neighbour behind a veth, for the ideal between two pods.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BenchPeer {
    /// The node's end; 0 = nobody.
    pub ifindex: u32,
    /// The pod's MAC address.
    pub mac: [u8; 6],
    /// Zero.
    pub pad: [u8; 2],
}

/// What differs between the frames of two flows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head {
    /// The flow as a table's key: addresses and ports.
    pub key: BenchKey,
    /// IPv4 and UDP checksum.
    pub checks: [[u8; 2]; 2],
}

/// Frame `number` of a generator.
#[must_use]
#[inline(always)]
pub fn head(config: &BenchConfig, number: u32) -> Head {
    let flow = number & config.flows.wrapping_sub(1);
    let addresses = [
        config.client.wrapping_add(flow / PORTS).to_be_bytes(),
        config.target.wrapping_add(flow & config.targets.wrapping_sub(1)).to_be_bytes(),
    ];
    let ports =
        [((FIRST_PORT + flow % PORTS) as u16).to_be_bytes(), (config.target_port as u16).to_be_bytes()];
    let words = sum_words(&addresses[0]) + sum_words(&addresses[1]);
    let ip = !fold(config.sums[0] + words);
    let udp = !fold(config.sums[1] + words + sum_words(&ports[0]) + sum_words(&ports[1]));
    // RFC 768: zero would say that there is none
    let udp = if udp == 0 { 0xffff } else { udp };
    Head { key: BenchKey { addresses, ports }, checks: [ip.to_ne_bytes(), udp.to_ne_bytes()] }
}

impl BenchConfig {
    /// A generator between these MAC addresses (destination, source); all else is zero.
    #[must_use]
    pub fn between(destination: [u8; 6], source: [u8; 6]) -> Self {
        let mut frame = [0; FRAME];
        frame[..6].copy_from_slice(&destination);
        frame[6..12].copy_from_slice(&source);
        // IPv4, 46 bytes, DF, 64 hops, UDP of 26 bytes
        frame[12..24].copy_from_slice(&[8, 0, 0x45, 0, 0, 46, 0, 0, 0x40, 0, 64, 17]);
        frame[38..40].copy_from_slice(&[0, 26]);
        let mut header = [0; 20];
        header.copy_from_slice(&frame[14..34]);
        // UDP length twice: header and pseudo-header; the protocol
        let datagram = sum_words(&[0, 26, 0, 26, 0, 17]);
        Self {
            frame,
            sums: [sum_words(&header), datagram],
            client: 0,
            flows: 1,
            target: 0,
            targets: 1,
            target_port: 0,
            backend: 0,
            backends: 1,
            backend_port: 0,
            source: 0,
            out: 0,
            flags: 0,
            next: [0; 12],
        }
    }

    /// The whole frame `number`, as the generator leaves it.
    #[must_use]
    pub fn whole(&self, number: u32) -> [u8; FRAME] {
        let (mut frame, head) = (self.frame, head(self, number));
        frame[SOURCE..DESTINATION].copy_from_slice(&head.key.addresses[0]);
        frame[DESTINATION..SOURCE_PORT].copy_from_slice(&head.key.addresses[1]);
        frame[SOURCE_PORT..DESTINATION_PORT].copy_from_slice(&head.key.ports[0]);
        frame[DESTINATION_PORT..DESTINATION_PORT + 2].copy_from_slice(&head.key.ports[1]);
        frame[IP_CHECK..SOURCE].copy_from_slice(&head.checks[0]);
        frame[UDP_CHECK..UDP_CHECK + 2].copy_from_slice(&head.checks[1]);
        frame
    }
}

/// Whether both checksums of a frame are right.
#[must_use]
#[inline(always)]
pub fn intact(frame: &[u8; FRAME]) -> bool {
    let (mut ip, mut udp) = (0_u32, 0_u32);
    let (words, _) = frame.as_chunks::<2>();
    for (number, word) in words.iter().enumerate() {
        let word = u16::from_ne_bytes(*word) as u32;
        let at = number * 2;
        if (14..SOURCE_PORT).contains(&at) {
            ip += word;
        }
        if at >= SOURCE {
            udp += word;
        }
    }
    udp += sum_words(&[0, 26, 0, 17]);
    fold(ip) == 0xffff && fold(udp) == 0xffff
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> BenchConfig {
        BenchConfig {
            client: 0xc612_0001,
            flows: 1 << 16,
            target: 0xcb00_7101,
            targets: 16,
            target_port: 30_081,
            ..BenchConfig::between([2; 6], [4; 6])
        }
    }

    #[test]
    fn every_frame_has_right_checksums_and_a_flow_of_its_own() {
        let config = config();
        let mut seen: Vec<_> = (0..config.flows)
            .map(|number| {
                let frame = config.whole(number);
                assert!(intact(&frame), "{number}: {frame:02x?}");
                frame
            })
            .collect();
        assert_eq!(seen[5], config.whole(5 + config.flows));
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), config.flows as usize);
    }

    #[test]
    fn a_spoilt_frame_is_seen() {
        let whole = config().whole(7);
        for at in 14..FRAME {
            let mut frame = whole;
            frame[at] ^= 1;
            assert!(!intact(&frame), "byte {at}");
        }
    }
}
