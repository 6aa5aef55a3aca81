//! TC programs: wrap the context, ask lb-common, carry the verdict out.

use aya_ebpf::bindings::{__sk_buff, BPF_F_INGRESS, TC_ACT_SHOT};
use aya_ebpf::helpers::generated::{bpf_redirect, bpf_redirect_peer};
use aya_ebpf::programs::TcContext;
use lb_common::abi::{POS_IN, POS_OUT};
use lb_common::env::Hook;
use lb_common::family::{Family, V4, V6};
use lb_common::plain::Plain;
use lb_common::plain::tc::{inward, outward};
use lb_common::tc::{concerns_in, concerns_out, tc_in, tc_out};
use lb_common::verdict::Step;

use crate::env::{BpfEnv, config};
use crate::frame::{SkbFrame, take_note};
use crate::steps::*;

/// On to the next program of the hook, and then the stack (invariant I3): `TC_ACT_OK` would end the chain.
pub const NEXT: i32 = -1;

const ETH_P_IP: u32 = u16::to_be(V4::ETHERTYPE) as u32;
const ETH_P_IPV6: u32 = u16::to_be(V6::ETHERTYPE) as u32;

/// Where an answer goes from an ingress hook: out of the same interface.
const OUT: u64 = 0;
/// Where an answer goes from an egress hook: in by the same interface, to the stack that sent or forwarded.
const IN: u64 = BPF_F_INGRESS as u64;

/// Ingress of an interface whose IP header begins at `L3`.
#[inline(always)]
pub fn ingress<const L3: usize>(ctx: &TcContext) -> i32 {
    let skb = ctx.skb.skb;
    // one that is there is of another node that is a namespace of this machine, and nobody here is to believe it
    let _ = take_note(skb);
    // SAFETY: the program's context.
    match unsafe { (*skb).protocol } {
        // a frame for a VLAN device above, where it is met again without the tag
        _ if is_tagged(skb) => NEXT,
        ETH_P_IP => match plain_in4::<L3>(skb) {
            GENERAL => carry_in4(Step::of(in4::<L3>(skb, 0)), skb),
            code => code,
        },
        ETH_P_IPV6 => match plain_in6::<L3>(skb) {
            GENERAL => carry_in6(Step::of(in6::<L3>(skb, 0)), skb),
            code => code,
        },
        _ => NEXT,
    }
}

/// Egress of an interface whose IP header begins at `L3`.
#[inline(always)]
pub fn egress<const L3: usize>(ctx: &TcContext) -> i32 {
    let skb = ctx.skb.skb;
    let note = take_note(skb);
    // SAFETY: the program's context.
    match unsafe { (*skb).protocol } {
        _ if is_tagged(skb) => NEXT,
        ETH_P_IP => match plain_out4::<L3>(skb) {
            GENERAL => carry_out4(Step::of(out4::<L3>(skb, note)), skb),
            code => code,
        },
        ETH_P_IPV6 => match plain_out6::<L3>(skb) {
            GENERAL => carry_out6(Step::of(out6::<L3>(skb, note)), skb),
            code => code,
        },
        _ => NEXT,
    }
}

/// No code of TC: the packet is not plain.
const GENERAL: i32 = i32::MIN;

macro_rules! hooks {
    ($($plain:ident $look:path, $concerned:ident $name:ident $concerns:ident $story:ident $family:ident $work:ident;)*) => {
        $(
            /// The plain path of one family, not inlined for the same reason as the general one.
            #[inline(never)]
            fn $plain<const L3: usize>(skb: *mut __sk_buff) -> i32 {
                if L3 != lb_common::xdp::L3 {
                    return GENERAL;
                }
                let Some(config) = config() else { return NEXT };
                let mut frame = SkbFrame::new::<$family>(skb, config);
                match $look(&mut frame, &mut BpfEnv, config) {
                    Plain::Up | Plain::Rewritten => NEXT,
                    Plain::General => GENERAL,
                    Plain::Drop => TC_ACT_SHOT as i32,
                    // SAFETY: a helper that takes numbers. Without the interface, or with a peer in this namespace,
                    // the packet is dropped.
                    Plain::Sent(ifindex) => unsafe { bpf_redirect_peer(ifindex, 0) as i32 },
                }
            }

            /// Whether a packet may be the balancer's business.
            #[inline(never)]
            fn $concerned<const L3: usize>(skb: *mut __sk_buff) -> bool {
                let (Some(config), Some(scratch)) = (config(), scratch()) else { return false };
                let mut frame = SkbFrame::new::<$family>(skb, config);
                frame.need((L3 + $family::ADDRS + 2 * size_of::<<$family as Family>::Addr>()) as u32);
                scratch.$work.hook = hook::<L3>(skb);
                $concerns::<$family>(&frame, &BpfEnv, config, &mut scratch.$work)
            }

            /// One family at one hook: a function of its own, so that its stack is free again when a rare step runs.
            #[inline(never)]
            fn $name<const L3: usize>(skb: *mut __sk_buff, note: u32) -> u32 {
                if !$concerned::<L3>(skb) {
                    return Step::Pass as u32;
                }
                let (Some(config), Some(scratch)) = (config(), scratch()) else { return Step::Pass as u32 };
                let mut frame = SkbFrame::new::<$family>(skb, config);
                scratch.$work.note = note;
                $story::<$family>(&mut frame, &mut BpfEnv, config, &mut scratch.$work) as u32
            }
        )*
    };
}

