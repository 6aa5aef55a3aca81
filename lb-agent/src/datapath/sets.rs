//! The sets of pins below `<bpffs>/lb`: which one serves, which ones it has taken over from, and what is left over.
//!
//! ```text
//! lb/v1         a set of layout version 1
//! lb/v1-next    a set that is being made, or was made and has not got its final name yet
//! lb/v1-gone    a set that is being removed
//! ```
//!
//! (A bpffs refuses names with a dot.)
//!
//! **Invariant:** the folder `links` is in exactly one set, the one that serves; it moves by one rename(2). So a set
//! under way without links was given up before any packet met it, and a set with a final name that lost its links is
//! one that entries may still have to be copied from.

use std::io;
use std::path::{Path, PathBuf};

use lb_common::abi::ABI_VERSION;

use super::pins;

/// Name of the folder of links in a set.
pub(super) const LINKS: &str = "links";

/// What a folder's name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// `v1`.
    Final,
    /// `v1-next`, `v1-next2`.
    Next,
    /// `v1-gone`, `v1-gone2`.
    Gone,
}

/// Version and stage of a set by the name of its folder; `None` = it is none of ours.
fn parse(name: &str) -> Option<(u32, Stage)> {
    let (version, stage) =
        name.strip_prefix('v')?.split_once('-').map_or((name.get(1..)?, ""), |parts| parts);
    let version = version.parse().ok()?;
    let stage = match stage.trim_end_matches(|c: char| c.is_ascii_digit()) {
        "" if stage.is_empty() => Stage::Final,
        "next" => Stage::Next,
        "gone" => Stage::Gone,
        _ => return None,
    };
    Some((version, stage))
}

/// A set of pins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Set {
    /// Its folder.
    pub(super) folder: PathBuf,
    /// The layout version its folder names.
    pub(super) version: u32,
    /// Its folder has not got its final name yet.
    pub(super) staged: bool,
}

/// All sets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Survey {
    /// The one that serves.
    pub(super) live: Option<Set>,
    /// Ones that the live one took over from and did not yet remove, newest version first.
    pub(super) sources: Vec<Set>,
    /// Folders to remove.
    pub(super) doomed: Vec<PathBuf>,
}

/// `<bpffs>/lb`.
fn home(bpffs: &Path) -> PathBuf {
    bpffs.join("lb")
}

/// Folder of the sets of this agent's own version.
fn own(bpffs: &Path) -> PathBuf {
    home(bpffs).join(format!("v{ABI_VERSION}"))
}

/// Looks at what is there.
///
/// # Errors
/// A folder can't be read.
pub(super) fn survey(bpffs: &Path) -> io::Result<Survey> {
    let home = home(bpffs);
    let mut survey = Survey::default();
    let (mut with_links, mut without) = (Vec::new(), Vec::new());
    for name in pins::list(&home)? {
        let folder = home.join(&name);
        match parse(&name) {
            Some((_, Stage::Gone)) => survey.doomed.push(folder),
            Some((version, stage)) => {
                let set = Set { version, staged: stage == Stage::Next, folder };
                match (set.folder.join(LINKS).exists(), set.staged) {
                    (true, _) => with_links.push(set),
                    (false, true) => survey.doomed.push(set.folder),
                    (false, false) => without.push(set),
                }
            }
            None => {}
        }
    }
    // Two with links can't come from this code; the one under way is then the later one.
    with_links.sort_by_key(|set| (set.staged, set.version));
    without.sort_by_key(|set| set.version);
    // None with links: somebody removed them by hand.
    survey.live = with_links.pop().or_else(|| without.pop());
    survey.sources = [without, with_links].concat();
    survey.sources.reverse();
    Ok(survey)
}

/// The folder of the set that serves; the one of this version if there is none.
pub(super) fn live_folder(bpffs: &Path) -> PathBuf {
    let live = survey(bpffs).ok().and_then(|survey| survey.live);
    live.map_or_else(|| own(bpffs), |set| set.folder)
}

/// A name below `<bpffs>/lb` that is free: `v1-next`, `v1-next2`, ...
fn free(bpffs: &Path, name: &str) -> PathBuf {
    let home = home(bpffs);
    let numbers = std::iter::once(String::new()).chain((2..).map(|number: u32| number.to_string()));
    numbers
        .map(|number| home.join(format!("{name}{number}")))
        .find(|path| !path.exists())
        .unwrap_or_else(|| home.join(name))
}

