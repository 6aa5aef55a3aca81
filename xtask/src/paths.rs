//! Where things are in the source tree and below its target folder.

use std::path::{Path, PathBuf};

/// Root of the workspace.
pub(crate) fn root() -> PathBuf {
    let here = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    here.parent().map_or(here.clone(), PathBuf::from)
}

/// The target folder; always the workspace's own, because the agent's build embeds the object from there.
pub(crate) fn target() -> PathBuf {
    root().join("target")
}

/// The object with all kernel programs.
pub(crate) fn object() -> PathBuf {
    target().join("lb-ebpf.o")
}

/// The object with the programs of the bench.
pub(crate) fn bench_object() -> PathBuf {
    target().join("lb-bench.o")
}

/// The agent as `cargo build --release` leaves it.
pub(crate) fn agent() -> PathBuf {
    target().join("release/lb-agent")
}

/// [`object`] with another layout of its tables.
pub(crate) fn object_next() -> PathBuf {
    target().join("lb-ebpf-next.o")
}

/// [`agent`] with another layout of its tables.
pub(crate) fn agent_next() -> PathBuf {
    target().join("release/lb-agent-next")
}

/// Our folder of what is fetched or built once, outside of the tree so that it survives a fresh clone.
pub(crate) fn cache() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    base.unwrap_or_else(std::env::temp_dir).join("lb")
}

/// Tools built for this workspace alone.
pub(crate) fn tools() -> PathBuf {
    target().join("tools")
}

/// Flags that keep this machine's paths (the checkout, cargo's packages, the compiler's home) out of what rustc makes.
pub(crate) fn remapped(sysroot: &Path) -> Vec<String> {
    let cargo_home = std::env::var_os("CARGO_HOME").map_or_else(
        || std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default().join(".cargo"),
        PathBuf::from,
    );
    let pairs = [(sysroot.to_owned(), "/rust"), (cargo_home, "/cargo"), (root(), "/lb")];
    pairs.iter().map(|(from, to)| format!("--remap-path-prefix={}={to}", from.display())).collect()
}
