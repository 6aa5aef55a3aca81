//! The scripts of cluster/, called.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::Proxy;
use super::results::Results;
use crate::run::{output, run, run_for, step};
use crate::{build, image, packages, paths};

/// Where everything is written unless `LAB` names another folder.
const HOME: &str = "/var/tmp/lb-cluster";
/// The oldest Go that builds Kubernetes 1.36.
const GO: (u32, u32) = (1, 26);
/// What the scripts call, with Debian's packages; build.sh installs what only building needs.
const PROGRAMS: &[(&str, &str)] = &[
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("iptables", "iptables"),
    ("conntrack", "conntrack"),
    ("openssl", "openssl"),
    ("nsenter", "util-linux"),
    ("setsid", "util-linux"),
    ("pgrep", "procps"),
    ("python3", "python3"),
];

/// The cluster on this machine. There is one at a time: its namespaces have fixed names.
pub(crate) struct Lab {
    home: PathBuf,
}

impl Lab {
    /// The place of the cluster; nothing needs to be there yet.
    pub(crate) fn find() -> Self {
        Self { home: std::env::var_os("LAB").map_or_else(|| HOME.into(), PathBuf::from) }
    }

    /// Folder of everything it writes.
    pub(crate) fn home(&self) -> &Path {
        &self.home
    }

    /// A script of cluster/ with the cluster's place.
    pub(crate) fn script(&self, name: &str) -> Command {
        let mut command = Command::new("bash");
        command.arg(paths::root().join("cluster").join(name)).env("LAB", &self.home);
        command
    }

    /// A command with the functions of lib.sh in reach.
    fn shell(&self, line: &str) -> Command {
        let mut command = Command::new("bash");
        let lib = paths::root().join("cluster/lib.sh");
        command.arg("-c").arg(format!(". \"$0\"; {line}")).arg(lib).env("LAB", &self.home);
        command
    }

    /// kubectl as administrator; arguments are to be added.
    pub(crate) fn kubectl(&self) -> Command {
        self.shell("inns fab kubectl \"$@\"")
    }

    /// A program on a node, in all of its namespaces; arguments are to be added.
    pub(crate) fn on_node(&self, node: u8, program: &str) -> Command {
        let mut command = self.shell("onnode \"$@\"");
        command.arg(node.to_string()).arg(program);
        command
    }

    /// Whether it is up, or a part of it.
    pub(crate) fn is_up(&self) -> bool {
        Path::new("/run/netns/el-cp").exists()
    }

    /// Itself, when it is up.
    ///
    /// # Errors
    /// When it isn't.
    pub(crate) fn must_be_up(&mut self) -> Result<&mut Self> {
        ensure!(self.is_up(), "the cluster is not up: cargo xtask cluster up");
        Ok(self)
    }

    /// Why the cluster can't be built here; `None` = it can, or was.
    pub(crate) fn obstacle(&self) -> Option<String> {
        if self.home.join("built").exists() {
            return None;
        }
        let ask = |go| output(Command::new(go).arg("version"));
        // Go's own installer does not put it on the PATH of root; build.sh looks there, too
        let Ok(text) = ask("go").or_else(|_| ask("/usr/local/go/bin/go")) else {
            return Some(format!(
                "needs Go {}.{} or newer to build Kubernetes (https://go.dev/dl)",
                GO.0, GO.1
            ));
        };
        match version(&text) {
            Some(found) if found >= GO => None,
            _ => Some(format!(
                "needs Go {}.{} or newer to build Kubernetes, found: {}",
                GO.0,
                GO.1,
                text.trim()
            )),
        }
    }

    /// Builds what is missing.
    ///
    /// # Errors
    /// When Go is missing, or a step fails.
    pub(crate) fn build(&self) -> Result<()> {
        self.build_for(Duration::MAX).map(drop)
    }

