//! Health check node ports: one HTTP listener per Service (B117-B127).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::json;

use super::StatusReader;
use crate::model::{Family, ObjectName, Policy, ServiceKind, ServiceSpec};
use crate::plan::select::{Place, select};
use crate::store::{Scope, Snapshot};

/// What one listener answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HealthCheck {
    /// Its port.
    pub port: u16,
    /// Namespace of the Service.
    pub namespace: String,
    /// Name of the Service.
    pub name: String,
    /// Distinct addresses of local ready endpoints over all ports (B120).
    pub local_endpoints: usize,
}

/// The health check node port of a Service, if it has one (B117, B120). Pure.
#[must_use]
pub fn health_check(service: &ServiceSpec, snapshot: &Snapshot, place: Place<'_>) -> Option<HealthCheck> {
    let served = service.ignored.is_none()
        && service.kind == ServiceKind::LoadBalancer
        && service.external == Policy::Local
        && service.health_check_port != 0;
    if !served {
        return None;
    }
    let slices = snapshot.slices.get(&service.name);
    let mut local = BTreeSet::new();
    for port in &service.ports {
        let id = service.port_id(port);
        for family in Family::ALL {
            let found = select(&id, family, slices.into_iter().flat_map(|s| s.values()), place);
            local.extend(found.endpoints.iter().filter(|e| e.local && e.ready).map(|e| e.address));
        }
    }
    Some(HealthCheck {
        port: service.health_check_port,
        namespace: service.name.namespace.clone(),
        name: service.name.name.clone(),
        local_endpoints: local.len(),
    })
}

/// All health check node ports, kept up as Services change.
#[derive(Debug, Default)]
pub struct HealthChecks {
    by_service: BTreeMap<ObjectName, HealthCheck>,
    list: Arc<Vec<HealthCheck>>,
    known: bool,
}

impl HealthChecks {
    /// All of a snapshot, by the names of their Services. `scope` says what may differ from the snapshot of the last call:
    /// nothing else is looked at.
    pub fn follow(&mut self, snapshot: &Snapshot, place: Place<'_>, scope: &Scope) -> Arc<Vec<HealthCheck>> {
        let check = |service: &Arc<ServiceSpec>| health_check(service, snapshot, place);
        let mut changed = false;
        if !self.known || scope.node {
            let all = snapshot.services.iter().filter_map(|(name, s)| Some((name.clone(), check(s)?)));
            let all: BTreeMap<ObjectName, HealthCheck> = all.collect();
            changed = all != self.by_service;
            (self.by_service, self.known) = (all, true);
        } else {
            for name in &scope.services {
                let new = snapshot.services.get(name).and_then(check);
                changed |= new.as_ref() != self.by_service.get(name);
                match new {
                    Some(new) => _ = self.by_service.insert(name.clone(), new),
                    None => _ = self.by_service.remove(name),
                }
            }
        }
        if changed {
            self.list = Arc::new(self.by_service.values().cloned().collect());
        }
        Arc::clone(&self.list)
    }
}

/// The addresses to listen on, each with its port (B118): all of the node, or those that `nodePortAddresses` selects. A
/// port has one listener for all addresses and both families (B127).
#[must_use]
pub fn listen_addresses(
    ports: &BTreeMap<u16, HealthCheck>,
    selected: Option<&BTreeSet<IpAddr>>,
) -> Vec<SocketAddr> {
    let any = BTreeSet::from([IpAddr::from(Ipv6Addr::UNSPECIFIED)]);
    let addresses = selected.unwrap_or(&any);
    ports.keys().flat_map(|port| addresses.iter().map(|address| SocketAddr::new(*address, *port))).collect()
}

/// By port; of two Services with one port the first by name has it.
#[must_use]
pub fn by_port(checks: &[HealthCheck]) -> BTreeMap<u16, HealthCheck> {
    let mut ports = BTreeMap::new();
    for check in checks {
        ports.entry(check.port).or_insert_with(|| check.clone());
    }
    ports
}

/// The routes of one port: any path and method (B119).
pub fn routes(port: u16, status: StatusReader) -> Router {
    Router::new().fallback(answer).with_state(Listener { port, status })
}

#[derive(Clone)]
struct Listener {
    port: u16,
    status: StatusReader,
}

async fn answer(State(listener): State<Listener>) -> Response {
    let (check, healthy) = {
        let status = listener.status.borrow();
        // of two Services with one port the first by name has it
        let check = status.health_checks.iter().find(|check| check.port == listener.port).cloned();
        (check, status.is_healthy(Instant::now()))
    };
    let Some(check) = check else { return StatusCode::SERVICE_UNAVAILABLE.into_response() };
    let code =
        if check.local_endpoints > 0 && healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let headers = [
        (header::CONTENT_TYPE, "application/json".to_owned()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (HeaderName::from_static("x-load-balancing-endpoint-weight"), check.local_endpoints.to_string()),
    ];
    let body = json!({
        "service": {"namespace": check.namespace, "name": check.name},
        "localEndpoints": check.local_endpoints,
        "serviceProxyHealthy": healthy,
    });
    (code, headers, body.to_string()).into_response()
}

#[cfg(test)]
#[path = "healthcheck_tests.rs"]
mod tests;
