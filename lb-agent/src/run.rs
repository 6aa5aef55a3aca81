//! The loop: collect, plan, apply, attach, publish. One task owns the store, the ids and the kernel.
//!
//! **Invariants:** nothing is written before every source and the node's network are in sync (B141). The first change
//! after a quiet time is programmed at once, later ones at least `min_sync` apart (B142). What failed is tried again,
//! with growing pauses, until it is done (B143). Stopping leaves the kernel as it is (B156).
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::string_slice))]

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use lb_common::abi::CFG_FAST_FLOWS;
use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{debug, info, warn};

use crate::events::{Event as Said, Events};
use crate::gc::alerts::About;
use crate::kernel::{ApplyReport, AttachReport, Kernel};
use crate::links::NodeNet;
use crate::model::settings::{Dsr, Settings};
use crate::peers;
use crate::plan::ids::IdTable;
use crate::plan::node::NodeFacts;
use crate::plan::select::Place;
use crate::plan::{Inputs, Planner};
use crate::status::fast::FastState;
use crate::status::healthcheck::HealthChecks;
use crate::status::metrics::Metrics;
use crate::status::{Status, Tables, unix_now};
use crate::store::{Changed, Event, Snapshot, Store};

/// First pause after a failed apply; it doubles up to `Settings::sync`.
const FIRST_RETRY: Duration = Duration::from_millis(100);
/// How often flows are swept and counters published.
const TICK: Duration = Duration::from_secs(1);

/// Why the loop ended by itself.
#[derive(Debug, Error)]
pub enum RunError {
    /// A source has ended.
    #[error("the source of objects has ended")]
    SourceGone,
    /// The watch of the node's network has ended.
    #[error("the watch of the node's network has ended")]
    NetGone,
    /// Nobody asks the other nodes any more.
    #[error("the watch of the other nodes has ended")]
    PeersGone,
}

/// What the loop works with.
#[derive(Debug)]
pub struct Parts<K> {
    /// The kernel.
    pub kernel: K,
    /// Empty store that knows its sources.
    pub store: Store,
    /// What the sources say.
    pub events: mpsc::Receiver<Event>,
    /// The node's network; the first change is its first full state.
    pub net: watch::Receiver<NodeNet>,
    /// What other nodes say of themselves.
    pub peers: peers::Link,
    /// How the operator wants it.
    pub settings: Settings,
    /// Where to publish.
    pub status: watch::Sender<Status>,
    /// Where durations are counted.
    pub metrics: Metrics,
    /// Where to tell what the operator should hear.
    pub tell: Events,
    /// A random number: where generations begin.
    pub seed: u32,
}

/// Runs until `stop` is done or a source ends.
///
/// Plans and system calls run on the calling task: give the runtime a second thread for HTTP.
///
/// # Errors
/// See [`RunError`]; the kernel stays as it is.
pub async fn run<K: Kernel>(parts: Parts<K>, stop: impl Future<Output = ()>) -> Result<(), RunError> {
    let mut worker = Worker::new(parts);
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tokio::pin!(stop);
    loop {
        let due = worker.due();
        tokio::select! {
            () = &mut stop => {
                info!("Stopping; the data path goes on");
                return Ok(());
            }
            event = worker.events.recv() => worker.take(event.ok_or(RunError::SourceGone)?),
            changed = worker.net.changed() => {
                changed.map_err(|_closed| RunError::NetGone)?;
                worker.net_changed();
            }
            changed = worker.peers.answers.changed() => {
                changed.map_err(|_closed| RunError::PeersGone)?;
                worker.surroundings_changed = true;
                worker.queue(Changed { others: 1, ..Changed::default() });
            }
            () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => worker.cycle(),
            _ = tick.tick() => worker.tick(),
        }
    }
}

struct Worker<K> {
    kernel: K,
    store: Store,
    events: mpsc::Receiver<Event>,
    net: watch::Receiver<NodeNet>,
    net_known: bool,
    peers: peers::Link,
    settings: Settings,
    status: watch::Sender<Status>,
    metrics: Metrics,
    ids: IdTable,
    planner: Planner,
    checks: HealthChecks,
    /// The node's network, or what other nodes said, changed since the last plan.
    surroundings_changed: bool,
    /// The kernel's tables were read and their ids taken over.
    restored: bool,
    /// Something changed since the last cycle.
    dirty: bool,
    /// When a change may be programmed.
    earliest: Instant,
    /// When the last cycle, which failed, is to be tried again. A change does not wait for it: what fails may be
    /// somebody else's.
    retry_at: Option<Instant>,
    retry: Duration,
    /// Zero of the clock of the id table.
    born: Instant,
    /// The same moment, seconds since 1970.
    born_unix: f64,
    /// The last cycle left nothing to be done again.
    clean: bool,
    tell: Events,
    /// What was told and still holds.
    told: BTreeSet<About>,
    /// What was said of fast forwarding.
    fast: FastState,
}

