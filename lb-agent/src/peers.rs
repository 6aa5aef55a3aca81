//! What the agents of other nodes take by DSR: asked over HTTP where their health answers, so that no right in the cluster
//! is needed, and a node without DSR, with an earlier agent or with kube-proxy tells so by not knowing the question.
//!
//! **Invariants:** the last answer of a node stands while it gives none (it restarts, the network stutters), and goes with
//! the first other answer, or with its Node object. Read [`watch`] first.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::string_slice))]

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode};
use futures_util::{StreamExt, stream};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracing::info;

use crate::model::settings::Dsr;

/// Where an agent tells it, below its health address.
pub const PATH: &str = "/dsr";
/// How often all are asked.
const PERIOD: Duration = Duration::from_secs(10);
/// How often while some have not answered yet, ...
const FIRST_PERIOD: Duration = Duration::from_secs(2);
/// ... for so many rounds after the list of nodes has changed.
const FIRST_ROUNDS: u32 = 15;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Nodes that are asked at a time.
const AT_ONCE: usize = 16;
/// An answer is not longer.
const LONGEST: usize = 4096;

/// What an agent says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// The node's name.
    pub node: String,
    /// Outer headers that it takes off, by the words of `--dsr`.
    pub takes: Vec<String>,
}

/// The words of `--dsr` for what an agent takes that has DSR on: whatever it sends itself.
#[must_use]
pub fn taken() -> Vec<String> {
    vec!["ipip".to_owned(), "gue".to_owned()]
}

/// Nodes to ask, by name, with their addresses.
pub type Nodes = BTreeMap<String, Vec<IpAddr>>;

/// The outer headers that a node takes, or why none.
type Answer = Result<Vec<String>, String>;

/// What was answered, by node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answers(BTreeMap<String, Answer>);

impl Answers {
    /// Whether a node takes packets in this kind of outer header.
    #[must_use]
    pub fn takes(&self, node: &str, dsr: Dsr) -> bool {
        let word = match dsr {
            Dsr::Off => return false,
            Dsr::Ipip => "ipip",
            Dsr::Gue => "gue",
        };
        self.0.get(node).is_some_and(|answer| answer.as_ref().is_ok_and(|t| t.iter().any(|t| t == word)))
    }

    /// What one node is said to have answered.
    #[cfg(test)]
    pub(crate) fn of(node: &str, takes: &[&str]) -> Self {
        Self(BTreeMap::from([(node.to_owned(), Ok(takes.iter().map(|t| (*t).to_owned()).collect()))]))
    }

    /// One line per node, for people.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|(node, answer)| match answer {
            Ok(takes) => format!("{node}: takes {}", takes.join(", ")),
            Err(why) => format!("{node}: sources of packets to it are replaced: {why}"),
        })
    }

    /// Takes a round of answers over; `None` = the node gave none.
    fn update(&mut self, round: Vec<(String, Option<Answer>)>) {
        let mut next = BTreeMap::new();
        for (node, answer) in round {
            let last = self.0.remove(&node);
            let answer = answer.or(last).unwrap_or_else(|| Err("it has not answered yet".to_owned()));
            next.insert(node, answer);
        }
        self.0 = next;
    }

    fn complete(&self) -> bool {
        self.0.values().all(Result::is_ok)
    }
}

/// The loop's side of [`watch`].
#[derive(Debug)]
pub struct Link {
    /// Whom to ask.
    pub nodes: watch::Sender<Nodes>,
    /// What they said.
    pub answers: watch::Receiver<Answers>,
    /// Keeps `answers` open where nobody asks.
    _idle: Option<watch::Sender<Answers>>,
}

impl Default for Link {
    /// Nobody asks.
    fn default() -> Self {
        let (idle, answers) = watch::channel(Answers::default());
        Self { nodes: watch::channel(Nodes::new()).0, answers, _idle: Some(idle) }
    }
}

/// A link, and what [`watch`] needs of it.
#[must_use]
pub fn link() -> (Link, watch::Receiver<Nodes>, watch::Sender<Answers>) {
    let (nodes, asked) = watch::channel(Nodes::new());
    let (told, answers) = watch::channel(Answers::default());
    (Link { nodes, answers, _idle: None }, asked, told)
}

/// Asks all nodes at `port` every 10 s, and when the list changes, until nobody listens any more.
pub async fn watch(port: u16, mut nodes: watch::Receiver<Nodes>, answers: watch::Sender<Answers>) {
    let client: Client<HttpConnector, Body> = Client::builder(TokioExecutor::new()).build_http();
    let mut rounds = 0;
    loop {
        let list = nodes.borrow_and_update().clone();
        let asked = list.into_iter().map(|(name, addresses)| {
            let client = &client;
            async move {
                let answer = ask(client, &name, &addresses, port).await;
                (name, answer)
            }
        });
        let round = stream::iter(asked).buffer_unordered(AT_ONCE).collect().await;
        let mut complete = true;
        answers.send_if_modified(|held| {
            let before = held.clone();
            held.update(round);
            complete = held.complete();
            for line in held.lines().filter(|line| !before.lines().any(|old| old == *line)) {
                info!("DSR: {line}");
            }
            *held != before
        });
        rounds += 1;
        let pause = if complete || rounds > FIRST_ROUNDS { PERIOD } else { FIRST_PERIOD };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            changed = nodes.changed() => match changed {
                Ok(()) => rounds = 0,
                Err(_closed) => return,
            },
            () = answers.closed() => return,
        }
    }
}

/// `None`: no address gave an answer.
async fn ask(
    client: &Client<HttpConnector, Body>,
    name: &str,
    addresses: &[IpAddr],
    port: u16,
) -> Option<Answer> {
    for address in addresses {
        let address = SocketAddr::new(*address, port);
        if let Ok(Some(answer)) = tokio::time::timeout(PATIENCE, get(client, address)).await {
            return Some(read(name, &answer));
        }
    }
    None
}

async fn get(client: &Client<HttpConnector, Body>, address: SocketAddr) -> Option<(StatusCode, Vec<u8>)> {
    let request = Request::get(format!("http://{address}{PATH}")).body(Body::empty()).ok()?;
    let response = client.request(request).await.ok()?;
    let status = response.status();
    let body = to_bytes(Body::new(response.into_body()), LONGEST).await.ok()?;
    Some((status, body.to_vec()))
}

/// What an answer means.
fn read(name: &str, (status, body): &(StatusCode, Vec<u8>)) -> Answer {
    if *status != StatusCode::OK {
        return Err("no agent with DSR there (kube-proxy, an earlier version, or --dsr=off)".to_owned());
    }
    match serde_json::from_slice::<Taken>(body) {
        Ok(taken) if taken.node != name => Err(format!("its address answers as node {}", taken.node)),
        Ok(taken) if taken.takes.is_empty() => Err("it is not ready".to_owned()),
        Ok(taken) => Ok(taken.takes),
        Err(_other) => Err("another program answers there".to_owned()),
    }
}

#[cfg(test)]
#[path = "peers_tests.rs"]
mod tests;
