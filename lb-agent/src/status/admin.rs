//! `/metrics`, `/proxyMode`, `/status` and `/healthz` of the metrics address (B135, B136), and how all HTTP is served.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tracing::warn;

use super::StatusReader;
use super::metrics::{METRICS_TYPE, Metrics};

/// A listener that failed is tried again after this (B134, B135).
const RETRY: Duration = Duration::from_secs(5);

/// The routes; every other path is 404.
pub fn routes(status: StatusReader, metrics: Metrics) -> Router {
    Router::new()
        .route("/metrics", get(metrics_text))
        .route("/proxyMode", get(proxy_mode))
        .route("/status", get(status_json))
        .route("/healthz", get(|| async { plain("ok".to_owned()) }))
        .with_state(Admin { status, metrics })
}

#[derive(Clone)]
struct Admin {
    status: StatusReader,
    metrics: Metrics,
}

async fn metrics_text(State(admin): State<Admin>) -> Response {
    ([(header::CONTENT_TYPE, METRICS_TYPE)], admin.metrics.text()).into_response()
}

async fn proxy_mode(State(admin): State<Admin>) -> Response {
    plain(admin.status.borrow().mode.clone())
}

async fn status_json(State(admin): State<Admin>) -> Response {
    let status = admin.status.borrow().clone();
    axum::Json(status).into_response()
}

fn plain(text: String) -> Response {
    let headers =
        [(header::CONTENT_TYPE, "text/plain; charset=utf-8"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    (headers, text).into_response()
}

/// Serves routes for ever; an address that cannot be opened is tried again every 5 s.
///
/// Cancel-safe: dropping it closes the listener.
pub async fn serve(name: &'static str, address: SocketAddr, routes: Router) {
    loop {
        let served = match TcpListener::bind(address).await {
            Ok(listener) => axum::serve(listener, routes.clone()).await,
            Err(error) => Err(error),
        };
        if let Err(error) = served {
            warn!(server = name, %address, %error, "HTTP address cannot be served, trying again");
        }
        tokio::time::sleep(RETRY).await;
    }
}
