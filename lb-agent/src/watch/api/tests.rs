//! The source against a small API server of our own, which can be made to misbehave.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch as channel};

use super::*;
use crate::store::Store;

/// What the server does.
#[derive(Default)]
struct Behaviour {
    /// Objects by resource, in pages.
    pages: BTreeMap<&'static str, Vec<Vec<Value>>>,
    /// Resources whose second page is refused.
    broken: Vec<&'static str>,
    /// Status of every answer for a resource.
    refused: BTreeMap<&'static str, u16>,
    /// Queries that were asked, `resource?labels&fields`.
    asked: Vec<String>,
    lists: BTreeMap<String, u32>,
}

#[derive(Clone)]
struct Server {
    behaviour: Arc<Mutex<Behaviour>>,
    /// Lines for every watch of services; a new watch begins with the last one.
    line: channel::Receiver<String>,
}

struct Mock {
    address: SocketAddr,
    behaviour: Arc<Mutex<Behaviour>>,
    line: channel::Sender<String>,
    /// Dropping it stops the server.
    _task: tokio::task::JoinHandle<()>,
}

impl Mock {
    async fn new(behaviour: Behaviour) -> Self {
        let behaviour = Arc::new(Mutex::new(behaviour));
        let (line, receiver) = channel::channel(String::new());
        let server = Server { behaviour: Arc::clone(&behaviour), line: receiver };
        let routes = axum::Router::new()
            .route("/api/v1/{resource}", axum::routing::get(answer))
            .route("/apis/{group}/v1/{resource}", axum::routing::get(answer_group))
            .with_state(server);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
        Self { address, behaviour, line, _task: task }
    }

    fn change(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.behaviour.lock().unwrap());
    }
}

async fn answer_group(
    server: State<Server>,
    Path((_group, resource)): Path<(String, String)>,
    query: RawQuery,
) -> Response {
    answer(server, Path(resource), query).await
}

async fn answer(
    State(server): State<Server>,
    Path(resource): Path<String>,
    RawQuery(query): RawQuery,
) -> Response {
    let query: BTreeMap<String, String> =
        query.as_deref().unwrap_or_default().split('&').filter_map(pair).collect();
    let mut behaviour = server.behaviour.lock().unwrap();
    let part = |name: &str| query.get(name).cloned().unwrap_or_default();
    behaviour.asked.push(format!("{resource}?{}&{}", part("labelSelector"), part("fieldSelector")));
    if let Some(code) = behaviour.refused.get(resource.as_str()) {
        return refusal(*code);
    }
    if query.contains_key("watch") {
        let lines = if resource == "services" {
            let changes = stream::unfold(server.line.clone(), |mut line| async move {
                line.changed().await.ok()?;
                let text = line.borrow_and_update().clone();
                Some((Ok::<_, std::io::Error>(text + "\n"), line))
            });
            changes.boxed()
        } else {
            stream::pending().boxed()
        };
        return Body::from_stream(lines).into_response();
    }
    *behaviour.lists.entry(resource.clone()).or_default() += 1;
    let pages = behaviour.pages.get(resource.as_str()).cloned().unwrap_or_else(|| vec![Vec::new()]);
    let number: usize = query.get("continue").map_or(0, |token| token.parse().unwrap());
    if number > 0 && behaviour.broken.contains(&resource.as_str()) {
        return refusal(500);
    }
    let next = if number + 1 < pages.len() { (number + 1).to_string() } else { String::new() };
    axum::Json(json!({"kind": "List", "apiVersion": "v1", "items": pages[number],
        "metadata": {"resourceVersion": "10", "continue": next}}))
    .into_response()
}

/// `name=value` of a query, decoded.
fn pair(text: &str) -> Option<(String, String)> {
    let (name, value) = text.split_once('=')?;
    let mut parts = value.split('%');
    let mut plain = parts.next()?.to_owned();
    for part in parts {
        let (code, rest) = part.split_at(2);
        plain.push(char::from(u8::from_str_radix(code, 16).ok()?));
        plain.push_str(rest);
    }
    Some((name.to_owned(), plain))
}

fn refusal(code: u16) -> Response {
    let status =
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": "no"});
    (StatusCode::from_u16(code).unwrap(), axum::Json(status)).into_response()
}

fn service(name: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "ns", "resourceVersion": "10"},
        "spec": {"clusterIP": "10.0.0.1", "ports": [{"port": 80}]}})
}

