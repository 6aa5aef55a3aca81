//! What the outside may know of the agent: written by the loop and by [`surroundings`], read by HTTP and by the health
//! check servers.
//!
//! **Invariant:** nothing here is ever fed back into the plan.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::string_slice))]

pub mod admin;
pub mod client;
pub mod fast;
pub mod health;
pub mod healthcheck;
pub mod metrics;
pub mod surroundings;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tokio::sync::watch;

use crate::desired::{Desired, NoLocal, Tally};
use crate::kernel::{ApplyReport, AttachReport, Usage};
use crate::leftovers::Leftovers;
use crate::plan::issue::Issue;
use crate::status::healthcheck::HealthCheck;
use crate::store::Changed;

/// The agent at one moment.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// This node.
    pub node: String,
    /// The configured mode.
    pub mode: String,
    /// Version of the agent.
    pub version: &'static str,
    /// Every source has delivered its first full list.
    pub in_sync: bool,
    /// Sources that have not.
    pub awaited: Vec<String>,
    /// The data path has held everything that was listed, at least once since the start.
    pub serving: bool,
    /// The Node takes new traffic of load balancers (B131).
    pub eligible: bool,
    /// When the last change was seen, seconds since 1970; 0 = never.
    pub queued: f64,
    /// When the last apply without failures ended, seconds since 1970; 0 = never.
    pub synced: f64,
    /// Applies that were tried.
    pub applies: u64,
    /// Applies that failed, in part or whole.
    pub failed_applies: u64,
    /// Why the last apply failed; empty = it did not.
    pub failures: Vec<String>,
    /// What is wrong with objects.
    #[serde(serialize_with = "as_list")]
    pub issues: Arc<Vec<Issue>>,
    /// What is strange about the configuration, and what of the node could not be set.
    pub warnings: Vec<String>,
    /// What kube-proxy left in the kernel.
    pub leftovers: Leftovers,
    /// The same in sentences.
    pub leftover_warnings: Vec<String>,
    /// What the operator should know of the kernel's side while nothing is wrong.
    pub notes: Vec<String>,
    /// Bytes that the kernel's tables take; they count against the limit of the agent's container.
    pub map_memory: u64,
    /// Rows of each table.
    pub tables: Tables,
    /// How full the kernel's tables are.
    pub usage: Vec<Usage>,
    /// What the operator should hear before a flow table or a pool of source ports is used up.
    pub alerts: Vec<String>,
    /// The largest share of a pool of source ports in use (masqueraded flows to one backend), 0 to 1.
    pub ports_used: f64,
    /// Interfaces that carry programs.
    pub attached: usize,
    /// Their names.
    pub interfaces: Vec<String>,
    /// Names of those that carry XDP, too.
    pub xdp: Vec<String>,
    /// Interfaces that were to carry XDP and do not, with the reason.
    pub xdp_refused: Vec<String>,
    /// Whether flows between pods go past the stack.
    pub fast: fast::FastState,
    /// Outer headers that this node takes off packets of others; empty: DSR is off.
    pub dsr: Vec<String>,
    /// What is known of the other nodes' DSR, a line each.
    pub dsr_peers: Vec<String>,
    /// Changes seen (B140).
    pub service_changes: u64,
    /// As `service_changes`, for EndpointSlices.
    pub endpoint_changes: u64,
    /// Changes not yet programmed.
    pub service_pending: u64,
    /// As `service_pending`, for EndpointSlices.
    pub endpoint_pending: u64,
    /// Counters of the data path.
    #[serde(serialize_with = "as_map")]
    pub counters: Vec<(&'static str, u64)>,
    /// Health check node ports.
    #[serde(serialize_with = "as_list")]
    pub health_checks: Arc<Vec<HealthCheck>>,
    /// Where they listen, see [`crate::plan::node::NodeFacts::health_check_addresses`].
    #[serde(skip)]
    pub health_check_addresses: Option<BTreeSet<IpAddr>>,
    /// The first change that is not programmed yet.
    #[serde(skip)]
    pub pending_since: Option<Instant>,
    /// Twice this pending is unhealthy (B128).
    #[serde(skip)]
    pub sync_period: Duration,
}

