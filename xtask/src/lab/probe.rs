//! One datagram that must not be fragmented, and what came back: an answer, or the ICMP error as the socket was told of
//! it (`IP_RECVERR`).

use std::io::{Error, Result};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd};
use std::time::Duration;

use libc::{c_int, c_void};
use serde::{Deserialize, Serialize};

use super::worker::Answer;

/// What to send.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub(crate) struct Probe {
    /// Where to; the socket is connected.
    pub(crate) to: SocketAddr,
    /// Local port; 0 = any.
    pub(crate) port: u16,
    /// What it says.
    pub(crate) text: String,
    /// Payload in bytes, blanks behind the text included.
    pub(crate) bytes: usize,
    /// TTL or hop limit; 0 = the usual.
    pub(crate) hops: u8,
    /// The beginning of an SCTP association instead, by a raw socket (no kernel needs to know SCTP for that); `text`
    /// and `port` are not looked at.
    pub(crate) sctp: bool,
}

impl Probe {
    /// Sends it and waits for what comes back. An ICMP error is no failure: `from` is who sent it, `text` says
    /// `icmp TYPE CODE mtu VALUE about DESTINATION`; after an answer it is the answer's text.
    pub(super) fn act(&self, answer: &mut Answer, patience: Duration) -> Result<()> {
        let v6 = self.to.is_ipv6();
        let any: IpAddr = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        let socket = if self.sctp { raw(v6)? } else { UdpSocket::bind((any, self.port))? };
        socket.set_read_timeout(Some(patience))?;
        let (level, discover, errors, hops) = if v6 {
            (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_RECVERR, libc::IPV6_UNICAST_HOPS)
        } else {
            (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_RECVERR, libc::IP_TTL)
        };
        option(&socket, level, discover, libc::IP_PMTUDISC_DO)?;
        option(&socket, level, errors, 1)?;
        if self.hops != 0 {
            option(&socket, level, hops, self.hops.into())?;
        }
        socket.connect(self.to)?;
        if self.sctp {
            socket.send(&self.init())?;
        } else {
            socket.send(format!("{:1$}", self.text, self.bytes).as_bytes())?;
        }
        let mut buffer = [0; 4096];
        match socket.recv(&mut buffer) {
            Ok(length) => answer.text = String::from_utf8_lossy(&buffer[..length]).trim_end().into(),
            Err(error) => match told(&socket, level, errors)? {
                Some((from, text)) => (answer.from, answer.text) = (from, text),
                None => return Err(error),
            },
        }
        Ok(())
    }
}

/// A raw socket for SCTP packets; the few calls that are made on it are the same.
fn raw(v6: bool) -> Result<UdpSocket> {
    let family = if v6 { libc::AF_INET6 } else { libc::AF_INET };
    // SAFETY: three numbers; the descriptor is ours if there is one.
    unsafe {
        match libc::socket(family, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_SCTP) {
            ..0 => Err(Error::last_os_error()),
            socket => Ok(UdpSocket::from_raw_fd(socket)),
        }
    }
}

impl Probe {
    /// An SCTP packet with an INIT chunk (RFC 9260 section 3.3.2), padded; nobody on the way looks at its CRC32c.
    fn init(&self) -> Vec<u8> {
        let mut packet = vec![0x9c, 0x40];
        packet.extend(self.to.port().to_be_bytes());
        packet.extend([0; 8]);
        packet.extend([1, 0, 0, 0, 0, 0, 0, 7, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
        packet.resize(packet.len().max(self.bytes), 0);
        // one chunk to the end: conntrack counts chunks
        let length = ((packet.len() - 12) as u16).to_be_bytes();
        packet[14..16].copy_from_slice(&length);
        packet
    }
}

fn option(socket: &UdpSocket, level: c_int, name: c_int, value: c_int) -> Result<()> {
    // SAFETY: the descriptor is open, and the value is an int of the given size.
    let failed = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<c_int>() as libc::socklen_t,
        )
    };
    if failed == 0 { Ok(()) } else { Err(Error::last_os_error()) }
}

/// Room for control messages, aligned as they need it.
#[repr(C, align(8))]
struct Control([u8; 512]);

/// The next entry of the socket's error queue; `None` = it is empty.
fn told(socket: &UdpSocket, level: c_int, kind: c_int) -> Result<Option<(Option<SocketAddr>, String)>> {
    // SAFETY: all three are structures of integers, pointers and arrays, for which zero is a value.
    let (mut name, mut message) =
        unsafe { (core::mem::zeroed::<libc::sockaddr_storage>(), core::mem::zeroed::<libc::msghdr>()) };
    let (mut data, mut control) = ([0_u8; 2048], Control([0; 512]));
    let mut part = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() };
    message.msg_name = (&raw mut name).cast();
    message.msg_namelen = size_of_val(&name) as libc::socklen_t;
    (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len();
    // SAFETY: the header points to memory of ours, with its sizes.
    let length = unsafe {
        libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT)
    };
    if length < 0 {
        let error = Error::last_os_error();
        return if error.kind() == std::io::ErrorKind::WouldBlock { Ok(None) } else { Err(error) };
    }
    let about = address((&raw const name).cast()).map_or("nobody".into(), |a| a.to_string());
    // SAFETY: the kernel filled the control messages; the macros stay inside of them.
    unsafe {
        let mut next = libc::CMSG_FIRSTHDR(&raw const message);
        while let Some(header) = next.as_ref() {
            if header.cmsg_level == level && header.cmsg_type == kind {
                let error = libc::CMSG_DATA(next).cast::<libc::sock_extended_err>();
                let said = error.read_unaligned();
                let from = address(error.add(1).cast());
                let text =
                    format!("icmp {} {} mtu {} about {about}", said.ee_type, said.ee_code, said.ee_info);
                return Ok(Some((from, text)));
            }
            next = libc::CMSG_NXTHDR(&raw const message, next);
        }
    }
    Ok(None)
}

/// A socket address that the kernel wrote, as Rust has it. The memory holds at least a `sockaddr_in6`.
fn address(at: *const c_void) -> Option<SocketAddr> {
    // SAFETY: the caller's memory holds the larger of the two structures; reads need no alignment.
    unsafe {
        let family = at.cast::<libc::sa_family_t>().read_unaligned();
        match c_int::from(family) {
            libc::AF_INET => {
                let it = at.cast::<libc::sockaddr_in>().read_unaligned();
                Some((Ipv4Addr::from(u32::from_be(it.sin_addr.s_addr)), u16::from_be(it.sin_port)).into())
            }
            libc::AF_INET6 => {
                let it = at.cast::<libc::sockaddr_in6>().read_unaligned();
                Some((Ipv6Addr::from(it.sin6_addr.s6_addr), u16::from_be(it.sin6_port)).into())
            }
            _ => None,
        }
    }
}
