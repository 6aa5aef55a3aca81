use super::*;
use crate::model::Key;
use std::time::Duration;

const NODE: &str = "{apiVersion: v1, kind: Node, metadata: {name: NAME}}";

fn write(folder: &Path, file: &str, name: &str) {
    let temporary = folder.join(format!("{file}.tmp"));
    std::fs::write(&temporary, NODE.replace("NAME", name)).unwrap();
    std::fs::rename(temporary, folder.join(file)).unwrap();
}

/// The next changes, each as its key and whether it is there.
async fn next(events: &mut mpsc::Receiver<Event>) -> Vec<(Key, bool)> {
    let wait = async {
        loop {
            match events.recv().await {
                Some(Event::Changes(list)) => {
                    return list.into_iter().map(|(key, object)| (key, object.is_some())).collect();
                }
                Some(_) => {}
                None => return Vec::new(),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), wait).await.expect("no event within 10 s")
}

fn node(name: &str) -> Key {
    Key::Node(name.to_owned())
}

#[tokio::test]
async fn files_are_listed_then_followed_as_they_are_renamed_and_unlinked() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "a.yaml", "ash");
    let (sender, mut events) = mpsc::channel(16);
    let task = tokio::spawn(watch(folder.path().to_owned(), sender));
    assert_eq!(next(&mut events).await, [(node("ash"), true)]);
    assert!(matches!(events.recv().await, Some(Event::Issues(..))));
    assert!(matches!(events.recv().await, Some(Event::InSync(Source::Manifests))));
    write(folder.path(), "b.yaml", "elm");
    assert_eq!(next(&mut events).await, [(node("elm"), true)]);
    write(folder.path(), "b.yaml", "oak");
    assert_eq!(next(&mut events).await, [(node("elm"), false), (node("oak"), true)]);
    std::fs::remove_file(folder.path().join("a.yaml")).unwrap();
    assert_eq!(next(&mut events).await, [(node("ash"), false)]);
    drop(events);
    write(folder.path(), "c.yaml", "fir");
    tokio::time::timeout(Duration::from_secs(10), task)
        .await
        .expect("ends with its reader")
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn a_config_map_volume_that_swaps_its_links_is_read_anew() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for (version, name) in [("..1", "ash"), ("..2", "elm")] {
        std::fs::create_dir(path(version)).unwrap();
        write(&path(version), "n.yaml", name);
    }
    std::os::unix::fs::symlink("..1", path("..data")).unwrap();
    std::os::unix::fs::symlink("..data/n.yaml", path("n.yaml")).unwrap();
    let (sender, mut events) = mpsc::channel(16);
    tokio::spawn(watch(folder.path().to_owned(), sender));
    assert_eq!(next(&mut events).await, [(node("ash"), true)]);
    std::os::unix::fs::symlink("..2", path("..data_tmp")).unwrap();
    std::fs::rename(path("..data_tmp"), path("..data")).unwrap();
    assert_eq!(next(&mut events).await, [(node("ash"), false), (node("elm"), true)]);
}

#[tokio::test]
async fn a_missing_folder_is_an_error_that_names_it() {
    let (sender, _events) = mpsc::channel(16);
    let error = watch(PathBuf::from("/nowhere/at/all"), sender).await.unwrap_err();
    assert!(error.to_string().contains("/nowhere/at/all"));
}
