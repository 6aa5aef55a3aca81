use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;

use std::net::SocketAddr;

use super::*;
use crate::events::{Event, Events};
use crate::status::admin::{self, Listen};

/// A status that serves, after `change`.
fn status(change: impl FnOnce(&mut Status)) -> Status {
    let mut status = Status {
        serving: true,
        eligible: true,
        synced: 1_767_225_600.0,
        mode: "nftables".to_owned(),
        sync_period: Duration::from_secs(30),
        ..Status::default()
    };
    change(&mut status);
    status
}

/// Status code, headers and body of a request to routes served on a real socket.
async fn get(
    status: Status,
    path: &str,
    routes: impl Fn(StatusReader, Metrics) -> Router,
) -> (u16, String, String) {
    let (_sender, reader) = watch::channel(status);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let routes = routes(reader.clone(), Metrics::new(reader));
    let server = tokio::spawn(async move { axum::serve(listener, routes).await });
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    server.abort();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let code = head.split(' ').nth(1).unwrap().parse().unwrap();
    (code, head.to_lowercase(), body.to_owned())
}

fn admin_routes(status: StatusReader, metrics: Metrics) -> Router {
    admin::routes(status, metrics, serde_json::json!({"mode": "nftables"}))
}

async fn codes(change: fn(&mut Status)) -> (u16, u16) {
    let healthz = get(status(change), "/healthz", routes).await.0;
    (healthz, get(status(change), "/livez", routes).await.0)
}

fn ago(seconds: u64) -> Option<Instant> {
    Instant::now().checked_sub(Duration::from_secs(seconds))
}

#[tokio::test]
async fn healthz_is_200_only_when_everything_listed_is_served() {
    assert_eq!(codes(|_| ()).await, (200, 200));
    assert_eq!(codes(|s| s.serving = false).await, (503, 200));
}

#[tokio::test]
async fn b128_what_waits_longer_than_twice_the_sync_period_is_unhealthy() {
    assert_eq!(codes(|s| s.pending_since = ago(59)).await, (200, 200));
    assert_eq!(codes(|s| s.pending_since = ago(61)).await, (503, 503));
}

#[tokio::test]
async fn b131_a_leaving_node_fails_healthz_but_not_livez() {
    assert_eq!(codes(|s| s.eligible = false).await, (503, 200));
}

#[tokio::test]
async fn b132_headers_and_body() {
    let (_, head, body) = get(status(|_| ()), "/healthz", routes).await;
    assert!(
        head.contains("content-type: application/json") && head.contains("x-content-type-options: nosniff")
    );
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((&body["healthy"], &body["nodeEligible"]), (&true.into(), &true.into()));
    assert_eq!(body["lastUpdated"], body["currentTime"], "now, when the answer is 200");
    assert_eq!(body["status"]["IPv6"]["lastUpdated"], "2026-01-01T00:00:00Z");
    let (_, _, body) = get(status(|s| s.eligible = false), "/livez", routes).await;
    let body: Value = serde_json::from_str(&body).unwrap();
    assert!(body.get("nodeEligible").is_none());
    let (_, _, body) = get(status(|s| s.serving = false), "/healthz", routes).await;
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(body["lastUpdated"], "2026-01-01T00:00:00Z");
}

