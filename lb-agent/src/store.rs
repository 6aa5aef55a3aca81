//! The single writer of what the cluster wants.
//!
//! **Invariants:** only the task that owns the [`Store`] changes it; everyone else reads a [`Snapshot`]. A change that leaves an object as it was is no change (B145). Nothing is served before every source has
//! delivered its first full list (B141).
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::string_slice))]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::model::{Family, Key, NodeSpec, Object, ObjectName, ServiceCidrSpec, ServiceSpec, SliceSpec};
use crate::plan::issue::Issue;

/// Where objects come from; each has its own first full list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The folder of manifests.
    Manifests,
    /// The API server's Services.
    ApiServices,
    /// The API server's EndpointSlices.
    ApiSlices,
    /// The API server's Node object of this node.
    ApiNode,
    /// The API server's ServiceCIDRs.
    ApiServiceCidrs,
}

/// What a source says.
#[derive(Debug)]
pub enum Event {
    /// Objects that are new, changed (`Some`) or gone (`None`), in any order.
    Changes(Vec<(Key, Option<Object>)>),
    /// All present faults of a source; replaces the ones it named before.
    Issues(Source, Vec<Issue>),
    /// The source has delivered its first full list.
    InSync(Source),
}

/// All objects at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Services.
    pub services: BTreeMap<ObjectName, Arc<ServiceSpec>>,
    /// EndpointSlices by their Service, then by their own name.
    pub slices: BTreeMap<ObjectName, BTreeMap<String, Arc<SliceSpec>>>,
    /// Nodes by name.
    pub nodes: BTreeMap<String, Arc<NodeSpec>>,
    /// ServiceCIDRs by name.
    pub service_cidrs: BTreeMap<String, Arc<ServiceCidrSpec>>,
    /// Faults that the sources found.
    pub issues: Vec<Issue>,
}

/// What may differ between two moments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Services of which the object or a slice differs.
    pub services: BTreeSet<ObjectName>,
    /// Anything else does: Nodes, ServiceCIDRs, faults that sources found, or what is not of the store.
    pub node: bool,
}

/// How many effective changes an event brought, by kind (B140).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Services.
    pub services: u64,
    /// EndpointSlices.
    pub slices: u64,
    /// Everything else.
    pub others: u64,
}

impl Changed {
    /// Whether anything changed.
    #[must_use]
    pub fn any(self) -> bool {
        self != Self::default()
    }
}

/// The single writer; see the module.
#[derive(Debug)]
pub struct Store {
    current: Snapshot,
    /// Service of each slice, to find it again when the slice goes or moves.
    slice_home: BTreeMap<ObjectName, ObjectName>,
    /// Times of the changes that slices of a Service brought and that are not programmed yet (B139).
    triggers: BTreeMap<ObjectName, Vec<(Family, f64)>>,
    awaited: BTreeSet<Source>,
    issues: BTreeMap<Source, Vec<Issue>>,
    /// What changed since [`Store::take_scope`].
    scope: Scope,
}

impl Store {
    /// An empty store that is in sync once every one of `sources` has said so.
    #[must_use]
    pub fn new(sources: impl IntoIterator<Item = Source>) -> Self {
        Self {
            current: Snapshot::default(),
            slice_home: BTreeMap::new(),
            triggers: BTreeMap::new(),
            awaited: sources.into_iter().collect(),
            issues: BTreeMap::new(),
            scope: Scope::default(),
        }
    }

    /// Takes in an event and says what it really changed; the same event twice changes nothing.
    pub fn take(&mut self, event: Event) -> Changed {
        let mut changed = Changed::default();
        match event {
            Event::Changes(list) => {
                for (key, object) in list {
                    self.change(key, object, &mut changed);
                }
            }
            Event::Issues(source, issues) => {
                if self.issues.get(&source).is_none_or(|old| *old != issues) {
                    changed.others += 1;
                    self.issues.insert(source, issues);
                    self.current.issues = self.all_issues();
                }
            }
            Event::InSync(source) => changed.others += u64::from(self.awaited.remove(&source)),
        }
        self.scope.node |= changed.others > 0;
        changed
    }

