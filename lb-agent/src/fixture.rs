//! Objects and a node for tests: node `ash` with an uplink, a bridge, a pod on it and a pod by itself.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::desired::{Changes, Desired, Tally, for_each_table};
use crate::links::{Attachment, Link, NodeNet};
use crate::model::settings::{DetectLocal, Mode, Settings};
use crate::model::{
    EndpointSpec, Family, Key, NodeSpec, Object, ObjectName, Policy, Protocol, ServiceCidrSpec, ServiceKind,
    ServicePort, ServiceSpec, SlicePort, SliceSpec,
};
use crate::peers::Answers;
use crate::plan::ids::IdTable;
use crate::plan::issue::Issue;
use crate::plan::{Inputs, Planner};
use crate::store::{Event, Scope, Store};

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn cidr(text: &str) -> IpNet {
    text.parse().unwrap()
}

pub(crate) fn port(name: &str, protocol: Protocol, number: u16, node_port: u16) -> ServicePort {
    ServicePort { name: name.to_owned(), protocol, port: number, node_port }
}

/// A ClusterIP Service of one TCP port 80 named `p`.
pub(crate) fn service(name: &str, cluster_ips: &[&str]) -> ServiceSpec {
    ServiceSpec {
        name: ObjectName::new("shop", name),
        kind: ServiceKind::ClusterIp,
        ignored: None,
        cluster_ips: cluster_ips.iter().map(|a| ip(a)).collect(),
        external_ips: Vec::new(),
        vips: Vec::new(),
        source_ranges: Vec::new(),
        internal: Policy::Cluster,
        external: Policy::Cluster,
        affinity_s: None,
        selection: None,
        forwarding: None,
        health_check_port: 0,
        ports: vec![port("p", Protocol::Tcp, 80, 0)],
    }
}

/// A LoadBalancer Service with every kind of frontend in both families.
pub(crate) fn edge() -> ServiceSpec {
    ServiceSpec {
        kind: ServiceKind::LoadBalancer,
        external_ips: vec![ip("198.51.100.1"), ip("2001:db8:e::1")],
        vips: vec![ip("203.0.113.1"), ip("2001:db8:f::1")],
        ports: vec![port("p", Protocol::Tcp, 443, 30443)],
        ..service("edge", &["10.200.0.12", "fd00:200::12"])
    }
}

/// A ready endpoint.
pub(crate) fn endpoint(address: &str, node: &str) -> EndpointSpec {
    EndpointSpec {
        address: ip(address),
        node: Some(node.to_owned()),
        ready: true,
        serving: true,
        terminating: false,
        weight: 1,
        zones: Vec::new(),
        nodes: Vec::new(),
    }
}

/// A slice for port `p` of a Service; endpoints listen on TCP 8080.
pub(crate) fn slice(name: &str, service: &str, endpoints: &[EndpointSpec]) -> SliceSpec {
    SliceSpec {
        name: ObjectName::new("shop", name),
        service: service.to_owned(),
        family: endpoints.first().map_or(Family::V4, |e| Family::of(e.address)),
        ports: vec![SlicePort { name: "p".to_owned(), protocol: Protocol::Tcp, port: 8080 }],
        endpoints: endpoints.to_vec(),
        triggered: crate::model::Trigger::default(),
    }
}

fn link(name: &str, kind: &str, master: Option<u32>, addresses: &[&str]) -> Link {
    Link {
        name: name.to_owned(),
        kind: kind.to_owned(),
        loopback: name == "lo",
        up: true,
        ethernet: name != "lo",
        master,
        addresses: addresses.iter().map(|a| (ip(a), 24)).collect(),
        default_route: name == "eth0",
        ..Link::default()
    }
}

/// Interfaces of node `ash`: 1 lo, 2 eth0, 3 cni0 (bridge), 4 a port of cni0, 5 a veth without bridge.
pub(crate) fn net() -> NodeNet {
    let links = [
        link("lo", "", None, &["127.0.0.1", "::1"]),
        link("eth0", "", None, &["192.0.2.11", "2001:db8:aa::11"]),
        link("cni0", "bridge", None, &["10.77.1.1", "fd77:0:1:1::1"]),
        link("veth4", "veth", Some(3), &[]),
        link("cali5", "veth", None, &[]),
    ];
    NodeNet {
        links: (1..).zip(links).collect(),
        netns_cookie: 77,
        ephemeral: (32_768, 60_999),
        reserved: Vec::new(),
        source_rules: false,
        ..NodeNet::default()
    }
}

/// Their attach set.
pub(crate) fn attachments() -> BTreeMap<u32, Attachment> {
    let pod = Attachment { pod_facing: true, l3: false, xdp: false };
    BTreeMap::from([(2, Attachment { pod_facing: false, l3: false, xdp: false }), (4, pod), (5, pod)])
}

pub(crate) fn node() -> NodeSpec {
    NodeSpec {
        name: "ash".to_owned(),
        zone: "east".to_owned(),
        addresses: vec![ip("192.0.2.11"), ip("2001:db8:aa::11")],
        pod_cidrs: vec![cidr("10.77.1.0/24"), cidr("fd77:0:1:1::/64")],
        leaving: false,
    }
}

pub(crate) fn settings() -> Settings {
    Settings {
        mode: Mode::Nftables,
        detect: DetectLocal::ClusterCidr(vec![cidr("10.77.0.0/16"), cidr("fd77:0:1::/48")]),
        ..Settings::for_node("ash")
    }
}

