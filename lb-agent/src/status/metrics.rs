//! Metrics (B137): most are read from the [`Status`] at scrape, so that there is nothing to forget to count.

use std::fmt;
use std::sync::Arc;

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
use crate::model::Family;

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

/// All metrics; clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Arc<Registry>,
    healthz: Labelled<Code, Counter>,
    livez: Labelled<Code, Counter>,
    durations: Labelled<IpFamily, Histogram>,
}

impl Metrics {
    /// Registers everything.
    #[must_use]
    pub fn new(status: StatusReader) -> Self {
        let mut registry = Registry::default();
        let (healthz, livez) = (Labelled::default(), Labelled::default());
        // Buckets E of B137: 1 ms to 16.384 s.
        let durations: Labelled<IpFamily, Histogram> =
            Labelled::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 2.0, 15)));
        registry.register("kubeproxy_proxy_healthz", "Answers of /healthz by HTTP status", healthz.clone());
        registry.register("kubeproxy_proxy_livez", "Answers of /livez by HTTP status", livez.clone());
        let help = "Seconds from the start of a plan to the end of its apply";
        registry.register("kubeproxy_sync_proxy_rules_duration_seconds", help, durations.clone());
        registry.register_collector(Box::new(FromStatus(status)));
        Self { registry: Arc::new(registry), healthz, livez, durations }
    }

    /// A probe was answered (B133).
    pub fn probed(&self, probe: Probe, code: u16) {
        let answers = match probe {
            Probe::Healthz => &self.healthz,
            Probe::Livez => &self.livez,
        };
        answers.get_or_create(&Code { code }).inc();
    }

    /// An apply took so long; both families are applied together.
    pub fn applied_in(&self, seconds: f64) {
        for family in Family::ALL {
            self.durations.get_or_create(&IpFamily { ip_family: family.name() }).observe(seconds);
        }
    }

    /// All metrics as text; the closing `# EOF` is a comment to Prometheus' own format.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        match encode(&mut text, &self.registry) {
            Ok(()) => text,
            // Writing to a String cannot fail; an encoder that does says so rather than showing half.
            Err(fmt::Error) => "# EOF\n".to_owned(),
        }
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
        let starved =
            [("internal", status.tables.no_local_internal), ("external", status.tables.no_local_external)];
        for (policy, value) in starved {
            ConstGauge::new(wide(value)).encode(metric.encode_family(&[("traffic_policy", policy)])?)?;
        }
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

fn gauges(status: &Status) -> [(&'static str, &'static str, i64); 10] {
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
