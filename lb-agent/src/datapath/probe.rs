//! What this kernel can do, found out once.

use std::os::fd::AsFd;
use std::path::Path;

use lb_common::abi::CFG_CSUM_IPV6;

use super::DatapathError;
use crate::sys::bpf;

/// `BPF_TCX_INGRESS`.
pub(super) const TCX_INGRESS: u32 = 46;
/// `BPF_TCX_EGRESS`.
pub(super) const TCX_EGRESS: u32 = 47;
/// `BPF_FS_MAGIC`.
const BPF_FS: i64 = 0xcafe_4a11;
/// The oldest kernel with everything that the programs use.
const FLOOR: (u32, u32) = (6, 1);
/// The first one whose `bpf_l4_csum_replace` knows `BPF_F_IPV6`.
const CSUM_IPV6: (u32, u32) = (6, 16);

/// Refuses kernels below 6.1.
///
/// # Errors
/// [`DatapathError::Kernel`] with the release found.
pub(super) fn kernel_floor() -> Result<(), DatapathError> {
    let release = release();
    match version(&release) {
        Some(found) if found >= FLOOR => Ok(()),
        _ => Err(DatapathError::Kernel { release: release.trim().to_owned() }),
    }
}

/// `CFG_*` bits for what the programs can't find out themselves.
///
/// By version: a helper refuses a flag it does not know, so a backport that is not used costs less than a wrong guess.
pub(super) fn config_flags() -> u32 {
    if version(&release()) >= Some(CSUM_IPV6) { CFG_CSUM_IPV6 } else { 0 }
}

/// `uname -r`, with its line end.
pub(super) fn release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default()
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Whether the kernel has TCX links (6.6), asked with an interface that can't exist: such a kernel looks for it.
pub(super) fn tcx(program: impl AsFd) -> bool {
    let nowhere = i32::MAX as u32;
    match bpf::link_create(program, nowhere, TCX_INGRESS) {
        Ok(_) => true,
        Err(error) => error.raw_os_error() == Some(libc::ENODEV),
    }
}

/// Whether a folder is on a BPF file system.
pub(super) fn is_bpffs(folder: &Path) -> bool {
    crate::sys::fs_type(folder).is_ok_and(|kind| kind == BPF_FS)
}

/// Makes sure that `folder` is a BPF file system, by mounting one if it is not.
///
/// Not in a container (`$container` is set there, also by our image): what is mounted there ends with it, and with it
/// the pins that are to outlive the agent.
///
/// # Errors
/// [`DatapathError::Bpffs`] or [`DatapathError::BpffsInContainer`] with the command that cures it.
pub(super) fn bpffs(folder: &Path) -> Result<(), DatapathError> {
    let at = |source| DatapathError::Bpffs { folder: folder.to_owned(), source };
    if is_bpffs(folder) {
        return Ok(());
    }
    if std::env::var_os("container").is_some() {
        return Err(DatapathError::BpffsInContainer { folder: folder.to_owned() });
    }
    std::fs::create_dir_all(folder).map_err(at)?;
    crate::sys::mount_bpffs(folder).map_err(at)?;
    tracing::info!(folder = %folder.display(), "mounted a BPF file system");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases() {
        assert_eq!(version("6.18.44-fc-v657\n"), Some((6, 18)));
        assert_eq!(version("5.15.0-105-generic"), Some((5, 15)));
        assert_eq!(version("6.1"), Some((6, 1)));
        assert_eq!(version("weird"), None);
        assert!(version("5.19.1") < Some(FLOOR) && version("10.0") > Some(FLOOR));
    }
}
