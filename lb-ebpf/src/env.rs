//! The maps as an [`Env`]: all map access of the programs, and its `unsafe`.

use core::arch::asm;

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_ktime_get_coarse_ns};
use lb_common::abi::{
    Addr4, Addr6, AffKey4, AffKey6, AffValue, CtKey, CtKey4, CtKey6, CtValue, CtValue4, CtValue6, FragKey,
    FragValue, Iface, LbConfig, NextHop, PAIR_BOUND, PAIR_SEEN, Peer, ROLE_SIZE, RangeKey4, RangeKey6,
    SkUdpKey, SkUdpValue, SvcKey4, SvcKey6, SvcValue,
};
use lb_common::claim::{Claim, Reserve};
use lb_common::counter::Counter;
use lb_common::env::{Env, Insert, SockEnv, Table, Work};
use lb_common::family::{Backend, Family, Ip4, Ip6, V4, V6};
use lb_common::flow::Role;
use lb_common::hash::pair_slot;
use lb_common::plain::Layout;

use crate::maps::*;
use crate::steps;

/// `-EEXIST`, as `bpf_map_update_elem` returns it.
const EEXIST: i32 = -17;

/// The maps of the object.
pub struct BpfEnv;

/// The configuration, once the agent has written it. `None` never happens: the array has one element.
#[inline(always)]
pub fn config() -> Option<&'static LbConfig> {
    LB_CONFIG.get(0)
}

/// Adds one to a counter.
#[inline(always)]
fn count(counter: Counter) {
    if let Some(value) = LB_COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: an element of this CPU; programs are not preempted by others of their kind there. A socket program
        // that is interrupted between load and store loses one count.
        unsafe { *value = (*value).wrapping_add(1) };
    }
}

