//! The developer's door: `cargo xtask COMMAND`. Argument parsing and dispatch only.

mod build;
mod elf;
mod packages;
mod paths;
mod run;
mod toolchain;

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
    },
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::BuildEbpf { force } => build::ebpf(force).map(drop),
    }
}
