//! The two address families: code once, layouts twice.

use core::fmt::Debug;
use core::hash::Hash;

use crate::abi::{
    AffKey4, AffKey6, Backend4, Backend6, Iface, LbConfig, PEER_V4, PEER_V6, Peer, SvcKey4, SvcKey6,
};
use crate::abi::{CFG_CIDR4, CFG_CIDR6, CFG_DETECT_CIDR4, CFG_DETECT_CIDR6};
use crate::hash::{role_slot4, role_slot6, role_slot6_inline};
use crate::maglev::{hash4, hash6};

/// An address family. Implemented by [`V4`] and [`V6`].
pub trait Family: Copy + Eq + Ord + Hash + Debug + Default + 'static {
    /// An address, network order.
    type Addr: Copy + Eq + Ord + Hash + Debug + Default + AsRef<[u8]> + 'static;
    /// Padding of [`crate::abi::CtValue`].
    type Reserved: Copy + Eq + Debug + Default + 'static;
    /// Key of the service table.
    type SvcKey: Copy + Ord + Debug;
    /// Key of the affinity table.
    type AffKey: Copy + Ord + Debug;
    /// Row of the backend table.
    type Backend: Copy + Debug;

    /// EtherType, host order.
    const ETHERTYPE: u16;
    /// Offset of the source address in the IP header; the destination follows it.
    const ADDRS: usize;
    /// Protocol number of this family's ICMP.
    const ICMP: u8;
    /// Type of this family's "time exceeded".
    const TIME_EXCEEDED: u8;
    /// Protocol number of a packet of this family behind an IP header (RFC 2003, RFC 2473).
    const WRAPPED: u8;
    /// Bit of [`Peer`] for nodes that take such packets.
    const PEER: u16;
    /// IPv6.
    const V6: bool;
    /// All zero.
    const ZERO: Self::Addr;

    /// The frontend (address, port, protocol).
    fn svc_key(addr: Self::Addr, port: [u8; 2], proto: u8) -> Self::SvcKey;
    /// The affinity entry of a client and a service port.
    fn aff_key(client: Self::Addr, service: u32, generation: u32) -> Self::AffKey;
    /// What the packet path needs of a backend row.
    fn backend(row: &Self::Backend) -> Backend<Self>;
    /// The address in the first bytes of sixteen.
    fn wide(addr: Self::Addr) -> Ip6;
    /// The inverse of `wide`.
    fn narrow(addr: Ip6) -> Self::Addr;
    /// What stands for the address of a pod's socket that has none yet: an address that nobody can have, one per
    /// network namespace (the low 24 bits of its cookie for IPv4).
    fn stand_in(netns: u64) -> Self::Addr;
    /// 32 even bits for a client and [`crate::maglev::ports`], the same on every node.
    fn flow_hash(client: Self::Addr, ports: u32) -> u32;
    /// An address of the loopback interface.
    fn is_loopback(addr: Self::Addr) -> bool;
    /// Slot in the role filter; for IPv6 a function of its own, since a BPF stack is small.
    fn role_slot(addr: Self::Addr) -> u32;
    /// The same, inlined.
    fn role_slot_inline(addr: Self::Addr) -> u32;
    /// One's-complement sum of the address as native-endian 16-bit words, at most 8 * 0xffff.
    fn sum(addr: Self::Addr) -> u32;
    /// The address an interface masquerades to; zero = none.
    fn snat_addr(iface: &Iface) -> Self::Addr;
    /// A node's address; zero = none.
    fn peer_addr(peer: &Peer) -> Self::Addr;
    /// Whether pods of this family are told by their source, and whether this is one (B73, B74).
    fn pod_by_source(config: &LbConfig, addr: Self::Addr) -> Option<bool>;
    /// Whether the address may be inside a service CIDR: it is inside the prefix that covers all of them.
    fn near_service_cidr(config: &LbConfig, addr: Self::Addr) -> bool;
}

/// A backend as the packet path sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Backend<F: Family> {
    /// Address.
    pub addr: F::Addr,
    /// Port.
    pub port: [u8; 2],
    /// IP protocol; 0 = the row is not in use.
    pub proto: u8,
    /// `BE_*` bits.
    pub flags: u8,
    /// Row of the next-hop table (an endpoint on this node), or of its node in the table of nodes; 0 = none.
    pub nexthop: u32,
}

