//! A blocking netlink socket: one question, all answers. The kernel answers before `send` returns, so nothing waits.

use std::io;

use netlink_sys::{Socket, SocketAddr};

/// A dump's answers come in parts of at most 32 KiB.
const BUFFER: usize = 1 << 16;
const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// `NLM_F_REQUEST`.
pub const REQUEST: u16 = 1;
/// `NLM_F_REQUEST | NLM_F_ACK`.
pub const ACKNOWLEDGED: u16 = 1 | 4;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
pub const DUMP: u16 = 1 | 0x300;

/// A socket to one part of the kernel.
#[derive(Debug)]
pub struct Netlink(Socket);

impl Netlink {
    /// Opens one of a `NETLINK_*` protocol, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// As socket(2) and connect(2) say.
    pub fn open(protocol: isize) -> io::Result<Netlink> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Netlink(socket))
    }

    /// Sends one message and calls `take` with the body of every answer: one, all of a dump, or none when only an
    /// acknowledgement is asked for.
    ///
    /// # Errors
    /// What the kernel answers, or a message that cannot be one.
    pub fn ask(&self, kind: u16, flags: u16, body: &[u8], mut take: impl FnMut(&[u8])) -> io::Result<()> {
        let mut message = Vec::with_capacity(HEADER + body.len());
        let length = u32::try_from(HEADER + body.len()).map_err(|_| broken())?;
        message.extend(length.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend([0; 8]); // sequence and port: the socket has one question at a time
        message.extend(body);
        self.0.send(&message, 0)?;
        loop {
            let mut buffer = Vec::with_capacity(BUFFER);
            self.0.recv(&mut buffer, 0)?;
            let mut rest = buffer.as_slice();
            while !rest.is_empty() {
                let (kind, body, next) = split(rest).ok_or_else(broken)?;
                match kind {
                    NLMSG_ERROR => {
                        let code = body.first_chunk().copied().map(i32::from_ne_bytes).ok_or_else(broken)?;
                        return if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) };
                    }
                    NLMSG_DONE => return Ok(()),
                    _ => take(body),
                }
                rest = next;
            }
            if flags == REQUEST {
                return Ok(());
            }
        }
    }
}

fn broken() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a netlink message that is cut short")
}

/// Type and body of the first message, and what follows it.
fn split(messages: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(*messages.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes(messages.get(4..6)?.try_into().ok()?);
    let body = messages.get(HEADER..length)?;
    Some((kind, body, messages.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// One attribute: its header, its value, padding.
#[must_use]
pub fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    // an attribute is far below 64 KiB here
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut out = Vec::with_capacity(4 + value.len().next_multiple_of(4));
    out.extend(length.to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

/// The value of the first attribute of this type (`NLA_F_*` bits aside).
#[must_use]
pub fn find(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes(*attributes.first_chunk()?));
        let found = u16::from_ne_bytes(attributes.get(2..4)?.try_into().ok()?) & 0x3fff;
        let value = attributes.get(4..length)?;
        if found == kind {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_by_their_type_and_truncations_end_the_search() {
        let mut all = attribute(1, &[1, 2, 3]);
        all.extend(attribute(0x8000 | 2, &attribute(7, b"nested!!")));
        assert_eq!(find(&all, 1), Some(&[1, 2, 3][..]));
        assert_eq!(find(&all, 2).and_then(|nested| find(nested, 7)), Some(&b"nested!!"[..]));
        assert_eq!(find(&all, 3), None);
        for length in 0..all.len() {
            let _ = find(all.get(..length).unwrap(), 3); // must not panic
        }
        assert_eq!(find(&[0, 0, 1, 0], 1), None); // a length below its own header
    }

    #[test]
    fn a_message_longer_than_what_came_is_refused() {
        assert!(split(&[255, 0, 0, 0, 3, 0]).is_none());
        assert!(split(&[20, 0, 0]).is_none());
    }

    #[test]
    fn the_kernel_says_no_to_nonsense() {
        let netlink = Netlink::open(0).unwrap();
        // RTM_NEWROUTE of no address family
        assert!(netlink.ask(24, ACKNOWLEDGED, &[0; 12], |_| {}).is_err());
    }
}
