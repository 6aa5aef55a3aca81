//! Port ranges under /proc/sys/net/ipv4, of the calling thread's network namespace.

use std::io;

use super::NetError;

const EPHEMERAL: &str = "/proc/sys/net/ipv4/ip_local_port_range";
const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// `net.ipv4.ip_local_port_range`, inclusive.
pub(super) fn ephemeral() -> Result<(u16, u16), NetError> {
    let at = |source| NetError::Proc { path: EPHEMERAL, source };
    let text = std::fs::read_to_string(EPHEMERAL).map_err(at)?;
    parse_pair(&text).ok_or_else(|| at(io::Error::other(format!("unexpected content {text:?}"))))
}

/// `net.ipv4.ip_local_reserved_ports` as inclusive ranges, ascending.
pub(super) fn reserved() -> Result<Vec<(u16, u16)>, NetError> {
    let at = |source| NetError::Proc { path: RESERVED, source };
    let text = std::fs::read_to_string(RESERVED).map_err(at)?;
    parse_ports(&text).ok_or_else(|| at(io::Error::other(format!("unexpected content {text:?}"))))
}

fn parse_pair(text: &str) -> Option<(u16, u16)> {
    let mut words = text.split_whitespace().map(str::parse);
    Some((words.next()?.ok()?, words.next()?.ok()?))
}

/// Parses the kernel's list of ports, such as `53,8000-8010`; an empty text is an empty list.
pub(crate) fn parse_ports(text: &str) -> Option<Vec<(u16, u16)>> {
    let text = text.trim();
    if text.is_empty() {
        return Some(Vec::new());
    }
    text.split(',')
        .map(|part| {
            let (min, max) = part.split_once('-').unwrap_or((part, part));
            Some((min.trim().parse().ok()?, max.trim().parse().ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_as_the_kernel_prints_them() {
        assert_eq!(parse_ports("\n"), Some(vec![]));
        assert_eq!(parse_ports("53,8000-8010\n"), Some(vec![(53, 53), (8000, 8010)]));
        assert_eq!(parse_ports("53,x"), None);
        assert_eq!(parse_pair("32768\t60999\n"), Some((32768, 60999)));
        assert_eq!(parse_pair("32768"), None);
    }
}
