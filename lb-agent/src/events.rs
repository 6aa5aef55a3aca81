//! What is told as Events of the cluster (B168): to the log always, and to the API server where there is one.
//!
//! **Invariant:** saying something never waits and never fails; what does not fit the queue is in the log.

use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::model::ObjectName;

/// Events that wait for the API server.
const QUEUE: usize = 64;

/// One thing to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The Service it is about; `None` = this Node.
    pub service: Option<ObjectName>,
    /// `Warning` instead of `Normal`.
    pub warning: bool,
    /// `reason`, as kube-proxy has it.
    pub reason: &'static str,
    /// `action`, as kube-proxy has it.
    pub action: &'static str,
    /// `note`: a sentence.
    pub note: String,
}

impl Event {
    /// The agent starts.
    #[must_use]
    pub fn starting() -> Self {
        Self {
            service: None,
            warning: false,
            reason: "Starting",
            action: "StartKubeProxy",
            note: format!("lb-agent {} takes over the Services of this node", env!("CARGO_PKG_VERSION")),
        }
    }

    /// `/healthz` cannot be served.
    #[must_use]
    pub fn proxier_health_check_failed() -> Self {
        let note = "The address of /healthz cannot be opened".to_owned();
        let (reason, action) = ("FailedToStartProxierHealthcheck", "StartKubeProxy");
        Self { service: None, warning: true, reason, action, note }
    }

    /// `/metrics` cannot be served.
    #[must_use]
    pub fn metric_server_failed() -> Self {
        let note = "The address of /metrics cannot be opened".to_owned();
        let (reason, action) = ("FailedToStartMetricServer", "StartKubeProxy");
        Self { service: None, warning: true, reason, action, note }
    }

    /// A health check node port cannot be served (B124).
    #[must_use]
    pub fn service_health_check_failed(service: ObjectName) -> Self {
        let note = "The healthCheckNodePort cannot be opened".to_owned();
        let (reason, action) = ("FailedToStartServiceHealthcheck", "Listen");
        Self { service: Some(service), warning: true, reason, action, note }
    }

    /// A flow table or a pool of source ports is nearly used up.
    #[must_use]
    pub fn running_out(note: &str) -> Self {
        let (reason, action) = ("RunningOut", "Sweep");
        Self { service: None, warning: true, reason, action, note: note.to_owned() }
    }

    /// Adds the cause.
    #[must_use]
    pub fn because(mut self, cause: &str) -> Self {
        self.note = format!("{}: {cause}", self.note);
        self
    }
}

/// Where to say it; clones say it in the same place. The default has only the log.
#[derive(Clone, Debug, Default)]
pub struct Events(Option<mpsc::Sender<Event>>);

impl Events {
    /// A place, and its other end.
    #[must_use]
    pub fn channel() -> (Self, mpsc::Receiver<Event>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (Self(Some(sender)), receiver)
    }

    /// Says it.
    pub fn say(&self, event: Event) {
        let about = event.service.as_ref().map_or("Node".to_owned(), |name| format!("Service {name}"));
        if event.warning {
            warn!(about, reason = event.reason, note = event.note, "Event");
        } else {
            info!(about, reason = event.reason, note = event.note, "Event");
        }
        if let Some(sender) = &self.0 {
            let _full = sender.try_send(event);
        }
    }
}