/// Makes the folder of a new set of this agent's version, without links.
///
/// # Errors
/// As the file system says.
pub(super) fn stage(bpffs: &Path) -> io::Result<PathBuf> {
    let folder = free(bpffs, &format!("v{ABI_VERSION}-next"));
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// Gives a set its final name, if that is free.
///
/// # Errors
/// As the file system says; the set keeps its old name.
pub(super) fn finish(bpffs: &Path, folder: &Path) -> io::Result<PathBuf> {
    let name = own(bpffs);
    if folder == name || name.exists() {
        return Ok(folder.to_owned());
    }
    std::fs::rename(folder, &name)?;
    Ok(name)
}

/// Removes a set that serves no more: first by its name, at once, then pin by pin.
///
/// # Errors
/// As the file system says; the next agent goes on with it.
pub(super) fn retire(bpffs: &Path, set: &Set) -> io::Result<()> {
    let gone = free(bpffs, &format!("v{}-gone", set.version));
    std::fs::rename(&set.folder, &gone)?;
    remove(&gone)
}

/// Removes all pins of a folder, and the folder. Programs that are still in use keep their maps.
///
/// # Errors
/// As the file system says.
pub(super) fn remove(folder: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with these sets; a name that ends in `/links` has links.
    fn made(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for name in names {
            std::fs::create_dir_all(folder.path().join("lb").join(name)).expect("a folder");
        }
        folder
    }

    /// Names of the live set, of the sources and of what is doomed.
    fn names(sets: &[&str]) -> (Option<String>, Vec<String>, Vec<String>) {
        let folder = made(sets);
        let name = |path: &PathBuf| path.file_name().expect("a name").to_string_lossy().into_owned();
        let survey = survey(folder.path()).expect("a survey");
        let sources = survey.sources.iter().map(|set| name(&set.folder)).collect();
        (survey.live.map(|set| name(&set.folder)), sources, survey.doomed.iter().map(name).collect())
    }

    fn owned(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn every_moment_of_a_migration_is_told_from_the_others() {
        // Folders, live, sources, doomed.
        type Row<'a> = (&'a [&'a str], Option<&'a str>, &'a [&'a str], &'a [&'a str]);
        let rows: [Row; 9] = [
            (&[], None, &[], &[]),
            (&["v1/links"], Some("v1"), &[], &[]),
            // Given up while the new set was made.
            (&["v1/links", "v2-next"], Some("v1"), &[], &["v2-next"]),
            (&["v1/links", "v1-next"], Some("v1"), &[], &["v1-next"]),
            // The links have moved.
            (&["v1", "v2-next/links"], Some("v2-next"), &["v1"], &[]),
            (&["v1", "v1-next/links"], Some("v1-next"), &["v1"], &[]),
            // The old set has lost its name; the new one has its final one.
            (&["v1-gone", "v2-next/links"], Some("v2-next"), &[], &["v1-gone"]),
            (&["v1-gone2", "v2/links"], Some("v2"), &[], &["v1-gone2"]),
            // Somebody removed the links; a stranger's folder.
            (&["v1", "other", "v", "vx-next"], Some("v1"), &[], &[]),
        ];
        for (sets, live, sources, doomed) in rows {
            let expected = (live.map(str::to_owned), owned(sources), owned(doomed));
            assert_eq!(names(sets), expected, "{sets:?}");
        }
    }

    #[test]
    fn a_third_version_meets_an_unfinished_migration() {
        let (live, sources, _) = names(&["v1", "v2-next/links", "v3-next"]);
        assert_eq!((live.as_deref(), sources), (Some("v2-next"), owned(&["v1"])));
    }

    #[test]
    fn names_are_taken_in_turn() {
        let own_name = format!("v{ABI_VERSION}");
        let folder = made(&[&format!("{own_name}-next/links"), &own_name]);
        let first = stage(folder.path()).expect("a folder");
        assert!(first.ends_with(format!("{own_name}-next2")), "{first:?}");
        if own(folder.path()).exists() {
            assert_eq!(
                finish(folder.path(), &first).expect("the old name"),
                first,
                "the final name is taken"
            );
            remove(&own(folder.path())).expect("removed");
        }
        assert_eq!(finish(folder.path(), &first).expect("the final name"), own(folder.path()));
        assert!(own(folder.path()).exists() && !first.exists());
    }
}
