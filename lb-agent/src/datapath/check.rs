//! What this kernel makes of the programs: each is put before its verifier, nothing is attached or pinned.

use std::fmt::Write as _;

use aya::EbpfLoader;
use aya::programs::{Program, ProgramError, ProgramInfo};
use lb_common::abi::{CFG_CSUM_IPV6, names};
use serde::Serialize;

use super::load::need;
use super::{DatapathError, ObjectSource, attach, probe};

/// What `lb-agent check` found.
#[derive(Debug, Serialize)]
pub struct Check {
    /// `uname -r`.
    pub kernel: String,
    /// Packets are met by TCX links (6.6), else by clsact filters.
    pub tcx: bool,
    /// The kernel keeps offloaded checksums of IPv6 right by itself (6.16).
    pub csum_ipv6: bool,
    /// Every program, in the order of [`names::PROGRAMS`].
    pub programs: Vec<Judged>,
}

/// A program and the verifier's judgement.
#[derive(Debug, Serialize)]
pub struct Judged {
    /// Its name.
    pub program: &'static str,
    /// Instructions that the verifier walked through; `None` when it was refused.
    pub verified: Option<u32>,
    /// Bytes after the kernel's own rewriting; `None` when it was refused.
    pub translated: Option<u32>,
    /// Why it was refused, with all of the verifier's log.
    pub refusal: Option<String>,
}

impl Check {
    /// How many programs were refused.
    #[must_use]
    pub fn refused(&self) -> usize {
        self.programs.iter().filter(|judged| judged.refusal.is_some()).count()
    }

    /// A line for each program, with the end of the verifier's log of a refused one.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!(
            "Linux {}: {}, {}\n",
            self.kernel,
            if self.tcx { "TCX links" } else { "clsact filters (no TCX links: 6.6)" },
            if self.csum_ipv6 { "checksums of IPv6 by the kernel" } else { "checksums of IPv6 by us (6.16)" },
        );
        for judged in &self.programs {
            let line = match (&judged.refusal, judged.verified) {
                (Some(refusal), _) => format!("REFUSED\n{}", end_of(refusal)),
                (None, verified) => format!("{:>7} instructions verified", verified.unwrap_or_default()),
            };
            writeln!(text, "{:16} {line}", judged.program).ok();
        }
        text
    }
}

/// The last lines of a verifier's log: they say what it did not like.
fn end_of(log: &str) -> String {
    const LINES: usize = 12;
    let lines: Vec<&str> = log.lines().collect();
    let end = lines.get(lines.len().saturating_sub(LINES)..).unwrap_or_default();
    end.iter().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}

/// Loads every program, those that not every node needs as well, over maps that nobody else sees, and lets go of them.
///
/// Needs what loading needs (`CAP_BPF`, `CAP_NET_ADMIN`) and the memory of the tables at their built-in capacity.
///
/// # Errors
/// The kernel is too old, or the object or its maps can't be loaded. A refused program is in the answer.
pub fn check(source: &ObjectSource) -> Result<Check, DatapathError> {
    probe::kernel_floor()?;
    let mut ebpf =
        EbpfLoader::new().load(&source.bytes()?).map_err(|error| DatapathError::Load(Box::new(error)))?;
    let mut programs = Vec::new();
    for program in names::PROGRAMS.iter().copied() {
        let judged = match need(&mut ebpf, program) {
            Ok(()) => {
                let info = ebpf.program(program).and_then(info);
                Judged {
                    program,
                    verified: info.as_ref().and_then(ProgramInfo::verified_instruction_count),
                    translated: info.as_ref().and_then(ProgramInfo::size_translated),
                    refusal: None,
                }
            }
            Err(error @ DatapathError::Verifier { .. }) => {
                Judged { program, verified: None, translated: None, refusal: Some(error.to_string()) }
            }
            Err(error) => return Err(error),
        };
        programs.push(judged);
    }
    Ok(Check {
        kernel: probe::release().trim().to_owned(),
        tcx: attach::program_fd(&ebpf, names::LB_TC_IN).is_ok_and(probe::tcx),
        csum_ipv6: probe::config_flags() & CFG_CSUM_IPV6 != 0,
        programs,
    })
}

/// What the kernel tells of a loaded program.
fn info(program: &Program) -> Option<ProgramInfo> {
    let info: Result<_, ProgramError> = match program {
        Program::SchedClassifier(program) => program.info(),
        Program::CgroupSockAddr(program) => program.info(),
        Program::Xdp(program) => program.info(),
        _ => return None,
    };
    info.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_program_is_told_with_the_end_of_the_log() {
        let log: Vec<String> = (0..40).map(|line| format!("line {line}")).collect();
        let judged = |program, verified, refusal| Judged { program, verified, translated: verified, refusal };
        let check = Check {
            kernel: "6.1.0".into(),
            tcx: false,
            csum_ipv6: false,
            programs: vec![
                judged("lb_tc_in", Some(1234), None),
                judged("lb_xdp", None, Some(log.join("\n"))),
            ],
        };
        let text = check.text();
        assert_eq!(check.refused(), 1);
        for part in
            ["Linux 6.1.0: clsact", "lb_tc_in            1234", "lb_xdp           REFUSED\n", "    line 39\n"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("line 27\n"));
    }
}