    /// Builds what is missing, for at most so long; the next call goes on where this one was stopped. Returns whether all
    /// is there.
    ///
    /// # Errors
    /// As [`Lab::build`].
    pub(crate) fn build_for(&self, limit: Duration) -> Result<bool> {
        if let Some(obstacle) = self.obstacle() {
            bail!(obstacle);
        }
        packages::need(PROGRAMS)?;
        let stamp = output(self.script("build.sh").arg("--stamp"))?;
        if fs::read_to_string(self.home.join("built")).is_ok_and(|built| built == stamp) {
            return Ok(true);
        }
        step("building Kubernetes, its tests, containerd and images (once, about 8 minutes)", || {
            run_for(&mut self.script("build.sh"), limit)
        })
    }

    /// Brings it up without a service proxy; what runs already is left alone.
    ///
    /// # Errors
    /// When a part does not come up; its log is in the folder.
    pub(crate) fn up(&self, nodes: u8, ipv4_only: bool) -> Result<()> {
        step("bringing the cluster up", || {
            let mut up = self.script("up.sh");
            up.env("NODES", nodes.to_string()).env("DUAL", if ipv4_only { "no" } else { "yes" });
            run(&mut up).with_context(|| format!("logs are in {}", self.home.join("logs").display()))
        })
    }

    /// Ends and removes it.
    ///
    /// # Errors
    /// When something stays; it is named.
    pub(crate) fn down(&self) -> Result<()> {
        run(&mut self.script("down.sh"))
    }

    /// Puts a service proxy on every node in place of the one that is there; `agent`: lb-agent, built already.
    ///
    /// # Errors
    /// When it can't be built or does not come up.
    pub(crate) fn proxy(&self, proxy: Proxy, agent: Option<&Path>) -> Result<()> {
        let mut script = self.script("proxy.sh");
        match proxy {
            Proxy::Lb => {
                self.image(agent)?;
                script.arg("lb");
            }
            Proxy::LbProcess => {
                let agent = build::agent_or(agent.map(Into::into))?;
                fs::copy(&agent, self.home.join("bin/lb-agent")).context("copying the agent")?;
                script.arg("lb-process");
            }
            Proxy::Nftables => drop(script.arg("kube-proxy-nftables")),
            Proxy::Iptables => drop(script.arg("kube-proxy-iptables")),
            Proxy::DaemonSet => drop(script.arg("kube-proxy-ds")),
            Proxy::None => drop(script.arg("none")),
        }
        run(&mut script)
    }

    /// Tells proxy.sh which mode is in place, after it was changed by other means.
    ///
    /// # Errors
    /// When the file can't be written.
    pub(crate) fn settle(&self, mode: &str) -> Result<()> {
        fs::write(self.home.join("run/proxy.mode"), mode).context("run/proxy.mode")
    }

    /// Calls functions of lb.sh.
    ///
    /// # Errors
    /// When the line fails.
    pub(crate) fn lb(&self, line: &str) -> Result<()> {
        run(&mut self.shell(&format!(". \"$HERE/lb.sh\"; {line}")))
    }

    /// Makes the image that ships, where lb.sh finds it, of a static agent that is built already or a fresh one.
    ///
    /// # Errors
    /// When it can't be built.
    pub(crate) fn image(&self, agent: Option<&Path>) -> Result<()> {
        let archive = self.home.join("lb/image.tar");
        image::run(&image::default_tag(), &archive, None, agent.map(Into::into))
    }

    /// Runs specs and reads their results.
    ///
    /// # Errors
    /// When the suite did not run any.
    pub(crate) fn e2e(
        &self,
        specs: &str,
        skip: Option<&str>,
        procs: u8,
        name: Option<&str>,
    ) -> Result<Results> {
        let folder = self.home.join("results").join(name.unwrap_or("latest"));
        fs::remove_dir_all(&folder).ok();
        let mut script = self.script("e2e.sh");
        script.arg(specs).args(skip).env("PROCS", procs.to_string());
        script.env("NAME", folder.file_name().unwrap_or_default());
        script.env("QUIET", "yes");
        // the suite's exit status says that specs failed, which the results tell better
        run(&mut script).ok();
        Results::read(&folder)
    }
}

fn version(text: &str) -> Option<(u32, u32)> {
    let number = text.split_whitespace().find_map(|word| word.strip_prefix("go1."))?;
    Some((1, number.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()?))
}