/// Rows of each table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Tables {
    /// IPv4 frontends, active ClusterIPs included.
    pub services4: usize,
    /// IPv6 frontends, active ClusterIPs included.
    pub services6: usize,
    /// IPv4 backends.
    pub backends4: usize,
    /// IPv6 backends.
    pub backends6: usize,
    /// Slots in use or in quarantine.
    pub slots: usize,
    /// Service ports with Maglev tables.
    pub maglev: usize,
    /// Source ranges of both families.
    pub ranges: usize,
    /// Interfaces.
    pub interfaces: usize,
    /// Service ports of Local policy without an endpoint here although there are some elsewhere (B138), IPv4 and IPv6.
    pub no_local: [NoLocal; 2],
}

impl Tables {
    /// Counts the rows.
    #[must_use]
    pub fn of(desired: &Desired) -> Self {
        Self::with(desired, Tally::of(desired.services4.values(), desired.services6.values()))
    }

    /// The same where the frontends are counted already.
    #[must_use]
    pub fn with(desired: &Desired, tally: Tally) -> Self {
        Self {
            services4: desired.services4.len(),
            services6: desired.services6.len(),
            backends4: desired.backends4.len(),
            backends6: desired.backends6.len(),
            slots: desired.slots.len(),
            maglev: tally.maglev,
            ranges: desired.ranges4.len() + desired.ranges6.len(),
            interfaces: desired.interfaces.len(),
            no_local: tally.no_local,
        }
    }
}

impl Status {
    /// No change has waited for longer than twice the sync period (B128).
    #[must_use]
    pub fn is_live(&self, now: Instant) -> bool {
        self.pending_since.is_none_or(|since| now.saturating_duration_since(since) <= self.sync_period * 2)
    }

    /// The data path serves what was listed (DESIGN section 5.6).
    #[must_use]
    pub fn is_healthy(&self, now: Instant) -> bool {
        self.serving && self.is_live(now)
    }

    /// A change was seen.
    pub fn queue(&mut self, changed: Changed) {
        self.queued = unix_now();
        self.pending_since.get_or_insert_with(Instant::now);
        self.service_changes += changed.services;
        self.service_pending += changed.services;
        self.endpoint_changes += changed.slices;
        self.endpoint_pending += changed.slices;
    }

    /// An apply ended; `complete` = the kernel holds everything.
    pub fn applied(
        &mut self,
        apply: ApplyReport,
        attach: AttachReport,
        tables: Tables,
        issues: Arc<Vec<Issue>>,
    ) {
        self.applies += 1;
        self.attached = attach.attached;
        self.interfaces = attach.interfaces;
        self.xdp = attach.xdp;
        self.xdp_refused = attach.refused;
        self.failures = apply.failures.into_iter().chain(attach.failures).collect();
        self.issues = issues;
        if !self.failures.is_empty() {
            self.failed_applies += 1;
            return;
        }
        self.tables = tables;
        self.serving = true;
        self.synced = unix_now();
        self.pending_since = None;
        self.service_pending = 0;
        self.endpoint_pending = 0;
    }
}

/// A handle for readers.
pub type StatusReader = watch::Receiver<Status>;

/// Seconds since 1970.
#[must_use]
pub fn unix_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// RFC 3339 of seconds since 1970.
#[must_use]
pub fn rfc3339(seconds: f64) -> String {
    jiff::Timestamp::from_duration(jiff::SignedDuration::from_secs_f64(seconds))
        .map(|t| t.to_string())
        .unwrap_or_default()
}

fn as_map<S: serde::Serializer>(list: &[(&'static str, u64)], to: S) -> Result<S::Ok, S::Error> {
    to.collect_map(list.iter().map(|(name, value)| (name, value)))
}

fn as_list<T: Serialize, S: serde::Serializer>(list: &Arc<Vec<T>>, to: S) -> Result<S::Ok, S::Error> {
    list.as_slice().serialize(to)
}
