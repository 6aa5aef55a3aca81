//! Metrics (B137): most are read from the [`Status`] at scrape, so that there is nothing to forget to count.

mod process;
mod text;

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use lb_common::abi::names::{LB_CT4, LB_CT6};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family as Labelled;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::{Status, StatusReader};
use crate::kernel::Usage;
use crate::model::Family;
use crate::model::settings::Mode;

/// Content type of [`Metrics::text`].
pub const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Which probe was answered.
#[derive(Clone, Copy, Debug)]
pub enum Probe {
    /// `/healthz`.
    Healthz,
    /// `/livez`.
    Livez,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Code {
    code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct IpFamily {
    ip_family: &'static str,
}

/// Histograms by address family.
type ByFamily = Labelled<IpFamily, Histogram>;

/// All metrics; clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Arc<Registry>,
    status: StatusReader,
    healthz: Labelled<Code, Counter>,
    livez: Labelled<Code, Counter>,
    syncs: ByFamily,
    full_syncs: ByFamily,
    partial_syncs: ByFamily,
    programming: ByFamily,
}

impl Metrics {
    /// Registers everything.
    #[must_use]
    pub fn new(status: StatusReader) -> Self {
        let mut registry = Registry::default();
        let (healthz, livez) = (Labelled::default(), Labelled::default());
        // Buckets E of B137: 1 ms to 16.384 s.
        let short = || -> ByFamily {
            Labelled::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 2.0, 15)))
        };
        let programming: ByFamily = Labelled::new_with_constructor(|| Histogram::new(programming_buckets()));
        let (syncs, full_syncs, partial_syncs) = (short(), short(), short());
        registry.register("kubeproxy_proxy_healthz", "Answers of /healthz by HTTP status", healthz.clone());
        registry.register("kubeproxy_proxy_livez", "Answers of /livez by HTTP status", livez.clone());
        for (name, help, histogram) in [
            (
                "kubeproxy_sync_proxy_rules_duration_seconds",
                "Seconds from the start of a plan to the end of its apply",
                &syncs,
            ),
            (
                "kubeproxy_sync_full_proxy_rules_duration_seconds",
                "As sync_proxy_rules_duration_seconds: the first apply, and those after a failed one",
                &full_syncs,
            ),
            (
                "kubeproxy_sync_partial_proxy_rules_duration_seconds",
                "As sync_proxy_rules_duration_seconds: all others, which write what changed",
                &partial_syncs,
            ),
            (
                "kubeproxy_network_programming_duration_seconds",
                "Seconds from the change of a pod or Service, as the control plane noted it, to the kernel",
                &programming,
            ),
        ] {
            registry.register(name, help, histogram.clone());
        }
        registry.register_collector(Box::new(FromStatus(status.clone())));
        registry.register_collector(Box::new(FromProcess));
        let registry = Arc::new(registry);
        Self { registry, status, healthz, livez, syncs, full_syncs, partial_syncs, programming }
    }

    /// A probe was answered (B133).
    pub fn probed(&self, probe: Probe, code: u16) {
        let answers = match probe {
            Probe::Healthz => &self.healthz,
            Probe::Livez => &self.livez,
        };
        answers.get_or_create(&Code { code }).inc();
    }

    /// An apply took so long; both families are applied together. `full` = it did not build on a good one (B144).
    pub fn applied_in(&self, seconds: f64, full: bool) {
        let kind = if full { &self.full_syncs } else { &self.partial_syncs };
        for family in Family::ALL {
            for histogram in [&self.syncs, kind] {
                histogram.get_or_create(&IpFamily { ip_family: family.name() }).observe(seconds);
            }
        }
    }

    /// A change of an EndpointSlice has reached the kernel, so long after its cause (B139).
    pub fn programmed_in(&self, family: Family, seconds: f64) {
        self.programming.get_or_create(&IpFamily { ip_family: family.name() }).observe(seconds);
    }

    /// All metrics as text.
    #[must_use]
    pub fn text(&self) -> String {
        Self::encoded(&self.registry)
    }

    /// `/metrics/slis`: whether the agent is healthy, as Kubernetes' components say it.
    #[must_use]
    pub fn slis(&self) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Slis(self.status.clone())));
        Self::encoded(&registry)
    }

    fn encoded(registry: &Registry) -> String {
        let mut open_metrics = String::new();
        match encode(&mut open_metrics, registry) {
            Ok(()) => text::classic(&open_metrics),
            // Writing to a String cannot fail; an encoder that does says so rather than showing half.
            Err(fmt::Error) => String::new(),
        }
    }
}

