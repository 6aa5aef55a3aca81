//! The kernel programs, one function per hook. No decisions here: see lb-common.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod env;
mod frame;
mod head;
mod maps;
mod neighbour;
mod reroute;
mod sender;
mod sock;
mod steps;
mod tc;
mod xdp;

use aya_ebpf::macros::{cgroup_sock_addr, classifier, xdp};
use aya_ebpf::programs::{SockAddrContext, TcContext, XdpContext};

/// Ethernet header.
const ETHERNET: usize = 14;

#[classifier]
pub fn lb_tc_in(ctx: TcContext) -> i32 {
    tc::ingress::<ETHERNET>(&ctx)
}

#[classifier]
pub fn lb_tc_out(ctx: TcContext) -> i32 {
    tc::egress::<ETHERNET>(&ctx)
}

#[classifier]
pub fn lb_tc_in_l3(ctx: TcContext) -> i32 {
    tc::ingress::<0>(&ctx)
}

#[classifier]
pub fn lb_tc_out_l3(ctx: TcContext) -> i32 {
    tc::egress::<0>(&ctx)
}

#[xdp(frags)]
pub fn lb_xdp(ctx: XdpContext) -> u32 {
    xdp::ingress(&ctx)
}

#[cgroup_sock_addr(connect4)]
pub fn lb_connect4(ctx: SockAddrContext) -> i32 {
    sock::connect4(&ctx)
}

#[cgroup_sock_addr(connect6)]
pub fn lb_connect6(ctx: SockAddrContext) -> i32 {
    sock::connect6(&ctx)
}

#[cgroup_sock_addr(sendmsg4)]
pub fn lb_sendmsg4(ctx: SockAddrContext) -> i32 {
    sock::sendmsg4(&ctx)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn lb_sendmsg6(ctx: SockAddrContext) -> i32 {
    sock::sendmsg6(&ctx)
}

#[cgroup_sock_addr(recvmsg4)]
pub fn lb_recvmsg4(ctx: SockAddrContext) -> i32 {
    sock::recvmsg4(&ctx)
}

#[cgroup_sock_addr(recvmsg6)]
pub fn lb_recvmsg6(ctx: SockAddrContext) -> i32 {
    sock::recvmsg6(&ctx)
}

#[cgroup_sock_addr(getpeername4)]
pub fn lb_getpeer4(ctx: SockAddrContext) -> i32 {
    sock::getpeer4(&ctx)
}

#[cgroup_sock_addr(getpeername6)]
pub fn lb_getpeer6(ctx: SockAddrContext) -> i32 {
    sock::getpeer6(&ctx)
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // never linked: `cargo xtask verify` refuses an object with a panic path
    loop {}
}

/// The helpers that know about checksums and redirects are for GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
