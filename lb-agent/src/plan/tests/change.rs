//! What is kept from plan to plan changes no result, and makes a change cost what it is about.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use crate::desired::Desired;
use crate::fixture::{World, cidr, edge, endpoint, ip, node, port, service, settings, slice};
use crate::links::Link;
use crate::model::settings::{Algorithm, Dsr, Fast, Limits, Settings};
use crate::model::{
    EndpointSpec, Forwarding, Ignored, Key, NodeSpec, Object, ObjectName, Policy, Protocol, ServiceCidrSpec,
    ServiceSpec,
};
use crate::peers::Answers;
use crate::plan::Planner;
use crate::plan::issue::{Issue, Severity};
use crate::plan::roles::LINGER;
use crate::store::{Event, Source};

/// Something that happens to a node.
#[derive(Clone, Debug)]
enum Step {
    Put(Object),
    Remove(Object),
    /// A source finds so many faults.
    Faults(usize),
    /// A pod with a link of its own comes (true) or goes: an address of the node, and a way past the stack.
    Pod(u8, bool),
    /// The node gets an address, which may be a ClusterIP, or loses it.
    Address(u8, bool),
    Dsr(Dsr),
    Fast(Fast),
    MasqueradeAll(bool),
    Selection(Algorithm),
    Answers(&'static [&'static str]),
    /// The last plan is in the kernel.
    Applied,
    /// So much time passes.
    Wait(Duration),
    /// A plan.
    Plan,
    /// A new agent, on what the last one planned.
    Restart,
}

/// Services that quarrel about frontends, share addresses, and are strange in other ways.
fn services() -> Vec<ServiceSpec> {
    let shared = |name: &str, cluster: &str, number| ServiceSpec {
        external_ips: vec![ip("198.51.100.9")],
        ports: vec![port("p", Protocol::Tcp, number, 0)],
        ..service(name, &[cluster])
    };
    let ranges = vec![cidr("198.18.0.0/16"), cidr("192.0.2.0/24"), cidr("2001:db8::/32")];
    vec![
        edge(),
        ServiceSpec { external: Policy::Local, affinity_s: Some(30), ..edge() },
        ServiceSpec { internal: Policy::Local, source_ranges: ranges, ..edge() },
        ServiceSpec { ignored: Some(Ignored::Headless), ..edge() },
        shared("a", "10.200.0.1", 80),
        shared("a", "10.200.0.1", 81),
        shared("b", "10.200.0.2", 80),
        // an externalIP that is another Service's ClusterIP, and an equal ClusterIP
        ServiceSpec { external_ips: vec![ip("10.200.0.1")], ..service("c", &["10.200.0.3"]) },
        service("c", &["10.200.0.2"]),
        ServiceSpec {
            ports: vec![port("p", Protocol::Tcp, 80, 30080), port("q", Protocol::Udp, 53, 29_000)],
            ..service("two", &["10.200.0.20", "fd00:200::20"])
        },
        ServiceSpec {
            ports: vec![port("p", Protocol::Tcp, 443, 30443), port("p", Protocol::Tcp, 444, 0)],
            ..service("two", &["10.200.0.20"])
        },
        ServiceSpec { selection: Some(Algorithm::Maglev), ..service("web", &["10.200.0.12"]) },
        ServiceSpec { forwarding: Some(Forwarding::Dsr), ..service("web", &["10.200.0.13"]) },
    ]
}

fn universe() -> Vec<Object> {
    let draining = |a, n| EndpointSpec { ready: false, terminating: true, ..endpoint(a, n) };
    let zoned = EndpointSpec { zones: vec!["east".to_owned()], ..endpoint("10.77.1.5", "ash") };
    let slices = [
        slice("e1", "edge", &[endpoint("10.77.1.5", "ash"), endpoint("10.77.2.5", "elm")]),
        slice("e1", "edge", &[draining("10.77.1.5", "ash"), endpoint("10.77.2.5", "elm")]),
        slice("e1", "web", &[endpoint("10.77.1.5", "ash"), endpoint("10.77.1.6", "ash")]),
        slice("e2", "edge", &[endpoint("fd77:0:1:1::5", "ash"), endpoint("fd77:0:1:2::5", "elm")]),
        slice("w1", "web", &[zoned, endpoint("10.77.2.7", "elm")]),
        slice("w1", "web", &[draining("10.77.1.6", "ash")]),
        slice("t1", "two", &[endpoint("10.77.1.7", "ash"), endpoint("10.77.2.7", "elm")]),
        slice("a1", "a", &[endpoint("10.77.1.5", "ash")]),
        slice("b1", "b", &[endpoint("10.77.2.8", "oak"), endpoint("10.77.2.5", "elm")]),
        slice("c1", "c", &[]),
    ];
    let other = |name: &str, address| NodeSpec {
        name: name.to_owned(),
        addresses: vec![ip(address)],
        ..NodeSpec::default()
    };
    let nodes = [
        node(),
        NodeSpec { zone: "west".to_owned(), ..node() },
        NodeSpec { addresses: vec![ip("198.18.0.9")], ..node() },
        other("elm", "192.0.2.12"),
        other("oak", "192.0.2.13"),
    ];
    let ranges = ServiceCidrSpec { name: "k".to_owned(), cidrs: vec![cidr("10.200.0.0/16")] };
    let services = services().into_iter().map(|s| Object::Service(Arc::new(s)));
    let slices = slices.into_iter().map(|s| Object::Slice(Arc::new(s)));
    let nodes = nodes.into_iter().map(|n| Object::Node(Arc::new(n)));
    services.chain(slices).chain(nodes).chain([Object::ServiceCidr(Arc::new(ranges))]).collect()
}

