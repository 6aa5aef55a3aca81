//! The state of a folder of manifests: which file gives which object. No I/O.
//!
//! **Invariants:** a bad file or object never affects others; what was good stays served while its file is bad. An
//! object that several files give is taken from the first by path, and the others are named.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::decode::{Decoded, decode};
use crate::model::{Key, Object};
use crate::plan::issue::{Issue, Severity};

/// What a file gave when it was read last.
#[derive(Debug, Default)]
struct File {
    objects: BTreeMap<Key, Object>,
    issues: Vec<Issue>,
}

/// All files of the folder.
#[derive(Debug, Default)]
pub struct Folder {
    files: BTreeMap<PathBuf, File>,
    /// Which files give an object.
    givers: BTreeMap<Key, BTreeSet<PathBuf>>,
    /// Files with issues.
    faulty: BTreeSet<PathBuf>,
    /// Objects that several files give.
    contested: BTreeSet<Key>,
    /// What was handed out last.
    served: BTreeMap<Key, Object>,
}

/// A change for the store.
pub type Change = (Key, Option<Object>);

impl Folder {
    /// Whether a file is a manifest by its name: `*.yaml`, `*.yml`, `*.json`, not hidden.
    #[must_use]
    pub fn is_manifest(path: &Path) -> bool {
        let hidden = path.file_name().is_none_or(|n| n.as_encoded_bytes().starts_with(b"."));
        let suffix = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
        !hidden && matches!(suffix, "yaml" | "yml" | "json")
    }

    /// Files that are known.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        self.files.keys().cloned().collect()
    }

    /// Takes in the text of a file, or that it is gone (`None`); the answer is what changed by it.
    pub fn put(&mut self, path: &Path, text: Option<&str>) -> Vec<Change> {
        let mut touched: BTreeSet<Key> =
            self.files.get(path).map(|f| f.objects.keys().cloned().collect()).unwrap_or_default();
        match text {
            None => {
                self.files.remove(path);
            }
            Some(text) => {
                let old = self.files.remove(path).unwrap_or_default();
                let new = merge(old, decode(&file_name(path), text), &file_name(path));
                touched.extend(new.objects.keys().cloned());
                self.files.insert(path.to_owned(), new);
            }
        }
        self.note(path);
        self.index(path, &touched);
        touched.into_iter().filter_map(|key| self.resolve(key)).collect()
    }

    /// Takes in that a file is there but cannot be read; what it gave before stays.
    pub fn unreadable(&mut self, path: &Path, error: &std::io::Error) {
        let cure = "correct its permissions; what it gave before stays in force";
        let issue =
            Issue::new(Severity::Error, file_name(path), "", format!("cannot be read: {error}"), cure);
        self.files.entry(path.to_owned()).or_default().issues = vec![issue];
        self.note(path);
    }

    /// Everything that is wrong at present. Nothing else is looked at.
    #[must_use]
    pub fn issues(&self) -> Vec<Issue> {
        let faulty = self.faulty.iter().filter_map(|path| self.files.get(path));
        let mut found: Vec<Issue> = faulty.flat_map(|f| f.issues.iter().cloned()).collect();
        for (key, paths) in self.contested.iter().filter_map(|key| self.givers.get_key_value(key)) {
            let names: Vec<String> = paths.iter().map(|p| file_name(p)).collect();
            let problem = format!("is given by several files: {}", names.join(", "));
            found.push(Issue::new(
                Severity::Warning,
                key,
                "",
                problem,
                "keep one; the first by name is used",
            ));
        }
        found
    }

    fn note(&mut self, path: &Path) {
        if self.files.get(path).is_some_and(|f| !f.issues.is_empty()) {
            self.faulty.insert(path.to_owned());
        } else {
            self.faulty.remove(path);
        }
    }

    fn index(&mut self, path: &Path, touched: &BTreeSet<Key>) {
        let given = self.files.get(path);
        for key in touched {
            let paths = self.givers.entry(key.clone()).or_default();
            if given.is_some_and(|f| f.objects.contains_key(key)) {
                paths.insert(path.to_owned());
            } else {
                paths.remove(path);
            }
            if paths.len() > 1 {
                self.contested.insert(key.clone());
            } else {
                self.contested.remove(key);
            }
            if paths.is_empty() {
                self.givers.remove(key);
            }
        }
    }

    fn resolve(&mut self, key: Key) -> Option<Change> {
        let giver = self.givers.get(&key).and_then(|paths| paths.first());
        let now = giver.and_then(|p| self.files.get(p)).and_then(|f| f.objects.get(&key)).cloned();
        if self.served.get(&key) == now.as_ref() {
            return None;
        }
        match &now {
            Some(object) => self.served.insert(key.clone(), object.clone()),
            None => self.served.remove(&key),
        };
        Some((key, now))
    }
}

/// The new content of a file, with earlier objects kept where the new text is bad.
fn merge(old: File, decoded: Decoded, file: &str) -> File {
    let mut new = File { objects: BTreeMap::new(), issues: decoded.issues };
    for object in decoded.good {
        let key = object.key();
        if new.objects.insert(key.clone(), object).is_some() {
            let cure = "keep one; the last is used";
            new.issues.push(Issue::new(
                Severity::Warning,
                file,
                key.to_string(),
                "is in the file twice",
                cure,
            ));
        }
    }
    for (key, object) in old.objects {
        if decoded.unnamed || decoded.bad.contains(&key) {
            new.objects.entry(key).or_insert(object);
        }
    }
    new
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
#[path = "folder_tests.rs"]
mod tests;
