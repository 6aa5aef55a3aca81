//! The source of a real cluster: lists and watches of an API server.
//!
//! ```text
//! bootstrap -> places to ask -> connect -> session: one follower per resource -> table -> store::Event
//! ```
//! [`bootstrap`] says where API servers may be, in which order (DESIGN section 4). A session asks one of them for all
//! four resources; when that server is lost, the next place is tried and everything is listed anew there. What was
//! handed out stays until a complete list says otherwise ([`table`]), so the data path never notices.
//!
//! **Invariants:** a list is handed on as one batch, when it is complete. Nothing is taken away because a server does
//! not answer. Whatever goes wrong is said once in the log, and in `status` for as long as it lasts.

pub mod bootstrap;
mod connect;
mod fault;
mod follow;
pub mod kinds;
mod node_gate;
mod pause;
mod remember;
mod table;
pub mod tell;

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use tokio::sync::mpsc;
use tracing::warn;

use self::bootstrap::{Bootstrap, Place};
use self::fault::ServerVoice;
use self::follow::{Ended, Follower};
use self::kinds::Selection;
use self::node_gate::NodeGate;
use self::pause::Pause;
use self::remember::Remembered;
use self::table::Table;
use crate::store::{Event, Source};

/// What the source delivers; the store waits for each.
pub const SOURCES: [Source; 4] =
    [Source::ApiServices, Source::ApiSlices, Source::ApiNode, Source::ApiServiceCidrs];

/// What to follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiSource {
    /// Where API servers may be.
    pub bootstrap: Bootstrap,
    /// Whose Node to follow.
    pub node_name: String,
    /// The Node's pod CIDRs are needed before anything is served (B154).
    pub needs_pod_cidrs: bool,
    /// Follow the Nodes of the others, too.
    pub all_nodes: bool,
}

/// All tables; they outlive every session.
struct Tables {
    services: Table<Service>,
    slices: Table<EndpointSlice>,
    node: Table<Node>,
    service_cidrs: Table<ServiceCIDR>,
}

/// Where the tables' events go: past the node gate and the memory of endpoints, to the store.
pub(crate) struct Out {
    events: mpsc::Sender<Event>,
    gate: std::sync::Mutex<NodeGate>,
    remembered: std::sync::Mutex<Remembered>,
}

impl Out {
    /// Hands events on; `false` = nobody listens any more.
    pub(crate) async fn send(&self, events: Vec<Event>) -> bool {
        for event in events {
            for event in self.filter(event) {
                if self.events.send(event).await.is_err() {
                    return false;
                }
            }
        }
        true
    }

    fn filter(&self, event: Event) -> Vec<Event> {
        use std::sync::PoisonError;
        if let Event::Changes(changes) = &event {
            self.remembered.lock().unwrap_or_else(PoisonError::into_inner).see(changes);
        }
        self.gate.lock().unwrap_or_else(PoisonError::into_inner).pass(event)
    }
}

/// Follows an API server until the receiver of `events` is gone.
pub async fn watch(source: ApiSource, events: mpsc::Sender<Event>) {
    let out = Out {
        events,
        gate: NodeGate::new(&source.node_name, source.needs_pod_cidrs).into(),
        remembered: Remembered::new(source.bootstrap.memory.clone()).into(),
    };
    let mut tables = Tables {
        services: Table::new(Source::ApiServices),
        slices: Table::new(Source::ApiSlices),
        node: Table::new(Source::ApiNode),
        service_cidrs: Table::new(Source::ApiServiceCidrs),
    };
    let mut pause = Pause::default();
    let mut refused = Vec::new();
    loop {
        let mut heard = false;
        let mut refused_now = Vec::new();
        for place in source.bootstrap.places() {
            match place.config().await {
                Ok(config) => match session(&source, &place, config, &mut tables, &out).await {
                    Ended::Closed => return,
                    Ended::Lost { heard: some } => heard |= some,
                },
                Err(reason) => refused_now.push(format!("{place}: {reason}")),
            }
        }
        if refused != refused_now {
            refused = refused_now;
            refused.iter().for_each(|place| warn!(place, "A way to the API server cannot be used"));
        }
        if heard {
            pause.reset();
        }
        tokio::select! {
            () = pause.wait() => {}
            () = out.events.closed() => return,
        }
    }
}

/// Follows all resources of one server until it is lost.
async fn session(
    source: &ApiSource,
    place: &Place,
    config: kube::Config,
    tables: &mut Tables,
    out: &Out,
) -> Ended {
    let voice = ServerVoice::new(place);
    let client = match connect::client(config) {
        Ok(client) => client,
        Err(error) => {
            let faults = [voice.cannot_connect(&error)];
            let sent = out.send(tables.services.fault(faults.into())).await;
            return if sent { Ended::Lost { heard: false } } else { Ended::Closed };
        }
    };
    let others = || source.bootstrap.places().len() > 1;
    let follower = |select| Follower { client: client.clone(), select, out, voice: &voice, others: &others };
    let services = Selection { fields: Some("spec.clusterIP!=None".into()), ..Selection::proxied() };
    let own = (!source.all_nodes).then(|| format!("metadata.name={}", source.node_name));
    let node = Selection { fields: own, ..Selection::all() };
    tokio::select! {
        ended = follower(services).run(&mut tables.services) => ended,
        ended = follower(Selection::proxied()).run(&mut tables.slices) => ended,
        ended = follower(node).run(&mut tables.node) => ended,
        ended = follower(Selection::all()).run(&mut tables.service_cidrs) => ended,
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
