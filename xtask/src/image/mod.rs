//! `cargo xtask image`: the agent as a container image, made without a daemon.
//!
//! ```text
//! <output>.tar                 OCI image layout; `ctr images import`, `docker load`, `podman load` and skopeo take it
//! <output>.sbom.cdx.json       what is inside: CycloneDX 1.6
//! <output>.licenses.txt        the licence texts of all of it
//! ```
//!
//! The two texts are in the image as well, below `/usr/share/doc/lb-agent`. The same commit, built with the same
//! compilers in a folder of the same path, gives the same bytes: entries are sorted, owned by root and dated by the
//! commit (`SOURCE_DATE_EPOCH` wins). The binary names no path of the machine that built it, but the kernel programs
//! still depend on the checkout's: cargo hashes the path of lb-common, which is outside of lb-ebpf's workspace, into
//! symbol names, and the order of functions follows them.

mod binary;
mod components;
mod layer;
mod licences;
mod oci;
mod sbom;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::run::{output, step};
use crate::{build, paths};
pub(crate) use binary::Libc;
use layer::{Entry, Layer};

/// Where the agent is in the image.
const AGENT: &str = "usr/bin/lb-agent";
/// Where the texts are in the image.
const DOC: &str = "usr/share/doc/lb-agent";
/// Folders that a runtime mounts on, or that a volume goes to.
const FOLDERS: &[&str] = &["dev", "etc", "proc", "run", "sys", "tmp", "var", "var/lib", "var/lib/lb-agent"];

/// The name by which deploy/ knows the image: `localhost/` keeps runtimes from asking a registry for it.
pub(crate) fn default_tag() -> String {
    format!("localhost/lb-agent:{}", env!("CARGO_PKG_VERSION"))
}

/// Builds the image and the texts beside it; prints what was made and how large it is.
///
/// # Errors
/// A tool is missing and can't be had, a build fails, or a dependency has no licence text.
pub(crate) fn run(tag: &str, archive: &Path, libc: Option<Libc>, agent: Option<PathBuf>) -> Result<()> {
    let target = binary::choose(libc)?;
    let agent = match agent {
        Some(agent) => agent,
        None => {
            build::ebpf(false)?;
            step(&format!("building a static lb-agent ({})", target.triple), || binary::build(&target))?
        }
    };
    binary::must_be_static(&agent)?;
    let built = step("collecting licences", || components::collect(&target))?;
    let created = created()?;
    let licences = licences::text(&built)?;
    let sbom = sbom::cyclonedx(&built, &target, created)?;

    let layer = Layer::of(&entries(&agent, &licences, &sbom)?, created)?;
    let labels = oci::Labels { tag, commit: &commit(), libc: target.libc_name() };
    let image = oci::archive(&layer, &labels, created)?;
    if let Some(folder) = archive.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(archive, &image).with_context(|| archive.display().to_string())?;
    fs::write(beside(archive, "sbom.cdx.json"), &sbom)?;
    fs::write(beside(archive, "licenses.txt"), &licences)?;
    println!("{}: {tag}", archive.display());
    println!("  archive     {:>7} KiB, sha256 {}", image.len() / 1024, layer::sha256(&image));
    println!("  unpacked    {:>7} KiB", layer.unpacked / 1024);
    println!("  lb-agent    {:>7} KiB, static, {}", fs::metadata(&agent)?.len() / 1024, target.libc_name());
    println!("  components  {:>7}, in {}", built.len(), beside(archive, "sbom.cdx.json").display());
    println!(
        "  licences    {:>7} KiB, in {}",
        licences.len() / 1024,
        beside(archive, "licenses.txt").display()
    );
    Ok(())
}

/// `lb-agent.tar` -> `lb-agent.<end>`.
fn beside(archive: &Path, end: &str) -> PathBuf {
    archive.with_extension(end)
}

fn entries(agent: &Path, licences: &str, sbom: &str) -> Result<Vec<Entry>> {
    let root = paths::root();
    let read = |path: &str| fs::read(root.join(path)).with_context(|| path.to_owned());
    let mut entries: Vec<Entry> = FOLDERS.iter().map(|path| Entry::folder(path)).collect();
    entries.push(Entry::program(AGENT, fs::read(agent)?));
    for (name, bytes) in [
        ("LICENSE", read("LICENSE")?),
        ("LICENSE-GPL-2.0", read("lb-ebpf/LICENSE-GPL-2.0")?),
        ("LICENSING-ebpf.md", read("lb-ebpf/LICENSING.md")?),
        ("sbom.cdx.json", sbom.as_bytes().to_vec()),
        ("third-party-licenses.txt", licences.as_bytes().to_vec()),
    ] {
        entries.push(Entry::text(&format!("{DOC}/{name}"), bytes));
    }
    Ok(entries)
}

/// Seconds since 1970 that everything in the image is dated by.
fn created() -> Result<u64> {
    if let Ok(given) = std::env::var("SOURCE_DATE_EPOCH") {
        return given.trim().parse().with_context(|| format!("SOURCE_DATE_EPOCH={given} is no number"));
    }
    let shown = git(&["log", "-1", "--format=%ct"]);
    Ok(shown.and_then(|text| text.parse().ok()).unwrap_or_else(|| {
        eprintln!("    no git history and no SOURCE_DATE_EPOCH: files are dated 1970");
        0
    }))
}

/// The commit that was built, marked when the tree has changes; `unknown` outside of git.
fn commit() -> String {
    git(&["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"])
        .unwrap_or_else(|| "unknown".into())
}

fn git(arguments: &[&str]) -> Option<String> {
    let text = output(Command::new("git").arg("-C").arg(paths::root()).args(arguments)).ok()?;
    Some(text.trim().to_owned())
}
