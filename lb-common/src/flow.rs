//! A flow and the entries that it is made of.
//!
//! ```text
//!           ingress (POS_IN)                      egress (POS_OUT)
//! request   DnatForward  C:c -> F  => C:c' -> B   SnatForward  C:c' -> B => S:p -> B
//! reply     SnatReply    B -> S:p  => B -> C:c'   DnatReply    B -> C:c' => F -> C:c
//! ```
//! C client, F frontend, B backend, S:p SNAT address and port; c' = c unless the flow was moved because another flow
//! holds (B -> C:c). The DNAT pair is made at ingress; the SNAT pair at egress, where the device is known, and only
//! for masqueraded flows. Every entry holds all endpoints: [`Flow::of`] and [`Flow::entry`] are inverse, so any
//! entry that is lost can be made again from any other (invariant I6).
//!
//! A flow that was born at XDP has one pair at the one position of that hook, which does both steps:
//!
//! ```text
//! request   XdpForward   C:c -> F   => S:p -> B
//! reply     XdpReply     B -> S:p   => F -> C:c
//! ```
//!
//! A fast flow (`CT_FAST`, see [`crate::fast`]) is of that kind, too; its S:p is the client's own address, and its port
//! unless it was moved.
//!
//! A flow that goes to its backend's node by DSR has one entry at the node that the client sends to, since its replies do
//! not come back there; it says which outer header is put in front of the packet, which stays as it is:
//!
//! ```text
//! request   DsrForward   C:c -> F   => (this node -> backend's node) C:c -> F
//! ```
//! [`Flow::backend`] is then the backend's node, with the UDP port of the encapsulation or 0 as its port, and
//! [`Flow::snat`] this node.
//!
//! *Involution*: the twin of an entry is the reverse of its new tuple at the other position (of an XDP flow: at the same
//! one); a pair is valid exactly when the twin's new tuple is the reverse of the entry's key.

use crate::abi::{CT_DSR, CT_FAST, CT_GUARD, CT_MASQ, CT_PASS, CT_RST, CT_XDP, CtKey, CtValue};
use crate::abi::{CT_FIN_BACKEND, CT_FIN_CLIENT};
use crate::abi::{PAIR_FAST, PAIR_MASQ, PAIR_MOVED, POS_IN, POS_OUT};
use crate::csum;
use crate::family::Family;
use crate::pair::direction;

/// What an entry does to a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Role {
    /// Request at ingress: DNAT.
    DnatForward = 0,
    /// Reply at egress: un-DNAT.
    DnatReply = 1,
    /// Request at egress: SNAT.
    SnatForward = 2,
    /// Reply at ingress: un-SNAT.
    SnatReply = 3,
    /// Request of an XDP flow: DNAT and SNAT in one step.
    XdpForward = 4,
    /// Reply of an XDP flow, both undone in one step.
    XdpReply = 5,
    /// Request of a DSR flow: an outer header.
    DsrForward = 8,
}

impl Role {
    /// The role with this number in an entry.
    #[must_use]
    #[inline(always)]
    pub const fn of(number: u8) -> Role {
        match number {
            0 => Role::DnatForward,
            1 => Role::DnatReply,
            2 => Role::SnatForward,
            3 => Role::SnatReply,
            4 => Role::XdpForward,
            // the number of its twin, which it does not have, names the entry itself
            8 | 9 => Role::DsrForward,
            _ => Role::XdpReply,
        }
    }

    /// The packet comes from the backend.
    #[must_use]
    #[inline(always)]
    pub const fn is_reply(self) -> bool {
        (self as u8) & 1 == 1
    }
}

