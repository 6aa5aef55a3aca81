//! The file given by `--config`: a change of it ends the agent, whose supervisor starts it anew (B161).

use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::{RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tracing::warn;

/// Events within this time are one change; an editor takes the old file away before the new one is there.
const SETTLE: Duration = Duration::from_millis(500);
/// Without events the file is read this often: there may be no inotify, or the file is a link to elsewhere.
const POLL: Duration = Duration::from_secs(30);

/// Ends when the file no longer holds `content`, or is gone; a ConfigMap volume that swaps its links counts too. To
/// write the same content again is no change.
pub async fn changed(path: PathBuf, content: String) {
    let (notices, mut noticed) = mpsc::channel(16);
    let _watcher = watcher(&path, notices.clone());
    // Something may have happened between the reading and the watch.
    let mut wait = Duration::ZERO;
    loop {
        // `notices` lives, so that without a watcher only time passes.
        let _ = tokio::time::timeout(wait, noticed.recv()).await;
        tokio::time::sleep(SETTLE).await;
        while noticed.try_recv().is_ok() {}
        let now = tokio::fs::read(&path).await;
        match now {
            Ok(now) if now == content.as_bytes() => wait = POLL,
            Ok(_) => return,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
            Err(error) => {
                warn!(path = %path.display(), %error, "The configuration cannot be read any more; it stays in force");
                wait = POLL;
            }
        }
    }
}

/// Watches the folder: files in it are replaced by renaming.
fn watcher(path: &Path, notices: mpsc::Sender<()>) -> Option<notify::RecommendedWatcher> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if !event.is_ok_and(|event| event.kind.is_access()) {
            // A full queue has the news already.
            let _ = notices.try_send(());
        }
    })
    .ok()?;
    watcher.watch(folder, RecursiveMode::NonRecursive).ok()?;
    Some(watcher)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the watch ended within two seconds of `change`.
    async fn ends(file: &Path, content: &str, change: impl FnOnce()) -> bool {
        let task = tokio::spawn(changed(file.to_owned(), content.to_owned()));
        tokio::time::sleep(SETTLE * 2).await;
        assert!(!task.is_finished(), "ended without a change");
        change();
        let mut task = task;
        let ended = tokio::time::timeout(Duration::from_secs(2), &mut task).await.is_ok();
        task.abort();
        ended
    }

    #[tokio::test]
    async fn b161_a_written_renamed_or_removed_file_ends_it() {
        let folder = tempfile::tempdir().unwrap();
        let (file, other) = (folder.path().join("c"), folder.path().join("other"));
        std::fs::write(&file, "a").unwrap();
        assert!(ends(&file, "a", || std::fs::write(&file, "b").unwrap()).await, "written");
        std::fs::write(&other, "c").unwrap();
        assert!(ends(&file, "b", || std::fs::rename(&other, &file).unwrap()).await, "renamed over it");
        assert!(ends(&file, "c", || std::fs::rename(&file, &other).unwrap()).await, "renamed away");
    }

    #[tokio::test]
    async fn b161_the_swap_of_a_config_map_volume_ends_it_and_the_same_content_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let swap = |version: &str, text: &str| {
            std::fs::create_dir(at(version)).unwrap();
            std::fs::write(at(version).join("config.conf"), text).unwrap();
            std::os::unix::fs::symlink(version, at("..data_tmp")).unwrap();
            std::fs::rename(at("..data_tmp"), at("..data")).unwrap();
        };
        swap("..1", "a");
        let file = at("config.conf");
        std::os::unix::fs::symlink("..data/config.conf", &file).unwrap();
        assert!(!ends(&file, "a", || swap("..2", "a")).await, "the same content");
        assert!(ends(&file, "a", || swap("..3", "b")).await, "another content");
    }
}
