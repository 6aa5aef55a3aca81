//! The XDP program: wraps the context, asks lb-common, carries the verdict out.

use core::arch::asm;
use core::mem::MaybeUninit;

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::bindings::{BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup, xdp_md};
use aya_ebpf::helpers::generated::{bpf_fib_lookup as fib_lookup, bpf_redirect, bpf_xdp_adjust_head};
use aya_ebpf::programs::XdpContext;
use lb_common::abi::{neighbour_row, port_row};
use lb_common::csum;
use lb_common::env::{Env, Hook, Work};
use lb_common::family::{Family, Ip6, V4, V6};
use lb_common::frame::{Direct, DirectMut, Frame};
use lb_common::plain::Plain;
use lb_common::plain::xdp::{concerns, plain};
use lb_common::verdict::XdpStep;
use lb_common::xdp::{
    Choice, L3, begin_flow, choose, concerns_xdp, ends, for_tc, least, send, visit, xdp_in,
};

use crate::env::{BpfEnv, config};
use crate::frame::{FAR, read};
use crate::head::BpfHead;
use crate::neighbour::{AF_INET, AF_INET6};
use crate::reroute::words;
use crate::steps::{Mine, scratch};

/// A packet in front of the stack. What is not in its first buffer is not there.
struct XdpFrame {
    ctx: *mut xdp_md,
}

impl XdpFrame {
    /// Start and end of the packet memory; in assembly for the reasons of `SkbFrame::bounds`.
    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        let (data, end): (u64, u64);
        // SAFETY: 32-bit loads at the offsets of `data` and `data_end` in `struct xdp_md`, which the verifier turns into
        // packet pointers.
        unsafe {
            asm!("{0} = *(u32 *)({1} + 0)", out(reg) data, in(reg) self.ctx, options(readonly, nostack, preserves_flags));
            asm!("{0} = *(u32 *)({1} + 4)", out(reg) end, in(reg) self.ctx, options(readonly, nostack, preserves_flags));
        }
        (data as usize, end as usize)
    }

    /// Where N bytes at `off` begin; `None`: they are not in the packet.
    #[inline(always)]
    fn at<const N: usize>(&self, off: usize) -> Option<usize> {
        if off > FAR {
            return None;
        }
        let (data, end) = self.bounds();
        let mut off = off as u64;
        // SAFETY: as in `SkbFrame::load`.
        unsafe { asm!("{0} &= 0x1ff", inout(reg) off, options(pure, nomem, nostack)) };
        let start = data + off as usize;
        (start + N <= end).then_some(start)
    }
}

impl Frame for XdpFrame {
    #[inline(always)]
    fn load<const N: usize>(&self, off: usize) -> Option<[u8; N]> {
        let start = self.at::<N>(off)?;
        // SAFETY: inside the packet, just compared.
        Some(unsafe { read(start) })
    }

    #[inline(always)]
    fn store<const N: usize>(&mut self, off: usize, bytes: &[u8; N]) -> Option<()> {
        let start = self.at::<N>(off)?;
        let mut done = 0;
        // SAFETY: each store is inside the packet, just compared; the kernel allows any alignment there.
        unsafe {
            while done + 4 <= N {
                let word =
                    u32::from_ne_bytes([bytes[done], bytes[done + 1], bytes[done + 2], bytes[done + 3]]);
                asm!("*(u32 *)({0} + 0) = {1}", in(reg) start + done, in(reg) word as u64, options(nostack, preserves_flags));
                done += 4;
            }
            while done + 2 <= N {
                let word = u16::from_ne_bytes([bytes[done], bytes[done + 1]]);
                asm!("*(u16 *)({0} + 0) = {1}", in(reg) start + done, in(reg) word as u64, options(nostack, preserves_flags));
                done += 2;
            }
            if done < N {
                *((start + done) as *mut u8) = bytes[done];
            }
        }
        Some(())
    }

    #[inline(always)]
    fn fix_l3(&mut self, off: usize, delta: u16) -> Option<()> {
        let old = u16::from_ne_bytes(self.load(off)?);
        self.store(off, &csum::apply(old, delta).to_ne_bytes())
    }

