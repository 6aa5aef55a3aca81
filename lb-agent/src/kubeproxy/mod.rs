//! `KubeProxyConfiguration` v1alpha1, as kube-proxy reads it (B163-B165).
//!
//! [`file`] has the texts of the file; here they become values. Read [`parse`] first.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::string_slice))]

mod file;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use thiserror::Error;

pub use self::file::KubeProxyConfiguration;
use self::file::ModeText;

use crate::model::Family;
use crate::model::settings::{DetectLocal, Mode, NodePortEntry};
use crate::watch::address::{parse_ip, parse_net};

/// The only version that is read.
const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
/// Its kind.
const KIND: &str = "KubeProxyConfiguration";

/// Why a configuration cannot be used; names the field and the cure.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    /// It is no YAML, or a field has another type.
    #[error("configuration field {field:?}: {problem}; correct it as the kube-proxy documentation says")]
    Shape {
        /// Path of the field.
        field: String,
        /// What is wrong.
        problem: String,
    },
    /// A field has a value that cannot be used.
    #[error("configuration field {field}: {value:?} {problem}; {cure}")]
    Value {
        /// Path of the field.
        field: &'static str,
        /// What it holds.
        value: String,
        /// What is wrong.
        problem: &'static str,
        /// What to write instead.
        cure: &'static str,
    },
}

/// What the configuration means.
#[derive(Debug, Clone, PartialEq)]
pub struct ProxyConfig {
    /// `mode`.
    pub mode: Mode,
    /// `hostnameOverride`; `None` = not given.
    pub hostname: Option<String>,
    /// `bindAddress`, if it is a specific address.
    pub bind_address: Option<IpAddr>,
    /// `healthzBindAddress`.
    pub healthz: SocketAddr,
    /// `metricsBindAddress`.
    pub metrics: SocketAddr,
    /// `detectLocalMode` with its argument.
    pub detect: DetectLocal,
    /// `nodePortAddresses`.
    pub node_port_addresses: Vec<NodePortEntry>,
    /// `masqueradeAll` of the mode.
    pub masquerade_all: bool,
    /// `iptables.localhostNodePorts`.
    pub localhost_node_ports: bool,
    /// `minSyncPeriod` of the mode.
    pub min_sync: Duration,
    /// `syncPeriod` of the mode.
    pub sync: Duration,
    /// `clientConnection.kubeconfig`; `None` = not given.
    pub kubeconfig: Option<String>,
}

/// Reads a configuration; the second value names the fields that nobody knows, to be warned about.
///
/// # Errors
/// See [`ConfigError`]; the first fault found is named.
pub fn parse(text: &str) -> Result<(ProxyConfig, Vec<String>), ConfigError> {
    let shape = |field: String, problem: String| ConfigError::Shape { field, problem };
    let document = serde_yaml_ng::Deserializer::from_str(text);
    let mut unknown = Vec::new();
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(document, &mut track);
    let read: Result<KubeProxyConfiguration, _> =
        serde_ignored::deserialize(tracked, |path| unknown.push(path.to_string()));
    let config = read.map_err(|error| shape(track.path().to_string(), error.to_string()))?;
    Ok((config.resolve()?, unknown))
}

impl KubeProxyConfiguration {
    /// Makes values of the texts (B165).
    ///
    /// # Errors
    /// See [`ConfigError`]; the first fault found is named.
    pub fn resolve(&self) -> Result<ProxyConfig, ConfigError> {
        if self.api_version != API_VERSION {
            return bad(
                "apiVersion",
                &self.api_version,
                "is not known",
                "write kubeproxy.config.k8s.io/v1alpha1",
            );
        }
        if self.kind != KIND {
            return bad("kind", &self.kind, "is not known", "write KubeProxyConfiguration");
        }
        let mode = match self.mode.as_str() {
            "" | "iptables" => Mode::Iptables,
            "nftables" => Mode::Nftables,
            "ipvs" => return bad("mode", "ipvs", "has no counterpart here", "write nftables or iptables"),
            other => return bad("mode", other, "is not known", "write nftables or iptables"),
        };
        let of_mode = if mode == Mode::Iptables { &self.iptables } else { &self.nftables };
        let (min_sync, sync) = of_mode.periods()?;
        duration("configSyncPeriod", &self.config_sync_period)?;
        let (bind, six) = self.bind()?;
        let any = if six { "[::]:10256" } else { "0.0.0.0:10256" };
        let loopback = if six { "[::1]:10249" } else { "127.0.0.1:10249" };
        Ok(ProxyConfig {
            mode,
            hostname: Some(self.hostname_override.trim().to_lowercase()).filter(|h| !h.is_empty()),
            bind_address: bind,
            healthz: socket("healthzBindAddress", &self.healthz_bind_address, any)?,
            metrics: socket("metricsBindAddress", &self.metrics_bind_address, loopback)?,
            detect: self.detect()?,
            node_port_addresses: node_port_entries(&self.node_port_addresses)?,
            masquerade_all: of_mode.masquerade_all,
            localhost_node_ports: self.iptables.localhost_node_ports.unwrap_or(true),
            min_sync,
            sync,
            kubeconfig: Some(self.client_connection.kubeconfig.clone()).filter(|k| !k.is_empty()),
        })
    }

