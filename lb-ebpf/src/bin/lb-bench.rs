//! Programs of `cargo xtask bench`: the generator and the sink of live frames, and what ours are measured against.
//! Never part of the agent. Frames are those of `lb_common::bench`.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

use core::arch::asm;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::btf_maps::{Array, HashMap, PerCpuArray};
use aya_ebpf::helpers::generated::{bpf_redirect, bpf_redirect_peer};
use aya_ebpf::macros::{btf_map, cgroup_sock_addr, classifier, xdp};
use aya_ebpf::programs::{SockAddrContext, TcContext, XdpContext};
use lb_common::bench::{
    BenchConfig, BenchKey, BenchPeer, BenchValue, CHECK, COUNTS, Count, DESTINATION, DESTINATION_PORT, ECHO,
    FRAME, IP_CHECK, SOURCE, SOURCE_PORT, TTL, UDP_CHECK, head, intact,
};
use lb_common::csum;

#[btf_map]
pub static BENCH_CONFIG: Array<BenchConfig, 1> = Array::new();
#[btf_map]
pub static BENCH_COUNTS: PerCpuArray<u64, { COUNTS as usize }> = PerCpuArray::new();
/// Flow -> backend, for the ideal program.
#[btf_map]
pub static BENCH_FLOWS: HashMap<BenchKey, BenchValue, 131_072> = HashMap::new();
/// Last byte of a pod's address -> where it is, for the ideal between pods.
#[btf_map]
pub static BENCH_PEERS: Array<BenchPeer, 256> = Array::new();

/// Offsets of `data`, `data_end` and the interface in `struct xdp_md` and `struct __sk_buff`.
const XDP: [usize; 3] = [0, 4, 12];
const SKB: [usize; 3] = [76, 80, 40];
const IPV4: u64 = 0x0008;

/// `TCX_NEXT`: programs behind this one see the packet.
const NEXT: i32 = -1;

/// The first [`FRAME`] bytes of a packet.
#[derive(Clone, Copy)]
struct Bytes(usize);

impl Bytes {
    /// `None`: the packet is shorter. `at` is [`XDP`] or [`SKB`].
    #[inline(always)]
    fn of<C: EbpfContext>(ctx: &C, at: [usize; 3]) -> Option<Self> {
        let data = field(ctx, at[0]);
        (data + FRAME <= field(ctx, at[1])).then_some(Self(data))
    }

    #[inline(always)]
    fn half(self, at: usize) -> u64 {
        let value: u64;
        // SAFETY: `at` is below FRAME - 1 everywhere, and `of` has compared; so in the functions below.
        unsafe {
            asm!("{0} = *(u16 *)({1} + 0)", out(reg) value, in(reg) self.0 + at, options(readonly, nostack, preserves_flags))
        };
        value
    }

    #[inline(always)]
    fn word(self, at: usize) -> u64 {
        let value: u64;
        // SAFETY: as above.
        unsafe {
            asm!("{0} = *(u32 *)({1} + 0)", out(reg) value, in(reg) self.0 + at, options(readonly, nostack, preserves_flags))
        };
        value
    }

    #[inline(always)]
    fn set_half(self, at: usize, value: u64) {
        // SAFETY: as above.
        unsafe {
            asm!("*(u16 *)({0} + 0) = {1}", in(reg) self.0 + at, in(reg) value, options(nostack, preserves_flags))
        };
    }

    #[inline(always)]
    fn set_word(self, at: usize, value: u64) {
        // SAFETY: as above.
        unsafe {
            asm!("*(u32 *)({0} + 0) = {1}", in(reg) self.0 + at, in(reg) value, options(nostack, preserves_flags))
        };
    }

    #[inline(always)]
    fn all(self) -> [u8; FRAME] {
        let mut bytes = [0; FRAME];
        let (words, _) = bytes.as_chunks_mut::<4>();
        let mut number = 0;
        while number < FRAME / 4 {
            words[number] = (self.word(number * 4) as u32).to_ne_bytes();
            number += 1;
        }
        bytes
    }

    /// Writes the first bytes of `from`, as many as `upto` says, a multiple of 4.
    #[inline(always)]
    fn write<const N: usize>(self, from: &[u8; N], upto: usize) {
        let (words, _) = from.as_chunks::<4>();
        let mut number = 0;
        while number < upto / 4 {
            self.set_word(number * 4, u32::from_ne_bytes(words[number]) as u64);
            number += 1;
        }
    }

    /// The packet goes back where it came from.
    #[inline(always)]
    fn turn(self) {
        let macs = [self.word(0), self.half(4), self.half(6), self.word(8)];
        self.set_word(0, macs[2] | (macs[3] & 0xffff) << 16);
        self.set_half(4, macs[3] >> 16);
        self.set_half(6, macs[0] & 0xffff);
        self.set_word(8, macs[0] >> 16 | macs[1] << 16);
        let (source, destination) = (self.word(SOURCE), self.word(DESTINATION));
        self.set_word(SOURCE, destination);
        self.set_word(DESTINATION, source);
        let (source, destination) = (self.half(SOURCE_PORT), self.half(DESTINATION_PORT));
        self.set_half(SOURCE_PORT, destination);
        self.set_half(DESTINATION_PORT, source);
    }
}

