//! Builds kube-apiserver and etcd from their public Go modules: about three minutes on two cores, once.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::{ETCD, KUBERNETES};
use crate::run::{output, run, step};

/// Go that the modules ask for.
pub(super) const GO: &str = "1.26";

const APISERVER: &str = "k8s.io/kubernetes/cmd/kube-apiserver";
const ETCD_SERVER: &str = "go.etcd.io/etcd/server/v3";

/// Leaves both binaries in `folder`; a build that breaks off leaves none.
///
/// # Errors
/// When Go fails; its own words are on standard error.
pub(super) fn build(folder: &Path) -> Result<()> {
    let work = folder.with_extension("build");
    fs::create_dir_all(&work).with_context(|| work.display().to_string())?;
    step(&format!("go build kube-apiserver {KUBERNETES} and etcd {ETCD} (about 3 minutes, once)"), || {
        fs::write(work.join("go.mod"), go_mod(&staging(&work)?))?;
        run(go(&work).args(["mod", "tidy"]))?;
        let stamp = format!("-s -w -X k8s.io/component-base/version.gitVersion=v{KUBERNETES}");
        let built = work.join("bin");
        fs::create_dir_all(&built)?;
        for (package, name) in [(APISERVER, "kube-apiserver"), (ETCD_SERVER, "etcd")] {
            // the flags that cluster/build.sh has, so that the two share what Go keeps of either
            let mut build = go(&work);
            build.args(["build", "-ldflags", &stamp, "-o"]).arg(built.join(name)).arg(package);
            run(&mut build)?;
        }
        fs::rename(&built, folder).with_context(|| folder.display().to_string())
    })?;
    fs::remove_dir_all(&work).ok();
    Ok(())
}

fn go(work: &Path) -> Command {
    let mut command = Command::new("go");
    command.current_dir(work).env("CGO_ENABLED", "0").env("GOTOOLCHAIN", "local").env("GOFLAGS", "-mod=mod");
    command
}

/// Modules that k8s.io/kubernetes takes from its own tree; the module proxy has them under their own names.
fn staging(work: &Path) -> Result<Vec<String>> {
    let module = format!("k8s.io/kubernetes@v{KUBERNETES}");
    let mut download = go(work);
    let told = output(download.current_dir("/").args(["mod", "download", "-json", &module]))?;
    let told: serde_json::Value = serde_json::from_str(&told)?;
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
