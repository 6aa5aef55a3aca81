//! The only place that spawns. A task that ends takes the process with it: a supervisor starts it anew, and the data
//! path goes on meanwhile.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::string_slice))]

use std::collections::BTreeMap;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;

use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tracing::warn;

use crate::config::{RunConfig, SourceConfig};
use crate::kernel::Kernel;
use crate::links::NodeNet;
use crate::run::{Parts, RunError, run};
use crate::status::metrics::Metrics;
use crate::status::{Status, StatusReader, admin, health, healthcheck};
use crate::store::{Source, Store};
use crate::watch::api;
use crate::watch::manifests::{self, ManifestsError};

/// Events that wait for the loop; a source waits when it is full.
const EVENTS: usize = 256;

/// Why the agent ended by itself.
#[derive(Debug, Error)]
pub enum AgentError {
    /// The loop.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The folder of manifests.
    #[error(transparent)]
    Manifests(#[from] ManifestsError),
    /// A task ended although it should not.
    #[error("the task {0} has ended; see the log")]
    TaskEnded(&'static str),
}

/// Runs the agent until `stop` is done; see [`stop_signal`].
///
/// `watch_net` gets the sender of the node's network and works until it is dropped.
///
/// # Errors
/// See [`AgentError`]; the kernel stays as it is.
pub async fn agent<K, N>(
    config: RunConfig,
    kernel: K,
    watch_net: impl FnOnce(watch::Sender<NodeNet>) -> N,
    stop: impl Future<Output = ()>,
) -> Result<(), AgentError>
where
    K: Kernel,
    N: Future<Output = ()> + Send + 'static,
{
    for warning in &config.warnings {
        warn!(warning, "Configuration");
    }
    let (event_sender, events) = mpsc::channel(EVENTS);
    let (net_sender, net) = watch::channel(NodeNet::default());
    let (status, reader) = watch::channel(Status::default());
    let metrics = Metrics::new(reader.clone());
    let mut tasks: JoinSet<Result<&'static str, AgentError>> = JoinSet::new();

    let net_task = watch_net(net_sender);
    tasks.spawn(async move {
        net_task.await;
        Ok("network watch")
    });
    let store = match config.source {
        SourceConfig::Manifests(folder) => {
            tasks.spawn(async move {
                Ok(manifests::watch(folder, event_sender).await.map(|()| "manifest watch")?)
            });
            Store::new([Source::Manifests])
        }
        SourceConfig::Api(source) => {
            tasks.spawn(async move {
                api::watch(source, event_sender).await;
                Ok("API watch")
            });
            Store::new(api::SOURCES)
        }
    };
    let routes = health::routes(reader.clone(), metrics.clone());
    tasks.spawn(serve("health", config.healthz, routes));
    let routes = admin::routes(reader.clone(), metrics.clone());
    tasks.spawn(serve("metrics", config.metrics, routes));
    tasks.spawn(async move {
        serve_health_checks(reader).await;
        Ok("health check servers")
    });

    let settings = config.settings;
    let parts = Parts { kernel, store, events, net, settings, status, metrics, seed: random() };
    tokio::select! {
        ended = run(parts, stop) => Ok(ended?),
        Some(task) = tasks.join_next() => match task {
            Ok(Ok(name)) => Err(AgentError::TaskEnded(name)),
            Ok(Err(error)) => Err(error),
            Err(_panicked) => Err(AgentError::TaskEnded("that panicked")),
        },
    }
}

async fn serve(
    name: &'static str,
    address: SocketAddr,
    routes: axum::Router,
) -> Result<&'static str, AgentError> {
    admin::serve(name, address, routes).await;
    Ok(name)
}

/// Keeps one listener per health check node port (B123); ends with the loop.
async fn serve_health_checks(mut status: StatusReader) {
    let mut running: BTreeMap<u16, AbortHandle> = BTreeMap::new();
    let mut servers = JoinSet::new();
    while status.changed().await.is_ok() {
        let wanted = healthcheck::by_port(&status.borrow_and_update().health_checks);
        running.retain(|port, task| {
            let keep = wanted.contains_key(port);
            if !keep {
                task.abort();
            }
            keep
        });
        for (port, address) in healthcheck::listen_addresses(&wanted) {
            let reader = status.clone();
            running.entry(port).or_insert_with(|| {
                servers.spawn(admin::serve("health check", address, healthcheck::routes(port, reader)))
            });
        }
        while servers.try_join_next().is_some() {}
    }
}

/// Waits for SIGTERM or SIGINT; call it inside a runtime.
///
/// # Errors
/// Signals cannot be received.
pub fn stop_signal() -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// A number that differs from start to start: the standard library seeds its hasher from the operating system.
fn random() -> u32 {
    let [a, b, c, d, ..] = RandomState::new().hash_one(std::process::id()).to_be_bytes();
    u32::from_be_bytes([a, b, c, d])
}

#[cfg(test)]
#[path = "tasks_tests.rs"]
mod tests;
