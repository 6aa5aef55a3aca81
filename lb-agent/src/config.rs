//! Command line -> settings; the only module that reads arguments and the environment.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::string_slice))]

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use thiserror::Error;

use crate::datapath::sizes::{self, Sizes};
use crate::kubeproxy::{self, ConfigError, Conntrack, Parsed, ProxyConfig};
use crate::model::settings::{Algorithm, DetectLocal, Dsr, Fast, Settings, SocketLb, Xdp};
use crate::sys;
use crate::watch::api::ApiSource;
use crate::watch::api::bootstrap::{Bootstrap, BootstrapError, SERVICE_ACCOUNT};

/// The command line.
#[derive(Debug, Parser)]
#[command(
    name = "lb-agent",
    version,
    about = "eBPF service load balancer for one node: does what kube-proxy does"
)]
#[command(after_help = "\
Examples:
  lb-agent run                                                    serve the cluster this pod runs in
  lb-agent run --node-name a --kubeconfig FILE                    serve the cluster of a kubeconfig
  lb-agent run --node-name $(hostname) --manifests /etc/lb        serve the Services of a folder
  lb-agent run --node-name a --manifests D --config kube-proxy.conf  with a cluster's kube-proxy configuration
  lb-agent status                                                 what is served, and what is wrong
  lb-agent dump                                                   the kernel's tables as text
  lb-agent check                                                  does this kernel take the programs?
  lb-agent cleanup                                                remove everything from the kernel
  lb-agent cleanup --kube-proxy                                   remove the rules that kube-proxy left behind

Traffic goes on when the agent stops; only `cleanup` ends it.")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve: fill the kernel's tables and keep them so until SIGTERM; the data path stays behind
    Run(Box<RunArgs>),
    /// Remove all programs, tables and pins from the kernel; connections through them break. Or kube-proxy's rules
    Cleanup(CleanupArgs),
    /// Say what is served and what is wrong, from the running agent or else from the kernel
    Status(StatusArgs),
    /// Print the kernel's tables as text, one line per entry, in a stable order
    Dump(KernelArgs),
    /// Put every program before this kernel's verifier and say what it thinks, without attaching or keeping anything
    Check(CheckArgs),
}

/// Where in the kernel.
#[derive(Debug, Clone, Args)]
pub struct KernelArgs {
    /// cgroup v2 folder whose sockets are translated; without it the root of the hierarchy
    #[arg(long, value_name = "PATH", env = "LB_CGROUP")]
    pub cgroup: Option<PathBuf>,
    /// Mount point of the BPF file system; the pins are under PATH/lb/
    #[arg(long, value_name = "PATH", env = "LB_BPFFS", default_value = "/sys/fs/bpf")]
    pub bpffs: PathBuf,
}

/// Arguments of `cleanup`.
#[derive(Debug, Clone, Args)]
pub struct CleanupArgs {
    /// Remove what kube-proxy left (iptables, nftables) instead of what this agent made. Its open connections go on.
    /// Run it when kube-proxy is gone and this agent serves
    #[arg(long)]
    pub kube_proxy: bool,
    /// Where in the kernel.
    #[command(flatten)]
    pub kernel: KernelArgs,
}

/// Arguments of `status`.
#[derive(Debug, Clone, Args)]
pub struct StatusArgs {
    /// Print JSON instead of text
    #[arg(long)]
    pub json: bool,
    /// Where the agent answers (its --metrics-bind-address)
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:10249")]
    pub agent: SocketAddr,
    /// Where in the kernel to look when no agent answers.
    #[command(flatten)]
    pub kernel: KernelArgs,
}

