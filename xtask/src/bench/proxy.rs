//! The real kube-proxy, where its binary is at hand: fed by an API of our own that tells what a folder of manifests
//! holds and never anything new, until its rules are in the kernel; then it is stopped, and they stay.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::kube::objects::items;
use crate::lab::node::Node;
use crate::lab::{janitor, netns};

/// Where the API listens in the node's own namespace.
const API: &str = "127.0.0.1:8001";
/// How long the first sync may take: 27 s were seen for 10,000 Services.
const PATIENCE: Duration = Duration::from_secs(120);
/// The Node, the Services, the slices and the ranges, as the API calls them.
const LISTS: [(&str, &str); 4] = [
    ("/api/v1/nodes", "Node"),
    ("/api/v1/services", "Service"),
    ("/apis/discovery.k8s.io/v1/endpointslices", "EndpointSlice"),
    ("/apis/networking.k8s.io/v1/servicecidrs", "ServiceCIDR"),
];

/// The binary: `$KUBEBUILDER_ASSETS`, or what the cluster lab or the api level has built.
pub(crate) fn binary() -> Option<PathBuf> {
    let named = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
    named.into_iter().chain(crate::kube::folders()).map(|at| at.join("kube-proxy")).find(|at| at.is_file())
}

/// Has kube-proxy program a node's rules for the objects in a folder, and stops it.
///
/// # Errors
/// When it ends by itself, or the rules are not there in time; the message names its log.
pub(crate) fn program(binary: &Path, node: &Node, manifests: &Path, mode: &str, vip: &str) -> Result<()> {
    let lists = Arc::new(lists(manifests)?);
    let stop = Arc::new(AtomicBool::new(false));
    let listener = netns::inside(&node.namespace, || Ok(TcpListener::bind(API)?))?;
    listener.set_nonblocking(true)?;
    let server = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || serve(&listener, &lists, &stop)
    });
    let done = run(binary, node, manifests, mode, vip);
    stop.store(true, Ordering::SeqCst);
    server.join().ok();
    done
}

fn run(binary: &Path, node: &Node, manifests: &Path, mode: &str, vip: &str) -> Result<()> {
    let folder = manifests.parent().context("no folder")?;
    let kubeconfig = folder.join("kubeconfig.json");
    fs::write(
        &kubeconfig,
        json!({"apiVersion": "v1", "kind": "Config", "current-context": "bench",
            "clusters": [{"name": "bench", "cluster": {"server": format!("http://{API}")}}],
            "users": [{"name": "bench", "user": {}}],
            "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench"}}]})
        .to_string(),
    )?;
    // the lab's own names addresses of NodePorts in a way that kube-proxy does not take
    let text = fs::read_to_string(&node.config)?.replace("mode: nftables", &format!("mode: {mode}"));
    let text: Vec<&str> = text.lines().filter(|line| !line.starts_with("nodePortAddresses")).collect();
    let text = text.join("\n") + "\n";
    let config = folder.join("kube-proxy.yaml");
    fs::write(&config, text + &format!("clientConnection: {{kubeconfig: {}}}\n", kubeconfig.display()))?;
    let log = folder.join("kube-proxy.log");
    let out = File::create(&log)?;
    let mut command = netns::command(&node.namespace, Some(&node.cgroup.join("agent")), binary)?;
    command.arg(format!("--config={}", config.display())).stdin(Stdio::null());
    let mut child = command.stdout(out.try_clone()?).stderr(out).spawn().context("kube-proxy")?;
    janitor::process(child.id());
    let begin = Instant::now();
    let done = loop {
        std::thread::sleep(Duration::from_millis(200));
        if let Some(status) = child.try_wait()? {
            break Err(anyhow::anyhow!("kube-proxy ended with {status}"));
        }
        if programmed(&node.namespace, mode, vip)? {
            break Ok(());
        }
        if begin.elapsed() > PATIENCE {
            break Err(anyhow::anyhow!("kube-proxy has no rule for {vip} after {PATIENCE:?}"));
        }
    };
    janitor::ended(child.id());
    child.kill().ok();
    child.wait().ok();
    done.with_context(|| fs::read_to_string(&log).unwrap_or_default())
}

/// kube-proxy writes all of its first sync at once, so the one Service says that all are there.
fn programmed(namespace: &str, mode: &str, vip: &str) -> Result<bool> {
    Ok(match mode {
        "nftables" => {
            let listed =
                netns::run_in(namespace, &["nft", "list", "map", "ip", "kube-proxy", "service-ips"], "");
            listed.is_ok_and(|text| text.contains(vip))
        }
        "iptables" => netns::run_in(namespace, &["iptables-save", "-t", "nat"], "")?.contains(vip),
        other => bail!("mode {other}"),
    })
}

/// Answers to lists by path.
fn lists(manifests: &Path) -> Result<BTreeMap<&'static str, String>> {
    let mut found: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
    for entry in fs::read_dir(manifests)? {
        let text = fs::read_to_string(entry?.path())?;
        for item in items(text.trim_start_matches("---\n"))? {
            let mut object: Value = serde_json::from_str(&item.body)?;
            let kind = object["kind"].as_str().unwrap_or_default().to_owned();
            object["metadata"]["resourceVersion"] = "1".into();
            object["metadata"]["uid"] = item.path.as_str().into();
            if let Some((path, _)) = LISTS.iter().find(|(_, name)| *name == kind) {
                found.entry(path).or_default().push(object);
            }
        }
    }
    let list = |(path, kind): &(&'static str, &str)| {
        let objects = found.remove(path).unwrap_or_default();
        let version = objects.first().map_or(json!("v1"), |first| first["apiVersion"].clone());
        let list = json!({"kind": format!("{kind}List"), "apiVersion": version,
            "metadata": {"resourceVersion": "1"}, "items": objects});
        (*path, list.to_string())
    };
    Ok(LISTS.iter().map(list).collect())
}

fn serve(listener: &TcpListener, lists: &Arc<BTreeMap<&'static str, String>>, stop: &Arc<AtomicBool>) {
    while !stop.load(Ordering::SeqCst) {
        let Ok((stream, _)) = listener.accept() else {
            std::thread::sleep(Duration::from_millis(10));
            continue;
        };
        let (lists, stop) = (Arc::clone(lists), Arc::clone(stop));
        // a connection that breaks is the client's affair
        std::thread::spawn(move || connection(stream, &lists, &stop).ok());
    }
}

fn connection(
    mut stream: TcpStream,
    lists: &BTreeMap<&'static str, String>,
    stop: &AtomicBool,
) -> Result<()> {
    stream.set_nonblocking(false)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let (mut line, mut length) = (String::new(), 0);
        ensure!(reader.read_line(&mut line)? > 0, "closed");
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            if let Some((name, value)) = header.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse()?;
            }
            if header.trim().is_empty() {
                break;
            }
        }
        reader.by_ref().take(length).read_to_end(&mut Vec::new())?;
        let target = line.split(' ').nth(1).context("no path")?;
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let answer = if query.contains("sendInitialEvents") {
            // no streaming lists here: clients list then
            (422, r#"{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Invalid","code":422}"#)
        } else if query.contains("watch=") {
            stream.write_all(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
            )?;
            while !stop.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(50));
            }
            return Ok(());
        } else if let Some(list) = lists.get(path) {
            (200, list.as_str())
        } else {
            // Events, and objects by their name
            (404, r#"{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404}"#)
        };
        write!(
            stream,
            "HTTP/1.1 {} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{}",
            answer.0,
            answer.1.len(),
            answer.1
        )?;
    }
}
