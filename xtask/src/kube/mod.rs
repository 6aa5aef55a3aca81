//! A real API server for tests: binaries, certificates, processes, objects.
//!
//! Read [`binaries`] first, then [`plane::ControlPlane`].

mod build;
pub(crate) mod objects;
mod pki;
pub(crate) mod plane;

use std::env;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::paths;

/// Kubernetes version of what is built here.
pub(crate) const KUBERNETES: &str = "1.36.3";
/// etcd version of what is built here.
const ETCD: &str = "3.6.8";
/// What a control plane needs.
const WANTED: [&str; 2] = ["kube-apiserver", "etcd"];

/// Folder with kube-apiserver and etcd: `KUBEBUILDER_ASSETS` (envtest's convention), else what the cluster lab has
/// built (`$LAB/bin`), else our own cache, filled by Go once. `Err` in `Ok` says why there is none: no Go, or a build
/// that failed.
///
/// # Errors
/// When `KUBEBUILDER_ASSETS` is set and lacks one.
pub(crate) fn binaries() -> Result<Result<PathBuf, String>> {
    if let Some(folder) = env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from) {
        anyhow::ensure!(
            complete(&folder),
            "KUBEBUILDER_ASSETS={} lacks one of {}: unset it, or name a folder that has them",
            folder.display(),
            WANTED.join(", ")
        );
        return Ok(Ok(folder));
    }
    let own = cache();
    if let Some(folder) = folders().into_iter().find(|folder| complete(folder)) {
        return Ok(Ok(folder));
    }
    let missing = format!("no {}: set KUBEBUILDER_ASSETS to a folder that has them", WANTED.join(", "));
    let Some(go) = build::go() else {
        return Ok(Err(format!("{missing}, or install Go {} to build them", build::GO)));
    };
    match build::build(&go, &own) {
        Ok(()) => Ok(Ok(own)),
        // no network, another Go: the machine's, not ours
        Err(error) => Ok(Err(format!("{missing}; Go could not build them: {error:#}"))),
    }
}

/// Where binaries of Kubernetes may have been built: the cluster lab, and our own cache.
pub(crate) fn folders() -> [PathBuf; 2] {
    let lab = env::var_os("LAB").map_or_else(|| PathBuf::from("/var/tmp/lb-cluster"), PathBuf::from);
    [lab.join("bin"), cache()]
}

/// Where what was built is kept; one folder per version.
fn cache() -> PathBuf {
    paths::cache().join(format!("kubernetes-{KUBERNETES}-etcd-{ETCD}"))
}

fn complete(folder: &Path) -> bool {
    WANTED.iter().all(|name| folder.join(name).is_file())
}
