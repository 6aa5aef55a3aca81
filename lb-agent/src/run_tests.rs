use std::sync::Arc;

use tokio::sync::oneshot;

use super::*;
use crate::desired::Changes;
use crate::fixture;
use crate::gc::alerts::Alert;
use crate::memory_kernel::MemoryKernel;
use crate::model::Object;
use crate::store::Source;

/// A running loop.
struct Agent {
    kernel: MemoryKernel,
    events: mpsc::Sender<Event>,
    net: watch::Sender<NodeNet>,
    status: watch::Receiver<Status>,
    metrics: Metrics,
    stop: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<Result<(), RunError>>,
    told: mpsc::Receiver<Said>,
}

fn start(kernel: MemoryKernel) -> Agent {
    let (events, event_reader) = mpsc::channel(64);
    let (net, net_reader) = watch::channel(NodeNet::default());
    let (status, status_reader) = watch::channel(Status::default());
    let metrics = Metrics::new(status_reader.clone());
    let (stop, stopped) = oneshot::channel();
    let (tell, told) = Events::channel();
    let parts = Parts {
        kernel: kernel.clone(),
        store: Store::new([Source::Manifests]),
        events: event_reader,
        net: net_reader,
        peers: peers::Link::default(),
        settings: fixture::settings(),
        status,
        metrics: metrics.clone(),
        tell,
        seed: 1,
    };
    let task = tokio::spawn(run(parts, async move {
        let _either = stopped.await;
    }));
    Agent { kernel, events, net, status: status_reader, metrics, stop, task, told }
}

impl Agent {
    async fn service(&self, name: &str, address: &str) {
        let object = Object::Service(Arc::new(fixture::service(name, &[address])));
        self.events.send(Event::Changes(vec![(object.key(), Some(object))])).await.unwrap();
        self.pause(5).await;
    }

    async fn in_sync(&self) {
        self.net.send(fixture::net()).unwrap();
        self.events.send(Event::InSync(Source::Manifests)).await.unwrap();
        self.pause(5).await;
    }

    /// Lets the loop work; time is virtual.
    async fn pause(&self, milliseconds: u64) {
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
    }

    fn applies(&self) -> usize {
        self.kernel.0.lock().unwrap().applies.len()
    }

    fn frontends(&self) -> usize {
        self.kernel.0.lock().unwrap().tables.services4.len()
    }

    fn status(&self) -> Status {
        self.status.borrow().clone()
    }
}

#[tokio::test(start_paused = true)]
async fn b141_nothing_is_written_before_all_sources_and_the_network_are_known() {
    let agent = start(MemoryKernel::default());
    agent.service("a", "10.200.0.1").await;
    agent.events.send(Event::InSync(Source::Manifests)).await.unwrap();
    agent.pause(60_000).await;
    assert_eq!(agent.applies(), 0);
    assert!(!agent.status().serving && !agent.status().in_sync);
    assert_eq!(agent.status().awaited, ["Network"]);
    agent.net.send(fixture::net()).unwrap();
    agent.pause(5).await;
    assert_eq!((agent.applies(), agent.frontends()), (1, 2));
    assert!(agent.status().serving && agent.status().in_sync && agent.status().awaited.is_empty());
}

#[tokio::test(start_paused = true)]
async fn rows_are_written_before_interfaces_carry_programs() {
    let agent = start(MemoryKernel::default());
    agent.in_sync().await;
    let memory = agent.kernel.0.lock().unwrap();
    assert_eq!(memory.order, ["actual", "apply", "attach"]);
    assert_eq!(memory.attached, [2, 4, 5]);
    assert_ne!(memory.tables.config.flags & 1 << 7, 0, "what probing gave is in the configuration");
}

#[tokio::test(start_paused = true)]
async fn b142_the_first_change_is_programmed_at_once_and_later_ones_together() {
    let agent = start(MemoryKernel::default());
    agent.in_sync().await;
    agent.pause(5_000).await;
    agent.service("a", "10.200.0.1").await;
    assert_eq!((agent.applies(), agent.frontends()), (2, 2), "at once");
    agent.service("b", "10.200.0.2").await;
    agent.service("c", "10.200.0.3").await;
    assert_eq!(agent.applies(), 2, "not before minSyncPeriod");
    assert!(agent.status().queued > agent.status().synced);
    assert_eq!(agent.status().service_pending, 2);
    agent.pause(1_000).await;
    assert_eq!((agent.applies(), agent.frontends()), (3, 6));
    assert!(agent.status().queued <= agent.status().synced);
    assert_eq!((agent.status().service_pending, agent.status().service_changes), (0, 3));
}

