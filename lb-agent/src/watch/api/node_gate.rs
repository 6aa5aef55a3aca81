//! The Node of this node: awaited at the start until it says what is needed (B154), kept when it goes.

use std::sync::Arc;

use crate::model::{Key, NodeSpec, Object};
use crate::plan::issue::{Issue, Severity};
use crate::store::{Event, Source};

/// Lets events of the Node pass when they are fit for use; all other events pass as they are.
///
/// **Invariants:** the Node is in sync only once it exists and has what is needed. A Node object that is deleted does
/// not take the node's addresses and zone with it: the data path goes on as it was, and load balancers are told to
/// send no new traffic (B131, B155).
#[derive(Debug)]
pub(crate) struct NodeGate {
    name: String,
    needs_pod_cidrs: bool,
    /// The Node as it was last.
    last: Option<Arc<NodeSpec>>,
    gone: bool,
    /// The table has its first full list, but the Node lacks something.
    listed: bool,
    open: bool,
    /// Faults of the watch and of the object.
    theirs: Vec<Issue>,
    said: Vec<Issue>,
}

impl NodeGate {
    pub(crate) fn new(name: &str, needs_pod_cidrs: bool) -> Self {
        Self {
            name: name.to_owned(),
            needs_pod_cidrs,
            last: None,
            gone: false,
            listed: false,
            open: false,
            theirs: Vec::new(),
            said: Vec::new(),
        }
    }

    /// What is to be handed on in place of an event.
    pub(crate) fn pass(&mut self, event: Event) -> Vec<Event> {
        let mut events = match event {
            Event::Changes(changes) if changes.iter().any(|(key, _)| matches!(key, Key::Node(_))) => {
                let kept: Vec<_> = changes.into_iter().filter_map(|change| self.node(change)).collect();
                if kept.is_empty() { Vec::new() } else { vec![Event::Changes(kept)] }
            }
            Event::InSync(Source::ApiNode) => {
                self.listed = true;
                Vec::new()
            }
            Event::Issues(Source::ApiNode, issues) => {
                self.theirs = issues;
                Vec::new()
            }
            other => return vec![other],
        };
        let own = self.lacks().map(|(problem, cure)| {
            Issue::new(Severity::Error, Key::Node(self.name.clone()), "", problem, cure)
        });
        let issues: Vec<Issue> = self.theirs.iter().cloned().chain(own).collect();
        if issues != self.said {
            self.said.clone_from(&issues);
            events.push(Event::Issues(Source::ApiNode, issues));
        }
        if self.listed && !self.open && self.lacks().is_none() {
            self.open = true;
            events.push(Event::InSync(Source::ApiNode));
        }
        events
    }

    fn node(&mut self, (key, object): (Key, Option<Object>)) -> Option<(Key, Option<Object>)> {
        if !matches!(&key, Key::Node(name) if *name == self.name) {
            return Some((key, object));
        }
        match object {
            Some(Object::Node(node)) => {
                self.gone = false;
                self.last = Some(Arc::clone(&node));
                Some((key, Some(Object::Node(node))))
            }
            _ => {
                self.gone = true;
                let left = NodeSpec { leaving: true, ..NodeSpec::clone(self.last.as_deref()?) };
                Some((key, Some(Object::Node(Arc::new(left)))))
            }
        }
    }

    /// What is missing, and what to do.
    fn lacks(&self) -> Option<(&'static str, &'static str)> {
        if !self.listed {
            return None;
        }
        let Some(node) = &self.last else {
            let cure =
                "the agent waits for it; check --node-name if this is not how the cluster calls this node";
            return Some(("does not exist", cure));
        };
        if self.gone {
            let cure = "traffic goes on with what it said last; register the node again, or remove the agent from it";
            Some(("was deleted", cure))
        } else if node.addresses.is_empty() {
            Some(("has no address in status.addresses", "the kubelet, or the cloud's controller, sets it"))
        } else if self.needs_pod_cidrs && node.pod_cidrs.is_empty() {
            let cure = "detectLocalMode NodeCIDR needs it: wait for the controller that assigns it, or use another mode";
            Some(("has no spec.podCIDRs", cure))
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(addresses: &[&str], pod_cidrs: &[&str]) -> Event {
        let spec = NodeSpec {
            name: "ash".to_owned(),
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            pod_cidrs: pod_cidrs.iter().map(|c| c.parse().unwrap()).collect(),
            ..NodeSpec::default()
        };
        Event::Changes(vec![(Key::Node("ash".to_owned()), Some(Object::Node(Arc::new(spec))))])
    }

    fn gone() -> Event {
        Event::Changes(vec![(Key::Node("ash".to_owned()), None)])
    }

    fn is_in_sync(events: &[Event]) -> bool {
        events.iter().any(|e| matches!(e, Event::InSync(Source::ApiNode)))
    }

    fn problem(events: &[Event]) -> Option<String> {
        events.iter().find_map(|e| match e {
            Event::Issues(_, issues) => Some(issues.first().map_or_else(String::new, |i| i.problem.clone())),
            _ => None,
        })
    }

    #[test]
    fn b154_waits_for_the_node_and_its_address_and_says_so() {
        let mut gate = NodeGate::new("ash", false);
        let empty = gate.pass(Event::InSync(Source::ApiNode));
        assert_eq!((is_in_sync(&empty), problem(&empty)), (false, Some("does not exist".into())));
        let bare = gate.pass(node(&[], &[]));
        assert_eq!(
            (is_in_sync(&bare), problem(&bare)),
            (false, Some("has no address in status.addresses".into()))
        );
        let whole = gate.pass(node(&["192.0.2.1"], &[]));
        assert_eq!((is_in_sync(&whole), problem(&whole)), (true, Some(String::new())));
        assert!(!is_in_sync(&gate.pass(node(&["192.0.2.2"], &[]))), "said twice");
    }

    #[test]
    fn b154_pod_cidrs_are_awaited_where_they_are_needed() {
        let mut gate = NodeGate::new("ash", true);
        assert!(gate.pass(node(&["192.0.2.1"], &[])).len() == 1);
        let listed = gate.pass(Event::InSync(Source::ApiNode));
        assert_eq!((is_in_sync(&listed), problem(&listed)), (false, Some("has no spec.podCIDRs".into())));
        assert!(is_in_sync(&gate.pass(node(&["192.0.2.1"], &["10.0.0.0/24"]))));
    }

    #[test]
    fn b131_b155_a_deleted_node_is_kept_as_leaving_and_comes_back() {
        let mut gate = NodeGate::new("ash", false);
        gate.pass(node(&["192.0.2.1"], &[]));
        assert!(is_in_sync(&gate.pass(Event::InSync(Source::ApiNode))));
        let events = gate.pass(gone());
        let Some(Event::Changes(changes)) = events.first() else { panic!("{events:?}") };
        let Some((_, Some(Object::Node(left)))) = changes.first() else { panic!("{changes:?}") };
        assert!(left.leaving && left.addresses.len() == 1);
        assert_eq!(problem(&events), Some("was deleted".into()));
        assert_eq!(problem(&gate.pass(node(&["192.0.2.1"], &[]))), Some(String::new()));
    }

    #[test]
    fn events_of_other_sources_pass() {
        let mut gate = NodeGate::new("ash", false);
        let events = gate.pass(Event::InSync(Source::ApiSlices));
        assert!(matches!(events[..], [Event::InSync(Source::ApiSlices)]));
    }
}