fn step() -> impl Strategy<Value = Step> {
    let object = || proptest::sample::select(universe());
    let answers = proptest::sample::select(vec![&["gue"][..], &["ipip", "gue"][..], &[][..]]);
    prop_oneof![
        12 => object().prop_map(Step::Put),
        4 => object().prop_map(Step::Remove),
        10 => Just(Step::Plan),
        5 => Just(Step::Applied),
        3 => (0_u64..4).prop_map(|s| Step::Wait(Duration::from_secs(s))),
        1 => prop_oneof![Just(LINGER), Just(LINGER / 2)].prop_map(Step::Wait),
        1 => (0_usize..3).prop_map(Step::Faults),
        2 => (5_u8..9, any::<bool>()).prop_map(|(n, up)| Step::Pod(n, up)),
        1 => (1_u8..14, any::<bool>()).prop_map(|(n, up)| Step::Address(n, up)),
        1 => prop_oneof![Just(Dsr::Off), Just(Dsr::Gue)].prop_map(Step::Dsr),
        1 => prop_oneof![Just(Fast::Off), Just(Fast::On)].prop_map(Step::Fast),
        1 => any::<bool>().prop_map(Step::MasqueradeAll),
        1 => prop_oneof![Just(Algorithm::Random), Just(Algorithm::Maglev)].prop_map(Step::Selection),
        1 => answers.prop_map(Step::Answers),
        1 => Just(Step::Restart),
    ]
}

/// Room for everything, or too little of one thing.
fn limits() -> impl Strategy<Value = Limits> {
    let all = Limits { slots: 20_000, ..Limits::PRODUCT };
    prop_oneof![
        4 => Just(all),
        1 => (1_usize..12).prop_map(move |frontends| Limits { frontends, ..all }),
        1 => (1_u32..5).prop_map(move |services| Limits { services, ..all }),
        1 => (2_u32..8).prop_map(move |backends| Limits { backends, ..all }),
        1 => (1_u32..400).prop_map(move |slots| Limits { slots, ..all }),
        1 => (1_usize..5).prop_map(move |ranges| Limits { ranges, ..all }),
    ]
}

/// A world, and what it planned last.
struct Run(World, Desired);

impl Run {
    fn new(limits: Limits) -> Self {
        Self(World::with(Settings { limits, ..settings() }), Desired::default())
    }

    /// `anew`: every plan is one from scratch.
    fn step(&mut self, step: &Step, anew: bool) -> Option<(Desired, Vec<Issue>)> {
        let Self(world, last) = self;
        match step.clone() {
            Step::Put(object) => world.put(object),
            Step::Remove(object) => _ = world.remove(object.key()),
            Step::Faults(count) => {
                let fault = |n| Issue::new(Severity::Error, format!("file {n}"), "", "is bad", "mend it");
                world.store.take(Event::Issues(Source::Manifests, (0..count).map(fault).collect()));
            }
            Step::Pod(last, up) => pod(world, last, up),
            Step::Address(last, up) => {
                let link = world.net.links.get_mut(&2)?;
                let address = (ip(&format!("10.200.0.{last}")), 24);
                link.addresses.retain(|a| *a != address);
                link.addresses.extend(up.then_some(address));
            }
            Step::Dsr(dsr) => world.settings.dsr = dsr,
            Step::Fast(fast) => world.settings.fast = fast,
            Step::MasqueradeAll(all) => world.settings.masquerade_all = all,
            Step::Selection(selection) => world.settings.selection = selection,
            Step::Answers(takes) => world.answers = Answers::of("elm", takes),
            Step::Applied => world.ids.applied(world.now),
            Step::Wait(time) => world.now += time,
            Step::Restart => world.restart(7, last),
            Step::Plan => {
                if anew {
                    world.planner = Planner::default();
                }
                let (desired, issues) = world.plan();
                last.clone_from(&desired);
                return Some((desired, issues));
            }
        }
        None
    }
}

