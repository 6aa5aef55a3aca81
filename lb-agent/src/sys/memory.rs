//! How much memory this process may count on.

use std::path::Path;

/// Bytes of the machine's memory; less if our control group has a limit that would not hold the tables of a machine
/// of that size beside the agent. 0 if nothing tells.
#[must_use]
pub fn memory() -> u64 {
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| total(&text));
    // A container sees its own group here; on the node itself there is no limit at the root.
    let limits = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    smaller(machine.unwrap_or(0), limits.iter().filter_map(|path| limit(Path::new(path))))
}

/// Tables get a few hundredths of a machine, but may take a good part of a limit that was made for them.
fn smaller(machine: u64, limits: impl Iterator<Item = u64>) -> u64 {
    /// A limit of 1 GiB stands for a machine of 16 GiB.
    const SHARE: u64 = 16;
    limits.map(|limit| limit.saturating_mul(SHARE)).fold(machine, u64::min)
}

fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib << 10)
}

/// A limit in bytes; `max` is none.
fn limit(file: &Path) -> Option<u64> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_or_its_group() {
        const GIB: u64 = 1 << 30;
        assert_eq!(total("MemTotal:       24594420 kB\nMemFree: 1 kB\n"), Some(24_594_420 << 10));
        assert_eq!(smaller(64 * GIB, [].into_iter()), 64 * GIB);
        assert_eq!(smaller(64 * GIB, [GIB].into_iter()), 16 * GIB);
        assert_eq!(smaller(4 * GIB, [GIB, u64::MAX].into_iter()), 4 * GIB);
    }
}
