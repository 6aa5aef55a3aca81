//! Socket programs: translate the address that a socket of the host is aimed at, and back.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{BPF_ANY, bpf_sock_addr};
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval};
use aya_ebpf::programs::SockAddrContext;
use lb_common::abi::{SK_MASQ, SkConnected, SkPeer};
use lb_common::env::Env;
use lb_common::family::{Family, Ip4, Ip6, V4, V6};
use lb_common::packet::{TCP, UDP};
use lb_common::sock::{self, Owner, connect, recvmsg};
use lb_common::verdict::SockVerdict;

use crate::env::{BpfEnv, config};
use crate::maps::{LB_NETNS, LB_SK_CONN, LB_SK_PEER};

/// The hook lets the system call go on.
const PROCEED: i32 = 1;
/// The hook fails it, with the error of `bpf_set_retval`.
const FAIL: i32 = 0;
/// The hook lets the system call go on; what the socket sends is to be masqueraded. See [`connected`] and [`sent`]: a
/// step of its own, when the others have left the stack.
const MASQUERADE: i32 = 2;
const _: () = assert!(PROCEED + true as i32 == MASQUERADE);
/// No hook returns this.
const NONE: i32 = -1;
const ECONNREFUSED: i32 = 111;
const SOCK_STREAM: u32 = 1;
const SOCK_DGRAM: u32 = 2;

/// An address family at the socket hooks.
trait SockFamily: Family {
    fn get(sa: *mut bpf_sock_addr) -> Self::Addr;
    fn set(sa: *mut bpf_sock_addr, addr: Self::Addr);
    /// The source address that the socket has; zero = none.
    fn source(sa: *mut bpf_sock_addr) -> Self::Addr;
    /// The source address of a datagram, at a sendmsg hook of this family: the socket's, or one that the datagram was
    /// given (`IP_PKTINFO`); zero = none.
    fn datagram_source(sa: *mut bpf_sock_addr) -> Self::Addr;
}

impl SockFamily for V4 {
    #[inline(always)]
    fn get(sa: *mut bpf_sock_addr) -> Ip4 {
        // SAFETY: the program's context.
        unsafe { (*sa).user_ip4 }.to_ne_bytes().into()
    }
    #[inline(always)]
    fn set(sa: *mut bpf_sock_addr, addr: Ip4) {
        // SAFETY: the program's context, a writable field.
        unsafe { (*sa).user_ip4 = u32::from_ne_bytes(addr.addr) };
    }
    #[inline(always)]
    fn source(sa: *mut bpf_sock_addr) -> Ip4 {
        // SAFETY: the program's context; the verifier checks the socket pointer for null where we do.
        unsafe {
            let sk = (*sa).__bindgen_anon_1.sk;
            if sk.is_null() { V4::ZERO } else { (*sk).src_ip4.to_ne_bytes().into() }
        }
    }
    #[inline(always)]
    fn datagram_source(sa: *mut bpf_sock_addr) -> Ip4 {
        // SAFETY: the program's context.
        unsafe { (*sa).msg_src_ip4 }.to_ne_bytes().into()
    }
}

/// IPv6 words of the context: 32-bit accesses only, as the verifier wants.
#[inline(always)]
fn words(a: [u32; 4]) -> Ip6 {
    let [a, b, c, d] = a.map(u32::to_ne_bytes);
    [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3]].into()
}