fn pod(world: &mut World, last: u8, up: bool) {
    let (index, address) = (u32::from(last) + 100, ip(&format!("10.77.1.{last}")));
    if up {
        let addresses = vec![(ip(&format!("fe80::{last}")), 64)];
        let link = Link { name: format!("veth{index}"), up, mtu: 1500, addresses, ..Link::default() };
        world.net.links.insert(index, link);
        world.net.pods.insert((index, address), [last; 6]);
    } else {
        world.net.links.remove(&index);
        world.net.pods.remove(&(index, address));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_plan_of_what_changed_is_the_plan_from_scratch(
        steps in proptest::collection::vec(step(), 0..60),
        limits in limits(),
    ) {
        let (mut kept, mut scratch) = (Run::new(limits), Run::new(limits));
        for step in steps.iter().chain([&Step::Plan]) {
            prop_assert_eq!(kept.step(step, false), scratch.step(step, true));
        }
    }
}

/// So many Services of ten endpoints, planned and applied.
fn many(services: u32, settings: Settings) -> World {
    let mut world = World::with(settings);
    for n in 0..services {
        let (name, [_, _, high, low]) = (format!("s{n}"), n.to_be_bytes());
        world.service(service(&name, &[&format!("10.201.{high}.{low}")]));
        world.slice(slice(&name, &name, &ten(n)));
    }
    world.quick_plan();
    world.ids.applied(world.now);
    world.now += Duration::from_secs(5);
    world.quick_plan();
    world
}

fn ten(n: u32) -> Vec<EndpointSpec> {
    let [_, _, high, low] = n.to_be_bytes();
    (10..20).map(|net| endpoint(&format!("10.{net}.{high}.{low}"), "elm")).collect()
}

#[test]
fn one_endpoint_less_plans_one_service_and_names_its_rows() {
    for (selection, services) in [(Algorithm::Random, 20), (Algorithm::Random, 400), (Algorithm::Maglev, 60)]
    {
        let mut world = many(services, Settings { selection, ..settings() });
        world.plan();
        assert_eq!((world.planner.planned(), world.planner.changes().keys().unwrap().len()), (0, 0));
        let mut fewer = ten(7);
        fewer.pop();
        world.slice(slice("s7", "s7", &fewer));
        world.plan();
        let keys = world.planner.changes().keys().unwrap();
        assert_eq!(world.planner.planned(), 1);
        // the frontend and the mark of its address; all its backends; the generation that moves; the new range
        let found = (keys.services4.len(), keys.backends4.len(), keys.generations4.len(), keys.slots.len());
        assert_eq!((found, keys.len()), ((2, 10, 1, 1), 14), "{keys:?}");
    }
}

#[test]
fn a_frontend_that_changes_hands_plans_both_services_and_no_others() {
    let mut world = many(50, settings());
    let thief = |address| ServiceSpec { external_ips: vec![ip(address)], ..service("zz", &["10.200.0.9"]) };
    world.service(thief("10.201.0.3"));
    world.plan();
    assert_eq!(world.planner.planned(), 2, "it, and the one whose ClusterIP it wants");
    world.service(thief("10.201.0.4"));
    world.plan();
    assert_eq!(world.planner.planned(), 3, "it, the one before, and the one now");
    world.remove(Key::Service(ObjectName::new("shop", "s4")));
    let (tables, issues) = world.plan();
    assert_eq!((world.planner.planned(), issues.len()), (2, 0), "it gets what the other leaves");
    assert_ne!(tables.services4[&super::key([10, 201, 0, 4], 80)].flags & lb_common::abi::SVC_EXTERNAL, 0);
}

#[test]
fn what_the_node_has_plans_the_services_that_it_concerns() {
    let mut world = many(50, Settings { fast: Fast::On, ..settings() });
    let planned = |world: &mut World| {
        world.plan();
        world.planner.planned()
    };
    pod(&mut world, 9, true);
    assert_eq!(planned(&mut world), 0, "a pod without a Service");
    world.service(service("web", &["10.200.0.12"])).slice(slice("w", "web", &[endpoint("10.77.1.8", "ash")]));
    assert_eq!(planned(&mut world), 1);
    pod(&mut world, 8, true);
    assert_eq!(planned(&mut world), 1, "the Service of the pod");
    let row = world.planner.desired().backends4.values().find(|b| b.addr == [10, 77, 1, 8]).unwrap();
    assert_ne!(row.nexthop, 0);
    world.net.links.get_mut(&2).unwrap().addresses.push((ip("10.201.0.7"), 24));
    assert_eq!(planned(&mut world), 1, "the node owns a ClusterIP");
    world.put(Object::Node(Arc::new(NodeSpec { zone: "west".to_owned(), ..node() })));
    assert_eq!(planned(&mut world), 51, "another zone may select other endpoints");
    world.settings.masquerade_all = true;
    assert_eq!(planned(&mut world), 51);
}