    #[inline(always)]
    fn fix_l4(&mut self, off: usize, addr: u16, port: u16, udp: bool) -> Option<()> {
        let old = u16::from_ne_bytes(self.load(off)?);
        let new = csum::apply_l4(old, addr, port, udp);
        self.store(off, &new.to_ne_bytes())
    }

    #[inline(always)]
    fn pull(&mut self) {}

    /// The room is behind the Ethernet header, of which only the type is moved: its addresses are new in any case.
    #[inline(always)]
    fn wrap(&mut self, _l3: usize, len: usize, _udp: bool) -> Option<()> {
        let ethertype: [u8; 2] = self.load(12)?;
        // SAFETY: the program's context, and a helper that moves the beginning of its packet.
        let failed = unsafe { bpf_xdp_adjust_head(self.ctx, -(len as i32)) };
        if failed != 0 {
            return None;
        }
        self.store(12, &ethertype)
    }

    // TC unwraps
    #[inline(always)]
    fn unwrap(&mut self, _l3: usize, _len: usize) -> Option<()> {
        None
    }

    #[inline(always)]
    fn resize(&mut self, _len: usize) -> Option<()> {
        None
    }
}

impl Direct for XdpFrame {
    type Head<'a, const N: usize> = BpfHead<'a, N>;

    #[inline(always)]
    fn head<const N: usize>(&self) -> Option<BpfHead<'_, N>> {
        let (data, end) = self.bounds();
        // SAFETY: packet memory, just compared, and borrowed from this frame.
        (data + N <= end).then(|| unsafe { BpfHead::new(data) })
    }

    #[inline(always)]
    fn store_words<const N: usize>(&mut self, off: usize, words: &[u32; N]) -> Option<()> {
        for (number, word) in words.iter().enumerate() {
            self.store(off + 4 * number, &word.to_ne_bytes())?;
        }
        Some(())
    }
}

impl DirectMut for XdpFrame {
    type HeadMut<'a, const N: usize> = BpfHead<'a, N>;

    #[inline(always)]
    fn head_mut<const N: usize>(&mut self) -> Option<BpfHead<'_, N>> {
        self.head()
    }
}

/// A frame that came in.
#[inline(always)]
pub fn ingress(ctx: &XdpContext) -> u32 {
    let ctx = ctx.ctx;
    let frame = XdpFrame { ctx };
    let Some(ethertype) = frame.load::<2>(12) else { return XDP_PASS };
    // tagged frames are for a device above, or of another protocol
    match u16::from_be_bytes(ethertype) {
        V4::ETHERTYPE => match plain4(ctx) {
            GENERAL => carry4(XdpStep::of(in4(ctx)), ctx),
            action => action,
        },
        V6::ETHERTYPE => match plain6(ctx) {
            GENERAL => carry6(XdpStep::of(in6(ctx)), ctx),
            action => action,
        },
        _ => XDP_PASS,
    }
}

/// No action of XDP: the packet is not plain.
const GENERAL: u32 = u32::MAX;

