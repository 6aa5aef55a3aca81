//! Puts the BPF object where the agent embeds it from.
//!
//! Where it comes from, first match: `$LB_EBPF_OBJECT` (a file), `target/lb-ebpf.o` of the workspace (made by
//! `cargo xtask build-ebpf`), or, with `LB_EBPF_STUB=1`, nothing: an agent that checks and tests without a kernel.

use std::path::{Path, PathBuf};

fn main() {
    for variable in ["LB_EBPF_OBJECT", "LB_EBPF_STUB"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("lb-ebpf.o");
    let built = Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"))
        .join("../target/lb-ebpf.o");
    println!("cargo::rerun-if-changed={}", built.display());
    let given = std::env::var_os("LB_EBPF_OBJECT").map(PathBuf::from);
    let bytes = if let Some(path) = given.as_ref().or_else(|| built.exists().then_some(&built)) {
        println!("cargo::rerun-if-changed={}", path.display());
        match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) => {
                println!("cargo::error={}: {error}", path.display());
                return;
            }
        }
    } else if std::env::var("LB_EBPF_STUB").is_ok_and(|value| value == "1") {
        Vec::new()
    } else {
        println!(
            "cargo::error=no BPF object: run `cargo xtask build-ebpf` (or set LB_EBPF_OBJECT to one, or \
             LB_EBPF_STUB=1 for an agent without a data path)"
        );
        return;
    };
    std::fs::write(&out, bytes).expect("OUT_DIR is writable");
}
