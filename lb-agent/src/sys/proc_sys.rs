//! Where kernel settings can be written.

use std::path::PathBuf;

/// Names the folder that is the node's `/proc/sys`, writable: a container's own is read-only.
pub const VARIABLE: &str = "LB_PROC_SYS";

/// The file of a setting, such as `net/ipv4/ip_local_reserved_ports`: below `$LB_PROC_SYS` if it is there, else below
/// `/proc/sys`. Either way `net/` is that of the calling process's network namespace.
#[must_use]
pub fn file(setting: &str) -> PathBuf {
    let named = std::env::var_os(VARIABLE).map(|folder| PathBuf::from(folder).join(setting));
    named.filter(|path| path.exists()).unwrap_or_else(|| PathBuf::from("/proc/sys").join(setting))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_the_variable_it_is_proc_sys() {
        // The variable is set in a container only; tests must not change the environment of others.
        assert_eq!(file("net/ipv4/ip_forward"), PathBuf::from("/proc/sys/net/ipv4/ip_forward"));
    }
}
