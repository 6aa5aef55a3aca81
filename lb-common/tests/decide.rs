//! The decision tables of BEHAVIOUR.md: sets, affinity, masquerade, refusals, source ranges.

use std::collections::BTreeMap;
use std::net::IpAddr;

use lb_common::abi::*;
use lb_common::counter::Counter;
use lb_common::decide::{Decision, Outcome, Source, Target, decide, target};
use lb_common::env::Env;
use lb_common::family::V4;
use lb_common::packet::{TCP, UDP};
use lb_common::testing::golden::{net4, net6, world};
use lb_common::testing::{FakeEnv, Machine, Side, World};

const POD: Source = Source { pod: Some(true), host: false, pod_facing: false };
const FOREIGN: Source = Source { pod: Some(false), host: false, pod_facing: false };
const HOST: Source = Source { pod: Some(false), host: true, pod_facing: false };
/// The same without a detector.
const UNKNOWN: Source = Source { pod: None, host: false, pod_facing: false };
const HOST_UNKNOWN: Source = Source { pod: None, host: true, pod_facing: false };

fn ip(last: u8) -> IpAddr {
    [10, 0, 0, last].into()
}

fn ask(machine: &mut Machine, service: &SvcValue, client: IpAddr, source: Source) -> Decision<V4> {
    decide::<V4>(&mut machine.env, &machine.config, service, V4::addr(client), 0, &source)
}

/// A remote backend (id 1, in the Cluster set) and a local one (id 2, in the Local set), kube-proxy's masquerading.
fn two(flags: u32) -> (Machine, SvcValue) {
    let mut w = World::default();
    w.config.flags = CFG_MASQ_LOCAL;
    let (remote, local) = (w.backend(ip(1), 80, TCP, 0), w.backend(ip(2), 80, TCP, BE_LOCAL));
    let service = w.service(flags | SVC_HAS_ANY, &[remote], &[local]);
    (w.machine(), service)
}

#[test]
fn b47_b48_b49_b80_the_set_and_the_masquerade_of_each_row() {
    let external = SVC_EXTERNAL;
    let etp_local = SVC_EXTERNAL | SVC_LOCAL;
    for (flags, source, id, masquerade) in [
        // ClusterIP, masqueradeAll
        (SVC_MASQ_ALL, POD, 1, true),
        (SVC_MASQ_ALL, FOREIGN, 1, true),
        (SVC_MASQ_ALL, HOST, 1, true),
        (SVC_MASQ_ALL, UNKNOWN, 1, true),
        // ClusterIP
        (0, POD, 1, false),
        (0, FOREIGN, 1, true),
        (0, HOST, 1, true),
        (0, UNKNOWN, 1, false),
        (0, HOST_UNKNOWN, 1, false),
        // ClusterIP, ITP Local: another set, the same masquerade
        (SVC_LOCAL, POD, 2, false),
        (SVC_LOCAL, FOREIGN, 2, true),
        (SVC_LOCAL, HOST, 2, true),
        // external, ETP Cluster
        (external, POD, 1, true),
        (external, FOREIGN, 1, true),
        (external, HOST, 1, true),
        (external, UNKNOWN, 1, true),
        // external, ETP Local: the short circuit for pods and host (B82)
        (etp_local, POD, 1, false),
        (etp_local, HOST, 1, true),
        (etp_local, HOST_UNKNOWN, 1, true),
        (etp_local, FOREIGN, 2, false),
        (etp_local, UNKNOWN, 2, false),
        // the pod check comes before the host check
        (etp_local, Source { host: true, ..POD }, 1, false),
    ] {
        let (mut machine, service) = two(flags);
        let decision = ask(&mut machine, &service, ip(99), source);
        let found = (decision.outcome, decision.id, decision.masquerade);
        assert_eq!(found, (Outcome::Deliver, id, masquerade), "flags {flags:#x}, {source:?}");
        assert_eq!(decision.generation, 1000 + id);
        // hairpin: whatever the rows say
        assert!(ask(&mut machine, &service, ip(id as u8), source).masquerade, "flags {flags:#x}, {source:?}");
    }
}

