//! Connected UDP sockets of this network namespace, as sock_diag(7) tells them, and their end.

use std::io;
use std::net::IpAddr;

use super::netlink::{ACKNOWLEDGED, DUMP, Netlink};

const NETLINK_SOCK_DIAG: isize = 4;
/// Message types (linux/sock_diag.h).
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// A connected UDP socket has TCP's state number 1.
const CONNECTED: u32 = 1 << 1;
/// Bytes of `struct inet_diag_sockid`.
const ID: usize = 48;

/// A connected UDP socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connected {
    /// Whom it sends to; an IPv4-mapped address is told as IPv4.
    pub to: (IpAddr, u16),
    /// Its cookie, as `bpf_get_socket_cookie` tells it.
    pub cookie: u64,
    family: u8,
    id: [u8; ID],
}

/// The kernel's socket tables.
#[derive(Debug)]
pub struct Sockets(Netlink);

impl Sockets {
    /// Opens them, for the network namespace of the calling thread.
    ///
    /// # Errors
    /// No netlink socket.
    pub fn open() -> io::Result<Sockets> {
        Netlink::open(NETLINK_SOCK_DIAG).map(Sockets)
    }

    /// All connected UDP sockets.
    ///
    /// # Errors
    /// The kernel has no diagnosis of UDP sockets (`CONFIG_INET_UDP_DIAG`).
    pub fn connected_udp(&self) -> io::Result<Vec<Connected>> {
        let mut found = Vec::new();
        for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
            let body = request(family, CONNECTED, &[0; ID]);
            self.0.ask(SOCK_DIAG_BY_FAMILY, DUMP, &body, |message| found.extend(decode(message)))?;
        }
        Ok(found)
    }

    /// Aborts a socket: its owner's next call fails with ECONNABORTED, and it is connected no more. False: it was gone.
    ///
    /// # Errors
    /// `EOPNOTSUPP`: a kernel without `CONFIG_INET_DIAG_DESTROY`.
    pub fn destroy(&self, socket: &Connected) -> io::Result<bool> {
        let body = request(socket.family, u32::MAX, &socket.id);
        match self.0.ask(SOCK_DESTROY, ACKNOWLEDGED, &body, |_| {}) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// `struct inet_diag_req_v2`.
fn request(family: u8, states: u32, id: &[u8; ID]) -> Vec<u8> {
    let mut body = vec![family, libc::IPPROTO_UDP as u8, 0, 0];
    body.extend(states.to_ne_bytes());
    body.extend(id);
    body
}

/// One `struct inet_diag_msg`.
fn decode(message: &[u8]) -> Option<Connected> {
    let family = *message.first()?;
    let id: [u8; ID] = message.get(4..4 + ID)?.try_into().ok()?;
    // source port, destination port, source address, destination address, interface, cookie
    let cookie = u64::from_ne_bytes(id.get(40..48)?.try_into().ok()?);
    let port = u16::from_be_bytes(id.get(2..4)?.try_into().ok()?);
    let to = if i32::from(family) == libc::AF_INET {
        IpAddr::from(<[u8; 4]>::try_from(id.get(20..24)?).ok()?)
    } else {
        IpAddr::from(<[u8; 16]>::try_from(id.get(20..36)?).ok()?).to_canonical()
    };
    Some(Connected { to: (to, port), cookie, family, id })
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    impl Connected {
        /// Some socket that sends there.
        pub(crate) fn to(to: std::net::SocketAddr) -> Connected {
            Connected { to: (to.ip(), to.port()), cookie: 1, family: 2, id: [0; ID] }
        }
    }

    #[test]
    fn the_kernel_tells_connected_sockets_of_both_families() {
        let sockets = Sockets::open().unwrap();
        for (own, to) in [("127.0.0.1:0", "127.0.0.1:9"), ("[::1]:0", "[::1]:9")] {
            // a machine without IPv6 has nothing to tell of it
            let Ok(socket) = UdpSocket::bind(own) else { continue };
            let to: std::net::SocketAddr = to.parse().unwrap();
            let ours = |all: &[Connected]| {
                let port = socket.local_addr().unwrap().port().to_be_bytes();
                all.iter().filter(|s| s.id[..2] == port && s.to == (to.ip(), to.port())).count()
            };
            assert_eq!(ours(&sockets.connected_udp().unwrap()), 0);
            socket.connect(to).unwrap();
            assert_eq!(ours(&sockets.connected_udp().unwrap()), 1);
        }
        assert!(decode(&[2; 40]).is_none());
    }
}
