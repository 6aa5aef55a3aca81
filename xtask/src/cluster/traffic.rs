//! Traffic that counts what breaks: the client side of `cargo xtask cluster swap`, a process of a pod, of a node or
//! outside.
//!
//! To every target at once: a connection on which a line and its echo go to and fro (as a websocket's), one that
//! moves bulk data, short connections, a UDP socket that stays, and UDP sockets that are new each time. The servers
//! are those of [`crate::lab::servers`]. A line on standard input begins a phase of that name; the end of standard
//! input ends it all, and the counts of every phase are printed as JSON.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// Time between two exchanges of what stays open.
const BEAT: Duration = Duration::from_millis(20);
/// Bytes of one exchange of the transfer: 800 KB/s each way.
const BLOCK: usize = 16 * 1024;
/// A TCP exchange that takes longer counts as failed; above the retransmissions of a lost packet or two.
const TCP_PATIENCE: Duration = Duration::from_secs(5);
const UDP_PATIENCE: Duration = Duration::from_secs(1);
/// Workers that share the rate of short connections, so that a slow one does not hold up the rest.
const SHORT_WORKERS: u32 = 8;

/// A frontend, and the pod that has to answer there.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pod: String,
    at: SocketAddr,
}

impl std::str::FromStr for Target {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (pod, at) = text.split_once('=').context("POD=ADDRESS:PORT is wanted")?;
        Ok(Self { pod: pod.into(), at: at.parse().with_context(|| text.to_owned())? })
    }
}

/// What became of the exchanges of one kind in one phase.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Count {
    /// Right answers.
    pub(crate) good: u64,
    /// Answers of another pod, or with other contents.
    pub(crate) wrong: u64,
    /// Failures by the kind of error.
    pub(crate) failed: BTreeMap<String, u64>,
    /// The longest that an exchange took, in milliseconds.
    pub(crate) slowest: u64,
}

/// Phase -> kind of traffic -> counts.
pub(crate) type Counts = BTreeMap<String, BTreeMap<String, Count>>;

static COUNTS: Mutex<(String, Counts)> = Mutex::new((String::new(), Counts::new()));
static OVER: AtomicBool = AtomicBool::new(false);

fn counts() -> MutexGuard<'static, (String, Counts)> {
    COUNTS.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Sends traffic to all targets until standard input ends; `rate`: short connections per second in all.
///
/// # Errors
/// When standard input can't be read or standard output can't be written.
pub(crate) fn send(targets: &[Target], rate: u32) -> Result<()> {
    counts().0 = "start".into();
    let kinds: [fn(&Target) -> Kind; 4] = [
        |t| Kind::Stream { target: t.clone(), block: 0 },
        |t| Kind::Stream { target: t.clone(), block: BLOCK },
        |t| Kind::Udp { target: t.clone(), fresh: false },
        |t| Kind::Udp { target: t.clone(), fresh: true },
    ];
    let mut threads = Vec::new();
    for kind in kinds.iter().flat_map(|kind| targets.iter().map(kind)) {
        threads.push(std::thread::spawn(move || kind.run()));
    }
    for worker in 0..SHORT_WORKERS {
        let targets = targets.to_vec();
        threads.push(std::thread::spawn(move || short(&targets, worker, rate)));
    }
    for line in std::io::stdin().lock().lines() {
        counts().0 = line?.trim().to_owned();
    }
    OVER.store(true, Ordering::SeqCst);
    for thread in threads {
        thread.join().ok();
    }
    println!("{}", serde_json::to_string(&counts().1)?);
    Ok(())
}

fn over() -> bool {
    OVER.load(Ordering::SeqCst)
}

/// An exchange that failed.
enum Failure {
    /// Something else came back.
    Wrong,
    /// Nothing, or an error.
    Error(std::io::Error),
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Error(error)
    }
}

/// Counts an exchange in the phase it began in. Returns whether it was good.
fn count(kind: &str, act: impl FnOnce() -> Result<(), Failure>) -> bool {
    let phase = counts().0.clone();
    let begin = Instant::now();
    let done = act();
    let mut counts = counts();
    let count = counts.1.entry(phase).or_default().entry(kind.to_owned()).or_default();
    count.slowest = count.slowest.max(begin.elapsed().as_millis().try_into().unwrap_or(u64::MAX));
    match &done {
        Ok(()) => count.good += 1,
        Err(Failure::Wrong) => count.wrong += 1,
        Err(Failure::Error(error)) => {
            // a read that runs into its time-out says WouldBlock
            let kind = match error.kind() {
                std::io::ErrorKind::WouldBlock => "TimedOut".to_owned(),
                kind => format!("{kind:?}"),
            };
            *count.failed.entry(kind).or_default() += 1;
        }
    }
    done.is_ok()
}