impl SockFamily for V6 {
    #[inline(always)]
    fn get(sa: *mut bpf_sock_addr) -> Ip6 {
        // SAFETY: the program's context; volatile keeps the four loads apart.
        unsafe {
            let ip = &raw const (*sa).user_ip6;
            let at = |n: usize| ip.cast::<u32>().add(n).read_volatile();
            words([at(0), at(1), at(2), at(3)])
        }
    }
    #[inline(always)]
    fn set(sa: *mut bpf_sock_addr, Ip6 { addr: a }: Ip6) {
        // SAFETY: the program's context, writable words; volatile keeps the four stores apart.
        unsafe {
            let ip = (&raw mut (*sa).user_ip6).cast::<u32>();
            ip.write_volatile(u32::from_ne_bytes([a[0], a[1], a[2], a[3]]));
            ip.add(1).write_volatile(u32::from_ne_bytes([a[4], a[5], a[6], a[7]]));
            ip.add(2).write_volatile(u32::from_ne_bytes([a[8], a[9], a[10], a[11]]));
            ip.add(3).write_volatile(u32::from_ne_bytes([a[12], a[13], a[14], a[15]]));
        }
    }
    #[inline(always)]
    fn source(sa: *mut bpf_sock_addr) -> Ip6 {
        // SAFETY: as for IPv4; volatile keeps the four loads apart.
        unsafe {
            let sk = (*sa).__bindgen_anon_1.sk;
            if sk.is_null() {
                return V6::ZERO;
            }
            let ip = (&raw const (*sk).src_ip6).cast::<u32>();
            let at = |n: usize| ip.add(n).read_volatile();
            words([at(0), at(1), at(2), at(3)])
        }
    }
    #[inline(always)]
    fn datagram_source(sa: *mut bpf_sock_addr) -> Ip6 {
        // SAFETY: the program's context; volatile keeps the four loads apart.
        unsafe {
            let ip = (&raw const (*sa).msg_src_ip6).cast::<u32>();
            let at = |n: usize| ip.add(n).read_volatile();
            words([at(0), at(1), at(2), at(3)])
        }
    }
}

/// An IPv4-mapped address (RFC 4291 section 2.5.5.2), which is IPv4 on the wire.
#[inline(always)]
fn mapped(sa: *mut bpf_sock_addr) -> Option<Ip4> {
    let [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d] = V6::get(sa).addr else { return None };
    Some([a, b, c, d].into())
}

#[inline(always)]
fn set_mapped(sa: *mut bpf_sock_addr, Ip4 { addr: [a, b, c, d] }: Ip4) {
    V6::set(sa, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d].into());
}

// Functions of their own, for the sake of the stack.

#[inline(never)]
fn connect_mapped(ctx: &SockAddrContext, addr: Ip4) -> i32 {
    let sa = ctx.sock_addr;
    connect_to::<V4>(ctx, addr, V4::source(sa), |a| set_mapped(sa, a))
}

#[inline(never)]
fn connect_native(ctx: &SockAddrContext) -> i32 {
    let sa = ctx.sock_addr;
    connect_to::<V6>(ctx, V6::get(sa), V6::source(sa), |a| V6::set(sa, a))
}

#[inline(never)]
fn connected_mapped(ctx: &SockAddrContext) -> i32 {
    let sa = ctx.sock_addr;
    match mapped(sa) {
        Some(backend) => connected::<V4>(ctx, MASQUERADE, V4::source(sa), backend),
        None => PROCEED,
    }
}

#[inline(never)]
fn connected_native(ctx: &SockAddrContext) -> i32 {
    let sa = ctx.sock_addr;
    connected::<V6>(ctx, MASQUERADE, V6::source(sa), V6::get(sa))
}

#[inline(never)]
fn sent_mapped(ctx: &SockAddrContext) -> i32 {
    let sa = ctx.sock_addr;
    match mapped(sa) {
        Some(backend) => sent::<V4>(MASQUERADE, V4::source(sa), backend),
        None => PROCEED,
    }
}

#[inline(never)]
fn sent_native(ctx: &SockAddrContext) -> i32 {
    let sa = ctx.sock_addr;
    sent::<V6>(MASQUERADE, V6::datagram_source(sa), V6::get(sa))
}

#[inline(never)]
fn send_native6(ctx: &SockAddrContext) -> i32 {
    let sa = ctx.sock_addr;
    send_to::<V6>(ctx, V6::get(sa), V6::datagram_source(sa), |a| V6::set(sa, a), keep6)
}

/// `NONE` = there is no earlier choice.
#[inline(never)]
fn send_known6(ctx: &SockAddrContext) -> i32 {
    let sa = ctx.sock_addr;
    send_known::<V6>(ctx, V6::get(sa), |a| V6::set(sa, a)).unwrap_or(NONE)
}

