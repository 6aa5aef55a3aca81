//! A Debian kernel: found, fetched and unpacked, never installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::paths;
use crate::run::{on_path, output, run, step};

/// An unpacked kernel package.
pub(super) struct Kernel {
    /// Its root folder, with `boot` in it.
    root: PathBuf,
}

impl Kernel {
    /// The kernel of a `major.minor`, from our cache or else from Debian's archive.
    ///
    /// # Errors
    /// No package of that version can be had here.
    pub(super) fn get(version: &str) -> Result<Kernel> {
        let numbers: Vec<&str> = version.split('.').collect();
        ensure!(
            numbers.len() == 2 && numbers.iter().all(|n| n.parse::<u32>().is_ok()),
            "--kernel {version}: wanted is major.minor, such as 6.1"
        );
        let cache = paths::cache().join("kernels");
        let kept =
            names(fs::read_dir(&cache).into_iter().flatten().flatten().map(|e| e.file_name()), version);
        if let Some(name) = newest(kept) {
            return Ok(Kernel { root: cache.join(name) });
        }
        ensure!(
            on_path("apt-get") && on_path("dpkg-deb"),
            "kernels come as Debian packages, and there is no apt-get"
        );
        let name = match newest(listed(version)?) {
            Some(name) => name,
            None => {
                run(Command::new("apt-get").args(["-q", "update"]))?;
                newest(listed(version)?)
                    .with_context(|| format!("Debian's lists have no linux-image-{version}*-cloud-amd64"))?
            }
        };
        step(&format!("fetching {name} (it is not installed)"), || unpack(&cache, &name))?;
        Ok(Kernel { root: cache.join(name) })
    }

    /// The image to boot.
    ///
    /// # Errors
    /// There is none in the package.
    pub(super) fn image(&self) -> Result<PathBuf> {
        let boot = self.root.join("boot");
        let files = fs::read_dir(&boot).with_context(|| boot.display().to_string())?.flatten();
        let mut images = files.map(|e| e.path()).filter(|p| file_name(p).starts_with("vmlinuz"));
        images.next().with_context(|| format!("no vmlinuz in {}", boot.display()))
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Packages of a version that apt knows.
fn listed(version: &str) -> Result<Vec<String>> {
    let text = output(Command::new("apt-cache").args(["pkgnames", &format!("linux-image-{version}")]))?;
    Ok(names(text.lines().map(Into::into), version))
}

/// Those names that are signed cloud kernels of a version.
fn names(names: impl Iterator<Item = std::ffi::OsString>, version: &str) -> Vec<String> {
    let begin = format!("linux-image-{version}.");
    let fits = |name: &String| name.starts_with(&begin) && name.ends_with("-cloud-amd64");
    names.filter_map(|name| name.into_string().ok()).filter(fits).collect()
}

/// The name with the greatest numbers.
fn newest(names: Vec<String>) -> Option<String> {
    let numbers = |name: &String| -> Vec<u32> {
        name.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
    };
    names.into_iter().max_by_key(numbers)
}

fn unpack(cache: &Path, name: &str) -> Result<()> {
    let folder = cache.join(format!(".{name}.{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let done = (|| -> Result<()> {
        run(Command::new("apt-get").args(["-q", "download", name]).current_dir(&folder))?;
        let deb = fs::read_dir(&folder)?.flatten().map(|e| e.path()).find(|p| file_name(p).ends_with(".deb"));
        let root = folder.join("root");
        run(Command::new("dpkg-deb").arg("-x").arg(deb.context("apt-get downloaded nothing")?).arg(&root))?;
        fs::rename(&root, cache.join(name))?;
        Ok(())
    })();
    fs::remove_dir_all(&folder).ok();
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_signed_cloud_kernel_of_exactly_this_version() {
        let all = [
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64",
            "linux-image-6.1.0-57-cloud-amd64-dbg",
            "linux-image-6.1.0-58-cloud-amd64-unsigned",
            "linux-image-6.1.0-59-amd64",
            "linux-image-6.12.117+deb12-cloud-amd64",
        ];
        let of = |version| newest(names(all.iter().map(Into::into), version));
        assert_eq!(of("6.1").as_deref(), Some(all[1]));
        assert_eq!(of("6.12").as_deref(), Some(all[5]));
        assert_eq!(of("6.2"), None);
    }
}
