//! The data path in a real kernel: loading, restart, clean-up. Needs root and the BPF object.

mod lab;

use std::collections::{BTreeMap, BTreeSet};

use lab::{Lab, assert_gone, link_ids, sh};
use lb_agent::attachset::attach_set;
use lb_agent::datapath::{AttachReport, Datapath, Options};
use lb_agent::links::{Attachment, NodeNet};
use lb_agent::model::settings::{Fast, Xdp};
use lb_agent::net::Wishes;
use lb_agent::sys::bpf::{self, Kind};

const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

fn snapshot() -> NodeNet {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(lb_agent::net::snapshot()).expect("the node's network")
}

/// Attaches to all that there is now.
fn attach_all(lab: &Lab, datapath: &mut Datapath) -> AttachReport {
    let net = snapshot();
    let mut report = datapath.attach(&net, &attach_set(&net));
    if lab.has_cgroup() {
        let sockets = datapath.attach_sockets().expect("the cgroup");
        report.attached += sockets.attached;
        report.replaced += sockets.replaced;
        report.errors.extend(sockets.errors);
    }
    assert!(report.errors.is_empty(), "{:?}", report.errors);
    report
}

#[test]
fn clean_up_leaves_the_kernel_as_it_was() {
    lab::run(|lab| {
        sh("ip link add up0 type veth peer name up1");
        std::fs::write(RESERVED, "53,30010-30012\n").expect("reserved ports");
        let mut datapath = Datapath::open(&lab.options()).expect("open");
        attach_all(lab, &mut datapath);
        assert_eq!(std::fs::read_to_string(RESERVED).expect("reserved ports"), "53,30000-32767\n");
        assert!(datapath.counters().expect("counters").iter().all(|count| *count == 0));

        let mut objects = BTreeSet::new();
        for entry in std::fs::read_dir(datapath.pin_folder()).expect("pins") {
            let path = entry.expect("entry").path();
            if !path.is_dir() {
                let info =
                    bpf::map_info(bpf::obj_get(&path).expect("a pinned map")).expect("its description");
                objects.insert((Kind::Map, info.id));
            }
        }
        assert!(
            objects.len() > lb_common::abi::names::PINNED_MAPS.len(),
            "all maps, LB_OWNER and LB_MANIFEST"
        );
        for name in lab.link_names() {
            let (link, program) = link_ids(&lab.links().join(name));
            objects.extend([(Kind::Link, link), (Kind::Program, program)]);
        }
        let links = if lab.has_cgroup() { 12 } else { 4 };
        assert_eq!(lab.link_names().len(), links);

        // The agent ends: everything stays.
        drop(datapath);
        for (kind, id) in &objects {
            assert!(bpf::exists(*kind, *id).expect("asking"), "{kind:?} {id} went with the agent");
        }
        let report = Datapath::cleanup(&lab.options()).expect("clean-up");
        assert!(report.errors.is_empty(), "{:?}", report.errors);
        assert_eq!(report.links, links);
        assert_gone(&objects);
        assert!(!lab.options().bpffs.join("lb").exists(), "a folder is left");
        assert_eq!(std::fs::read_to_string(RESERVED).expect("reserved ports"), "53,30010-30012\n");

        let again = Datapath::cleanup(&lab.options()).expect("nothing to remove is fine");
        assert_eq!((again.links, again.maps, again.errors.len()), (0, 0, 0));
    });
}

#[test]
fn a_restart_keeps_the_links_and_replaces_the_programs() {
    lab::run(|lab| {
        sh("ip link add up0 type veth peer name up1");
        sh("ip tuntap add tun0 mode tun");
        let mut first = Datapath::open(&lab.options()).expect("open");
        let made = attach_all(lab, &mut first);
        let names = lab.link_names();
        assert_eq!((made.attached, made.replaced), (names.len(), 0));
        let before: Vec<_> = names.iter().map(|name| link_ids(&lab.links().join(name))).collect();
        assert_eq!(attach_all(lab, &mut first).attached, 0, "attaching again does something");
        drop(first);

        let mut second = Datapath::open(&lab.options()).expect("open again");
        let adopted = attach_all(lab, &mut second);
        assert_eq!((adopted.attached, adopted.replaced, adopted.detached), (0, names.len(), 0));
        assert_eq!(lab.link_names(), names);
        for (name, (link, program)) in names.iter().zip(before) {
            let (new_link, new_program) = link_ids(&lab.links().join(name));
            assert_eq!(new_link, link, "{name}: the link was made anew");
            assert_ne!(new_program, program, "{name}: the old program stayed");
        }
        if lab.has_cgroup() {
            assert_eq!(second.detach_sockets().detached, 8);
            assert!(lab.link_names().iter().all(|name| name.starts_with("tc-")));
        }
    });
}

#[test]
fn the_set_follows_interfaces_that_come_and_go() {
    lab::run(|lab| {
        let mut datapath = Datapath::open(&lab.options()).expect("open");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let (tx, mut rx) = tokio::sync::watch::channel(NodeNet::default());
            let watcher = tokio::spawn(lb_agent::net::watch(tx, Wishes { xdp: Xdp::Off, fast: Fast::Off }));
            let mut wait_for = async |wanted: bool| {
                let by_name = |net: &NodeNet| net.links.values().any(|link| link.name == "pod0") == wanted;
                let ready = rx.wait_for(|net| net.netns_cookie != 0 && by_name(net));
                let net = tokio::time::timeout(std::time::Duration::from_secs(10), ready).await;
                net.expect("in time").expect("the watcher lives").clone()
            };
            let net = wait_for(false).await;
            assert_eq!(datapath.attach(&net, &attach_set(&net)).attached, 0, "nothing but lo");

            sh("ip link add pod0 type veth peer name pod1");
            let net = wait_for(true).await;
            let set = attach_set(&net);
            let index = net.links.iter().find(|(_, link)| link.name == "pod0").map(|(index, _)| *index);
            let index = index.expect("pod0");
            assert!(set[&index].pod_facing);
            let report = datapath.attach(&net, &set);
            assert_eq!((report.attached, report.errors.len()), (4, 0), "{:?}", report.errors);
            assert!(lab.link_names().contains(&format!("tc-{index}-in")));

            sh("ip link del pod0");
            let net = wait_for(false).await;
            let report = datapath.attach(&net, &attach_set(&net));
            assert_eq!((report.detached, report.errors.len()), (4, 0), "{:?}", report.errors);
            assert!(lab.link_names().is_empty());
            watcher.abort();
        });
    });
}

