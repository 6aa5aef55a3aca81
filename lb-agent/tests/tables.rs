//! The tables in a real kernel: written, read back, swept. Needs root and the BPF object.

mod lab;

use aya::maps::{HashMap, Map, MapData};
use lb_agent::apply::Applier;
use lb_agent::datapath::Datapath;
use lb_agent::desired::{Changes, Desired};
use lb_agent::gc::{Sweeper, Timeouts};
use lb_common::abi::{
    Addr4, Addr6, Backend4, Backend6, CT_REPLIED, CT_RST, CtKey4, CtValue4, Iface, LbConfig, NextHop,
    ROLE_FRONTEND, RangeKey4, RangeKey6, SvcKey4, SvcKey6, SvcValue,
};

/// Something in every table; `services` frontends.
fn desired(services: u32) -> Desired {
    let mut desired =
        Desired { config: LbConfig { reject_rate: 100, ..LbConfig::default() }, ..Desired::default() };
    for i in 1..=services {
        let [_, _, b, c] = i.to_be_bytes();
        let value = SvcValue { id: i, cluster_start: i, cluster_len: 1, ..SvcValue::default() };
        let addr = [10, 96, b, c];
        desired.services4.insert(SvcKey4 { addr, port: [0, 80], proto: 6, _pad: 0 }, value);
        let mut addr6 = [0xfd; 16];
        addr6[14..].copy_from_slice(&[b, c]);
        desired.services6.insert(SvcKey6 { addr: addr6, port: [0, 80], proto: 6, _pad: 0 }, value);
        desired.slots.put(i, [i].into());
        desired.generations4.insert(i, 7);
        desired.generations6.insert(i, 9);
        let flags = lb_common::abi::BE_LOCAL;
        desired
            .backends4
            .insert(i, Backend4 { addr, port: [0, 80], proto: 6, flags, service: i, nexthop: 1 });
        let backend =
            Backend6 { addr: addr6, port: [0, 80], proto: 6, flags, service: i, nexthop: 1, _pad: [0; 4] };
        desired.backends6.insert(i, backend);
        desired.ranges4.insert((56, RangeKey4 { service: i.to_be_bytes(), addr: [10, 0, 0, 0] }), 1);
        desired.ranges6.insert((64, RangeKey6 { service: i.to_be_bytes(), addr: [0; 16] }), 1);
        desired.roles.insert(addr.into(), ROLE_FRONTEND);
    }
    desired.cidrs4.insert((12, Addr4 { addr: [10, 96, 0, 0] }), 1);
    desired.cidrs6.insert((112, Addr6 { addr: [0xfd; 16] }), 1);
    desired.node4.insert([192, 0, 2, 1], 3);
    desired.node6.insert([1; 16], 3);
    desired.nexthops.insert(1, NextHop { ifindex: 2, ..NextHop::default() });
    desired.interfaces.insert(2, Iface { flags: 1, ..Iface::default() });
    desired.namespaces.insert(4026, 1);
    desired
}

/// What `Applier::actual` shows: roles can't be read backwards.
fn without_roles(desired: &Desired) -> Desired {
    Desired { roles: lb_agent::desired::Roles::default(), ..desired.clone() }
}

#[test]
fn what_was_applied_is_read_back_and_swept() {
    lab::run(|lab| {
        let datapath = Datapath::open(&lab.options()).expect("open");
        let mut applier = Applier::new(datapath.maps().expect("the maps")).expect("reading");
        assert_eq!(*applier.actual(), Desired::default(), "new maps are empty");
        // More than one batch.
        let wanted = desired(2500);
        let report = applier.apply(&wanted, &Changes::All);
        assert!(report.complete(), "{:?}", report.errors);
        assert_eq!(
            (report.changed["LB_SVC4"], report.changed["LB_BE6"], report.changed["LB_CONFIG"]),
            (2500, 2500, 1)
        );

        let mut next = Applier::new(datapath.maps().expect("the maps")).expect("reading");
        assert_eq!(*next.actual(), without_roles(&wanted), "another agent reads what was written");
        assert!(next.apply(&wanted, &Changes::All).changed.is_empty(), "and has nothing to do");
        assert_eq!(Datapath::read(&lab.options().bpffs).expect("the pins"), without_roles(&wanted));

        let fewer = desired(10);
        let report = next.apply(&fewer, &Changes::All);
        assert!(report.complete(), "{:?}", report.errors);
        assert_eq!((report.changed["LB_SVC6"], report.changed["LB_BE4"]), (2490, 2490));
        let roles = report.changed.get("LB_ROLES");
        assert_eq!(roles, None, "roles of before a restart stay: flows may live");
        next.reload().expect("reading");
        let mut left = without_roles(&fewer);
        // These outlive their use.
        left.slots = wanted.slots.clone();
        left.generations4 = wanted.generations4.clone();
        left.generations6 = wanted.generations6.clone();
        assert_eq!(*next.actual(), left);
    });
}

#[test]
fn a_full_table_names_the_setting_and_keeps_what_fits() {
    lab::run(|lab| {
        let mut options = lab.options();
        assert!(options.sizes.set("max-frontends", 64));
        let datapath = Datapath::open(&options).expect("open");
        let mut applier = Applier::new(datapath.maps().expect("the maps")).expect("reading");
        let report = applier.apply(&desired(100), &Changes::All);
        // A hash without preallocation may take some more than its size while entries are per CPU; never all.
        let full = report.errors.iter().filter(|error| error.table == "LB_SVC4").count();
        assert!((1..=36).contains(&full), "{full} of 100 were refused");
        assert_eq!(report.changed["LB_SVC4"] + full, 100, "every key was tried");
        let text = report.errors[0].to_string();
        assert!(text.contains("full: raise --max-frontends"), "{text}");
        let report = applier.apply(&desired(20), &Changes::All);
        assert!(report.complete(), "it recovers: {:?}", report.errors);
    });
}

#[test]
fn flows_that_are_over_are_swept_and_others_stay() {
    lab::run(|lab| {
        let datapath = Datapath::open(&lab.options()).expect("open");
        let pin = datapath.pin_folder().join("LB_CT4");
        let map = Map::LruHashMap(MapData::from_pin(pin).expect("a pinned map"));
        let mut flows: HashMap<_, CtKey4, CtValue4> = map.try_into().expect("its types");
        let now = (lb_agent::sys::monotonic_ns() >> 30) as u32;
        let key = |i: u32| CtKey4 { src: i.to_be_bytes().into(), proto: 6, ..CtKey4::default() };
        for i in 0..3000u32 {
            // A third each: reset 20 s ago, idle for 20 s, alive.
            let (flags, age) = [(CT_RST, 20), (CT_REPLIED, 20), (CT_REPLIED, 0)][i as usize % 3];
            let value = CtValue4 { flags, last_tick: now.wrapping_sub(age), ..CtValue4::default() };
            flows.insert(key(i), value, 0).expect("a flow");
        }
        let mut sweeper = Sweeper::open(datapath.pin_folder(), Timeouts::default()).expect("the flow tables");
        let (mut deleted, mut steps) = (0, 0);
        let occupancy = loop {
            let report = sweeper.step(256).expect("a step");
            deleted += report.deleted;
            steps += 1;
            if let Some(occupancy) = report.finished {
                break occupancy;
            }
        };
        assert_eq!((deleted, occupancy.table, occupancy.live), (1000, "LB_CT4", 2000));
        assert!(steps > 10, "the work was not cut into slices: {steps}");
        for i in 0..3000 {
            assert_eq!(flows.get(&key(i), 0).is_ok(), i % 3 != 0, "flow {i}");
        }
    });
}
