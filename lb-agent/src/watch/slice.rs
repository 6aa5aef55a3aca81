//! EndpointSlice -> model (B17, B21, B23, B24, B27).

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

use super::address::parse_ip;
use super::service::{HEADLESS, OTHER_PROXY, protocol};
use super::{Fault, Translated, annotation};
use crate::model::{EndpointSpec, Family, ObjectName, SlicePort, SliceSpec, Trigger};

/// Label that names the Service (B21).
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Annotation with the time of the change behind it, RFC 3339 with nanoseconds (B139).
const LAST_CHANGE: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// Translates an EndpointSlice; a bad endpoint or port is left out and named, the rest is served.
#[must_use]
pub fn translate(name: ObjectName, api: &EndpointSlice) -> Translated<SliceSpec> {
    let mut faults = Vec::new();
    let label = |key: &str| api.metadata.labels.as_ref().and_then(|labels| labels.get(key));
    let service = label(SERVICE_NAME).cloned().unwrap_or_default();
    if service.is_empty() || label(HEADLESS).is_some() || label(OTHER_PROXY).is_some() {
        return Translated { object: None, faults };
    }
    let family = match api.address_type.as_str() {
        "IPv4" => Family::V4,
        "IPv6" => Family::V6,
        "FQDN" => return Translated { object: None, faults },
        other => {
            let problem = format!("unknown address type {other:?}");
            faults.push(Fault::new(
                "addressType",
                problem,
                "use IPv4 or IPv6; the slice is left out until then",
            ));
            return Translated { object: None, faults };
        }
    };
    let ports = ports(api, &mut faults);
    let weight = annotation::weight(&api.metadata, &mut faults);
    let mut endpoints = Vec::new();
    for (index, endpoint) in endpoints_of(api).iter().enumerate() {
        match translate_endpoint(endpoint, family, weight) {
            Ok(Some(endpoint)) => endpoints.push(endpoint),
            Ok(None) => {}
            Err(problem) => faults.push(Fault::new(
                format!("endpoints[{index}].addresses[0]"),
                problem,
                "give a usable address of the slice's addressType; the endpoint is left out until then",
            )),
        }
    }
    Translated {
        object: Some(SliceSpec { name, service, family, ports, endpoints, triggered: triggered(api) }),
        faults,
    }
}

/// B139; an unreadable time is none.
fn triggered(api: &EndpointSlice) -> Trigger {
    let annotations = api.metadata.annotations.as_ref();
    let time = annotations.and_then(|a| a.get(LAST_CHANGE)?.parse::<jiff::Timestamp>().ok());
    Trigger(time.map(|t| t.as_duration().as_secs_f64()))
}

fn endpoints_of(api: &EndpointSlice) -> &[Endpoint] {
    &api.endpoints
}

fn ports(api: &EndpointSlice, faults: &mut Vec<Fault>) -> Vec<SlicePort> {
    let mut found = Vec::new();
    for (index, port) in api.ports.as_deref().unwrap_or_default().iter().enumerate() {
        let (Some(name), Some(number)) = (&port.name, port.port) else { continue };
        if number == 0 {
            continue;
        }
        let read = u16::try_from(number)
            .map_err(|_range| ("port", format!("{number} is not a port number"), "use 1 to 65535"))
            .and_then(|port_number| Ok((port_number, protocol(port.protocol.as_deref())?)));
        match read {
            Ok((port, protocol)) => found.push(SlicePort { name: name.clone(), protocol, port }),
            Err((field, problem, cure)) => {
                faults.push(Fault::new(format!("ports[{index}].{field}"), problem, cure))
            }
        }
    }
    found
}

fn translate_endpoint(api: &Endpoint, family: Family, weight: u16) -> Result<Option<EndpointSpec>, String> {
    let Some(text) = api.addresses.first() else { return Ok(None) };
    let address = parse_ip(text).ok_or_else(|| format!("{text:?} is not an IP address"))?;
    if Family::of(address) != family {
        return Err(format!("{address} is not an {} address", family.name()));
    }
    if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
        return Err(format!("{address} cannot be an endpoint"));
    }
    let conditions = api.conditions.as_ref();
    let hints = api.hints.as_ref();
    Ok(Some(EndpointSpec {
        address,
        node: api.node_name.clone(),
        ready: conditions.and_then(|c| c.ready).unwrap_or(true),
        serving: conditions.and_then(|c| c.serving).unwrap_or(true),
        terminating: conditions.and_then(|c| c.terminating).unwrap_or(false),
        weight,
        zones: hints
            .and_then(|h| h.for_zones.as_deref())
            .unwrap_or_default()
            .iter()
            .map(|z| z.name.clone())
            .collect(),
        nodes: hints
            .and_then(|h| h.for_nodes.as_deref())
            .unwrap_or_default()
            .iter()
            .map(|n| n.name.clone())
            .collect(),
    }))
}