impl<K: Kernel> Worker<K> {
    fn new(parts: Parts<K>) -> Self {
        let Parts { kernel, store, events, net, peers, settings, status, metrics, tell, seed } = parts;
        let limits = kernel.limits().unwrap_or(settings.limits);
        let settings = Settings { kernel_flags: kernel.config_flags(), limits, ..settings };
        status.send_modify(|s| {
            s.node.clone_from(&settings.node_name);
            settings.mode.name().clone_into(&mut s.mode);
            s.version = env!("CARGO_PKG_VERSION");
            s.sync_period = settings.sync;
            s.eligible = true;
            s.notes = kernel.notes();
            s.map_memory = kernel.memory();
            s.awaited = store.awaited().iter().map(|a| format!("{a:?}")).collect();
        });
        Self {
            ids: IdTable::new(&settings.limits, seed),
            planner: Planner::default(),
            checks: HealthChecks::default(),
            surroundings_changed: true,
            kernel,
            store,
            events,
            net,
            net_known: false,
            peers,
            settings,
            status,
            metrics,
            restored: false,
            dirty: false,
            earliest: Instant::now(),
            retry_at: None,
            retry: FIRST_RETRY,
            born: Instant::now(),
            born_unix: unix_now(),
            clean: false,
            tell,
            told: BTreeSet::new(),
            fast: FastState::default(),
        }
    }

    /// When the next cycle is to begin; `None` = there is nothing to do or something to wait for.
    fn due(&self) -> Option<Instant> {
        if !self.net_known || !self.store.in_sync() {
            return None;
        }
        let change = self.dirty.then_some(self.earliest);
        change.into_iter().chain(self.retry_at).min()
    }

    fn take(&mut self, event: Event) {
        let mut changed = self.store.take(event);
        // What waits already is taken in one go: a Service and its slices come together.
        while let Ok(event) = self.events.try_recv() {
            let more = self.store.take(event);
            changed.services += more.services;
            changed.slices += more.slices;
            changed.others += more.others;
        }
        if changed.any() {
            self.queue(changed);
        }
    }

    fn net_changed(&mut self) {
        self.net_known = true;
        self.surroundings_changed = true;
        self.net.mark_unchanged();
        self.queue(Changed { others: 1, ..Changed::default() });
    }

    fn queue(&mut self, changed: Changed) {
        self.dirty = true;
        let in_sync = self.store.in_sync();
        let mut awaited: Vec<String> = self.store.awaited().iter().map(|a| format!("{a:?}")).collect();
        if !self.net_known {
            awaited.push("Network".to_owned());
        }
        let waiting = (!in_sync).then(|| Arc::new(self.store.issues().to_vec()));
        self.status.send_modify(|s| {
            s.queue(changed);
            // Why it is not in sync; afterwards a cycle names them, beside its own.
            if let Some(issues) = waiting {
                s.issues = issues;
            }
            s.in_sync = in_sync && awaited.is_empty();
            s.awaited = awaited;
            if !s.in_sync {
                // Nothing is late that cannot begin: an API server that is away is no reason for a restart.
                s.pending_since = None;
            }
        });
    }

