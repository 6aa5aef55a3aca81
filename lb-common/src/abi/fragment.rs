//! What later fragments of a datagram become. The kernel writes and reads.

use crate::family::{Family, V4, V6};

/// Key of `LB_FRAG4/6`: the fragments of one datagram, as they are met at a position.
#[repr(C, align(4))]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct FragKey<F: Family> {
    /// Source address, network order.
    pub src: F::Addr,
    /// Destination address, network order.
    pub dst: F::Addr,
    /// Identification, network order; IPv4's in the first two bytes.
    pub ident: [u8; 4],
    /// IPv4: the protocol (RFC 791 tells datagrams apart by it); IPv6: 0 (RFC 8200 section 4.5 does not).
    pub proto: u8,
    /// [`super::POS_IN`] or [`super::POS_OUT`].
    pub position: u8,
    /// Zero.
    pub _pad: [u8; 2],
}

/// Value of `LB_FRAG4/6`: what was made of the first fragment.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FragValue<F: Family> {
    /// New source address, network order.
    pub src: F::Addr,
    /// New destination address, network order.
    pub dst: F::Addr,
    /// When the first fragment was seen, ticks of 2^30 ns since boot.
    pub tick: u32,
    /// Hash of the key, as in [`super::CtValue`].
    pub tag: u32,
    /// Checksum difference of the addresses, see [`crate::csum`].
    pub addr_delta: u16,
    /// `CT_*` bits of the flow.
    pub flags: u16,
    /// A number of [`crate::flow::Role`].
    pub role: u8,
    /// Zero.
    pub _pad: [u8; 3],
}

/// IPv4 key.
pub type FragKey4 = FragKey<V4>;
/// IPv6 key.
pub type FragKey6 = FragKey<V6>;
/// IPv4 value.
pub type FragValue4 = FragValue<V4>;
/// IPv6 value.
pub type FragValue6 = FragValue<V6>;

const _: () = assert!(size_of::<FragKey4>() == 16 && size_of::<FragKey6>() == 40);
const _: () = assert!(size_of::<FragValue4>() == 24 && size_of::<FragValue6>() == 48);
