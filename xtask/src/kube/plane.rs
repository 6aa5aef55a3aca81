//! A control plane on the lab's fabric: one etcd, two API servers on hosts of their own.
//!
//! The first server's certificate does not name the server's own IPv4 address, as with a cluster whose certificate
//! lists only what the installer knew: whoever comes by a last known endpoint has to ask for `kubernetes.default.svc`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::objects::{Item, items};
use super::pki::Pki;
use crate::lab::netns::{command, run_in};
use crate::lab::{Lab, SERVICE_CIDRS, janitor};

/// Addresses of the servers' hosts.
pub(crate) const HOSTS: [[&str; 2]; 2] =
    [["192.0.2.201", "2001:db8:1::201"], ["192.0.2.202", "2001:db8:1::202"]];
/// Port of every API server.
pub(crate) const PORT: u16 = 6443;
/// How long a server may take to be ready.
const READY_LIMIT: Duration = Duration::from_secs(300);
const ETCD: &str = "http://192.0.2.201:2379";
/// Every request of the agent's account leaves a line, and nobody else's.
const AUDIT_POLICY: &str = r#"apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
  users: ["system:serviceaccount:kube-system:lb-agent"]
- level: None
"#;
const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";

/// See the module. Dropping it ends its processes; the namespaces are the lab's.
pub(crate) struct ControlPlane {
    namespaces: [String; 2],
    binaries: PathBuf,
    folder: PathBuf,
    pki: Pki,
    etcd: Child,
    servers: [Option<Child>; 2],
    /// Objects that [`ControlPlane::mirror`] has written, by path.
    mirrored: BTreeMap<String, Item>,
}

impl ControlPlane {
    /// Starts etcd and both servers, and waits until they are ready.
    ///
    /// # Errors
    /// When one of them isn't in time; the message names its log.
    pub(crate) fn start(lab: &Lab, binaries: &Path) -> Result<Self> {
        let folder = lab.folder.join("control-plane");
        let pki = Pki::new(&folder)?;
        let mut namespaces = Vec::new();
        for (number, host) in HOSTS.iter().enumerate() {
            namespaces.push(lab.add_host(&format!("cp{}", number + 1), &host.map(String::from))?);
        }
        pki.server("server0", &[HOSTS[0][1]])?;
        pki.server("server1", &HOSTS[1])?;
        fs::write(folder.join("audit-policy.yaml"), AUDIT_POLICY)?;
        let namespaces: [String; 2] = namespaces.try_into().map_err(|_| anyhow::anyhow!("two hosts"))?;
        let data = folder.join("etcd").display().to_string();
        let peer = "http://127.0.0.1:2380";
        let etcd = [
            &format!("--data-dir={data}"),
            "--unsafe-no-fsync=true",
            "--log-level=error",
            &format!("--listen-client-urls={ETCD}"),
            &format!("--advertise-client-urls={ETCD}"),
            &format!("--listen-peer-urls={peer}"),
            &format!("--initial-advertise-peer-urls={peer}"),
            &format!("--initial-cluster=default={peer}"),
        ]
        .map(String::from);
        let etcd = spawn(&namespaces[0], &binaries.join("etcd"), &etcd, &folder.join("etcd.log"))?;
        let mut plane = Self {
            namespaces,
            binaries: binaries.into(),
            folder,
            pki,
            etcd,
            servers: [None, None],
            mirrored: BTreeMap::new(),
        };
        for index in [0, 1] {
            plane.spawn_server(index)?;
        }
        for index in [0, 1] {
            plane.wait_ready(index)?;
        }
        Ok(plane)
    }

    /// Starts a server that was stopped, and waits until it is ready.
    ///
    /// # Errors
    /// As [`ControlPlane::start`].
    pub(crate) fn start_server(&mut self, index: usize) -> Result<()> {
        self.spawn_server(index)?;
        self.wait_ready(index)
    }

    fn spawn_server(&mut self, index: usize) -> Result<()> {
        let file = |name: &str| self.pki.file(name);
        let arguments = [
            "--bind-address=::".to_owned(),
            format!("--secure-port={PORT}"),
            format!("--advertise-address={}", HOSTS[index][0]),
            format!("--etcd-servers={ETCD}"),
            format!("--client-ca-file={}", file("ca.crt")),
            format!("--tls-cert-file={}", file(&format!("server{index}.crt"))),
            format!("--tls-private-key-file={}", file(&format!("server{index}.key"))),
            "--service-account-issuer=https://kubernetes.default.svc".into(),
            format!("--service-account-key-file={}", file("sa.pub")),
            format!("--service-account-signing-key-file={}", file("sa.key")),
            format!("--service-cluster-ip-range={}", SERVICE_CIDRS.join(",")),
            "--authorization-mode=RBAC".into(),
            "--profiling=false".into(),
            "--shutdown-delay-duration=0s".into(),
            format!("--audit-policy-file={}", self.folder.join("audit-policy.yaml").display()),
            format!("--audit-log-path={}", self.audit_log(index).display()),
        ];
        let log = self.log(index);
        let binary = self.binaries.join("kube-apiserver");
        self.servers[index] = Some(spawn(&self.namespaces[index], &binary, &arguments, &log)?);
        Ok(())
    }

