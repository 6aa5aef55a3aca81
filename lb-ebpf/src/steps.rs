//! The rare steps of the packet path as global functions: the verifier looks at each once, by itself.
//!
//! Arguments are numbers and the context; everything else is in the work space of this CPU.

use aya_ebpf::bindings::{__sk_buff, TC_ACT_SHOT};
use aya_ebpf::helpers::generated::bpf_redirect_peer;
use lb_common::env::{Scratch, Table, Work};
use lb_common::family::{Family, V4, V6};
use lb_common::flow::Role;
use lb_common::verdict::{Step, Verdict};
use lb_common::{bound, claim, crc32c, dsr, fast, fragment, icmp, straight, switch, tc, track};

use crate::env::{BpfEnv, config, mark};
use crate::frame::SkbFrame;
use crate::maps::LB_SCRATCH;
use crate::neighbour::neighbour;
use crate::reroute::{out, reroute, wrap};
use crate::sender::sender;
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
        // an answer never goes past the stack
        Verdict::Drop | Verdict::Out | Verdict::Peer(_) => 1,
        Verdict::Reply => 2,
    }
}

/// The work space of a family.
pub trait Mine: Family {
    /// Its part of all work space.
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

/// [`crc32c::change`]; the four changed bytes as they lie in memory.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_crc32c(change: u32, length: u32) -> u32 {
    crc32c::change(change.to_ne_bytes(), length)
}

