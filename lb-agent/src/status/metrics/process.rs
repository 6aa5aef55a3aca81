//! Metrics of the process itself, under the names that every Prometheus client library gives them.

use std::fs;

use crate::sys;

/// `USER_HZ`: the unit of times in /proc, the same on every architecture Linux runs on today.
const TICKS: f64 = 100.0;

/// One reading of /proc/self.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Process {
    /// User and system time, seconds.
    pub(super) cpu_seconds: f64,
    /// Start, seconds since 1970.
    pub(super) start_time: f64,
    /// Bytes.
    pub(super) virtual_memory: u64,
    /// Bytes.
    pub(super) resident_memory: u64,
    /// Open descriptors.
    pub(super) open_fds: u64,
    /// Most that it may open; 0 = no limit.
    pub(super) max_fds: u64,
}

/// Reads; `None` = /proc is not there.
pub(super) fn read() -> Option<Process> {
    let boot = fs::read_to_string("/proc/stat").ok()?;
    let boot = boot.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    let mut process = parse(&fs::read_to_string("/proc/self/stat").ok()?, boot)?;
    process.open_fds = fs::read_dir("/proc/self/fd").ok()?.count().try_into().unwrap_or(0);
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let files = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    process.max_fds = files.split_whitespace().next()?.parse().unwrap_or(0);
    Some(process)
}

/// Reads /proc/PID/stat (proc(5)); `boot` = seconds since 1970. The name in brackets may hold anything.
fn parse(stat: &str, boot: f64) -> Option<Process> {
    let (_, behind) = stat.rsplit_once(") ")?;
    let words: Vec<&str> = behind.split(' ').collect();
    // Field 3 of the manual is word 0.
    let number = |field: usize| words.get(field - 3)?.parse::<u64>().ok();
    let ticks = |field| number(field).map(|n| n as f64 / TICKS);
    Some(Process {
        cpu_seconds: ticks(14)? + ticks(15)?,
        start_time: boot + ticks(22)?,
        virtual_memory: number(23)?,
        resident_memory: number(24)? * sys::page_size(),
        ..Process::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_proc_stat() {
        let stat =
            "7 (a) b) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 4 0 1000 8192 3 18446744073709551615";
        let found = parse(stat, 5000.0).unwrap();
        assert_eq!((found.cpu_seconds, found.start_time, found.virtual_memory), (3.0, 5010.0, 8192));
        assert_eq!(found.resident_memory, 3 * sys::page_size());
        assert!(read().unwrap().open_fds > 2);
    }
}
