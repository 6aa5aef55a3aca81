//! The source of `--manifests DIR`: a folder of YAML, watched by inotify.
//!
//! Files are read whole when inotify names them; when events were lost, or a ConfigMap volume swaps its links, the
//! whole folder is read again. The first reading ends with [`Event::InSync`].

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::{RecursiveMode, Watcher};
use thiserror::Error;
use tokio::sync::mpsc;
use tracing::warn;

use super::folder::{Change, Folder};
use crate::plan::issue::Issue;
use crate::store::{Event, Source};

/// Events that wait for the task; beyond them the folder is read again as a whole.
const QUEUE: usize = 4096;
/// Events within this time are taken together: an editor or `kubectl` writes several files at once.
const GATHER: Duration = Duration::from_millis(10);
/// Without inotify (no watch could be placed, or it broke) the folder is read this often.
const POLL: Duration = Duration::from_secs(5);

/// Why the folder cannot be watched at all.
#[derive(Debug, Error)]
pub enum ManifestsError {
    /// It cannot be listed.
    #[error("cannot list the manifest folder {folder}: {source}; give an existing folder with --manifests")]
    List {
        /// The folder.
        folder: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// What inotify said.
#[derive(Debug)]
enum Notice {
    Paths(Vec<PathBuf>),
    Everything,
}

/// Watches a folder until the receiver of `events` is gone.
///
/// # Errors
/// The folder cannot be listed at the start. Later failures are issues or warnings, and what was read stays served.
pub async fn watch(folder: PathBuf, events: mpsc::Sender<Event>) -> Result<(), ManifestsError> {
    let (notices, mut noticed) = mpsc::channel(QUEUE);
    let watcher = watcher(&folder, notices);
    let mut state = Folder::default();
    let paths = list(&folder).map_err(|source| ManifestsError::List { folder: folder.clone(), source })?;
    let changes = read(&mut state, paths.iter());
    let mut issues = state.issues();
    for event in [
        Event::Changes(changes),
        Event::Issues(Source::Manifests, issues.clone()),
        Event::InSync(Source::Manifests),
    ] {
        if events.send(event).await.is_err() {
            return Ok(());
        }
    }
    loop {
        let paths = if watcher.is_some() {
            let Some(paths) = gather(&mut noticed, &state, &folder).await else { return Ok(()) };
            paths
        } else {
            tokio::time::sleep(POLL).await;
            everything(&state, &folder)
        };
        let changes = read(&mut state, paths.iter());
        if !publish(&events, changes, &state, &mut issues).await {
            return Ok(());
        }
    }
}

/// Hands on what is new; false = nobody listens any more.
async fn publish(
    events: &mpsc::Sender<Event>,
    changes: Vec<Change>,
    state: &Folder,
    issues: &mut Vec<Issue>,
) -> bool {
    let now = state.issues();
    if now != *issues {
        issues.clone_from(&now);
        if events.send(Event::Issues(Source::Manifests, now)).await.is_err() {
            return false;
        }
    }
    changes.is_empty() || events.send(Event::Changes(changes)).await.is_ok()
}

/// Waits for notices and names the files to read; `None` = the watcher is gone.
async fn gather(
    noticed: &mut mpsc::Receiver<Notice>,
    state: &Folder,
    folder: &Path,
) -> Option<BTreeSet<PathBuf>> {
    let mut paths = BTreeSet::new();
    let mut all = false;
    let mut take = |notice| match notice {
        Notice::Everything => all = true,
        Notice::Paths(list) => paths.extend(list),
    };
    take(noticed.recv().await?);
    tokio::time::sleep(GATHER).await;
    let full = noticed.len() >= QUEUE - 1;
    while let Ok(notice) = noticed.try_recv() {
        take(notice);
    }
    Some(if all || full { everything(state, folder) } else { paths })
}

/// All files of the folder, and those that were there.
fn everything(state: &Folder, folder: &Path) -> BTreeSet<PathBuf> {
    let mut paths: BTreeSet<PathBuf> = state.files().into_iter().collect();
    match list(folder) {
        Ok(found) => paths.extend(found),
        // The files may be there still: nothing is taken away on such an error.
        Err(error) => {
            warn!(folder = %folder.display(), %error, "Manifest folder cannot be listed");
            paths.clear();
        }
    }
    paths
}

fn watcher(folder: &Path, notices: mpsc::Sender<Notice>) -> Option<notify::RecommendedWatcher> {
    let report = move |event: notify::Result<notify::Event>| {
        let notice = match event {
            Ok(event) if event.need_rescan() || event.paths.iter().any(|p| is_volume_link(p)) => {
                Notice::Everything
            }
            Ok(event) if matches!(event.kind, notify::EventKind::Access(kind) if !is_close_write(kind)) => {
                return;
            }
            Ok(event) => {
                let paths: Vec<PathBuf> =
                    event.paths.into_iter().filter(|p| Folder::is_manifest(p)).collect();
                if paths.is_empty() {
                    return;
                }
                Notice::Paths(paths)
            }
            Err(_) => Notice::Everything,
        };
        // A full queue is seen by the reader, which then reads everything.
        drop(notices.try_send(notice));
    };
    let placed = notify::recommended_watcher(report).and_then(|mut watcher| {
        watcher.watch(folder, RecursiveMode::NonRecursive)?;
        Ok(watcher)
    });
    placed
        .map_err(|error| warn!(folder = %folder.display(), %error, "No inotify watch, polling instead"))
        .ok()
}

fn is_close_write(kind: notify::event::AccessKind) -> bool {
    use notify::event::{AccessKind, AccessMode};
    kind == AccessKind::Close(AccessMode::Write)
}

/// ConfigMap and Secret volumes replace all files at once by swapping the link `..data`.
fn is_volume_link(path: &Path) -> bool {
    path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b".."))
}

fn list(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder)?.map(|entry| entry.map(|e| e.path()));
    let paths = entries.collect::<io::Result<Vec<PathBuf>>>()?;
    Ok(paths.into_iter().filter(|p| Folder::is_manifest(p)).collect())
}

fn read<'a>(state: &mut Folder, paths: impl Iterator<Item = &'a PathBuf>) -> Vec<Change> {
    let mut changes = Vec::new();
    for path in paths {
        match std::fs::read(path) {
            Ok(bytes) => changes.extend(state.put(path, Some(&String::from_utf8_lossy(&bytes)))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => changes.extend(state.put(path, None)),
            Err(error) => state.unreadable(path, &error),
        }
    }
    changes
}

#[cfg(test)]
#[path = "manifests_tests.rs"]
mod tests;
