//! `cargo xtask cluster`: a real Kubernetes of three nodes on this machine, and Kubernetes' own tests in it.
//!
//! The scripts in cluster/ do the work and can be called by hand (cluster/README.md). Here is what they need from
//! outside, the order of calls, and the tidying up.

mod lab;
pub(crate) mod level;
mod results;
mod swap;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use clap::{Subcommand, ValueEnum};

use self::lab::Lab;
use crate::run::{is_root, run};

/// What to do with the cluster.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Builds what the cluster is made of, once: about 8 minutes and 3 GiB. `up` does it too where it is missing
    Build,
    /// Brings the cluster up, and a service proxy on every node
    Up {
        /// Number of nodes
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=9))]
        nodes: u8,
        /// Without IPv6
        #[arg(long)]
        ipv4_only: bool,
        /// Which service proxy serves
        #[arg(long, value_enum, default_value = "lb")]
        proxy: Proxy,
        /// An lb-agent that is built already; for the image it must be static
        #[arg(long)]
        agent: Option<PathBuf>,
    },
    /// Puts another service proxy in place; the old one is stopped, and what it left in the kernel removed
    Proxy {
        /// Which
        #[arg(value_enum)]
        proxy: Proxy,
        /// An lb-agent that is built already; for the image it must be static
        #[arg(long)]
        agent: Option<PathBuf>,
    },
    /// Runs the Service specs of Kubernetes' e2e suite; results stay in the cluster's folder
    #[command(after_help = "\
Examples:
  cargo xtask cluster e2e                          the quick list (cluster/quick.txt), 90 s
  cargo xtask cluster e2e full --procs 14          all [sig-network] specs about Services, 11 to 17 minutes
  cargo xtask cluster e2e 'hairpin|ExternalIP'     specs by a regular expression")]
    E2e {
        /// `quick`, `full`, or a regular expression that the specs' names match
        #[arg(default_value = "quick")]
        specs: String,
        /// Specs to leave out, a regular expression; without it those that need another cluster (see e2e.sh)
        #[arg(long)]
        skip: Option<String>,
        /// Specs at a time: they wait more than they work
        #[arg(long, default_value_t = 8)]
        procs: u8,
        /// Folder of the results
        #[arg(long)]
        name: Option<String>,
    },
    /// From kube-proxy to lb and back under traffic, counting what breaks (docs/swap.md)
    Swap {
        /// All nodes at once, instead of one after the other
        #[arg(long)]
        at_once: bool,
        /// Short connections per second, from each of the three places that traffic comes from
        #[arg(long, default_value_t = 100)]
        rate: u32,
        /// Seconds that traffic goes on after each step
        #[arg(long, default_value_t = 10)]
        seconds: u64,
        /// A static lb-agent that is built already
        #[arg(long)]
        agent: Option<PathBuf>,
        /// With the agent's image that the nodes have already, from an earlier `proxy lb`
        #[arg(long, conflicts_with = "agent")]
        loaded: bool,
    },
    /// kubectl as the cluster's administrator: cargo xtask cluster kubectl get pods -A
    Kubectl {
        /// What kubectl gets
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Runs a command on a node, in all of its namespaces: cargo xtask cluster node 1 ip route
    Node {
        /// Number of the node, from 1
        node: u8,
        /// The command
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<String>,
    },
    /// Ends the cluster and removes it from the machine; what was built and all results stay
    Down,
}

/// Who serves the Services.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Proxy {
    /// lb-agent as it ships: the image of `cargo xtask image` in the DaemonSet of deploy/
    Lb,
    /// lb-agent as a process of each node, with kube-proxy's configuration file and rights
    LbProcess,
    /// kube-proxy in nftables mode, as a process of each node
    #[value(name = "kube-proxy-nftables")]
    Nftables,
    /// kube-proxy in iptables mode, as a process of each node
    #[value(name = "kube-proxy-iptables")]
    Iptables,
    /// kube-proxy in nftables mode as a DaemonSet, as clusters have it
    #[value(name = "kube-proxy")]
    DaemonSet,
    /// Nobody
    None,
}

/// Help of the command.
pub(crate) const HELP: &str = "\
Nodes are network, mount, process and cgroup namespaces of this machine with real kubelets and containerd; the API
server, etcd, CoreDNS and a small load balancer are real too. Needs root, Go 1.26 or newer, and Debian's apt for the
rest; everything lies in /var/tmp/lb-cluster, or in $LAB.

  cargo xtask cluster up                 the cluster, served by lb (the first time: builds it)
  cargo xtask cluster kubectl get pods -A
  cargo xtask cluster e2e                Kubernetes' own specs, the quick list
  cargo xtask cluster node 1 lb-agent status
  cargo xtask cluster proxy kube-proxy-nftables
  cargo xtask cluster down               nothing of it stays on the machine but its folder";

/// Runs a command. Returns whether all that it counted passed.
///
/// # Errors
/// When the machine lacks something, or a script failed; the message says which.
pub(crate) fn act(command: Command) -> Result<bool> {
    ensure!(is_root(), "the cluster needs root: its nodes are namespaces with kubelets");
    let mut lab = Lab::find();
    match command {
        Command::Build => lab.build()?,
        Command::Up { nodes, ipv4_only, proxy, agent } => {
            lab.build()?;
            lab.up(nodes, ipv4_only)?;
            lab.proxy(proxy, agent.as_deref())?;
            eprintln!(
                "The cluster is up. Look around: cargo xtask cluster --help; end it: cargo xtask cluster down"
            );
        }
        Command::Proxy { proxy, agent } => lab.must_be_up()?.proxy(proxy, agent.as_deref())?,
        Command::E2e { specs, skip, procs, name } => {
            let results = lab.must_be_up()?.e2e(&specs, skip.as_deref(), procs, name.as_deref())?;
            results.print();
            println!("{}", results.tally());
            return Ok(results.failed.is_empty());
        }
        Command::Swap { at_once, rate, seconds, agent, loaded } => {
            let story = swap::Story { rate, pause: Duration::from_secs(seconds), at_once };
            let lab = lab.must_be_up()?;
            if !loaded {
                lab.image(agent.as_deref())?;
                lab.lb("lb_import")?;
            }
            return story.tell(lab);
        }
        Command::Kubectl { arguments } => run(lab.must_be_up()?.kubectl().args(arguments))?,
        Command::Node { node, command } => {
            let Some((program, arguments)) = command.split_first() else { bail!("no command") };
            run(lab.must_be_up()?.on_node(node, program).args(arguments))?;
        }
        Command::Down => lab.down()?,
    }
    Ok(true)
}
