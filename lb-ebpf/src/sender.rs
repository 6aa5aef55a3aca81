//! What a socket hook left in the socket that sends a packet.

use core::ptr;

use aya_ebpf::bindings::{__sk_buff, bpf_sock};
use aya_ebpf::helpers::generated::{bpf_get_socket_cookie, bpf_sk_storage_get};
use lb_common::abi::{SK_MASQ, SkPeer};
use lb_common::env::{Sender, SockEnv as _, Work};
use lb_common::family::{Family, Ip4, Ip6, V4, V6};
use lb_common::packet::UDP;
use lb_common::sock::{REPLY, key};

use crate::env::BpfEnv;
use crate::maps::LB_SK_PEER;

/// An address family as a packet's socket shows it.
pub trait Peer: Family {
    /// The address that the socket is connected to; zero = none.
    fn peer(sk: *mut bpf_sock) -> Self::Addr;
}

impl Peer for V4 {
    #[inline(always)]
    fn peer(sk: *mut bpf_sock) -> Ip4 {
        // SAFETY: the caller's socket, not null.
        unsafe { (*sk).dst_ip4 }.to_ne_bytes().into()
    }
}

impl Peer for V6 {
    #[inline(always)]
    fn peer(sk: *mut bpf_sock) -> Ip6 {
        // SAFETY: the caller's socket, not null; volatile keeps the four loads apart.
        unsafe {
            let ip = (&raw const (*sk).dst_ip6).cast::<u32>();
            let at = |n: usize| ip.add(n).read_volatile() as u128;
            (at(0) | at(1) << 32 | at(2) << 64 | at(3) << 96).to_le_bytes().into()
        }
    }
}

/// Finds what is remembered of the socket of the packet in hand, for `work.sender`. Returns the storage of a socket that
/// is connected to the packet's destination and to be masqueraded; null = there is none.
#[inline(always)]
pub fn sender<F: Peer>(skb: *mut __sk_buff, work: &mut Work<F>) -> *mut SkPeer {
    work.sender = Sender::default();
    // SAFETY: the program's context.
    let sk = unsafe { (*skb).__bindgen_anon_2.sk };
    if sk.is_null() {
        return ptr::null_mut();
    }
    let packet = &work.packet;
    // SAFETY: the packet's socket, not null. In network order, as the port of a packet.
    let port = unsafe { (*sk).dst_port }.to_ne_bytes();
    if port == packet.dport && F::peer(sk) == packet.dst {
        let map = (&raw const LB_SK_PEER).cast_mut().cast();
        // SAFETY: a map of socket storage, and a socket; nothing is made. Null for one that is not a full socket.
        let peer = unsafe { bpf_sk_storage_get(map, sk.cast(), ptr::null_mut(), 0) }.cast::<SkPeer>();
        if peer.is_null() {
            return peer;
        }
        // SAFETY: the storage of a socket that the packet holds; not null.
        let SkPeer { addr, port, family, proto, snat_port, flags } = unsafe { *peer };
        if family != if F::V6 { 6 } else { 4 } || proto != packet.proto || flags & SK_MASQ == 0 {
            return ptr::null_mut();
        }
        work.sender = Sender { frontend: F::narrow(addr), port, snat_port, flags, _pad: [0; 2] };
        return peer;
    }
    if packet.proto == UDP {
        // SAFETY: the program's context.
        let cookie = unsafe { bpf_get_socket_cookie(skb.cast()) };
        if let Some(known) = BpfEnv.correspondent(&key::<F>(cookie, packet.dst, packet.dport, REPLY)) {
            (work.sender.frontend, work.sender.port) = (F::narrow(known.addr), known.port);
            work.sender.flags = known.flags;
        }
    }
    ptr::null_mut()
}
