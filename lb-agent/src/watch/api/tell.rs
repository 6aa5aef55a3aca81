//! Events for the API server (B168): the only thing that the agent writes there (B167).

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{self, EventType, Recorder, Reporter};
use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::ApiSource;
use super::connect;
use crate::events::Event;

/// An event that no server takes is offered again after this, so many times.
const AGAIN: Duration = Duration::from_secs(10);
const TRIES: usize = 6;

/// Hands events on until the other end is gone. An event that no API server takes within a minute is in the log only.
pub async fn tell(source: ApiSource, mut events: mpsc::Receiver<Event>) {
    let reporter = Reporter { controller: "lb-agent".into(), instance: Some(source.node_name.clone()) };
    while let Some(event) = events.recv().await {
        let mut last = String::new();
        for attempt in 0..TRIES {
            if attempt > 0 {
                tokio::time::sleep(AGAIN).await;
            }
            match offer(&source, &reporter, &event).await {
                Ok(()) => {
                    last.clear();
                    break;
                }
                Err(error) => {
                    debug!(error, reason = event.reason, "Event not taken");
                    last = error;
                }
            }
        }
        if !last.is_empty() {
            warn!(error = last, reason = event.reason, "No API server has taken the event");
        }
    }
}

/// Offers an event to each server; an event is rare, so it has a connection of its own.
async fn offer(source: &ApiSource, reporter: &Reporter, event: &Event) -> Result<(), String> {
    let mut refused = Vec::new();
    for place in source.bootstrap.places() {
        let client = match place.config().await {
            Ok(config) => connect::client(config).map_err(|error| error.to_string()),
            Err(reason) => Err(reason),
        };
        let published = match client {
            Ok(client) => Recorder::new(client, reporter.clone())
                .publish(&translated(event), &regarding(event, &source.node_name))
                .await
                .map_err(|error| error.to_string()),
            Err(reason) => Err(reason),
        };
        match published {
            Ok(()) => return Ok(()),
            Err(reason) => refused.push(format!("{place}: {reason}")),
        }
    }
    Err(refused.join("; "))
}

fn translated(event: &Event) -> events::Event {
    events::Event {
        type_: if event.warning { EventType::Warning } else { EventType::Normal },
        reason: event.reason.to_owned(),
        note: Some(event.note.clone()),
        action: event.action.to_owned(),
        secondary: None,
    }
}

/// A Node is named as the kubelet names it in events: its uid is its name.
fn regarding(event: &Event, node: &str) -> ObjectReference {
    match &event.service {
        Some(service) => ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Service".into()),
            namespace: Some(service.namespace.clone()),
            name: Some(service.name.clone()),
            ..ObjectReference::default()
        },
        None => ObjectReference {
            kind: Some("Node".into()),
            name: Some(node.to_owned()),
            uid: Some(node.to_owned()),
            ..ObjectReference::default()
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ObjectName;

    #[test]
    fn b168_what_events_are_about() {
        let start = Event::starting();
        let about = regarding(&start, "ash");
        assert_eq!((about.kind.as_deref(), about.name.as_deref()), (Some("Node"), Some("ash")));
        let told = translated(&start);
        assert_eq!((told.reason.as_str(), told.action.as_str()), ("Starting", "StartKubeProxy"));
        let failed = Event::service_health_check_failed(ObjectName::new("shop", "web"));
        let about = regarding(&failed, "ash");
        assert_eq!((about.namespace.as_deref(), about.name.as_deref()), (Some("shop"), Some("web")));
        assert!(matches!(translated(&failed).type_, EventType::Warning));
    }
}