#[tokio::test(start_paused = true)]
async fn b145_a_change_that_changes_nothing_causes_no_apply() {
    let agent = start(MemoryKernel::default());
    agent.service("a", "10.200.0.1").await;
    agent.in_sync().await;
    agent.pause(5_000).await;
    let before = agent.applies();
    agent.service("a", "10.200.0.1").await;
    agent.pause(5_000).await;
    assert_eq!(agent.applies(), before);
}

#[tokio::test(start_paused = true)]
async fn a_change_of_one_service_is_applied_by_its_rows() {
    let agent = start(MemoryKernel::default());
    for last in 1..=9 {
        agent.service(&format!("s{last}"), &format!("10.200.0.{last}")).await;
    }
    agent.in_sync().await;
    agent.pause(5_000).await;
    agent.service("s5", "10.200.0.50").await;
    agent.pause(5_000).await;
    let memory = agent.kernel.0.lock().unwrap();
    let [first, second] = memory.changes.as_slice() else { panic!("{} applies", memory.changes.len()) };
    assert_eq!(*first, Changes::All);
    let keys = second.keys().expect("not all rows");
    let last: Vec<u8> = keys.services4.iter().map(|key| key.addr[3]).collect();
    assert_eq!(last, [5, 5, 50, 50], "the frontend and the mark of its address, before and after");
    assert_eq!((keys.roles.len(), keys.len()), (1, 5), "{keys:?}");
}

#[tokio::test(start_paused = true)]
async fn b143_a_failed_apply_is_tried_again_with_growing_pauses_until_it_is_done() {
    let kernel = MemoryKernel::default();
    kernel.0.lock().unwrap().failing_applies = 3;
    let agent = start(kernel);
    agent.service("a", "10.200.0.1").await;
    agent.in_sync().await;
    assert!(!agent.status().serving);
    assert_eq!(agent.status().failures, ["LB_SVC4: full"]);
    agent.pause(10_000).await;
    assert!(agent.status().serving && agent.status().failures.is_empty());
    assert_eq!((agent.status().applies, agent.status().failed_applies, agent.frontends()), (4, 3, 2));
    let memory = agent.kernel.0.lock().unwrap();
    let pauses: Vec<u128> = memory.applies.windows(2).map(|w| (w[1] - w[0]).as_millis() / 100).collect();
    assert_eq!(pauses, [1, 2, 4]);
}

#[tokio::test(start_paused = true)]
async fn b143_what_fails_for_long_does_not_hold_up_later_changes() {
    let kernel = MemoryKernel::default();
    kernel.0.lock().unwrap().failing_attaches = usize::MAX;
    let agent = start(kernel);
    agent.in_sync().await;
    agent.pause(200_000).await;
    let mut before = agent.applies();
    while agent.applies() == before {
        agent.pause(100).await;
    }
    before += 1;
    agent.pause(5_000).await;
    assert_eq!(agent.applies(), before, "the pauses have grown");
    agent.service("a", "10.200.0.1").await;
    assert_eq!((agent.applies(), agent.frontends()), (before + 1, 2), "at once");
    assert!(!agent.status().serving);
}

#[tokio::test(start_paused = true)]
async fn a_failed_attach_is_not_served_and_tried_again() {
    let kernel = MemoryKernel::default();
    kernel.0.lock().unwrap().failing_attaches = 1;
    let agent = start(kernel);
    agent.in_sync().await;
    assert!(!agent.status().serving);
    agent.pause(1_000).await;
    assert!(agent.status().serving);
    assert_eq!(agent.status().attached, 3);
}

#[tokio::test(start_paused = true)]
async fn tables_that_cannot_be_read_are_not_overwritten() {
    let kernel = MemoryKernel::default();
    kernel.0.lock().unwrap().failing_reads = 2;
    let agent = start(kernel);
    agent.in_sync().await;
    assert_eq!(agent.applies(), 0);
    assert_eq!(agent.status().failures, ["cannot read"]);
    agent.pause(5_000).await;
    assert!(agent.status().serving);
}