hooks! {
    plain_in4 inward::<V4>, concerned_in4 in4 concerns_in tc_in V4 v4;
    plain_in6 inward::<V6>, concerned_in6 in6 concerns_in tc_in V6 v6;
    plain_out4 outward::<V4>, concerned_out4 out4 concerns_out tc_out V4 v4;
    plain_out6 outward::<V6>, concerned_out6 out6 concerns_out tc_out V6 v6;
}

#[inline(always)]
fn is_tagged(skb: *mut __sk_buff) -> bool {
    // SAFETY: the program's context.
    unsafe { (*skb).vlan_present != 0 }
}

#[inline(always)]
fn hook<const L3: usize>(skb: *mut __sk_buff) -> Hook {
    // SAFETY: the program's context.
    unsafe { Hook { l3: L3, ifindex: (*skb).ifindex, ingress_ifindex: (*skb).ingress_ifindex } }
}

/// Carries out a step and those that it leads to, in this order, for one family at one hook; `back` are the flags of a
/// redirect to the sender. Only the steps of a direction are in its programs.
macro_rules! carry {
    ($($name:ident $back:ident $($past:ident $by:ident ($($with:ident)?)),* [$($step:ident $run:ident ($($skb:ident $($position:ident)?)?)),*]
        [$($end:ident $answer:ident),*])*) => {
        $(
            #[inline(always)]
            fn $name(first: Step, skb: *mut __sk_buff) -> i32 {
                let mut step = first;
                if step == Step::Pass {
                    return NEXT;
                }
                $(
                    if step == Step::$step {
                        step = Step::of($run($(carry!(@$skb skb) $(, $position as u32)?)?));
                    }
                )*
                let verdict = match step {
                    Step::Drop => 1,
                    $(Step::$past => return $by($(carry!(@$with skb))?),)*
                    $(Step::$end => $answer(skb),)*
                    _ => 0,
                };
                match verdict {
                    0 => NEXT,
                    // SAFETY: the program's context, and a helper; the frame holds an answer to its sender.
                    2 => unsafe { bpf_redirect((*skb).ifindex, $back) as i32 },
                    _ => TC_ACT_SHOT as i32,
                }
            }
        )*
    };
    (@skb $skb:ident) => { $skb };
}

carry! {
    carry_in4 OUT Out lb_out4(skb), Peer lb_peer4(), Wrap lb_wrap4(skb)
        [Unwrap lb_unwrap4(skb), NewFlow lb_new_flow4(skb), Fragment lb_fragment4(skb), Straight lb_straight4(skb), Start lb_start4(skb), Sctp lb_sctp4(skb),
         Switch lb_switch4(skb), ErrorIn lb_icmp4(skb POS_IN), Fast lb_fast4(skb),
         Complete lb_complete4(skb), Note lb_note4(skb)]
        [Answer lb_answer4]
    carry_in6 OUT Out lb_out6(skb), Peer lb_peer6(), Wrap lb_wrap6(skb)
        [Unwrap lb_unwrap6(skb), NewFlow lb_new_flow6(skb), Fragment lb_fragment6(skb), Straight lb_straight6(skb), Start lb_start6(skb), Sctp lb_sctp6(skb),
         Switch lb_switch6(skb), ErrorIn lb_icmp6(skb POS_IN), Fast lb_fast6(skb),
         Complete lb_complete6(skb), Note lb_note6(skb)]
        [Answer lb_answer6]
    carry_out4 IN Reroute lb_reroute4(skb)
        [ToBackend lb_to_backend4(), Bound lb_bound4(skb), BoundSnat lb_bound_snat4(skb), Snat lb_snat4(skb), LastWord lb_last_word4(), GuardReply lb_guard_reply4(), Fragment lb_fragment4(skb),
         Sctp lb_sctp4(skb), Clamp lb_clamp4(skb), ErrorOut lb_icmp4(skb POS_OUT)]
        [Answer lb_answer4, Reset lb_reset4]
    carry_out6 IN Reroute lb_reroute6(skb)
        [ToBackend lb_to_backend6(), Bound lb_bound6(skb), BoundSnat lb_bound_snat6(skb), Snat lb_snat6(skb), LastWord lb_last_word6(), GuardReply lb_guard_reply6(), Fragment lb_fragment6(skb),
         Sctp lb_sctp6(skb), Clamp lb_clamp6(skb), ErrorOut lb_icmp6(skb POS_OUT)]
        [Answer lb_answer6, Reset lb_reset6]
}
