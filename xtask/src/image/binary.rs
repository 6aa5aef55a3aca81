//! The agent as one static file.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use object::{Object, ObjectSegment};

use crate::packages;
use crate::paths;
use crate::run::{cargo_program, clean, on_path, output, run, step};

/// Whose C library is linked in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Libc {
    /// musl: resolves names by itself, needs no file of a distribution
    Musl,
    /// glibc: for where the musl target can't be had
    Glibc,
}

/// What is built for.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// Rust's name of it.
    pub(crate) triple: String,
    /// Whose C library.
    pub(crate) libc: Libc,
}

impl Target {
    fn of(libc: Libc) -> Self {
        let end = if libc == Libc::Musl { "musl" } else { "gnu" };
        Target { triple: format!("{}-unknown-linux-{end}", std::env::consts::ARCH), libc }
    }

    /// As it is written in labels.
    pub(crate) fn libc_name(&self) -> &'static str {
        match self.libc {
            Libc::Musl => "musl",
            Libc::Glibc => "glibc",
        }
    }
}

/// The wanted target with all it needs installed; unasked, musl where it can be had and glibc else.
///
/// # Errors
/// The wanted one can't be had; the message says how to get it.
pub(crate) fn choose(wanted: Option<Libc>) -> Result<Target> {
    let libc = wanted.unwrap_or(Libc::Musl);
    let target = Target::of(libc);
    if libc == Libc::Glibc {
        return Ok(target);
    }
    match musl(&target.triple) {
        Ok(()) => Ok(target),
        Err(error) if wanted.is_none() => {
            eprintln!("    musl can't be had ({error:#}): linking glibc statically instead");
            Ok(Target::of(Libc::Glibc))
        }
        Err(error) => Err(error),
    }
}

/// Sees to it that Rust's library and a C compiler for musl are there.
fn musl(triple: &str) -> Result<()> {
    let library = || -> Result<bool> {
        let folder = output(clean("rustc").args(["--print", "target-libdir", "--target", triple]))?;
        Ok(fs::read_dir(folder.trim()).is_ok_and(|mut files| files.next().is_some()))
    };
    if !library()? {
        let cure = format!("the Rust library for {triple} is missing: rustup target add {triple}");
        if !on_path("rustup") {
            bail!(cure);
        }
        step(&format!("rustup target add {triple}"), || {
            run(clean("rustup").args(["target", "add", triple])).context(cure)
        })?;
    }
    packages::need(&[("musl-gcc", "musl-tools")])
}

/// Builds the agent with the `dist` profile and returns its path.
///
/// # Errors
/// The build fails.
pub(crate) fn build(target: &Target) -> Result<PathBuf> {
    let mut cargo = clean(cargo_program());
    cargo
        .current_dir(paths::root())
        .args(["build", "--locked", "--package", "lb-agent", "--bin", "lb-agent", "--profile", "dist"])
        .args(["--target", &target.triple])
        .env("CARGO_TARGET_DIR", paths::target())
        .env("CARGO_ENCODED_RUSTFLAGS", flags()?);
    run(&mut cargo)?;
    Ok(paths::target().join(&target.triple).join("dist/lb-agent"))
}

/// Refuses a program that needs more than a kernel.
///
/// # Errors
/// It can't be read, is no ELF file, or wants a dynamic linker.
pub(crate) fn must_be_static(agent: &Path) -> Result<()> {
    let bytes = fs::read(agent).with_context(|| agent.display().to_string())?;
    ensure!(is_static(&bytes)?, "{} wants a dynamic linker: an image has none", agent.display());
    Ok(())
}

/// Static, and no path of this machine in messages of panics.
fn flags() -> Result<String> {
    let mut flags = vec!["-Ctarget-feature=+crt-static".to_owned()];
    flags.extend(paths::remapped(&sysroot()?));
    Ok(flags.join("\u{1f}"))
}

/// Whether an ELF file runs without a dynamic linker: none is named, no library is needed.
fn is_static(bytes: &[u8]) -> Result<bool> {
    let file = object::File::parse(bytes).context("not an ELF file")?;
    let interpreter = match &file {
        object::File::Elf64(elf) => {
            use object::read::elf::ProgramHeader as _;
            elf.elf_program_headers()
                .iter()
                .any(|header| header.p_type(elf.endian()) == object::elf::PT_INTERP)
        }
        _ => bail!("not a 64-bit ELF file"),
    };
    Ok(!interpreter && file.segments().any(|segment| segment.size() > 0))
}

/// The version of rustc that [`build`] uses, such as `1.95.0`.
///
/// # Errors
/// rustc is not there.
pub(crate) fn rustc_version() -> Result<String> {
    let text = output(&mut rustc(&["--version"]))?;
    Ok(text.split(' ').nth(1).unwrap_or("unknown").to_owned())
}

/// The version of the C library that is linked in.
///
/// # Errors
/// The file that tells is not there.
pub(crate) fn libc_version(target: &Target) -> Result<String> {
    if target.libc == Libc::Glibc {
        let text = output(Command::new("ldd").arg("--version"))?; // `ldd (Debian GLIBC 2.36-9) 2.36`
        return Ok(text
            .lines()
            .next()
            .and_then(|line| line.rsplit(' ').next())
            .unwrap_or("unknown")
            .to_owned());
    }
    // Rust brings musl along; the library has its version as a string: `1.2.5`, NUL
    let library = sysroot()?.join("lib/rustlib").join(&target.triple).join("lib/self-contained/libc.a");
    let bytes = fs::read(&library).with_context(|| library.display().to_string())?;
    let found =
        bytes.windows(6).find(|w| w.starts_with(b"1.") && w[3] == b'.' && w[4].is_ascii_digit() && w[5] == 0);
    Ok(found.map_or("unknown".into(), |w| String::from_utf8_lossy(&w[..5]).into_owned()))
}

/// The folder with rustc's own documents, licences among them.
///
/// # Errors
/// rustc is not there.
pub(crate) fn sysroot() -> Result<PathBuf> {
    Ok(output(&mut rustc(&["--print", "sysroot"]))?.trim().into())
}

fn rustc(arguments: &[&str]) -> Command {
    let mut command = clean("rustc");
    command.args(arguments);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_is_told_from_a_static_one() {
        // Test programs are linked dynamically.
        let this = fs::read("/proc/self/exe").unwrap();
        assert!(!is_static(&this).unwrap());
        assert!(is_static(b"no ELF").is_err());
    }
}