#[tokio::test(start_paused = true)]
async fn b156_a_restart_keeps_every_number_and_stopping_leaves_the_kernel() {
    let agent = start(MemoryKernel::default());
    agent.service("a", "10.200.0.1").await;
    agent.service("b", "10.200.0.2").await;
    agent.in_sync().await;
    let before = agent.kernel.0.lock().unwrap().tables.clone();
    agent.stop.send(()).unwrap();
    agent.task.await.unwrap().unwrap();
    assert_eq!(agent.kernel.0.lock().unwrap().tables, before);
    let again = start(agent.kernel.clone());
    again.service("b", "10.200.0.2").await;
    again.service("a", "10.200.0.1").await;
    again.in_sync().await;
    assert_eq!(again.kernel.0.lock().unwrap().tables.services4, before.services4);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_ends_ends_the_loop() {
    let agent = start(MemoryKernel::default());
    drop(agent.events);
    assert!(matches!(agent.task.await.unwrap(), Err(RunError::SourceGone)));
}

#[tokio::test(start_paused = true)]
async fn b131_a_node_that_leaves_is_not_eligible() {
    let agent = start(MemoryKernel::default());
    agent.in_sync().await;
    assert!(agent.status().eligible);
    let node = Object::Node(Arc::new(crate::model::NodeSpec { leaving: true, ..fixture::node() }));
    agent.events.send(Event::Changes(vec![(node.key(), Some(node))])).await.unwrap();
    agent.pause(2_000).await;
    assert!(!agent.status().eligible);
}

/// Unlike kube-proxy, an event that changes nothing is not counted.
#[tokio::test(start_paused = true)]
async fn b140_changes_are_counted_and_wait_until_they_are_programmed() {
    let agent = start(MemoryKernel::default());
    let counts = |agent: &Agent| {
        let s = agent.status();
        (s.service_changes, s.service_pending, s.endpoint_changes, s.endpoint_pending)
    };
    let slice = |endpoints: &[crate::model::EndpointSpec]| {
        let slice = Object::Slice(Arc::new(fixture::slice("a1", "a", endpoints)));
        Event::Changes(vec![(slice.key(), Some(slice))])
    };
    agent.service("a", "10.200.0.1").await;
    agent.events.send(slice(&[])).await.unwrap();
    agent.pause(10).await;
    assert_eq!(counts(&agent), (1, 1, 1, 1), "nothing is programmed before all is listed");
    agent.in_sync().await;
    agent.pause(2_000).await;
    assert_eq!(counts(&agent), (1, 0, 1, 0));
    agent.service("a", "10.200.0.1").await;
    agent.events.send(slice(&[])).await.unwrap();
    agent.pause(2_000).await;
    assert_eq!(counts(&agent), (1, 0, 1, 0), "no change");
    agent.events.send(slice(&[fixture::endpoint("10.77.1.5", "ash")])).await.unwrap();
    agent.pause(2_000).await;
    assert_eq!(counts(&agent), (1, 0, 2, 0));
}

#[tokio::test(start_paused = true)]
async fn b137_metrics_show_what_happened() {
    let agent = start(MemoryKernel::default());
    agent.service("a", "10.200.0.1").await;
    agent.in_sync().await;
    agent.pause(2_000).await;
    agent.metrics.probed(crate::status::metrics::Probe::Healthz, 200);
    let text = agent.metrics.text();
    let value = |start: &str| {
        let line =
            text.lines().find(|l| l.starts_with(start)).unwrap_or_else(|| panic!("{start} in\n{text}"));
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    for family in ["IPv4", "IPv6"] {
        let label = format!("{{ip_family=\"{family}\"}}");
        let synced = value(&format!("kubeproxy_sync_proxy_rules_last_timestamp_seconds{label}"));
        let queued = value(&format!("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{label}"));
        assert!(queued > 1.7e9 && queued <= synced, "{queued} {synced}");
        assert!(value(&format!("kubeproxy_sync_proxy_rules_duration_seconds_count{label}")) >= 1.0);
    }
    assert_eq!(value("kubeproxy_proxy_healthz_total{code=\"200\"}"), 1.0);
    assert_eq!(value("kubeproxy_sync_proxy_rules_service_changes_total"), 1.0);
    assert_eq!(value("kubeproxy_sync_proxy_rules_service_changes_pending"), 0.0);
    assert_eq!(value("lb_drop_no_backend_total"), 3.0);
    assert_eq!(value("lb_frontends4"), 2.0);
}

#[tokio::test(start_paused = true)]
async fn what_runs_out_is_told_once_and_again_when_it_comes_back() {
    let mut agent = start(MemoryKernel::default());
    let alert = |text: &str| Alert { about: About::Table("LB_CT4"), text: text.to_owned() };
    for (alerts, events) in [
        (vec![], 0),
        (vec![alert("80 %")], 1),
        (vec![alert("90 %")], 0),
        (vec![], 0),
        (vec![alert("80 %")], 1),
    ] {
        agent.kernel.0.lock().unwrap().alerts.clone_from(&alerts);
        agent.pause(1100).await;
        let told: Vec<Said> = std::iter::from_fn(|| agent.told.try_recv().ok()).collect();
        assert_eq!(told.len(), events, "{alerts:?}");
        assert!(told.iter().all(|event| event.warning && event.service.is_none() && event.note == "80 %"));
        let shown: Vec<String> = alerts.into_iter().map(|alert| alert.text).collect();
        assert_eq!(agent.status().alerts, shown);
    }
}
