//! Addresses as the API may hold them: leading zeros are decimal (B11).

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

/// Reads an address; an IPv4-mapped IPv6 address is IPv4, as everywhere in Kubernetes.
#[must_use]
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    if text.contains(':') {
        return text.parse::<IpAddr>().ok().map(|a| a.to_canonical());
    }
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        *octet = decimal(parts.next()?, u64::from(u8::MAX))?.try_into().ok()?;
    }
    parts.next().is_none().then_some(IpAddr::V4(Ipv4Addr::from(octets)))
}

/// Reads a CIDR and clears the bits behind its prefix.
#[must_use]
pub fn parse_net(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    let address = parse_ip(address)?;
    let length = u8::try_from(decimal(length, 128)?).ok()?;
    Some(IpNet::new(address, length).ok()?.trunc())
}

fn decimal(text: &str, max: u64) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let number = if digits { text.parse::<u64>().ok()? } else { return None };
    (number <= max).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn b11_leading_zeros_are_decimal() {
        assert_eq!(parse_ip("10.020.0.010"), Some(IpAddr::from([10, 20, 0, 10])));
        assert_eq!(parse_net("10.000.0.0/025").map(|n| n.to_string()), Some("10.0.0.0/25".to_owned()));
    }

    #[test]
    fn rubbish_is_refused() {
        for text in ["", "10.0.0", "10.0.0.256", "10.0.0.0.1", "1.2.3.x", "::g", "10..0.1", "+1.2.3.4"] {
            assert_eq!(parse_ip(text), None, "{text}");
        }
        for text in ["10.0.0.0", "10.0.0.0/33", "fd00::/129", "10.0.0.0/-1", "/8"] {
            assert_eq!(parse_net(text), None, "{text}");
        }
    }

    #[test]
    fn mapped_addresses_are_ipv4_and_host_bits_are_cleared() {
        assert_eq!(parse_ip("::ffff:10.0.0.1"), Some(IpAddr::from([10, 0, 0, 1])));
        assert_eq!(parse_net("fd00::1/64").map(|n| n.to_string()), Some("fd00::/64".to_owned()));
    }
}
