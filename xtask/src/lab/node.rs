//! A node of the cluster: its namespace, its cgroup, its bpffs and the agent that runs on it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::worker::{Answer, Ask, Worker};
use super::{janitor, netns};

/// Mounts that a node's processes see: /sys of their own namespace, cgroup v2 where the host has it, their bpffs.
const LAUNCH: &str = r#"
mount -t sysfs sysfs /sys
[ "$CGROUP2" = /sys/fs/cgroup ] || { mount -t tmpfs tmpfs /sys/fs/cgroup; mkdir -p "$CGROUP2"; }
mount -t cgroup2 cgroup2 "$CGROUP2"
mount --bind "$BPFFS" /sys/fs/bpf
if [ -n "$ACCOUNT" ]; then
    mount -t tmpfs tmpfs /run
    mkdir -p /run/secrets/kubernetes.io
    ln -s "$ACCOUNT" /run/secrets/kubernetes.io/serviceaccount
fi
exec "$@"
"#;

/// How long an agent may take to be healthy: 2 s on an idle machine, 30 s were seen when the verifier got a tenth of a
/// CPU. One that ends by itself is noticed at once.
pub(crate) const START_LIMIT: Duration = Duration::from_secs(180);
/// How long an agent may take to obey SIGTERM.
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// Where an agent's objects come from when it is not the lab's folder of manifests.
#[derive(Clone, Debug, Default)]
pub(crate) struct ApiFeed {
    /// Arguments of `run` in place of `--manifests DIR`.
    pub(crate) arguments: Vec<String>,
    /// Folder that the agent finds where a pod's service account is.
    pub(crate) account: Option<PathBuf>,
    /// Environment variables.
    pub(crate) environment: Vec<(String, String)>,
}

/// One node.
pub(crate) struct Node {
    /// Its name in the cluster.
    pub(crate) name: String,
    /// Its network namespace.
    pub(crate) namespace: String,
    /// IPv4 and IPv6 address of its uplink.
    pub(crate) addresses: [String; 2],
    /// What the agent wrote.
    pub(crate) log: PathBuf,
    /// Mount point of its bpffs.
    pub(crate) bpffs: PathBuf,
    /// The cgroup of all its processes, pods included.
    pub(crate) cgroup: PathBuf,
    /// A process of the node itself that opens sockets.
    pub(crate) worker: Worker,
    /// Objects by an API server; `None` = by the folder of manifests.
    pub(crate) feed: Option<ApiFeed>,
    manifests: PathBuf,
    /// Further arguments of the agent.
    pub(crate) extra: Vec<String>,
    /// Its KubeProxyConfiguration.
    pub(crate) config: PathBuf,
    agent: Option<Child>,
}

/// Where the cgroup v2 hierarchy is mounted.
///
/// # Errors
/// When it isn't.
pub(crate) fn cgroup_root() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let found = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|words| words.get(2) == Some(&"cgroup2"));
    Ok(found.and_then(|words| words.get(1).copied()).context("no cgroup v2 hierarchy is mounted")?.into())
}

impl Node {
    /// Makes cgroup, bpffs and worker of a node whose namespace exists.
    ///
    /// # Errors
    /// When one of them can't be made.
    pub(crate) fn new(
        name: &str,
        namespace: &str,
        addresses: [String; 2],
        folder: &Path,
        manifests: &Path,
        configuration: &str,
    ) -> Result<Self> {
        let cgroup = cgroup_root()?.join(namespace);
        Self::below(&cgroup, name, namespace, addresses, folder, manifests, configuration)
    }

    /// As [`Node::new`], with this folder as its cgroup.
    ///
    /// # Errors
    /// As [`Node::new`].
    pub(crate) fn below(
        cgroup: &Path,
        name: &str,
        namespace: &str,
        addresses: [String; 2],
        folder: &Path,
        manifests: &Path,
        configuration: &str,
    ) -> Result<Self> {
        let cgroup = cgroup.to_path_buf();
        let home = folder.join(name);
        let bpffs = home.join("bpf");
        fs::create_dir_all(&bpffs)?;
        janitor::mount(&bpffs);
        let done = Command::new("mount").args(["-t", "bpf", "bpf"]).arg(&bpffs).status()?;
        ensure!(done.success(), "mounting a bpffs at {}", bpffs.display());
        for group in [cgroup.clone(), cgroup.join("workloads"), cgroup.join("agent")] {
            janitor::cgroup(&group);
            fs::create_dir_all(&group).with_context(|| group.display().to_string())?;
        }
        let config = home.join("config.yaml");
        fs::write(&config, configuration)?;
        Ok(Self {
            name: name.into(),
            namespace: namespace.into(),
            addresses,
            log: home.join("agent.log"),
            worker: Worker::start(namespace, Some(&cgroup.join("workloads")))?,
            bpffs,
            cgroup,
            feed: None,
            extra: Vec::new(),
            manifests: manifests.into(),
            config,
            agent: None,
        })
    }

    /// The cgroup for the processes of the node and its pods.
    pub(crate) fn workloads(&self) -> PathBuf {
        self.cgroup.join("workloads")
    }

    fn launch(&self, program: &Path, arguments: &[&str]) -> Result<Command> {
        let mut command =
            netns::command(&self.namespace, Some(&self.cgroup.join("agent")), Path::new("unshare"))?;
        command
            .args(["--mount", "--propagation", "private", "sh", "-ec", LAUNCH, "sh"])
            .arg(program)
            .args(arguments)
            .env("CGROUP2", cgroup_root()?)
            .env("BPFFS", &self.bpffs)
            .env("ACCOUNT", self.feed.as_ref().and_then(|f| f.account.as_deref()).unwrap_or(Path::new("")))
            .envs(self.feed.iter().flat_map(|f| f.environment.clone()))
            .stdin(Stdio::null());
        Ok(command)
    }

