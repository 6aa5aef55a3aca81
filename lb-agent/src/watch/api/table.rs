//! What a resource's lists and watch events mean for the store. No I/O.
//!
//! **Invariants:** a list is handed on as one batch when it is complete; only then are objects that it lacks taken
//! away. An object that cannot be read keeps its last good version, and hides no other.

use std::collections::{BTreeMap, BTreeSet};
use std::marker::PhantomData;

use kube::core::{DeserializeGuard, ObjectMeta};

use super::kinds::Kind;
use crate::model::{Key, Object};
use crate::plan::issue::{Issue, Severity};
use crate::store::{Event, Source};
use crate::watch::Fault;

/// A change for the store.
type Change = (Key, Option<Object>);

/// The objects of one resource as they were handed on last.
#[derive(Debug)]
pub(crate) struct Table<K> {
    source: Source,
    /// Objects the store has.
    held: BTreeSet<Key>,
    /// Faults of objects.
    faults: BTreeMap<Key, Vec<Issue>>,
    /// Faults of the watch itself.
    own: Vec<Issue>,
    /// Faults as they were handed on last.
    said: Vec<Issue>,
    /// They may be other ones now.
    doubtful: bool,
    /// A list under way.
    listing: Option<Listing>,
    synced: bool,
    kind: PhantomData<fn() -> K>,
}

/// A list under way: every page so far.
#[derive(Debug, Default)]
struct Listing {
    changes: Vec<Change>,
    faults: BTreeMap<Key, Vec<Issue>>,
    seen: BTreeSet<Key>,
}

/// What an object says.
enum Read {
    /// It is to be served.
    Good(Object),
    /// It is none of our business.
    None,
    /// It cannot be read: the last good version stays.
    Bad,
}

impl<K: Kind> Table<K> {
    /// An empty table.
    pub(crate) fn new(source: Source) -> Self {
        Self {
            source,
            held: BTreeSet::new(),
            faults: BTreeMap::new(),
            own: Vec::new(),
            said: Vec::new(),
            doubtful: false,
            listing: None,
            synced: false,
            kind: PhantomData,
        }
    }

    /// A list begins; one that was under way is forgotten.
    pub(crate) fn list_begins(&mut self) {
        self.listing = Some(Listing::default());
    }

    /// One object of the list.
    pub(crate) fn listed(&mut self, object: &DeserializeGuard<K>) {
        let (key, read, issues) = read(object);
        let Some(listing) = &mut self.listing else { return };
        match read {
            Read::Good(object) => {
                listing.seen.insert(key.clone());
                listing.changes.push((key.clone(), Some(object)));
            }
            Read::Bad => {
                listing.seen.insert(key.clone());
            }
            Read::None => {}
        }
        if !issues.is_empty() {
            listing.faults.insert(key, issues);
        }
    }

    /// The list is complete: everything it holds, and the absence of everything it lacks, as one batch.
    pub(crate) fn list_ends(&mut self) -> Vec<Event> {
        let Some(Listing { mut changes, faults, seen }) = self.listing.take() else { return Vec::new() };
        changes.extend(self.held.difference(&seen).map(|gone| (gone.clone(), None)));
        self.faults = faults;
        self.doubtful = true;
        self.hold(&changes);
        let mut events = Vec::new();
        if !changes.is_empty() {
            events.push(Event::Changes(changes));
        }
        events.extend(self.issues());
        events.extend(self.in_sync());
        events
    }

    /// An object was added or changed.
    pub(crate) fn put(&mut self, object: &DeserializeGuard<K>) -> Vec<Event> {
        let (key, read, issues) = read(object);
        self.blame(&key, issues);
        let changes = match read {
            Read::Good(object) => vec![(key, Some(object))],
            Read::None if self.held.contains(&key) => vec![(key, None)],
            Read::None | Read::Bad => Vec::new(),
        };
        self.change(changes)
    }

    /// An object was deleted.
    pub(crate) fn remove(&mut self, meta: &ObjectMeta) -> Vec<Event> {
        let key = K::key(meta);
        self.blame(&key, Vec::new());
        let changes = if self.held.contains(&key) { vec![(key, None)] } else { Vec::new() };
        self.change(changes)
    }

    /// What is wrong with the watch itself; empty = nothing any more.
    pub(crate) fn fault(&mut self, own: Vec<Issue>) -> Vec<Event> {
        self.own = own;
        self.doubtful = true;
        self.issues().into_iter().collect()
    }

    /// The resource is not to be had: what is held stays, and nobody need wait for it.
    pub(crate) fn do_without(&mut self) -> Vec<Event> {
        self.listing = None;
        self.in_sync().into_iter().collect()
    }

    fn change(&mut self, changes: Vec<Change>) -> Vec<Event> {
        self.hold(&changes);
        let mut events = Vec::new();
        if !changes.is_empty() {
            events.push(Event::Changes(changes));
        }
        events.extend(self.issues());
        events
    }

    /// Notes what is wrong with an object.
    fn blame(&mut self, key: &Key, issues: Vec<Issue>) {
        self.doubtful |= self.faults.remove(key).is_some() || !issues.is_empty();
        if !issues.is_empty() {
            self.faults.insert(key.clone(), issues);
        }
    }

    fn hold(&mut self, changes: &[Change]) {
        for (key, object) in changes {
            if object.is_some() {
                self.held.insert(key.clone());
            } else {
                self.held.remove(key);
            }
        }
    }

    /// The faults, if they changed.
    fn issues(&mut self) -> Option<Event> {
        if !std::mem::take(&mut self.doubtful) {
            return None;
        }
        let now: Vec<Issue> = self.own.iter().chain(self.faults.values().flatten()).cloned().collect();
        (now != self.said).then(|| {
            self.said.clone_from(&now);
            Event::Issues(self.source, now)
        })
    }

    fn in_sync(&mut self) -> Option<Event> {
        let first = !self.synced;
        self.synced = true;
        first.then_some(Event::InSync(self.source))
    }
}

fn read<K: Kind>(object: &DeserializeGuard<K>) -> (Key, Read, Vec<Issue>) {
    match &object.0 {
        Ok(object) => {
            let key = K::key(object.meta());
            let translated = object.translate();
            let named = |f: Fault| Issue::new(Severity::Warning, &key, f.field, f.problem, f.cure);
            let issues = translated.faults.into_iter().map(named).collect();
            (key, translated.object.map_or(Read::None, Read::Good), issues)
        }
        Err(invalid) => {
            let key = K::key(&invalid.metadata);
            let cure = "correct the object; the last good version stays in force";
            let problem = format!("cannot be read: {}", invalid.error);
            let issue = Issue::new(Severity::Error, &key, "", problem, cure);
            (key, Read::Bad, vec![issue])
        }
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