/// A 32-bit field of the context.
#[inline(always)]
fn field<C: EbpfContext>(ctx: &C, at: usize) -> usize {
    let value: u64;
    // SAFETY: the offsets are those of fields that the verifier lets the program read.
    unsafe {
        match at {
            0 => {
                asm!("{0} = *(u32 *)({1} + 0)", out(reg) value, in(reg) ctx.as_ptr(), options(readonly, nostack, preserves_flags))
            }
            4 => {
                asm!("{0} = *(u32 *)({1} + 4)", out(reg) value, in(reg) ctx.as_ptr(), options(readonly, nostack, preserves_flags))
            }
            12 => {
                asm!("{0} = *(u32 *)({1} + 12)", out(reg) value, in(reg) ctx.as_ptr(), options(readonly, nostack, preserves_flags))
            }
            40 => {
                asm!("{0} = *(u32 *)({1} + 40)", out(reg) value, in(reg) ctx.as_ptr(), options(readonly, nostack, preserves_flags))
            }
            76 => {
                asm!("{0} = *(u32 *)({1} + 76)", out(reg) value, in(reg) ctx.as_ptr(), options(readonly, nostack, preserves_flags))
            }
            _ => {
                asm!("{0} = *(u32 *)({1} + 80)", out(reg) value, in(reg) ctx.as_ptr(), options(readonly, nostack, preserves_flags))
            }
        }
    }
    value as usize
}

#[inline(always)]
fn config() -> Option<&'static BenchConfig> {
    BENCH_CONFIG.get(0)
}

/// Counts, and says how many there were.
#[inline(always)]
fn count(what: Count) -> u32 {
    match BENCH_COUNTS.get_ptr_mut(what as u32) {
        // SAFETY: the entry is this CPU's own, and no program of ours is interrupted by another one.
        Some(entry) => unsafe {
            *entry += 1;
            *entry as u32
        },
        None => 0,
    }
}

/// Writes the next frame over whatever the page holds, and sends it.
#[xdp]
pub fn bench_gen(ctx: XdpContext) -> u32 {
    let (Some(bytes), Some(config)) = (Bytes::of(&ctx, XDP), config()) else { return XDP_DROP };
    let head = head(config, count(Count::Made));
    bytes.write(&config.frame, 44);
    bytes.set_half(IP_CHECK, u16::from_ne_bytes(head.checks[0]) as u64);
    bytes.set_word(SOURCE, u32::from_ne_bytes(head.key.addresses[0]) as u64);
    bytes.set_word(DESTINATION, u32::from_ne_bytes(head.key.addresses[1]) as u64);
    bytes.set_half(SOURCE_PORT, u16::from_ne_bytes(head.key.ports[0]) as u64);
    bytes.set_half(DESTINATION_PORT, u16::from_ne_bytes(head.key.ports[1]) as u64);
    bytes.set_half(UDP_CHECK, u16::from_ne_bytes(head.checks[1]) as u64);
    XDP_TX
}

/// Whether it is one of the bench's packets, and arrived as it should.
#[inline(always)]
fn arrived(bytes: Bytes, config: &BenchConfig) -> bool {
    let destination = u32::from_be(bytes.word(DESTINATION) as u32);
    if bytes.half(12) != IPV4
        || destination.wrapping_sub(config.backend) >= config.backends
        || u16::from_be(bytes.half(DESTINATION_PORT) as u16) as u32 != config.backend_port
    {
        return false;
    }
    if config.flags & CHECK != 0 {
        let source = u32::from_be(bytes.word(SOURCE) as u32);
        if !intact(&bytes.all()) {
            count(Count::Spoilt);
            return false;
        }
        if config.source != 0 && source != config.source {
            count(Count::Stray);
            return false;
        }
    }
    count(Count::Arrived);
    true
}

/// The end of a packet's way, or its turning point.
#[xdp]
pub fn bench_sink(ctx: XdpContext) -> u32 {
    let (Some(bytes), Some(config)) = (Bytes::of(&ctx, XDP), config()) else { return XDP_DROP };
    if arrived(bytes, config) && config.flags & ECHO != 0 {
        bytes.turn();
        // not XDP_TX, which reaches only a peer with a program
        // SAFETY: the helper takes numbers.
        return unsafe { bpf_redirect(field(&ctx, XDP[2]) as u32, 0) } as u32;
    }
    XDP_DROP
}

/// The same for a pod, whose veth has no XDP program.
#[classifier]
pub fn bench_echo(ctx: TcContext) -> i32 {
    let (Some(bytes), Some(config)) = (Bytes::of(&ctx, SKB), config()) else { return NEXT };
    if !arrived(bytes, config) {
        return NEXT;
    }
    bytes.turn();
    // SAFETY: the helper takes numbers.
    unsafe { bpf_redirect(field(&ctx, SKB[2]) as u32, 0) as i32 }
}

