use super::*;
use crate::fixture::{World, edge, endpoint, service, slice};
use crate::model::{EndpointSpec, ServiceSpec};
use crate::status::Status;

const PLACE: Place<'static> = Place { node: "ash", zone: "" };

fn checked() -> ServiceSpec {
    ServiceSpec { external: Policy::Local, health_check_port: 32_000, ..edge() }
}

fn checks(world: &World) -> Vec<(u16, usize)> {
    health_checks(&world.store.snapshot(), PLACE).iter().map(|c| (c.port, c.local_endpoints)).collect()
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
    let status = Status { serving, health_checks: vec![check], ..Status::default() };
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
