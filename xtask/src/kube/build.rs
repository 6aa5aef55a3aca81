//! Builds kube-apiserver and etcd from their public Go modules: about three minutes on two cores, once.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use super::{ETCD, KUBERNETES};
use crate::run::{on_path, shown, step};

/// Go that the modules ask for.
pub(super) const GO: &str = "1.26";

const APISERVER: &str = "k8s.io/kubernetes/cmd/kube-apiserver";
const ETCD_SERVER: &str = "go.etcd.io/etcd/server/v3";

/// The go on PATH, or the one that Go's own installer leaves outside of it.
pub(super) fn go() -> Option<PathBuf> {
    let installed = PathBuf::from("/usr/local/go/bin/go");
    if on_path("go") { Some("go".into()) } else { Some(installed).filter(|go| go.is_file()) }
}

/// Leaves both binaries in `folder`; a build that breaks off leaves none.
///
/// # Errors
/// When Go fails; its last words are in the message.
pub(super) fn build(go: &Path, folder: &Path) -> Result<()> {
    // beside it, so that a rename does the rest
    let mut work = folder.as_os_str().to_owned();
    work.push(".build");
    let work = PathBuf::from(work);
    fs::create_dir_all(&work).with_context(|| work.display().to_string())?;
    let tool = Tool { go, work: &work };
    step(&format!("Go modules of kube-apiserver {KUBERNETES} and etcd {ETCD} (once)"), || {
        fs::write(work.join("go.mod"), go_mod(&staging(&tool)?))?;
        told(tool.command().args(["mod", "tidy"]))
    })?;
    let stamp = format!("-s -w -X k8s.io/component-base/version.gitVersion=v{KUBERNETES}");
    let built = work.join("bin");
    fs::create_dir_all(&built)?;
    for (package, name, minutes) in
        [(ETCD_SERVER, "etcd", "a minute"), (APISERVER, "kube-apiserver", "3 minutes")]
    {
        step(&format!("go build {name} (about {minutes}, once)"), || {
            // the flags that cluster/build.sh has, so that the two share what Go keeps of either
            told(tool.command().args(["build", "-ldflags", &stamp, "-o"]).arg(built.join(name)).arg(package))
        })?;
    }
    fs::rename(&built, folder).with_context(|| folder.display().to_string())?;
    fs::remove_dir_all(&work).ok();
    Ok(())
}

/// Where and how Go runs.
struct Tool<'a> {
    go: &'a Path,
    work: &'a Path,
}

impl Tool<'_> {
    fn command(&self) -> Command {
        let mut command = Command::new(self.go);
        command
            .current_dir(self.work)
            .env("CGO_ENABLED", "0")
            .env("GOTOOLCHAIN", "local")
            .env("GOFLAGS", "-mod=mod");
        command
    }
}

/// Runs Go and passes on what it says; its last lines are in the error.
fn told(command: &mut Command) -> Result<()> {
    let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().context("starting go")?;
    let mut last = Vec::new();
    for line in BufReader::new(child.stderr.take().context("stderr")?).lines() {
        let line = line?;
        eprintln!("    {line}");
        last.push(line);
        last.drain(..last.len().saturating_sub(3));
    }
    let status = child.wait()?;
    ensure!(status.success(), "`{}` ended with {status}: {}", shown(command), last.join(" / "));
    Ok(())
}

/// Modules that k8s.io/kubernetes takes from its own tree; the module proxy has them under their own names.
fn staging(tool: &Tool<'_>) -> Result<Vec<String>> {
    let module = format!("k8s.io/kubernetes@v{KUBERNETES}");
    let mut download = tool.command();
    download.current_dir("/").args(["mod", "download", "-json", &module]);
    let done = download.stdin(Stdio::null()).output().context("starting go")?;
    // it tells of its failures in the JSON
    let told: serde_json::Value = serde_json::from_slice(&done.stdout)
        .with_context(|| format!("{}: {}", shown(&download), String::from_utf8_lossy(&done.stderr).trim()))?;
    if let Some(error) = told["Error"].as_str() {
        bail!("{}: {error}", shown(&download));
    }
    let file = told["GoMod"].as_str().context("go mod download names no GoMod")?;
    let text = fs::read_to_string(file)?;
    let replaced = text.lines().filter_map(|line| line.trim().split_once(" => ./staging/"));
    Ok(replaced.map(|(name, _)| name.trim().to_owned()).collect())
}

fn go_mod(staging: &[String]) -> String {
    let mut text = format!(
        "module lb.test/kube\n\ngo {GO}.0\n\nrequire (\n\tk8s.io/kubernetes v{KUBERNETES}\n\t{ETCD_SERVER} v{ETCD}\n)\n\n\
         tool (\n\t{APISERVER}\n\t{ETCD_SERVER}\n)\n\nreplace (\n"
    );
    let minor = KUBERNETES.split_once('.').map_or("", |(_, minor)| minor);
    for name in staging {
        writeln!(text, "\t{name} => {name} v0.{minor}").ok();
    }
    text + ")\n"
}

#[cfg(test)]
mod tests {
    use super::go_mod;

    #[test]
    fn staging_modules_are_replaced_by_their_releases() {
        let text = go_mod(&["k8s.io/api".into()]);
        assert!(text.contains("\tk8s.io/api => k8s.io/api v0.36.3\n"), "{text}");
    }
}