/// All that is known of a flow; addresses and ports in network order. Aligned, so that addresses are copied by words.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Flow<F: Family> {
    /// Client address.
    pub client: F::Addr,
    /// Frontend address.
    pub frontend: F::Addr,
    /// Backend address.
    pub backend: F::Addr,
    /// SNAT address; meaningful with `snat_port`.
    pub snat: F::Addr,
    /// The client's port.
    pub client_port: [u8; 2],
    /// The client's port behind the DNAT.
    pub moved_port: [u8; 2],
    /// Frontend port.
    pub frontend_port: [u8; 2],
    /// Backend port.
    pub backend_port: [u8; 2],
    /// SNAT port; zero = no SNAT pair yet.
    pub snat_port: [u8; 2],
    /// `CT_*` bits.
    pub flags: u16,
    /// IP protocol.
    pub proto: u8,
    /// Zero.
    pub _pad: [u8; 3],
    /// Next-hop rows, see [`CtValue::nexthop`].
    pub nexthop: u32,
    /// Backend id.
    pub backend_id: u32,
    /// Its generation.
    pub generation: u32,
    /// Service port id.
    pub service: u32,
    /// First packet, ticks.
    pub born_tick: u32,
    /// Last packet, ticks.
    pub last_tick: u32,
    /// Ingress interface.
    pub ifindex: u32,
}

impl<F: Family> Flow<F> {
    /// Behind the last of the flow's entries: two, or four once the SNAT pair was made; its own two for an XDP flow.
    #[must_use]
    #[inline(always)]
    pub fn entries(&self) -> u8 {
        if self.flags & CT_DSR != 0 {
            return 9;
        }
        match (self.flags & CT_XDP != 0, self.has_snat()) {
            (true, _) => 6,
            (_, true) => 4,
            _ => 2,
        }
    }

    /// The first of the flow's entries: only the SNAT pair for a flow that never had another, or the XDP pair.
    #[must_use]
    #[inline(always)]
    pub fn first_entry(&self) -> u8 {
        if self.flags & CT_DSR != 0 {
            return 8;
        }
        match (self.flags & CT_XDP != 0, self.flags & CT_GUARD != 0) {
            (true, _) => 4,
            (_, true) => 2,
            _ => 0,
        }
    }

    /// The same as a set: bit N stands for the role with the number N.
    #[must_use]
    #[inline(always)]
    pub fn entry_set(&self) -> u32 {
        (1 << self.entries()) - (1 << self.first_entry())
    }

    /// No Service is in it: a connection straight to a backend that was moved ([`crate::straight`]).
    #[must_use]
    #[inline(always)]
    pub fn is_straight(&self) -> bool {
        self.frontend == self.backend && self.frontend_port == self.backend_port
    }

    /// The SNAT pair exists, or did.
    #[must_use]
    #[inline(always)]
    pub fn has_snat(&self) -> bool {
        self.flags & CT_MASQ != 0 && self.snat_port != [0; 2]
    }

    /// The flow that an entry belongs to; the inverse of [`Flow::entry`].
    #[inline(always)]
    pub fn of(&mut self, key: &CtKey<F>, value: &CtValue<F>) {
        match Role::of(value.role) {
            Role::DnatForward => {
                (self.client, self.client_port) = (key.src, key.sport);
                (self.frontend, self.frontend_port) = (key.dst, key.dport);
                (self.backend, self.backend_port) = (value.dst, value.dport);
                (self.snat, self.snat_port) = (value.aux_addr, value.aux_port);
                self.moved_port = value.sport;
            }
            Role::DnatReply => {
                (self.client, self.client_port) = (key.dst, value.dport);
                (self.frontend, self.frontend_port) = (value.src, value.sport);
                (self.backend, self.backend_port) = (key.src, key.sport);
                (self.snat, self.snat_port) = (value.aux_addr, value.aux_port);
                self.moved_port = key.dport;
            }
            Role::SnatForward => {
                (self.client, self.client_port) = (key.src, value.client_port);
                (self.frontend, self.frontend_port) = (value.aux_addr, value.aux_port);
                (self.backend, self.backend_port) = (key.dst, key.dport);
                (self.snat, self.snat_port) = (value.src, value.sport);
                self.moved_port = key.sport;
            }
            Role::SnatReply => {
                (self.client, self.client_port) = (value.dst, value.client_port);
                (self.frontend, self.frontend_port) = (value.aux_addr, value.aux_port);
                (self.backend, self.backend_port) = (key.src, key.sport);
                (self.snat, self.snat_port) = (key.dst, key.dport);
                self.moved_port = value.dport;
            }
            Role::XdpForward => {
                (self.client, self.client_port) = (key.src, key.sport);
                (self.frontend, self.frontend_port) = (key.dst, key.dport);
                (self.backend, self.backend_port) = (value.dst, value.dport);
                (self.snat, self.snat_port) = (value.src, value.sport);
                self.moved_port = value.aux_port;
            }
            Role::XdpReply => {
                (self.client, self.client_port) = (value.dst, value.dport);
                (self.frontend, self.frontend_port) = (value.src, value.sport);
                (self.backend, self.backend_port) = (key.src, key.sport);
                (self.snat, self.snat_port) = (key.dst, key.dport);
                self.moved_port = value.aux_port;
            }
            Role::DsrForward => {
                (self.client, self.client_port) = (key.src, key.sport);
                (self.frontend, self.frontend_port) = (key.dst, key.dport);
                (self.backend, self.backend_port) = (value.dst, value.dport);
                (self.snat, self.snat_port) = (value.src, value.sport);
                self.moved_port = value.aux_port;
            }
        }
        self.proto = key.proto;
        self.flags = value.flags;
        self.nexthop = value.nexthop;
        self.backend_id = value.backend;
        self.generation = value.generation;
        self.service = value.service;
        self.born_tick = value.born_tick;
        self.last_tick = value.last_tick;
        self.ifindex = value.ifindex;
    }