/// Where replies arrive, beside the generator: what it had sent must come back turned.
#[xdp]
pub fn bench_back(ctx: XdpContext) -> u32 {
    let (Some(bytes), Some(config)) = (Bytes::of(&ctx, XDP), config()) else { return XDP_PASS };
    let source = u32::from_be(bytes.word(SOURCE) as u32);
    let port = u16::from_be(bytes.half(SOURCE_PORT) as u16) as u32;
    if bytes.half(12) != IPV4
        || source.wrapping_sub(config.target) >= config.targets
        || port != config.target_port
    {
        return XDP_PASS;
    }
    let spoilt = config.flags & CHECK != 0 && !intact(&bytes.all());
    count(if spoilt { Count::BackSpoilt } else { Count::Back });
    XDP_DROP
}

/// The limit: nothing but a drop.
#[xdp]
pub fn bench_drop(ctx: XdpContext) -> u32 {
    let Some(bytes) = Bytes::of(&ctx, XDP) else { return XDP_PASS };
    if bytes.half(12) != IPV4 {
        return XDP_PASS;
    }
    count(Count::Dropped);
    XDP_DROP
}

/// The limit of forwarding: sent on as it is, but for the MAC addresses.
#[xdp]
pub fn bench_redirect(ctx: XdpContext) -> u32 {
    let (Some(bytes), Some(config)) = (Bytes::of(&ctx, XDP), config()) else { return XDP_PASS };
    if bytes.half(12) != IPV4 {
        return XDP_PASS;
    }
    bytes.write(&config.next, 12);
    // SAFETY: the helper takes numbers.
    unsafe { bpf_redirect(config.out, 0) as u32 }
}

/// The ideal balancer: one look-up, DNAT, checksums, TTL, MAC addresses, redirect. No state, no checks.
#[xdp]
pub fn bench_ideal(ctx: XdpContext) -> u32 {
    let (Some(bytes), Some(config)) = (Bytes::of(&ctx, XDP), config()) else { return XDP_PASS };
    let words = |at: usize| (bytes.word(at) as u32).to_ne_bytes();
    let ports = [bytes.half(SOURCE_PORT), bytes.half(DESTINATION_PORT)];
    let key = BenchKey {
        addresses: [words(SOURCE), words(DESTINATION)],
        ports: ports.map(|port| (port as u16).to_ne_bytes()),
    };
    if bytes.half(12) != IPV4 {
        return XDP_PASS;
    }
    let Some(backend) = BENCH_FLOWS.get_ptr(&key) else { return XDP_PASS };
    // SAFETY: entries are never removed while packets are sent.
    let backend = unsafe { *backend };
    let addr = csum::fold(
        csum::sum_words(&backend.address) + !csum::fold(csum::sum_words(&key.addresses[1])) as u32,
    );
    let port = csum::word_delta(key.ports[1], backend.port);
    // time to live and protocol are one word
    let hops = (bytes.half(TTL) as u16).to_ne_bytes();
    let fewer = [hops[0].wrapping_sub(1), hops[1]];
    let ip = csum::apply(csum::apply(bytes.half(IP_CHECK) as u16, addr), csum::word_delta(hops, fewer));
    let udp = csum::apply_l4(bytes.half(UDP_CHECK) as u16, addr, port, true);
    bytes.set_half(TTL, u16::from_ne_bytes(fewer) as u64);
    bytes.set_half(IP_CHECK, ip as u64);
    bytes.set_half(UDP_CHECK, udp as u64);
    bytes.set_word(DESTINATION, u32::from_ne_bytes(backend.address) as u64);
    bytes.set_half(DESTINATION_PORT, u16::from_ne_bytes(backend.port) as u64);
    bytes.write(&config.next, 12);
    // SAFETY: the helper takes numbers.
    unsafe { bpf_redirect(config.out, 0) as u32 }
}

/// The ideal between two pods of a node: straight into the other one's namespace.
/// Does nothing: what a program at a hook costs at least.
#[classifier]
pub fn bench_pass(_ctx: TcContext) -> i32 {
    -1
}

#[classifier]
pub fn bench_peer(ctx: TcContext) -> i32 {
    let Some(bytes) = Bytes::of(&ctx, SKB) else { return NEXT };
    if bytes.half(12) != IPV4 {
        return NEXT;
    }
    let Some(peer) = BENCH_PEERS.get((bytes.word(DESTINATION) >> 24) as u32) else { return NEXT };
    if peer.ifindex == 0 {
        return NEXT;
    }
    bytes.set_word(0, u32::from_ne_bytes([peer.mac[0], peer.mac[1], peer.mac[2], peer.mac[3]]) as u64);
    bytes.set_half(4, u16::from_ne_bytes([peer.mac[4], peer.mac[5]]) as u64);
    // SAFETY: the helper takes numbers.
    unsafe { bpf_redirect_peer(peer.ifindex, 0) as i32 }
}

/// A socket hook that does nothing.
#[cgroup_sock_addr(connect4)]
pub fn bench_connect4(_ctx: SockAddrContext) -> i32 {
    1
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // never linked: the build refuses an object with a panic path
    loop {}
}

/// Redirects are for GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
