//! The ideal program in a ring: what it makes of one destination is the next one's key.

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use anyhow::{Result, ensure};
use lb_common::bench::{BenchConfig, BenchKey, BenchValue, FRAME, head, intact};

use super::super::programs::Programs;
use super::super::testrun::test_run;
use super::{TURNS, ifindex};

/// Destinations of one address, each a port.
const PORTS: usize = 1000;
const XDP_REDIRECT: u32 = 4;

/// The program with its ring.
pub(super) struct Ideal {
    program: OwnedFd,
    /// Keeps maps, and the program attached.
    _programs: Programs,
    flows: usize,
    ifindex: u32,
    place: usize,
}

impl Ideal {
    /// A ring of so many flows, at least two.
    pub(super) fn new(flows: usize, at: u32) -> Result<Self> {
        let flows = flows.max(2);
        let mut programs = Programs::load()?;
        programs.configure(BenchConfig { out: at, ..config(0) })?;
        programs.flows((0..flows).map(|number| {
            let next = config((number + 1) % flows);
            let address = Ipv4Addr::from(next.target).octets();
            let port = (next.target_port as u16).to_be_bytes();
            (key(number), BenchValue { address, port, pad: [0; 2] })
        }))?;
        programs.attach("bench_ideal", ifindex("up3")?)?;
        let program = programs.xdp("bench_ideal")?;
        Ok(Self { program, _programs: programs, flows, ifindex: at, place: 0 })
    }

    /// A packet through so many flows.
    pub(super) fn call(&mut self) -> Result<f64> {
        let ran = test_run(&self.program, &config(self.place).whole(0), self.ifindex, TURNS)?;
        self.place = (self.place + TURNS as usize) % self.flows;
        let frame: [u8; FRAME] = ran.frame.as_slice().try_into()?;
        let want = config(self.place).whole(0);
        ensure!(
            ran.code == XDP_REDIRECT && intact(&frame) && frame[26..38] == want[26..38],
            "the ideal program: code {}, {frame:02x?}",
            ran.code
        );
        Ok(ran.ns)
    }
}

/// A generator of the packet to destination `number`.
fn config(number: usize) -> BenchConfig {
    BenchConfig {
        client: Ipv4Addr::new(198, 18, 0, 1).into(),
        target: u32::from(Ipv4Addr::new(203, 0, 113, 1)) + (number / PORTS) as u32,
        target_port: (2000 + number % PORTS) as u32,
        ..BenchConfig::between([2; 6], [4; 6])
    }
}

fn key(number: usize) -> BenchKey {
    head(&config(number), 0).key
}
