//! Which compiler and which linker build the kernel programs, and how they are fetched.
//!
//! The programs need `core` from source, so the compiler must come with the source of its own library. In order:
//! what the user names, rustup's nightly with rust-src, Debian's rustc-web with rust-web-src.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::run::{cargo_program, clean, is_root, on_path, output, run, step};
use crate::{packages, paths};

const LINKER_VERSION: &str = "0.13.0";
/// LLVM majors that this version of bpf-linker can be built for.
const LINKER_LLVM: [u32; 3] = [21, 22, 23];
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

const RECIPES: &str = "no compiler for the kernel programs. One of these gives one:
  * as root, on Debian: apt-get install -y --no-install-recommends rustc-web rust-web-src
  * with rustup: rustup toolchain install nightly --component rust-src
  * your own: EBPF_RUSTC=/path/to/rustc [EBPF_CARGO=...] [EBPF_LINKER=/path/to/bpf-linker]
The compiler must have the source of its own library: $(rustc --print sysroot)/lib/rustlib/src/rust/library";

/// A compiler that can build `core`, its cargo and a linker for the same LLVM.
pub(crate) struct Toolchain {
    /// The driver.
    pub(crate) cargo: PathBuf,
    /// The compiler.
    pub(crate) rustc: PathBuf,
    /// Where the compiler keeps the source of its library.
    pub(crate) sysroot: PathBuf,
    /// bpf-linker.
    pub(crate) linker: PathBuf,
    /// Whether unstable options need RUSTC_BOOTSTRAP.
    pub(crate) bootstrap: bool,
}

struct Compiler {
    cargo: PathBuf,
    rustc: PathBuf,
    sysroot: PathBuf,
    /// First line of `rustc -vV`.
    version: String,
    llvm: u32,
    bootstrap: bool,
}

/// Finds or installs the tools, and says which were taken.
///
/// # Errors
/// When nothing usable is there and nothing can be installed: the message holds the recipes.
pub(crate) fn find() -> Result<Toolchain> {
    let compiler = compiler()?;
    eprintln!(
        "==> kernel programs: {} ({}), LLVM {}",
        compiler.version,
        compiler.rustc.display(),
        compiler.llvm
    );
    let linker = match std::env::var_os("EBPF_LINKER") {
        Some(path) => path.into(),
        None => linker(&compiler)?,
    };
    let Compiler { cargo, rustc, sysroot, bootstrap, .. } = compiler;
    Ok(Toolchain { cargo, rustc, sysroot, linker, bootstrap })
}

fn compiler() -> Result<Compiler> {
    let driver = PathBuf::from(std::env::var_os("EBPF_CARGO").unwrap_or_else(cargo_program));
    if let Some(rustc) = std::env::var_os("EBPF_RUSTC") {
        let named = Compiler::probe(Path::new(&rustc), &driver).context("EBPF_RUSTC")?;
        ensure!(named.has_source(), "EBPF_RUSTC: {} has no library source", named.sysroot.display());
        return Ok(named);
    }
    if let Some(nightly) = rustup_nightly() {
        return Ok(nightly);
    }
    if let Some(debian) = debian(&driver) {
        return Ok(debian);
    }
    if is_root() && on_path("apt-get") {
        packages::apt_install(&["rustc-web", "rust-web-src"], "a compiler for the kernel programs")
            .context(RECIPES)?;
        if let Some(debian) = debian(&driver) {
            return Ok(debian);
        }
    }
    bail!(RECIPES)
}

/// rustup's nightly, when its own rust-src component is there and bpf-linker knows its LLVM.
fn rustup_nightly() -> Option<Compiler> {
    let rustc = output(clean("rustup").args(["which", "--toolchain", "nightly", "rustc"])).ok()?;
    let rustc = Path::new(rustc.trim());
    let mut nightly = Compiler::probe(rustc, &rustc.with_file_name("cargo")).ok()?;
    let components = fs::read_to_string(nightly.sysroot.join("lib/rustlib/components")).ok()?;
    // a source that was copied there by hand may be of another version
    let own_source = components.lines().any(|line| line.starts_with("rust-src"));
    nightly.bootstrap = false;
    (own_source && nightly.has_source() && LINKER_LLVM.contains(&nightly.llvm)).then_some(nightly)
}