macro_rules! env {
    (
        $family:ident, $addr:ty, $svc_key:ident, $aff_key:ident, $key:ident, $value:ident,
        svc $svc:ident, node $node:ident $node_key:ident, peer $peer:ident, src $src:ident, cidr $cidr:ident, range $range:ident $range_key:ident,
        be $be:ident, generations $gen:ident, aff $aff:ident, ct $ct:ident $made:path, $gone:path, em $em:ident, frag $frag:ident,
        $refresh:ident $promote:ident $retire:ident $forget:ident $claim:ident $claim_snat:ident $attempt:ident $mark_pair:ident
        $take_up:ident $make_way:ident $meet_fragment:ident $remember_fragment:ident $claim_xdp:ident $crossed:ident $begin_dsr:ident
    ) => {
        impl Env<$family> for BpfEnv {
            #[inline(always)]
            fn roles_at(&self, slot: u32) -> u8 {
                match LB_ROLES.get_ptr(0) {
                    // SAFETY: the slot is below ROLE_SIZE (a hash shifted to ROLE_BITS bits); the agent writes
                    // bytes, a reader sees the old or the new one.
                    Some(filter) => unsafe {
                        *filter.cast::<u8>().add((slot & (lb_common::abi::ROLE_SIZE as u32 - 1)) as usize)
                    },
                    None => 0,
                }
            }

            #[inline(always)]
            fn service(&self, key: &$svc_key) -> Option<SvcValue> {
                // SAFETY: not preallocated, so the element outlives this run (RCU), and values are replaced whole.
                unsafe { $svc.get(key) }.copied()
            }

            #[inline(always)]
            fn node(&self, addr: $addr) -> u32 {
                // SAFETY: as for services.
                unsafe { $node.get($node_key { addr: addr.addr }) }.copied().unwrap_or(0)
            }

            #[inline(never)] // rare, and a stack is small
            fn source_towards(&self, frontend: $addr) -> $addr {
                // SAFETY: as for services.
                match unsafe { $src.get($node_key { addr: frontend.addr }) } {
                    Some(source) => source.addr.into(),
                    None => $family::ZERO,
                }
            }

            #[inline(always)]
            fn in_service_cidr(&self, addr: $addr) -> bool {
                $cidr.get(&Key::new(8 * size_of::<$addr>() as u32, $node_key { addr: addr.addr })).is_some()
            }

            #[inline(never)] // rare, and a stack is small
            fn in_source_ranges(&self, service: u32, addr: $addr) -> bool {
                let key = $range_key { service: service.to_be_bytes(), addr: addr.addr };
                $range.get(&Key::new(8 * size_of::<$range_key>() as u32, key)).is_some()
            }

            #[inline(always)]
            fn slot(&self, slot: u32) -> Option<u32> {
                LB_SLOTS.get(slot).copied()
            }

            #[inline(always)]
            fn backend(&self, id: u32) -> Option<Backend<$family>> {
                let row = $be.get(id)?;
                (row.proto != 0).then(|| $family::backend(row))
            }

            #[inline(always)]
            fn generation(&self, id: u32) -> u32 {
                $gen.get(id).copied().unwrap_or(0)
            }

            #[inline(always)]
            fn affinity(&self, key: &$aff_key) -> Option<AffValue> {
                // SAFETY: copied at once; an element that was reused meanwhile names a backend that is then
                // checked against its generation and its membership.
                unsafe { $aff.get(key) }.copied()
            }

            #[inline(always)]
            fn set_affinity(&mut self, key: &$aff_key, value: &AffValue) {
                // a failure costs stickiness, not the connection
                let _ = $aff.insert(key, value, BPF_ANY as u64);
            }

            #[inline(always)]
            fn flow_tagged<R>(
                &mut self,
                table: Table,
                key: &$key,
                tag: u32,
                f: impl FnOnce(&mut CtValue<$family>) -> R,
            ) -> Option<R> {
                let found = match table {
                    Table::Established => $ct.get_ptr_mut(key)?,
                    Table::Young => $em.get_ptr_mut(key)?,
                };
                // SAFETY: the pointer is to a live or just reused element of the table; its fields are integers,
                // so a concurrent writer yields old or new values. The tag rules out an element of another key.
                let value: &mut $value = unsafe { &mut *found };
                if value.tag != tag {
                    return None;
                }
                Some(f(value))
            }

            #[inline(always)]
            fn established<R>(
                &mut self,
                words: <$family as Layout>::Words,
                f: impl FnOnce(&CtValue<$family>) -> R,
            ) -> Option<R> {
                // SAFETY: both are of the same size (or this does not compile), of integers, and `Layout::key` says
                // the same.
                let key: $key = unsafe { core::mem::transmute(words) };
                let found = $ct.get_ptr(key)?;
                // SAFETY: as in `flow_with`; it is copied first.
                let value: &$value = unsafe { &*found };
                let taken = f(value);
                (value.tag == $family::tag(words)).then_some(taken)
            }

            #[inline(always)]
            fn flow_insert(
                &mut self,
                table: Table,
                key: &CtKey<$family>,
                value: &CtValue<$family>,
            ) -> Insert {
                let result = match table {
                    Table::Established => $ct.insert(key, value, BPF_NOEXIST as u64),
                    Table::Young => $em.insert(key, value, BPF_NOEXIST as u64),
                };
                match result {
                    Ok(()) => {
                        match table {
                            Table::Established => count($made),
                            // An LRU hash evicts first what was never looked up, which would be the flow that was
                            // just made. The look-up makes it the youngest instead.
                            Table::Young => drop($em.get_ptr(key)),
                        }
                        Insert::Done
                    }
                    Err(EEXIST) => Insert::Exists,
                    Err(_) => Insert::Full,
                }
            }

            #[inline(always)]
            fn flow_delete(&mut self, table: Table, key: &CtKey<$family>) {
                // not there: somebody else deleted it
                match table {
                    Table::Established if $ct.remove(key).is_ok() => count($gone),
                    Table::Established => {}
                    Table::Young => drop($em.remove(key)),
                }
            }

            #[inline(always)]
            fn pair_at(&self, slot: u32) -> u8 {
                match pairs() {
                    // SAFETY: the slot is below ROLE_SIZE, the mask shows that to the verifier.
                    Some(filter) => unsafe { *filter.add((slot & (ROLE_SIZE as u32 - 1)) as usize) },
                    None => PAIR_SEEN,
                }
            }

            #[inline(always)]
            fn mark_bound(&mut self, a: $addr, b: $addr) {
                mark($family::role_slot(a), $family::role_slot(b), PAIR_SEEN | PAIR_BOUND);
            }

            #[inline(always)]
            fn fragment(&self, key: &FragKey<$family>, into: &mut FragValue<$family>) -> bool {
                // SAFETY: copied at once; the caller compares the tag, which an element of another key has not.
                match unsafe { $frag.get(key) } {
                    Some(value) => {
                        *into = *value;
                        true
                    }
                    None => false,
                }
            }

            #[inline(always)]
            fn fragment_set(&mut self, key: &FragKey<$family>, value: &FragValue<$family>) {
                // a failure costs the datagram: its other fragments count as early ones
                let _ = $frag.insert(key, value, BPF_ANY as u64);
            }

            #[inline(always)]
            fn fragment_forget(&mut self, key: &FragKey<$family>) {
                // mostly there is none
                let _ = $frag.remove(key);
            }

            #[inline(always)]
            fn mark_pair(&mut self, _work: &mut Work<$family>) {
                steps::$mark_pair();
            }

            #[inline(always)]
            fn iface(&self, ifindex: u32) -> Option<Iface> {
                // SAFETY: as for services.
                unsafe { LB_IF.get(ifindex) }.copied()
            }

            #[inline(always)]
            fn next_hop(&self, row: u32) -> NextHop {
                LB_NH.get(row).copied().unwrap_or_default()
            }

            #[inline(always)]
            fn peer(&self, row: u32) -> Peer {
                LB_PEERS.get(row).copied().unwrap_or_default()
            }

            #[inline(always)]
            fn is_cluster_node(&self, addr: $addr) -> bool {
                // SAFETY: as for services.
                unsafe { $peer.get($node_key { addr: addr.addr }) }.is_some()
            }

            #[inline(always)]
            fn now_ns(&self) -> u64 {
                // SAFETY: a helper without arguments.
                unsafe { bpf_ktime_get_coarse_ns() }
            }

            #[inline(always)]
            fn random(&self) -> u32 {
                // SAFETY: a helper without arguments.
                unsafe { bpf_get_prandom_u32() }
            }

            #[inline(always)]
            fn count(&mut self, counter: Counter) {
                count(counter);
            }

            // `work` is this CPU's work space, where the global functions find it by themselves.

            #[inline(always)]
            fn refresh(&mut self, _work: &mut Work<$family>, table: Table) -> bool {
                steps::$refresh(number(table)) != 0
            }

            #[inline(always)]
            fn bring(&mut self, _work: &mut Work<$family>, to: Table) {
                match to {
                    Table::Established => steps::$promote(),
                    Table::Young => steps::$retire(),
                };
            }

            #[inline(always)]
            fn forget(&mut self, _work: &mut Work<$family>) {
                steps::$forget();
            }

            #[inline(always)]
            fn claim(&mut self, _config: &LbConfig, _work: &mut Work<$family>) -> Claim {
                Claim::of(steps::$claim())
            }

            #[inline(always)]
            fn claim_snat(&mut self, _config: &LbConfig, _work: &mut Work<$family>, table: Table) -> Claim {
                Claim::of(steps::$claim_snat(number(table)))
            }

            #[inline(always)]
            fn attempt(
                &mut self,
                _config: &LbConfig,
                _work: &mut Work<$family>,
                table: Table,
                role: Role,
                tries: u32,
            ) -> Reserve {
                Reserve::of(steps::$attempt(number(table), role as u32, tries))
            }

            #[inline(always)]
            fn is_crossed(&mut self, _work: &mut Work<$family>, role: Role) -> bool {
                steps::$crossed(role as u32) != 0
            }

            #[inline(always)]
            fn claim_xdp(&mut self, _config: &LbConfig, _work: &mut Work<$family>) -> bool {
                steps::$claim_xdp() != 0
            }

            #[inline(always)]
            fn begin_dsr(&mut self, _work: &mut Work<$family>, node: u32) -> bool {
                steps::$begin_dsr(node) != 0
            }

            #[inline(always)]
            fn give_way(&mut self, _work: &mut Work<$family>) {
                steps::$take_up();
                steps::$forget();
                steps::$make_way();
            }

            #[inline(always)]
            fn meet_fragment(&mut self, _work: &mut Work<$family>, position: u8) -> bool {
                steps::$meet_fragment(position as u32) != 0
            }

            #[inline(always)]
            fn remember_fragment(&mut self, _work: &mut Work<$family>, position: u8) {
                steps::$remember_fragment(position as u32);
            }
        }
    };
}