#[inline(never)]
fn send_mapped(ctx: &SockAddrContext, addr: Ip4) -> i32 {
    let sa = ctx.sock_addr;
    match send_known::<V4>(ctx, addr, |a| set_mapped(sa, a)) {
        Some(code) => code,
        None => send_to::<V4>(ctx, addr, V4::source(sa), |a| set_mapped(sa, a), keep_mapped),
    }
}

/// Whose socket it is; `None` = sockets of this network namespace are not translated (invariant I4). The host's
/// namespace is listed by its cookie, pods' never are.
#[inline(always)]
fn owner(ctx: &SockAddrContext) -> Option<Owner> {
    // SAFETY: not preallocated hash elements outlive this run; the helper takes the context.
    unsafe {
        let cookie = bpf_get_netns_cookie(ctx.as_ptr());
        if LB_NETNS.get(cookie).is_some() {
            Some(Owner::Host)
        } else if LB_NETNS.get(0).is_some() {
            Some(Owner::Pod(cookie))
        } else {
            None
        }
    }
}

/// The address may be some frontend's; false is certain. To be asked before anything else: most sockets are aimed at others.
#[inline(always)]
fn may_be_frontend<F: Family>(addr: F::Addr) -> bool
where
    BpfEnv: Env<F>,
{
    sock::may_be_frontend(Env::<F>::roles(&BpfEnv, addr))
}

/// TCP or UDP, by the socket's type; `None` = neither.
#[inline(always)]
fn proto(sa: *mut bpf_sock_addr) -> Option<u8> {
    // SAFETY: the program's context.
    let (kind, protocol) = unsafe { ((*sa).type_, (*sa).protocol) };
    match (kind, protocol) {
        (SOCK_STREAM, 6) => Some(TCP),
        (SOCK_DGRAM, 17) => Some(UDP),
        _ => None,
    }
}

#[inline(always)]
fn port(sa: *mut bpf_sock_addr) -> [u8; 2] {
    // SAFETY: the program's context. The port lies in network order in the low half.
    let port = unsafe { (*sa).user_port } as u16;
    port.to_ne_bytes()
}

#[inline(always)]
fn set_port(sa: *mut bpf_sock_addr, port: [u8; 2]) {
    // SAFETY: the program's context, a writable field.
    unsafe { (*sa).user_port = u16::from_ne_bytes(port) as u32 };
}

#[inline(always)]
fn refuse() -> i32 {
    // SAFETY: a helper.
    unsafe { bpf_set_retval(-ECONNREFUSED) };
    FAIL
}

#[inline(always)]
fn known<A: Eq + Copy>(addr: A, none: A) -> Option<A> {
    (addr != none).then_some(addr)
}

/// Remembers the frontend of a connected socket for getpeername() and recvmsg(); false = there was no memory. Not
/// inlined: a BPF stack is small.
#[inline(never)]
fn remember<F: Family>(ctx: &SockAddrContext, addr: F::Addr, port: [u8; 2], proto: u8) -> bool {
    let family = if F::V6 { 6 } else { 4 };
    let mut peer = SkPeer { addr: F::wide(addr), port, family, proto, snat_port: [0; 2], flags: 0 };
    // SAFETY: the helper takes the context's socket; the storage belongs to it.
    unsafe {
        let stored = LB_SK_PEER.get_or_insert_ptr_mut(ctx, Some(&mut peer));
        if stored.is_null() {
            return false;
        }
        *stored = peer;
    }
    true
}

/// After connect() from `source` was aimed at a backend: carries out [`MASQUERADE`]. Gives what the hook returns.
#[inline(always)]
fn connected<F: Family>(ctx: &SockAddrContext, code: i32, source: F::Addr, backend: F::Addr) -> i32
where
    BpfEnv: Env<F>,
{
    if code == MASQUERADE {
        // SAFETY: the storage belongs to the context's socket.
        unsafe {
            let stored = LB_SK_PEER.get_ptr_mut(ctx);
            if !stored.is_null() {
                (*stored).flags = SK_MASQ;
            }
        }
        return sent::<F>(code, source, backend);
    }
    code
}

