//! Client-IP affinity (B63-B72). The kernel writes and reads; entries end by their timeout, with their backend's
//! or service port's generation, or by LRU eviction.

/// Key of `LB_AFF4`: one client of one service port, whatever the frontend and the hook (B63).
#[repr(C, align(4))]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct AffKey4 {
    /// Client address before any source NAT, network order.
    pub client: [u8; 4],
    /// Service port id.
    pub service: u32,
    /// Generation of the service port id.
    pub generation: u32,
}
const _: () = assert!(size_of::<AffKey4>() == 12);

/// Key of `LB_AFF6`; see [`AffKey4`].
#[repr(C, align(4))]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct AffKey6 {
    /// Client address before any source NAT, network order.
    pub client: [u8; 16],
    /// Service port id.
    pub service: u32,
    /// Generation of the service port id.
    pub generation: u32,
}
const _: () = assert!(size_of::<AffKey6>() == 24);

/// Value of `LB_AFF4` and `LB_AFF6`.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct AffValue {
    /// Time of the last new connection, nanoseconds since boot.
    pub last_ns: u64,
    /// Chosen backend id.
    pub backend: u32,
    /// Generation of the backend id when it was chosen.
    pub generation: u32,
}
const _: () = assert!(size_of::<AffValue>() == 16);