macro_rules! steps {
    (
        $family:ident: $refresh:ident $promote:ident $retire:ident $forget:ident $claim:ident $claim_snat:ident $attempt:ident $mark_pair:ident
        $take_up:ident $make_way:ident $meet_fragment:ident $remember_fragment:ident
        $new_flow:ident $start:ident $last_word:ident $to_backend:ident $snat:ident $guard_reply:ident $answer:ident $reset:ident
        $fragment:ident $straight:ident $switch:ident $sctp:ident $bound:ident $bound_snat:ident $keep_port:ident
        $icmp:ident $reroute:ident $claim_xdp:ident $complete:ident $out:ident $fast:ident $peer:ident $crossed:ident
        $begin_dsr:ident $unwrap:ident $wrap:ident $clamp:ident $note:ident
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
                track::bring(&mut BpfEnv, $family::mine(scratch), Table::Established);
            }
            0
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $retire() -> u32 {
            if let Some(scratch) = scratch() {
                track::bring(&mut BpfEnv, $family::mine(scratch), Table::Young);
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
                return claim::Claim::Refused as u32;
            };
            claim::claim(&mut BpfEnv, config, $family::mine(scratch)) as u32
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $claim_snat(number: u32) -> u32 {
            let (Some(config), Some(scratch)) = (config(), scratch()) else {
                return claim::Claim::Refused as u32;
            };
            claim::claim_snat(&mut BpfEnv, config, $family::mine(scratch), table(number)) as u32
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $attempt(number: u32, role: u32, tries: u32) -> u32 {
            let (Some(config), Some(scratch)) = (config(), scratch()) else {
                return claim::Reserve::Full as u32;
            };
            let work = $family::mine(scratch);
            claim::attempt(&mut BpfEnv, config, work, table(number), Role::of(role as u8), tries) as u32
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $mark_pair() -> u32 {
            if let Some(scratch) = scratch() {
                let flow = &$family::mine(scratch).flow;
                let (client, backend) = ($family::role_slot(flow.client), $family::role_slot(flow.backend));
                mark(client, backend, flow.pair_bits(client, backend));
            }
            0
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $take_up() -> u32 {
            if let Some(scratch) = scratch() {
                track::take_up($family::mine(scratch));
            }
            0
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $make_way() -> u32 {
            if let Some(scratch) = scratch() {
                track::make_way(&mut BpfEnv, $family::mine(scratch));
            }
            0
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $meet_fragment(position: u32) -> u32 {
            let Some(scratch) = scratch() else { return 0 };
            fragment::meet(&mut BpfEnv, $family::mine(scratch), position as u8) as u32
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $remember_fragment(position: u32) -> u32 {
            if let Some(scratch) = scratch() {
                fragment::remember(&mut BpfEnv, $family::mine(scratch), position as u8);
            }
            0
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $fragment(skb: *mut __sk_buff) -> u32 {
            let (Some(config), Some(scratch)) = (config(), scratch()) else { return 0 };
            let mut frame = SkbFrame::new::<$family>(skb, config);
            tc::fragment(&mut frame, &mut BpfEnv, config, $family::mine(scratch)) as u32
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $sctp(skb: *mut __sk_buff) -> u32 {
            let (Some(config), Some(scratch)) = (config(), scratch()) else { return 0 };
            let mut frame = SkbFrame::new::<$family>(skb, config);
            tc::sctp(&mut frame, &mut BpfEnv, config, $family::mine(scratch)) as u32
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $straight(skb: *mut __sk_buff) -> u32 {
            let (Some(config), Some(scratch)) = (config(), scratch()) else { return 0 };
            let mut frame = SkbFrame::new::<$family>(skb, config);
            straight::straight(&mut frame, &mut BpfEnv, config, $family::mine(scratch)) as u32
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $switch(skb: *mut __sk_buff) -> u32 {
            let (Some(config), Some(scratch)) = (config(), scratch()) else { return 0 };
            let mut frame = SkbFrame::new::<$family>(skb, config);
            let work = $family::mine(scratch);
            let bridge = switch::master::<$family>(&BpfEnv, work.hook.ifindex);
            work.neighbour = neighbour::<$family>(skb, bridge, work.value.src, work.value.dst);
            switch::switch(&mut frame, &mut BpfEnv, work) as u32
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $bound(skb: *mut __sk_buff) -> u32 {
            let (Some(config), Some(scratch)) = (config(), scratch()) else { return 0 };
            let work = $family::mine(scratch);
            sender::<$family>(skb, work);
            bound::bound(&mut BpfEnv, config, work) as u32
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $bound_snat(skb: *mut __sk_buff) -> u32 {
            let (Some(config), Some(scratch)) = (config(), scratch()) else { return 0 };
            let mut frame = SkbFrame::new::<$family>(skb, config);
            let step = bound::bound_snat(&mut frame, &mut BpfEnv, config, $family::mine(scratch)) as u32;
            $keep_port(skb);
            step
        }

        /// Leaves the source port of the flow in hand in the storage of the packet's socket.

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $keep_port(skb: *mut __sk_buff) -> u32 {
            let Some(scratch) = scratch() else { return 0 };
            let work = $family::mine(scratch);
            let port = work.sender.snat_port;
            let peer = sender::<$family>(skb, work);
            if !peer.is_null() {
                // SAFETY: the storage of the packet's socket, which the packet holds.
                unsafe { (*peer).snat_port = port };
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
        pub extern "C" fn $start(skb: *mut __sk_buff) -> u32 {
            let (Some(config), Some(scratch)) = (config(), scratch()) else { return 0 };
            let mut frame = SkbFrame::new::<$family>(skb, config);
            tc::start(&mut frame, &mut BpfEnv, config, $family::mine(scratch)) as u32
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
        pub extern "C" fn $to_backend() -> u32 {
            let (Some(config), Some(scratch)) = (config(), scratch()) else { return 0 };
            tc::to_backend(&mut BpfEnv, config, $family::mine(scratch)) as u32
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $snat(skb: *mut __sk_buff) -> u32 {
            let (Some(config), Some(scratch)) = (config(), scratch()) else { return 0 };
            let mut frame = SkbFrame::new::<$family>(skb, config);
            tc::snat(&mut frame, &mut BpfEnv, config, $family::mine(scratch)) as u32
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
        pub extern "C" fn $claim_xdp() -> u32 {
            let (Some(config), Some(scratch)) = (config(), scratch()) else { return 0 };
            claim::claim_xdp(&mut BpfEnv, config, $family::mine(scratch)) as u32
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $complete(skb: *mut __sk_buff) -> u32 {
            let (Some(config), Some(scratch)) = (config(), scratch()) else { return 1 };
            let mut frame = SkbFrame::new::<$family>(skb, config);
            tc::complete(&mut frame, &mut BpfEnv, $family::mine(scratch)) as u32
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $crossed(role: u32) -> u32 {
            let Some(scratch) = scratch() else { return 1 };
            claim::is_crossed(&mut BpfEnv, $family::mine(scratch), Role::of(role as u8)) as u32
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $fast(skb: *mut __sk_buff) -> u32 {
            let (Some(config), Some(scratch)) = (config(), scratch()) else { return Step::Drop as u32 };
            let mut frame = SkbFrame::new::<$family>(skb, config);
            fast::forward(&mut frame, &mut BpfEnv, $family::mine(scratch)) as u32
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $peer() -> i32 {
            let Some(scratch) = scratch() else { return TC_ACT_SHOT as i32 };
            // SAFETY: a helper that takes numbers. Without the interface, or with a peer in this namespace, the packet
            // is dropped.
            unsafe { bpf_redirect_peer($family::mine(scratch).way.ifindex, 0) as i32 }
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $out(skb: *mut __sk_buff) -> i32 {
            let Some(scratch) = scratch() else { return TC_ACT_SHOT as i32 };
            out(skb, $family::mine(scratch))
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $begin_dsr(node: u32) -> u32 {
            let Some(scratch) = scratch() else { return 0 };
            dsr::begin(&mut BpfEnv, $family::mine(scratch), node) as u32
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $unwrap(skb: *mut __sk_buff) -> u32 {
            let (Some(config), Some(scratch)) = (config(), scratch()) else { return 0 };
            let mut frame = SkbFrame::new::<$family>(skb, config);
            dsr::unwrap(&mut frame, &mut BpfEnv, config, $family::mine(scratch)) as u32
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $wrap(skb: *mut __sk_buff) -> i32 {
            let (Some(config), Some(scratch)) = (config(), scratch()) else { return TC_ACT_SHOT as i32 };
            let mut frame = SkbFrame::new::<$family>(skb, config);
            wrap(skb, &mut frame, config, $family::mine(scratch))
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $clamp(skb: *mut __sk_buff) -> u32 {
            let (Some(config), Some(scratch)) = (config(), scratch()) else { return 0 };
            let mut frame = SkbFrame::new::<$family>(skb, config);
            dsr::clamp(&mut frame, &mut BpfEnv, config, $family::mine(scratch)) as u32
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $note(skb: *mut __sk_buff) -> u32 {
            let (Some(config), Some(scratch)) = (config(), scratch()) else { return 0 };
            let mut frame = SkbFrame::new::<$family>(skb, config);
            tc::note(&mut frame, $family::mine(scratch)) as u32
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $reroute(skb: *mut __sk_buff) -> i32 {
            let Some(scratch) = scratch() else { return NEXT };
            reroute(skb, $family::mine(scratch))
        }
    };
}

steps!(V4: lb_refresh4 lb_promote4 lb_retire4 lb_forget4 lb_claim4 lb_claim_snat4 lb_attempt4 lb_mark_pair4
    lb_take_up4 lb_make_way4 lb_meet_fragment4 lb_remember_frag4
    lb_new_flow4 lb_start4 lb_last_word4 lb_to_backend4 lb_snat4 lb_guard_reply4 lb_answer4 lb_reset4
    lb_fragment4 lb_straight4 lb_switch4 lb_sctp4 lb_bound4 lb_bound_snat4 lb_keep_port4
    lb_icmp4 lb_reroute4 lb_claim_xdp4 lb_complete4 lb_out4 lb_fast4 lb_peer4 lb_crossed4
    lb_begin_dsr4 lb_unwrap4 lb_wrap4 lb_clamp4 lb_note4);
steps!(V6: lb_refresh6 lb_promote6 lb_retire6 lb_forget6 lb_claim6 lb_claim_snat6 lb_attempt6 lb_mark_pair6
    lb_take_up6 lb_make_way6 lb_meet_fragment6 lb_remember_frag6
    lb_new_flow6 lb_start6 lb_last_word6 lb_to_backend6 lb_snat6 lb_guard_reply6 lb_answer6 lb_reset6
    lb_fragment6 lb_straight6 lb_switch6 lb_sctp6 lb_bound6 lb_bound_snat6 lb_keep_port6
    lb_icmp6 lb_reroute6 lb_claim_xdp6 lb_complete6 lb_out6 lb_fast6 lb_peer6 lb_crossed6
    lb_begin_dsr6 lb_unwrap6 lb_wrap6 lb_clamp6 lb_note6);
