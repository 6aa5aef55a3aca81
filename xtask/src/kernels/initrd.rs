//! The root file system of the guest: the agent as it was built, a shell, and the libraries they need.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::run::{output, run};

/// What runs in the guest.
const INIT: &str = include_str!("init.sh");

/// Packs it into `archive`, with `folder` as the place to build it in.
///
/// # Errors
/// Something is missing, or can't be copied.
pub(super) fn pack(agent: &Path, folder: &Path, archive: &Path) -> Result<()> {
    for name in ["bin", "proc", "sys", "dev", "tmp"] {
        fs::create_dir_all(folder.join(name))?;
    }
    let stripped = folder.join("bin/lb-agent");
    // debug information is four fifths of it, and the guest is slow
    if run(Command::new("strip").arg("-s").arg("-o").arg(&stripped).arg(agent)).is_err() {
        fs::copy(agent, &stripped)?;
    }
    let busybox = located("busybox")?;
    fs::copy(&busybox, folder.join("bin/busybox"))?;
    for library in libraries(&[agent, &busybox]) {
        let to = folder.join(library.strip_prefix("/").unwrap_or(&library));
        fs::create_dir_all(to.parent().unwrap_or(folder))?;
        fs::copy(&library, &to).with_context(|| library.display().to_string())?;
    }
    let init = folder.join("init");
    fs::write(&init, INIT)?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
    let done = Command::new("sh")
        .args(["-c", "find . | busybox cpio -o -H newc | gzip -1"])
        .current_dir(folder)
        .stdout(File::create(archive)?)
        .stderr(Stdio::null())
        .status()?;
    ensure!(done.success(), "packing the guest's files: {done}");
    Ok(())
}

fn located(program: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file());
    found.with_context(|| format!("{program} is not on PATH"))
}

/// The shared libraries of some programs, their dynamic linker among them.
fn libraries(programs: &[&Path]) -> BTreeSet<PathBuf> {
    let mut all = BTreeSet::new();
    for program in programs {
        // fails for a static program, which needs none
        let text = output(Command::new("ldd").arg(program)).unwrap_or_default();
        all.extend(text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from));
    }
    all
}
