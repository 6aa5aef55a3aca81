//! kube-proxy's rules in the tables of legacy iptables, which have an interface of their own: they are found by a
//! system call, and removed by the node's `iptables-legacy`, since only that rewrites whole tables safely.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::rules::{is_kube_proxys, removal, restore_input, saved};
use crate::sys;

/// Tables that kube-proxy writes to.
const TABLES: [&str; 3] = ["nat", "filter", "mangle"];
/// The hook in the middle, as the kernel counts them.
const FORWARD: usize = 2;

/// What the legacy tables of one family hold.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Tables with chains of kube-proxy, as `nat`.
    pub(super) tables: Vec<&'static str>,
    /// FORWARD drops what no rule accepts.
    pub(super) forward_drops: bool,
}

/// The tables that exist; asking for others would make them.
pub(super) fn tables(six: bool) -> io::Result<Vec<String>> {
    let list = if six { "ip6_tables_names" } else { "ip_tables_names" };
    match std::fs::read_to_string(format!("/proc/thread-self/net/{list}")) {
        Ok(names) => Ok(names.lines().map(str::to_owned).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Looks at the tables that exist.
pub(super) fn look(six: bool) -> io::Result<Found> {
    let (names, mut found) = (tables(six)?, Found::default());
    for table in TABLES.into_iter().filter(|table| names.iter().any(|name| name == table)) {
        let rules = sys::iptables::read(table, six)?;
        if chain_names(&rules.entries).any(is_kube_proxys) {
            found.tables.push(table);
        }
        if table == "filter" {
            found.forward_drops = rules.policy_drops(FORWARD);
        }
    }
    Ok(found)
}

/// Names in a table's entries: chains begin with one, and so do targets that are no chains, which no rule of
/// kube-proxy's is mixed up with.
fn chain_names(entries: &[u8]) -> impl Iterator<Item = &str> {
    let words = entries.split(|byte| *byte == 0);
    words.filter_map(|word| {
        let at = word.windows(5).position(|part| part == b"KUBE-")?;
        std::str::from_utf8(word.get(at..)?).ok()
    })
}

/// Removes kube-proxy's rules from the tables of one family.
///
/// # Errors
/// The node's tools are not here (`None` as the source), or they refuse.
pub(super) fn remove(six: bool, tables: &[&str]) -> io::Result<Vec<String>> {
    let name = if six { "ip6tables-legacy" } else { "iptables-legacy" };
    let mut kept = Vec::new();
    for table in tables {
        let saved_text = run(&format!("{name}-save"), &["-t", table], "")?;
        let (chains, built_in, jumps) = saved(&saved_text);
        let removal = removal(&chains, &built_in, &jumps);
        run(&format!("{name}-restore"), &["--noflush", "-w", "5"], &restore_input(table, &removal))?;
        kept.extend(removal.kept.iter().map(|(chain, by)| {
            format!("{name} {table} {chain}, which the chain {by} uses, and what makes it work")
        }));
    }
    Ok(kept)
}

/// What to run where the tools are missing.
pub(super) fn by_hand(six: bool) -> String {
    let name = if six { "ip6tables" } else { "iptables" };
    format!(
        "{name}-legacy-save and {name}-legacy-restore are not here; run this command where they are (the package \
         iptables of the node), or `kube-proxy --cleanup` from kube-proxy's image"
    )
}

fn run(name: &str, arguments: &[&str], input: &str) -> io::Result<String> {
    let program =
        find(name).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no {name} here")))?;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(io::Error::other(format!("{name}: {}", String::from_utf8_lossy(&output.stderr).trim())))
}

fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    folders.map(|folder| folder.join(name)).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_are_found_in_a_tables_entries() {
        let entries = b"\0\x01\x02ERROR\0\0\0\x03KUBE-SVC-ABC\0\0\0KUBE-FIREWALL\0";
        let names: Vec<&str> = chain_names(entries).collect();
        assert_eq!(names, ["KUBE-SVC-ABC", "KUBE-FIREWALL"]);
        assert!(is_kube_proxys(names[0]) && !is_kube_proxys(names[1]));
    }
}
