//! Frames through a stand: the gate, and what is measured.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lb_common::bench::{BenchConfig, BenchValue, CHECK, Count, ECHO, FRAME, head};

use super::super::meter::{Meter, pin_to_one_core};
use super::super::testrun::live;
use super::{BACKEND, BACKENDS, Course, FRAMES, POD_PORT, Stand, Way};
use crate::lab::netns::inside;

/// How long lb's flows take until an answered one counts as established.
const SETTLE: Duration = Duration::from_millis(2300);
/// How long frames may be under way.
const PATIENCE: Duration = Duration::from_secs(2);

impl Stand {
    /// Prepares flows, a power of two many: checks that a packet of each arrives as it should, and has stateful ways see
    /// an answer to each.
    fn prime(&mut self, flows: u32) -> Result<()> {
        self.config.flows = flows;
        if self.way == Way::Ideal {
            let config = self.config;
            let one = |number: u32| {
                let address = Ipv4Addr::from(u32::from(BACKEND) + number % BACKENDS).octets();
                (head(&config, number).key, BenchValue { address, port: POD_PORT.to_be_bytes(), pad: [0; 2] })
            };
            self.programs.flows((0..flows).map(one))?;
        }
        self.checked(flows)
    }

    /// The gate: so many frames, each checked where it ends, and its answer, too.
    fn checked(&mut self, frames: u32) -> Result<()> {
        let echo = if self.way.stateful() { ECHO } else { 0 };
        self.programs.configure(BenchConfig { flags: CHECK | echo, ..self.config })?;
        let answered = echo != 0 || self.course != Course::Sink;
        let before = self.counts()?;
        self.send(frames)?;
        let after = self.counts()?;
        let [made, arrived, spoilt, back, back_spoilt, dropped, stray] =
            std::array::from_fn(|at| after[at] - before[at]);
        self.programs.configure(BenchConfig { flags: 0, ..self.config })?;
        ensure!(made == u64::from(frames), "{made} of {frames} frames were made");
        let ended = if self.way == Way::Drop { dropped } else { arrived };
        if ended != made {
            for node in &self.agents {
                eprintln!("{}", node.agent_command(&self.agent, "status").unwrap_or_default());
            }
        }
        ensure!(
            ended == made,
            "{ended} of {made} packets arrived; of others {spoilt} had a wrong checksum, {stray} a \
                                  wrong source"
        );
        ensure!(back_spoilt == 0, "{back_spoilt} answers had a wrong checksum");
        ensure!(!answered || back == made, "{back} of {made} answers came back");
        Ok(())
    }

    fn counts(&self) -> Result<[u64; 7]> {
        let mut counts = [0; 7];
        let all = [
            Count::Made,
            Count::Arrived,
            Count::Spoilt,
            Count::Back,
            Count::BackSpoilt,
            Count::Dropped,
            Count::Stray,
        ];
        for (count, what) in counts.iter_mut().zip(all) {
            *count = self.programs.count(what)?;
        }
        Ok(counts)
    }

    /// Packets that reached their end.
    fn ended(&self) -> Result<u64> {
        self.programs.count(match (self.way, self.course) {
            (Way::Drop, _) => Count::Dropped,
            (_, Course::Sink) => Count::Arrived,
            _ => Count::Back,
        })
    }

    /// Sends frames and waits until they have arrived, or no more do.
    fn send(&self, frames: u32) -> Result<()> {
        let (program, at) = self.source.as_ref().context("no generator")?;
        let before = self.ended()?;
        inside(&self.generator, || {
            pin_to_one_core()?;
            live(program, &[0; FRAME], *at, frames)
        })?;
        let begin = Instant::now();
        let (mut last, mut since) = (self.ended()?, Instant::now());
        while last - before < u64::from(frames) && begin.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(1));
            let now = self.ended()?;
            if now != last {
                (last, since) = (now, Instant::now());
            } else if since.elapsed() > Duration::from_millis(50) {
                break;
            }
        }
        Ok(())
    }

    /// CPU nanoseconds per packet that arrived, or whose answer did.
    ///
    /// # Errors
    /// When more than one of a thousand packets is lost.
    pub(crate) fn slice(&mut self, meter: &Meter, length: Duration) -> Result<f64> {
        let (before, cpu) = (self.ended()?, meter.now()?);
        self.send(self.frames)?;
        let (ended, used) = (self.ended()? - before, meter.now()? - cpu);
        ensure!(
            ended * 1000 >= u64::from(self.frames) * 999,
            "{}: {ended} of {} packets arrived",
            self.name,
            self.frames
        );
        let cost = used as f64 / ended as f64;
        self.frames = ((length.as_nanos() as f64 / cost) as u32).clamp(FRAMES.0, FRAMES.1);
        Ok(cost)
    }
}

/// Prepares so many flows, a power of two, of all stands: each flow is answered, and after a while its second packet
/// makes it an established one. Then every stand is at its gate.
///
/// # Errors
/// When packets get lost or are wrong.
pub(crate) fn prime(stands: &mut [Stand], flows: u32) -> Result<()> {
    for stand in &mut *stands {
        stand.prime(flows).with_context(|| format!("{}, {flows} flows", stand.name))?;
    }
    std::thread::sleep(SETTLE);
    for stand in stands {
        let frames = flows.saturating_mul(2).max(FRAMES.0);
        stand.checked(frames).with_context(|| format!("{}, {flows} known flows", stand.name))?;
    }
    Ok(())
}
