//! Fields -> values (B165); the first fault ends it.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::duration::duration;
use super::file::{ConntrackText, Fields, ModeText};
use super::{ConfigError, Conntrack, ProxyConfig, bad, socket};
use crate::model::Family;
use crate::model::settings::{DetectLocal, Mode, NodePortEntry};
use crate::watch::address::{parse_ip, parse_net};

/// The only version that is read.
const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
/// Its kind.
const KIND: &str = "KubeProxyConfiguration";

impl Fields {
    /// Makes values of the texts (B165).
    ///
    /// # Errors
    /// See [`ConfigError`]; the first fault found is named.
    pub(super) fn resolve(&self) -> Result<ProxyConfig, ConfigError> {
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
            // ipvs differs from iptables in nothing that a client of a Service sees; it is warned about.
            "iptables" | "ipvs" => Mode::Iptables,
            "nftables" => Mode::Nftables,
            other => return bad("mode", other, "is not known", "write nftables or iptables"),
        };
        let of_mode = if mode == Mode::Iptables { &self.iptables } else { &self.nftables };
        let (min_sync, sync) = of_mode.periods()?;
        if duration("configSyncPeriod", &self.config_sync_period)?.is_zero() {
            return bad("configSyncPeriod", &self.config_sync_period, "is zero", "write for example 15m");
        }
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
            localhost_node_ports: self.iptables.localhost_node_ports,
            min_sync,
            sync,
            kubeconfig: Some(self.client_connection.kubeconfig.clone()).filter(|k| !k.is_empty()),
            hard_fail: self.bind_address_hard_fail,
            oom_score: self.oom_score()?,
            conntrack: self.conntrack.resolve()?,
        })
    }

    fn oom_score(&self) -> Result<i16, ConfigError> {
        match i16::try_from(self.oom_score_adj) {
            Ok(score @ -1000..=1000) => Ok(score),
            _ => {
                bad("oomScoreAdj", &self.oom_score_adj.to_string(), "is out of range", "write -1000 to 1000")
            }
        }
    }

    /// What is legal, and perhaps not what was meant (B165).
    pub(super) fn warn(&self, config: &ProxyConfig, warnings: &mut Vec<String>) {
        if self.mode == "ipvs" {
            warnings.push(
                "mode ipvs: there is no IPVS here; Services are served as in mode iptables, to whose defaults the \
                 fields of ipvs do not add anything; write iptables or nftables"
                    .to_owned(),
            );
        }
        let cidrs: Vec<Family> = config
            .node_port_addresses
            .iter()
            .filter_map(|entry| match entry {
                NodePortEntry::Cidr(net) => Some(Family::of_net(net)),
                NodePortEntry::Primary | NodePortEntry::Localhost | NodePortEntry::All => None,
            })
            .collect();
        if cidrs.len() == config.node_port_addresses.len() && !cidrs.is_empty() {
            for family in Family::ALL.iter().filter(|family| !cidrs.contains(family)) {
                warnings.push(format!(
                    "nodePortAddresses has no {} entry: NodePorts answer on all {} addresses",
                    family.name(),
                    family.name()
                ));
            }
        }
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
            "ClusterCIDR" => Ok(DetectLocal::ClusterCidr(self.cluster_cidrs()?)),
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
        if !(0..=31).contains(&self.masquerade_bit) {
            let value = self.masquerade_bit.to_string();
            return bad("masqueradeBit", &value, "is out of range", "write 0 to 31; it has no effect here");
        }
        let sync = duration("syncPeriod", &self.sync_period)?;
        let min = duration("minSyncPeriod", &self.min_sync_period)?;
        if min > sync {
            let text = &self.min_sync_period;
            return bad("minSyncPeriod", text, "is longer than syncPeriod", "write at most the syncPeriod");
        }
        Ok((min, sync))
    }
}

impl ConntrackText {
    fn resolve(&self) -> Result<Conntrack, ConfigError> {
        let count = |field, value: i64| match u64::try_from(value) {
            Ok(count) => Ok(count),
            Err(_negative) => bad(
                field,
                &value.to_string(),
                "is negative",
                "write 0 to leave it alone, or a number of flows",
            ),
        };
        let time = |field, text: &str| duration(field, text).map(|t| Some(t).filter(|t| !t.is_zero()));
        Ok(Conntrack {
            max_per_core: Some(count("conntrack.maxPerCore", self.max_per_core)?).filter(|count| *count > 0),
            min: count("conntrack.min", self.min)?,
            tcp_established: time("conntrack.tcpEstablishedTimeout", &self.tcp_established_timeout)?,
            tcp_close_wait: time("conntrack.tcpCloseWaitTimeout", &self.tcp_close_wait_timeout)?,
            tcp_be_liberal: self.tcp_be_liberal,
            udp: time("conntrack.udpTimeout", &self.udp_timeout)?,
            udp_stream: time("conntrack.udpStreamTimeout", &self.udp_stream_timeout)?,
        })
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