/// Sets `PAIR_*` bits of two addresses, given by their slots in the role filter, in the pair filter.
#[inline(always)]
pub fn mark(a: u32, b: u32, bits: u8) {
    let Some(filter) = pairs() else { return };
    let slot = pair_slot(a, b) & (ROLE_SIZE as u32 - 1);
    // SAFETY: the byte, and the aligned word around it, are in the filter, whose size is a multiple of eight. All
    // that is done to words is atomic (Linux 5.12), and the agent writes the whole only with all bits that count.
    unsafe {
        if *filter.add(slot as usize) & bits != bits {
            let word = filter.add((slot & !7) as usize);
            let bits = (bits as u64) << (8 * (slot & 7));
            asm!("lock *(u64 *)({0} + 0) |= {1}", in(reg) word, in(reg) bits, options(nostack, preserves_flags));
        }
    }
}

/// The pair filter.
#[inline(always)]
fn pairs() -> Option<*mut u8> {
    LB_PAIRS.get_ptr_mut(0).map(|filter| filter.cast::<u8>())
}

/// A table as an argument of a global function.
#[inline(always)]
fn number(table: Table) -> u32 {
    (table == Table::Young) as u32
}

env!(
    V4, Ip4, SvcKey4, AffKey4, CtKey4, CtValue4,
    svc LB_SVC4, node LB_NODE4 Addr4, peer LB_PEER4, src LB_SRC4, cidr LB_CIDR4, range LB_RANGE4 RangeKey4,
    be LB_BE4, generations LB_GEN4, aff LB_AFF4, ct LB_CT4 Counter::Established4Made, Counter::Established4Gone, em LB_EM4, frag LB_FRAG4,
    lb_refresh4 lb_promote4 lb_retire4 lb_forget4 lb_claim4 lb_claim_snat4 lb_attempt4 lb_mark_pair4
    lb_take_up4 lb_make_way4 lb_meet_fragment4 lb_remember_frag4 lb_claim_xdp4 lb_crossed4 lb_begin_dsr4
);
env!(
    V6, Ip6, SvcKey6, AffKey6, CtKey6, CtValue6,
    svc LB_SVC6, node LB_NODE6 Addr6, peer LB_PEER6, src LB_SRC6, cidr LB_CIDR6, range LB_RANGE6 RangeKey6,
    be LB_BE6, generations LB_GEN6, aff LB_AFF6, ct LB_CT6 Counter::Established6Made, Counter::Established6Gone, em LB_EM6, frag LB_FRAG6,
    lb_refresh6 lb_promote6 lb_retire6 lb_forget6 lb_claim6 lb_claim_snat6 lb_attempt6 lb_mark_pair6
    lb_take_up6 lb_make_way6 lb_meet_fragment6 lb_remember_frag6 lb_claim_xdp6 lb_crossed6 lb_begin_dsr6
);

impl SockEnv for BpfEnv {
    #[inline(always)]
    fn correspondent(&self, key: &SkUdpKey) -> Option<SkUdpValue> {
        // SAFETY: copied at once; the key holds the socket's cookie, so a reused element can only mislead for the
        // length of this copy, and is then checked against its generation.
        unsafe { LB_SK_UDP.get(key) }.copied()
    }

    #[inline(always)]
    fn set_correspondent(&mut self, key: &SkUdpKey, value: &SkUdpValue) {
        // a failure makes the reply's source the backend's
        let _ = LB_SK_UDP.insert(key, value, BPF_ANY as u64);
    }
}
