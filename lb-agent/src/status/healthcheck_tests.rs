use super::*;
use crate::fixture::{World, edge, endpoint, service, slice};
use crate::model::{EndpointSpec, ServiceSpec};
use crate::status::Status;

const PLACE: Place<'static> = Place { node: "ash", zone: "" };

fn checked() -> ServiceSpec {
    ServiceSpec { external: Policy::Local, health_check_port: 32_000, ..edge() }
}

fn checks(world: &World) -> Vec<(u16, usize)> {
    let found = HealthChecks::default().follow(world.store.snapshot(), PLACE, &Scope::default());
    found.iter().map(|c| (c.port, c.local_endpoints)).collect()
}

#[test]
fn b117_only_load_balancers_of_local_policy_with_a_port() {
    let mut world = World::new();
    world.service(checked());
    assert_eq!(checks(&world), [(32_000, 0)]);
    for other in [
        ServiceSpec { external: Policy::Cluster, ..checked() },
        ServiceSpec { kind: ServiceKind::NodePort, ..checked() },
        ServiceSpec { health_check_port: 0, ..checked() },
        service("edge", &["10.200.0.12"]),
    ] {
        world.service(other);
        assert_eq!(checks(&world), []);
    }
}

#[test]
fn b120_distinct_local_ready_addresses_count() {
    let mut world = World::new();
    let draining = EndpointSpec { ready: false, terminating: true, ..endpoint("10.77.1.7", "ash") };
    world.service(checked());
    world.slice(slice("a", "edge", &[endpoint("10.77.1.5", "ash"), endpoint("10.77.2.5", "elm"), draining]));
    world.slice(slice("b", "edge", &[endpoint("10.77.1.5", "ash"), endpoint("10.77.1.6", "ash")]));
    assert_eq!(checks(&world), [(32_000, 2)]);
}

#[test]
fn b117_what_changes_is_followed_and_the_list_is_shared_until_then() {
    let (mut world, mut followed) = (World::new(), HealthChecks::default());
    let steps: [fn(&mut World); 5] = [
        |world| _ = world.service(checked()),
        |world| _ = world.service(service("web", &["10.200.0.20"])),
        |world| _ = world.slice(slice("a", "edge", &[endpoint("10.77.1.5", "ash")])),
        |world| _ = world.slice(slice("w", "web", &[endpoint("10.77.1.5", "ash")])),
        |world| _ = world.remove(crate::model::Key::Service(checked().name)),
    ];
    let (mut before, mut lists) = (Arc::default(), 0);
    for step in steps {
        step(&mut world);
        let scope = world.store.take_scope();
        let list = followed.follow(world.store.snapshot(), PLACE, &scope);
        assert_eq!(list, HealthChecks::default().follow(world.store.snapshot(), PLACE, &Scope::default()));
        lists += usize::from(!Arc::ptr_eq(&list, &before));
        before = list;
    }
    assert_eq!(lists, 3, "one for each change of it");
}

#[test]
fn b118_b127_one_listener_for_all_or_one_for_each_selected_address() {
    let check =
        |port| HealthCheck { port, namespace: "shop".into(), name: "edge".into(), local_endpoints: 1 };
    let ports = by_port(&[check(1), check(2)]);
    let texts = |selected: Option<&BTreeSet<IpAddr>>| -> Vec<String> {
        listen_addresses(&ports, selected).iter().map(SocketAddr::to_string).collect()
    };
    assert_eq!(texts(None), ["[::]:1", "[::]:2"]);
    let selected = ["192.0.2.1", "2001:db8::1"].map(|a| a.parse().unwrap()).into();
    assert_eq!(texts(Some(&selected)), ["192.0.2.1:1", "[2001:db8::1]:1", "192.0.2.1:2", "[2001:db8::1]:2"]);
}

async fn ask(local_endpoints: usize, serving: bool) -> Response {
    let check = HealthCheck { port: 1, namespace: "shop".into(), name: "edge".into(), local_endpoints };
    let status = Status { serving, health_checks: Arc::new(vec![check]), ..Status::default() };
    let (_sender, status) = tokio::sync::watch::channel(status);
    answer(State(Listener { port: 1, status })).await
}

#[tokio::test]
async fn b119_200_only_with_local_endpoints_and_a_healthy_proxy() {
    let codes = [ask(2, true).await, ask(0, true).await, ask(2, false).await].map(|r| r.status().as_u16());
    assert_eq!(codes, [200, 503, 503]);
}

#[tokio::test]
async fn b121_b122_headers_and_body() {
    let response = ask(2, true).await;
    assert_eq!(response.headers()["X-Load-Balancing-Endpoint-Weight"], "2");
    assert_eq!(response.headers()["X-Content-Type-Options"], "nosniff");
    let body = axum::body::to_bytes(response.into_body(), 4096).await.unwrap();
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    let expected = json!({
        "service": {"namespace": "shop", "name": "edge"}, "localEndpoints": 2, "serviceProxyHealthy": true,
    });
    assert_eq!(body, expected);
}
