//! `cargo xtask test`: the levels from the bottom to the top, each with its counts.

mod behaviour;
pub(crate) mod cargo;
pub(crate) mod conformance;

use std::time::Instant;

use anyhow::Result;
use clap::ValueEnum;

use crate::run::is_root;
use crate::{bench, build, cluster, kernels, kube, netns, packages, paths, verify};

/// A level of tests; docs/testing.md says what each is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Level {
    /// Formatting and lints
    Lint,
    /// Tables, properties, scripts: no root
    Unit,
    /// Every kernel program before the verifier, against its budget
    Verify,
    /// Every kernel program before the verifiers of Linux 6.1 and 6.12, under QEMU; no traffic there
    Kernels,
    /// Golden packets through the programs
    Prog,
    /// Clusters of network namespaces with real sockets
    Netns,
    /// The agent fed by a real kube-apiserver: outages, bootstrap, rights
    Api,
    /// The conformance kit against the agent, fed by manifests
    Conformance,
    /// The conformance kit against the agent, fed by a real kube-apiserver
    ConformanceApi,
    /// Kubernetes' own Service specs, the quick list, in a real cluster served by the image and manifests we ship
    Cluster,
    /// What direct traffic pays for the agent's presence
    Cost,
}

/// Counts of a level.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) skipped: usize,
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// Runs the given levels, or all; the last line is the sum of their counts. Returns whether nothing failed.
pub(crate) fn run(levels: &[Level]) -> bool {
    let levels = if levels.is_empty() { Level::value_variants() } else { levels };
    let begin = Instant::now();
    println!("== build");
    let built = build::agent().map(drop);
    let mut rows = vec![("build".to_owned(), Tally { passed: 1, ..Tally::default() }, begin.elapsed())];
    if let Err(error) = &built {
        println!("  FAIL  {error:#}");
        rows[0].1 = Tally { failed: 1, ..Tally::default() };
    }
    for level in levels {
        let name = level.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
        println!("\n== {name}");
        let begin = Instant::now();
        let tally = if built.is_err() {
            skip("what is to be tested was not built")
        } else {
            level.run().unwrap_or_else(|error| {
                println!("  FAIL  {error:#}");
                Tally { failed: 1, ..Tally::default() }
            })
        };
        println!("   {name}: {tally} ({:.1} s)", begin.elapsed().as_secs_f64());
        rows.push((name, tally, begin.elapsed()));
    }
    let mut total = Tally::default();
    println!("\n== all levels ({:.0} s)", begin.elapsed().as_secs_f64());
    for (name, tally, time) in rows {
        println!("   {name:12} {tally} ({:.1} s)", time.as_secs_f64());
        total += tally;
    }
    println!("{total}");
    total.failed == 0
}

/// One thing that this machine does not allow.
pub(crate) fn skip(reason: &str) -> Tally {
    println!("  SKIP  {reason}");
    Tally { skipped: 1, ..Tally::default() }
}

impl Level {
    fn run(self) -> Result<Tally> {
        match self {
            Self::Lint => return cargo::lint(),
            Self::Unit => return cargo::unit(),
            _ if !is_root() => return Ok(skip("needs root")),
            _ => {}
        }
        match self {
            Self::Verify => {
                let verify::Outcome { passed, failed } = verify::run(false)?;
                return Ok(Tally { passed, failed, skipped: 0 });
            }
            Self::Kernels => return kernels::run(&paths::agent(), kernels::VERSIONS),
            Self::Prog => return cargo::prog(),
            _ => packages::need(packages::LAB)?,
        }
        match self {
            Self::Netns => {
                let (passed, failed) = netns::run(&paths::agent(), None)?;
                Ok(Tally { passed, failed, skipped: 0 })
            }
            Self::Api | Self::ConformanceApi => {
                packages::need(packages::CONTROL_PLANE)?;
                match kube::binaries()? {
                    Err(reason) => Ok(skip(&reason)),
                    Ok(folder) if self == Self::Api => {
                        let (passed, failed) = netns::api::run(&paths::agent(), &folder, None)?;
                        Ok(Tally { passed, failed, skipped: 0 })
                    }
                    Ok(folder) => conformance::run(conformance::Feed::Api(folder), None, None),
                }
            }
            Self::Conformance => conformance::run(conformance::Feed::Manifests, None, None),
            Self::Cluster => cluster::level::run(),
            _ => {
                bench::direct(&paths::agent())?;
                Ok(Tally { passed: 1, ..Tally::default() })
            }
        }
    }
}
