//! The fields of the file that mean something here; see `defaults.yaml` for all of them.

use serde::Deserialize;

/// The fields that count, defaults filled in (B164).
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Fields {
    pub(super) api_version: String,
    pub(super) kind: String,
    pub(super) mode: String,
    pub(super) hostname_override: String,
    pub(super) bind_address: String,
    pub(super) bind_address_hard_fail: bool,
    pub(super) healthz_bind_address: String,
    pub(super) metrics_bind_address: String,
    #[serde(rename = "clusterCIDR")]
    pub(super) cluster_cidr: String,
    pub(super) detect_local_mode: String,
    pub(super) detect_local: DetectLocalText,
    pub(super) node_port_addresses: Vec<String>,
    pub(super) iptables: ModeText,
    pub(super) nftables: ModeText,
    pub(super) config_sync_period: String,
    pub(super) client_connection: ClientConnection,
    pub(super) oom_score_adj: i64,
    pub(super) conntrack: ConntrackText,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct DetectLocalText {
    pub(super) bridge_interface: String,
    pub(super) interface_name_prefix: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ModeText {
    pub(super) masquerade_bit: i64,
    pub(super) masquerade_all: bool,
    #[serde(default)]
    pub(super) localhost_node_ports: bool,
    pub(super) sync_period: String,
    pub(super) min_sync_period: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct ClientConnection {
    pub(super) kubeconfig: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ConntrackText {
    pub(super) max_per_core: i64,
    pub(super) min: i64,
    pub(super) tcp_established_timeout: String,
    pub(super) tcp_close_wait_timeout: String,
    pub(super) tcp_be_liberal: bool,
    pub(super) udp_timeout: String,
    pub(super) udp_stream_timeout: String,
}