    /// Plan, apply, attach, publish.
    fn cycle(&mut self) {
        if !self.restored && !self.restore() {
            return;
        }
        let started = Instant::now();
        let now = started.duration_since(self.born);
        let mut scope = self.store.take_scope();
        scope.node |= std::mem::take(&mut self.surroundings_changed)
            || self.net.has_changed().unwrap_or(false)
            || self.peers.answers.has_changed().unwrap_or(false);
        let net = self.net.borrow_and_update().clone();
        let snapshot = self.store.snapshot();
        let attachments = self.kernel.attach_set(&net);
        let answers = self.peers.answers.borrow_and_update().clone();
        let dsr = self.settings.dsr != Dsr::Off;
        if dsr && scope.node {
            ask_peers(&self.peers, snapshot, &self.settings);
        }
        let inputs = Inputs {
            snapshot,
            net: &net,
            attachments: &attachments,
            settings: &self.settings,
            answers: &answers,
        };
        self.planner.plan(inputs, &scope, &mut self.ids, now);
        let applied = self.kernel.apply(self.planner.desired(), self.planner.changes());
        // An interface without its row would drop what it should masquerade: rows first.
        let attached = self.kernel.attach(&net, &attachments);
        debug!(
            services = self.planner.planned(),
            changed = applied.changed,
            attached = attached.attached,
            "Applied"
        );
        let complete = applied.failures.is_empty() && attached.failures.is_empty();
        let programmed = applied.failures.is_empty();
        if programmed {
            self.ids.applied(self.born.elapsed());
        }
        let node = snapshot.nodes.get(&self.settings.node_name);
        let place = Place { node: &self.settings.node_name, zone: node.map_or("", |n| &n.zone) };
        let checks = self.checks.follow(snapshot, place, &scope);
        let eligible = !node.is_some_and(|n| n.leaving);
        let fast = FastState::of(&net, &self.settings);
        fast.tell_if_other(&self.fast);
        self.fast = fast.clone();
        let check_addresses = NodeFacts::new(snapshot, &net, &self.settings).health_check_addresses();
        self.metrics.applied_in(started.elapsed().as_secs_f64(), !self.clean);
        if programmed {
            self.observe_triggers();
        }
        let takes = if dsr { peers::taken() } else { Vec::new() };
        let said = (dsr && scope.node).then(|| answers.lines().collect());
        self.clean = complete;
        self.finish(complete);
        let tables = Tables::with(self.planner.desired(), self.planner.tally());
        let issues = Arc::clone(self.planner.issues());
        self.status.send_modify(|s| {
            s.eligible = eligible;
            s.fast = fast;
            // an interface that refuses says nothing about endpoints
            if let Some(said) = said {
                s.dsr_peers = said;
            }
            if programmed {
                s.dsr = takes;
                s.health_checks = checks;
                s.health_check_addresses = check_addresses;
            }
            s.applied(applied, attached, tables, issues);
        });
    }

    /// Takes over the ids that the kernel holds; false = it cannot be read, and it is tried again later.
    fn restore(&mut self) -> bool {
        match self.kernel.actual() {
            Ok(actual) => {
                self.ids.restore(&actual);
                // fast flows outlive the option
                self.settings.kernel_flags |= actual.config.flags & CFG_FAST_FLOWS;
                self.restored = true;
                info!(
                    backends = actual.backends4.len() + actual.backends6.len(),
                    "Took over the kernel's tables"
                );
                true
            }
            Err(error) => {
                let failure = ApplyReport { changed: 0, failures: vec![error.to_string()] };
                let status = self.status.borrow();
                let (tables, issues) = (status.tables, status.issues.clone());
                drop(status);
                self.finish(false);
                self.status.send_modify(|s| s.applied(failure, AttachReport::default(), tables, issues));
                false
            }
        }
    }

    /// B139: what happened before this agent is not its time.
    fn observe_triggers(&mut self) {
        let now = unix_now();
        for (family, time) in self.store.take_triggers() {
            if time >= self.born_unix {
                self.metrics.programmed_in(family, (now - time).max(0.0));
            }
        }
    }

    /// Sets when the next cycle may begin.
    fn finish(&mut self, complete: bool) {
        self.dirty = false;
        self.earliest = Instant::now() + self.settings.min_sync;
        if complete {
            self.retry = FIRST_RETRY;
            self.retry_at = None;
        } else {
            warn!(
                retry_ms = u64::try_from(self.retry.as_millis()).unwrap_or(u64::MAX),
                "Apply failed, see /status"
            );
            self.retry_at = Some(Instant::now() + self.retry);
            self.retry = (self.retry * 2).min(self.settings.sync);
        }
    }

    fn tick(&mut self) {
        self.kernel.sweep();
        if self.restored && !self.dirty && self.retry_at.is_none() && !self.kernel.intact() {
            warn!("Somebody removed pins of the data path; putting them back");
            self.dirty = true;
        }
        let (counters, usage) = (self.kernel.counters(), self.kernel.usage());
        let (alerts, ports_used) = (self.kernel.alerts(), self.kernel.ports_used());
        for alert in alerts.iter().filter(|alert| self.told.insert(alert.about.clone())) {
            self.tell.say(Said::running_out(&alert.text));
        }
        self.told.retain(|about| alerts.iter().any(|alert| alert.about == *about));
        self.status.send_if_modified(|s| {
            s.counters = counters;
            s.usage = usage;
            s.alerts = alerts.into_iter().map(|alert| alert.text).collect();
            s.ports_used = ports_used;
            false
        });
    }
}

/// Has the other nodes asked, with DSR.
fn ask_peers(peers: &peers::Link, snapshot: &Snapshot, settings: &Settings) {
    let others = snapshot.nodes.values().filter(|n| n.name != settings.node_name);
    let nodes: peers::Nodes = others.map(|n| (n.name.clone(), n.addresses.clone())).collect();
    peers.nodes.send_if_modified(|asked| {
        let changed = *asked != nodes;
        *asked = nodes;
        changed
    });
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