/// Buckets N of B137.
fn programming_buckets() -> impl Iterator<Item = f64> {
    let steps = |from: u32, to: u32, by: usize| (from..=to).step_by(by).map(f64::from);
    [0.0, 0.25, 0.5].into_iter().chain(steps(1, 59, 1)).chain(steps(60, 115, 5)).chain(steps(120, 300, 30))
}

#[derive(Debug)]
struct Slis(StatusReader);

impl Collector for Slis {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let status = self.0.borrow().clone();
        let now = Instant::now();
        let help = "Whether a health check passes (1) or not (0)";
        let mut metric =
            encoder.encode_descriptor("kubernetes_healthcheck", help, None, MetricType::Gauge)?;
        let checks = [("healthz", status.is_healthy(now) && status.eligible), ("livez", status.is_live(now))];
        for (name, passes) in checks {
            let labels = [("name", name), ("type", name)];
            ConstGauge::new(i64::from(passes)).encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

#[derive(Debug)]
struct FromProcess;

impl Collector for FromProcess {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(process) = process::read() else { return Ok(()) };
        let help = "User and system time, seconds";
        let metric = encoder.encode_descriptor("process_cpu_seconds", help, None, MetricType::Counter)?;
        ConstCounter::new(process.cpu_seconds).encode(metric)?;
        let whole = |number: u64| i64::try_from(number).unwrap_or(i64::MAX) as f64;
        for (name, help, value) in [
            ("process_start_time_seconds", "Start, seconds since 1970", process.start_time),
            ("process_virtual_memory_bytes", "Virtual memory", whole(process.virtual_memory)),
            ("process_resident_memory_bytes", "Resident memory", whole(process.resident_memory)),
            ("process_open_fds", "Open file descriptors", whole(process.open_fds)),
            ("process_max_fds", "Most file descriptors that may be open", whole(process.max_fds)),
        ] {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(value).encode(metric)?;
        }
        Ok(())
    }
}

#[derive(Debug)]
struct FromStatus(StatusReader);

impl Collector for FromStatus {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let status = self.0.borrow().clone();
        let by_family = [
            (
                "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
                "When the kernel last held everything",
                status.synced,
            ),
            (
                "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
                "When a change was last seen",
                status.queued,
            ),
        ];
        for (name, help, value) in by_family {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for family in Family::ALL {
                ConstGauge::new(value).encode(metric.encode_family(&[("ip_family", family.name())])?)?;
            }
        }
        for (name, help, value) in gauges(&status) {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(value).encode(metric)?;
        }
        let name = "kubeproxy_sync_proxy_rules_no_local_endpoints_total";
        let help = "Service ports of Local policy without an endpoint on this node";
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (family, starved) in Family::ALL.iter().zip(status.tables.no_local) {
            for (policy, value) in [("internal", starved.internal), ("external", starved.external)] {
                let labels = [("ip_family", family.name()), ("traffic_policy", policy)];
                ConstGauge::new(wide(value)).encode(metric.encode_family(&labels)?)?;
            }
        }
        // Under the name that the configured mode has for it: alerts watch that one.
        let name = if status.mode == Mode::Nftables.name() {
            "kubeproxy_sync_proxy_rules_nftables_sync_failures"
        } else {
            "kubeproxy_sync_proxy_rules_iptables_restore_failures"
        };
        let help = "Applies that failed in part or whole; see /status";
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for family in Family::ALL {
            let labels = [("ip_family", family.name())];
            ConstCounter::new(status.failed_applies).encode(metric.encode_family(&labels)?)?;
        }
        type Of = fn(&Usage) -> Option<u64>;
        let tables: [(&str, &str, MetricType, Of); 3] = [
            ("lb_table_entries", "Entries in use", MetricType::Gauge, |row| row.used),
            ("lb_table_capacity", "Entries that fit", MetricType::Gauge, |row| Some(row.capacity)),
            (
                "lb_flow_entries_evicted",
                "Entries of established flows that the kernel evicted, at least; 0 unless the table was full",
                MetricType::Counter,
                |row| [LB_CT4, LB_CT6].contains(&row.table).then_some(row.evicted),
            ),
        ];
        for (name, help, kind, of) in tables {
            let mut metric = encoder.encode_descriptor(name, help, None, kind)?;
            for row in &status.usage {
                let Some(value) = of(row) else { continue };
                let labels = [("table", row.table)];
                match kind {
                    MetricType::Counter => ConstCounter::new(value).encode(metric.encode_family(&labels)?)?,
                    _ => ConstGauge::new(value as f64).encode(metric.encode_family(&labels)?)?,
                }
            }
        }
        let help = "Largest share of the source ports towards one backend that is in use, 0 to 1";
        let metric = encoder.encode_descriptor("lb_snat_ports_used_ratio", help, None, MetricType::Gauge)?;
        ConstGauge::new(status.ports_used).encode(metric)?;
        for (name, help, value) in counters(&status) {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(value).encode(metric)?;
        }
        for (name, value) in &status.counters {
            let bare = name.trim_start_matches("lb_").trim_end_matches("_total");
            let name = format!("lb_{bare}");
            let metric = encoder.encode_descriptor(&name, "Data path counter", None, MetricType::Counter)?;
            ConstCounter::new(*value).encode(metric)?;
        }
        Ok(())
    }
}

