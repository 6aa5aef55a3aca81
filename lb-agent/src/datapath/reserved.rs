//! `net.ipv4.ip_local_reserved_ports`: keeps ephemeral sockets off the NodePort range, and gives it back.

use std::io;

use crate::net::parse_ports;
use crate::sys::proc_sys;

const SETTING: &str = "net/ipv4/ip_local_reserved_ports";
/// Inclusive.
type Range = (u16, u16);

/// The parts of `want` that are not reserved yet.
pub(super) fn missing(want: Range) -> io::Result<Vec<Range>> {
    Ok(subtract(&[want], &read()?))
}

/// Reserves ranges beside those there are.
pub(super) fn add(ranges: &[Range]) -> io::Result<()> {
    if ranges.is_empty() {
        return Ok(());
    }
    let mut all = read()?;
    all.extend(ranges);
    write(&all)
}

/// Gives ranges back; other reservations stay.
pub(super) fn remove(ranges: &[Range]) -> io::Result<()> {
    if ranges.is_empty() {
        return Ok(());
    }
    write(&subtract(&read()?, ranges))
}

fn read() -> io::Result<Vec<Range>> {
    let text = std::fs::read_to_string(proc_sys::file(SETTING))?;
    parse_ports(&text).ok_or_else(|| io::Error::other(format!("unexpected content {text:?}")))
}

fn write(ranges: &[Range]) -> io::Result<()> {
    let parts: Vec<String> = ranges
        .iter()
        .map(|(min, max)| if min == max { min.to_string() } else { format!("{min}-{max}") })
        .collect();
    // An empty list is written as an empty line.
    std::fs::write(proc_sys::file(SETTING), parts.join(",") + "\n")
}

/// What of `from` is in none of `minus`.
fn subtract(from: &[Range], minus: &[Range]) -> Vec<Range> {
    let mut left: Vec<(u32, u32)> = from.iter().map(|r| (r.0.into(), r.1.into())).collect();
    for (min, max) in minus.iter().map(|r| (u32::from(r.0), u32::from(r.1))) {
        left = left
            .into_iter()
            .flat_map(|(a, b)| [(a, b.min(min.saturating_sub(1))), (a.max(max + 1), b)])
            .filter(|(a, b)| a <= b && !(min <= *a && *b <= max))
            .collect();
        left.dedup();
    }
    // Ports fit, since they came from ports.
    left.into_iter().map(|(a, b)| (a as u16, b as u16)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_of_ranges() {
        assert_eq!(subtract(&[(10, 20)], &[]), [(10, 20)]);
        assert_eq!(subtract(&[(10, 20)], &[(12, 14)]), [(10, 11), (15, 20)]);
        assert_eq!(subtract(&[(10, 20)], &[(5, 12), (20, 30)]), [(13, 19)]);
        assert_eq!(subtract(&[(10, 20)], &[(0, 65535)]), []);
        assert_eq!(subtract(&[(10, 20)], &[(30, 40)]), [(10, 20)]);
        assert_eq!(subtract(&[(10, 20), (50, 50)], &[(50, 50)]), [(10, 20)]);
        assert_eq!(subtract(&[(0, 3)], &[(0, 0)]), [(1, 3)]);
    }
}
