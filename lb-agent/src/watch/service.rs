//! Service -> model (B1-B9, B14, B16, B32, B98).

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Service, ServicePort as ApiPort, ServiceSpec as ApiSpec};

use super::address::{parse_ip, parse_net};
use super::{Fault, Translated, annotation};
use crate::model::{Family, Ignored, ObjectName, Policy, Protocol, ServiceKind, ServicePort, ServiceSpec};

/// Label that hands a Service to another proxy (B3).
pub const OTHER_PROXY: &str = "service.kubernetes.io/service-proxy-name";
/// Label of headless Services and their slices (B4).
pub const HEADLESS: &str = "service.kubernetes.io/headless";
/// The API's default affinity timeout in seconds (B66).
const DEFAULT_AFFINITY_S: u32 = 10_800;

/// Translates a Service; a bad field is left out and named, the rest is served.
#[must_use]
pub fn translate(name: ObjectName, api: &Service) -> Translated<ServiceSpec> {
    let mut faults = Vec::new();
    let empty = ApiSpec::default();
    let spec = api.spec.as_ref().unwrap_or(&empty);
    let kind = kind(spec, &mut faults);
    let external_ips = addresses("spec.externalIPs", spec.external_ips.as_deref(), &mut faults);
    let object = ServiceSpec {
        ignored: ignored(api, spec, kind),
        kind,
        cluster_ips: cluster_ips(spec, &mut faults),
        external_ips,
        vips: vips(api, &mut faults),
        source_ranges: source_ranges(spec, &mut faults),
        internal: policy("spec.internalTrafficPolicy", spec.internal_traffic_policy.as_deref(), &mut faults),
        external: policy("spec.externalTrafficPolicy", spec.external_traffic_policy.as_deref(), &mut faults),
        affinity_s: affinity(spec, &mut faults),
        selection: annotation::selection(&api.metadata, &mut faults),
        forwarding: annotation::forwarding(&api.metadata, &mut faults),
        health_check_port: spec.health_check_node_port.and_then(|p| u16::try_from(p).ok()).unwrap_or(0),
        ports: ports(spec, &mut faults),
        name,
    };
    Translated { object: Some(object), faults }
}

fn ignored(api: &Service, spec: &ApiSpec, kind: ServiceKind) -> Option<Ignored> {
    let labelled = |label| api.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(label));
    if labelled(OTHER_PROXY) {
        Some(Ignored::OtherProxy)
    } else if labelled(HEADLESS) {
        Some(Ignored::HeadlessLabel)
    } else if kind == ServiceKind::ExternalName {
        Some(Ignored::ExternalName)
    } else {
        matches!(spec.cluster_ip.as_deref(), None | Some("" | "None")).then_some(Ignored::Headless)
    }
}

fn kind(spec: &ApiSpec, faults: &mut Vec<Fault>) -> ServiceKind {
    match spec.type_.as_deref() {
        None | Some("" | "ClusterIP") => ServiceKind::ClusterIp,
        Some("NodePort") => ServiceKind::NodePort,
        Some("LoadBalancer") => ServiceKind::LoadBalancer,
        Some("ExternalName") => ServiceKind::ExternalName,
        Some(other) => {
            let cure =
                "use ClusterIP, NodePort, LoadBalancer or ExternalName; served as ClusterIP until then";
            faults.push(Fault::new("spec.type", format!("unknown type {other:?}"), cure));
            ServiceKind::ClusterIp
        }
    }
}

/// B14: the entry of `clusterIPs` whose `ipFamilies` says so; without families `clusterIP` alone.
fn cluster_ips(spec: &ApiSpec, faults: &mut Vec<Fault>) -> Vec<IpAddr> {
    let single = || spec.cluster_ip.clone().into_iter().collect::<Vec<_>>();
    let families = spec.ip_families.as_deref().unwrap_or_default();
    let texts = match spec.cluster_ips.as_deref() {
        Some(list) if !families.is_empty() && !list.is_empty() => list.to_vec(),
        _ => single(),
    };
    let mut found: Vec<IpAddr> = Vec::new();
    for (index, text) in texts.iter().enumerate().filter(|(_, t)| !matches!(t.as_str(), "" | "None")) {
        let field = format!("spec.clusterIPs[{index}]");
        let Some(address) = parse_ip(text) else {
            faults.push(Fault::new(field, format!("{text:?} is not an IP address"), "give a valid address"));
            continue;
        };
        let family = Family::of(address);
        if families.get(index).is_some_and(|f| f != family.name()) {
            let problem = format!("{address} is not of the family that spec.ipFamilies[{index}] names");
            faults.push(Fault::new(field, problem, "make both lists agree"));
        } else if found.iter().all(|a| Family::of(*a) != family) {
            found.push(address);
        }
    }
    found
}

