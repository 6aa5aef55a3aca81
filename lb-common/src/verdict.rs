//! What a hook is told to do.

use crate::counter::Counter;

/// What to do next with a packet at a TC hook.
///
/// The rare steps are functions of their own, and the BPF side makes each a global function: the verifier then looks
/// at it once, by itself, instead of once for every way that leads there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
#[repr(u32)]
pub enum Step {
    /// On to the next program and the stack: [`Verdict::Pass`].
    Pass = 0,
    /// Discard: [`Verdict::Drop`].
    Drop = 1,
    /// [`crate::tc::new_flow`].
    NewFlow = 2,
    /// [`crate::tc::last_word`].
    LastWord = 3,
    /// [`crate::tc::to_backend`].
    ToBackend = 4,
    /// [`crate::tc::answer`], for `work.reason`.
    Answer = 5,
    /// [`crate::tc::reset`].
    Reset = 6,
    /// [`crate::tc::guard_reply`].
    GuardReply = 7,
    /// [`crate::tc::fragment`].
    Fragment = 8,
    /// [`crate::straight::straight`].
    Straight = 9,
    /// [`crate::switch::switch`].
    Switch = 10,
    /// [`crate::tc::sctp`].
    Sctp = 11,
    /// [`crate::bound::bound`].
    Bound = 12,
    /// [`crate::tc::start`].
    Start = 13,
    /// [`crate::tc::snat`].
    Snat = 14,
    /// [`crate::bound::bound_snat`].
    BoundSnat = 15,
    /// [`crate::icmp::translate`] at ingress.
    ErrorIn = 16,
    /// [`crate::icmp::translate`] at egress.
    ErrorOut = 17,
    /// On, but by the device that the kernel's routes name for the reply's new source: [`Verdict::Pass`] where nobody
    /// can be asked.
    Reroute = 18,
    /// [`crate::tc::complete`].
    Complete = 19,
    /// Out, by the route to the packet's new destination, never through the stack: [`Verdict::Out`].
    Out = 20,
    /// [`crate::fast::forward`].
    Fast = 24,
    /// Into the pod behind the interface of `work.way`: [`Verdict::Peer`].
    Peer = 25,
    /// [`crate::dsr::unwrap`].
    Unwrap = 28,
    /// To the backend's node in an outer header: [`crate::dsr::wrap`], then out by the route there.
    Wrap = 29,
    /// [`crate::dsr::clamp`].
    Clamp = 30,
    /// [`crate::tc::note`].
    Note = 31,
}

impl Step {
    /// The step with this number; one that does not exist is a pass.
    #[inline(always)]
    pub const fn of(number: u32) -> Step {
        match number {
            1 => Step::Drop,
            2 => Step::NewFlow,
            3 => Step::LastWord,
            4 => Step::ToBackend,
            5 => Step::Answer,
            6 => Step::Reset,
            7 => Step::GuardReply,
            8 => Step::Fragment,
            9 => Step::Straight,
            10 => Step::Switch,
            11 => Step::Sctp,
            12 => Step::Bound,
            13 => Step::Start,
            14 => Step::Snat,
            15 => Step::BoundSnat,
            16 => Step::ErrorIn,
            17 => Step::ErrorOut,
            18 => Step::Reroute,
            19 => Step::Complete,
            20 => Step::Out,
            24 => Step::Fast,
            25 => Step::Peer,
            28 => Step::Unwrap,
            29 => Step::Wrap,
            30 => Step::Clamp,
            31 => Step::Note,
            _ => Step::Pass,
        }
    }
}

/// The fate of a packet at a TC hook. Counting is the pipeline's, carrying out is the hook's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Verdict {
    /// On to the next program and the stack, changed or not (`TCX_NEXT`, invariant I3).
    Pass,
    /// Discard.
    Drop,
    /// The frame now holds an answer to its sender: send it back the way it came.
    Reply,
    /// Both NAT positions are done: send it out by the route to its destination, past the stack.
    Out,
    /// The same, and the frame is addressed: hand it to the other end of this interface, as if it came in there.
    Peer(u32),
}

/// What to do next with a packet at XDP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
#[repr(u32)]
pub enum XdpStep {
    /// To the stack, as it came (invariant I2).
    Up = 0,
    /// Discard.
    Drop = 1,
    /// [`crate::xdp::send`].
    Send = 2,
    /// [`crate::xdp::choose`], then [`crate::xdp::begin_flow`].
    NewFlow = 3,
    /// [`crate::xdp::visit`].
    Visit = 4,
    /// The frame is rewritten, link layer included: out by the interface of `work.way`.
    Sent = 5,
}

impl XdpStep {
    /// The step with this number; one that does not exist goes up.
    #[inline(always)]
    pub const fn of(number: u32) -> XdpStep {
        match number {
            1 => XdpStep::Drop,
            2 => XdpStep::Send,
            3 => XdpStep::NewFlow,
            4 => XdpStep::Visit,
            5 => XdpStep::Sent,
            _ => XdpStep::Up,
        }
    }
}

/// The fate of a connect() or a datagram at a socket hook.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum SockVerdict<A> {
    /// Not aimed at a frontend, or one whose packets are dropped later: leave it.
    Leave,
    /// Aim it at this backend instead.
    Deliver {
        /// Backend address, network order.
        addr: A,
        /// Backend port, network order.
        port: [u8; 2],
        /// Backend id.
        backend: u32,
        /// Its generation.
        generation: u32,
        /// What the socket sends there is to be masqueraded, if it comes from another address than the interface's.
        masquerade: bool,
    },
    /// Fail with ECONNREFUSED.
    Refuse(Counter),
}