    /// The key of the flow's entry with this role.
    #[inline(always)]
    pub fn key(&self, role: Role, key: &mut CtKey<F>) {
        match role {
            Role::DnatForward | Role::XdpForward | Role::DsrForward => {
                (key.src, key.dst) = (self.client, self.frontend);
                (key.sport, key.dport, key.position) = (self.client_port, self.frontend_port, POS_IN);
            }
            Role::DnatReply => {
                (key.src, key.dst) = (self.backend, self.client);
                (key.sport, key.dport, key.position) = (self.backend_port, self.moved_port, POS_OUT);
            }
            Role::SnatForward => {
                (key.src, key.dst) = (self.client, self.backend);
                (key.sport, key.dport, key.position) = (self.moved_port, self.backend_port, POS_OUT);
            }
            Role::SnatReply | Role::XdpReply => {
                (key.src, key.dst) = (self.backend, self.snat);
                (key.sport, key.dport, key.position) = (self.backend_port, self.snat_port, POS_IN);
            }
        }
        (key.proto, key._pad) = (self.proto, [0; 2]);
    }

    /// The flow's entry with this role.
    #[inline(always)]
    pub fn entry(&self, role: Role, key: &mut CtKey<F>, value: &mut CtValue<F>) {
        self.key(role, key);
        match role {
            Role::DnatForward => {
                (value.src, value.dst, value.aux_addr) = (self.client, self.backend, self.snat);
                (value.sport, value.dport, value.aux_port) =
                    (self.moved_port, self.backend_port, self.snat_port);
            }
            Role::DnatReply => {
                (value.src, value.dst, value.aux_addr) = (self.frontend, self.client, self.snat);
                (value.sport, value.dport, value.aux_port) =
                    (self.frontend_port, self.client_port, self.snat_port);
            }
            Role::SnatForward => {
                (value.src, value.dst, value.aux_addr) = (self.snat, self.backend, self.frontend);
                (value.sport, value.dport, value.aux_port) =
                    (self.snat_port, self.backend_port, self.frontend_port);
            }
            Role::SnatReply => {
                (value.src, value.dst, value.aux_addr) = (self.backend, self.client, self.frontend);
                (value.sport, value.dport, value.aux_port) =
                    (self.backend_port, self.moved_port, self.frontend_port);
            }
            Role::XdpForward | Role::DsrForward => {
                (value.src, value.dst, value.aux_addr) = (self.snat, self.backend, self.frontend);
                (value.sport, value.dport, value.aux_port) =
                    (self.snat_port, self.backend_port, self.moved_port);
            }
            Role::XdpReply => {
                (value.src, value.dst, value.aux_addr) = (self.frontend, self.client, self.frontend);
                (value.sport, value.dport, value.aux_port) =
                    (self.frontend_port, self.client_port, self.moved_port);
            }
        }
        value.addr_delta = csum::addr_delta::<F>([key.src, key.dst], [value.src, value.dst]);
        value.port_delta = csum::port_delta([key.sport, key.dport], [value.sport, value.dport]);
        value.client_port = self.client_port;
        value.nexthop = self.nexthop;
        value.backend = self.backend_id;
        value.generation = self.generation;
        value.service = self.service;
        value.last_tick = self.last_tick;
        value.born_tick = self.born_tick;
        value.ifindex = self.ifindex;
        value.tag = tag(key);
        value.flags = self.flags;
        value.role = role as u8;
        // what is reserved stays as it is in a value that began as zeros: entries have nothing else there
    }