/// After a datagram from `source` was aimed at a backend: carries out [`MASQUERADE`]. Gives what the hook returns.
#[inline(always)]
fn sent<F: Family>(code: i32, source: F::Addr, backend: F::Addr) -> i32
where
    BpfEnv: Env<F>,
{
    if code == MASQUERADE {
        sock::masquerade::<F>(&mut BpfEnv, known(source, F::ZERO), backend);
        return PROCEED;
    }
    code
}

/// Forgets it: the socket is connected to something else now. Nothing but a look into the socket if it was never aimed
/// at a frontend, as most are not.
#[inline(always)]
fn unremember(ctx: &SockAddrContext) {
    // SAFETY: as in `remember`; a port of zero matches no peer.
    let was_udp = unsafe {
        let stored = LB_SK_PEER.get_ptr_mut(ctx);
        if stored.is_null() || (*stored).family == 0 {
            return;
        }
        (*stored).port = [0; 2];
        (*stored).family = 0;
        (*stored).proto == UDP
    };
    if was_udp {
        let _ = LB_SK_CONN.remove(cookie(ctx)); // the table may have dropped it by itself
    }
}

/// connect() to what is not ours to translate.
#[inline(always)]
fn connect_elsewhere(ctx: &SockAddrContext) -> i32 {
    unremember(ctx);
    PROCEED
}

/// connect(): `addr` is where to, `set` writes the backend's address.
#[inline(always)]
fn connect_to<F: SockFamily>(
    ctx: &SockAddrContext,
    addr: F::Addr,
    source: F::Addr,
    set: impl Fn(F::Addr),
) -> i32
where
    BpfEnv: Env<F>,
{
    let sa = ctx.sock_addr;
    let (Some(owner), Some(config), Some(proto)) = (owner(ctx), config(), proto(sa)) else { return PROCEED };
    let to = port(sa);
    match connect::<F>(&mut BpfEnv, config, owner, known(source, F::ZERO), addr, to, proto) {
        SockVerdict::Leave => connect_elsewhere(ctx),
        SockVerdict::Refuse(_) => refuse(),
        SockVerdict::Deliver { addr: backend, port, backend: id, generation, masquerade } => {
            // the agent sees the host's sockets only; never without LB_SK_PEER, see `unremember`
            if remember::<F>(ctx, addr, to, proto) && proto == UDP && owner == Owner::Host {
                // a failure: the socket is not told when its endpoint goes
                let connected = SkConnected { backend: id, generation };
                let _ = LB_SK_CONN.insert(cookie(ctx), connected, BPF_ANY as u64);
            }
            set(backend);
            set_port(sa, port);
            PROCEED + masquerade as i32
        }
    }
}

/// sendmsg() from `source` with a destination that this socket has not sent to lately: both halves of [`sock::sendmsg`]. `keep` is the
/// second one, a function of its own (see [`kept`]); it gets the frontend and the backend's id and generation.
#[inline(always)]
fn send_to<F: SockFamily>(
    ctx: &SockAddrContext,
    addr: F::Addr,
    source: F::Addr,
    set: impl Fn(F::Addr),
    keep: fn(&SockAddrContext, &F::Addr, u32, u32, u32),
) -> i32
where
    BpfEnv: Env<F>,
{
    let sa = ctx.sock_addr;
    let (Some(owner), Some(config), Some(UDP)) = (owner(ctx), config(), proto(sa)) else { return PROCEED };
    let (source, to) = (known(source, F::ZERO), port(sa));
    let verdict = connect::<F>(&mut BpfEnv, config, owner, source, addr, to, UDP);
    let done = carry_out(sa, verdict, set);
    if let SockVerdict::Deliver { backend, generation, masquerade, .. } = verdict {
        // a BPF function takes five arguments
        let to = u16::from_ne_bytes(to) as u32 | (masquerade as u32) << 16;
        keep(ctx, &addr, to, backend, generation);
    }
    done
}