fn vips(api: &Service, faults: &mut Vec<Fault>) -> Vec<IpAddr> {
    let status = api.status.as_ref().and_then(|s| s.load_balancer.as_ref());
    let ingress = status.and_then(|l| l.ingress.as_deref()).unwrap_or_default();
    let vip = ingress.iter().filter(|i| matches!(i.ip_mode.as_deref(), None | Some("" | "VIP")));
    let texts: Vec<String> = vip.filter_map(|i| i.ip.clone()).filter(|ip| !ip.is_empty()).collect();
    addresses("status.loadBalancer.ingress", Some(&texts), faults)
}

fn addresses(field: &str, texts: Option<&[String]>, faults: &mut Vec<Fault>) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for text in texts.unwrap_or_default() {
        match parse_ip(text) {
            Some(address) if !found.contains(&address) => found.push(address),
            Some(_) => {}
            None => faults.push(Fault::new(
                field,
                format!("{text:?} is not an IP address"),
                "give a valid address",
            )),
        }
    }
    found
}

/// B98: trimmed; unparsable ones are skipped.
fn source_ranges(spec: &ApiSpec, faults: &mut Vec<Fault>) -> Vec<IpNet> {
    let mut found = Vec::new();
    for text in spec.load_balancer_source_ranges.as_deref().unwrap_or_default() {
        match parse_net(text.trim()) {
            Some(net) => found.push(net),
            None => faults.push(Fault::new(
                "spec.loadBalancerSourceRanges",
                format!("{text:?} is not a CIDR"),
                "write it as address/prefix; it is skipped until then",
            )),
        }
    }
    found
}

fn policy(field: &str, text: Option<&str>, faults: &mut Vec<Fault>) -> Policy {
    match text {
        None | Some("" | "Cluster") => Policy::Cluster,
        Some("Local") => Policy::Local,
        Some(other) => {
            let cure = "use Cluster or Local; treated as Cluster until then";
            faults.push(Fault::new(field, format!("unknown policy {other:?}"), cure));
            Policy::Cluster
        }
    }
}

fn affinity(spec: &ApiSpec, faults: &mut Vec<Fault>) -> Option<u32> {
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => return None,
        Some("ClientIP") => {}
        Some(other) => {
            let cure = "use None or ClientIP; treated as None until then";
            faults.push(Fault::new("spec.sessionAffinity", format!("unknown value {other:?}"), cure));
            return None;
        }
    }
    let client = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref());
    match client.and_then(|c| c.timeout_seconds) {
        None => Some(DEFAULT_AFFINITY_S),
        Some(seconds) => match u32::try_from(seconds) {
            Ok(seconds) if (1..=86_400).contains(&seconds) => Some(seconds),
            _ => {
                faults.push(Fault::new(
                    "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
                    format!("{seconds} is out of range"),
                    "use 1 to 86400 seconds; 10800 is used until then",
                ));
                Some(DEFAULT_AFFINITY_S)
            }
        },
    }
}

fn ports(spec: &ApiSpec, faults: &mut Vec<Fault>) -> Vec<ServicePort> {
    let mut found = Vec::new();
    for (index, port) in spec.ports.as_deref().unwrap_or_default().iter().enumerate() {
        match service_port(port) {
            Ok(port) => found.push(port),
            Err((field, problem, cure)) => {
                faults.push(Fault::new(format!("spec.ports[{index}].{field}"), problem, cure));
            }
        }
    }
    found
}

fn service_port(port: &ApiPort) -> Result<ServicePort, (&'static str, String, &'static str)> {
    let number = |field, value: i32, least: u16| match u16::try_from(value) {
        Ok(n) if n >= least => Ok(n),
        _ => Err((
            field,
            format!("{value} is not a port number"),
            "use 1 to 65535; the port is left out until then",
        )),
    };
    Ok(ServicePort {
        name: port.name.clone().unwrap_or_default(),
        protocol: protocol(port.protocol.as_deref())?,
        port: number("port", port.port, 1)?,
        node_port: number("nodePort", port.node_port.unwrap_or(0), 0)?,
    })
}

/// Reads a protocol; none means TCP.
///
/// # Errors
/// Another word than TCP, UDP or SCTP: the field, what is wrong, and the cure.
pub fn protocol(text: Option<&str>) -> Result<Protocol, (&'static str, String, &'static str)> {
    match text {
        None | Some("" | "TCP") => Ok(Protocol::Tcp),
        Some("UDP") => Ok(Protocol::Udp),
        Some("SCTP") => Ok(Protocol::Sctp),
        Some(other) => Err(("protocol", format!("unknown protocol {other:?}"), "use TCP, UDP or SCTP")),
    }
}