macro_rules! family {
    ($family:ident: $plain:ident $name:ident $carry:ident $send:ident $row:ident $visit:ident $choose:ident $near:ident $way:ident $begin:ident) => {
        /// The plain path of one family, not inlined for the same reason as the general one.
        #[inline(never)]
        fn $plain(ctx: *mut xdp_md) -> u32 {
            let mut frame = XdpFrame { ctx };
            let roles = match concerns::<$family>(&mut frame, &BpfEnv) {
                None => return GENERAL,
                Some(0) => return XDP_PASS,
                Some(roles) => roles,
            };
            let Some(config) = config() else { return XDP_PASS };
            // SAFETY: the program's context.
            let ifindex = unsafe { (*ctx).ingress_ifindex };
            match plain::<$family>(&mut frame, &mut BpfEnv, config, ifindex, roles) {
                Plain::Up => XDP_PASS,
                Plain::General | Plain::Rewritten | Plain::Drop => GENERAL,
                Plain::Sent(ifindex) => leave(ctx, ifindex),
            }
        }

        /// One family: a function of its own, so that its stack is free again when a rare step runs.
        #[inline(never)]
        fn $name(ctx: *mut xdp_md) -> u32 {
            let frame = XdpFrame { ctx };
            let roles = concerns_xdp::<$family>(&frame, &BpfEnv);
            if roles == 0 {
                return XdpStep::Up as u32;
            }
            let (Some(config), Some(scratch)) = (config(), scratch()) else { return XdpStep::Up as u32 };
            let work = $family::mine(scratch);
            // SAFETY: the program's context.
            let ifindex = unsafe { (*ctx).ingress_ifindex };
            work.hook = Hook { l3: L3, ifindex, ingress_ifindex: ifindex };
            xdp_in::<$family>(&frame, &mut BpfEnv, config, work, roles) as u32
        }

        /// Not inlined, for the same reason.
        #[inline(never)]
        fn $send(ctx: *mut xdp_md) -> u32 {
            let Some(scratch) = scratch() else { return XdpStep::Up as u32 };
            let work = $family::mine(scratch);
            match send::<$family>(&mut XdpFrame { ctx }, &mut BpfEnv, work) {
                XdpStep::Sent => leave(ctx, work.way.ifindex),
                XdpStep::Drop => XDP_DROP,
                _ => XDP_PASS,
            }
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $row(ctx: *mut xdp_md) -> u32 {
            let Some(scratch) = scratch() else { return 0 };
            let work = $family::mine(scratch);
            let mtu = <BpfEnv as Env<$family>>::next_hop(&BpfEnv, port_row(work.hook.ifindex)).mtu;
            let (src, dst) = ends(work);
            route::<$family>(ctx, work, src, dst, least(work, mtu))
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $visit(row: u32) -> u32 {
            let Some(scratch) = scratch() else { return XdpStep::Up as u32 };
            let work = $family::mine(scratch);
            visit::<$family>(&mut BpfEnv, work, row) as u32
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $choose() -> u32 {
            let (Some(config), Some(scratch)) = (config(), scratch()) else { return 0 };
            match choose::<$family>(&mut BpfEnv, config, $family::mine(scratch)) {
                Choice::Tc => 0,
                Choice::Near => 1,
                Choice::Far => 2,
                Choice::Dsr => 3,
            }
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $near() -> u32 {
            let (Some(config), Some(scratch)) = (config(), scratch()) else { return 0 };
            for_tc::<$family>(&mut BpfEnv, config, $family::mine(scratch)) as u32
        }

        /// The row of the next hop of a new flow's request (`request` is 0), or of the replies to what leaves by the row
        /// `request`. One at a time: two inlined look-ups of routes need a stack that Linux 6.1 does not give.
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $way(ctx: *mut xdp_md, request: u32) -> u32 {
            let Some(scratch) = scratch() else { return 0 };
            let work = $family::mine(scratch);
            let (client, frontend, backend) = (work.flow.client, work.flow.frontend, work.flow.backend);
            let (src, dst, from) = match request {
                0 => (client, backend, port_row(work.hook.ifindex)),
                row => (frontend, client, row), // replies come in there
            };
            let mtu = <BpfEnv as Env<$family>>::next_hop(&BpfEnv, from).mtu;
            route::<$family>(ctx, work, src, dst, mtu) & 0xffff
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $begin(rows: u32) -> u32 {
            let (Some(config), Some(scratch)) = (config(), scratch()) else { return XdpStep::Up as u32 };
            let work = $family::mine(scratch);
            begin_flow::<$family>(&mut BpfEnv, config, work, rows & 0xffff, rows >> 16) as u32
        }

        /// Carries out a step and those that it leads to.
        #[inline(always)]
        fn $carry(first: XdpStep, ctx: *mut xdp_md) -> u32 {
            let mut step = first;
            if step == XdpStep::Up {
                return XDP_PASS;
            }
            if step == XdpStep::Visit {
                step = XdpStep::of($visit($row(ctx)));
            }
            if step == XdpStep::NewFlow {
                step = match $choose() {
                    0 => XdpStep::Up,
                    1 => XdpStep::of($near()),
                    3 => XdpStep::of($visit($row(ctx))),
                    _ => {
                        let request = $way(ctx, 0);
                        let reply = if request == 0 { 0 } else { $way(ctx, request) };
                        XdpStep::of($begin(request | reply << 16))
                    }
                };
            }
            match step {
                XdpStep::Send => $send(ctx),
                XdpStep::Drop => XDP_DROP,
                _ => XDP_PASS,
            }
        }
    };
}

family!(V4: plain4 in4 carry4 send4 lb_xdp_row4 lb_xdp_visit4 lb_xdp_choose4 lb_xdp_near4 lb_xdp_way4 lb_xdp_begin4);
family!(V6: plain6 in6 carry6 send6 lb_xdp_row6 lb_xdp_visit6 lb_xdp_choose6 lb_xdp_near6 lb_xdp_way6 lb_xdp_begin6);

/// Out by an interface.
#[inline(always)]
fn leave(ctx: *mut xdp_md, ifindex: u32) -> u32 {
    // SAFETY: the program's context, and a helper.
    unsafe { if (*ctx).ingress_ifindex == ifindex { XDP_TX } else { bpf_redirect(ifindex, 0) as u32 } }
}

/// Row of the next hop between these two, as the kernel routes a packet of `mtu` bytes that came in by the hook's
/// interface, with all rules, and in the upper half how many bytes that route takes; 0: not forwarded, too large, unresolved, or no row that agrees with the kernel's
/// neighbour.
#[inline(always)]
fn route<F: Family>(ctx: *mut xdp_md, work: &Work<F>, src: F::Addr, dst: F::Addr, mtu: u16) -> u32
where
    BpfEnv: Env<F>,
{
    let mut route = MaybeUninit::uninit();
    let route = blank(&mut route);
    route.family = if F::V6 { AF_INET6 } else { AF_INET };
    route.l4_protocol = work.packet.proto;
    route.__bindgen_anon_1.tot_len = mtu;
    route.ifindex = work.hook.ifindex;
    route.__bindgen_anon_3.ipv6_src = words(F::wide(src));
    route.__bindgen_anon_4.ipv6_dst = words(F::wide(dst));
    // SAFETY: the program's context and a structure of ours of the given size.
    let found = unsafe { fib_lookup(ctx.cast(), route, size_of::<bpf_fib_lookup>() as i32, 0) as u32 };
    if found != BPF_FIB_LKUP_RET_SUCCESS {
        return 0;
    }
    // SAFETY: all 16 bytes were written above, and maybe by the helper.
    let [a, b, c, d] = unsafe { route.__bindgen_anon_4.ipv6_dst };
    // the gateway's; an IPv4 route may have an IPv6 one
    let rest = if route.family == AF_INET6 { [b, c, d] } else { [0; 3] };
    let row = neighbour_row(route.ifindex, &bytes([a, rest[0], rest[1], rest[2]]));
    let hop = BpfEnv.next_hop(row);
    // SAFETY: a number that was written above, or by the helper (Linux 5.12).
    let mtu = unsafe { route.__bindgen_anon_1.mtu_result } as u32;
    if hop.ifindex == route.ifindex && hop.dmac == route.dmac { row | mtu << 16 } else { 0 }
}

/// A question to the kernel's routes with nothing in it, cleared by words: the compiler would call a function that goes by
/// bytes (15 ns a time).
#[inline(always)]
fn blank(route: &mut MaybeUninit<bpf_fib_lookup>) -> &mut bpf_fib_lookup {
    const WORDS: usize = size_of::<bpf_fib_lookup>() / size_of::<u32>();
    const { assert!(size_of::<bpf_fib_lookup>() == WORDS * 4 && align_of::<bpf_fib_lookup>() >= 4) }
    let words = route.as_mut_ptr().cast::<u32>();
    // SAFETY: the words are all of the structure, which is aligned for them, and it consists of integers and arrays of
    // them, of each of which zero is a value.
    unsafe {
        for number in 0..WORDS {
            words.add(number).write_volatile(0);
        }
        route.assume_init_mut()
    }
}

/// The inverse of `words`.
#[inline(always)]
fn bytes([a, b, c, d]: [u32; 4]) -> Ip6 {
    let wide = a as u128 | (b as u128) << 32 | (c as u128) << 64 | (d as u128) << 96;
    Ip6 { addr: wide.to_le_bytes() }
}