fn gauges(status: &Status) -> [(&'static str, &'static str, i64); 11] {
    let t = &status.tables;
    [
        (
            "kubeproxy_sync_proxy_rules_service_changes_pending",
            "Not yet programmed",
            pending(status.service_pending),
        ),
        (
            "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
            "Not yet programmed",
            pending(status.endpoint_pending),
        ),
        ("lb_issues", "Objects and files with a fault, see /status", wide(status.issues.len())),
        ("lb_frontends4", "Rows of LB_SVC4", wide(t.services4)),
        ("lb_frontends6", "Rows of LB_SVC6", wide(t.services6)),
        ("lb_backends4", "Rows of LB_BE4", wide(t.backends4)),
        ("lb_backends6", "Rows of LB_BE6", wide(t.backends6)),
        ("lb_slots", "Rows of LB_SLOTS", wide(t.slots)),
        (
            "lb_maglev_service_ports",
            "Service ports whose endpoints are chosen by Maglev tables",
            wide(t.maglev),
        ),
        ("lb_source_ranges", "Rows of LB_RANGE4 and LB_RANGE6", wide(t.ranges)),
        ("lb_interfaces", "Interfaces that carry programs", wide(status.attached)),
    ]
}

fn counters(status: &Status) -> [(&'static str, &'static str, u64); 4] {
    [
        ("kubeproxy_sync_proxy_rules_service_changes", "Changes of Services seen", status.service_changes),
        (
            "kubeproxy_sync_proxy_rules_endpoint_changes",
            "Changes of EndpointSlices seen",
            status.endpoint_changes,
        ),
        ("lb_applies", "Applies that were tried", status.applies),
        ("lb_failed_applies", "Applies that failed in part or whole; see /status", status.failed_applies),
    ]
}

fn wide(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn pending(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
#[path = "../metrics_tests.rs"]
mod tests;