    /// Whether every source has delivered its first full list.
    #[must_use]
    pub fn in_sync(&self) -> bool {
        self.awaited.is_empty()
    }

    /// Sources that have not delivered their first full list.
    #[must_use]
    pub fn awaited(&self) -> Vec<Source> {
        self.awaited.iter().copied().collect()
    }

    /// Faults that the sources found.
    #[must_use]
    pub fn issues(&self) -> &[Issue] {
        &self.current.issues
    }

    /// Everything as it is now.
    #[must_use]
    pub fn snapshot(&self) -> &Snapshot {
        &self.current
    }

    /// What changed since the last call.
    pub fn take_scope(&mut self) -> Scope {
        std::mem::take(&mut self.scope)
    }

    /// Times, seconds since 1970, of the causes of all slice changes since the last call (B139). A Service whose slice
    /// was deleted since has none.
    pub fn take_triggers(&mut self) -> Vec<(Family, f64)> {
        std::mem::take(&mut self.triggers).into_values().flatten().collect()
    }

    /// The faults that the sources found, those that several name once.
    fn all_issues(&self) -> Vec<Issue> {
        let mut seen = BTreeSet::new();
        self.issues.values().flatten().filter(|issue| seen.insert(*issue)).cloned().collect()
    }

    fn change(&mut self, key: Key, object: Option<Object>, changed: &mut Changed) {
        match (key, object) {
            (Key::Service(name), Some(Object::Service(new))) => {
                let count = put(&mut self.current.services, name.clone(), new);
                self.note(count, name);
                changed.services += count;
            }
            (Key::Service(name), _) => {
                let count = u64::from(self.current.services.remove(&name).is_some());
                self.note(count, name);
                changed.services += count;
            }
            (Key::Slice(name), Some(Object::Slice(new))) => changed.slices += self.put_slice(name, new),
            (Key::Slice(name), _) => changed.slices += self.remove_slice(&name),
            (Key::Node(name), Some(Object::Node(new))) => {
                changed.others += put(&mut self.current.nodes, name, new);
            }
            (Key::Node(name), _) => changed.others += u64::from(self.current.nodes.remove(&name).is_some()),
            (Key::ServiceCidr(name), Some(Object::ServiceCidr(new))) => {
                changed.others += put(&mut self.current.service_cidrs, name, new);
            }
            (Key::ServiceCidr(name), _) => {
                changed.others += u64::from(self.current.service_cidrs.remove(&name).is_some());
            }
        }
    }

    fn note(&mut self, count: u64, service: ObjectName) {
        if count > 0 {
            self.scope.services.insert(service);
        }
    }

    fn put_slice(&mut self, name: ObjectName, new: Arc<SliceSpec>) -> u64 {
        let home = ObjectName::new(&name.namespace, &new.service);
        let moved = match self.slice_home.get(&name) {
            Some(old) if *old != home => self.remove_slice(&name),
            _ => 0,
        };
        self.slice_home.insert(name.clone(), home.clone());
        let trigger = new.triggered.0.map(|time| (new.family, time));
        let slices = self.current.slices.entry(home.clone()).or_default();
        let changed = moved.max(put(slices, name.name, new));
        self.note(changed, home.clone());
        if changed > 0
            && let Some(trigger) = trigger
        {
            self.triggers.entry(home).or_default().push(trigger);
        }
        changed
    }

    fn remove_slice(&mut self, name: &ObjectName) -> u64 {
        let Some(home) = self.slice_home.remove(name) else { return 0 };
        self.triggers.remove(&home);
        let Some(slices) = self.current.slices.get_mut(&home) else { return 0 };
        let removed = u64::from(slices.remove(&name.name).is_some());
        if slices.is_empty() {
            self.current.slices.remove(&home);
        }
        self.note(removed, home);
        removed
    }
}

