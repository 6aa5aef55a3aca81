//! Many sockets at once: connections that stay idle, short ones at a rate, and SYNs that nobody follows up. All of it in
//! a network namespace, by threads of this process.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lb_common::packet::SYN;
use lb_common::testing::PacketBuilder;

use super::netns::inside;

/// How long a connection or an answer may take: a lost SYN is repeated after 1 and 3 s.
const PATIENCE: Duration = Duration::from_secs(8);
/// Threads that talk at once.
const THREADS: usize = 8;

/// Connections that say nothing, from one namespace to one frontend.
pub(crate) struct Crowd {
    streams: Vec<TcpStream>,
}

impl Crowd {
    /// Opens them; each has said one line and heard its echo.
    ///
    /// # Errors
    /// When one of them cannot be opened.
    pub(crate) fn open(namespace: &str, to: SocketAddr, count: usize) -> Result<Crowd> {
        let streams = inside(namespace, || {
            (0..count)
                .map(|number| {
                    let stream = connect(to).with_context(|| format!("connection {number} to {to}"))?;
                    (&stream).write_all(b"ECHO\n")?;
                    heard(&stream, None)?;
                    Ok(stream)
                })
                .collect::<Result<Vec<_>>>()
        })?;
        let crowd = Crowd { streams };
        ensure!(crowd.alive() == count, "{} of {count} connections to {to} work", crowd.alive());
        Ok(crowd)
    }

    /// How many of them carry a line there and back.
    pub(crate) fn alive(&self) -> usize {
        let say = |(number, stream): &(usize, &TcpStream)| {
            let line = format!("line {number}\n");
            let mut writer = *stream;
            writer.write_all(line.as_bytes()).is_ok() && heard(stream, Some(&line)).is_ok()
        };
        self.streams.iter().enumerate().filter(say).count()
    }
}

/// Raises the number of files that this process may have open to its hard limit.
///
/// # Errors
/// When that is not enough for `wanted`.
pub(crate) fn room_for_sockets(wanted: u64) -> Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the call writes one rlimit.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: the call reads one rlimit.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    ensure!(limit.rlim_max >= wanted, "only {} open files are allowed, {wanted} are needed", limit.rlim_max);
    Ok(())
}

