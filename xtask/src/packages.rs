//! Debian packages: what a bare machine lacks is installed, and said.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::run::{is_root, on_path, run, step};

/// Installs Debian packages, with a fresh package list when the first try fails.
///
/// # Errors
/// When apt-get fails twice.
pub(crate) fn apt_install(packages: &[&str], why: &str) -> Result<()> {
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        run(command
            .args(["-q", "-o", "Dpkg::Use-Pty=0"])
            .args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive"))
    };
    let install = [&["install", "-y", "--no-install-recommends"], packages].concat();
    step(&format!("apt-get install {} ({why})", packages.join(" ")), || {
        apt(&install).or_else(|_| apt(&["update"]).and_then(|()| apt(&install)))
    })
}

/// Sees to it that programs are on PATH; `wanted` pairs a program with its Debian package.
///
/// # Errors
/// When some are missing and can't be installed: the message names them and the cure.
pub(crate) fn need(wanted: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<_> = wanted.iter().filter(|(program, _)| !on_path(program)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let programs = missing.iter().map(|(program, _)| *program).collect::<Vec<_>>().join(", ");
    let mut packages: Vec<_> = missing.iter().map(|(_, package)| *package).collect();
    packages.dedup();
    if is_root() && on_path("apt-get") {
        apt_install(&packages, &format!("for {programs}")).with_context(|| cure(&programs, &packages))?;
        if missing.iter().all(|(program, _)| on_path(program)) {
            return Ok(());
        }
    }
    bail!(cure(&programs, &packages))
}

fn cure(programs: &str, packages: &[&str]) -> String {
    format!("missing: {programs}. As root, on Debian: apt-get install -y {}", packages.join(" "))
}

/// What the namespace clusters and their checks call, with Debian's packages.
pub(crate) const LAB: &[(&str, &str)] = &[
    ("ip", "iproute2"),
    ("tc", "iproute2"),
    ("bridge", "iproute2"),
    ("nsenter", "util-linux"),
    ("unshare", "util-linux"),
    ("mount", "mount"),
    ("nft", "nftables"),
    ("bpftool", "bpftool"),
];

/// What the conformance kit calls besides.
pub(crate) const CONFORMANCE: &[(&str, &str)] = &[
    ("setpriv", "util-linux"),
    ("ethtool", "ethtool"),
    ("conntrack", "conntrack"),
    ("openssl", "openssl"),
    ("python3", "python3"),
];

/// What the bench calls besides the namespace clusters' tools.
pub(crate) const BENCH: &[(&str, &str)] =
    &[("ethtool", "ethtool"), ("iptables-legacy-restore", "iptables"), ("iperf3", "iperf3")];

/// What boots another kernel.
pub(crate) const OTHER_KERNELS: &[(&str, &str)] =
    &[("qemu-system-x86_64", "qemu-system-x86"), ("busybox", "busybox-static"), ("ldd", "libc-bin")];

/// What a real control plane is driven by.
pub(crate) const CONTROL_PLANE: &[(&str, &str)] = &[("openssl", "openssl"), ("curl", "curl")];
