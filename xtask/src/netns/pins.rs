//! What the agent leaves in the kernel, and that `lb-agent cleanup` leaves nothing.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{Case, Context, LOCAL, Side, neighbours, vips};
use crate::lab::node::Node;
use crate::run::output;

pub(super) const CASES: &[Case] = &[("cleanup_leaves_nothing_in_the_kernel", cleanup)];

/// All pins below a folder.
fn pins(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        // maps.debug and progs.debug belong to the file system itself
        if path.extension().is_some_and(|end| end == "debug") {
            continue;
        }
        if path.is_dir() { found.extend(pins(&path)) } else { found.push(path) }
    }
    found
}

/// What bpftool says of a pinned object as a map, program or link: (kind, description).
fn describe(pin: &Path) -> Result<(&'static str, Value)> {
    for kind in ["map", "prog", "link"] {
        let shown = output(Command::new("bpftool").args(["-j", kind, "show", "pinned"]).arg(pin));
        if let Some(value) = shown.ok().and_then(|text| serde_json::from_str::<Value>(&text).ok()) {
            // an array with one element in some versions
            let value = value.get(0).cloned().unwrap_or(value);
            if value.get("id").is_some() {
                return Ok((kind, value));
            }
        }
    }
    anyhow::bail!("bpftool can't tell what {} is", pin.display())
}

/// The kernel's number of a pinned map.
///
/// # Errors
/// When the node has no such pin.
pub(super) fn map_id(node: &Node, name: &str) -> Result<u64> {
    let all = pins(&node.bpffs);
    let pin = all.iter().find(|pin| pin.file_name().is_some_and(|n| n == name));
    let (_, map) = describe(pin.with_context(|| format!("no pin {name} in {}", node.bpffs.display()))?)?;
    map["id"].as_u64().context("a map without an id")
}

/// Kernel objects behind a node's pins, programs of links and maps of programs included: (kind, id).
fn objects(node: &Node) -> Result<Vec<(&'static str, u64)>> {
    let mut found = Vec::new();
    for pin in pins(&node.bpffs) {
        let (kind, value) = describe(&pin)?;
        found.push((kind, value["id"].as_u64().context("an object without an id")?));
        found.extend(value.get("prog_id").and_then(Value::as_u64).map(|id| ("prog", id)));
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

fn exists(kind: &str, id: u64) -> bool {
    output(Command::new("bpftool").args(["-j", kind, "show", "id", &id.to_string()])).is_ok()
}

fn cleanup(context: &mut Context) -> Result<()> {
    let agent = context.agent.clone();
    let mut all = Vec::new();
    for index in [0, 1] {
        let node = &mut context.lab.nodes[index];
        let found = objects(node)?;
        for kind in ["map", "prog", "link"] {
            ensure!(
                found.iter().any(|object| object.0 == kind),
                "{} has no {kind} behind its pins",
                node.name
            );
        }
        all.extend(found);
        node.stop_agent(libc::SIGTERM)?;
        node.agent_command(&agent, "cleanup")?;
        let left = pins(&node.bpffs);
        ensure!(left.is_empty(), "pins are left: {left:?}");
    }
    // the kernel frees objects a while after the last reference
    let begin = Instant::now();
    loop {
        let left: Vec<_> = all.iter().filter(|(kind, id)| exists(kind, *id)).collect();
        if left.is_empty() {
            break;
        }
        ensure!(begin.elapsed() < Duration::from_secs(5), "kernel objects are left: {left:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
    let answer = context.http(Side::Pod("p1b"), vips(LOCAL)[0])?;
    ensure!(answer.error.is_some(), "a Service still answers after cleanup: {answer:?}");
    neighbours::direct_traffic(context).context("after cleanup")
}