fn connect(to: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Reads one line, which must be this one.
fn heard(mut stream: &TcpStream, wanted: Option<&str>) -> std::io::Result<()> {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.last() != Some(&b'\n') {
        stream.read_exact(&mut byte)?;
        line.extend(byte);
    }
    match wanted {
        Some(wanted) if line != wanted.as_bytes() => Err(std::io::Error::other("another line came back")),
        _ => Ok(()),
    }
}

/// What came of a storm.
pub(crate) struct Storm {
    /// Exchanges that were answered.
    pub(crate) answered: usize,
    /// How long it took.
    pub(crate) took: Duration,
    /// The first failures.
    failures: Vec<String>,
}

impl Storm {
    /// Every one of `count` exchanges was answered.
    ///
    /// # Errors
    /// With the first failures.
    pub(crate) fn complete(&self, count: usize) -> Result<()> {
        let (answered, took) = (self.answered, self.took);
        ensure!(
            answered == count,
            "{answered} of {count} answered in {took:?}: {}",
            self.failures.join("; ")
        );
        Ok(())
    }
}

/// `count` short exchanges, each from a socket of its own: an HTTP request over TCP, or a datagram and its answer.
///
/// # Errors
/// When the namespace cannot be entered; failures of exchanges are in the result.
pub(crate) fn storm(namespace: &str, to: SocketAddr, udp: bool, count: usize) -> Result<Storm> {
    let (next, answered, failures) = (AtomicUsize::new(0), AtomicUsize::new(0), Mutex::new(Vec::new()));
    let begin = Instant::now();
    let work = || {
        while next.fetch_add(1, Ordering::Relaxed) < count {
            match if udp { datagram(to) } else { request(to) } {
                Ok(()) => drop(answered.fetch_add(1, Ordering::Relaxed)),
                Err(error) => {
                    let mut list = failures.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    if list.len() < 5 {
                        list.push(format!("{:.1} s: {error}", begin.elapsed().as_secs_f64()));
                    }
                }
            }
        }
    };
    inside(namespace, || {
        std::thread::scope(|scope| (0..THREADS).for_each(|_| drop(scope.spawn(work))));
        Ok(())
    })?;
    let failures = failures.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    Ok(Storm { answered: answered.into_inner(), took: begin.elapsed(), failures })
}

fn request(to: SocketAddr) -> std::io::Result<()> {
    let mut stream = connect(to)?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    if text.contains("pod ") { Ok(()) } else { Err(std::io::Error::other(format!("answered {text:?}"))) }
}

/// A datagram is sent again when it is not answered, as resolvers do it.
fn datagram(to: SocketAddr) -> std::io::Result<()> {
    let any: IpAddr = if to.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut answer = [0; 512];
    let mut last = Err(std::io::ErrorKind::TimedOut.into());
    for _ in 0..3 {
        socket.send(b"who?")?;
        last = socket.recv(&mut answer);
        if last.is_ok() {
            break;
        }
    }
    last.map(drop)
}

/// `count` SYNs to a frontend from as many sources, as frames from `device` of the namespace to a MAC address. Returns
/// how many were sent.
///
/// # Errors
/// When the socket cannot be opened.
pub(crate) fn syn_flood(
    namespace: &str,
    device: &str,
    mac: [u8; 6],
    to: SocketAddr,
    count: u32,
) -> Result<u32> {
    inside(namespace, || {
        let name = std::ffi::CString::new(device)?;
        // SAFETY: the name ends with NUL and lives.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        ensure!(index != 0, "no interface {device}");
        let socket = frame_socket()?;
        let mut sent = 0;
        for number in 0..count {
            let source: IpAddr = match to {
                SocketAddr::V4(_) => Ipv4Addr::from(0xc612_0000 + (number & 0x1_ffff)).into(),
                SocketAddr::V6(_) => {
                    Ipv6Addr::from(0x2001_0db8_0198_0000_0000_0000_0000_0000 + u128::from(number)).into()
                }
            };
            let port = 1024 + (number % 60_000) as u16;
            let frame = PacketBuilder::tcp(SocketAddr::new(source, port), to, SYN).with(|p| p.macs[0] = mac);
            sent += u32::from(send_frame(&socket, index, &frame.build())?);
        }
        Ok(sent)
    })
}

/// A socket for whole frames, which hears none.
fn frame_socket() -> std::io::Result<OwnedFd> {
    // SAFETY: socket() takes numbers; the descriptor it returns is ours alone.
    unsafe {
        match libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) {
            -1 => Err(std::io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

/// Counts the packets in a namespace whose source is one of [`syn_flood`]'s.
pub(crate) struct Strangers {
    socket: OwnedFd,
}

impl Strangers {
    /// Begins to count at all interfaces of the namespace.
    ///
    /// # Errors
    /// When there is no such namespace, or no packet socket.
    pub(crate) fn watch(namespace: &str) -> Result<Strangers> {
        inside(namespace, || {
            // SAFETY: socket() takes numbers; the descriptor it returns is ours alone. It hears nothing as yet.
            let socket = unsafe {
                match libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) {
                    -1 => return Err(std::io::Error::last_os_error().into()),
                    fd => OwnedFd::from_raw_fd(fd),
                }
            };
            // as in `syn_flood`: 198.18.0.0/15 and 2001:db8:198::/64; offsets are from the IP header
            let (load, and, test, end) = (0x20, 0x54, 0x15, 0x06);
            let mut code = [
                (load, 0, 0, 12),
                (and, 0, 0, 0xfffe_0000),
                (test, 4, 0, 0xc612_0000),
                (load, 0, 0, 8),
                (test, 0, 3, 0x2001_0db8),
                (load, 0, 0, 12),
                (test, 0, 1, 0x0198_0000),
                (end, 0, 0, 0xffff),
                (end, 0, 0, 0),
            ]
            .map(|(code, jt, jf, k)| libc::sock_filter { code, jt, jf, k });
            let program = libc::sock_fprog { len: code.len() as u16, filter: code.as_mut_ptr() };
            let address = libc::sockaddr_ll {
                sll_family: libc::AF_PACKET as u16,
                sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
                sll_ifindex: 0,
                sll_hatype: 0,
                sll_pkttype: 0,
                sll_halen: 0,
                sll_addr: [0; 8],
            };
            // SAFETY: program and address live, and have the lengths given.
            let failed = unsafe {
                libc::setsockopt(
                    socket.as_raw_fd(),
                    libc::SOL_SOCKET,
                    libc::SO_ATTACH_FILTER,
                    (&raw const program).cast(),
                    size_of_val(&program) as libc::socklen_t,
                ) != 0
                    || libc::bind(
                        socket.as_raw_fd(),
                        (&raw const address).cast(),
                        size_of_val(&address) as libc::socklen_t,
                    ) != 0
            };
            ensure!(!failed, "a packet socket: {}", std::io::Error::last_os_error());
            Ok(Strangers { socket })
        })
    }

    /// How many came since it was asked last, those included for which the socket had no room.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub(crate) fn count(&self) -> Result<u32> {
        const PACKET_STATISTICS: libc::c_int = 6;
        let (mut counts, mut length) = ([0_u32; 2], size_of::<[u32; 2]>() as libc::socklen_t);
        // SAFETY: the call writes two numbers at most.
        let failed = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                PACKET_STATISTICS,
                counts.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        ensure!(failed == 0, "PACKET_STATISTICS: {}", std::io::Error::last_os_error());
        Ok(counts[0])
    }
}

/// Sends a frame by an interface; false: its queue is full.
fn send_frame(socket: &OwnedFd, index: u32, frame: &[u8]) -> std::io::Result<bool> {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: 0,
        sll_ifindex: index as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [0; 8],
    };
    // SAFETY: frame and address live, and have the lengths given.
    let sent = unsafe {
        let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        let (start, to) = (frame.as_ptr().cast(), (&raw const address).cast());
        libc::sendto(socket.as_raw_fd(), start, frame.len(), 0, to, length)
    };
    match std::io::Error::last_os_error() {
        _ if sent >= 0 => Ok(true),
        error if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(false),
        error => Err(error),
    }
}