#[test]
fn b80_an_answer_that_comes_back_anyway_keeps_the_clients_address_unless_asked() {
    for (cfg, id, facing, masquerade) in [
        (CFG_MASQ_LOCAL, 2, false, true),
        (CFG_MASQ_LOCAL, 1, true, true),
        (0, 2, false, false), // the backend is here
        (0, 1, true, false),  // the client is here
        (0, 1, false, true),
    ] {
        let mut w = World::default();
        w.config.flags = cfg;
        w.backend(ip(1), 80, TCP, 0);
        w.backend(ip(2), 80, TCP, BE_LOCAL);
        let service = w.service(SVC_EXTERNAL | SVC_HAS_ANY, &[id], &[]);
        let source = Source { pod_facing: facing, ..FOREIGN };
        let decision = ask(&mut w.machine(), &service, ip(99), source);
        assert_eq!((decision.id, decision.masquerade), (id, masquerade), "{cfg} {id} {facing}");
    }
}

#[test]
fn b52_b86_b87_empty_sets() {
    let refused = |flags, cluster: &[u32], local: &[u32], source| {
        let mut w = World::default();
        w.backend(ip(1), 80, TCP, 0);
        let service = w.service(flags, cluster, local);
        let decision = ask(&mut w.machine(), &service, ip(99), source);
        (decision.outcome, decision.reason)
    };
    let reject = (Outcome::Reject, Counter::RejectNoEndpoints);
    let drop = (Outcome::Drop, Counter::DropNoLocalEndpoints);
    for flags in [0, SVC_LOCAL, SVC_EXTERNAL, SVC_EXTERNAL | SVC_LOCAL] {
        for source in [POD, FOREIGN, HOST, UNKNOWN] {
            assert_eq!(refused(flags, &[], &[], source), reject, "{flags:#x} {source:?}");
        }
    }
    for source in [POD, FOREIGN, HOST, UNKNOWN] {
        assert_eq!(refused(SVC_LOCAL | SVC_HAS_ANY, &[1], &[], source), drop, "ITP Local, {source:?}");
    }
    let etp_local = SVC_EXTERNAL | SVC_LOCAL | SVC_HAS_ANY;
    for source in [FOREIGN, UNKNOWN] {
        assert_eq!(refused(etp_local, &[1], &[], source), drop, "ETP Local, {source:?}");
    }
    for source in [POD, HOST] {
        assert_eq!(refused(etp_local, &[1], &[], source).0, Outcome::Deliver, "short circuit, {source:?}");
    }
}

#[test]
fn b91_to_b94_what_a_destination_is() {
    for n in [net4(), net6()] {
        if n.v6 {
            destinations::<lb_common::family::V6>(&n);
        } else {
            destinations::<V4>(&n);
        }
    }
}

