//! The developer's door: `cargo xtask COMMAND`. Argument parsing and dispatch only.

mod bench;
mod build;
mod cluster;
mod demo;
mod elf;
mod image;
mod kernels;
mod kube;
mod lab;
mod netns;
mod packages;
mod paths;
mod run;
mod stack;
mod test;
mod toolchain;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Builds, shows and tests lb")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Builds the kernel programs into target/lb-ebpf.o, fetching the tools it needs
    BuildEbpf {
        /// Builds again although nothing changed
        #[arg(long)]
        force: bool,
        /// Builds kernel programs and agent with another layout of their tables, for tests of upgrades
        #[arg(long, conflicts_with = "force")]
        next: bool,
    },
    /// Shows a small cluster of network namespaces served by real agents
    Demo {
        /// Leaves the cluster standing, and says how to look around
        #[arg(long)]
        keep: bool,
        /// Removes clusters that were kept
        #[arg(long, conflicts_with = "keep")]
        remove: bool,
        /// An agent that is built already
        #[arg(long)]
        agent: Option<PathBuf>,
    },
    /// Puts every kernel program before the verifier and compares with lb-ebpf/budget.txt
    Verify {
        /// Writes the budget anew
        #[arg(long)]
        bless: bool,
        /// Asks another kernel instead of this one, booted under QEMU from Debian's packages (6.1, 6.12); can be repeated
        #[arg(long, value_name = "MAJOR.MINOR", conflicts_with = "bless")]
        kernel: Vec<String>,
    },
    /// Runs the tests, all levels or the named ones, and ends with one line of counts
    Test {
        /// Levels to run
        levels: Vec<test::Level>,
    },
    /// Makes a container image of the agent, with its SBOM and licence texts beside it
    Image {
        /// The image's name; `deploy/` asks for the default
        #[arg(long, value_name = "NAME:TAG", default_value_t = image::default_tag())]
        tag: String,
        /// The archive to write; the texts get its name with other endings
        #[arg(long, value_name = "FILE", default_value_os_t = paths::target().join("image/lb-agent.tar"))]
        output: PathBuf,
        /// The C library to link; without it musl, or glibc where musl can't be had
        #[arg(long)]
        libc: Option<image::Libc>,
        /// An agent that is built already; it must be static
        #[arg(long, value_name = "FILE")]
        agent: Option<PathBuf>,
    },
    /// A real Kubernetes of three nodes on this machine, served by lb or by kube-proxy, and its own e2e specs
    #[command(after_help = cluster::HELP)]
    Cluster {
        #[command(subcommand)]
        command: cluster::Command,
    },
    /// Measures lb against plain routing, netfilter's ways and the limits
    #[command(after_help = bench::HELP)]
    Bench(bench::Arguments),
    /// Runs the tests with real sockets alone
    Netns {
        /// Part of the cases' names, or several with commas
        case: Option<String>,
        /// An agent that is built already
        #[arg(long)]
        agent: Option<PathBuf>,
    },
    /// Runs the conformance kit alone, fed by manifests, in all its variants or one
    Conformance {
        /// default, hostile, exact-masquerade, socket-lb-all, xdp, fast
        variant: Option<String>,
        /// Ids of cases, with commas
        #[arg(long)]
        only: Option<String>,
    },
    /// Runs the tests with a real kube-apiserver alone
    Api {
        /// Part of the cases' names
        case: Option<String>,
        /// An agent that is built already
        #[arg(long)]
        agent: Option<PathBuf>,
    },
    /// The servers of a pod of the lab
    #[command(hide = true)]
    Serve {
        #[arg(long)]
        pod: String,
        #[arg(long)]
        node: String,
        #[arg(long, default_value = "::")]
        address: std::net::IpAddr,
        #[arg(long)]
        port: u16,
    },
    /// The client side of a pod or node of the lab
    #[command(hide = true)]
    Worker,
}

fn main() -> ExitCode {
    run::reach_system_programs();
    let done = dispatch(Cli::parse().command);
    lab::janitor::clean();
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE, // counts were printed and are the last line
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all that was counted passed.
fn dispatch(command: Command) -> Result<bool> {
    match command {
        Command::Test { levels } => return Ok(test::run(&levels)),
        Command::BuildEbpf { next: true, .. } => build::agent_next().map(drop),
        Command::BuildEbpf { force, .. } => build::ebpf(force).map(drop),
        Command::Demo { remove: true, .. } => demo::remove(),
        Command::Demo { keep, agent, .. } => demo::run(keep, agent),
        Command::Verify { kernel, .. } if !kernel.is_empty() => {
            let tally = kernels::run(&build::agent()?, &kernel)?;
            println!("{tally}");
            return Ok(tally.failed == 0);
        }
        Command::Verify { bless, .. } => {
            let outcome = verify::run(bless)?;
            return Ok(outcome.failed == 0);
        }
        Command::Image { tag, output, libc, agent } => image::run(&tag, &output, libc, agent),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Netns { case, agent } => {
            packages::need(packages::LAB)?;
            let (passed, failed) = netns::run(&build::agent_or(agent)?, case.as_deref())?;
            println!("{passed} passed, {failed} failed");
            return Ok(failed == 0);
        }
        Command::Conformance { variant, only } => {
            build::agent()?;
            let feed = test::conformance::Feed::Manifests;
            let tally = test::conformance::run(feed, variant.as_deref(), only.as_deref())?;
            println!("{tally}");
            return Ok(tally.failed == 0);
        }
        Command::Cluster { command } => return cluster::act(command),
        Command::Api { case, agent } => {
            packages::need(packages::LAB)?;
            packages::need(packages::CONTROL_PLANE)?;
            let tally = match kube::binaries()? {
                Err(reason) => test::skip(&reason),
                Ok(binaries) => {
                    let (passed, failed) =
                        netns::api::run(&build::agent_or(agent)?, &binaries, case.as_deref())?;
                    test::Tally { passed, failed, skipped: 0 }
                }
            };
            println!("{tally}");
            return Ok(tally.failed == 0);
        }
        Command::Serve { pod, node, address, port } => lab::servers::serve(&pod, &node, address, port),
        Command::Worker => lab::worker::serve(),
    }?;
    Ok(true)
}
