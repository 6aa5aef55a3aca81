//! What the pair filter (`LB_PAIRS`) says about the two addresses of a packet: whether a flow was ever made between them, and
//! which of the two had the backend. Direct traffic of a backend is told apart from a Service's by this, without a look-up.

use crate::abi::{
    PAIR_BOUND, PAIR_DOWN, PAIR_FAST, PAIR_MASQ, PAIR_MOVED, PAIR_SEEN, PAIR_UP, ROLE_BACKEND, ROLE_SNAT,
};
use crate::hash::pair_slot;

/// The filter's byte for a packet's source and destination. What it denies is certain, what it says is a hint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pair {
    bits: u8,
    /// The bits of flows to the packet's destination, and to its source.
    to: u8,
    from: u8,
}

impl Pair {
    /// Of a packet whose addresses have these slots in the role filter; `byte` reads the pair filter's.
    #[must_use]
    #[inline(always)]
    pub fn of(src: u32, dst: u32, byte: impl FnOnce(u32) -> u8) -> Pair {
        let (to, from) = (direction(src, dst), direction(dst, src));
        Pair { bits: byte(pair_slot(src, dst)), to, from }
    }

    /// There was some flow between the two.
    #[must_use]
    #[inline(always)]
    pub fn is_seen(self) -> bool {
        self.bits != 0
    }

    /// There was one from the packet's source to a backend at its destination.
    #[must_use]
    #[inline(always)]
    pub fn to_backend(self) -> bool {
        self.bits & (PAIR_SEEN | self.to) != 0
    }

    /// There was one to a backend at the packet's source from its destination.
    #[must_use]
    #[inline(always)]
    pub fn from_backend(self) -> bool {
        self.bits & (PAIR_SEEN | self.from) != 0
    }

    /// [`Pair::to_backend`], of a flow that was masqueraded or is to be.
    #[must_use]
    #[inline(always)]
    pub fn to_backend_masqueraded(self) -> bool {
        self.to_backend() & (self.bits & (PAIR_SEEN | PAIR_MASQ) != 0)
    }

    /// Some connection straight from the one to the other was moved to another source port.
    #[must_use]
    #[inline(always)]
    pub fn is_moved(self) -> bool {
        self.bits & PAIR_MOVED != 0
    }

    /// Some socket of the host has the one as its source, and was aimed at the other.
    #[must_use]
    #[inline(always)]
    pub fn is_bound(self) -> bool {
        self.bits & PAIR_BOUND != 0
    }

    /// There was a fast flow between the two.
    #[must_use]
    #[inline(always)]
    pub fn is_fast(self) -> bool {
        self.bits & PAIR_FAST != 0
    }

    /// A packet on its way out, between addresses with these roles, may be one of a flow that has an entry for it: a
    /// reply, a request that is masqueraded (invariant I5).
    #[must_use]
    #[inline(always)]
    pub fn has_entries_out(self, from: u8, to: u8) -> bool {
        (from & ROLE_BACKEND != 0) & self.from_backend()
            | (to & ROLE_BACKEND != 0) & self.to_backend_masqueraded()
    }
}

/// Another masquerade, or this host itself, may send by a port of the pool: from an address with these roles, to one with
/// those.
#[must_use]
#[inline(always)]
pub fn shares_pool(from: u8, to: u8) -> bool {
    from & ROLE_SNAT != 0 && to & ROLE_BACKEND != 0
}

/// The bit of flows to a backend: addresses by their slots in the role filter, which share a byte in either order. With one
/// slot for both it is both bits.
#[must_use]
#[inline(always)]
pub(crate) fn direction(client: u32, backend: u32) -> u8 {
    (if client <= backend { PAIR_UP } else { 0 }) | (if client >= backend { PAIR_DOWN } else { 0 })
}
