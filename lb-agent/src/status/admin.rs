//! `/metrics`, `/metrics/slis`, `/proxyMode`, `/configz`, `/status` and `/healthz` of the metrics address (B135, B136), and
//! how all HTTP is served.

use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use tokio::net::TcpListener;
use tracing::warn;

use super::StatusReader;
use super::metrics::{METRICS_TYPE, Metrics};
use crate::events::{Event, Events};

/// A listener that failed is tried again after this (B134, B135).
const RETRY: Duration = Duration::from_secs(5);

/// The routes; every other path is 404.
///
/// `config` is the KubeProxyConfiguration in force.
pub fn routes(status: StatusReader, metrics: Metrics, config: Value) -> Router {
    Router::new()
        .route("/metrics", get(metrics_text))
        .route("/metrics/slis", get(slis))
        .route("/configz", get(|| async move { axum::Json(json!({"kubeproxy.config.k8s.io": config})) }))
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

async fn slis(State(admin): State<Admin>) -> Response {
    ([(header::CONTENT_TYPE, METRICS_TYPE)], admin.metrics.slis()).into_response()
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

/// Serves routes; an address that cannot be opened is tried again every 5 s, or, with `hard_fail`, ends it.
///
/// The zero address of either family stands for all addresses of both, but for `[::]` with `only_v6`. Cancel-safe:
/// dropping it closes the listener.
///
/// # Errors
/// The address cannot be opened, with `hard_fail` only.
pub async fn serve(listen: Listen, routes: Router, events: &Events) -> io::Result<()> {
    let mut told = false;
    loop {
        let served = match bind(listen.address, listen.only_v6) {
            Ok(listener) => {
                told = false;
                axum::serve(listener, routes.clone()).await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = served {
            let in_use = error.kind() == io::ErrorKind::AddrInUse;
            let hint = if in_use { "another program has it; does kube-proxy still run?" } else { "" };
            warn!(server = listen.name, address = %listen.address, %error, hint, "HTTP address cannot be served");
            if !told && let Some(event) = &listen.on_failure {
                events.say(event.clone().because(&format!("{}: {error}", listen.address)));
            }
            told = true;
            if listen.hard_fail {
                return Err(error);
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Where and how to listen.
#[derive(Clone, Debug)]
pub struct Listen {
    /// For the log.
    pub name: &'static str,
    /// Where.
    pub address: SocketAddr,
    /// `[::]` does not stand for IPv4.
    pub only_v6: bool,
    /// A failure ends it.
    pub hard_fail: bool,
    /// Said once when it cannot be opened.
    pub on_failure: Option<Event>,
}

fn bind(address: SocketAddr, only_v6: bool) -> io::Result<TcpListener> {
    let both = SocketAddr::from((Ipv6Addr::UNSPECIFIED, address.port()));
    if address.ip().is_unspecified() && !only_v6 {
        match open(both, false) {
            Ok(listener) => return Ok(listener),
            // A kernel without IPv6.
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {}
            Err(error) => return Err(error),
        }
    }
    open(address, true)
}

/// The system's own default for IPv4 on `[::]` (net.ipv6.bindv6only) does not count.
fn open(address: SocketAddr, only_v6: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(only_v6)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(128)?;
    TcpListener::from_std(socket.into())
}
