//! The only place that spawns. A task that ends takes the process with it: a supervisor starts it anew, and the data
//! path goes on meanwhile.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::string_slice))]

use std::collections::BTreeMap;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::Arc;

use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tracing::warn;

use crate::config::{RunConfig, SourceConfig};
use crate::events::{Event, Events};
use crate::kernel::Kernel;
use crate::kubeproxy;
use crate::links::NodeNet;
use crate::model::ObjectName;
use crate::model::settings::Dsr;
use crate::peers;
use crate::run::{Parts, RunError, run};
use crate::status::admin::Listen;
use crate::status::metrics::Metrics;
use crate::status::{Status, StatusReader, admin, health, healthcheck, surroundings};
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
    /// `--config` has changed (B161).
    #[error("the file of --config has changed: {0}; start again to use it (traffic goes on)")]
    ConfigChanged(String),
    /// An address cannot be opened, and `bindAddressHardFail` says that this ends it (B134, B135).
    #[error("{server} address {address} cannot be opened: {source}")]
    Bind {
        /// Which server.
        server: &'static str,
        /// Its address.
        address: SocketAddr,
        /// The cause.
        source: std::io::Error,
    },
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
    let (mut events, told) = Events::channel();
    let (event_sender, received) = mpsc::channel(EVENTS);
    let (net_sender, net) = watch::channel(NodeNet::default());
    let (status, reader) = watch::channel(Status { warnings: config.warnings.clone(), ..Status::default() });
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
            // nobody to tell them to: they are in the log
            events = Events::default();
            Store::new([Source::Manifests])
        }
        SourceConfig::Api(source) => {
            let teller = api::tell::tell(source.clone(), told);
            tasks.spawn(async move {
                teller.await;
                Ok("events")
            });
            tasks.spawn(async move {
                api::watch(source, event_sender).await;
                Ok("API watch")
            });
            Store::new(api::SOURCES)
        }
    };
    if let Some((path, content)) = config.file.clone() {
        tasks.spawn(async move {
            kubeproxy::watch::changed(path.clone(), content).await;
            Err(AgentError::ConfigChanged(path.display().to_string()))
        });
    }
    events.say(Event::starting());
    let listen = |name, address, on_failure| {
        let hard_fail = config.hard_fail;
        Listen { name, address, only_v6: false, hard_fail, on_failure: Some(on_failure) }
    };
    let routes = health::routes(reader.clone(), metrics.clone());
    let health = listen("health", config.healthz, Event::proxier_health_check_failed());
    tasks.spawn(serve(health, routes, events.clone()));
    let routes = admin::routes(reader.clone(), metrics.clone(), config.effective.clone());
    let admin = listen("metrics", config.metrics, Event::metric_server_failed());
    tasks.spawn(serve(admin, routes, events.clone()));
    let tell = events.clone();
    tasks.spawn(async move {
        serve_health_checks(reader, events).await;
        Ok("health check servers")
    });
    let looking = status.clone();
    tasks.spawn(async move {
        surroundings::watch(looking).await;
        Ok("surroundings")
    });

    let settings = config.settings;
    let peers = if settings.dsr == Dsr::Off {
        peers::Link::default()
    } else {
        let (link, asked, told) = peers::link();
        let port = config.healthz.port();
        tasks.spawn(async move {
            peers::watch(port, asked, told).await;
            Ok("watch of the other nodes")
        });
        link
    };
    let parts = Parts {
        kernel,
        store,
        events: received,
        net,
        peers,
        settings,
        status,
        metrics,
        tell,
        seed: random(),
    };
    tokio::select! {
        ended = run(parts, stop) => Ok(ended?),
        Some(task) = tasks.join_next() => match task {
            Ok(Ok(name)) => Err(AgentError::TaskEnded(name)),
            Ok(Err(error)) => Err(error),
            Err(_panicked) => Err(AgentError::TaskEnded("that panicked")),
        },
    }
}

async fn serve(listen: Listen, routes: axum::Router, events: Events) -> Result<&'static str, AgentError> {
    let (server, address) = (listen.name, listen.address);
    match admin::serve(listen, routes, &events).await {
        Ok(()) => Ok(server),
        Err(source) => Err(AgentError::Bind { server, address, source }),
    }
}

/// Keeps the listeners of all health check node ports (B123); ends with the loop.
async fn serve_health_checks(mut status: StatusReader, events: Events) {
    let mut running: BTreeMap<SocketAddr, AbortHandle> = BTreeMap::new();
    let mut servers = JoinSet::new();
    let mut seen = None;
    while status.changed().await.is_ok() {
        let now = {
            let status = status.borrow_and_update();
            (Arc::clone(&status.health_checks), status.health_check_addresses.clone())
        };
        // the list is the very same for as long as nothing of it changes
        let same = |(checks, addresses): &(Arc<_>, _)| Arc::ptr_eq(checks, &now.0) && *addresses == now.1;
        if seen.as_ref().is_some_and(same) {
            continue;
        }
        let (wanted, addresses) = (healthcheck::by_port(&now.0), now.1.clone());
        seen = Some(now);
        let wanted_at = healthcheck::listen_addresses(&wanted, addresses.as_ref());
        running.retain(|address, task| {
            let keep = wanted_at.contains(address);
            if !keep {
                task.abort();
            }
            keep
        });
        for address in wanted_at {
            if running.contains_key(&address) {
                continue;
            }
            let port = address.port();
            let service = wanted.get(&port).map(|check| ObjectName::new(&check.namespace, &check.name));
            let listen = Listen {
                name: "health check",
                address,
                only_v6: addresses.is_some(),
                hard_fail: false,
                on_failure: service.map(Event::service_health_check_failed),
            };
            let (routes, events) = (healthcheck::routes(port, status.clone()), events.clone());
            let task = servers.spawn(async move { admin::serve(listen, routes, &events).await });
            running.insert(address, task);
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
