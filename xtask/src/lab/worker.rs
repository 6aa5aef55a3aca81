//! A helper process inside a namespace that opens sockets on request: one JSON line in, one JSON line out.
//!
//! Socket programs judge by the process's cgroup, and a connection must outlive its test step, so the client side is
//! a process of its own. Read [`Ask`] first.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};

use super::probe::Probe;
use super::traffic::{Load, Tally, Traffic};
use super::{janitor, netns};

/// What a worker can be asked for.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub(crate) enum Ask {
    /// One HTTP request on a connection of its own.
    Http { to: SocketAddr, path: String, mapped: bool },
    /// The same from a socket that is bound to an address.
    HttpFrom { to: SocketAddr, from: IpAddr },
    /// One datagram and its answer; `connected` by connect() and send(), else by sendto() and recvfrom().
    Udp { to: SocketAddr, connected: bool, mapped: bool },
    /// The same from a socket that is bound to an address.
    UdpFrom { to: SocketAddr, from: IpAddr, connected: bool },
    /// Opens a connection that stays, under a name.
    Open { id: String, to: SocketAddr },
    /// The same from a socket that is bound to an address.
    OpenFrom { id: String, to: SocketAddr, from: IpAddr },
    /// Closes such a connection.
    Close { id: String },
    /// One line over such a connection and its echo.
    Say { id: String, text: String },
    /// Opens a UDP socket that stays.
    OpenUdp { id: String, to: SocketAddr, connected: bool },
    /// Connects it to something else: one datagram and the answer.
    TurnUdp { id: String, to: SocketAddr },
    /// One datagram from it and the answer.
    SayUdp { id: String },
    /// So many bytes there and as many back on a fresh connection, checked byte by byte.
    Bulk { to: SocketAddr, bytes: usize },
    /// One datagram of so many bytes and an answer of as many.
    BigUdp { to: SocketAddr, bytes: usize },
    /// Talks to two destinations from one local port by turns, twice to each. The text is what the servers said,
    /// one line each, in the order first, second, first, second.
    Both { to: [SocketAddr; 2], udp: bool },
    /// Begins to send a load, under a name.
    StartTraffic { id: String, load: Load },
    /// Ends it and gives the tally.
    StopTraffic { id: String },
    /// One datagram that must not be fragmented, and its answer or the ICMP error about it.
    Probe(Probe),
}

/// What came of it.
#[derive(Serialize, Deserialize, Clone, Debug, Default)]
pub(crate) struct Answer {
    /// The reply's text; for HTTP the body.
    pub(crate) text: String,
    /// HTTP status, 0 where there is none.
    pub(crate) status: u16,
    /// `ErrorKind` of the failure, `None` = success.
    pub(crate) error: Option<String>,
    /// getpeername() of the socket, unmapped.
    pub(crate) peer: Option<SocketAddr>,
    /// Source of the datagram that came back, unmapped.
    pub(crate) from: Option<SocketAddr>,
    /// Milliseconds it took.
    pub(crate) millis: u64,
    /// What came of a load.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) traffic: Option<Tally>,
}

impl Answer {
    /// Value behind a key of the servers' reply `pod NAME node NODE peer ADDRESS`.
    pub(crate) fn field(&self, key: &str) -> Option<&str> {
        let mut words = self.text.split_whitespace();
        words.by_ref().find(|word| *word == key)?;
        words.next()
    }

    /// Name of the pod that answered.
    pub(crate) fn pod(&self) -> Option<&str> {
        self.field("pod")
    }
}

/// A running worker.
pub(crate) struct Worker {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Worker {
    /// Starts one in a namespace and a cgroup.
    ///
    /// # Errors
    /// When the process can't be started there.
    pub(crate) fn start(namespace: &str, cgroup: Option<&Path>) -> Result<Self> {
        Self::over(&mut netns::command(namespace, cgroup, Path::new(netns::OWN_PROGRAM))?)
    }

    /// Starts one by a command that runs this very program somewhere.
    ///
    /// # Errors
    /// When the command can't be started.
    pub(crate) fn over(command: &mut Command) -> Result<Self> {
        let mut child = command.arg("worker").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        janitor::process(child.id());
        let (input, output) = (child.stdin.take().context("stdin")?, child.stdout.take().context("stdout")?);
        Ok(Self { child, input, output: BufReader::new(output) })
    }

