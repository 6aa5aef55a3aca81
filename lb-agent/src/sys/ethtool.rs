//! What ethtool(8) knows of a device.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const SIOCETHTOOL: libc::c_ulong = 0x8946;
/// `ETHTOOL_GFLAGS`.
const GET_FLAGS: u32 = 0x25;
/// `ETH_FLAG_RXVLAN`.
const RX_VLAN: u32 = 1 << 8;

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// `struct ifreq` with a pointer as its union, which is 24 bytes.
#[repr(C)]
struct Request {
    name: [u8; 16],
    data: *mut Value,
    _rest: [u8; 16],
}

/// Whether a device takes VLAN tags off the frames that it receives. One that cannot be asked does not.
#[must_use]
pub fn strips_tags(device: &str) -> bool {
    let mut name = [0; 16];
    let Some(room) = name.get_mut(..device.len()).filter(|room| room.len() < 16) else { return false };
    room.copy_from_slice(device.as_bytes());
    // SAFETY: socket() takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return false;
    }
    // SAFETY: socket() has just returned this descriptor and nobody else knows it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut value = Value { command: GET_FLAGS, data: 0 };
    let mut request = Request { name, data: &raw mut value, _rest: [0; 16] };
    // SAFETY: the request is as large as struct ifreq, its name ends with NUL, and the value it points to lives.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) };
    done == 0 && value.data & RX_VLAN != 0
}

#[cfg(test)]
mod tests {
    use super::strips_tags;

    #[test]
    fn a_device_that_does_not_exist_strips_nothing() {
        assert!(!strips_tags("none") && !strips_tags("a-name-that-is-far-too-long") && !strips_tags(""));
    }
}
