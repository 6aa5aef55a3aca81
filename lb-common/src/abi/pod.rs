//! `aya::Pod` for the ABI types: the only `unsafe` of this crate.
#![allow(unsafe_code, reason = "Pod is an unsafe trait of aya")]

use super::*;

macro_rules! pod {
    ($($t:ty),* $(,)?) => {
        // SAFETY: every type is `repr(C)`, `Copy`, made of integers and arrays of integers without implicit
        // padding (sizes are asserted beside each type), so any bytes are a valid value.
        $(unsafe impl aya::Pod for $t {})*
    };
}

pod!(
    SvcKey4,
    SvcKey6,
    SvcValue,
    RangeKey4,
    RangeKey6,
    Addr4,
    Addr6,
    Backend4,
    Backend6,
    AffKey4,
    AffKey6,
    AffValue,
    LbConfig,
    RoleFilter,
    PairFilter,
    Iface,
    NextHop,
    Peer,
    SkPeer,
    SkUdpKey,
    SkUdpValue,
    SkConnected,
    CtKey4,
    CtKey6,
    CtValue4,
    CtValue6,
    FragKey4,
    FragKey6,
    FragValue4,
    FragValue6,
    crate::bench::BenchConfig,
    crate::bench::BenchKey,
    crate::bench::BenchValue,
    crate::bench::BenchPeer,
);
