//! What the socket hooks remember. The kernel writes and reads.

use crate::family::Ip6;

/// Value of the socket storage `LB_SK_PEER`: the frontend that a connected socket was aimed at. A socket without one, or
/// with family 0, has no entry in `LB_SK_CONN` either: who changes this layout drops that table, too.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SkPeer {
    /// Frontend address, network order; IPv4 in the first four bytes.
    pub addr: Ip6,
    /// Frontend port, network order.
    pub port: [u8; 2],
    /// 4 or 6; 0 = the socket was connected to something else since.
    pub family: u8,
    /// IP protocol number.
    pub proto: u8,
    /// Source port that its packets were given, network order; 0 = none yet. Kept here, too, so that a flow whose
    /// entries were lost goes on. Meaningful with [`SK_MASQ`].
    pub snat_port: [u8; 2],
    /// `SK_*` bits. Earlier agents kept a backend id in these last four bytes, which never has such a bit.
    pub flags: u16,
}
const _: () = assert!(size_of::<SkPeer>() == 24);

/// What the socket sends there is to be masqueraded, if its source is another than the interface's (B80, B81).
pub const SK_MASQ: u16 = 1 << 15;
const _: () = assert!(super::capacity::BACKENDS <= (SK_MASQ as usize) << 16);

/// Value of `LB_SK_CONN` (key: socket cookie): the backend that a connected UDP socket of the host was aimed at. The agent looks for
/// sockets whose backend is gone; it deletes the entries of sockets that are closed.
#[repr(C, align(4))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SkConnected {
    /// Backend id.
    pub backend: u32,
    /// Generation of the backend id when it was chosen.
    pub generation: u32,
}
const _: () = assert!(size_of::<SkConnected>() == 8);

/// Key of `LB_SK_UDP`: an unconnected UDP socket and one of its correspondents.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct SkUdpKey {
    /// Socket cookie.
    pub cookie: u64,
    /// Frontend (direction 0) or backend (direction 1) address, network order; IPv4 in the first four bytes.
    pub addr: Ip6,
    /// Its port, network order.
    pub port: [u8; 2],
    /// 4 or 6.
    pub family: u8,
    /// 0 = what a frontend became, 1 = what a backend stands for.
    pub direction: u8,
    /// Zero.
    pub _pad: [u8; 4],
}
const _: () = assert!(size_of::<SkUdpKey>() == 32);

/// Value of `LB_SK_UDP`: the other side of [`SkUdpKey`].
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SkUdpValue {
    /// Backend (direction 0) or frontend (direction 1) address, network order; IPv4 in the first four bytes.
    pub addr: Ip6,
    /// Its port, network order.
    pub port: [u8; 2],
    /// `SK_*` bits.
    pub flags: u16,
    /// Backend id.
    pub backend: u32,
    /// Generation of the backend id when it was chosen.
    pub generation: u32,
    /// Last use, ticks of 2^30 ns since boot.
    pub last_tick: u32,
}
const _: () = assert!(size_of::<SkUdpValue>() == 32);
