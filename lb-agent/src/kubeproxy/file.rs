//! The texts of the file, with defaults (B164).
//!
//! Fields that this agent has no use for are listed too, so that only real typing errors are named.

use serde::Deserialize;

use super::{API_VERSION, KIND};

/// The file, with defaults (B164).
#[derive(Debug, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct KubeProxyConfiguration {
    pub(super) api_version: String,
    pub(super) kind: String,
    pub(super) mode: String,
    pub(super) hostname_override: String,
    pub(super) bind_address: String,
    pub(super) healthz_bind_address: String,
    pub(super) metrics_bind_address: String,
    #[serde(rename = "clusterCIDR")]
    pub(super) cluster_cidr: String,
    pub(super) detect_local_mode: String,
    pub(super) detect_local: DetectLocalText,
    #[serde(deserialize_with = "or_default")]
    pub(super) node_port_addresses: Vec<String>,
    pub(super) iptables: ModeText,
    pub(super) nftables: ModeText,
    pub(super) config_sync_period: String,
    pub(super) client_connection: ClientConnection,
    // Known, but without effect here.
    pub(super) feature_gates: Option<serde_yaml_ng::Value>,
    pub(super) logging: Option<serde_yaml_ng::Value>,
    pub(super) bind_address_hard_fail: Option<bool>,
    pub(super) enable_profiling: Option<bool>,
    pub(super) show_hidden_metrics_for_version: Option<String>,
    pub(super) ipvs: Option<serde_yaml_ng::Value>,
    pub(super) winkernel: Option<serde_yaml_ng::Value>,
    pub(super) windows_run_as_service: Option<bool>,
    pub(super) oom_score_adj: Option<i32>,
    pub(super) conntrack: Option<serde_yaml_ng::Value>,
    pub(super) port_range: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct DetectLocalText {
    pub(super) bridge_interface: String,
    pub(super) interface_name_prefix: String,
    #[serde(rename = "clusterCIDRs")]
    pub(super) _cluster_cidrs: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct ModeText {
    pub(super) masquerade_bit: Option<i64>,
    pub(super) masquerade_all: bool,
    pub(super) localhost_node_ports: Option<bool>,
    pub(super) sync_period: String,
    pub(super) min_sync_period: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct ClientConnection {
    pub(super) kubeconfig: String,
    #[serde(rename = "acceptContentTypes")]
    pub(super) _accept_content_types: Option<String>,
    #[serde(rename = "contentType")]
    pub(super) _content_type: Option<String>,
    #[serde(rename = "qps")]
    pub(super) _qps: Option<f64>,
    #[serde(rename = "burst")]
    pub(super) _burst: Option<i64>,
}

impl Default for KubeProxyConfiguration {
    fn default() -> Self {
        Self {
            api_version: API_VERSION.to_owned(),
            kind: KIND.to_owned(),
            mode: String::new(),
            hostname_override: String::new(),
            bind_address: "0.0.0.0".to_owned(),
            healthz_bind_address: String::new(),
            metrics_bind_address: String::new(),
            cluster_cidr: String::new(),
            detect_local_mode: String::new(),
            detect_local: DetectLocalText::default(),
            node_port_addresses: Vec::new(),
            iptables: ModeText::default(),
            nftables: ModeText::default(),
            config_sync_period: String::new(),
            client_connection: ClientConnection::default(),
            feature_gates: None,
            logging: None,
            bind_address_hard_fail: None,
            enable_profiling: None,
            show_hidden_metrics_for_version: None,
            ipvs: None,
            winkernel: None,
            windows_run_as_service: None,
            oom_score_adj: None,
            conntrack: None,
            port_range: None,
        }
    }
}

/// `null` is the default, as kube-proxy's own printed configurations have it.
fn or_default<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(
    from: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}
