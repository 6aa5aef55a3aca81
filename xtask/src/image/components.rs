//! What the image is made of: every package whose code is in the agent or in the kernel programs, with its licence.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

use super::binary::{self, Libc, Target};
use super::licences;
use crate::paths;
use crate::run::{cargo_program, clean, output};

/// A package.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Component {
    /// Its name on the registry.
    pub(crate) name: String,
    /// Its version.
    pub(crate) version: String,
    /// SPDX expression.
    pub(crate) licence: String,
    /// Files with licence texts on this machine.
    pub(crate) texts: Vec<PathBuf>,
    /// Where it is published; `None` = it is this project's.
    pub(crate) registry: Option<&'static str>,
    /// Names and versions of the packages that it uses directly.
    pub(crate) uses: BTreeSet<(String, String)>,
}

impl Component {
    /// Its package URL (<https://github.com/package-url/purl-spec>).
    pub(crate) fn purl(&self) -> String {
        purl(self.registry.unwrap_or("cargo"), &self.name, &self.version)
    }
}

/// A package URL.
pub(crate) fn purl(kind: &str, name: &str, version: &str) -> String {
    // `+` of build metadata has a meaning in URLs
    format!("pkg:{kind}/{name}@{}", version.replace('+', "%2B"))
}

/// All components, sorted: of the agent, of the kernel programs that are embedded in it, and the runtime libraries.
///
/// # Errors
/// cargo can't say what the packages are.
pub(crate) fn collect(target: &Target) -> Result<Vec<Component>> {
    let root = paths::root();
    let mut all = packages(&root, "lb-agent", Some(&target.triple))?;
    all.extend(packages(&root.join("lb-ebpf"), "lb-ebpf", None)?);
    all.extend(runtime(target)?);
    Ok(merged(all))
}

/// One component for each package: the two programs share some, with other features and so other dependencies.
fn merged(all: impl IntoIterator<Item = Component>) -> Vec<Component> {
    let mut by_purl: BTreeMap<String, Component> = BTreeMap::new();
    for component in all {
        match by_purl.entry(component.purl()) {
            Entry::Occupied(known) => known.into_mut().uses.extend(component.uses),
            Entry::Vacant(place) => {
                place.insert(component);
            }
        }
    }
    by_purl.into_values().collect()
}

/// What is linked in without being a package: Rust's standard library and the C library.
fn runtime(target: &Target) -> Result<[Component; 2]> {
    let rust = binary::sysroot()?.join("share/doc/rust");
    let rust =
        ["COPYRIGHT-library.html", "licenses/Apache-2.0.txt", "licenses/MIT.txt"].map(|f| rust.join(f));
    // where Debian, Arch or Fedora keep it
    let (name, licence, texts) = match target.libc {
        Libc::Musl => {
            ("musl", "MIT", ["doc/musl/copyright", "licenses/musl/COPYRIGHT", "licenses/musl-libc/COPYRIGHT"])
        }
        Libc::Glibc => (
            "glibc",
            "LGPL-2.1-or-later",
            ["doc/libc6/copyright", "licenses/glibc/COPYING.LIB", "doc/glibc/COPYING.LIB"],
        ),
    };
    let part = |name: &str, version: String, licence: &str, texts: Vec<PathBuf>| Component {
        name: name.into(),
        version,
        licence: licence.into(),
        texts: texts.into_iter().filter(|path| path.is_file()).collect(),
        registry: Some("generic"),
        uses: BTreeSet::new(),
    };
    Ok([
        part("rust-std", binary::rustc_version()?, "MIT OR Apache-2.0", rust.into()),
        part(
            name,
            binary::libc_version(target)?,
            licence,
            texts.map(|f| Path::new("/usr/share").join(f)).into(),
        ),
    ])
}

