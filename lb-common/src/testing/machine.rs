//! [`Machine`]: a node whose kernel is a [`FakeEnv`].

use std::boxed::Box;
use std::vec::Vec;

use super::fake::{FakeEnv, Side};
use crate::abi::LbConfig;
use crate::env::{Hook, Scratch};
use crate::family::{V4, V6};
use crate::frame::{Direct, Frame, Note};
use crate::plain::{self, Plain};
use crate::tc::{concerns_in, concerns_out, tc_in, tc_out, walk};
use crate::verdict::{Verdict, XdpStep};
use crate::xdp;

/// A TC hook.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    In,
    Out,
}

/// Tables, configuration, and the work space that one packet hands to the next, as on a CPU.
#[derive(Clone, Debug)]
pub struct Machine {
    pub env: FakeEnv,
    pub config: LbConfig,
    pub scratch: Box<Scratch>,
    /// Packets that the plain path sent.
    pub plain: u64,
    /// The note that the packet of the last run carries.
    pub note: Option<Note>,
}

/// A frame that keeps a note.
struct Noted<'a> {
    bytes: &'a mut Vec<u8>,
    note: Option<Note>,
}

impl Frame for Noted<'_> {
    fn load<const N: usize>(&self, off: usize) -> Option<[u8; N]> {
        self.bytes.load(off)
    }

    fn store<const N: usize>(&mut self, off: usize, bytes: &[u8; N]) -> Option<()> {
        self.bytes.store(off, bytes)
    }

    fn fix_l3(&mut self, off: usize, delta: u16) -> Option<()> {
        self.bytes.fix_l3(off, delta)
    }

    fn fix_l4(&mut self, off: usize, addr: u16, port: u16, udp: bool) -> Option<()> {
        self.bytes.fix_l4(off, addr, port, udp)
    }

    fn pull(&mut self) {
        self.bytes.pull();
    }

    fn wrap(&mut self, l3: usize, len: usize, udp: bool) -> Option<()> {
        self.bytes.wrap(l3, len, udp)
    }

    fn unwrap(&mut self, l3: usize, len: usize) -> Option<()> {
        self.bytes.unwrap(l3, len)
    }

    fn resize(&mut self, len: usize) -> Option<()> {
        Frame::resize(self.bytes, len)
    }

    fn note(&mut self, note: Note) {
        self.note = Some(note);
    }
}

impl Direct for Noted<'_> {
    type Head<'a, const N: usize>
        = <Vec<u8> as Direct>::Head<'a, N>
    where
        Self: 'a;

    fn head<const N: usize>(&self) -> Option<Self::Head<'_, N>> {
        self.bytes.head()
    }

    fn store_words<const N: usize>(&mut self, off: usize, words: &[u32; N]) -> Option<()> {
        self.bytes.store_words(off, words)
    }
}

impl Machine {
    #[must_use]
    pub fn new(env: FakeEnv, config: LbConfig) -> Machine {
        Machine { env, config, scratch: Box::default(), plain: 0, note: None }
    }

    /// What happens to a frame at a hook; dispatched as the programs do it.
    pub fn run(&mut self, direction: Direction, hook: Hook, frame: &mut Vec<u8>) -> Verdict {
        self.note = None;
        self.meet(direction, hook, frame)
    }

    /// What happens to the packet of the last run, which the stack forwards, at egress.
    pub fn run_on(&mut self, hook: Hook, frame: &mut Vec<u8>) -> Verdict {
        self.meet(Direction::Out, hook, frame)
    }

    fn meet(&mut self, direction: Direction, hook: Hook, frame: &mut Vec<u8>) -> Verdict {
        let note = self.note.take();
        let fate = match frame.get(12..14) {
            _ if hook.l3 != xdp::L3 => Plain::General,
            Some([0x08, 0x00]) => self.plain_tc::<V4>(direction, frame),
            Some([0x86, 0xdd]) => self.plain_tc::<V6>(direction, frame),
            _ => Plain::General,
        };
        self.plain += matches!(fate, Plain::Rewritten | Plain::Sent(_)) as u64;
        match fate {
            Plain::Up | Plain::Rewritten => Verdict::Pass,
            Plain::Sent(ifindex) => Verdict::Peer(ifindex),
            Plain::Drop => Verdict::Drop,
            Plain::General => {
                self.note = note;
                self.general(direction, hook, frame)
            }
        }
    }