/// Arguments of `check`.
#[derive(Debug, Clone, Args)]
pub struct CheckArgs {
    /// Print JSON instead of text, with all of the verifier's log of refused programs
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `run`.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// Name of this node, as in Node objects and nodeName of endpoints. Else hostnameOverride of --config, else the
    /// host name
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    pub node_name: Option<String>,
    /// Folder with Service, EndpointSlice, Node and ServiceCIDR manifests (*.yaml, *.yml, *.json), watched for changes
    #[arg(long, value_name = "DIR", conflicts_with_all = ["kubeconfig", "apiserver"])]
    pub manifests: Option<PathBuf>,
    /// Kubeconfig of the cluster to serve. Without it: clientConnection.kubeconfig of --config, then --apiserver, then
    /// the API server's endpoints as they were last, then the in-cluster address (KUBERNETES_SERVICE_HOST)
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// API servers to ask with the pod's service account (or --kubeconfig's user); the next one when one does not
    /// answer. A node without any other service proxy needs one of them for its first start
    #[arg(long, value_name = "URL,...", value_delimiter = ',')]
    pub apiserver: Vec<String>,
    /// Folder where the API server's endpoints are kept for the next start; empty: they are not kept
    // an OsString, because clap takes no empty PathBuf
    #[arg(long, value_name = "DIR", default_value = "/var/lib/lb-agent")]
    pub state_dir: OsString,
    /// A KubeProxyConfiguration (kubeproxy.config.k8s.io/v1alpha1), as kube-proxy takes it. When the file changes, the
    /// agent ends with status 1, for its supervisor to start it anew; traffic goes on meanwhile
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Write the KubeProxyConfiguration in force, with all defaults, as YAML to this file, and exit
    #[arg(long, value_name = "FILE")]
    pub write_config_to: Option<PathBuf>,
    /// Set what only a privileged process can (the sysctls of `conntrack`), and exit
    #[arg(long)]
    pub init_only: bool,
    /// Where in the kernel.
    #[command(flatten)]
    pub kernel: KernelArgs,
    /// Whose sockets are translated at connect(): those of the host, also those of all pods, or none. Pods are served
    /// by packets in any case; `all` is needed for pods on macvlan or ipvlan
    #[arg(long, value_enum, default_value = "host", value_name = "WHOSE")]
    pub socket_lb: SocketLb,
    /// Masquerade external traffic also where the answer passes this node anyway, as kube-proxy does
    #[arg(long)]
    pub masquerade_local: bool,
    /// Interfaces (names; `*` at the end stands for any rest) whose traffic to backends on other nodes is sent on in
    /// front of the stack; `auto`: physical uplinks. It bypasses netfilter there. What can't carry it is served at TC
    #[arg(long, value_name = "auto|off|IFACE,...")]
    pub xdp: Option<String>,
    /// How an endpoint is chosen for a new flow: at random, or by a hash of the flow, so that every node makes the same
    /// choice and few flows move when endpoints come or go. A Service says otherwise by the annotation
    /// lb-agent.io/selection. Give all nodes the same
    #[arg(long, value_enum, default_value = "random", value_name = "HOW")]
    pub selection: Algorithm,
    /// Slots of every Maglev table: 251, 1021, 4093, 16381, 65521, 262139 or 1048573, the same on all nodes. Default: the
    /// least with 100 slots per endpoint
    #[arg(long, value_name = "N", value_parser = table_size)]
    pub maglev_table_size: Option<u32>,
    /// Forward connections between pods of this node, to a Service, past the stack: less CPU, but netfilter's FORWARD
    /// rules don't see them. `on` is refused while netfilter enforces policy there; `force` bypasses that policy
    #[arg(long, value_enum, default_value = "off", num_args = 0..=1, require_equals = true, default_missing_value = "on",
        value_name = "off|on|force")]
    pub fast: Fast,
    /// How packets from outside for endpoints of other nodes are sent there so that the client's address is kept and the
    /// answer leaves from there (DSR); only to nodes whose agent has this on, too. A Service says otherwise with the
    /// annotation lb-agent.io/forwarding: snat. The fabric must let nodes send with addresses of each other
    #[arg(long, value_enum, default_value = "off", value_name = "off|ipip|gue")]
    pub dsr: Dsr,
    /// Where /healthz and /livez answer; wins over --config. Default 0.0.0.0:10256
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub healthz_bind_address: Option<String>,
    /// Where /metrics, /proxyMode and /status answer; wins over --config. Default 127.0.0.1:10249
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub metrics_bind_address: Option<String>,
    /// ICMP errors and resets that one CPU may send per second; 0 = no limit
    #[arg(long, value_name = "NUMBER", default_value_t = 1000)]
    pub reject_rate: u32,
    /// How large the tables are.
    #[command(flatten)]
    pub sizes: SizeArgs,
}

/// Capacities of the tables. A pinned table of another size is taken over into a new one.
#[derive(Debug, Clone, Default, Args)]
#[command(
    next_help_heading = "Sizes of tables (of each IP family; what is in a table of another size is taken over)"
)]
pub struct SizeArgs {
    /// Entries of established flows; a flow takes two, four when it is masqueraded at TC. About 440 bytes each, taken at
    /// start. Default: by memory, 131072 from 5 to 29 GiB
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(8192..=16_777_216))]
    pub max_flows: Option<u32>,
    /// The same for IPv6 alone, where it is to be another number: in a cluster without IPv6 the smallest one saves 60 % of
    /// the memory of flows. Default: as --max-flows
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(8192..=16_777_216))]
    pub max_flows_ipv6: Option<u32>,
    /// Addresses and ports that Services have, NodePorts included. Default 131072
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1024..=1_048_576))]
    pub max_frontends: Option<u32>,
    /// Endpoints, counted for every Service port that has them. Default 131072
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1024..=1_048_576))]
    pub max_backends: Option<u32>,
    /// Endpoints that may be chosen, counted for every Service port and traffic policy; with Maglev the slots of its
    /// tables. Both families together; 8 bytes each. Default 524288; with --selection maglev by memory, more from 1 GiB on
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(4096..=67_108_864))]
    pub max_slots: Option<u32>,
    /// Entries of loadBalancerSourceRanges. Default 65536
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(256..=1_048_576))]
    pub max_source_ranges: Option<u32>,
    /// Clients of Services with sessionAffinity ClientIP. Default 65536
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1024..=4_194_304))]
    pub max_affinity: Option<u32>,
    /// Correspondents of the node's own unconnected UDP sockets; both families together. Default 65536
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1024..=4_194_304))]
    pub max_udp_peers: Option<u32>,
}