fn node() -> Value {
    json!({"metadata": {"name": "ash"}, "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}})
}

fn healthy(services: Vec<Vec<Value>>) -> Behaviour {
    let pages = BTreeMap::from([("services", services), ("nodes", vec![vec![node()]])]);
    Behaviour { pages, ..Behaviour::default() }
}

/// A source that asks these servers, and the store it fills.
struct Run {
    events: mpsc::Receiver<Event>,
    store: Store,
    _folder: tempfile::TempDir,
}

impl Run {
    fn new(servers: &[SocketAddr]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let kubeconfig = folder.path().join("kubeconfig");
        let text = json!({"current-context": "c", "users": [{"name": "u", "user": {"token": "t"}}],
            "clusters": [{"name": "k", "cluster": {"server": format!("http://{}", servers[0])}}],
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}]});
        std::fs::write(&kubeconfig, text.to_string()).unwrap();
        let bootstrap = Bootstrap {
            kubeconfig: Some(kubeconfig),
            servers: servers[1..].iter().map(|s| format!("http://{s}")).collect(),
            ..Bootstrap::default()
        };
        let source =
            ApiSource { bootstrap, node_name: "ash".to_owned(), needs_pod_cidrs: false, all_nodes: false };
        let (sender, events) = mpsc::channel(16);
        tokio::spawn(watch(source, sender));
        Self { events, store: Store::new(SOURCES), _folder: folder }
    }

    /// Takes events until the store is as wanted.
    async fn until(&mut self, what: &str, wanted: impl Fn(&Store) -> bool) {
        let limit = tokio::time::sleep(Duration::from_secs(20));
        tokio::pin!(limit);
        while !wanted(&self.store) {
            tokio::select! {
                event = self.events.recv() => { self.store.take(event.unwrap()); }
                () = &mut limit => panic!("{what}: not in time; issues {:?}", self.store.issues()),
            }
        }
    }

    fn names(&self) -> Vec<String> {
        self.store.snapshot().services.keys().map(|name| name.name.clone()).collect()
    }
}

fn says(store: &Store, text: &str) -> bool {
    store.issues().iter().any(|issue| issue.to_string().contains(text))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b1_b3_b4_b154_selectors_and_pages() {
    let mock = Mock::new(healthy(vec![vec![service("a")], vec![service("b")], vec![service("c")]])).await;
    let mut run = Run::new(&[mock.address]);
    run.until("in sync", Store::in_sync).await;
    assert_eq!(run.names(), ["a", "b", "c"]);
    let labels = "!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name";
    let asked = mock.behaviour.lock().unwrap().asked.clone();
    for query in [
        format!("services?{labels}&spec.clusterIP!=None"),
        format!("endpointslices?{labels}&"),
        "nodes?&metadata.name=ash".to_owned(),
        "servicecidrs?&".to_owned(),
    ] {
        assert!(asked.contains(&query), "{query} in {asked:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b152_a_history_that_is_gone_is_listed_anew_and_a_broken_list_takes_nothing_away() {
    let mock = Mock::new(healthy(vec![vec![service("a")], vec![service("b")]])).await;
    let mut run = Run::new(&[mock.address]);
    run.until("in sync", Store::in_sync).await;
    mock.change(|b| {
        b.pages.insert("services", vec![vec![service("b")], vec![service("c")]]);
        b.broken.push("services");
    });
    let gone = json!({"type": "ERROR", "object": {"kind": "Status", "apiVersion": "v1", "status": "Failure",
        "code": 410, "reason": "Expired", "message": "too old"}});
    mock.line.send(gone.to_string()).unwrap();
    run.until("the fault is named", |store| says(store, "cannot be reached: it answers 500")).await;
    assert_eq!(run.names(), ["a", "b"], "a list without its second page changed something");
    let bookmark = json!({"type": "BOOKMARK", "object": {"kind": "Service", "apiVersion": "v1",
        "metadata": {"resourceVersion": "11"}}});
    mock.line.send(bookmark.to_string()).unwrap();
    mock.change(|b| b.broken.clear());
    run.until("listed anew", |store| store.issues().is_empty()).await;
    run.until("c is there", |store| store.snapshot().services.keys().any(|name| name.name == "c")).await;
    assert_eq!(run.names(), ["b", "c"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_by_watch() {
    let mock = Mock::new(healthy(vec![vec![service("a")]])).await;
    let mut run = Run::new(&[mock.address]);
    run.until("in sync", Store::in_sync).await;
    mock.line.send(json!({"type": "ADDED", "object": service("b")}).to_string()).unwrap();
    run.until("added", |store| store.snapshot().services.len() == 2).await;
    mock.line.send(json!({"type": "DELETED", "object": service("a")}).to_string()).unwrap();
    run.until("deleted", |store| store.snapshot().services.len() == 1).await;
    assert_eq!(run.names(), ["b"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b166_b169_what_is_refused_is_named_and_service_cidrs_are_not_waited_for() {
    let mut behaviour = healthy(vec![vec![service("a")]]);
    behaviour.refused = BTreeMap::from([("services", 403), ("servicecidrs", 404)]);
    let mock = Mock::new(behaviour).await;
    let mut run = Run::new(&[mock.address]);
    run.until("all but services", |store| store.awaited() == [Source::ApiServices]).await;
    run.until("services are named", |store| says(store, "services: does not let us list")).await;
    run.until("service CIDRs are named", |store| says(store, "servicecidrs: does not have this resource"))
        .await;
    mock.change(|b| b.refused.clear());
    run.until("in sync", Store::in_sync).await;
    run.until("the fault is taken back", |store| !says(store, "does not let us")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_does_not_answer_or_accept_us_is_left_for_the_next_one() {
    let mut refusing = healthy(vec![vec![service("wrong")]]);
    for resource in ["services", "endpointslices", "nodes", "servicecidrs"] {
        refusing.refused.insert(resource, 401);
    }
    let refusing = Mock::new(refusing).await;
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let good = Mock::new(healthy(vec![vec![service("right")]])).await;
    let mut run = Run::new(&[nobody, refusing.address, good.address]);
    run.until("in sync", Store::in_sync).await;
    assert_eq!(run.names(), ["right"]);
    run.until("nothing is wrong any more", |store| store.issues().is_empty()).await;
}