/// An IPv4 address, network order. Aligned, so that BPF, which has no unaligned access, copies it as a word.
#[repr(C, align(4))]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Ip4 {
    /// The bytes as on the wire.
    pub addr: [u8; 4],
}

/// An IPv6 address, network order. Aligned like [`Ip4`].
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Ip6 {
    /// The bytes as on the wire.
    pub addr: [u8; 16],
}

impl AsRef<[u8]> for Ip4 {
    #[inline(always)]
    fn as_ref(&self) -> &[u8] {
        &self.addr
    }
}

impl AsRef<[u8]> for Ip6 {
    #[inline(always)]
    fn as_ref(&self) -> &[u8] {
        &self.addr
    }
}

impl From<[u8; 4]> for Ip4 {
    #[inline(always)]
    fn from(addr: [u8; 4]) -> Ip4 {
        Ip4 { addr }
    }
}

impl From<[u8; 16]> for Ip6 {
    #[inline(always)]
    fn from(addr: [u8; 16]) -> Ip6 {
        Ip6 { addr }
    }
}

/// IPv4.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct V4;

/// IPv6.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct V6;

/// The sum of the four 16-bit words of a value.
#[inline(always)]
const fn sum_halves(value: u64) -> u32 {
    let pairs = (value & 0x0000_ffff_0000_ffff) + ((value >> 16) & 0x0000_ffff_0000_ffff);
    (pairs as u32) + ((pairs >> 32) as u32)
}

#[inline(always)]
fn in_prefix4(addr: [u8; 4], net: [u8; 4], mask: [u8; 4]) -> bool {
    u32::from_ne_bytes(addr) & u32::from_ne_bytes(mask) == u32::from_ne_bytes(net)
}

#[inline(always)]
fn halves(a: [u8; 16]) -> (u64, u64) {
    let value = u128::from_ne_bytes(a);
    (value as u64, (value >> 64) as u64)
}

#[inline(always)]
fn in_prefix6(addr: [u8; 16], net: [u8; 16], mask: [u8; 16]) -> bool {
    let ((a, b), (n, m), (x, y)) = (halves(addr), halves(net), halves(mask));
    a & x == n && b & y == m
}

impl Family for V4 {
    type Addr = Ip4;
    type Reserved = [u8; 0];
    type SvcKey = SvcKey4;
    type AffKey = AffKey4;
    type Backend = Backend4;
    const ETHERTYPE: u16 = 0x0800;
    const ADDRS: usize = 12;
    const ICMP: u8 = 1;
    const TIME_EXCEEDED: u8 = 11;
    const WRAPPED: u8 = 4;
    const PEER: u16 = PEER_V4;
    const V6: bool = false;
    const ZERO: Ip4 = Ip4 { addr: [0; 4] };

    #[inline(always)]
    fn svc_key(addr: Ip4, port: [u8; 2], proto: u8) -> SvcKey4 {
        SvcKey4 { addr: addr.addr, port, proto, _pad: 0 }
    }
    #[inline(always)]
    fn aff_key(client: Ip4, service: u32, generation: u32) -> AffKey4 {
        AffKey4 { client: client.addr, service, generation }
    }
    #[inline(always)]
    fn backend(row: &Backend4) -> Backend<V4> {
        Backend {
            addr: row.addr.into(),
            port: row.port,
            proto: row.proto,
            flags: row.flags,
            nexthop: row.nexthop,
        }
    }
    #[inline(always)]
    fn wide(addr: Ip4) -> Ip6 {
        Ip6 { addr: (u32::from_le_bytes(addr.addr) as u128).to_le_bytes() }
    }
    #[inline(always)]
    fn narrow(Ip6 { addr: a }: Ip6) -> Ip4 {
        Ip4 { addr: [a[0], a[1], a[2], a[3]] }
    }
    #[inline(always)]
    fn stand_in(netns: u64) -> Ip4 {
        // 0.0.0.0/8, RFC 1122 section 3.2.1.3: never a source on the wire
        Ip4 { addr: (netns as u32 & 0x00ff_ffff).to_be_bytes() }
    }
    #[inline(always)]
    fn flow_hash(client: Ip4, ports: u32) -> u32 {
        hash4(client.addr, ports)
    }
    #[inline(always)]
    fn is_loopback(addr: Ip4) -> bool {
        addr.addr[0] == 127
    }
    #[inline(always)]
    fn role_slot(addr: Ip4) -> u32 {
        role_slot4(addr.addr)
    }
    #[inline(always)]
    fn role_slot_inline(addr: Ip4) -> u32 {
        role_slot4(addr.addr)
    }
    #[inline(always)]
    fn sum(addr: Ip4) -> u32 {
        let a = addr.addr;
        let word = u32::from_ne_bytes(a);
        (word & 0xffff) + (word >> 16)
    }
    #[inline(always)]
    fn snat_addr(iface: &Iface) -> Ip4 {
        iface.snat4.into()
    }
    #[inline(always)]
    fn peer_addr(peer: &Peer) -> Ip4 {
        peer.addr4.into()
    }
    #[inline(always)]
    fn pod_by_source(config: &LbConfig, addr: Ip4) -> Option<bool> {
        (config.flags & CFG_DETECT_CIDR4 != 0)
            .then(|| in_prefix4(addr.addr, config.pod_cidr4, config.pod_mask4))
    }
    #[inline(always)]
    fn near_service_cidr(config: &LbConfig, addr: Ip4) -> bool {
        config.flags & CFG_CIDR4 != 0 && in_prefix4(addr.addr, config.svc_cidr4, config.svc_mask4)
    }
}

