//! The kernel programs and the agent, built.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::run::{cargo_program, clean, run, step};
use crate::{elf, packages, paths, toolchain};

/// Builds target/lb-ebpf.o; cargo does nothing when nothing changed. Returns the object's path.
///
/// # Errors
/// When a tool is missing and can't be had, the build fails, or a panic path survived in the object.
pub(crate) fn ebpf(force: bool) -> Result<PathBuf> {
    object(&paths::object(), PROGRAMS, None, force)
}

/// The kernel programs, and those of `cargo xtask bench`.
const PROGRAMS: &str = "lb-ebpf";
const BENCH_PROGRAMS: &str = "lb-bench";

/// Builds target/lb-bench.o, the programs that `cargo xtask bench` measures with and against.
///
/// # Errors
/// As [`ebpf`].
pub(crate) fn bench_programs() -> Result<PathBuf> {
    object(&paths::bench_object(), BENCH_PROGRAMS, None, false)
}

/// Builds the kernel programs and then the agent, which embeds them. Returns the agent's path.
///
/// # Errors
/// As [`ebpf`], and when the agent does not build.
pub(crate) fn agent() -> Result<PathBuf> {
    ebpf(false)?;
    step("building lb-agent", || run(&mut agent_build()))?;
    Ok(paths::agent())
}

/// The feature by which tables have another layout, for tests of upgrades.
const NEXT: &str = "abi-next";

/// Builds an agent whose tables have another layout, with its kernel programs; or takes the one that `$LB_AGENT_NEXT`
/// names. Returns its path.
///
/// # Errors
/// As [`agent`].
pub(crate) fn agent_next() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("LB_AGENT_NEXT").map(PathBuf::from) {
        return path.canonicalize().with_context(|| path.display().to_string());
    }
    let object = object(&paths::object_next(), PROGRAMS, Some(NEXT), false)?;
    let (agent, next, aside) = (paths::agent(), paths::agent_next(), paths::agent().with_extension("aside"));
    // cargo has one place for both
    let had = agent.exists();
    if had {
        fs::rename(&agent, &aside)?;
    }
    let built = step("building lb-agent with another layout of its tables", || {
        run(agent_build().args(["--features", NEXT]).env("LB_EBPF_OBJECT", &object))
    })
    .and_then(|()| fs::rename(&agent, &next).with_context(|| next.display().to_string()));
    if had {
        fs::rename(&aside, &agent)?;
    }
    built.map(|()| next)
}

fn agent_build() -> std::process::Command {
    let mut cargo = clean(cargo_program());
    cargo
        .current_dir(paths::root())
        .args(["build", "--release", "--package", "lb-agent"])
        .env("CARGO_TARGET_DIR", paths::target());
    cargo
}

fn object(object: &Path, programs: &str, feature: Option<&str>, force: bool) -> Result<PathBuf> {
    packages::need(&[("cc", "build-essential")])?;
    let tools = toolchain::find()?;
    let home = paths::target().join("ebpf");
    if force {
        fs::remove_dir_all(&home).ok();
    }
    step(&format!("building the kernel programs ({programs} {})", feature.unwrap_or_default()), || {
        let mut cargo = clean(&tools.cargo);
        cargo
            .current_dir(paths::root().join("lb-ebpf"))
            .args([
                "build",
                "--release",
                "--bin",
                programs,
                "--target",
                "bpfel-unknown-none",
                "-Z",
                "build-std=core",
                "--features",
                feature.unwrap_or_default(),
            ])
            .env("RUSTC", &tools.rustc)
            .env("CARGO_TARGET_DIR", &home)
            // not among the flags: those are part of what symbols are named by, and this is a path of the machine
            .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &tools.linker)
            .env("CARGO_ENCODED_RUSTFLAGS", flags(&tools.sysroot));
        if tools.bootstrap {
            cargo.env("RUSTC_BOOTSTRAP", "1");
        }
        run(&mut cargo)
    })?;
    let built = home.join("bpfel-unknown-none/release").join(programs);
    publish(&built, object)?;
    let panics = elf::panic_symbols(&fs::read(object)?).with_context(|| object.display().to_string())?;
    ensure!(panics.is_empty(), "a panic path survived in the kernel programs: {}", panics.join(", "));
    eprintln!("    {} ({} KiB, no panic symbol)", object.display(), fs::metadata(object)?.len() / 1024);
    Ok(object.to_owned())
}

/// The agent that was named, or a fresh one.
///
/// # Errors
/// As [`agent`], and when the named one does not exist.
pub(crate) fn agent_or(named: Option<PathBuf>) -> Result<PathBuf> {
    named.map_or_else(agent, |path| path.canonicalize().with_context(|| path.display().to_string()))
}

fn flags(sysroot: &Path) -> String {
    let mut flags = vec![
        format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH),
        "-Cdebuginfo=2".into(),   // BTF is made of it
        "-Ctarget-cpu=v3".into(), // `generic` refuses atomics that return a value, v4 needs Linux 6.6
        "-Clink-arg=--btf".into(),
    ];
    flags.extend(paths::remapped(sysroot));
    flags.join("\u{1f}")
}

/// Copies a build's result where others read it; an equal file keeps its time stamp, so nothing is rebuilt for it.
fn publish(from: &Path, to: &Path) -> Result<()> {
    let bytes = fs::read(from).with_context(|| from.display().to_string())?;
    if fs::read(to).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    let fresh = to.with_extension("o.tmp");
    fs::write(&fresh, bytes)?;
    fs::rename(&fresh, to).with_context(|| to.display().to_string())
}
