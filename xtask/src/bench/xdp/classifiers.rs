//! What lb's TC programs cost a packet that is not ours, by `BPF_PROG_TEST_RUN`, above a program that only passes.

use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result, ensure};
use aya::programs::SchedClassifier;
use lb_common::abi::names;
use lb_common::packet::ACK;
use lb_common::testing::PacketBuilder;
use lb_common::testing::packets::at;

use super::loaded::Loaded;
use crate::bench::stats::{Case, Effort, measure};
use crate::bench::testrun::test_run_tc;
use crate::lab::xdp::pass_classifier;

/// Turns of a call: the kernel tells whole nanoseconds of their mean, so it is calls that make fractions.
const TURNS: u32 = 250;
const CALLS: usize = 100;
/// To the next program: `TCX_NEXT`.
const NEXT: u32 = u32::MAX;

/// Measures both programs with both families.
///
/// # Errors
/// When the kernel refuses, or a packet is changed or does not pass.
pub(super) fn not_ours(effort: &Effort, kernel: &mut Loaded) -> Result<Case> {
    let empty = pass_classifier()?;
    let ends = |a: &str, b: &str| -> Result<Vec<u8>> {
        Ok(PacketBuilder::tcp(at(a.parse::<IpAddr>()?, 1234), at(b.parse()?, 80), ACK).build())
    };
    let (four, six) = (ends("198.18.0.1", "198.18.0.2")?, ends("2001:db8:ffff::1", "2001:db8:ffff::2")?);
    let mut arms = vec![
        ("empty TC program".to_owned(), empty.try_clone()?, &four),
        ("empty TC program again".to_owned(), empty, &four),
    ];
    for name in [names::LB_TC_IN, names::LB_TC_OUT] {
        for (family, frame) in [("IPv4", &four), ("IPv6", &six)] {
            arms.push((format!("{name}, {family}, not ours"), program(kernel, name)?, frame));
        }
    }
    let names: Vec<String> = arms.iter().map(|arm| arm.0.clone()).collect();
    measure("TC programs, not ours", &names, None, effort, |arm| {
        let (name, program, frame) = &arms[arm];
        let mut slice = 0.0;
        for _ in 0..CALLS {
            let ran = test_run_tc(program, frame, TURNS)?;
            ensure!(ran.code == NEXT && ran.frame == **frame, "{name}: code {}", ran.code);
            slice += ran.ns;
        }
        Ok(slice / CALLS as f64)
    })
}

fn program(kernel: &mut Loaded, name: &str) -> Result<OwnedFd> {
    let program: &mut SchedClassifier =
        kernel.ebpf.program_mut(name).context("no such program")?.try_into()?;
    if program.fd().is_err() {
        program.load().with_context(|| name.to_owned())?;
    }
    Ok(program.fd()?.as_fd().try_clone_to_owned()?)
}
