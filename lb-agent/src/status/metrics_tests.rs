use std::collections::BTreeMap;

use tokio::sync::watch;

use super::*;
use crate::status::{NoLocal, Tables};

/// Name -> type, and the label names of its samples.
fn exposition(text: &str) -> BTreeMap<String, (String, Vec<String>)> {
    let mut found: BTreeMap<String, (String, Vec<String>)> = BTreeMap::new();
    for line in text.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            assert!(found.insert(name.to_owned(), (kind.to_owned(), Vec::new())).is_none(), "{name} twice");
        } else if !line.starts_with('#') {
            let (sample, _) = line.rsplit_once(' ').unwrap();
            let (name, labels) = sample.split_once('{').unwrap_or((sample, ""));
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
            let base = base.filter(|b| found.get(*b).is_some_and(|(kind, _)| kind == "histogram"));
            let known =
                found.get_mut(base.unwrap_or(name)).unwrap_or_else(|| panic!("no TYPE before {line}"));
            let labels = labels.trim_end_matches('}').split(',').filter_map(|l| Some(l.split_once('=')?.0));
            known.1.extend(labels.filter(|l| *l != "le").map(str::to_owned));
            known.1.sort();
            known.1.dedup();
        }
    }
    found
}

/// Metrics of a status, with something counted in each.
fn metrics(mode: Mode) -> Metrics {
    let no_local = [NoLocal { internal: 1, external: 2 }, NoLocal::default()];
    let status = Status {
        mode: mode.name().to_owned(),
        tables: Tables { no_local, ..Tables::default() },
        counters: vec![("drop_no_snat_address", 3)],
        ..Status::default()
    };
    let (_sender, reader) = watch::channel(status);
    let metrics = Metrics::new(reader);
    metrics.probed(Probe::Healthz, 200);
    metrics.probed(Probe::Livez, 503);
    metrics.applied_in(0.01, true);
    metrics.applied_in(0.01, false);
    metrics.programmed_in(Family::V4, 0.3);
    metrics
}

#[test]
fn b137_names_types_and_labels_are_kube_proxys() {
    let found = exposition(&metrics(Mode::Nftables).text());
    let expected: [(&str, &str, &[&str]); 15] = [
        ("sync_proxy_rules_duration_seconds", "histogram", &["ip_family"]),
        ("sync_full_proxy_rules_duration_seconds", "histogram", &["ip_family"]),
        ("sync_partial_proxy_rules_duration_seconds", "histogram", &["ip_family"]),
        ("sync_proxy_rules_last_timestamp_seconds", "gauge", &["ip_family"]),
        ("sync_proxy_rules_last_queued_timestamp_seconds", "gauge", &["ip_family"]),
        ("network_programming_duration_seconds", "histogram", &["ip_family"]),
        ("sync_proxy_rules_endpoint_changes_pending", "gauge", &[]),
        ("sync_proxy_rules_endpoint_changes_total", "counter", &[]),
        ("sync_proxy_rules_service_changes_pending", "gauge", &[]),
        ("sync_proxy_rules_service_changes_total", "counter", &[]),
        ("sync_proxy_rules_no_local_endpoints_total", "gauge", &["ip_family", "traffic_policy"]),
        ("proxy_healthz_total", "counter", &["code"]),
        ("proxy_livez_total", "counter", &["code"]),
        ("sync_proxy_rules_nftables_sync_failures_total", "counter", &["ip_family"]),
        ("process_cpu_seconds_total", "counter", &[]),
    ];
    for (name, kind, labels) in expected {
        let name = if name.starts_with("process") { name.to_owned() } else { format!("kubeproxy_{name}") };
        let (found_kind, found_labels) = found.get(&name).unwrap_or_else(|| panic!("{name} is missing"));
        assert_eq!(
            (found_kind.as_str(), found_labels.as_slice()),
            (kind, owned(labels).as_slice()),
            "{name}"
        );
    }
    let kube: Vec<_> = found.keys().filter(|name| name.starts_with("kubeproxy_")).collect();
    assert_eq!(kube.len(), 14, "a name that kube-proxy does not have: {kube:?}");
    let iptables = exposition(&metrics(Mode::Iptables).text());
    assert!(iptables.contains_key("kubeproxy_sync_proxy_rules_iptables_restore_failures_total"));
    for name in found.keys() {
        assert!(!name.contains("_total_total"), "{name}");
    }
}

fn owned(labels: &[&str]) -> Vec<String> {
    labels.iter().map(|label| (*label).to_owned()).collect()
}

#[test]
fn b137_buckets() {
    let text = metrics(Mode::Nftables).text();
    let bounds = |name: &str| -> Vec<f64> {
        let begin = format!("kubeproxy_{name}_bucket{{");
        let lines = text.lines().filter(|l| l.starts_with(&begin) && l.contains("ip_family=\"IPv4\""));
        let bound = |line: &str| line.split("le=\"").nth(1)?.split('"').next()?.parse::<f64>().ok();
        lines.filter_map(bound).filter(|b| b.is_finite()).collect()
    };
    let short = bounds("sync_proxy_rules_duration_seconds");
    assert_eq!((short.len(), short[0], short[14]), (15, 0.001, 16.384));
    let long = bounds("network_programming_duration_seconds");
    assert_eq!(long.len(), 3 + 59 + 12 + 7);
    assert_eq!(long[..4], [0.0, 0.25, 0.5, 1.0]);
    assert_eq!(long[60..64], [58.0, 59.0, 60.0, 65.0]);
    assert_eq!(long[73..76], [115.0, 120.0, 150.0]);
    assert_eq!(long.last(), Some(&300.0));
}

#[test]
fn b138_per_family_and_policy() {
    let text = metrics(Mode::Nftables).text();
    let name = "kubeproxy_sync_proxy_rules_no_local_endpoints_total";
    for (family, policy, value) in [("IPv4", "internal", 1), ("IPv4", "external", 2), ("IPv6", "external", 0)]
    {
        let line = format!("{name}{{ip_family=\"{family}\",traffic_policy=\"{policy}\"}} {value}");
        assert!(text.contains(&line), "{line} in\n{text}");
    }
}

#[test]
fn b136_slis_say_whether_it_is_healthy() {
    let text = metrics(Mode::Nftables).slis();
    assert!(text.contains("kubernetes_healthcheck{name=\"healthz\",type=\"healthz\"} 0"), "{text}");
    assert!(text.contains("kubernetes_healthcheck{name=\"livez\",type=\"livez\"} 1"), "{text}");
}