    /// `PAIR_*` bits that its making sets for client and backend, given by their slots in the role filter.
    #[must_use]
    #[inline(always)]
    pub fn pair_bits(&self, client: u32, backend: u32) -> u8 {
        let moved = if self.is_straight() { PAIR_MOVED } else { 0 };
        let fast = if self.flags & CT_FAST != 0 { PAIR_FAST } else { 0 };
        let masqueraded = if self.flags & CT_MASQ != 0 { PAIR_MASQ } else { 0 };
        direction(client, backend) | moved | fast | masqueraded
    }

    /// Whether `value`, found under the key of this flow's entry with this role, is that entry.
    #[must_use]
    #[inline(always)]
    pub fn owns(&self, role: Role, value: &CtValue<F>) -> bool {
        if value.flags & CT_PASS != 0 || value.role != role as u8 {
            return false;
        }
        match role {
            Role::DnatForward => {
                value.dst == self.backend
                    && value.dport == self.backend_port
                    && value.sport == self.moved_port
            }
            Role::DnatReply => {
                value.src == self.frontend
                    && value.sport == self.frontend_port
                    && value.dport == self.client_port
            }
            // the frontend, too: a client may use one source port towards two frontends of one backend
            Role::SnatForward => {
                value.src == self.snat
                    && value.sport == self.snat_port
                    && value.aux_addr == self.frontend
                    && value.aux_port == self.frontend_port
            }
            Role::SnatReply => {
                value.dst == self.client
                    && value.dport == self.moved_port
                    && value.aux_addr == self.frontend
                    && value.aux_port == self.frontend_port
            }
            Role::XdpForward | Role::DsrForward => {
                value.dst == self.backend
                    && value.dport == self.backend_port
                    && value.src == self.snat
                    && value.sport == self.snat_port
            }
            Role::XdpReply => {
                value.src == self.frontend
                    && value.sport == self.frontend_port
                    && value.dst == self.client
                    && value.dport == self.client_port
            }
        }
    }
}

/// Both sides have closed, or one has reset. Of a DSR flow, whose backend is not heard here: the client has closed.
#[must_use]
#[inline(always)]
pub const fn is_closed(flags: u16) -> bool {
    flags & CT_RST != 0
        || flags & (CT_DSR | CT_FIN_CLIENT) == CT_DSR | CT_FIN_CLIENT
        || flags & (CT_FIN_CLIENT | CT_FIN_BACKEND) == CT_FIN_CLIENT | CT_FIN_BACKEND
}

/// The tag of a key: a hash whose only duty is to differ for another key that took over the element.
#[must_use]
#[inline(always)]
pub fn tag<F: Family>(key: &CtKey<F>) -> u32 {
    let ports = u32::from_le_bytes([key.sport[0], key.sport[1], key.dport[0], key.dport[1]]);
    let rest = u32::from_le_bytes([key.proto, key.position, 0, 0]);
    tag_of(F::role_slot_inline(key.src), F::role_slot_inline(key.dst), ports, rest)
}

/// [`tag`] of a key with addresses in these slots of the role filter, these ports, and the word of protocol and position.
#[must_use]
#[inline(always)]
pub(crate) fn tag_of(src: u32, dst: u32, ports: u32, rest: u32) -> u32 {
    let addrs = src ^ dst.rotate_left(13);
    (addrs.wrapping_mul(0x85eb_ca6b) ^ ports).wrapping_mul(0xc2b2_ae35) ^ rest ^ 0xa55a_0000
}
