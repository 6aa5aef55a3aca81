//! The tables of legacy iptables, read by getsockopt(2) (`linux/netfilter_ipv4/ip_tables.h`, and its IPv6 twin).

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// `IPT_SO_GET_INFO` and `IPT_SO_GET_ENTRIES`; the same numbers in IPv6.
const GET_INFO: libc::c_int = 64;
const GET_ENTRIES: libc::c_int = 65;
/// `struct ipt_getinfo`: name, valid hooks, 5 entries, 5 underflows, number of entries, their size.
const INFO: usize = 84;
const INFO_UNDERFLOW: usize = 56;
const INFO_SIZE: usize = 80;
/// Where the entries begin in `struct ipt_get_entries`.
const HEADER: usize = 40;
/// Where an entry says how far its target is: in `struct ipt_entry` and in `struct ip6t_entry`.
const TARGET_OFFSET: [usize; 2] = [88, 140];
/// Where a standard target has its verdict, and the verdict DROP there.
const VERDICT: usize = 32;
const DROP: i32 = -1;

/// A table.
#[derive(Debug)]
pub struct Table {
    /// Its entries, as the kernel keeps them.
    pub entries: Vec<u8>,
    /// Where the policy of each hook is in `entries`, bytes.
    underflow: [u32; 5],
    six: bool,
}

impl Table {
    /// Whether the built-in chain of a hook (0 = PREROUTING .. 4 = POSTROUTING) drops what no rule accepts; the table
    /// must have that chain.
    #[must_use]
    pub fn policy_drops(&self, hook: usize) -> bool {
        let verdict = || {
            let entry = usize::try_from(*self.underflow.get(hook)?).ok()?;
            let at = entry + TARGET_OFFSET[usize::from(self.six)];
            let target = usize::from(u16::from_ne_bytes(field(&self.entries, at)?));
            Some(i32::from_ne_bytes(field(&self.entries, entry + target + VERDICT)?))
        };
        verdict() == Some(DROP)
    }
}

/// Reads a table of the calling thread's network namespace. A table that does not exist yet is made by this: look into
/// `/proc/net/ip_tables_names` first.
///
/// # Errors
/// No CAP_NET_ADMIN, no such table, or it grew during each of five tries.
pub fn read(table: &str, six: bool) -> io::Result<Table> {
    let (domain, level) =
        if six { (libc::AF_INET6, libc::IPPROTO_IPV6) } else { (libc::AF_INET, libc::IPPROTO_IP) };
    // SAFETY: socket() takes no pointers.
    let fd = unsafe { libc::socket(domain, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: socket() has just returned this descriptor and nobody else knows it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut last = None;
    for _ in 0..5 {
        let info = get(&socket, level, GET_INFO, table, INFO, None)?;
        let word = |at| field(&info, at).map(u32::from_ne_bytes).unwrap_or_default();
        let size = word(INFO_SIZE);
        let underflow = std::array::from_fn(|hook| word(INFO_UNDERFLOW + 4 * hook));
        let length = HEADER + usize::try_from(size).unwrap_or_default();
        // EAGAIN: it has another size by now.
        match get(&socket, level, GET_ENTRIES, table, length, Some(size)) {
            Ok(mut bytes) => {
                bytes.drain(..HEADER.min(bytes.len()));
                return Ok(Table { entries: bytes, underflow, six });
            }
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| io::ErrorKind::TimedOut.into()))
}

/// getsockopt() with a buffer of `length` bytes that begins with the table's name and, perhaps, the size of entries.
fn get(
    socket: &OwnedFd,
    level: libc::c_int,
    what: libc::c_int,
    table: &str,
    length: usize,
    size: Option<u32>,
) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0_u8; length];
    // 32 bytes hold the name and its NUL.
    for (to, from) in buffer.iter_mut().take(31).zip(table.bytes()) {
        *to = from;
    }
    if let (Some(size), Some(to)) = (size, buffer.get_mut(32..36)) {
        to.copy_from_slice(&size.to_ne_bytes());
    }
    let mut len = libc::socklen_t::try_from(length).map_err(io::Error::other)?;
    // SAFETY: `buffer` and `len` are live for the call, and `len` is the size of `buffer`.
    let rc = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, what, buffer.as_mut_ptr().cast(), &raw mut len)
    };
    if rc == 0 { Ok(buffer) } else { Err(io::Error::last_os_error()) }
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}