    /// The specific address, and whether the primary family is IPv6.
    fn bind(&self) -> Result<(Option<IpAddr>, bool), ConfigError> {
        let Some(address) = parse_ip(&self.bind_address) else {
            return bad(
                "bindAddress",
                &self.bind_address,
                "is not an IP address",
                "write the node's IP or 0.0.0.0",
            );
        };
        Ok((Some(address).filter(|a| !a.is_unspecified()), address.is_ipv6()))
    }

    fn detect(&self) -> Result<DetectLocal, ConfigError> {
        let required = |field, value: &String| match value.as_str() {
            "" => bad(field, value, "is empty", "name it, or choose another detectLocalMode"),
            _ => Ok(value.clone()),
        };
        match self.detect_local_mode.as_str() {
            "" | "ClusterCIDR" => Ok(DetectLocal::ClusterCidr(self.cluster_cidrs()?)),
            "NodeCIDR" => Ok(DetectLocal::NodeCidr),
            "BridgeInterface" => required("detectLocal.bridgeInterface", &self.detect_local.bridge_interface)
                .map(DetectLocal::Bridge),
            "InterfaceNamePrefix" => {
                required("detectLocal.interfaceNamePrefix", &self.detect_local.interface_name_prefix)
                    .map(DetectLocal::InterfacePrefix)
            }
            other => bad(
                "detectLocalMode",
                other,
                "is not known",
                "write ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix",
            ),
        }
    }

    fn cluster_cidrs(&self) -> Result<Vec<IpNet>, ConfigError> {
        let mut found: Vec<IpNet> = Vec::new();
        for text in self.cluster_cidr.split(',').map(str::trim).filter(|t| !t.is_empty()) {
            let Some(net) = parse_net(text) else {
                return bad(
                    "clusterCIDR",
                    text,
                    "is not a CIDR",
                    "write address/prefix, or two of them with a comma",
                );
            };
            if found.iter().any(|n| Family::of_net(n) == Family::of_net(&net)) {
                return bad(
                    "clusterCIDR",
                    text,
                    "is the second of its family",
                    "write at most one per family",
                );
            }
            found.push(net);
        }
        Ok(found)
    }
}

impl ModeText {
    fn periods(&self) -> Result<(Duration, Duration), ConfigError> {
        if self.masquerade_bit.is_some_and(|b| !(0..=31).contains(&b)) {
            let value = self.masquerade_bit.unwrap_or_default().to_string();
            return bad("masqueradeBit", &value, "is out of range", "write 0 to 31; it has no effect here");
        }
        let sync = duration("syncPeriod", &self.sync_period)?.unwrap_or(Duration::from_secs(30));
        let min = duration("minSyncPeriod", &self.min_sync_period)?.unwrap_or(Duration::from_secs(1));
        if min > sync {
            let text = &self.min_sync_period;
            return bad("minSyncPeriod", text, "is longer than syncPeriod", "write at most the syncPeriod");
        }
        Ok((min, sync))
    }
}

fn node_port_entries(texts: &[String]) -> Result<Vec<NodePortEntry>, ConfigError> {
    let entry = |text: &String| match text.as_str() {
        "primary" => Ok(NodePortEntry::Primary),
        "localhost" => Ok(NodePortEntry::Localhost),
        "all" => Ok(NodePortEntry::All),
        other => match parse_net(other) {
            Some(net) => Ok(NodePortEntry::Cidr(net)),
            None => bad(
                "nodePortAddresses",
                other,
                "is neither a CIDR nor a keyword",
                "write address/prefix, primary, localhost or all",
            ),
        },
    };
    texts.iter().map(entry).collect()
}

/// Reads address:port; an empty text means `default`, and an address alone takes its port from it.
///
/// # Errors
/// The field and what to write.
pub fn socket(field: &'static str, text: &str, default: &str) -> Result<SocketAddr, ConfigError> {
    let text = if text.is_empty() { default } else { text };
    let port = default.parse::<SocketAddr>().map(|d| d.port());
    let bare = parse_ip(text).zip(port.ok()).map(|(address, port)| SocketAddr::new(address, port));
    match text.parse().ok().or(bare) {
        Some(address) => Ok(address),
        None => bad(field, text, "is not address:port", "write for example 0.0.0.0:10256 or [::]:10256"),
    }
}

/// `None` = not given, or zero, which kube-proxy takes for not given too.
fn duration(field: &'static str, text: &str) -> Result<Option<Duration>, ConfigError> {
    if text.is_empty() {
        return Ok(None);
    }
    match go_duration(text) {
        Some(found) => Ok(Some(found).filter(|d| !d.is_zero())),
        None => bad(field, text, "is not a duration", "write for example 30s, 100ms or 1h30m"),
    }
}

/// Reads a duration as Go writes it: `1h30m`, `1.5s`, `100ms`, `0`. `None` = it is none, or negative.
fn go_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut total = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let (number, behind) =
            rest.split_at_checked(rest.find(|c: char| !c.is_ascii_digit() && c != '.')?)?;
        let end = behind.find(|c: char| c.is_ascii_digit()).unwrap_or(behind.len());
        let (unit, next) = behind.split_at_checked(end)?;
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total += number.parse::<f64>().ok()? * seconds;
        rest = next;
    }
    (!text.is_empty()).then(|| Duration::try_from_secs_f64(total).ok()).flatten()
}

fn bad<T>(
    field: &'static str,
    value: &str,
    problem: &'static str,
    cure: &'static str,
) -> Result<T, ConfigError> {
    Err(ConfigError::Value { field, value: value.to_owned(), problem, cure })
}

#[cfg(test)]
mod tests;
