use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use clap::Parser;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;

use super::*;
use crate::config::{Cli, Command};
use crate::fixture;
use crate::memory_kernel::MemoryKernel;
use crate::status::client;
use crate::status::healthcheck::HealthCheck;

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.200.0.1, ports: [{port: 80}]}
";

/// A port that is free now.
fn free_port() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn config(folder: &Path, healthz: SocketAddr, metrics: SocketAddr) -> RunConfig {
    let (folder, healthz, metrics) = (folder.display().to_string(), healthz.to_string(), metrics.to_string());
    let flags = ["--node-name", "ash", "--manifests", &folder, "--healthz-bind-address", &healthz];
    let all = ["lb-agent", "run"].into_iter().chain(flags).chain(["--metrics-bind-address", &metrics]);
    match Cli::try_parse_from(all).unwrap().command {
        Command::Run(args) => args.resolve().unwrap(),
        other => panic!("{other:?}"),
    }
}

/// Asks until the status is as wanted.
async fn wait_for(agent: SocketAddr, wanted: fn(&serde_json::Value) -> bool) -> serde_json::Value {
    let mut last = None;
    for _ in 0..200 {
        let answer = tokio::task::spawn_blocking(move || client::ask(agent)).await.unwrap();
        if let Ok(status) = answer {
            if wanted(&status) {
                return status;
            }
            last = Some(status);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("not within 4 s; last: {last:?}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_is_served_followed_and_shown_until_the_stop() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("web.yaml"), SERVICE).unwrap();
    let (healthz, metrics) = (free_port(), free_port());
    let kernel = MemoryKernel::default();
    let (stop, stopped) = oneshot::channel::<()>();
    let watch_net = |sender: watch::Sender<NodeNet>| async move {
        sender.send(fixture::net()).unwrap();
        sender.closed().await;
    };
    let stopped = async {
        stopped.await.unwrap();
    };
    let agent =
        tokio::spawn(agent(config(folder.path(), healthz, metrics), kernel.clone(), watch_net, stopped));

    let status = wait_for(metrics, |s| s["serving"] == true).await;
    assert_eq!((&status["node"], &status["tables"]["services4"]), (&"ash".into(), &2.into()));
    std::fs::write(folder.path().join("api.yaml"), SERVICE.replace("web", "api")).unwrap();
    let status = wait_for(metrics, |s| s["issues"].as_array().is_some_and(|i| !i.is_empty())).await;
    assert!(client::text(&status).contains("already belongs to shop/api"), "{}", client::text(&status));
    std::fs::remove_file(folder.path().join("api.yaml")).unwrap();
    wait_for(metrics, |s| s["issues"].as_array().is_some_and(Vec::is_empty)).await;

    stop.send(()).unwrap();
    agent.await.unwrap().unwrap();
    assert_eq!(kernel.0.lock().unwrap().tables.services4.len(), 2, "the data path stays");
}

#[tokio::test]
async fn a_task_that_ends_ends_the_agent() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), free_port(), free_port());
    let watch_net = |_sender: watch::Sender<NodeNet>| async {};
    let ended = agent(config, MemoryKernel::default(), watch_net, std::future::pending()).await;
    assert!(matches!(
        ended,
        Err(AgentError::TaskEnded("network watch") | AgentError::Run(RunError::NetGone))
    ));
}

/// A status with these health check node ports, on 127.0.0.1: (port, name of the Service, local endpoints).
fn checks(list: &[(u16, &str, usize)]) -> Status {
    let check = |(port, name, local_endpoints): &(u16, &str, usize)| HealthCheck {
        port: *port,
        namespace: "shop".into(),
        name: (*name).into(),
        local_endpoints: *local_endpoints,
    };
    Status {
        serving: true,
        health_checks: Arc::new(list.iter().map(check).collect()),
        health_check_addresses: Some([IpAddr::from([127, 0, 0, 1])].into()),
        ..Status::default()
    }
}

/// Waits until a port answers with this first line, or with a refused connection.
async fn says(port: u16, wanted: &str) {
    let mut last = String::new();
    for _ in 0..600 {
        last = match tokio::net::TcpStream::connect(("127.0.0.1", port)).await {
            Err(error) => format!("{:?}", error.kind()),
            Ok(mut stream) => {
                let mut answer = String::new();
                stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.ok();
                stream.read_to_string(&mut answer).await.ok();
                answer.lines().next().unwrap_or_default().to_owned()
            }
        };
        if last.contains(wanted) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("port {port} says {last:?}, not {wanted}")
}

#[tokio::test]
async fn b123_health_check_listeners_open_move_and_close_with_their_services() {
    let (first, second) = (free_port().port(), free_port().port());
    let (status, reader) = watch::channel(Status::default());
    let task = tokio::spawn(serve_health_checks(reader, Events::default()));
    status.send_replace(checks(&[(first, "web", 2)]));
    says(first, " 200").await;
    status.send_replace(checks(&[(first, "web", 0)]));
    says(first, " 503").await;
    status.send_replace(checks(&[(second, "web", 1)]));
    says(second, " 200").await;
    says(first, "ConnectionRefused").await;
    status.send_replace(checks(&[(first, "api", 1), (second, "web", 1)]));
    says(first, " 200").await;
    says(second, " 200").await;
    status.send_replace(checks(&[]));
    says(first, "ConnectionRefused").await;
    says(second, "ConnectionRefused").await;
    drop(status);
    task.await.unwrap();
}

#[tokio::test]
async fn b124_a_health_check_that_cannot_listen_is_an_event_and_is_tried_again() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let (status, reader) = watch::channel(Status::default());
    let (events, mut said) = Events::channel();
    let task = tokio::spawn(serve_health_checks(reader, events));
    status.send_replace(checks(&[(port, "web", 1)]));
    let event = said.recv().await.unwrap();
    assert_eq!(
        (event.reason, event.service),
        ("FailedToStartServiceHealthcheck", Some(ObjectName::new("shop", "web")))
    );
    drop(taken);
    says(port, " 200").await;
    assert!(said.try_recv().is_err(), "said once");
    drop(status);
    task.await.unwrap();
}
