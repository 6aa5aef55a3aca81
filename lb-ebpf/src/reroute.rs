//! Past the stack: replies of multi-homed nodes, out by the uplink that their source belongs to; and packets of flows
//! that began at XDP.
//!
//! The stack routed the reply by the backend's address; its source is the frontend now, and rules that look at the
//! source (`ip rule from`) may want another uplink. Asked only where the agent saw such rules.

use aya_ebpf::bindings::{
    __sk_buff, BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS,
    TC_ACT_SHOT, bpf_fib_lookup, bpf_redir_neigh,
};
use aya_ebpf::helpers::generated::{bpf_fib_lookup as fib_lookup, bpf_redirect, bpf_redirect_neigh};
use lb_common::abi::LbConfig;
use lb_common::counter::Counter;
use lb_common::dsr;
use lb_common::env::{Env, Work};
use lb_common::family::{Family, Ip6};
use lb_common::packet::LoadAddr;
use lb_common::verdict::Verdict;
use lb_common::xdp::ends;

use crate::env::BpfEnv;
use crate::frame::SkbFrame;
use crate::neighbour::{AF_INET, AF_INET6};
use crate::tc::NEXT;

/// The address as the kernel's unions hold it.
#[inline(always)]
pub(crate) fn words(Ip6 { addr: a }: Ip6) -> [u32; 4] {
    [
        u32::from_ne_bytes([a[0], a[1], a[2], a[3]]),
        u32::from_ne_bytes([a[4], a[5], a[6], a[7]]),
        u32::from_ne_bytes([a[8], a[9], a[10], a[11]]),
        u32::from_ne_bytes([a[12], a[13], a[14], a[15]]),
    ]
}

/// What the kernel would do with a packet of `size` bytes (0: not told) between these two that came in by `ifindex`; `None`:
/// not forward it. The next hop may be unresolved.
#[inline(always)]
fn route<F: Family>(
    skb: *mut __sk_buff,
    work: &Work<F>,
    ifindex: u32,
    src: F::Addr,
    dst: F::Addr,
    size: u16,
) -> Option<Way> {
    let value = &work.value;
    // SAFETY: integers and arrays of them; zero is a value of each.
    let mut route: bpf_fib_lookup = unsafe { core::mem::zeroed() };
    route.family = if F::V6 { AF_INET6 } else { AF_INET };
    route.l4_protocol = work.packet.proto;
    (route.sport, route.dport) = (u16::from_ne_bytes(value.sport), u16::from_ne_bytes(value.dport));
    route.ifindex = ifindex;
    route.__bindgen_anon_1.tot_len = size;
    route.__bindgen_anon_3.ipv6_src = words(F::wide(src));
    route.__bindgen_anon_4.ipv6_dst = words(F::wide(dst));
    // SAFETY: the program's context and a structure of ours of the given size.
    let found =
        unsafe { fib_lookup(skb.cast(), &raw mut route, size_of::<bpf_fib_lookup>() as i32, 0) as u32 };
    if size != 0 && found == BPF_FIB_LKUP_RET_FRAG_NEEDED {
        // SAFETY: the helper wrote it.
        return Some(Way::Narrow(unsafe { route.__bindgen_anon_1.mtu_result }));
    }
    let usable = found == BPF_FIB_LKUP_RET_SUCCESS || found == BPF_FIB_LKUP_RET_NO_NEIGH;
    (usable && route.ifindex != 0).then_some(Way::Open(route))
}

/// A way that the kernel has for a packet.
enum Way {
    /// Its next hop.
    Open(bpf_fib_lookup),
    /// The packet is larger than so many bytes, which would fit.
    Narrow(u16),
}

/// Sends the packet to the next hop of a route; the code of a TC program.
#[inline(always)]
fn by(route: &bpf_fib_lookup) -> i32 {
    // SAFETY: integers and arrays of them; zero is a value of each.
    let mut neighbour: bpf_redir_neigh = unsafe { core::mem::zeroed() };
    // the gateway's; an IPv4 route may have an IPv6 one
    neighbour.nh_family = route.family as u32;
    // SAFETY: all 16 bytes were written by `route`, and maybe by the helper.
    neighbour.__bindgen_anon_1.ipv6_nh = unsafe { route.__bindgen_anon_4.ipv6_dst };
    // SAFETY: a helper that copies a structure of ours of the given size.
    unsafe {
        bpf_redirect_neigh(route.ifindex, &raw mut neighbour, size_of::<bpf_redir_neigh>() as i32, 0) as i32
    }
}

/// Sends the rewritten reply in hand out by another device if the routes for its new source say so; the code of a TC
/// program.
///
/// The look-up is the kernel's own with all rules, as if the reply had come from the frontend. No route, no
/// forwarding, a packet too large for that device: it goes on where it is.
#[inline(always)]
pub fn reroute<F: Family>(skb: *mut __sk_buff, work: &Work<F>) -> i32
where
    BpfEnv: Env<F>,
{
    let (hook, value) = (&work.hook, &work.value);
    let from = if hook.ingress_ifindex != 0 { hook.ingress_ifindex } else { hook.ifindex };
    match route(skb, work, from, value.src, value.dst, 0) {
        Some(Way::Open(route)) if route.ifindex != hook.ifindex => {
            BpfEnv.count(Counter::ReplyRerouted);
            by(&route)
        }
        _ => NEXT,
    }
}

/// Sends the packet in hand, whose both NAT positions are done, out by its route, past the stack; the code of a TC
/// program. Dropped without one.
#[inline(always)]
pub fn out<F: LoadAddr>(skb: *mut __sk_buff, work: &Work<F>) -> i32
where
    BpfEnv: Env<F>,
{
    let (src, dst) = ends(work);
    match route(skb, work, work.hook.ifindex, src, dst, 0) {
        Some(Way::Open(route)) => by(&route),
        _ => {
            BpfEnv.count(Counter::DropNoRoute);
            TC_ACT_SHOT as i32
        }
    }
}

/// Sends the packet in hand to the backend's node in the outer header that its entry names; the code of a TC program. One
/// that does not fit is answered, one without a route dropped.
#[inline(always)]
pub fn wrap<F: LoadAddr>(
    skb: *mut __sk_buff,
    frame: &mut SkbFrame,
    config: &LbConfig,
    work: &mut Work<F>,
) -> i32
where
    BpfEnv: Env<F>,
{
    let Some(size) = dsr::wrapped_size(frame, work) else {
        BpfEnv.count(Counter::DropRewrite);
        return TC_ACT_SHOT as i32;
    };
    let size = if size > u16::MAX as usize { u16::MAX } else { size as u16 };
    match route(skb, work, work.hook.ifindex, work.value.src, work.value.dst, size) {
        Some(Way::Open(route)) => match dsr::wrap(frame, &mut BpfEnv, work) {
            Some(()) => by(&route),
            None => TC_ACT_SHOT as i32,
        },
        Some(Way::Narrow(mtu)) => match dsr::too_big(frame, &mut BpfEnv, config, work, mtu as usize) {
            // SAFETY: the program's context, and a helper; the frame holds an answer to its sender.
            Verdict::Reply => unsafe { bpf_redirect((*skb).ifindex, 0) as i32 },
            _ => TC_ACT_SHOT as i32,
        },
        None => {
            BpfEnv.count(Counter::DropNoRoute);
            TC_ACT_SHOT as i32
        }
    }
}