/// Debian's pair, when both packages have the same version.
fn debian(driver: &Path) -> Option<Compiler> {
    let versions =
        output(Command::new("dpkg-query").args(["-W", "-f=${Version}\n", "rustc-web", "rust-web-src"]))
            .ok()?;
    let mut versions = versions.lines().map(|line| line.split('+').next().unwrap_or(line));
    let pair = versions.next()? == versions.next()?;
    let found = Compiler::probe(Path::new(DEBIAN_RUSTC), driver).ok()?;
    (pair && found.has_source() && LINKER_LLVM.contains(&found.llvm)).then_some(found)
}

impl Compiler {
    fn probe(rustc: &Path, cargo: &Path) -> Result<Self> {
        let about = output(clean(rustc).arg("-vV"))?;
        let llvm = about.lines().find_map(|line| line.strip_prefix("LLVM version: "));
        let llvm = llvm.and_then(|v| v.split('.').next()).and_then(|v| v.parse().ok());
        let sysroot = output(clean(rustc).args(["--print", "sysroot"]))?;
        Ok(Self {
            cargo: cargo.into(),
            rustc: rustc.into(),
            sysroot: sysroot.trim().into(),
            version: about.lines().next().unwrap_or_default().into(),
            llvm: llvm.with_context(|| format!("{} -vV names no LLVM version", rustc.display()))?,
            bootstrap: !about.contains("-nightly"),
        })
    }

    fn has_source(&self) -> bool {
        self.sysroot.join("lib/rustlib/src/rust/library/Cargo.lock").is_file()
    }

    /// The LLVM library that the compiler itself runs on.
    fn llvm_library(&self) -> Result<PathBuf> {
        let triple = format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
        let folders = [
            self.sysroot.join("lib"),
            triple.into(),
            "/usr/lib64".into(),
            format!("/usr/lib/llvm-{}/lib", self.llvm).into(),
        ];
        let (new, old) = (format!("libLLVM.so.{}.", self.llvm), format!("libLLVM-{}", self.llvm));
        for folder in &folders {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if name.starts_with(&new) || name.starts_with(&old) && name.contains(".so") {
                    return Ok(entry.path());
                }
            }
        }
        bail!("no libLLVM of version {} for {} in {folders:?}", self.llvm, self.rustc.display())
    }
}

/// bpf-linker for the compiler's LLVM, built into the target folder when it isn't there yet.
fn linker(compiler: &Compiler) -> Result<PathBuf> {
    ensure!(
        LINKER_LLVM.contains(&compiler.llvm),
        "bpf-linker {LINKER_VERSION} knows LLVM {LINKER_LLVM:?}, the compiler has {}",
        compiler.llvm
    );
    let home = paths::tools().join(format!("bpf-linker-{LINKER_VERSION}-llvm{}", compiler.llvm));
    let program = home.join("bin/bpf-linker");
    if program.is_file() && output(clean(&program).arg("--version")).is_ok() {
        return Ok(program);
    }
    let library = compiler.llvm_library()?;
    let prefix = paths::tools().join(format!("llvm-{}", compiler.llvm));
    fs::create_dir_all(prefix.join("lib"))?;
    let link = prefix.join("lib/libLLVM.so");
    fs::remove_file(&link).ok();
    std::os::unix::fs::symlink(&library, &link).with_context(|| format!("linking {}", link.display()))?;
    let folder = library.parent().unwrap_or(Path::new("/")).display().to_string();
    step(
        &format!("building bpf-linker {LINKER_VERSION} for LLVM {} (a minute or two, once)", compiler.llvm),
        || {
            run(clean(cargo_program())
                .args(["install", "bpf-linker", "--version", LINKER_VERSION, "--locked", "--force"])
                .args(["--no-default-features", "--features", &format!("llvm-{}", compiler.llvm)])
                .arg("--root")
                .arg(&home)
                .env("LLVM_PREFIX", &prefix)
                .env("RUSTFLAGS", format!("-Clink-arg=-Wl,-rpath,{folder}"))
                .env("CARGO_TARGET_DIR", paths::tools().join("build")))
        },
    )?;
    let version = output(clean(&program).arg("--version")).context("the linker that was just built")?;
    eprintln!("    {}", version.trim());
    Ok(program)
}