impl Family for V6 {
    type Addr = Ip6;
    type Reserved = [u8; 4];
    type SvcKey = SvcKey6;
    type AffKey = AffKey6;
    type Backend = Backend6;
    const ETHERTYPE: u16 = 0x86dd;
    const ADDRS: usize = 8;
    const ICMP: u8 = 58;
    const TIME_EXCEEDED: u8 = 3;
    const WRAPPED: u8 = 41;
    const PEER: u16 = PEER_V6;
    const V6: bool = true;
    const ZERO: Ip6 = Ip6 { addr: [0; 16] };

    #[inline(always)]
    fn svc_key(addr: Ip6, port: [u8; 2], proto: u8) -> SvcKey6 {
        SvcKey6 { addr: addr.addr, port, proto, _pad: 0 }
    }
    #[inline(always)]
    fn aff_key(client: Ip6, service: u32, generation: u32) -> AffKey6 {
        AffKey6 { client: client.addr, service, generation }
    }
    #[inline(always)]
    fn backend(row: &Backend6) -> Backend<V6> {
        Backend {
            addr: row.addr.into(),
            port: row.port,
            proto: row.proto,
            flags: row.flags,
            nexthop: row.nexthop,
        }
    }
    #[inline(always)]
    fn wide(addr: Ip6) -> Ip6 {
        addr
    }
    #[inline(always)]
    fn narrow(addr: Ip6) -> Ip6 {
        addr
    }
    #[inline(always)]
    fn stand_in(netns: u64) -> Ip6 {
        // 100::/64, RFC 6666: the discard prefix
        Ip6 { addr: ((0x0100_u128 << 112) | netns as u128).to_be_bytes() }
    }
    #[inline(always)]
    fn flow_hash(client: Ip6, ports: u32) -> u32 {
        hash6(client.addr, ports)
    }
    #[inline(always)]
    fn is_loopback(addr: Ip6) -> bool {
        halves(addr.addr) == (0, u64::from_ne_bytes([0, 0, 0, 0, 0, 0, 0, 1]))
    }
    #[inline(always)]
    fn role_slot(addr: Ip6) -> u32 {
        role_slot6(&addr)
    }
    #[inline(always)]
    fn role_slot_inline(addr: Ip6) -> u32 {
        role_slot6_inline(&addr)
    }
    #[inline(always)]
    fn sum(addr: Ip6) -> u32 {
        let a = addr.addr;
        let (low, high) = halves(a);
        sum_halves(low) + sum_halves(high)
    }
    #[inline(always)]
    fn snat_addr(iface: &Iface) -> Ip6 {
        iface.snat6.into()
    }
    #[inline(always)]
    fn peer_addr(peer: &Peer) -> Ip6 {
        peer.addr6.into()
    }
    #[inline(always)]
    fn pod_by_source(config: &LbConfig, addr: Ip6) -> Option<bool> {
        (config.flags & CFG_DETECT_CIDR6 != 0)
            .then(|| in_prefix6(addr.addr, config.pod_cidr6, config.pod_mask6))
    }
    #[inline(always)]
    fn near_service_cidr(config: &LbConfig, addr: Ip6) -> bool {
        config.flags & CFG_CIDR6 != 0 && in_prefix6(addr.addr, config.svc_cidr6, config.svc_mask6)
    }
}
