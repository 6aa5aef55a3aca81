//! kube-proxy itself, and its IPVS services, as /proc tells.

use std::fs;

/// Processes of this name in the calling thread's network namespace.
pub(super) fn running(name: &str) -> Vec<u32> {
    let Ok(own) = fs::read_link("/proc/thread-self/ns/net") else { return Vec::new() };
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let here = |pid: &u32| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name)
            && fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|net| net == own)
    };
    pids.filter(here).collect()
}

/// The IPVS services and the interface of kube-proxy's ipvs mode, in words; `None` = there is no such interface.
pub(super) fn ipvs() -> Option<String> {
    let devices = fs::read_to_string("/proc/thread-self/net/dev").ok()?;
    devices.lines().find(|line| line.trim_start().starts_with("kube-ipvs0:"))?;
    let services = fs::read_to_string("/proc/thread-self/net/ip_vs").unwrap_or_default();
    let count =
        services.lines().filter(|line| ["TCP ", "UDP ", "SCTP", "FWM "].iter().any(|p| line.starts_with(p)));
    Some(format!("interface kube-ipvs0 and {} IPVS services", count.count()))
}