/// Inserts and says whether that changed anything (1 or 0).
fn put<K: Ord, V: PartialEq>(map: &mut BTreeMap<K, Arc<V>>, key: K, new: Arc<V>) -> u64 {
    if map.get(&key).is_some_and(|old| **old == *new) {
        return 0;
    }
    map.insert(key, new);
    1
}

#[cfg(test)]
mod tests {
    use super::*;
    fn slice(name: &str, service: &str) -> (Key, Option<Object>) {
        let name = ObjectName::new("ns", name);
        let spec = SliceSpec {
            name: name.clone(),
            service: service.to_owned(),
            family: Family::V4,
            ports: Vec::new(),
            endpoints: Vec::new(),
            triggered: crate::model::Trigger(Some(7.0)),
        };
        (Key::Slice(name), Some(Object::Slice(Arc::new(spec))))
    }

    #[test]
    fn b141_in_sync_only_after_every_source() {
        let mut store = Store::new([Source::ApiServices, Source::ApiSlices]);
        assert!(store.take(Event::InSync(Source::ApiServices)).any());
        assert!(!store.in_sync());
        assert_eq!(store.awaited(), [Source::ApiSlices]);
        store.take(Event::InSync(Source::ApiSlices));
        assert!(store.in_sync());
        assert!(!store.take(Event::InSync(Source::ApiSlices)).any(), "said twice");
    }

    #[test]
    fn b145_the_same_object_again_is_no_change() {
        let mut store = Store::new([]);
        assert_eq!(store.take(Event::Changes(vec![slice("a", "web")])).slices, 1);
        assert_eq!(store.take(Event::Changes(vec![slice("a", "web")])).slices, 0);
    }

    #[test]
    fn b139_triggers_of_changed_slices_and_none_of_deleted_ones() {
        let mut store = Store::new([]);
        store.take(Event::Changes(vec![slice("a", "web"), slice("b", "web"), slice("a", "api")]));
        assert_eq!(store.take_triggers(), [(Family::V4, 7.0)], "moving a slice away is a deletion for web");
        store.take(Event::Changes(vec![slice("b", "web")]));
        assert_eq!(store.take_triggers(), [], "no change");
        store.take(Event::Changes(vec![slice("c", "web")]));
        store.take(Event::Changes(vec![(Key::Slice(ObjectName::new("ns", "c")), None)]));
        assert_eq!(store.take_triggers(), [], "deleted");
    }

    #[test]
    fn b21_a_slice_that_changes_its_service_leaves_the_old_one() {
        let mut store = Store::new([]);
        store.take(Event::Changes(vec![slice("a", "web")]));
        assert_eq!(store.take(Event::Changes(vec![slice("a", "api")])).slices, 1);
        let snapshot = store.snapshot();
        assert!(!snapshot.slices.contains_key(&ObjectName::new("ns", "web")));
        assert_eq!(snapshot.slices[&ObjectName::new("ns", "api")].len(), 1);
    }

    #[test]
    fn the_scope_names_the_services_whose_objects_changed_and_no_others() {
        let mut store = Store::new([]);
        let mut scope = |changes| {
            store.take(Event::Changes(changes));
            let Scope { services, node } = store.take_scope();
            (services.into_iter().map(|s| s.name).collect::<Vec<_>>(), node)
        };
        let named = |names: &[&str]| (names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>(), false);
        assert_eq!(scope(vec![slice("a", "web"), slice("b", "api")]), named(&["api", "web"]));
        assert_eq!(scope(vec![slice("a", "web")]), named(&[]), "the same again");
        assert_eq!(scope(vec![slice("a", "shop")]), named(&["shop", "web"]), "both ends of a move");
        assert_eq!(scope(vec![(Key::Slice(ObjectName::new("ns", "b")), None)]), named(&["api"]));
        let node = Object::Node(Arc::new(NodeSpec::default()));
        assert_eq!(scope(vec![(node.key(), Some(node))]), (Vec::new(), true));
    }
}
