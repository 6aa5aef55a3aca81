//! The rare steps of the packet path as global functions: the verifier looks at each once, by itself.
//!
//! Arguments are numbers and the context; everything else is in the work space of this CPU.

use aya_ebpf::bindings::__sk_buff;
use lb_common::env::{Scratch, Table, Work};
use lb_common::family::{Family, V4, V6};
use lb_common::flow::Role;
use lb_common::verdict::Verdict;
use lb_common::{icmp, tc, track};

use crate::env::{BpfEnv, config, mark};
use crate::frame::SkbFrame;
use crate::maps::LB_SCRATCH;
use crate::reroute::reroute;
use crate::tc::NEXT;

/// This CPU's work space. `None` never happens: the array has one element.
#[inline(always)]
pub fn scratch() -> Option<&'static mut Scratch> {
    // SAFETY: TC programs run with bottom halves off, so no other one uses this CPU's work space meanwhile; within
    // a run, a caller does not touch it while a step does.
    LB_SCRATCH.get_ptr_mut(0).map(|scratch| unsafe { &mut *scratch })
}

#[inline(always)]
fn table(number: u32) -> Table {
    if number != 0 { Table::Young } else { Table::Established }
}

#[inline(always)]
fn verdict(verdict: Verdict) -> u32 {
    match verdict {
        Verdict::Pass => 0,
        Verdict::Drop => 1,
        Verdict::Reply => 2,
    }
}

/// The work space of a family.
trait Mine: Family {
    fn mine(scratch: &mut Scratch) -> &mut Work<Self>;
}

impl Mine for V4 {
    #[inline(always)]
    fn mine(scratch: &mut Scratch) -> &mut Work<V4> {
        &mut scratch.v4
    }
}

impl Mine for V6 {
    #[inline(always)]
    fn mine(scratch: &mut Scratch) -> &mut Work<V6> {
        &mut scratch.v6
    }
}

macro_rules! steps {
    (
        $family:ident: $refresh:ident $promote:ident $forget:ident $claim:ident $claim_snat:ident $reserve:ident $mark_pair:ident
        $new_flow:ident $last_word:ident $to_backend:ident $guard_reply:ident $answer:ident $reset:ident
        $icmp:ident $reroute:ident
    ) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $refresh(number: u32) -> u32 {
            let Some(scratch) = scratch() else { return 0 };
            track::refresh(&mut BpfEnv, $family::mine(scratch), table(number)) as u32
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $promote() -> u32 {
            if let Some(scratch) = scratch() {
                track::promote(&mut BpfEnv, $family::mine(scratch));
            }
            0
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $forget() -> u32 {
            if let Some(scratch) = scratch() {
                track::forget(&mut BpfEnv, $family::mine(scratch));
            }
            0
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $claim() -> u32 {
            let (Some(config), Some(scratch)) = (config(), scratch()) else {
                return track::Claim::Refused as u32;
            };
            track::claim(&mut BpfEnv, config, $family::mine(scratch)) as u32
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $claim_snat(number: u32) -> u32 {
            let (Some(config), Some(scratch)) = (config(), scratch()) else {
                return track::Claim::Refused as u32;
            };
            track::claim_snat(&mut BpfEnv, config, $family::mine(scratch), table(number)) as u32
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $reserve(number: u32, role: u32) -> u32 {
            let Some(scratch) = scratch() else { return track::Reserve::Full as u32 };
            track::reserve(&mut BpfEnv, $family::mine(scratch), table(number), Role::of(role as u8)) as u32
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $mark_pair() -> u32 {
            if let Some(scratch) = scratch() {
                let flow = &$family::mine(scratch).flow;
                mark($family::role_slot(flow.client), $family::role_slot(flow.backend));
            }
            0
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $new_flow(skb: *mut __sk_buff) -> u32 {
            let (Some(config), Some(scratch)) = (config(), scratch()) else { return 0 };
            let mut frame = SkbFrame::new::<$family>(skb, config);
            tc::new_flow(&mut frame, &mut BpfEnv, config, $family::mine(scratch)) as u32
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $last_word() -> u32 {
            let (Some(config), Some(scratch)) = (config(), scratch()) else { return 0 };
            tc::last_word(&mut BpfEnv, config, $family::mine(scratch)) as u32
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $guard_reply() -> u32 {
            let (Some(config), Some(scratch)) = (config(), scratch()) else { return 0 };
            tc::guard_reply(&mut BpfEnv, config, $family::mine(scratch)) as u32
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $to_backend(skb: *mut __sk_buff) -> u32 {
            let (Some(config), Some(scratch)) = (config(), scratch()) else { return 0 };
            let mut frame = SkbFrame::new::<$family>(skb, config);
            tc::to_backend(&mut frame, &mut BpfEnv, config, $family::mine(scratch)) as u32
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $answer(skb: *mut __sk_buff) -> u32 {
            let (Some(config), Some(scratch)) = (config(), scratch()) else { return 1 };
            let mut frame = SkbFrame::new::<$family>(skb, config);
            verdict(tc::answer(&mut frame, &mut BpfEnv, config, $family::mine(scratch)))
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $reset(skb: *mut __sk_buff) -> u32 {
            let (Some(config), Some(scratch)) = (config(), scratch()) else { return 1 };
            let mut frame = SkbFrame::new::<$family>(skb, config);
            verdict(tc::reset(&mut frame, &mut BpfEnv, config, $family::mine(scratch)))
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $icmp(skb: *mut __sk_buff, position: u32) -> u32 {
            let (Some(config), Some(scratch)) = (config(), scratch()) else { return 0 };
            let mut frame = SkbFrame::new::<$family>(skb, config);
            icmp::translate(&mut frame, &mut BpfEnv, $family::mine(scratch), (position & 1) as u8) as u32
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $reroute(skb: *mut __sk_buff) -> i32 {
            let Some(scratch) = scratch() else { return NEXT };
            reroute(skb, $family::mine(scratch))
        }
    };
}

steps!(V4: lb_refresh4 lb_promote4 lb_forget4 lb_claim4 lb_claim_snat4 lb_reserve4 lb_mark_pair4
    lb_new_flow4 lb_last_word4 lb_to_backend4 lb_guard_reply4 lb_answer4 lb_reset4
    lb_icmp4 lb_reroute4);
steps!(V6: lb_refresh6 lb_promote6 lb_forget6 lb_claim6 lb_claim_snat6 lb_reserve6 lb_mark_pair6
    lb_new_flow6 lb_last_word6 lb_to_backend6 lb_guard_reply6 lb_answer6 lb_reset6
    lb_icmp6 lb_reroute6);
