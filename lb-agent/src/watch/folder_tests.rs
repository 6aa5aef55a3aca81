use super::*;
use crate::model::{ObjectName, Policy, ServiceKind, ServiceSpec};

const WEB: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.020.0.1
  ports: [{port: 80}]
";

fn named(name: &str) -> String {
    WEB.replace("web", name)
}

fn key(name: &str) -> Key {
    Key::Service(ObjectName::new("shop", name))
}

fn keys(changes: &[Change]) -> Vec<(Key, bool)> {
    changes.iter().map(|(key, object)| (key.clone(), object.is_some())).collect()
}

fn put(folder: &mut Folder, file: &str, text: &str) -> Vec<(Key, bool)> {
    keys(&folder.put(Path::new(file), Some(text)))
}

fn service(text: &str) -> (ServiceSpec, Vec<Issue>) {
    let decoded = decode("f.yaml", text);
    match decoded.good.first() {
        Some(Object::Service(spec)) => ((**spec).clone(), decoded.issues),
        other => panic!("{other:?}"),
    }
}

#[test]
fn which_files_are_manifests() {
    let found = ["a.yaml", "b.yml", "c.json", "d.yaml.tmp", "e", ".f.yaml", "..data"];
    let manifests: Vec<_> = found.into_iter().filter(|f| Folder::is_manifest(Path::new(f))).collect();
    assert_eq!(manifests, ["a.yaml", "b.yml", "c.json"]);
}

#[test]
fn objects_come_change_and_go_with_their_file() {
    let mut folder = Folder::default();
    assert_eq!(put(&mut folder, "a.yaml", WEB), [(key("web"), true)]);
    assert_eq!(put(&mut folder, "a.yaml", WEB), [], "unchanged");
    assert_eq!(put(&mut folder, "a.yaml", &WEB.replace("port: 80", "port: 81")), [(key("web"), true)]);
    assert_eq!(keys(&folder.put(Path::new("a.yaml"), None)), [(key("web"), false)]);
    assert!(folder.files().is_empty());
}

#[test]
fn several_documents_and_lists_in_a_file() {
    let mut folder = Folder::default();
    let list = "{apiVersion: v1, kind: List, items: [{apiVersion: v1, kind: Node, metadata: {name: ash}}]}";
    let text = format!("# comment\n---\n{WEB}\n---\n{}\n---\n{list}\n---\n", named("api"));
    let node = Key::Node("ash".to_owned());
    assert_eq!(put(&mut folder, "a.yaml", &text), [(key("api"), true), (key("web"), true), (node, true)]);
    assert!(folder.issues().is_empty());
}

#[test]
fn a_file_that_becomes_bad_keeps_what_it_gave_and_says_so() {
    let mut folder = Folder::default();
    put(&mut folder, "a.yaml", WEB);
    assert_eq!(put(&mut folder, "a.yaml", "kind: [Service"), []);
    let issues = folder.issues();
    assert_eq!((issues.len(), issues[0].object.as_str()), (1, "a.yaml"));
    assert!(issues[0].cure.contains("stays in force"), "{}", issues[0]);
    put(&mut folder, "a.yaml", WEB);
    assert!(folder.issues().is_empty(), "cured");
}

#[test]
fn a_bad_object_keeps_its_last_good_version_and_does_not_touch_the_others() {
    let mut folder = Folder::default();
    put(&mut folder, "a.yaml", &format!("{WEB}---\n{}", named("api")));
    let broken = WEB.replace("[{port: 80}]", "[{port: many}]");
    let text = format!("{broken}---\n{}---\n{}", named("api").replace("80", "81"), named("new"));
    assert_eq!(put(&mut folder, "a.yaml", &text), [(key("api"), true), (key("new"), true)]);
    let issues = folder.issues();
    assert_eq!(issues.len(), 1);
    assert_eq!(
        (issues[0].object.as_str(), issues[0].field.as_str()),
        ("a.yaml: Service shop/web", "spec.ports[0].port")
    );
}

#[test]
fn a_bad_document_does_not_hide_the_ones_behind_it() {
    let mut folder = Folder::default();
    assert_eq!(put(&mut folder, "a.yaml", &format!("a: [\n---\n{WEB}")), [(key("web"), true)]);
    assert_eq!(folder.issues().len(), 1);
}

