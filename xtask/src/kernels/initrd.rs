//! The root file system of the guest: the agent as it was built, a shell, `ip`, and the libraries they need.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::package::Kernel;
use crate::lab::manifests::{self, Endpoint, Service};
use crate::run::{output, run};

/// Modules that the guest loads, where they are not built in. They depend on no others.
const MODULES: [&str; 3] = ["veth", "sch_ingress", "cls_bpf"];
/// What runs in the guest.
const INIT: &str = include_str!("init.sh");

/// Packs it into `archive`, with `folder` as the place to build it in.
///
/// # Errors
/// Something is missing, or can't be copied.
pub(super) fn pack(kernel: &Kernel, agent: &Path, folder: &Path, archive: &Path) -> Result<()> {
    for name in ["bin", "proc", "sys", "dev", "tmp", "run", "etc", "www", "modules", "manifests"] {
        fs::create_dir_all(folder.join(name))?;
    }
    fs::create_dir_all(folder.join("var"))?;
    std::os::unix::fs::symlink("/run", folder.join("var/run"))?; // where ip keeps its namespaces
    let stripped = folder.join("bin/lb-agent");
    // debug information is four fifths of it, and the guest is slow
    if run(Command::new("strip").arg("-s").arg("-o").arg(&stripped).arg(agent)).is_err() {
        fs::copy(agent, &stripped)?;
    }
    let busybox = located("busybox")?;
    let ip = located("ip")?;
    fs::copy(&busybox, folder.join("bin/busybox"))?;
    fs::copy(&ip, folder.join("bin/ip"))?;
    for library in libraries(&[agent, &busybox, &ip]) {
        let to = folder.join(library.strip_prefix("/").unwrap_or(&library));
        fs::create_dir_all(to.parent().unwrap_or(folder))?;
        fs::copy(&library, &to).with_context(|| library.display().to_string())?;
    }
    for (number, name) in MODULES.iter().enumerate() {
        if let Some(bytes) = kernel.module(name)? {
            fs::write(folder.join(format!("modules/{number}-{name}.ko")), bytes)?;
        }
    }
    fs::write(folder.join("manifests/all.yaml"), world())?;
    fs::write(folder.join("www/index.html"), "lb\n")?;
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

/// A Service with one pod on this node; see `init.sh` for who has which address.
fn world() -> String {
    let text = |list: [&str; 2]| list.map(str::to_owned);
    let service = Service {
        name: "web".into(),
        cluster_ips: text(["10.96.0.10", "fd96::10"]).into(),
        node_port: Some(30080),
        ..Service::default()
    };
    let pods = text(["10.77.1.10", "fd77::10"]).map(|address| Endpoint { address, node: "guest".into() });
    [
        manifests::node(
            "guest",
            &text(["192.0.2.11", "2001:db8:1::11"]),
            &text(["10.77.1.0/24", "fd77::/64"]),
        ),
        manifests::service_cidr(&["10.96.0.0/16", "fd96::/112"]),
        service.yaml(),
        manifests::slice("web", false, &pods),
        manifests::slice("web", true, &pods),
    ]
    .join("---\n")
}