    /// The flags by which every subcommand of the agent finds this node's kernel objects.
    fn places(&self) -> [String; 4] {
        let text = |path: &Path| path.display().to_string();
        ["--cgroup".into(), text(&self.cgroup), "--bpffs".into(), text(&self.bpffs)]
    }

    /// Starts the agent and waits until `/healthz` is 200.
    ///
    /// # Errors
    /// When the agent ends or is not healthy in time; the message holds the end of its log.
    pub(crate) fn start_agent(&mut self, program: &Path) -> Result<()> {
        self.spawn_agent(program)?;
        self.wait_healthy()
    }

    /// Whether an agent runs, or has ended by itself and was not stopped yet.
    pub(crate) fn has_agent(&self) -> bool {
        self.agent.is_some()
    }

    /// Starts the agent without waiting.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn spawn_agent(&mut self, program: &Path) -> Result<()> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        let text = |path: &Path| path.display().to_string();
        let places = self.places();
        let (manifests, config) = (text(&self.manifests), text(&self.config));
        let mut arguments = vec!["run", "--node-name", &self.name, "--config", &config];
        match &self.feed {
            None => arguments.extend(["--manifests", &manifests]),
            Some(feed) => arguments.extend(feed.arguments.iter().map(String::as_str)),
        }
        arguments.extend(places.iter().chain(&self.extra).map(String::as_str));
        let child = self.launch(program, &arguments)?.stdout(log.try_clone()?).stderr(log).spawn()?;
        janitor::process(child.id());
        self.agent = Some(child);
        Ok(())
    }

    /// Number of the agent's process.
    pub(crate) fn agent_id(&self) -> Option<u32> {
        self.agent.as_ref().map(Child::id)
    }

    /// Waits until `/healthz` is 200.
    ///
    /// # Errors
    /// As [`Node::start_agent`].
    pub(crate) fn wait_healthy(&mut self) -> Result<()> {
        self.wait_healthy_for(START_LIMIT)
    }

    /// As [`Node::wait_healthy`], for so long.
    ///
    /// # Errors
    /// As [`Node::start_agent`].
    pub(crate) fn wait_healthy_for(&mut self, limit: Duration) -> Result<()> {
        let begin = Instant::now();
        loop {
            if self.http("127.0.0.1:10256", "/healthz")?.status == 200 {
                return Ok(());
            }
            if let Some(status) =
                self.agent.as_mut().and_then(|child| child.try_wait().transpose()).transpose()?
            {
                janitor::ended(self.agent.take().map_or(0, |child| child.id()));
                bail!("the agent of {} ended with {status}; its log ends:\n{}", self.name, self.log_end());
            }
            if begin.elapsed() > limit {
                bail!(
                    "the agent of {} isn't healthy after {limit:?}; its log ends:\n{}",
                    self.name,
                    self.log_end()
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn log_end(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// Ends the agent with a signal and waits for it. What it programmed stays in the kernel.
    ///
    /// # Errors
    /// When no agent runs, or SIGTERM is not obeyed in time (it is killed then).
    pub(crate) fn stop_agent(&mut self, signal: libc::c_int) -> Result<()> {
        let mut child = self.agent.take().context("no agent runs")?;
        // SAFETY: kill takes numbers; the child was not waited for, so its number is its own.
        unsafe { libc::kill(child.id() as i32, signal) };
        let begin = Instant::now();
        let obeyed = loop {
            if child.try_wait()?.is_some() {
                break true;
            }
            if begin.elapsed() > STOP_LIMIT {
                child.kill()?;
                child.wait()?;
                break false;
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        janitor::ended(child.id());
        ensure!(obeyed, "the agent of {} did not end by signal {signal} in {STOP_LIMIT:?}", self.name);
        Ok(())
    }

    /// Waits for an agent that ends by itself.
    ///
    /// # Errors
    /// When no agent runs, or it does not end in time.
    pub(crate) fn wait_ended(&mut self) -> Result<ExitStatus> {
        let child = self.agent.as_mut().context("no agent runs")?;
        let begin = Instant::now();
        let status = loop {
            match child.try_wait()? {
                Some(status) => break status,
                None if begin.elapsed() > STOP_LIMIT => bail!("the agent of {} does not end", self.name),
                None => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        janitor::ended(self.agent.take().map_or(0, |child| child.id()));
        Ok(status)
    }

    /// Runs a subcommand of the agent in the node (`status`, `cleanup --kube-proxy`) and returns what it printed.
    ///
    /// # Errors
    /// When it fails; the message holds its standard error.
    pub(crate) fn agent_command(&self, program: &Path, subcommand: &str) -> Result<String> {
        let places = self.places();
        let mut arguments: Vec<&str> = subcommand.split_whitespace().collect();
        arguments.extend(places.iter().map(String::as_str));
        crate::run::output(&mut self.launch(program, &arguments)?)
    }

    /// One HTTP request from the node itself.
    ///
    /// # Errors
    /// When the worker is gone.
    pub(crate) fn http(&mut self, to: &str, path: &str) -> Result<Answer> {
        self.worker.ask(&Ask::Http { to: to.parse()?, path: path.into(), mapped: false })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut child) = self.agent.take() {
            janitor::ended(child.id());
            child.kill().ok();
            child.wait().ok();
        }
    }
}
