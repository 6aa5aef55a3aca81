//! Duties of kube-proxy towards the node that stay useful: connection tracking (B114), and the agent's own rank when
//! memory runs out. A failure is a warning with a cure; nothing depends on it.

use std::io;
use std::path::Path;

use crate::kubeproxy::Conntrack;
use crate::sys::proc_sys;

const MAX: &str = "net/netfilter/nf_conntrack_max";
const HASH_SIZE: &str = "/sys/module/nf_conntrack/parameters/hashsize";
/// More flows than this are never asked for (B114).
const MOST: u64 = 1_048_576;
/// Flows per hash bucket.
const PER_BUCKET: u64 = 4;

/// Values of the node to set: setting, as a path below /proc/sys, and number to write.
#[must_use]
pub fn sysctls(conntrack: &Conntrack, cpus: u64) -> Vec<(&'static str, u64)> {
    let max = conntrack.max_per_core.map(|each| each.saturating_mul(cpus).max(conntrack.min).min(MOST));
    let seconds = |time: Option<std::time::Duration>| time.map(|t| t.as_secs());
    let all = [
        (MAX, max),
        ("net/netfilter/nf_conntrack_tcp_timeout_established", seconds(conntrack.tcp_established)),
        ("net/netfilter/nf_conntrack_tcp_timeout_close_wait", seconds(conntrack.tcp_close_wait)),
        ("net/netfilter/nf_conntrack_tcp_be_liberal", conntrack.tcp_be_liberal.then_some(1)),
        ("net/netfilter/nf_conntrack_udp_timeout", seconds(conntrack.udp)),
        ("net/netfilter/nf_conntrack_udp_timeout_stream", seconds(conntrack.udp_stream)),
    ];
    all.into_iter().filter_map(|(file, value)| Some((file, value?))).collect()
}

/// Sets what is not so yet; the answer names what failed. Without connection tracking in the kernel nothing is set.
#[must_use]
pub fn apply(sysctls: &[(&'static str, u64)]) -> Vec<String> {
    if !proc_sys::file(MAX).exists() {
        return Vec::new();
    }
    let mut failed = Vec::new();
    for (setting, value) in sysctls {
        if let Err(error) = set(&proc_sys::file(setting), *value) {
            let name = setting.replace('/', ".");
            failed.push(format!(
                "{name} cannot be set to {value} ({error}): run `sysctl -w {name}={value}` on the node, or \
                 give the agent its /proc/sys writable (LB_PROC_SYS), or have the field of conntrack in --config say what the node has"
            ));
        }
    }
    let max = sysctls.iter().find(|(file, _)| *file == MAX).map_or(0, |(_, value)| *value);
    if failed.is_empty()
        && number(Path::new(HASH_SIZE)).is_ok_and(|now| now < max / PER_BUCKET)
        && let Err(error) = std::fs::write(HASH_SIZE, (max / PER_BUCKET).to_string())
    {
        failed.push(format!(
            "{HASH_SIZE} cannot be raised to {} ({error}): connection tracking is slower when full; write it on the node",
            max / PER_BUCKET
        ));
    }
    failed
}

/// Sets the rank of this process when memory runs out; the kernel's own value is kept on failure.
///
/// # Errors
/// To lower it needs CAP_SYS_RESOURCE.
pub fn set_oom_score(score: i16) -> io::Result<()> {
    let file = "/proc/self/oom_score_adj";
    if std::fs::read_to_string(file)?.trim() == score.to_string() {
        return Ok(());
    }
    std::fs::write(file, score.to_string())
}

fn set(file: &Path, value: u64) -> io::Result<()> {
    if number(file)? == value {
        return Ok(());
    }
    std::fs::write(file, value.to_string())
}

fn number(file: &Path) -> io::Result<u64> {
    std::fs::read_to_string(file)?.trim().parse().map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubeproxy::parse;

    fn wanted(conntrack: &str, cpus: u64) -> Vec<(String, u64)> {
        let config = parse(&format!("conntrack: {conntrack}")).unwrap().config;
        let short = |file: &str| file.rsplit('/').next().unwrap_or_default().replace("nf_conntrack_", "");
        sysctls(&config.conntrack, cpus).into_iter().map(|(file, value)| (short(file), value)).collect()
    }

    #[test]
    fn b114_defaults_and_bounds() {
        let of = |cpus| wanted("{}", cpus);
        let rest =
            [("tcp_timeout_established".to_owned(), 86_400), ("tcp_timeout_close_wait".to_owned(), 3600)];
        assert_eq!(of(2), [&[("max".to_owned(), 131_072)], rest.as_slice()].concat(), "at least min");
        assert_eq!(of(8)[0].1, 262_144);
        assert_eq!(of(256)[0].1, 1_048_576, "the cap");
    }

    #[test]
    fn b114_zero_leaves_alone_and_the_rest_is_set() {
        let none = "{maxPerCore: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}";
        assert_eq!(wanted(none, 2), []);
        let all = "{maxPerCore: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s, tcpBeLiberal: true, \
                   udpTimeout: 10s, udpStreamTimeout: 1m}";
        let expected = [("tcp_be_liberal", 1), ("udp_timeout", 10), ("udp_timeout_stream", 60)];
        assert_eq!(wanted(all, 2), expected.map(|(name, value)| (name.to_owned(), value)));
    }
}
