//! `/healthz` and `/livez` (B128-B134; DESIGN section 5.6).

use std::time::Instant;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use serde_json::{Map, Value, json};

use super::metrics::{Metrics, Probe};
use super::{Status, StatusReader, rfc3339, unix_now};
use crate::model::Family;
use crate::peers::{PATH, Taken};

/// The routes; every other path is 404.
pub fn routes(status: StatusReader, metrics: Metrics) -> Router {
    let state = Health { status, metrics };
    Router::new()
        .route("/healthz", any(healthz))
        .route("/livez", any(livez))
        .route(PATH, any(dsr))
        .with_state(state)
}

#[derive(Clone)]
struct Health {
    status: StatusReader,
    metrics: Metrics,
}

async fn healthz(State(health): State<Health>) -> Response {
    let (code, body) = {
        let status = health.status.borrow();
        let healthy = status.is_healthy(Instant::now());
        (code(healthy && status.eligible), body(&status, healthy, Some(status.eligible)))
    };
    health.answer(Probe::Healthz, code, &body)
}

async fn livez(State(health): State<Health>) -> Response {
    let (code, body) = {
        let status = health.status.borrow();
        let live = status.is_live(Instant::now());
        (code(live), body(&status, live, None))
    };
    health.answer(Probe::Livez, code, &body)
}

/// Asked by the agents of other nodes; unknown here without DSR, as with other proxies.
async fn dsr(State(health): State<Health>) -> Response {
    let status = health.status.borrow();
    if status.dsr.is_empty() {
        return StatusCode::NOT_FOUND.into_response();
    }
    axum::Json(Taken { node: status.node.clone(), takes: status.dsr.clone() }).into_response()
}

impl Health {
    fn answer(&self, probe: Probe, code: StatusCode, body: &Value) -> Response {
        self.metrics.probed(probe, code.as_u16());
        let headers =
            [(header::CONTENT_TYPE, "application/json"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
        (code, headers, body.to_string()).into_response()
    }
}

fn code(good: bool) -> StatusCode {
    if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

/// B132.
fn body(status: &Status, healthy: bool, eligible: Option<bool>) -> Value {
    let now = rfc3339(unix_now());
    let synced = rfc3339(status.synced);
    let family = json!({"lastUpdated": synced, "healthy": healthy});
    let families: Map<String, Value> =
        Family::ALL.iter().map(|f| (f.name().to_owned(), family.clone())).collect();
    let good = healthy && eligible.unwrap_or(true);
    let mut body = json!({
        "lastUpdated": if good { &now } else { &synced },
        "currentTime": now,
        "healthy": healthy,
        "status": families,
    });
    if let (Some(eligible), Some(fields)) = (eligible, body.as_object_mut()) {
        fields.insert("nodeEligible".to_owned(), eligible.into());
    }
    body
}

#[cfg(test)]
#[path = "health_tests.rs"]
mod tests;