#[test]
fn the_network_is_read_as_it_is() {
    lab::run(|_| {
        sh("ip link add br0 type bridge");
        sh("ip link add up0 type veth peer name pod0");
        sh("ip link set pod0 master br0");
        sh("ip link add link up0 name mac0 type macvlan mode bridge");
        sh("ip address add 10.5.0.2/24 dev up0");
        sh("ip address add 10.5.0.3/24 dev up0");
        sh("ip link set up0 up");
        sh("ip link set pod0 up");
        sh("ip route add default via 10.5.0.1");
        let net = snapshot();
        let link = |name: &str| net.links.iter().find(|(_, link)| link.name == name).expect("the link");
        let (up, up0) = link("up0");
        assert_eq!((up0.kind.as_str(), up0.ethernet, up0.up, up0.default_route), ("veth", true, true, true));
        assert_eq!(
            up0.addresses,
            [("10.5.0.2".parse().expect("ip"), 24), ("10.5.0.3".parse().expect("ip"), 24)]
        );
        assert_eq!((up0.lower, up0.mac == [0; 6]), (None, false));
        assert_eq!(link("mac0").1.lower, Some(*up));
        assert_eq!(link("pod0").1.master, Some(*link("br0").0));
        assert!(link("lo").1.loopback && net.netns_cookie != 0 && net.ephemeral.0 < net.ephemeral.1);
    });
}

#[test]
fn pins_of_another_node_or_namespace_are_refused() {
    lab::run(|lab| {
        drop(Datapath::open(&lab.options()).expect("open"));
        let other = Options { node_name: "other".to_owned(), ..lab.options() };
        for refused in [Datapath::open(&other).map(drop), Datapath::cleanup(&other).map(drop)] {
            let text = refused.expect_err("another node's pins").to_string();
            // whose they are, who asks, and two cures
            for word in ["node lab", "node other", "--bpffs", "lb-agent cleanup"] {
                assert!(text.contains(word), "{word} is not in: {text}");
            }
        }
        let options = lab.options();
        let elsewhere = std::thread::spawn(move || {
            // SAFETY: unshare() takes no pointers; it affects this thread alone.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
            [Datapath::open(&options).map(drop), Datapath::cleanup(&options).map(drop)]
        });
        for refused in elsewhere.join().expect("the thread") {
            let text = refused.expect_err("another namespace's pins").to_string();
            assert!(text.contains("network namespace"), "{text}");
        }
        drop(Datapath::open(&lab.options()).expect("the owner still may"));
    });
}

#[test]
fn clsact_filters_take_the_part_of_links_on_old_kernels() {
    lab::run(|lab| {
        sh("ip link add up0 type veth peer name up1");
        let options = Options { clsact: true, ..lab.options() };
        let filters = || sh("tc filter show dev up0 ingress") + &sh("tc filter show dev up0 egress");
        let mut first = Datapath::open(&options).expect("open");
        let net = snapshot();
        let set = attach_set(&net);
        let report = first.attach(&net, &set);
        assert_eq!((report.attached, report.errors.len()), (4, 0), "{:?}", report.errors);
        drop(first);
        let text = filters();
        assert!(text.contains("lb_tc_in") && text.contains("lb_tc_out"), "{text}");

        let mut second = Datapath::open(&options).expect("open again");
        let report = second.attach(&net, &set);
        assert!(report.errors.is_empty(), "{:?}", report.errors);
        let replaced = filters();
        assert_eq!(replaced.matches("lb_tc_in").count(), text.matches("lb_tc_in").count(), "{replaced}");
        assert_ne!(replaced, text, "the program is the old one");
        drop(second);

        // From filters to links and back: never both at the end.
        let mut third = Datapath::open(&lab.options()).expect("open with TCX");
        assert_eq!(attach_all_links(&mut third).attached, 4);
        assert!(!filters().contains("lb_tc"), "{}", filters());
        drop(third);
        let mut fourth = Datapath::open(&options).expect("open with filters");
        let report = attach_all_links(&mut fourth);
        assert_eq!((report.attached, report.detached), (4, 4));
        assert!(lab.link_names().is_empty() && filters().contains("lb_tc_in"));
        let report = fourth.attach(&net, &BTreeMap::from([(set.keys().next().copied().expect("one"), POD)]));
        assert_eq!((report.detached, report.errors.len()), (2, 0), "{:?}", report.errors);
        drop(fourth);
        let report = Datapath::cleanup(&options).expect("clean-up");
        assert!(report.errors.is_empty(), "{:?}", report.errors);
        assert!(!filters().contains("lb_tc"), "{}", filters());
    });
}

const POD: Attachment = Attachment { pod_facing: true, l3: false, xdp: false };

fn attach_all_links(datapath: &mut Datapath) -> AttachReport {
    let net = snapshot();
    let report = datapath.attach(&net, &attach_set(&net));
    assert!(report.errors.is_empty(), "{:?}", report.errors);
    report
}