impl SizeArgs {
    /// The sizes for a node with so many bytes of memory.
    fn resolve(&self, memory: u64, selection: Algorithm) -> Sizes {
        let mut chosen = Sizes::default();
        let slots = (selection == Algorithm::Maglev).then(|| sizes::slots_for(memory));
        for (setting, entries) in [
            (sizes::MAX_FLOWS, Some(self.max_flows.unwrap_or_else(|| sizes::flows_for(memory)))),
            (sizes::MAX_FLOWS_IPV6, self.max_flows_ipv6),
            (sizes::MAX_FRONTENDS, self.max_frontends),
            (sizes::MAX_BACKENDS, self.max_backends),
            (sizes::MAX_SLOTS, self.max_slots.or(slots)),
            (sizes::MAX_SOURCE_RANGES, self.max_source_ranges),
            (sizes::MAX_AFFINITY, self.max_affinity),
            (sizes::MAX_UDP_PEERS, self.max_udp_peers),
        ] {
            let known = entries.is_none_or(|entries| chosen.set(setting, entries));
            debug_assert!(known, "{setting} is a setting");
        }
        chosen
    }
}

/// What a run needs.
#[derive(Debug, Clone)]
pub struct RunConfig {
    /// Where objects come from.
    pub source: SourceConfig,
    /// Settings of data path and loop.
    pub settings: Settings,
    /// Where in the kernel.
    pub kernel: KernelArgs,
    /// Where health answers.
    pub healthz: SocketAddr,
    /// Where metrics and status answer.
    pub metrics: SocketAddr,
    /// A health or metrics address that cannot be opened ends the agent.
    pub hard_fail: bool,
    /// The file of `--config` and its text, to be watched.
    pub file: Option<(PathBuf, String)>,
    /// The KubeProxyConfiguration in force.
    pub effective: serde_json::Value,
    /// How large the tables are.
    pub sizes: Sizes,
    /// What the operator should know before it starts.
    pub warnings: Vec<String>,
}

/// What a node is asked to be, whatever the source (B114).
#[derive(Debug, Clone)]
pub struct NodeDuties {
    /// `conntrack`.
    pub conntrack: Conntrack,
    /// `oomScoreAdj`.
    pub oom_score: i16,
}

/// Where objects come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceConfig {
    /// A folder of manifests.
    Manifests(PathBuf),
    /// An API server.
    Api(ApiSource),
}

/// Why a run cannot start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The configuration file cannot be read.
    #[error("cannot read --config {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The configuration or a flag cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// There is no API server to ask.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    /// Nobody says how this node is called.
    #[error("this node has no name: give --node-name, or hostnameOverride in --config")]
    NoName,
}

impl RunArgs {
    /// Checks everything once and makes values of it.
    ///
    /// # Errors
    /// See [`StartError`]; nothing was touched.
    pub fn resolve(&self) -> Result<RunConfig, StartError> {
        let (Parsed { config: mut proxy, mut warnings, effective }, file) = self.proxy_config()?;
        let kubeconfig = proxy.kubeconfig.take().map(PathBuf::from);
        let address = |field, flag: &Option<String>, configured: SocketAddr| match flag {
            Some(text) => kubeproxy::socket(field, text, ""),
            None => Ok(configured),
        };
        let healthz = address("--healthz-bind-address", &self.healthz_bind_address, proxy.healthz)?;
        let metrics = address("--metrics-bind-address", &self.metrics_bind_address, proxy.metrics)?;
        let hard_fail = proxy.hard_fail;
        let settings = self.settings(proxy)?;
        let source = self.source(kubeconfig, &settings, &mut warnings)?;
        let sizes = self.sizes.resolve(sys::memory::memory(), settings.selection);
        let kernel = self.kernel.clone();
        Ok(RunConfig {
            source,
            healthz,
            metrics,
            kernel,
            hard_fail,
            settings,
            sizes,
            file,
            effective,
            warnings,
        })
    }

