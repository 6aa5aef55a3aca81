//! Tables of another size are taken over in a real kernel, whatever moment the agent was killed at. Needs root and the
//! BPF object. Other layouts are tested under traffic, by the netns level.

mod lab;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lab::{Lab, sh};
use lb_agent::apply::Applier;
use lb_agent::attachset::attach_set;
use lb_agent::datapath::{Datapath, Options};
use lb_agent::desired::{Changes, Desired};
use lb_agent::links::NodeNet;
use lb_agent::sys::bpf::{self, MapInfo, RawMap};
use lb_common::abi::{ABI_VERSION, Backend4, CFG_MIGRATING, SvcKey4, SvcValue};

/// Sets of pins, by name.
fn sets(lab: &Lab) -> Vec<String> {
    let entries = std::fs::read_dir(lab.options().bpffs.join("lb")).expect("the folder of sets");
    let mut names: Vec<_> =
        entries.map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn own() -> String {
    format!("v{ABI_VERSION}")
}

fn set(lab: &Lab, name: &str) -> PathBuf {
    lab.options().bpffs.join("lb").join(name)
}

fn sized(lab: &Lab, flows: u32) -> Options {
    let mut options = lab.options();
    for (setting, entries) in [("max-flows", flows), ("max-backends", 8192), ("max-affinity", 512)] {
        assert!(options.sizes.set(setting, entries));
    }
    options
}

fn snapshot() -> NodeNet {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(lb_agent::net::snapshot()).expect("the node's network")
}

/// One cycle of an agent, but for the API.
fn cycle(lab: &Lab, datapath: &mut Datapath) {
    let net = snapshot();
    let mut report = datapath.attach(&net, &attach_set(&net));
    for _ in 0..50 {
        if report.errors.is_empty() {
            break;
        }
        // links of a file system that was just unmounted go a moment later; the agent tries again, too
        std::thread::sleep(std::time::Duration::from_millis(100));
        report = datapath.attach(&net, &attach_set(&net));
    }
    assert!(report.errors.is_empty(), "{:?}", report.errors);
    if lab.has_cgroup() {
        let report = datapath.attach_sockets().expect("the cgroup");
        assert!(report.errors.is_empty(), "{:?}", report.errors);
    }
    datapath.finish_migration().expect("finishing");
}

/// As [`cycle`], tried again as the agent does: the kernel takes a while to let go of links without pins, and until
/// then refuses the same program on the same interface.
fn cycle_again(lab: &Lab, datapath: &mut Datapath) {
    let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
    loop {
        let net = snapshot();
        let report = datapath.attach(&net, &attach_set(&net));
        if report.errors.is_empty() {
            return cycle(lab, datapath);
        }
        assert!(std::time::Instant::now() < end, "{:?}", report.errors);
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

/// Writes `count` entries to a table, keys numbered, values made of `byte`.
fn fill(folder: &Path, table: &str, from: u32, count: u32, byte: u8) {
    let map = RawMap::open(&folder.join(table)).expect("the map");
    for number in from..from + count {
        let mut key = vec![0; map.info().key_size as usize];
        key[..4].copy_from_slice(&number.to_ne_bytes());
        map.update(&key, &vec![byte; map.value_len()]).expect("an entry");
    }
}

/// The first byte of a table's entry, `None` if it is not there.
fn entry(folder: &Path, table: &str, number: u32) -> Option<u8> {
    let map = RawMap::open(&folder.join(table)).expect("the map");
    let mut key = vec![0; map.info().key_size as usize];
    key[..4].copy_from_slice(&number.to_ne_bytes());
    let mut value = vec![0; map.value_len()];
    map.lookup(&key, &mut value).expect("a look-up").then(|| value[0])
}

fn id(folder: &Path, table: &str) -> u32 {
    bpf::map_info(bpf::obj_get(&folder.join(table)).expect("a pin")).expect("its description").id
}

fn flags(folder: &Path) -> u32 {
    let map = RawMap::open(&folder.join("LB_CONFIG")).expect("the map");
    let mut value = vec![0; map.value_len()];
    map.lookup(&0u32.to_ne_bytes(), &mut value).expect("a look-up");
    u32::from_ne_bytes(value[..4].try_into().expect("four bytes"))
}

/// The tables that programs write, by their types: LRU hashes, per-CPU arrays, socket storages.
fn written_by_programs(folder: &Path) -> BTreeMap<String, MapInfo> {
    let names = lb_common::abi::names::PINNED_MAPS.iter();
    let infos = names.map(|name| {
        let info = bpf::map_info(bpf::obj_get(&folder.join(name)).expect("a pin")).expect("its description");
        ((*name).to_owned(), info)
    });
    infos.filter(|(_, info)| matches!(info.map_type, 6 | 9 | 24)).collect()
}

/// Something that an agent wrote, by which ids are known again.
fn desired() -> Desired {
    let mut desired = Desired::default();
    let value = SvcValue { id: 5, cluster_start: 3, cluster_len: 1, ..SvcValue::default() };
    desired.services4.insert(SvcKey4 { addr: [10, 96, 0, 1], port: [0, 80], proto: 6, _pad: 0 }, value);
    desired.slots.put(3, [4321].into());
    desired.generations4.insert(4321, 77);
    let backend =
        Backend4 { addr: [10, 0, 0, 1], port: [0, 80], proto: 6, service: 5, ..Backend4::default() };
    desired.backends4.insert(4321, backend);
    desired
}

/// A node that served with the object's sizes.
fn before(lab: &Lab) -> Datapath {
    sh("ip link add up0 type veth peer name up1");
    let mut first = Datapath::open(&lab.options()).expect("open");
    let mut applier = Applier::new(first.maps().expect("the maps")).expect("reading");
    assert!(applier.apply(&desired(), &Changes::All).complete());
    cycle(lab, &mut first);
    fill(first.pin_folder(), "LB_CT4", 1, 3000, 1);
    fill(first.pin_folder(), "LB_EM6", 1, 10, 1);
    fill(first.pin_folder(), "LB_AFF4", 1, 10, 1);
    first
}

/// Everything was taken over into tables of `flows` entries.
fn check(lab: &Lab, datapath: &Datapath, flows: u32) {
    assert_eq!(sets(lab), [own()], "one set is left, under its final name");
    let folder = datapath.pin_folder();
    assert_eq!(folder, set(lab, &own()));
    let capacity = RawMap::open(&folder.join("LB_CT4")).expect("the map").info().max_entries;
    assert_eq!(capacity, flows);
    let kept = (1..=3000).filter(|number| entry(folder, "LB_CT4", *number) == Some(1)).count();
    assert_eq!(kept, 3000, "flows were lost");
    assert!((1..=10).all(|number| entry(folder, "LB_EM6", number) == Some(1)), "embryonic flows were lost");
    assert!((1..=10).all(|number| entry(folder, "LB_AFF4", number) == Some(1)), "affinity was lost");
    let actual = Datapath::read(&lab.options().bpffs).expect("the tables");
    assert_eq!(actual, desired(), "ids and generations");
    assert_eq!(flags(folder) & CFG_MIGRATING, 0);
}

#[test]
fn another_capacity_is_taken_over() {
    lab::run(|lab| {
        let first = before(lab);
        let written = written_by_programs(first.pin_folder());
        let links: Vec<_> =
            lab.link_names().iter().map(|name| lab::link_ids(&lab.links().join(name)).0).collect();
        drop(first);

        let mut second = Datapath::open(&sized(lab, 16_384)).expect("open with other sizes");
        assert_eq!(sets(lab), [own(), format!("{}-next", own())]);
        assert_eq!(entry(&set(lab, &own()), "LB_CT4", 1), Some(1), "the old set serves on");
        // A flow that the old programs make meanwhile.
        fill(&set(lab, &own()), "LB_CT4", 5000, 1, 1);
        let roundly = Applier::new(second.maps().expect("the maps")).expect("reading").actual().clone();
        assert_eq!(roundly, desired(), "ids are there before anything is applied");
        cycle(lab, &mut second);
        check(lab, &second, 16_384);
        assert!(second.memory().total() > 10 << 20, "{:?}", second.memory());
        assert_eq!(entry(second.pin_folder(), "LB_CT4", 5000), Some(1), "a flow made meanwhile");
        for (name, before) in written {
            let after = written_by_programs(second.pin_folder())[&name];
            let same = before.max_entries == after.max_entries;
            assert_eq!(before.id == after.id, same, "{name}: a table that is the same is shared");
        }
        let after: Vec<_> =
            lab.link_names().iter().map(|name| lab::link_ids(&lab.links().join(name)).0).collect();
        assert_eq!(after, links, "links were made anew");
        drop(second);

        // And smaller again.
        let mut third = Datapath::open(&lab.options()).expect("open");
        cycle(lab, &mut third);
        check(lab, &third, lb_common::abi::capacity::FLOWS as u32);
    });
}

#[test]
fn killed_before_the_links_moved_it_begins_anew() {
    lab::run(|lab| {
        drop(before(lab));
        drop(Datapath::open(&sized(lab, 16_384)).expect("open with other sizes"));
        let staged = format!("{}-next", own());
        assert_eq!(sets(lab), [own(), staged.clone()]);
        let given_up = id(&set(lab, &staged), "LB_CT4");
        let mut next = Datapath::open(&sized(lab, 8192)).expect("open again, with yet other sizes");
        assert_ne!(id(&set(lab, &staged), "LB_CT4"), given_up);
        cycle(lab, &mut next);
        check(lab, &next, 8192);
    });
}

#[test]
fn killed_after_the_links_moved_it_goes_on() {
    lab::run(|lab| {
        drop(before(lab));
        let killed = Datapath::open(&sized(lab, 16_384)).expect("open with other sizes");
        let staged = set(lab, &format!("{}-next", own()));
        // What `begin` does, up to its middle: some flows copied, the links moved, packets without entry held back.
        fill(&staged, "LB_CT4", 1, 100, 1);
        std::fs::rename(set(lab, &own()).join("links"), staged.join("links")).expect("moving the links");
        // A program of ours has since closed flow 7 and made one that the old set has differently.
        fill(&staged, "LB_CT4", 3000, 1, 1);
        fill(&set(lab, &own()), "LB_CT4", 3000, 1, 9);
        drop(killed);

        let mut next = Datapath::open(&sized(lab, 16_384)).expect("open again");
        assert_eq!(next.pin_folder(), staged, "goes on where it was");
        cycle(lab, &mut next);
        check(lab, &next, 16_384);
    });
}

#[test]
fn another_size_in_the_middle_of_a_migration() {
    lab::run(|lab| {
        drop(before(lab));
        drop(Datapath::open(&sized(lab, 16_384)).expect("open with other sizes"));
        let staged = set(lab, &format!("{}-next", own()));
        std::fs::rename(set(lab, &own()).join("links"), staged.join("links")).expect("moving the links");
        let mut next = Datapath::open(&sized(lab, 8192)).expect("open with a third size");
        cycle(lab, &mut next);
        check(lab, &next, 8192);
    });
}

#[test]
fn killed_while_the_old_set_was_removed() {
    lab::run(|lab| {
        drop(before(lab));
        let gone = set(lab, &format!("{}-gone", own()));
        std::fs::create_dir(&gone).expect("a folder");
        bpf::obj_pin(bpf::obj_get(&set(lab, &own()).join("LB_CT6")).expect("a map"), &gone.join("LB_CT6"))
            .expect("a pin");
        // The new set had not got its name yet.
        std::fs::rename(set(lab, &own()), set(lab, &format!("{}-next", own()))).expect("another name");
        let mut next = Datapath::open(&lab.options()).expect("open");
        cycle(lab, &mut next);
        check(lab, &next, lb_common::abi::capacity::FLOWS as u32);
    });
}

#[test]
fn clean_up_in_the_middle_of_a_migration_leaves_nothing() {
    lab::run(|lab| {
        drop(before(lab));
        drop(Datapath::open(&sized(lab, 16_384)).expect("open with other sizes"));
        let report = Datapath::cleanup(&lab.options()).expect("clean-up");
        assert!(report.errors.is_empty(), "{:?}", report.errors);
        assert!(!lab.options().bpffs.join("lb").exists());
    });
}

#[test]
fn pins_that_somebody_removed_are_put_back() {
    lab::run(|lab| {
        let mut datapath = before(lab);
        assert!(datapath.intact());
        let flows = id(datapath.pin_folder(), "LB_CT4");
        let folder = datapath.pin_folder().to_owned();
        for name in ["LB_CT4", "LB_OWNER", "LB_MANIFEST"] {
            std::fs::remove_file(folder.join(name)).expect("a pin");
        }
        let links = lab.link_names();
        for name in &links {
            std::fs::remove_file(lab.links().join(name)).expect("a link");
        }
        assert!(!datapath.intact());
        cycle_again(lab, &mut datapath);
        assert!(datapath.intact());
        assert_eq!((id(&folder, "LB_CT4"), lab.link_names()), (flows, links));

        // The whole file system.
        let bpffs = std::ffi::CString::new(lab.options().bpffs.to_str().expect("UTF-8")).expect("no NUL");
        // SAFETY: the path ends with NUL and lives.
        let rc = unsafe { libc::umount2(bpffs.as_ptr(), libc::MNT_DETACH) };
        assert_eq!(rc, 0, "{}", std::io::Error::last_os_error());
        assert!(!datapath.intact());
        cycle_again(lab, &mut datapath);
        assert!(datapath.intact());
        assert_eq!(id(&folder, "LB_CT4"), flows);
        check(lab, &datapath, lb_common::abi::capacity::FLOWS as u32);
    });
}
