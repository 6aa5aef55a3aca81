//! What the maps cost. Since kernel 5.11 they count against the memory cgroup of whoever made them: the agent's pod.

use std::fmt::Write as _;
use std::os::fd::AsRawFd;

use lb_common::abi::names;

use super::pins::Pins;
use crate::sys::bpf;

/// Memory of the pinned maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Bytes by map, largest first. Tables without preallocation count as far as they are filled (kernel 6.4; older
    /// ones say what a full table may take).
    pub maps: Vec<(&'static str, u64)>,
}

impl Memory {
    /// Asks the kernel; a map that it does not tell of is left out.
    pub(super) fn of(pins: &Pins) -> Self {
        let bytes = |name: &'static str| {
            let fd = bpf::obj_get(&pins.map(name)).ok()?;
            let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).ok()?;
            Some((name, memlock(&info)?))
        };
        let mut maps: Vec<_> = names::PINNED_MAPS.iter().filter_map(|name| bytes(name)).collect();
        maps.sort_by_key(|(name, bytes)| (std::cmp::Reverse(*bytes), *name));
        Memory { maps }
    }

    /// Bytes of all maps.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.maps.iter().map(|(_, bytes)| bytes).sum()
    }

    /// The largest maps in words: `LB_CT6 26.0 MiB, LB_CT4 ...`.
    #[must_use]
    pub fn largest(&self, count: usize) -> String {
        let mut text = String::new();
        for (map, bytes) in self.maps.iter().take(count) {
            let comma = if text.is_empty() { "" } else { ", " };
            // writing to a String does not fail
            let _ = write!(text, "{comma}{map} {}", mebibytes(*bytes));
        }
        text
    }
}

/// The field `memlock` of a map's fdinfo, in bytes.
fn memlock(fdinfo: &str) -> Option<u64> {
    fdinfo.lines().find_map(|line| line.strip_prefix("memlock:"))?.trim().parse().ok()
}

/// Bytes for people.
#[must_use]
pub fn mebibytes(bytes: u64) -> String {
    format!("{}.{} MiB", bytes >> 20, ((bytes & 0xf_ffff) * 10) >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_for_people() {
        let memory = Memory { maps: vec![("A", 3 << 20), ("B", 1 << 19)] };
        assert_eq!((memory.total(), memory.largest(1).as_str()), (3_670_016, "A 3.0 MiB"));
        assert_eq!(mebibytes(1 << 19), "0.5 MiB");
    }

    #[test]
    fn fdinfo_as_the_kernel_prints_it() {
        let text = "pos:\t0\nmap_type:\t9\nmax_entries:\t131072\nmemlock:\t23068672\nmap_id:\t7\n";
        assert_eq!(memlock(text), Some(23_068_672));
        assert_eq!(memlock("pos:\t0\n"), None);
    }
}
