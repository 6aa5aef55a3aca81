//! [`Machine`]: a node whose kernel is a [`FakeEnv`].

use std::boxed::Box;
use std::vec::Vec;

use super::fake::{FakeEnv, Side};
use crate::abi::LbConfig;
use crate::env::{Hook, Scratch};
use crate::family::{V4, V6};
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
}

impl Machine {
    #[must_use]
    pub fn new(env: FakeEnv, config: LbConfig) -> Machine {
        Machine { env, config, scratch: Box::default(), plain: 0 }
    }

    /// What happens to a frame at a hook; dispatched as the programs do it.
    pub fn run(&mut self, direction: Direction, hook: Hook, frame: &mut Vec<u8>) -> Verdict {
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
            Plain::General => self.run_generally(direction, hook, frame),
        }
    }

    fn plain_tc<F: Side>(&mut self, direction: Direction, frame: &mut Vec<u8>) -> Plain {
        match direction {
            Direction::In => plain::tc::inward::<F>(frame, &mut self.env, &self.config),
            Direction::Out => plain::tc::outward::<F>(frame, &mut self.env, &self.config),
        }
    }

    /// [`Machine::run`] without the plain path.
    pub fn run_generally(&mut self, direction: Direction, hook: Hook, frame: &mut Vec<u8>) -> Verdict {
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
        walk::<F>(frame, &mut self.env, &self.config, work, step)
    }
}