    fn source(
        &self,
        config_kubeconfig: Option<PathBuf>,
        settings: &Settings,
        warnings: &mut Vec<String>,
    ) -> Result<SourceConfig, StartError> {
        if let Some(folder) = &self.manifests {
            if config_kubeconfig.is_some() {
                warnings.push("clientConnection.kubeconfig is not used with --manifests".to_owned());
            }
            return Ok(SourceConfig::Manifests(folder.clone()));
        }
        if let (None, Some(path)) = (&self.kubeconfig, &config_kubeconfig)
            && !path.exists()
        {
            let path = path.display();
            warnings.push(format!("clientConnection.kubeconfig {path} does not exist; other ways are tried"));
        }
        let bootstrap = Bootstrap {
            kubeconfig: self.kubeconfig.clone(),
            config_kubeconfig,
            servers: self.apiserver.iter().map(|url| url.trim().to_owned()).collect(),
            memory: Some(PathBuf::from(&self.state_dir)).filter(|folder| !folder.as_os_str().is_empty()),
            in_cluster: in_cluster(),
            service_account: SERVICE_ACCOUNT.into(),
        };
        bootstrap.check()?;
        let needs_pod_cidrs = settings.detect == DetectLocal::NodeCidr;
        Ok(SourceConfig::Api(ApiSource {
            bootstrap,
            node_name: settings.node_name.clone(),
            needs_pod_cidrs,
            all_nodes: settings.dsr != Dsr::Off,
        }))
    }

    /// What the node is asked to be; for `--init-only`, which needs nothing else.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn duties(&self) -> Result<NodeDuties, StartError> {
        let (Parsed { config, .. }, _) = self.proxy_config()?;
        Ok(NodeDuties { conntrack: config.conntrack, oom_score: config.oom_score })
    }

    /// The text for `--write-config-to` (B160).
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn effective(&self) -> Result<String, StartError> {
        let (parsed, _) = self.proxy_config()?;
        serde_yaml_ng::to_string(&parsed.effective).map_err(|error| {
            StartError::Config(ConfigError::Shape { field: String::new(), problem: error.to_string() })
        })
    }

    /// The configuration, and the file it came from with its text.
    fn proxy_config(&self) -> Result<(Parsed, Option<(PathBuf, String)>), StartError> {
        let Some(path) = &self.config else { return Ok((kubeproxy::parse("")?, None)) };
        let text = std::fs::read_to_string(path)
            .map_err(|source| StartError::Read { path: path.clone(), source })?;
        let mut parsed = kubeproxy::parse(&text)?;
        for warning in &mut parsed.warnings {
            *warning = format!("--config: {warning}");
        }
        Ok((parsed, Some((path.clone(), text))))
    }

    fn settings(&self, proxy: ProxyConfig) -> Result<Settings, StartError> {
        // B153: lower-cased and trimmed; the flag wins.
        let flag = self.node_name.as_deref().map(|n| n.trim().to_lowercase()).filter(|n| !n.is_empty());
        let name = flag.or(proxy.hostname).or_else(host_name).ok_or(StartError::NoName)?;
        Ok(Settings {
            mode: proxy.mode,
            bind_address: proxy.bind_address,
            node_port_addresses: proxy.node_port_addresses,
            localhost_node_ports: proxy.localhost_node_ports,
            masquerade_all: proxy.masquerade_all,
            masquerade_local: self.masquerade_local,
            detect: proxy.detect,
            socket_lb: self.socket_lb,
            reject_rate: self.reject_rate,
            xdp: xdp(self.xdp.as_deref()),
            selection: self.selection,
            maglev_size: self.maglev_table_size,
            fast: self.fast,
            dsr: self.dsr,
            min_sync: proxy.min_sync,
            sync: proxy.sync,
            ..Settings::for_node(&name)
        })
    }
}

/// The value of `--maglev-table-size`.
fn table_size(text: &str) -> Result<u32, String> {
    let sizes = crate::plan::maglev::SIZES;
    let found = text.trim().parse().ok().filter(|size| sizes.contains(size));
    found.ok_or_else(|| format!("use one of {sizes:?}"))
}

/// The value of `--xdp`.
fn xdp(value: Option<&str>) -> Xdp {
    match value.map(str::trim) {
        None | Some("" | "off") => Xdp::Off,
        Some("auto") => Xdp::Auto,
        Some(names) => {
            Xdp::Named(names.split(',').map(str::trim).filter(|n| !n.is_empty()).map(str::to_owned).collect())
        }
    }
}

/// What the kubelet tells every container about the API server.
fn in_cluster() -> Option<(String, u16)> {
    let host = std::env::var("KUBERNETES_SERVICE_HOST").ok().filter(|host| !host.is_empty())?;
    let port = std::env::var("KUBERNETES_SERVICE_PORT").ok()?.parse().ok()?;
    Some((host, port))
}

fn host_name() -> Option<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(text.trim().to_lowercase()).filter(|n| !n.is_empty())
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