/// The packages of one workspace that end up in a program: followed from it over ordinary dependencies. What runs
/// at build time only (build scripts, macros, tests) is not in the program.
fn packages(folder: &Path, program: &str, platform: Option<&str>) -> Result<BTreeSet<Component>> {
    let mut cargo = clean(cargo_program());
    cargo.current_dir(folder).args(["metadata", "--locked", "--format-version", "1"]);
    if let Some(platform) = platform {
        cargo.args(["--filter-platform", platform]);
    }
    let metadata: Metadata = serde_json::from_str(&output(&mut cargo)?).context("reading cargo metadata")?;
    let by_id: BTreeMap<&str, &Package> = metadata.packages.iter().map(|p| (p.id.as_str(), p)).collect();
    let uses = metadata.linked(&by_id);
    let begin = metadata.packages.iter().find(|package| package.name == program);
    let mut queue = VecDeque::from([begin.with_context(|| format!("no package {program}"))?.id.as_str()]);
    let mut seen = BTreeSet::new();
    let mut found = BTreeSet::new();
    while let Some(id) = queue.pop_front() {
        if !seen.insert(id) {
            continue;
        }
        let package = by_id.get(id).with_context(|| format!("cargo metadata lists no package {id}"))?;
        let next = uses.get(id).map(Vec::as_slice).unwrap_or_default();
        queue.extend(next.iter().map(|package| package.id.as_str()));
        found.insert(Component {
            name: package.name.clone(),
            version: package.version.clone(),
            licence: package.license.clone().unwrap_or_default().replace('/', " OR "),
            texts: texts(package),
            registry: package.source.is_some().then_some("cargo"),
            uses: next.iter().map(|package| (package.name.clone(), package.version.clone())).collect(),
        });
    }
    Ok(found)
}

/// The part of `cargo metadata` that is needed here
/// (<https://doc.rust-lang.org/cargo/commands/cargo-metadata.html>).
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    manifest_path: PathBuf,
    /// `None` = this project's.
    source: Option<String>,
    targets: Vec<Artifact>,
}

#[derive(Deserialize)]
struct Artifact {
    kind: Vec<String>,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<DependencyKind>,
}

#[derive(Deserialize)]
struct DependencyKind {
    /// `None` = an ordinary one; else `dev` or `build`.
    kind: Option<String>,
}

impl Metadata {
    /// Which packages each package is linked with.
    fn linked<'a>(&'a self, by_id: &BTreeMap<&str, &'a Package>) -> BTreeMap<&'a str, Vec<&'a Package>> {
        let is_macro = |p: &Package| p.targets.iter().any(|t| t.kind.iter().any(|kind| kind == "proc-macro"));
        let nodes = self.resolve.nodes.iter();
        nodes
            .map(|node| {
                let ordinary = node.deps.iter().filter(|d| d.dep_kinds.iter().any(|k| k.kind.is_none()));
                let packages = ordinary.filter_map(|d| by_id.get(d.pkg.as_str()).copied());
                (node.id.as_str(), packages.filter(|package| !is_macro(package)).collect())
            })
            .collect()
    }
}

/// The licence files of a package; of this project's own also the workspace's licence.
fn texts(package: &Package) -> Vec<PathBuf> {
    let mut files = package.manifest_path.parent().map(licences::files).unwrap_or_default();
    if package.source.is_none() {
        files.push(paths::root().join("LICENSE"));
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_of_both_programs_is_one_component_with_all_its_dependencies() {
        let component = |name: &str, uses: &str| Component {
            name: name.into(),
            version: "1.0.0".into(),
            licence: "MIT".into(),
            texts: Vec::new(),
            registry: Some("cargo"),
            uses: BTreeSet::from([(uses.to_owned(), "1.0.0".to_owned())]),
        };
        let all = merged([component("a", "x"), component("b", "x"), component("a", "y")]);
        assert_eq!(
            all.iter().map(|c| (c.name.as_str(), c.uses.len())).collect::<Vec<_>>(),
            [("a", 2), ("b", 1)]
        );
        assert_eq!(purl("cargo", "a", "1.0.0+2"), "pkg:cargo/a@1.0.0%2B2");
    }
}