#[tokio::test]
async fn b133_every_answer_is_counted_with_its_code() {
    let counted = async |status: Status| {
        let (_sender, reader) = watch::channel(status);
        let health = Health { status: reader.clone(), metrics: Metrics::new(reader) };
        healthz(State(health.clone())).await;
        healthz(State(health.clone())).await;
        livez(State(health.clone())).await;
        let text = health.metrics.text();
        let lines = text.lines().filter(|line| line.starts_with("kubeproxy_proxy_"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let good = ["healthz_total{code=\"200\"} 2", "livez_total{code=\"200\"} 1"];
    assert_eq!(counted(status(|_| ())).await, good.map(|line| format!("kubeproxy_proxy_{line}")));
    let leaving = ["healthz_total{code=\"503\"} 2", "livez_total{code=\"200\"} 1"];
    let lines = counted(status(|s| s.eligible = false)).await;
    assert_eq!(lines, leaving.map(|line| format!("kubeproxy_proxy_{line}")));
}

#[tokio::test]
async fn b136_the_metrics_address() {
    let (code, head, body) = get(status(|_| ()), "/proxyMode", admin_routes).await;
    assert_eq!((code, body.as_str()), (200, "nftables"));
    assert!(head.contains("text/plain") && head.contains("nosniff"));
    assert_eq!(get(status(|_| ()), "/healthz", admin_routes).await.2, "ok");
    let (_, _, body) = get(status(|_| ()), "/status", admin_routes).await;
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(body["serving"], true);
    assert!(get(status(|_| ()), "/metrics", admin_routes).await.2.contains("kubeproxy_sync_proxy_rules"));
    let (_, _, body) = get(status(|_| ()), "/configz", admin_routes).await;
    assert_eq!(body, r#"{"kubeproxy.config.k8s.io":{"mode":"nftables"}}"#);
    let (_, _, body) = get(status(|_| ()), "/metrics/slis", admin_routes).await;
    assert!(body.contains("kubernetes_healthcheck{name=\"healthz\",type=\"healthz\"} 1"), "{body}");
    assert_eq!(get(status(|_| ()), "/other", admin_routes).await.0, 404);
}

/// Answers of a listener at `address`, asked over IPv4 and IPv6: whether each connects.
async fn reached(address: &str, only_v6: bool) -> [bool; 2] {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = SocketAddr::new(address.parse().unwrap(), port);
    let listen = Listen { name: "test", address, only_v6, hard_fail: true, on_failure: None };
    let server = tokio::spawn(async move { admin::serve(listen, Router::new(), &Events::default()).await });
    let connect = async |host: &str| tokio::net::TcpStream::connect((host, port)).await.is_ok();
    for _ in 0..500 {
        if connect("127.0.0.1").await || connect("::1").await {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let found = [connect("127.0.0.1").await, connect("::1").await];
    server.abort();
    found
}

#[tokio::test]
async fn b127_b129_a_zero_address_is_all_addresses_of_both_families() {
    if tokio::net::TcpListener::bind("[::1]:0").await.is_err() {
        return eprintln!("SKIPPED: no IPv6 here");
    }
    assert_eq!(reached("0.0.0.0", false).await, [true, true]);
    assert_eq!(reached("::", false).await, [true, true]);
    assert_eq!(reached("::", true).await, [false, true]);
    assert_eq!(reached("127.0.0.1", false).await, [true, false]);
}

#[tokio::test]
async fn b134_bind_address_hard_fail_ends_it_and_is_an_event() {
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (events, mut said) = Events::channel();
    let listen = Listen {
        name: "health",
        address: taken.local_addr().unwrap(),
        only_v6: false,
        hard_fail: true,
        on_failure: Some(Event::proxier_health_check_failed()),
    };
    let error = admin::serve(listen, Router::new(), &events).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    let event = said.try_recv().unwrap();
    assert_eq!((event.reason, event.warning), ("FailedToStartProxierHealthcheck", true));
    assert!(event.note.contains("in use"), "{}", event.note);
}

#[tokio::test]
async fn b134_b135_an_address_that_was_taken_is_served_once_it_is_free() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let (events, mut said) = Events::channel();
    let on_failure = Some(Event::metric_server_failed());
    let listen = Listen { name: "metrics", address, only_v6: false, hard_fail: false, on_failure };
    let routes = Router::new().route("/", any(|| async { "here" }));
    let server = tokio::spawn(async move { admin::serve(listen, routes, &events).await });
    assert_eq!(said.recv().await.unwrap().reason, "FailedToStartMetricServer");
    drop(taken);
    // it tries again after 5 s
    let mut answered = String::new();
    for _ in 0..600 {
        if let Ok(mut stream) = tokio::net::TcpStream::connect(address).await {
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
            stream.read_to_string(&mut answered).await.unwrap();
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(answered.ends_with("here"), "{answered}");
    assert!(said.try_recv().is_err(), "said once");
    server.abort();
}
