//! `KubeProxyConfiguration` v1alpha1, as kube-proxy reads it (B163-B165).
//!
//! [`decode`] makes one value of the text, with all defaults; [`file`] has the fields of it that count; here they become
//! what the agent works with. Read [`parse`] first.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::string_slice))]

mod decode;
mod duration;
mod file;
mod resolve;
pub mod watch;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde_json::Value;
use thiserror::Error;

use self::file::Fields;

use crate::model::settings::{DetectLocal, Mode, NodePortEntry};
use crate::watch::address::parse_ip;

/// `oomScoreAdj` of a file that says nothing of it.
pub const DEFAULT_OOM_SCORE: i16 = -999;

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
    /// `bindAddressHardFail`.
    pub hard_fail: bool,
    /// `oomScoreAdj`.
    pub oom_score: i16,
    /// `conntrack`.
    pub conntrack: Conntrack,
}

/// `conntrack`: what is set at the start (B114); `None` = left alone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conntrack {
    /// `maxPerCore`, flows per CPU.
    pub max_per_core: Option<u64>,
    /// `min`, flows.
    pub min: u64,
    /// `tcpEstablishedTimeout`.
    pub tcp_established: Option<Duration>,
    /// `tcpCloseWaitTimeout`.
    pub tcp_close_wait: Option<Duration>,
    /// `tcpBeLiberal`.
    pub tcp_be_liberal: bool,
    /// `udpTimeout`.
    pub udp: Option<Duration>,
    /// `udpStreamTimeout`.
    pub udp_stream: Option<Duration>,
}

/// A configuration that was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed {
    /// What it means.
    pub config: ProxyConfig,
    /// What the operator should know of it, in sentences.
    pub warnings: Vec<String>,
    /// All fields with their values in force, as `--write-config-to` and `/configz` show them.
    pub effective: Value,
}

/// Reads a configuration; an empty text gives the defaults. Fields that are unknown, given twice, or without a meaning
/// here are warned about, and the rest counts (B163).
///
/// # Errors
/// See [`ConfigError`]; the first fault found is named.
pub fn parse(text: &str) -> Result<Parsed, ConfigError> {
    let (mut effective, mut warnings) = decode::decode(text)?;
    let fields: Fields = serde_path_to_error::deserialize(effective.clone()).map_err(|error| {
        ConfigError::Shape { field: error.path().to_string(), problem: error.inner().to_string() }
    })?;
    let config = fields.resolve()?;
    fields.warn(&config, &mut warnings);
    for (field, address) in [("healthzBindAddress", config.healthz), ("metricsBindAddress", config.metrics)] {
        if let Some(value) = effective.get_mut(field) {
            *value = address.to_string().into();
        }
    }
    Ok(Parsed { config, warnings, effective })
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