    /// Asks and waits for the answer; a refused or lost request is an answer, not an error.
    ///
    /// # Errors
    /// When the worker is gone.
    pub(crate) fn ask(&mut self, ask: &Ask) -> Result<Answer> {
        let mut line = serde_json::to_string(ask)? + "\n";
        self.input.write_all(line.as_bytes()).context("the worker is gone")?;
        line.clear();
        if self.output.read_line(&mut line)? == 0 {
            bail!("the worker ended while it was asked for {ask:?}");
        }
        Ok(serde_json::from_str(&line)?)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        janitor::ended(self.child.id());
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

const PATIENCE: Duration = Duration::from_millis(1500);

/// The worker's own main loop: until standard input ends.
///
/// # Errors
/// When a line can't be read or written.
pub(crate) fn serve() -> Result<()> {
    let mut sockets = Sockets::default();
    for line in std::io::stdin().lock().lines() {
        let ask: Ask = serde_json::from_str(&line?)?;
        let begin = Instant::now();
        let mut answer = Answer::default();
        if let Err(error) = sockets.act(&ask, &mut answer) {
            answer.error = Some(format!("{:?}", error.kind()));
            if answer.error.as_deref() == Some("Uncategorized") {
                answer.error = Some(error.to_string());
            }
        }
        answer.millis = begin.elapsed().as_millis() as u64;
        println!("{}", serde_json::to_string(&answer)?);
    }
    Ok(())
}

#[derive(Default)]
struct Sockets {
    streams: BTreeMap<String, TcpStream>,
    datagrams: BTreeMap<String, (UdpSocket, SocketAddr, bool)>,
    traffic: BTreeMap<String, Traffic>,
}

impl Sockets {
    /// Has the server echo on a connection, and keeps it under a name.
    fn keep(&mut self, id: &str, stream: TcpStream, answer: &mut Answer) -> std::io::Result<()> {
        (&stream).write_all(b"ECHO\n")?;
        answer.text = line(&stream)?;
        answer.peer = stream.peer_addr().ok().map(plain);
        self.streams.insert(id.into(), stream);
        Ok(())
    }

    fn act(&mut self, ask: &Ask, answer: &mut Answer) -> std::io::Result<()> {
        let missing = || std::io::Error::other("no socket of that name");
        match ask {
            Ask::Http { to, path, mapped } => get(connect(*to, *mapped)?, path, answer)?,
            Ask::HttpFrom { to, from } => get(connect_from(*to, *from)?, "/", answer)?,
            Ask::Udp { to, connected, mapped } => {
                let socket = datagram(*to, *mapped)?;
                exchange(&socket, if *mapped { map(*to) } else { *to }, *connected, answer)?;
            }
            Ask::UdpFrom { to, from, connected } => {
                let socket = UdpSocket::bind((*from, 0))?;
                socket.set_read_timeout(Some(PATIENCE))?;
                exchange(&socket, *to, *connected, answer)?;
            }
            Ask::Open { id, to } => self.keep(id, connect(*to, false)?, answer)?,
            Ask::OpenFrom { id, to, from } => self.keep(id, connect_from(*to, *from)?, answer)?,
            Ask::Say { id, text } => {
                let stream = self.streams.get(id).ok_or_else(missing)?;
                let mut writer = stream;
                writeln!(writer, "{text}")?;
                answer.text = line(stream)?;
            }
            Ask::Close { id } => drop(self.streams.remove(id).ok_or_else(missing)?),
            Ask::OpenUdp { id, to, connected } => {
                let socket = datagram(*to, false)?;
                exchange(&socket, *to, *connected, answer)?;
                self.datagrams.insert(id.clone(), (socket, *to, *connected));
            }
            Ask::TurnUdp { id, to } => {
                let turned = self.datagrams.get_mut(id).ok_or_else(missing)?;
                turned.0.connect(*to)?;
                (turned.1, turned.2) = (*to, true);
                exchange(&turned.0, *to, true, answer)?;
            }
            Ask::SayUdp { id } => {
                let (socket, to, connected) = self.datagrams.get(id).ok_or_else(missing)?;
                exchange(socket, *to, *connected, answer)?;
            }
            Ask::Bulk { to, bytes } => {
                let stream = connect(*to, false)?;
                stream.set_read_timeout(Some(Duration::from_secs(10)))?;
                bulk(&stream, *bytes)?;
                answer.text = format!("{bytes} bytes each way");
            }
            Ask::BigUdp { to, bytes } => {
                let socket = datagram(*to, false)?;
                socket.send_to(format!("{:bytes$}", format!("BIG {bytes}")).as_bytes(), to)?;
                let mut buffer = vec![0; *bytes + 1];
                let (length, from) = socket.recv_from(&mut buffer)?;
                answer.from = Some(plain(from));
                if length != *bytes {
                    return Err(std::io::Error::other(format!("{length} bytes came back, not {bytes}")));
                }
                answer.text = String::from_utf8_lossy(&buffer[..length]).trim_end().into();
            }
            Ask::Both { to, udp: true } => {
                let socket = datagram(to[0], false)?;
                let mut lines = Vec::new();
                for to in to.iter().chain(to) {
                    let mut one = Answer::default();
                    exchange(&socket, *to, false, &mut one)?;
                    if one.from != Some(*to) {
                        return Err(std::io::Error::other(format!("{:?} answered for {to}", one.from)));
                    }
                    lines.push(one.text);
                }
                answer.text = lines.join("\n");
            }
            Ask::Both { to, udp: false } => answer.text = both(*to)?.join("\n"),
            Ask::StartTraffic { id, load } => {
                self.traffic.insert(id.clone(), Traffic::start(load));
            }
            Ask::StopTraffic { id } => {
                answer.traffic = Some(self.traffic.remove(id).ok_or_else(missing)?.stop());
            }
            Ask::Probe(probe) => probe.act(answer, PATIENCE)?,
        }
        Ok(())
    }
}

/// One HTTP request.
fn get(mut stream: TcpStream, path: &str, answer: &mut Answer) -> std::io::Result<()> {
    answer.peer = stream.peer_addr().ok().map(plain);
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    answer.status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    answer.text = body.trim_end().into();
    Ok(())
}

/// Two connections from one local port, which is free at first, and a line over each by turns.
fn both(to: [SocketAddr; 2]) -> std::io::Result<Vec<String>> {
    let any: SocketAddr =
        if to[0].is_ipv6() { (Ipv6Addr::UNSPECIFIED, 0).into() } else { ([0, 0, 0, 0], 0).into() };
    let mut local = any;
    let (mut streams, mut lines) = (Vec::new(), Vec::new());
    for to in to {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&local.into())?;
        socket.connect_timeout(&to.into(), 2 * PATIENCE)?; // a SYN may have to be sent twice
        let stream: TcpStream = socket.into();
        stream.set_read_timeout(Some(PATIENCE))?;
        local = SocketAddr::new(any.ip(), stream.local_addr()?.port());
        (&stream).write_all(b"ECHO\n")?;
        lines.push(line(&stream)?);
        streams.push(stream);
    }
    for (number, mut stream) in streams.iter().enumerate().chain(streams.iter().enumerate()) {
        let text = format!("still {number}");
        writeln!(stream, "{text}")?;
        if line(stream)? != text {
            return Err(std::io::Error::other(format!("connection {number} echoed something else")));
        }
    }
    Ok(lines)
}

fn connect(to: SocketAddr, mapped: bool) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&if mapped { map(to) } else { to }, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// A connection of a socket that is bound to `from`.
fn connect_from(to: SocketAddr, from: IpAddr) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.bind(&SocketAddr::new(from, 0).into())?;
    socket.connect_timeout(&to.into(), PATIENCE)?;
    let stream: TcpStream = socket.into();
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn datagram(to: SocketAddr, mapped: bool) -> std::io::Result<UdpSocket> {
    let any: SocketAddr =
        if to.is_ipv6() || mapped { (Ipv6Addr::UNSPECIFIED, 0).into() } else { ([0, 0, 0, 0], 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

fn exchange(socket: &UdpSocket, to: SocketAddr, connected: bool, answer: &mut Answer) -> std::io::Result<()> {
    let mut buffer = [0; 2048];
    let length = if connected {
        if socket.peer_addr().is_err() {
            socket.connect(to)?;
        }
        answer.peer = socket.peer_addr().ok().map(plain);
        socket.send(b"who?")?;
        socket.recv(&mut buffer)?
    } else {
        socket.send_to(b"who?", to)?;
        let (length, from) = socket.recv_from(&mut buffer)?;
        answer.from = Some(plain(from));
        length
    };
    answer.text = String::from_utf8_lossy(&buffer[..length]).trim_end().into();
    Ok(())
}

fn line(mut stream: &TcpStream) -> std::io::Result<String> {
    let mut text = Vec::new();
    let mut byte = [0];
    while text.last() != Some(&b'\n') {
        stream.read_exact(&mut byte)?;
        text.extend(byte);
    }
    Ok(String::from_utf8_lossy(&text).trim_end().into())
}

fn bulk(mut stream: &TcpStream, bytes: usize) -> std::io::Result<()> {
    writeln!(stream, "BULK {bytes}")?;
    let pattern: Vec<u8> = (0..bytes).map(|i| (i % 251) as u8).collect();
    stream.write_all(&pattern)?;
    let mut back = vec![0; bytes];
    stream.read_exact(&mut back)?;
    if back == pattern { Ok(()) } else { Err(std::io::Error::other("the bytes that came back differ")) }
}

/// An IPv4 address as an AF_INET6 socket names it.
fn map(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) => (v4.ip().to_ipv6_mapped(), v4.port()).into(),
        v6 => v6,
    }
}

/// The opposite of [`map`].
pub(crate) fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
