//! Node and ServiceCIDR -> model (B20, B58, B74, B92, B131).

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::networking::v1::ServiceCIDR;

use super::address::{parse_ip, parse_net};
use super::{Fault, Translated};
use crate::model::{NodeSpec, ServiceCidrSpec};

/// Label of the node's zone (B58).
const ZONE: &str = "topology.kubernetes.io/zone";
/// Taint by which the autoscaler announces the end of a node (B131).
const AUTOSCALER_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

/// Translates a Node.
#[must_use]
pub fn translate(name: String, api: &Node) -> Translated<NodeSpec> {
    let mut faults = Vec::new();
    let spec = api.spec.as_ref();
    let listed = api.status.as_ref().and_then(|s| s.addresses.as_deref()).unwrap_or_default();
    let mut addresses = Vec::new();
    for kind in ["InternalIP", "ExternalIP"] {
        for entry in listed.iter().filter(|a| a.type_ == kind) {
            match parse_ip(&entry.address) {
                Some(address) => addresses.push(address),
                None => faults.push(Fault::new(
                    "status.addresses",
                    format!("{:?} is not an IP address", entry.address),
                    "give a valid address",
                )),
            }
        }
    }
    let taints = spec.and_then(|s| s.taints.as_deref()).unwrap_or_default();
    let plural = spec.and_then(|s| s.pod_cidrs.clone()).unwrap_or_default();
    let pod_cidrs =
        if plural.is_empty() { spec.and_then(|s| s.pod_cidr.clone()).into_iter().collect() } else { plural };
    let object = NodeSpec {
        zone: api.metadata.labels.as_ref().and_then(|l| l.get(ZONE)).cloned().unwrap_or_default(),
        addresses,
        pod_cidrs: nets("spec.podCIDRs", &pod_cidrs, &mut faults),
        leaving: api.metadata.deletion_timestamp.is_some()
            || taints.iter().any(|t| t.key == AUTOSCALER_TAINT),
        name,
    };
    Translated { object: Some(object), faults }
}

/// Translates a ServiceCIDR.
#[must_use]
pub fn translate_cidr(name: String, api: &ServiceCIDR) -> Translated<ServiceCidrSpec> {
    let mut faults = Vec::new();
    let texts = api.spec.as_ref().and_then(|s| s.cidrs.clone()).unwrap_or_default();
    let cidrs = nets("spec.cidrs", &texts, &mut faults);
    Translated { object: Some(ServiceCidrSpec { name, cidrs }), faults }
}

fn nets(field: &str, texts: &[String], faults: &mut Vec<Fault>) -> Vec<IpNet> {
    let mut found = Vec::new();
    for text in texts.iter().filter(|t| !t.is_empty()) {
        match parse_net(text) {
            Some(net) => found.push(net),
            None => faults.push(Fault::new(
                field,
                format!("{text:?} is not a CIDR"),
                "write it as address/prefix",
            )),
        }
    }
    found
}