    fn plain_tc<F: Side>(&mut self, direction: Direction, frame: &mut Vec<u8>) -> Plain {
        let mut frame = Noted { bytes: frame, note: None };
        let plain = match direction {
            Direction::In => plain::tc::inward::<F>(&mut frame, &mut self.env, &self.config),
            Direction::Out => plain::tc::outward::<F>(&mut frame, &mut self.env, &self.config),
        };
        self.note = frame.note;
        plain
    }

    /// [`Machine::run`] without the plain path.
    pub fn run_generally(&mut self, direction: Direction, hook: Hook, frame: &mut Vec<u8>) -> Verdict {
        self.note = None;
        self.general(direction, hook, frame)
    }

    fn general(&mut self, direction: Direction, hook: Hook, frame: &mut Vec<u8>) -> Verdict {
        let v6 = match hook.l3 {
            0 => match frame.first().map(|byte| byte >> 4) {
                Some(4) => false,
                Some(6) => true,
                _ => return Verdict::Pass,
            },
            _ => match frame.get(12..14) {
                Some([0x08, 0x00]) => false,
                Some([0x86, 0xdd]) => true,
                _ => return Verdict::Pass,
            },
        };
        if v6 { self.story::<V6>(direction, hook, frame) } else { self.story::<V4>(direction, hook, frame) }
    }

    /// What happens to a frame at XDP of an interface; dispatched as the program does it.
    pub fn run_xdp(&mut self, ifindex: u32, frame: &mut Vec<u8>) -> XdpStep {
        match frame.get(12..14) {
            Some([0x08, 0x00]) => self.plain::<V4>(ifindex, frame),
            Some([0x86, 0xdd]) => self.plain::<V6>(ifindex, frame),
            _ => XdpStep::Up,
        }
    }

    /// [`Machine::run_xdp`] without the plain path.
    pub fn run_xdp_generally(&mut self, ifindex: u32, frame: &mut Vec<u8>) -> XdpStep {
        match frame.get(12..14) {
            Some([0x08, 0x00]) => self.xdp::<V4>(ifindex, frame),
            Some([0x86, 0xdd]) => self.xdp::<V6>(ifindex, frame),
            _ => XdpStep::Up,
        }
    }

    fn plain<F: Side>(&mut self, ifindex: u32, frame: &mut Vec<u8>) -> XdpStep {
        let fate = match plain::xdp::concerns::<F>(frame, &self.env) {
            None => Plain::General,
            Some(0) => Plain::Up,
            Some(roles) => plain::xdp::plain::<F>(frame, &mut self.env, &self.config, ifindex, roles),
        };
        match fate {
            Plain::Up => XdpStep::Up,
            Plain::General | Plain::Rewritten | Plain::Drop => self.xdp::<F>(ifindex, frame),
            Plain::Sent(ifindex) => {
                self.plain += 1;
                F::work(&mut self.scratch).way.ifindex = ifindex;
                XdpStep::Sent
            }
        }
    }

    fn xdp<F: Side>(&mut self, ifindex: u32, frame: &mut Vec<u8>) -> XdpStep {
        let work = F::work(&mut self.scratch);
        work.hook = Hook { l3: xdp::L3, ifindex, ingress_ifindex: ifindex };
        let roles = xdp::concerns_xdp::<F>(frame, &self.env);
        if roles == 0 {
            return XdpStep::Up;
        }
        let step = xdp::xdp_in::<F>(frame, &mut self.env, &self.config, work, roles);
        xdp::walk::<F>(frame, &mut self.env, &self.config, work, step)
    }

    fn story<F: Side>(&mut self, direction: Direction, hook: Hook, frame: &mut Vec<u8>) -> Verdict {
        let work = F::work(&mut self.scratch);
        work.hook = hook;
        work.note = self.note.take().map_or(0, |note| note as u32);
        let mut frame = Noted { bytes: frame, note: None };
        let frame = &mut frame;
        let concerned = match direction {
            Direction::In => concerns_in::<F>(frame, &self.env, &self.config, work),
            Direction::Out => concerns_out::<F>(frame, &self.env, &self.config, work),
        };
        if !concerned {
            return Verdict::Pass;
        }
        let step = match direction {
            Direction::In => tc_in::<F>(frame, &mut self.env, &self.config, work),
            Direction::Out => tc_out::<F>(frame, &mut self.env, &self.config, work),
        };
        let verdict = walk::<F>(frame, &mut self.env, &self.config, work, step);
        self.note = frame.note;
        verdict
    }
}
