//! `lb-agent`: parse, build, run, exit code.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use lb_agent::config::{CheckArgs, Cli, Command, StatusArgs};
use lb_agent::datapath::{ObjectSource, check};
use lb_agent::status::{Tables, client};

use lb_agent::net::Wishes;
use lb_agent::{dump, glue, leftovers, tasks};
use serde_json::json;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_unset| EnvFilter::new("info,kube_client=error"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    match act(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lb-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn act(cli: Cli) -> Result<()> {
    match cli.command {
        Command::Run(args) => {
            if let Some(file) = &args.write_config_to {
                return std::fs::write(file, args.effective()?)
                    .map_err(|error| anyhow::anyhow!("cannot write {}: {error}", file.display()));
            }
            let warnings = glue::prepare_node(&args.duties()?);
            if args.init_only {
                return if warnings.is_empty() { Ok(()) } else { Err(anyhow::anyhow!(warnings.join("; "))) };
            }
            let mut config = args.resolve()?;
            config.warnings.extend(warnings);
            let kernel = glue::open(&config)?;
            let (xdp, fast) = (config.settings.xdp.clone(), config.settings.fast);
            let wishes = Wishes { xdp, fast };
            // Plans and system calls occupy one thread; health must answer meanwhile.
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            let ended = runtime.block_on(async {
                let stop = tasks::stop_signal()?;
                anyhow::Ok(tasks::agent(config, kernel, |net| glue::watch_net(net, wishes), stop).await?)
            });
            runtime.shutdown_background();
            ended
        }
        Command::Cleanup(args) if args.kube_proxy => {
            for line in leftovers::remove().map_err(anyhow::Error::msg)? {
                println!("{line}");
            }
            Ok(())
        }
        Command::Cleanup(args) => Ok(glue::cleanup(&args.kernel)?),
        Command::Status(args) => status(&args),
        Command::Dump(kernel) => {
            print!("{}", dump::dump(&glue::read(&kernel)?));
            Ok(())
        }
        Command::Check(args) => check(&args),
    }
}

fn check(args: &CheckArgs) -> Result<()> {
    let check = check::check(&ObjectSource::from_env())?;
    print!("{}", if args.json { format!("{}\n", serde_json::to_string(&check)?) } else { check.text() });
    anyhow::ensure!(
        check.refused() == 0,
        "Linux {} refuses {} of {} programs",
        check.kernel,
        check.refused(),
        check.programs.len()
    );
    Ok(())
}

fn status(args: &StatusArgs) -> Result<()> {
    let status = match client::ask(args.agent) {
        Ok(status) => status,
        Err(error) => {
            eprintln!("no agent answers ({error}); this is what the kernel holds");
            let look = glue::look(&args.kernel)?;
            let counters: std::collections::BTreeMap<_, _> = look.counters.into_iter().collect();
            let tables = Tables::of(&look.desired);
            let left = leftovers::look().warnings();
            json!({
                "serving": "by the kernel alone", "tables": tables, "usage": look.usage, "counters": counters,
                "leftoverWarnings": left,
            })
        }
    };
    print!("{}", if args.json { format!("{status}\n") } else { client::text(&status) });
    Ok(())
}