/// Traffic that goes on and on.
enum Kind {
    /// Lines over one connection; `block` bytes each, or a few when 0.
    Stream { target: Target, block: usize },
    /// Datagrams, from one socket or from a new one each time.
    Udp { target: Target, fresh: bool },
}

impl Kind {
    fn run(&self) {
        match self {
            Self::Stream { target, block } => stream(target, *block),
            Self::Udp { target, fresh } => udp(target, *fresh),
        }
    }
}

fn family(at: SocketAddr) -> &'static str {
    if at.is_ipv6() { "IPv6" } else { "IPv4" }
}

fn connect(at: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&at, TCP_PATIENCE)?;
    stream.set_read_timeout(Some(TCP_PATIENCE))?;
    stream.set_write_timeout(Some(TCP_PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn right(pod: &str, text: &str) -> Result<(), Failure> {
    if text.split_whitespace().collect::<Vec<_>>().starts_with(&["pod", pod]) {
        Ok(())
    } else {
        Err(Failure::Wrong)
    }
}

/// One connection, opened again when it breaks.
fn stream(target: &Target, block: usize) {
    let name = if block == 0 { "ping-pong" } else { "transfer" };
    let kind = format!("{name} {} {}", target.pod, family(target.at));
    let mut open: Option<BufReader<TcpStream>> = None;
    let mut number = 0_u64;
    while !over() {
        let good = count(&kind, || {
            let reader = match &mut open {
                Some(reader) => reader,
                None => {
                    let stream = connect(target.at)?;
                    (&stream).write_all(b"ECHO\n")?;
                    let reader = open.insert(BufReader::new(stream));
                    let mut who = String::new();
                    reader.read_line(&mut who)?;
                    right(&target.pod, &who)?;
                    reader
                }
            };
            number += 1;
            let mut line = number.to_string();
            line.extend(std::iter::repeat_n('x', block));
            line.push('\n');
            reader.get_mut().write_all(line.as_bytes())?;
            let mut back = String::new();
            if reader.read_line(&mut back)? == 0 {
                return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
            }
            if back == line { Ok(()) } else { Err(Failure::Wrong) }
        });
        if !good {
            open = None;
        }
        std::thread::sleep(BEAT);
    }
}

fn udp(target: &Target, fresh: bool) {
    let name = if fresh { "udp new" } else { "udp kept" };
    let kind = format!("{name} {} {}", target.pod, family(target.at));
    let any: SocketAddr = if target.at.is_ipv6() { ([0_u16; 8], 0).into() } else { ([0_u8; 4], 0).into() };
    let mut kept: Option<UdpSocket> = None;
    while !over() {
        count(&kind, || {
            let socket = match kept.take() {
                Some(socket) if !fresh => socket,
                _ => {
                    let socket = UdpSocket::bind(any)?;
                    socket.set_read_timeout(Some(UDP_PATIENCE))?;
                    socket
                }
            };
            let mut buffer = [0; 512];
            let answered = socket.send_to(b"who?", target.at).and_then(|_| socket.recv_from(&mut buffer));
            kept = Some(socket);
            let (length, from) = answered?;
            if from != target.at {
                return Err(Failure::Wrong);
            }
            right(&target.pod, &String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()))
        });
        std::thread::sleep(BEAT);
    }
}

/// One of the workers that open short connections.
fn short(targets: &[Target], worker: u32, rate: u32) {
    let pause = Duration::from_secs(1) * SHORT_WORKERS / rate.max(1);
    let mut due = Instant::now() + pause * worker / SHORT_WORKERS;
    for target in targets.iter().cycle().skip(worker as usize) {
        if over() {
            return;
        }
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        due = (due + pause).max(Instant::now() - pause); // what a stall held up is not made up for in a burst
        let kind = format!("short {} {}", target.pod, family(target.at));
        count(&kind, || {
            let mut stream = connect(target.at)?;
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
            let mut text = String::new();
            if stream.read_to_string(&mut text)? == 0 {
                return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
            }
            right(&target.pod, text.split("\r\n\r\n").nth(1).unwrap_or_default())
        });
    }
}
