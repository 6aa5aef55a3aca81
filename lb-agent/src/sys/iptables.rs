//! The tables of legacy iptables, read by getsockopt(2) (`linux/netfilter_ipv4/ip_tables.h`, and its IPv6 twin).

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// `IPT_SO_GET_INFO` and `IPT_SO_GET_ENTRIES`; the same numbers in IPv6.
const GET_INFO: libc::c_int = 64;
const GET_ENTRIES: libc::c_int = 65;
/// `struct ipt_getinfo`: name, valid hooks, 5 entries, 5 underflows, number of entries, their size.
const INFO: usize = 84;
const INFO_HOOKS: usize = 32;
const INFO_ENTRY: usize = 36;
const INFO_UNDERFLOW: usize = 56;
const INFO_SIZE: usize = 80;
/// Where the entries begin in `struct ipt_get_entries`.
const HEADER: usize = 40;
/// Where an entry says how far its target is: in `struct ipt_entry` and in `struct ip6t_entry`.
const TARGET_OFFSET: [usize; 2] = [88, 140];
/// Sizes of these structures: matches begin behind them.
const HEAD: [usize; 2] = [112, 168];
/// Where a standard target has its verdict, and the verdict DROP there.
const VERDICT: usize = 32;
const DROP: i32 = -1;

/// A table.
#[derive(Debug)]
pub struct Table {
    /// Its entries, as the kernel keeps them.
    pub entries: Vec<u8>,
    /// Where the built-in chain of each hook begins in `entries`, bytes; `None` = it has none.
    entry: [Option<u32>; 5],
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

impl Table {
    /// Where the built-in chain of a hook begins; `None` = the table has none.
    #[must_use]
    pub fn start(&self, hook: usize) -> Option<usize> {
        usize::try_from((*self.entry.get(hook)?)?).ok()
    }

    /// The entry there is the policy of a built-in chain.
    #[must_use]
    pub fn is_policy(&self, at: usize) -> bool {
        (0..5).any(|hook| {
            self.start(hook).is_some()
                && self.underflow.get(hook).is_some_and(|u| usize::try_from(*u) == Ok(at))
        })
    }

    /// All entries in their order. Ends at one that is malformed.
    pub fn walk(&self) -> impl Iterator<Item = Entry<'_>> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let entry = self.at(at)?;
            at = entry.next;
            Some(entry)
        })
    }

    fn at(&self, at: usize) -> Option<Entry<'_>> {
        let place = TARGET_OFFSET[usize::from(self.six)];
        let bytes = self.entries.get(at..)?;
        let target = usize::from(u16::from_ne_bytes(field(bytes, place)?));
        let size = usize::from(u16::from_ne_bytes(field(bytes, place + 2)?));
        let bytes = bytes.get(..size)?;
        let matches = bytes.get(HEAD[usize::from(self.six)]..target)?;
        let data = bytes.get(target..)?;
        Some(Entry { at, next: at + size, target: name(data)?, matches, data })
    }
}

/// A rule, or the head of a chain.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// Where it begins.
    pub at: usize,
    /// Where the next one begins.
    pub next: usize,
    /// Name of its target; empty = the standard one.
    pub target: &'a str,
    matches: &'a [u8],
    data: &'a [u8],
}

impl<'a> Entry<'a> {
    /// Verdict of the standard target: negative, or where the chain begins that it leads to.
    #[must_use]
    pub fn verdict(&self) -> Option<i32> {
        if self.target.is_empty() { field(self.data, VERDICT).map(i32::from_ne_bytes) } else { None }
    }

    /// What the target `ERROR` holds: the name of the chain that begins behind it.
    #[must_use]
    pub fn error_name(&self) -> String {
        let text = self.data.get(VERDICT..).unwrap_or_default();
        String::from_utf8_lossy(text.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
    }

    /// Name, revision and data of each match.
    pub fn matches(&self) -> impl Iterator<Item = (&'a str, u8, &'a [u8])> {
        let mut rest = self.matches;
        std::iter::from_fn(move || {
            let size = usize::from(u16::from_ne_bytes(field(rest, 0)?));
            let one = rest.get(..size).filter(|one| one.len() >= VERDICT)?;
            rest = rest.get(size..)?;
            Some((name(one)?, *one.get(31)?, one.get(VERDICT..)?))
        })
    }
}

/// The name in the head of a match or target: 29 bytes behind its size.
fn name(head: &[u8]) -> Option<&str> {
    let text = head.get(2..31)?.split(|byte| *byte == 0).next()?;
    std::str::from_utf8(text).ok()
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
                let hooks = word(INFO_HOOKS);
                let entry =
                    std::array::from_fn(|hook| (hooks & 1 << hook != 0).then(|| word(INFO_ENTRY + 4 * hook)));
                return Ok(Table { entries: bytes, entry, underflow, six });
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
