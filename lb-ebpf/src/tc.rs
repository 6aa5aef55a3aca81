//! TC programs: wrap the context, ask lb-common, carry the verdict out.

use aya_ebpf::bindings::{__sk_buff, BPF_F_INGRESS, TC_ACT_SHOT};
use aya_ebpf::helpers::generated::bpf_redirect;
use aya_ebpf::programs::TcContext;
use lb_common::abi::{POS_IN, POS_OUT};
use lb_common::env::Hook;
use lb_common::family::{Family, V4, V6};
use lb_common::tc::{concerns_in, concerns_out, tc_in, tc_out};
use lb_common::verdict::Step;

use crate::env::{BpfEnv, config};
use crate::frame::SkbFrame;
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
    // SAFETY: the program's context.
    match unsafe { (*skb).protocol } {
        // a frame for a VLAN device above, where it is met again without the tag
        _ if is_tagged(skb) => NEXT,
        ETH_P_IP => carry_out4(Step::of(in4::<L3>(skb)), skb, OUT),
        ETH_P_IPV6 => carry_out6(Step::of(in6::<L3>(skb)), skb, OUT),
        _ => NEXT,
    }
}

/// Egress of an interface whose IP header begins at `L3`.
#[inline(always)]
pub fn egress<const L3: usize>(ctx: &TcContext) -> i32 {
    let skb = ctx.skb.skb;
    // SAFETY: the program's context.
    match unsafe { (*skb).protocol } {
        _ if is_tagged(skb) => NEXT,
        ETH_P_IP => carry_out4(Step::of(out4::<L3>(skb)), skb, IN),
        ETH_P_IPV6 => carry_out6(Step::of(out6::<L3>(skb)), skb, IN),
        _ => NEXT,
    }
}

macro_rules! hooks {
    ($($name:ident $concerns:ident $story:ident $family:ident $work:ident;)*) => {
        $(
            /// One family at one hook: a function of its own, so that its stack is free again when a rare step runs.
            #[inline(never)]
            fn $name<const L3: usize>(skb: *mut __sk_buff) -> u32 {
                let Some(config) = config() else { return Step::Pass as u32 };
                let mut frame = SkbFrame::new::<$family>(skb, config);
                frame.need((L3 + $family::ADDRS + 2 * size_of::<<$family as Family>::Addr>()) as u32);
                if !$concerns::<$family>(&frame, &BpfEnv, config, L3) {
                    return Step::Pass as u32;
                }
                let Some(scratch) = scratch() else { return Step::Pass as u32 };
                scratch.$work.hook = hook::<L3>(skb);
                $story::<$family>(&mut frame, &mut BpfEnv, config, &mut scratch.$work) as u32
            }
        )*
    };
}

hooks! {
    in4 concerns_in tc_in V4 v4;
    in6 concerns_in tc_in V6 v6;
    out4 concerns_out tc_out V4 v4;
    out6 concerns_out tc_out V6 v6;
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

macro_rules! carry_out {
    ($name:ident $new_flow:ident $last_word:ident $to_backend:ident $guard_reply:ident $answer:ident $reset:ident $icmp:ident
        $reroute:ident) => {
        /// Carries out a step and those that it leads to; `back` are the flags of a redirect to the sender.
        #[inline(always)]
        fn $name(first: Step, skb: *mut __sk_buff, back: u64) -> i32 {
            if first == Step::Pass {
                return NEXT;
            }
            let step = match first {
                Step::NewFlow => Step::of($new_flow(skb)),
                Step::LastWord => Step::of($last_word()),
                Step::ToBackend => Step::of($to_backend(skb)),
                Step::GuardReply => Step::of($guard_reply()),
                Step::ErrorIn => Step::of($icmp(skb, POS_IN as u32)),
                Step::ErrorOut => Step::of($icmp(skb, POS_OUT as u32)),
                Step::Reroute => return $reroute(skb),
                known => known,
            };
            let verdict = match step {
                Step::Drop => 1,
                Step::Answer => $answer(skb),
                Step::Reset => $reset(skb),
                _ => 0,
            };
            match verdict {
                0 => NEXT,
                // SAFETY: the program's context, and a helper; the frame holds an answer to its sender.
                2 => unsafe { bpf_redirect((*skb).ifindex, back) as i32 },
                _ => TC_ACT_SHOT as i32,
            }
        }
    };
}

carry_out!(carry_out4 lb_new_flow4 lb_last_word4 lb_to_backend4 lb_guard_reply4 lb_answer4 lb_reset4 lb_icmp4
    lb_reroute4);
carry_out!(carry_out6 lb_new_flow6 lb_last_word6 lb_to_backend6 lb_guard_reply6 lb_answer6 lb_reset6 lb_icmp6
    lb_reroute6);