    fn audit_log(&self, index: usize) -> PathBuf {
        self.folder.join(format!("audit-{}.log", index + 1))
    }

    /// What the watched service account has asked the servers for since they were made, as
    /// (verb, API group, resource), and the paths that are no resources; whether it was let or not.
    ///
    /// # Errors
    /// When a server's audit log can't be read.
    pub(crate) fn asked(&self) -> Result<BTreeSet<(String, String, String)>> {
        let mut asked = BTreeSet::new();
        for index in [0, 1] {
            let path = self.audit_log(index);
            let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            // a server that was killed may have left half a line
            for entry in text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
                let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                let about = &entry["objectRef"];
                let resource = word(if about.is_null() { &entry["requestURI"] } else { &about["resource"] });
                asked.insert((word(&entry["verb"]), word(&about["apiGroup"]), resource));
            }
        }
        Ok(asked)
    }

    fn log(&self, index: usize) -> PathBuf {
        self.folder.join(format!("kube-apiserver-{}.log", index + 1))
    }

    fn wait_ready(&mut self, index: usize) -> Result<()> {
        let begin = Instant::now();
        while let Err(error) = self.request(index, "GET", "/readyz", JSON, "") {
            let child = self.servers[index].as_mut().context("no server")?;
            if child.try_wait()?.is_some() || begin.elapsed() > READY_LIMIT {
                bail!("kube-apiserver is not ready, see {}: {error:#}", self.log(index).display());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    }

    /// Whether a server was started and not killed.
    pub(crate) fn is_running(&self, index: usize) -> bool {
        self.servers[index].is_some()
    }

    /// Kills a server: its connections end without a word of warning.
    ///
    /// # Errors
    /// When it does not run.
    pub(crate) fn kill_server(&mut self, index: usize) -> Result<()> {
        let mut child = self.servers[index].take().context("this API server does not run")?;
        janitor::ended(child.id());
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// A server's URL; `family` 0 = IPv4, 1 = IPv6.
    pub(crate) fn url(index: usize, family: usize) -> String {
        let host = HOSTS[index][family];
        if family == 0 { format!("https://{host}:{PORT}") } else { format!("https://[{host}]:{PORT}") }
    }

    /// Makes the API hold what a folder of manifests holds; what it made and the folder lacks is deleted.
    ///
    /// # Errors
    /// When the server refuses an object.
    pub(crate) fn mirror(&mut self, manifests: &Path, server: usize) -> Result<()> {
        let mut wanted = BTreeMap::new();
        for entry in fs::read_dir(manifests)? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "yaml") {
                wanted.extend(items(&fs::read_to_string(&path)?)?.into_iter().map(|i| (i.path.clone(), i)));
            }
        }
        for (path, item) in &wanted {
            if self.mirrored.get(path) != Some(item) {
                self.apply_item(server, item)?;
            }
        }
        for path in self.mirrored.keys().filter(|path| !wanted.contains_key(*path)) {
            self.delete(server, path)?;
        }
        self.mirrored = wanted;
        Ok(())
    }

    /// Creates or changes all objects of a YAML text.
    ///
    /// # Errors
    /// When the server refuses one.
    pub(crate) fn apply(&self, server: usize, text: &str) -> Result<()> {
        items(text)?.iter().try_for_each(|item| self.apply_item(server, item))
    }

    /// Creates the object, or merges it into the one that is there; lists are replaced. (Server-side apply refuses a
    /// Node with two InternalIPs.)
    fn apply_item(&self, server: usize, item: &Item) -> Result<()> {
        let (collection, _) = item.path.rsplit_once('/').context("a path without a collection")?;
        let made = self.request(server, "POST", collection, JSON, &item.body);
        match made {
            Ok(_) => {}
            // 422: its own ClusterIPs are taken
            Err(error) if [": 409 ", ": 422 "].iter().any(|code| error.to_string().contains(code)) => {
                let changed = self.request(server, "PATCH", &item.path, MERGE, &item.body);
                changed.map_err(|second| second.context(error))?;
            }
            Err(error) => return Err(error),
        }
        if item.has_status {
            self.request(server, "PATCH", &format!("{}/status", item.path), MERGE, &item.body)?;
        }
        Ok(())
    }

    /// Deletes an object by its path.
    ///
    /// # Errors
    /// When it does not exist or the server refuses.
    pub(crate) fn delete(&self, server: usize, path: &str) -> Result<()> {
        self.request(server, "DELETE", path, JSON, "").map(drop)
    }

    /// A token of a service account of kube-system, as the kubelet asks for it.
    ///
    /// # Errors
    /// When the server refuses.
    pub(crate) fn token(&self, server: usize, account: &str) -> Result<String> {
        let path = format!("/api/v1/namespaces/kube-system/serviceaccounts/{account}/token");
        let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {"expirationSeconds": 3600}});
        let answer: Value =
            serde_json::from_str(&self.request(server, "POST", &path, JSON, &body.to_string())?)?;
        Ok(answer["status"]["token"].as_str().context("no token")?.to_owned())
    }

    /// An object or a list.
    ///
    /// # Errors
    /// When the server refuses.
    pub(crate) fn get(&self, server: usize, path: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.request(server, "GET", path, JSON, "")?)?)
    }

    /// Folder with `token` and `ca.crt`, as a pod has it.
    ///
    /// # Errors
    /// As [`ControlPlane::token`].
    pub(crate) fn account(&self, server: usize, account: &str) -> Result<PathBuf> {
        let folder = self.folder.join(account);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("token"), self.token(server, account)?)?;
        fs::copy(self.pki.file("ca.crt"), folder.join("ca.crt"))?;
        Ok(folder)
    }

    /// Text of a kubeconfig for a server and a service account's folder.
    pub(crate) fn kubeconfig(server: usize, family: usize, account: &Path) -> String {
        let file = |name: &str| account.join(name).display().to_string();
        json!({"apiVersion": "v1", "kind": "Config", "current-context": "lab",
            "clusters": [{"name": "lab", "cluster": {
                "server": Self::url(server, family), "certificate-authority": file("ca.crt")}}],
            "users": [{"name": "lb-agent", "user": {"tokenFile": file("token")}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lb-agent"}}]})
        .to_string()
    }

    /// Makes etcd forget all history.
    ///
    /// # Errors
    /// When etcd refuses.
    pub(crate) fn compact(&self) -> Result<()> {
        let ask = |path: &str, body: Value| -> Result<Value> {
            let url = format!("{ETCD}{path}");
            let words = ["curl", "-sS", "--fail-with-body", "-X", "POST", "-d", &body.to_string(), &url];
            Ok(serde_json::from_str(&run_in(&self.namespaces[0], &words, "")?)?)
        };
        let now = ask("/v3/kv/range", json!({"key": "AA=="}))?;
        let revision = now["header"]["revision"].as_str().context("etcd names no revision")?.to_owned();
        ask("/v3/kv/compaction", json!({"revision": revision, "physical": true})).map(drop)
    }

    /// One request as administrator; its body comes by standard input.
    fn request(&self, server: usize, method: &str, path: &str, kind: &str, body: &str) -> Result<String> {
        let name = "kubernetes.default.svc";
        let file = |name: &str| self.pki.file(name);
        let url = format!("https://{name}:{PORT}{path}");
        let resolve = format!("{name}:{PORT}:{}", HOSTS[server][0]);
        let kind = format!("Content-Type: {kind}");
        let (ca, cert, key) = (file("ca.crt"), file("admin.crt"), file("admin.key"));
        let mut words = vec![
            "curl",
            "-sS",
            "--max-time",
            "60",
            "-w",
            "\n%{http_code}",
            "--resolve",
            &resolve,
            "--cacert",
            &ca,
            "--cert",
            &cert,
            "--key",
            &key,
            "-X",
            method,
            "-H",
            &kind,
        ];
        if !body.is_empty() {
            words.extend(["--data-binary", "@-"]);
        }
        words.push(&url);
        let told =
            run_in(&self.namespaces[server], &words, body).with_context(|| format!("{method} {path}"))?;
        let (answer, status) = told.rsplit_once('\n').context("curl names no status")?;
        ensure!(status.starts_with('2'), "{method} {path}: {status} {answer}");
        Ok(answer.to_owned())
    }
}

fn spawn(namespace: &str, program: &Path, arguments: &[String], log: &Path) -> Result<Child> {
    ensure!(program.is_file(), "{} is missing", program.display());
    let log = File::options().create(true).append(true).open(log)?;
    let mut command = command(namespace, None, program)?;
    let child = command.args(arguments).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
    janitor::process(child.id());
    Ok(child)
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        for child in self.servers.iter_mut().flatten().chain([&mut self.etcd]) {
            janitor::ended(child.id());
            child.kill().ok();
            child.wait().ok();
        }
    }
}