/// Remembers the choice; the backend's address is in the context already, and is handed on as `backend`.
#[inline(always)]
fn kept<F: SockFamily>(
    ctx: &SockAddrContext,
    (addr, port_and_masquerade): (F::Addr, u32),
    backend: F::Addr,
    id: u32,
    generation: u32,
) where
    BpfEnv: Env<F>,
{
    let to = (backend, port(ctx.sock_addr));
    let frontend = (addr, (port_and_masquerade as u16).to_ne_bytes());
    let masquerade = port_and_masquerade >> 16 != 0;
    sock::keep::<F>(&mut BpfEnv, cookie(ctx), frontend, to, id, generation, masquerade);
}

#[inline(never)]
fn keep4(ctx: &SockAddrContext, addr: &Ip4, port: u32, id: u32, generation: u32) {
    kept::<V4>(ctx, (*addr, port), V4::get(ctx.sock_addr), id, generation);
}

#[inline(never)]
fn keep_mapped(ctx: &SockAddrContext, addr: &Ip4, port: u32, id: u32, generation: u32) {
    if let Some(backend) = mapped(ctx.sock_addr) {
        kept::<V4>(ctx, (*addr, port), backend, id, generation);
    }
}

#[inline(never)]
fn keep6(ctx: &SockAddrContext, addr: &Ip6, port: u32, id: u32, generation: u32) {
    kept::<V6>(ctx, (*addr, port), V6::get(ctx.sock_addr), id, generation);
}

/// sendmsg() with a destination: by an earlier choice. `None` = there is none.
#[inline(always)]
fn send_known<F: SockFamily>(ctx: &SockAddrContext, addr: F::Addr, set: impl Fn(F::Addr)) -> Option<i32>
where
    BpfEnv: Env<F>,
{
    let sa = ctx.sock_addr;
    let verdict = sock::known::<F>(&mut BpfEnv, cookie(ctx), addr, port(sa))?;
    Some(carry_out(sa, verdict, set))
}

#[inline(always)]
fn carry_out<A>(sa: *mut bpf_sock_addr, verdict: SockVerdict<A>, set: impl Fn(A)) -> i32 {
    match verdict {
        SockVerdict::Leave => PROCEED,
        SockVerdict::Refuse(_) => refuse(),
        SockVerdict::Deliver { addr, port, masquerade, .. } => {
            set(addr);
            set_port(sa, port);
            PROCEED + masquerade as i32
        }
    }
}

#[inline(always)]
fn cookie(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the helper takes the context.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}

/// recvmsg() that tells the source.
#[inline(always)]
fn receive_from<F: SockFamily>(ctx: &SockAddrContext, addr: F::Addr, set: impl Fn(F::Addr))
where
    BpfEnv: Env<F>,
{
    let sa = ctx.sock_addr;
    if let Some((frontend, port)) = recvmsg::<F>(&mut BpfEnv, cookie(ctx), addr, port(sa)) {
        set(F::narrow(frontend));
        set_port(sa, port);
        return;
    }
    // a socket whose connection was dissolved hears others than its former peer
    if is_connected(sa) {
        peer_of::<F>(ctx, set);
    }
}

/// The socket has a peer.
#[inline(always)]
fn is_connected(sa: *mut bpf_sock_addr) -> bool {
    // SAFETY: the program's context; the verifier checks the socket pointer for null where we do.
    unsafe {
        let sk = (*sa).__bindgen_anon_1.sk;
        !sk.is_null() && (*sk).dst_port != 0
    }
}

/// The frontend that a connected socket was aimed at.
#[inline(always)]
fn peer_of<F: SockFamily>(ctx: &SockAddrContext, set: impl Fn(F::Addr)) {
    // SAFETY: the storage belongs to the context's socket.
    let stored = unsafe { LB_SK_PEER.get_ptr_mut(ctx) };
    if stored.is_null() {
        return;
    }
    // SAFETY: not null, checked above.
    let peer = unsafe { *stored };
    if peer.family == if F::V6 { 6 } else { 4 } {
        set(F::narrow(peer.addr));
        set_port(ctx.sock_addr, peer.port);
    }
}