fn destinations<F: Side>(n: &lb_common::testing::golden::Net) {
    let find = |w: &World, ip, port: u16, proto| {
        let machine = w.machine();
        let roles = Env::<F>::roles(&machine.env, F::addr(ip));
        let found = target::<F>(
            &machine.env,
            &w.config,
            roles,
            NODE_NODEPORT,
            F::addr(ip),
            port.to_be_bytes(),
            proto,
        );
        match found {
            Target::Service(_) => "service",
            Target::NotOurs => "not ours",
            Target::UnknownPort => "unknown port",
            Target::UnknownAddress => "unknown address",
        }
    };
    let nftables = world(n);
    let mut iptables = nftables.clone();
    iptables.config.flags &= !(CFG_REJECT_UNKNOWN | CFG_CIDR4 | CFG_CIDR6);
    for (ip, port, proto, ours, theirs) in [
        (n.cluster, 80, TCP, "service", "service"),
        (n.cluster, 80, UDP, "unknown port", "not ours"),
        (n.cluster, 81, UDP, "unknown port", "not ours"),
        (n.cluster, 0, 1, "unknown port", "not ours"),
        (n.empty, 80, TCP, "service", "service"), // B95
        (n.empty, 81, TCP, "unknown port", "not ours"),
        (n.nobody, 80, TCP, "unknown address", "not ours"),
        (n.external, 80, TCP, "service", "service"),
        (n.external, 81, TCP, "not ours", "not ours"),
        (n.vip, 444, TCP, "not ours", "not ours"),
        (n.node, 30080, TCP, "service", "service"),
        (n.node, 30080, UDP, "not ours", "not ours"),
        (n.node, 30999, TCP, "not ours", "not ours"),
        (n.client, 30080, TCP, "not ours", "not ours"),
    ] {
        assert_eq!(find(&nftables, ip, port, proto), ours, "nftables: {ip} {port} {proto}");
        assert_eq!(find(&iptables, ip, port, proto), theirs, "iptables: {ip} {port} {proto}");
    }
}

#[test]
fn b96_to_b99_source_ranges_filter_only_where_the_flag_is_and_everybody() {
    let mut w = World::default();
    let id = w.backend(ip(1), 80, TCP, 0);
    let open = w.service(SVC_EXTERNAL | SVC_HAS_ANY, &[id], &[]);
    let closed = SvcValue { flags: open.flags | SVC_RANGES, ..open };
    w.range(open.id, [192, 0, 2, 0].into(), 24);
    w.range(open.id + 1, [198, 51, 100, 0].into(), 24); // another service's
    let mut machine = w.machine();
    for source in [POD, FOREIGN, HOST, UNKNOWN] {
        for (client, inside) in
            [([192, 0, 2, 255], true), ([192, 0, 3, 0], false), ([198, 51, 100, 1], false)]
        {
            let decision = ask(&mut machine, &closed, client.into(), source);
            if inside {
                assert_eq!(decision.outcome, Outcome::Deliver);
            } else {
                let found = (decision.outcome, decision.reason);
                assert_eq!(found, (Outcome::Drop, Counter::DropSourceRange), "{client:?} {source:?}");
            }
            assert_eq!(ask(&mut machine, &open, client.into(), source).outcome, Outcome::Deliver);
        }
    }
}

/// Ten backends in the Cluster set, of which the last is alone in the Local set; one hour of affinity.
fn sticky() -> (Machine, SvcValue) {
    let mut w = World::default();
    let ids: Vec<u32> = (1..=10).map(|last| w.backend(ip(last), 80, TCP, 0)).collect();
    let service = w.service(SVC_HAS_ANY, &ids, &ids[9..]);
    (w.machine(), SvcValue { affinity_s: 3600, ..service })
}

fn seconds(env: &mut FakeEnv, seconds: u64) {
    env.now_ns += seconds * 1_000_000_000;
}

#[test]
fn b63_a_client_stays_whatever_the_frontend_and_others_do_not_follow() {
    let (mut machine, service) = sticky();
    let external = SvcValue { flags: service.flags | SVC_EXTERNAL, ..service };
    let mut chosen = std::collections::BTreeSet::new();
    for client in 50..100 {
        let first = ask(&mut machine, &service, ip(client), POD).id;
        for _ in 0..5 {
            assert_eq!(ask(&mut machine, &service, ip(client), FOREIGN).id, first);
            assert_eq!(ask(&mut machine, &external, ip(client), HOST).id, first);
        }
        chosen.insert(first);
    }
    assert!(chosen.len() > 5, "{chosen:?}");
    // another service port knows nothing of it, nor one that has the number again (B68)
    for other in [SvcValue { id: 77, ..service }, SvcValue { generation: 2, ..service }] {
        let moved = (50..100).filter(|c| {
            ask(&mut machine, &service, ip(*c), POD).id != ask(&mut machine, &other, ip(*c), POD).id
        });
        assert!(moved.count() > 20);
    }
}

