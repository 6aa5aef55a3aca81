use k8s_openapi::api::core::v1::Service;
use kube::Resource as _;
use serde_json::json;

use super::*;
use crate::model::ObjectName;

type Guard = DeserializeGuard<Service>;

fn service(name: &str, ip: &str) -> Guard {
    let spec = json!({"clusterIP": ip, "ports": [{"port": 80}]});
    serde_json::from_value(json!({"metadata": {"name": name, "namespace": "ns"}, "spec": spec})).unwrap()
}

fn unreadable(name: &str) -> Guard {
    serde_json::from_value(json!({"metadata": {"name": name, "namespace": "ns"}, "spec": {"ports": "no"}}))
        .unwrap()
}

fn key(name: &str) -> Key {
    Key::Service(ObjectName::new("ns", name))
}

fn table() -> Table<Service> {
    Table::new(Source::ApiServices)
}

fn list(table: &mut Table<Service>, objects: &[Guard]) -> Vec<Event> {
    table.list_begins();
    objects.iter().for_each(|o| table.listed(o));
    table.list_ends()
}

/// Names that are put and names that are taken away by the only batch of changes.
fn names(events: &[Event]) -> (Vec<String>, Vec<String>) {
    let batches: Vec<_> =
        events.iter().filter_map(|e| if let Event::Changes(c) = e { Some(c) } else { None }).collect();
    assert!(batches.len() <= 1, "more than one batch: {events:?}");
    let pick = |there: bool| {
        let all = batches.iter().copied().flatten().filter(move |(_, o)| o.is_some() == there);
        all.map(|(k, _)| k.to_string().replace("Service ns/", "")).collect()
    };
    (pick(true), pick(false))
}

fn issues(events: &[Event]) -> Option<usize> {
    events.iter().find_map(|e| if let Event::Issues(_, list) = e { Some(list.len()) } else { None })
}

fn in_sync(events: &[Event]) -> bool {
    events.iter().any(|e| matches!(e, Event::InSync(Source::ApiServices)))
}

#[test]
fn b141_nothing_is_handed_on_before_the_list_is_complete() {
    let mut table = table();
    table.list_begins();
    table.listed(&service("a", "10.0.0.1"));
    table.list_begins(); // the first list broke off
    table.listed(&service("b", "10.0.0.2"));
    let events = table.list_ends();
    assert_eq!(names(&events), (vec!["b".into()], vec![]));
    assert!(in_sync(&events));
    assert!(!in_sync(&list(&mut table, &[])), "in sync is said once");
}

#[test]
fn b152_a_relist_takes_away_what_was_deleted_meanwhile_and_only_when_it_is_complete() {
    let mut table = table();
    list(&mut table, &[service("a", "10.0.0.1"), service("b", "10.0.0.2")]);
    table.list_begins();
    table.listed(&service("a", "10.0.0.1"));
    // the connection breaks here: nothing was said about b
    assert_eq!(names(&list(&mut table, &[service("a", "10.0.0.9")])), (vec!["a".into()], vec!["b".into()]));
}

#[test]
fn an_object_that_cannot_be_read_keeps_its_last_good_version_and_hides_no_other() {
    let mut table = table();
    list(&mut table, &[service("a", "10.0.0.1"), service("b", "10.0.0.2")]);
    let events = list(&mut table, &[unreadable("a"), service("b", "10.0.0.3")]);
    assert_eq!(names(&events), (vec!["b".into()], vec![]));
    assert_eq!(issues(&events), Some(1));
    let events = table.put(&unreadable("b"));
    assert_eq!((names(&events), issues(&events)), ((vec![], vec![]), Some(2)));
    let events = table.put(&service("a", "10.0.0.4"));
    assert_eq!((names(&events), issues(&events)), ((vec!["a".into()], vec![]), Some(1)));
    let b = unreadable("b");
    let Err(invalid) = &b.0 else { panic!("{b:?}") };
    let events = table.remove(&invalid.metadata);
    assert_eq!((names(&events), issues(&events)), ((vec![], vec!["b".into()]), Some(0)));
}

#[test]
fn faults_of_the_watch_and_of_objects_are_named_together_and_only_when_they_change() {
    let mut table = table();
    let fault = Issue::new(Severity::Error, "API server", "services", "no", "yes");
    assert_eq!(issues(&table.fault(vec![fault.clone()])), Some(1));
    assert_eq!(issues(&table.fault(vec![fault])), None);
    assert_eq!(issues(&list(&mut table, &[unreadable("a")])), Some(2));
    assert_eq!(issues(&table.fault(Vec::new())), Some(1));
}

#[test]
fn b169_what_is_not_to_be_had_is_not_waited_for_and_takes_nothing_away() {
    let mut table = table();
    assert!(in_sync(&table.do_without()));
    list(&mut table, &[service("a", "10.0.0.1")]);
    assert!(table.do_without().is_empty());
    assert!(table.held.contains(&key("a")));
}

#[test]
fn b1_a_service_that_leaves_the_selection_is_deleted_by_the_server_and_here() {
    let mut table = table();
    list(&mut table, &[service("a", "10.0.0.1")]);
    let gone = service("a", "None");
    assert_eq!(names(&table.remove(gone.0.as_ref().unwrap().meta())), (vec![], vec!["a".into()]));
    assert!(table.remove(gone.0.as_ref().unwrap().meta()).is_empty(), "deleted twice");
}