#[inline(always)]
pub fn connect4(ctx: &SockAddrContext) -> i32 {
    let sa = ctx.sock_addr;
    if !may_be_frontend::<V4>(V4::get(sa)) {
        return connect_elsewhere(ctx);
    }
    let code = connect_to::<V4>(ctx, V4::get(sa), V4::source(sa), |a| V4::set(sa, a));
    connected::<V4>(ctx, code, V4::source(sa), V4::get(sa))
}

#[inline(always)]
pub fn connect6(ctx: &SockAddrContext) -> i32 {
    let sa = ctx.sock_addr;
    match mapped(sa) {
        Some(addr) if !may_be_frontend::<V4>(addr) => connect_elsewhere(ctx),
        Some(addr) => match connect_mapped(ctx, addr) {
            MASQUERADE => connected_mapped(ctx),
            code => code,
        },
        None if !may_be_frontend::<V6>(V6::get(sa)) => connect_elsewhere(ctx),
        None => match connect_native(ctx) {
            MASQUERADE => connected_native(ctx),
            code => code,
        },
    }
}

#[inline(always)]
pub fn sendmsg4(ctx: &SockAddrContext) -> i32 {
    let sa = ctx.sock_addr;
    if !may_be_frontend::<V4>(V4::get(sa)) || owner(ctx).is_none() {
        return PROCEED;
    }
    let code = match send_known::<V4>(ctx, V4::get(sa), |a| V4::set(sa, a)) {
        Some(code) => code,
        None => send_to::<V4>(ctx, V4::get(sa), V4::datagram_source(sa), |a| V4::set(sa, a), keep4),
    };
    sent::<V4>(code, V4::datagram_source(sa), V4::get(sa))
}

#[inline(always)]
pub fn sendmsg6(ctx: &SockAddrContext) -> i32 {
    let sa = ctx.sock_addr;
    if let Some(addr) = mapped(sa) {
        if !may_be_frontend::<V4>(addr) || owner(ctx).is_none() {
            return PROCEED;
        }
        return match send_mapped(ctx, addr) {
            MASQUERADE => sent_mapped(ctx),
            code => end(code),
        };
    }
    if !may_be_frontend::<V6>(V6::get(sa)) || owner(ctx).is_none() {
        return PROCEED;
    }
    let code = match send_known6(ctx) {
        NONE => send_native6(ctx),
        code => code,
    };
    if code == MASQUERADE { sent_native(ctx) } else { end(code) }
}

/// A code of a step as the program's: constants, because Linux 6.1 does not conclude from "not [`MASQUERADE`]" that it is one
/// of the two that a program may return.
#[inline(always)]
fn end(code: i32) -> i32 {
    if code == FAIL { FAIL } else { PROCEED }
}

#[inline(always)]
pub fn recvmsg4(ctx: &SockAddrContext) -> i32 {
    let sa = ctx.sock_addr;
    if owner(ctx).is_some() {
        receive_from::<V4>(ctx, V4::get(sa), |a| V4::set(sa, a));
    }
    PROCEED
}

#[inline(always)]
pub fn recvmsg6(ctx: &SockAddrContext) -> i32 {
    let sa = ctx.sock_addr;
    if owner(ctx).is_some() {
        match mapped(sa) {
            Some(addr) => receive_from::<V4>(ctx, addr, |a| set_mapped(sa, a)),
            None => receive_from::<V6>(ctx, V6::get(sa), |a| V6::set(sa, a)),
        }
    }
    PROCEED
}

#[inline(always)]
pub fn getpeer4(ctx: &SockAddrContext) -> i32 {
    let sa = ctx.sock_addr;
    if owner(ctx).is_some() {
        peer_of::<V4>(ctx, |a| V4::set(sa, a));
    }
    PROCEED
}

#[inline(always)]
pub fn getpeer6(ctx: &SockAddrContext) -> i32 {
    let sa = ctx.sock_addr;
    if owner(ctx).is_some() {
        match mapped(sa) {
            Some(_) => peer_of::<V4>(ctx, |a| set_mapped(sa, a)),
            None => peer_of::<V6>(ctx, |a| V6::set(sa, a)),
        }
    }
    PROCEED
}