/// Everything that a plan is made from; change it and plan again.
pub(crate) struct World {
    pub(crate) store: Store,
    pub(crate) net: NodeNet,
    pub(crate) attachments: BTreeMap<u32, Attachment>,
    pub(crate) settings: Settings,
    pub(crate) answers: Answers,
    pub(crate) ids: IdTable,
    pub(crate) now: Duration,
    /// What is kept from plan to plan; every plan is compared with one of a new planner.
    pub(crate) planner: Planner,
    /// The surroundings of the last plan.
    last: Option<(NodeNet, BTreeMap<u32, Attachment>, Settings, Answers)>,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(settings())
    }

    pub(crate) fn with(settings: Settings) -> Self {
        let ids = IdTable::new(&settings.limits, 1000);
        let (net, attachments) = (net(), attachments());
        let answers = Answers::default();
        let mut world = Self {
            store: Store::new([]),
            net,
            attachments,
            settings,
            answers,
            ids,
            now: Duration::ZERO,
            planner: Planner::default(),
            last: None,
        };
        world.put(Object::Node(Arc::new(node())));
        world
    }

    pub(crate) fn put(&mut self, object: Object) {
        self.store.take(Event::Changes(vec![(object.key(), Some(object))]));
    }

    pub(crate) fn service(&mut self, spec: ServiceSpec) -> &mut Self {
        self.put(Object::Service(Arc::new(spec)));
        self
    }

    pub(crate) fn slice(&mut self, spec: SliceSpec) -> &mut Self {
        self.put(Object::Slice(Arc::new(spec)));
        self
    }

    pub(crate) fn cidrs(&mut self, name: &str, cidrs: &[&str]) -> &mut Self {
        let cidrs = cidrs.iter().map(|c| cidr(c)).collect();
        self.put(Object::ServiceCidr(Arc::new(ServiceCidrSpec { name: name.to_owned(), cidrs })));
        self
    }

    pub(crate) fn remove(&mut self, key: Key) -> &mut Self {
        self.store.take(Event::Changes(vec![(key, None)]));
        self
    }

    /// As after a restart: ids and generations are read back from these tables.
    pub(crate) fn restart(&mut self, seed: u32, tables: &Desired) {
        self.ids = IdTable::new(&self.settings.limits, seed);
        self.ids.restore(tables);
        self.planner = Planner::default();
    }

    /// Plans, without telling that it was applied. Checks that what was kept from plan to plan changes nothing.
    pub(crate) fn plan(&mut self) -> (Desired, Vec<Issue>) {
        let mut ids = self.ids.clone();
        let before = self.planner.desired().clone();
        self.quick_plan();
        let (mut anew, snapshot) = (Planner::default(), self.store.snapshot());
        let Self { net, attachments, settings, answers, .. } = &*self;
        let inputs = Inputs { snapshot, net, attachments, settings, answers };
        anew.plan(inputs, &Scope::default(), &mut ids, self.now);
        let (desired, issues) = (self.planner.desired().clone(), self.planner.issues().to_vec());
        assert_eq!(&desired, anew.desired(), "plans differ");
        assert_eq!(&issues, &**anew.issues());
        assert_eq!(self.planner.tally(), Tally::of(desired.services4.values(), desired.services6.values()));
        let anew = lb_common::hash::role_filter(desired.roles.iter().map(|(a, r)| (*a, *r)));
        assert!(desired.roles.is_empty() || *desired.roles.filter() == *anew, "role filter");
        assert_eq!(
            with(&before, &desired, self.planner.changes()),
            desired,
            "a row changed and was not named"
        );
        (desired, issues)
    }

    /// Plans and compares with nothing.
    pub(crate) fn quick_plan(&mut self) {
        let now = (self.net.clone(), self.attachments.clone(), self.settings.clone(), self.answers.clone());
        let mut scope = self.store.take_scope();
        scope.node |= self.last.as_ref() != Some(&now);
        self.last = Some(now);
        let Self { store, net, attachments, settings, answers, ids, planner, now, .. } = self;
        let inputs = Inputs { snapshot: store.snapshot(), net, attachments, settings, answers };
        planner.plan(inputs, &scope, ids, *now);
    }

    /// Plans and applies, `seconds` later.
    pub(crate) fn after(&mut self, seconds: u64) -> Desired {
        self.now += Duration::from_secs(seconds);
        let (tables, _) = self.plan();
        self.ids.applied(self.now);
        tables
    }
}

macro_rules! with_rows {
    ($($field:ident: $key:ty => $value:ty, $name:ident;)*) => {
        /// The tables of `old` with the rows that `changes` names as they are in `new`.
        fn with(old: &Desired, new: &Desired, changes: &Changes) -> Desired {
            let Some(keys) = changes.keys() else { return new.clone() };
            let mut tables = Desired { config: new.config, ..old.clone() };
            $(for key in &keys.$field {
                match new.$field.get(key) {
                    Some(value) => _ = tables.$field.insert(*key, *value),
                    None => _ = tables.$field.remove(key),
                }
            })*
            keys.slots.iter().for_each(|start| tables.slots.remove(*start));
            for (start, ids) in keys.slots.iter().filter_map(|start| Some((start, new.slots.at(*start)?))) {
                tables.slots.put(*start, Arc::clone(ids));
            }
            keys.roles.iter().for_each(|a| tables.roles.insert(*a, new.roles.get(a).copied().unwrap_or(0)));
            tables
        }
    };
}
for_each_table!(with_rows);