#[test]
fn b65_b66_the_timeout_counts_from_the_last_new_connection() {
    let (mut machine, service) = sticky();
    let first = ask(&mut machine, &service, ip(50), POD).id;
    for _ in 0..20 {
        seconds(&mut machine.env, 3599);
        assert_eq!(ask(&mut machine, &service, ip(50), POD).id, first);
    }
    let moved = (0..20).filter(|_| {
        let before = ask(&mut machine, &service, ip(50), POD).id;
        seconds(&mut machine.env, 3600);
        ask(&mut machine, &service, ip(50), POD).id != before
    });
    assert!(moved.count() > 5);
}

#[test]
fn b67_an_endpoint_outside_the_set_is_not_followed() {
    let (mut machine, service) = sticky();
    let local = SvcValue { flags: service.flags | SVC_LOCAL, ..service };
    let client = (50..100).find(|c| ask(&mut machine, &service, ip(*c), POD).id != 10).expect("one of fifty");
    assert_eq!(ask(&mut machine, &local, ip(client), POD).id, 10);
    // and now it is stuck to the local one, which the Cluster set has, too
    assert_eq!(ask(&mut machine, &service, ip(client), POD).id, 10);
}

#[test]
fn b68_an_endpoint_that_left_and_came_back_starts_empty() {
    let (mut machine, service) = sticky();
    let clients = 50..150;
    let before: Vec<u32> = clients.clone().map(|c| ask(&mut machine, &service, ip(c), POD).id).collect();
    machine.env.v4.generations.insert(3, 9);
    let after: Vec<u32> = clients.map(|c| ask(&mut machine, &service, ip(c), POD).id).collect();
    let of_three: Vec<u32> = before.iter().zip(&after).filter(|(b, _)| **b == 3).map(|(_, a)| *a).collect();
    assert!(of_three.iter().any(|id| *id != 3) && !of_three.is_empty(), "{of_three:?}");
    assert!(before.iter().zip(&after).all(|(b, a)| *b == 3 || a == b), "other clients are unaffected");
}

#[test]
fn without_affinity_nothing_is_remembered() {
    let (mut machine, service) = sticky();
    let service = SvcValue { affinity_s: 0, ..service };
    let _ = ask(&mut machine, &service, ip(50), POD);
    assert!(machine.env.v4.affinity.is_empty());
}

#[test]
fn a_missing_slot_or_row_is_a_named_drop() {
    let (mut machine, service) = two(0);
    machine.env.slots.clear();
    let decision = ask(&mut machine, &service, ip(99), POD);
    assert_eq!((decision.outcome, decision.reason), (Outcome::Drop, Counter::DropNoBackend));
}

/// B29: an even draw. 10 backends, 20,000 draws: each bin within five standard deviations (sqrt(n p q) = 42).
#[test]
fn b29_selection_is_even() {
    let n = net4();
    let mut w = World::default();
    let ids: Vec<u32> = (0..10).map(|i| w.backend(IpAddr::from([10, 0, 0, i + 1]), 80, TCP, 0)).collect();
    let service = w.service(SVC_HAS_ANY | SVC_EXTERNAL, &ids, &[]);
    let mut machine = w.machine();
    let mut bins = BTreeMap::<u32, u32>::new();
    for _ in 0..20_000 {
        let source = Source { pod: Some(false), host: false, pod_facing: false };
        let decision = decide::<V4>(&mut machine.env, &w.config, &service, V4::addr(n.client), 0, &source);
        assert_eq!(decision.outcome, Outcome::Deliver);
        *bins.entry(decision.id).or_default() += 1;
    }
    assert_eq!(bins.len(), 10);
    assert!(bins.values().all(|count| count.abs_diff(2000) < 212), "{bins:?}");
}