#[test]
fn an_object_in_two_files_is_taken_from_the_first_until_that_goes() {
    let mut folder = Folder::default();
    put(&mut folder, "b.yaml", WEB);
    assert_eq!(put(&mut folder, "a.yaml", &WEB.replace("80", "90")), [(key("web"), true)]);
    assert!(folder.issues()[0].problem.contains("a.yaml, b.yaml"));
    assert_eq!(keys(&folder.put(Path::new("a.yaml"), None)), [(key("web"), true)]);
    assert!(folder.issues().is_empty());
}

#[test]
fn other_kinds_are_noted_and_missing_names_are_errors() {
    let issue = |text: &str| decode("f.yaml", text).issues.remove(0);
    let other = issue("{apiVersion: v1, kind: Pod, metadata: {name: x}}");
    assert_eq!((other.severity, other.field.as_str()), (Severity::Note, "kind"));
    assert_eq!(issue("{apiVersion: v1, kind: Service}").field, "metadata.name");
    assert_eq!(issue("{apiVersion: v1}").field, "kind");
    let version = issue(&WEB.replace("apiVersion: v1", "apiVersion: v2"));
    assert_eq!((version.severity, version.field.as_str()), (Severity::Error, "apiVersion"));
}

#[test]
fn b11_b14_b32_b98_a_service_is_read_field_by_field() {
    let (spec, issues) = service(
        "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  type: LoadBalancer
  clusterIP: 10.020.0.1
  clusterIPs: [10.020.0.1, 'fd00::1']
  ipFamilies: [IPv4, IPv6]
  externalTrafficPolicy: Local
  sessionAffinity: ClientIP
  loadBalancerSourceRanges: [' 10.0.0.0/08 ', rubbish]
  ports: [{name: p, port: 80, protocol: UDP, nodePort: 30080}]
status:
  loadBalancer:
    ingress: [{ip: 1.1.1.1}, {ip: 2.2.2.2, ipMode: Proxy}, {ip: 3.3.3.3, ipMode: VIP}, {hostname: h}]
",
    );
    assert_eq!(
        spec.cluster_ips.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["10.20.0.1", "fd00::1"]
    );
    assert_eq!(spec.vips.iter().map(ToString::to_string).collect::<Vec<_>>(), ["1.1.1.1", "3.3.3.3"]);
    assert_eq!(spec.source_ranges.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.0.0.0/8"]);
    assert_eq!(
        (spec.kind, spec.external, spec.affinity_s),
        (ServiceKind::LoadBalancer, Policy::Local, Some(10_800))
    );
    assert_eq!((spec.ports[0].node_port, spec.ports[0].protocol.number()), (30080, 17));
    assert_eq!(
        issues.iter().map(|i| i.field.as_str()).collect::<Vec<_>>(),
        ["spec.loadBalancerSourceRanges"]
    );
}

#[test]
fn b5_b7_b8_b104_what_is_never_read_changes_nothing() {
    let plain = service(WEB);
    for (from, to) in [
        ("{port: 80}", "{port: 80, targetPort: 8080}"),
        ("spec:", "spec:\n  loadBalancerIP: 203.0.113.9"),
        ("spec:", "spec:\n  trafficDistribution: PreferClose"),
        ("shop}", "shop, annotations: {service.kubernetes.io/topology-mode: Auto}}"),
        ("shop}", "shop, annotations: {service.beta.kubernetes.io/load-balancer-source-ranges: 10.0.0.0/8}}"),
    ] {
        let text = WEB.replace(from, to);
        assert_ne!(text, WEB);
        assert_eq!(service(&text), plain, "{to}");
    }
}

#[test]
fn b6_b9_node_ports_and_ingress_count_whatever_the_type() {
    let text = format!(
        "{}status: {{loadBalancer: {{ingress: [{{ip: 203.0.113.9}}]}}}}\n",
        WEB.replace("{port: 80}", "{port: 80, nodePort: 30080}")
    );
    let (spec, _) = service(&text);
    assert_eq!((spec.kind, spec.ports[0].node_port), (ServiceKind::ClusterIp, 30_080));
    assert_eq!(spec.vips.len(), 1);
    // allocateLoadBalancerNodePorts: false leaves the port out, and there is no frontend
    assert_eq!(service(WEB).0.ports[0].node_port, 0);
}

#[test]
fn b1_to_b4_which_services_are_ignored() {
    use crate::model::Ignored;
    let ignored = |from: &str, to: &str| service(&WEB.replace(from, to)).0.ignored;
    let labelled =
        |label: &str| ignored("namespace: shop", &format!("namespace: shop, labels: {{{label}: ''}}"));
    assert_eq!(ignored("x", "x"), None);
    assert_eq!(ignored("clusterIP: 10.020.0.1", "clusterIP: None"), Some(Ignored::Headless));
    assert_eq!(ignored("clusterIP: 10.020.0.1", "type: ClusterIP"), Some(Ignored::Headless));
    assert_eq!(ignored("clusterIP:", "type: ExternalName\n  clusterIP:"), Some(Ignored::ExternalName));
    assert_eq!(labelled("service.kubernetes.io/service-proxy-name"), Some(Ignored::OtherProxy));
    assert_eq!(labelled("service.kubernetes.io/headless"), Some(Ignored::HeadlessLabel));
}

#[test]
fn b21_to_b27_a_slice_is_read_with_its_defaults() {
    let text = "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: p, port: 80}, {name: q}, {port: 90}, {name: z, port: 0}]
endpoints:
- {addresses: [10.0.0.1, 10.0.0.2], nodeName: ash, hints: {forZones: [{name: east}], forNodes: [{name: ash}]}}
- {addresses: [10.0.0.3], conditions: {ready: false, serving: true, terminating: true}}
- {addresses: []}
- {addresses: [127.0.0.1]}
";
    let mut decoded = decode("f.yaml", text);
    let Some(Object::Slice(slice)) = decoded.good.pop() else { panic!("{:?}", decoded.issues) };
    assert_eq!(slice.ports.iter().map(|p| (p.name.as_str(), p.port)).collect::<Vec<_>>(), [("p", 80)]);
    let [first, second] = slice.endpoints.as_slice() else { panic!("{:?}", slice.endpoints) };
    assert_eq!(
        (first.address.to_string().as_str(), first.ready, first.serving, first.terminating),
        ("10.0.0.1", true, true, false)
    );
    assert_eq!(
        (first.zones.as_slice(), first.nodes.as_slice()),
        (["east".to_owned()].as_slice(), ["ash".to_owned()].as_slice())
    );
    assert_eq!((second.ready, second.serving, second.terminating), (false, true, true));
    assert_eq!(
        decoded.issues.iter().map(|i| i.field.as_str()).collect::<Vec<_>>(),
        ["endpoints[3].addresses[0]"]
    );
    for other in [
        "kubernetes.io/service-name: ''",
        "x: y",
        "kubernetes.io/service-name: web, service.kubernetes.io/headless: ''",
    ] {
        let unlabelled = decode("f.yaml", &text.replace("kubernetes.io/service-name: web", other));
        assert!(unlabelled.good.is_empty() && unlabelled.issues.is_empty(), "{other}");
    }
}

#[test]
fn b20_b58_b74_b131_a_node_is_read() {
    let text = "
apiVersion: v1
kind: Node
metadata: {name: ash, labels: {topology.kubernetes.io/zone: east}}
spec:
  podCIDRs: [10.77.1.0/24]
  taints: [{key: ToBeDeletedByClusterAutoscaler, effect: NoSchedule}]
status:
  addresses: [{type: ExternalIP, address: 5.5.5.5}, {type: Hostname, address: ash}, {type: InternalIP, address: 10.0.0.1}]
";
    let node = |text: &str| match decode("f.yaml", text).good.pop() {
        Some(Object::Node(node)) => (*node).clone(),
        other => panic!("{other:?}"),
    };
    let read = node(text);
    assert_eq!(read.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.0.0.1", "5.5.5.5"]);
    assert_eq!((read.zone.as_str(), read.pod_cidrs.len(), read.leaving), ("east", 1, true));
    assert!(!node(&text.replace("ToBeDeleted", "Kept")).leaving);
    let deleted = text
        .replace("ToBeDeleted", "Kept")
        .replace("name: ash,", "name: ash, deletionTimestamp: '2026-01-01T00:00:00Z',");
    assert!(node(&deleted).leaving);
}
