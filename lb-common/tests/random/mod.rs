//! Random packets, and what happens to tables between them: for the tests that send everything down two paths.

use std::net::SocketAddr;

use lb_common::abi::CT_REPLIED;
use lb_common::packet::{ACK, FIN, RST, SYN};
use lb_common::testing::packets::NODE_MAC;
use lb_common::testing::{FakeEnv, PacketBuilder};
use proptest::prelude::*;

/// A packet of a connection; where to and from is the test's.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub udp: bool,
    pub reply: bool,
    /// TCP flags.
    pub kind: u8,
    pub ttl: u8,
    /// A byte of the frame that is another one.
    pub change: Option<(usize, u8)>,
    /// Length of the frame.
    pub cut: Option<usize>,
    /// UDP: has a checksum.
    pub sum: bool,
}

/// A segment in the middle of a connection.
pub const MIDDLE: Shape =
    Shape { udp: false, reply: false, kind: ACK, ttl: 64, change: None, cut: None, sum: true };

pub fn shape() -> impl Strategy<Value = Shape> {
    let kind = prop_oneof![6 => Just(ACK), 1 => Just(SYN), 1 => Just(SYN | ACK), 1 => Just(FIN | ACK), 1 => Just(RST)];
    let ttl = prop_oneof![12 => Just(64_u8), 1 => 0..3_u8];
    let change = prop::option::weighted(0.1, (0..80_usize, any::<u8>()));
    let cut = prop::option::weighted(0.05, 0..90_usize);
    (any::<bool>(), any::<bool>(), kind, ttl, change, cut, prop::bool::weighted(0.9)).prop_map(
        |(udp, reply, kind, ttl, change, cut, sum)| Shape { udp, reply, kind, ttl, change, cut, sum },
    )
}

impl Shape {
    /// The frame, addressed to the node.
    pub fn frame(&self, from: SocketAddr, to: SocketAddr) -> Vec<u8> {
        let packet =
            if self.udp { PacketBuilder::udp(from, to) } else { PacketBuilder::tcp(from, to, self.kind) };
        let mut frame = packet.with(|p| (p.ttl, p.macs[0]) = (self.ttl, NODE_MAC)).build();
        if self.udp && !self.sum {
            let at = if from.is_ipv6() { 60 } else { 40 };
            frame[at..at + 2].fill(0);
        }
        if let Some((at, byte)) = self.change
            && let Some(old) = frame.get_mut(at)
        {
            *old = byte;
        }
        if let Some(length) = self.cut {
            frame.truncate(length);
        }
        frame
    }
}

/// What becomes of tables without a packet.
#[derive(Clone, Debug)]
pub enum Change {
    /// So many ticks pass.
    Advance(u64),
    /// All entries with this role are gone.
    Evict(u8),
    /// Every backend has another generation.
    Generation,
    /// No answer was seen yet.
    Forgotten,
}

pub fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        2 => (1..4_u64).prop_map(Change::Advance),
        1 => (0..6_u8).prop_map(Change::Evict),
        1 => Just(Change::Generation),
        1 => Just(Change::Forgotten),
    ]
}

impl Change {
    pub fn happen(&self, env: &mut FakeEnv) {
        match self {
            Change::Advance(ticks) => env.advance(*ticks),
            Change::Evict(role) => {
                env.v4.evict(|_, _, value| value.role == *role);
                env.v6.evict(|_, _, value| value.role == *role);
            }
            Change::Generation => {
                for generations in [&mut env.v4.generations, &mut env.v6.generations] {
                    generations.values_mut().for_each(|generation| *generation += 1);
                }
            }
            Change::Forgotten => {
                env.v4.established.values_mut().for_each(|value| value.flags &= !CT_REPLIED);
                env.v6.established.values_mut().for_each(|value| value.flags &= !CT_REPLIED);
            }
        }
    }
}
