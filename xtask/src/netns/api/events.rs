//! Events as the API server has them (B168): about this Node, and about a Service whose health check cannot listen.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{Api, Case, FIRST, LATE, SECOND, SLOW, address, service};
use crate::lab::manifests::Service;

pub(super) const CASES: &[Case] = &[
    ("b168_the_start_is_an_event_of_the_node", start),
    ("b124_b168_a_health_check_that_cannot_listen_is_an_event_of_the_service", health_check),
    ("b135_b168_metrics_that_cannot_listen_are_an_event_of_the_node", metrics),
];

/// A port of the NodePort range that the agent itself occupies.
const TAKEN: u16 = 32_100;
/// An address that no node has.
const NOWHERE: &str = "192.0.2.250:10249";

/// What an event is to say.
struct Wanted<'a> {
    namespace: &'a str,
    kind: &'a str,
    name: &'a str,
    r#type: &'a str,
    reason: &'a str,
    action: &'a str,
}

impl Wanted<'_> {
    fn is(&self, event: &Value) -> bool {
        let about = &event["regarding"];
        event["metadata"]["namespace"] == self.namespace
            && about["kind"] == self.kind
            && about["name"] == self.name
            && event["type"] == self.r#type
            && event["reason"] == self.reason
            && event["action"] == self.action
            && event["reportingController"] == "lb-agent"
            && event["reportingInstance"] == "node1"
            && event["note"].as_str().is_some_and(|note| !note.is_empty())
    }
}

fn all(api: &Api) -> Result<Vec<Value>> {
    let list = api.plane.get(FIRST, "/apis/events.k8s.io/v1/events")?;
    Ok(list["items"].as_array().context("no list of events")?.clone())
}

/// Runs `act` and waits for one more such event.
fn brings(api: &mut Api, wanted: &Wanted<'_>, act: impl FnOnce(&mut Api) -> Result<()>) -> Result<Value> {
    let count = |api: &Api| -> Result<Vec<Value>> {
        Ok(all(api)?.into_iter().filter(|event| wanted.is(event)).collect())
    };
    let before = count(api)?;
    act(api)?;
    let begin = Instant::now();
    loop {
        let now = count(api)?;
        if let Some(event) = now.iter().find(|event| !before.contains(event)) {
            return Ok(event.clone());
        }
        let known: Vec<_> =
            all(api)?.iter().map(|e| format!("{} {}: {}", e["regarding"], e["reason"], e["note"])).collect();
        ensure!(begin.elapsed() < SLOW, "no event {} after {SLOW:?}; there are {known:?}", wanted.reason);
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn start(api: &mut Api) -> Result<()> {
    let (namespace, kind, name) = ("default", "Node", "node1");
    let wanted =
        Wanted { namespace, kind, name, r#type: "Normal", reason: "Starting", action: "StartKubeProxy" };
    brings(api, &wanted, |api| {
        api.begin(api.feed(&[SECOND]))?;
        api.healthy()
    })
    .map(drop)
}

fn health_check(api: &mut Api) -> Result<()> {
    let checked = Service {
        lb_ips: vec!["203.0.113.99".into()],
        spec: vec!["externalTrafficPolicy: Local".into(), format!("healthCheckNodePort: {TAKEN}")],
        ..service(LATE, "late")
    };
    let (namespace, kind, name) = ("default", "Service", "late");
    let reason = "FailedToStartServiceHealthcheck";
    let wanted = Wanted { namespace, kind, name, r#type: "Warning", reason, action: "Listen" };
    let mut feed = api.feed(&[SECOND]);
    feed.arguments.extend(["--metrics-bind-address".into(), format!("0.0.0.0:{TAKEN}")]);
    let told = brings(api, &wanted, |api| {
        api.begin(feed)?;
        api.healthy()?;
        api.context.lab.service(&checked, &["p1a"])?;
        api.sync()
    });
    // the port is free again: the listener comes by itself
    let done = told.and_then(|event| {
        let note = event["note"].as_str().unwrap_or_default();
        ensure!(note.contains("in use"), "the event has no cause: {event}");
        api.begin(api.feed(&[SECOND]))?;
        api.healthy()?;
        answers(api, 200)?;
        api.context.lab.endpoints("late", &["p2b"])?;
        api.sync()?;
        answers(api, 503)
    });
    api.remove_late()?;
    done?;
    // B123: the listener goes with the Service
    answers(api, 0)
}

/// Waits until the health check node port answers with this status; 0 = nobody listens.
fn answers(api: &mut Api, status: u16) -> Result<()> {
    let begin = Instant::now();
    // as NodePorts, on the node's primary addresses (B118)
    let to = address(&api.context.lab.nodes[0].addresses[0], TAKEN).to_string();
    loop {
        let answer = api.context.lab.nodes[0].http(&to, "/")?;
        if answer.status == status && (status != 0 || answer.error.as_deref() == Some("ConnectionRefused")) {
            return Ok(());
        }
        ensure!(begin.elapsed() < SLOW, "the health check node port says {answer:?}, not {status}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn metrics(api: &mut Api) -> Result<()> {
    let (namespace, kind, name) = ("default", "Node", "node1");
    let reason = "FailedToStartMetricServer";
    let wanted = Wanted { namespace, kind, name, r#type: "Warning", reason, action: "StartKubeProxy" };
    let mut feed = api.feed(&[SECOND]);
    feed.arguments.extend(["--metrics-bind-address".into(), NOWHERE.into()]);
    brings(api, &wanted, |api| {
        api.begin(feed)?;
        // without `bindAddressHardFail` it serves on
        api.healthy()
    })?;
    api.web_is_served()?;
    api.begin(api.feed(&[SECOND]))?;
    api.healthy()
}
