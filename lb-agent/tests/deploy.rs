//! What `deploy/` says is what the agent understands: its flags, variables, configuration, and nothing privileged.
//!
//! Rendering needs kubectl (on PATH, or in `$KUBEBUILDER_ASSETS`); without it the parts are checked one by one.

use std::path::{Path, PathBuf};
use std::process::Command;

use clap::{CommandFactory, Parser};
use lb_agent::config::Cli;
use lb_agent::kubeproxy;
use serde::Deserialize as _;
use serde_yaml_ng::Value;

const OVERLAYS: [&str; 4] = ["base", "overlays/kubeadm", "overlays/kind", "overlays/k3s"];

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

fn documents(text: &str) -> Vec<Value> {
    serde_yaml_ng::Deserializer::from_str(text).map(|d| Value::deserialize(d).expect("YAML")).collect()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(deploy().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Walks down a path such as `spec/containers/0/image`.
fn at<'a>(value: &'a Value, path: &str) -> &'a Value {
    path.split('/').fold(value, |value, step| {
        let next = match step.parse::<usize>() {
            Ok(index) => value.get(index),
            Err(_name) => value.get(step),
        };
        next.unwrap_or_else(|| panic!("no {step} of {path} in {value:?}"))
    })
}

fn texts(value: &Value) -> Vec<&str> {
    value.as_sequence().expect("a list").iter().map(|item| item.as_str().expect("a text")).collect()
}

fn strings(value: &Value, key: &str) -> Vec<String> {
    let list = value.as_sequence().expect("a list").iter();
    list.map(|item| item.get(key).and_then(Value::as_str).expect(key).to_owned()).collect()
}

fn assert_understood(arguments: &[&str], what: &str) {
    let all = ["lb-agent"].into_iter().chain(arguments.iter().copied());
    if let Err(error) = Cli::try_parse_from(all) {
        panic!("{what}: {error}");
    }
}

/// Checks a DaemonSet's only container and its volumes.
fn assert_sound(set: &Value, what: &str) {
    let pod = at(set, "spec/template/spec");
    let container = at(pod, "containers/0");
    assert_understood(&texts(at(container, "args")), what);

    let command = Cli::command();
    let known: Vec<String> = command
        .get_subcommands()
        .flat_map(|sub| sub.get_arguments().filter_map(|argument| argument.get_env()))
        .map(|name| name.to_string_lossy().into_owned())
        .chain([lb_agent::sys::proc_sys::VARIABLE.to_owned()])
        .collect();
    for name in strings(at(container, "env"), "name") {
        assert!(known.contains(&name), "{what}: nothing reads the variable {name}");
    }

    let security = at(container, "securityContext");
    assert_eq!(texts(at(security, "capabilities/add")), ["BPF", "NET_ADMIN", "PERFMON"], "{what}");
    assert_eq!(texts(at(security, "capabilities/drop")), ["ALL"], "{what}");
    assert_eq!(at(security, "readOnlyRootFilesystem"), &Value::Bool(true), "{what}");
    assert!(security.get("privileged").is_none() && pod.get("hostPID").is_none(), "{what}");

    let volumes = strings(at(pod, "volumes"), "name");
    let mounts = strings(at(container, "volumeMounts"), "name");
    assert_eq!(volumes, mounts, "{what}: volumes and their mounts");
}

#[test]
fn the_base_is_what_the_agent_understands_and_asks_for_no_more() {
    let sets = documents(&read("base/daemonset.yaml"));
    assert_sound(&sets[0], "base/daemonset.yaml");
}

#[test]
fn flags_of_components_and_overlays_exist() {
    let mut seen = 0;
    for folder in ["components", "overlays"] {
        for entry in std::fs::read_dir(deploy().join(folder)).expect(folder) {
            let path = entry.expect("entry").path().join("kustomization.yaml");
            let text = std::fs::read_to_string(&path).expect("a kustomization");
            let flags = text.lines().filter_map(|line| line.trim().strip_prefix("value: --"));
            for flag in flags {
                seen += 1;
                assert_understood(&["run", &format!("--{flag}")], &path.display().to_string());
            }
        }
    }
    assert!(seen >= 4, "only {seen} flags were found");
}

#[test]
fn b163_the_configurations_are_known_to_the_last_field() {
    for path in ["base/config.yaml", "overlays/k3s/config.yaml"] {
        let parsed = kubeproxy::parse(&read(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        assert_eq!(parsed.warnings, [""; 0], "{path}");
    }
}

#[test]
fn kubectl_renders_every_overlay() {
    let named = std::env::var_os("KUBEBUILDER_ASSETS").map(|folder| PathBuf::from(folder).join("kubectl"));
    let kubectl = named.filter(|path| path.is_file()).unwrap_or_else(|| "kubectl".into());
    if Command::new(&kubectl).args(["kustomize", "--help"]).output().is_err() {
        eprintln!("SKIP  rendering deploy/: no kubectl on PATH or in $KUBEBUILDER_ASSETS");
        return;
    }
    for overlay in OVERLAYS {
        let done =
            Command::new(&kubectl).arg("kustomize").arg(deploy().join(overlay)).output().expect("kubectl");
        assert!(done.status.success(), "{overlay}: {}", String::from_utf8_lossy(&done.stderr));
        let rendered = documents(&String::from_utf8_lossy(&done.stdout));
        let of = |kind: &str| {
            let found: Vec<_> =
                rendered.iter().filter(|d| d.get("kind").and_then(Value::as_str) == Some(kind)).collect();
            assert_eq!(found.len(), 1, "{overlay}: {kind}");
            found[0]
        };
        let set = of("DaemonSet");
        assert_sound(set, overlay);
        assert_eq!(at(set, "metadata/namespace"), "kube-system", "{overlay}");
        let account = at(of("ServiceAccount"), "metadata/name");
        assert_eq!(at(set, "spec/template/spec/serviceAccountName"), account, "{overlay}");
        assert_eq!(at(of("ClusterRoleBinding"), "subjects/0/name"), account, "{overlay}");
        // The generated name carries a hash, and the volume follows it.
        let config = at(of("ConfigMap"), "metadata/name");
        let volumes = at(set, "spec/template/spec/volumes").as_sequence().expect("volumes");
        let used = volumes.iter().filter_map(|volume| volume.get("configMap")?.get("name"));
        assert!(used.into_iter().any(|name| name == config), "{overlay}: nothing mounts {config:?}");
    }
}
