//! Traffic that goes on while something is done to an agent, and counts everything that went wrong with it.
//!
//! A [`Load`] runs inside a worker: per target one long TCP transfer that is checked byte by byte, short connections at
//! a steady rate, and a UDP exchange with numbered datagrams. [`under`] runs loads on several sides around an action.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::worker::Ask;
use super::{Lab, Side};

/// How long a connection or an answer may take before it counts as failed: a lost SYN is repeated after 1 and 3 s.
const PATIENCE: Duration = Duration::from_secs(8);
/// How long a datagram's answer may take before it counts as lost.
const ANSWER: Duration = Duration::from_millis(1000);
/// A long transfer sends so many bytes at a time, ...
const CHUNK: usize = 4096;
/// ... so often: about 0.8 MB/s each way.
const BEAT: Duration = Duration::from_millis(5);
/// Pause between datagrams of one exchange.
const DATAGRAM_BEAT: Duration = Duration::from_millis(20);
/// Failures that are kept as text.
const TEXTS: usize = 12;

/// What a worker sends until it is told to stop.
#[derive(Serialize, Deserialize, Clone, Debug, Default)]
pub(crate) struct Load {
    /// Where to.
    pub(crate) targets: Vec<Target>,
    /// Short connections a second, over all targets.
    pub(crate) rate: u32,
}

/// A frontend, and who may answer for it.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub(crate) struct Target {
    /// TCP address.
    pub(crate) tcp: SocketAddr,
    /// UDP address.
    pub(crate) udp: SocketAddr,
    /// Pods whose answer is right.
    pub(crate) pods: Vec<String>,
}

/// What came of a load.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Short connections that were answered rightly.
    pub(crate) connections: u64,
    /// The longest of them, ms.
    pub(crate) slowest_ms: u64,
    /// Long transfers that came back whole.
    pub(crate) transfers: u64,
    /// Bytes that came back right on long transfers.
    pub(crate) bytes: u64,
    /// The longest time without a byte on a long transfer, ms.
    pub(crate) stall_ms: u64,
    /// The longest time by which the machine woke a sleeping thread late, ms: what no data path is to blame for.
    pub(crate) late_ms: u64,
    /// Datagrams that were answered rightly.
    pub(crate) datagrams: u64,
    /// Datagrams without an answer. UDP may lose some, so they are counted apart.
    pub(crate) lost: u64,
    /// Connections and transfers that were reset.
    pub(crate) resets: u64,
    /// Answers of the wrong pod, or with wrong bytes.
    pub(crate) wrong: u64,
    /// Any other failure, by `ErrorKind`.
    pub(crate) failures: BTreeMap<String, u64>,
    /// The first failures, with their time since the load began.
    pub(crate) texts: Vec<String>,
}

impl Tally {
    /// Adds another one.
    pub(crate) fn add(&mut self, other: Tally) {
        self.connections += other.connections;
        self.slowest_ms = self.slowest_ms.max(other.slowest_ms);
        self.transfers += other.transfers;
        self.bytes += other.bytes;
        self.stall_ms = self.stall_ms.max(other.stall_ms);
        self.late_ms = self.late_ms.max(other.late_ms);
        self.datagrams += other.datagrams;
        self.lost += other.lost;
        self.resets += other.resets;
        self.wrong += other.wrong;
        for (kind, count) in other.failures {
            *self.failures.entry(kind).or_default() += count;
        }
        self.texts.extend(other.texts);
        self.texts.truncate(TEXTS);
    }

    /// Nothing was reset, wrong or failed, and something was sent of each kind; at most `lost` datagrams are missing.
    ///
    /// # Errors
    /// With all numbers and the first failures.
    pub(crate) fn unharmed(&self, lost: u64) -> Result<()> {
        let broken = self.resets + self.wrong + self.failures.values().sum::<u64>();
        let idle = self.connections == 0 || self.bytes == 0 || self.datagrams == 0;
        ensure!(broken == 0 && !idle && self.lost <= lost, "{self}; first failures: {:?}", self.texts);
        Ok(())
    }

    fn failed(&mut self, begin: Instant, what: &str, error: &std::io::Error) {
        match error.kind() {
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted => {
                self.resets += 1;
            }
            kind => *self.failures.entry(format!("{kind:?}")).or_default() += 1,
        }
        self.text(begin, format!("{what}: {error}"));
    }

    fn wrong(&mut self, begin: Instant, text: String) {
        self.wrong += 1;
        self.text(begin, text);
    }

    fn text(&mut self, begin: Instant, text: String) {
        if self.texts.len() < TEXTS {
            self.texts.push(format!("{:.3} s: {text}", begin.elapsed().as_secs_f64()));
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} short connections (slowest {} ms), {} long transfers of {} kB (longest stall {} ms), {} datagrams \
             ({} lost), sleepers woken up to {} ms late: {} resets, {} wrong answers, {} other failures",
            self.connections,
            self.slowest_ms,
            self.transfers,
            self.bytes / 1000,
            self.stall_ms,
            self.datagrams,
            self.lost,
            self.late_ms,
            self.resets,
            self.wrong,
            self.failures.values().sum::<u64>(),
        )?;
        if self.failures.is_empty() { Ok(()) } else { write!(f, " {:?}", self.failures) }
    }
}

/// Runs loads on several sides, then `action` in the middle of them, and returns what came of all.
///
/// The loads run for at least `least`, and for a second before and after the action.
///
/// # Errors
/// Those of the action, and when a worker is gone; failures of the traffic are in the tally.
pub(crate) fn under(
    lab: &mut Lab,
    loads: &[(Side, Load)],
    least: Duration,
    action: impl FnOnce(&mut Lab) -> Result<()>,
) -> Result<Tally> {
    let begin = Instant::now();
    for (number, (side, load)) in loads.iter().enumerate() {
        let answer = lab.ask(*side, &Ask::StartTraffic { id: number.to_string(), load: load.clone() })?;
        ensure!(answer.error.is_none(), "traffic of {side:?} does not start: {answer:?}");
    }
    std::thread::sleep(Duration::from_secs(1));
    let acted = action(lab);
    if acted.is_ok() {
        std::thread::sleep(least.saturating_sub(begin.elapsed()).max(Duration::from_secs(1)));
    }
    let mut total = Tally::default();
    for (number, (side, _)) in loads.iter().enumerate() {
        let answer = lab.ask(*side, &Ask::StopTraffic { id: number.to_string() })?;
        total.add(answer.traffic.with_context(|| format!("{side:?} has no tally: {:?}", answer.error))?);
    }
    acted.with_context(|| format!("under traffic: {total}"))?;
    Ok(total)
}

/// A load that runs.
pub(super) struct Traffic {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Tally>>,
}

impl Traffic {
    /// Starts it.
    pub(super) fn start(load: &Load) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let begin = Instant::now();
        let count = load.targets.len().max(1) as u32;
        let pause = Duration::from_secs(1) * count / load.rate.max(1);
        let mut threads = Vec::new();
        for target in &load.targets {
            let run = |work: fn(&Target, &Clock) -> Tally| {
                let (target, clock) = (target.clone(), Clock { begin, pause, stop: stop.clone() });
                std::thread::spawn(move || work(&target, &clock))
            };
            threads.extend([run(short_connections), run(long_transfer), run(datagrams)]);
        }
        let clock = Clock { begin, pause, stop: stop.clone() };
        threads.push(std::thread::spawn(move || lateness(&clock)));
        Self { stop, threads }
    }

    /// Ends it, once the long transfers have come back whole.
    pub(super) fn stop(self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        let mut total = Tally::default();
        for thread in self.threads {
            total.add(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        total
    }
}

struct Clock {
    begin: Instant,
    /// Between short connections to one target.
    pause: Duration,
    stop: Arc<AtomicBool>,
}

impl Clock {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// Sends nothing: how late the machine wakes a thread that sleeps as long as one of the others.
fn lateness(clock: &Clock) -> Tally {
    let mut tally = Tally::default();
    while !clock.stopped() {
        let begin = Instant::now();
        std::thread::sleep(BEAT);
        let late = begin.elapsed().saturating_sub(BEAT);
        tally.late_ms = tally.late_ms.max(late.as_millis() as u64);
    }
    tally
}

fn short_connections(target: &Target, clock: &Clock) -> Tally {
    let mut tally = Tally::default();
    let mut due = Instant::now();
    while !clock.stopped() {
        let begin = Instant::now();
        match one_request(target.tcp) {
            Ok(text) => match pod_of(&text) {
                Some(pod) if target.pods.iter().any(|wanted| wanted == pod) => {
                    tally.connections += 1;
                    tally.slowest_ms = tally.slowest_ms.max(begin.elapsed().as_millis() as u64);
                }
                _ => tally.wrong(clock.begin, format!("{}: {text:?}", target.tcp)),
            },
            Err(error) => tally.failed(clock.begin, &format!("connection to {}", target.tcp), &error),
        }
        due += clock.pause;
        // what a stall has put off is not made up for in a burst
        due = due.max(Instant::now().checked_sub(clock.pause).unwrap_or(due));
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    tally
}

fn one_request(to: SocketAddr) -> std::io::Result<String> {
    let mut stream = connect(to)?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

fn connect(to: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Name of the pod in a server's reply.
fn pod_of(text: &str) -> Option<&str> {
    let mut words = text.split_whitespace();
    words.by_ref().find(|word| *word == "pod")?;
    words.next()
}

fn pattern(at: u64) -> u8 {
    (at % 251) as u8
}

fn long_transfer(target: &Target, clock: &Clock) -> Tally {
    let mut tally = Tally::default();
    let what = format!("transfer to {}", target.tcp);
    let stream = match connect(target.tcp).and_then(|mut stream| {
        stream.write_all(b"PIPE\n")?;
        Ok(stream)
    }) {
        Ok(stream) => stream,
        Err(error) => {
            tally.failed(clock.begin, &what, &error);
            return tally;
        }
    };
    let (sent, received) = std::thread::scope(|scope| {
        let sender = scope.spawn(|| send_pattern(&stream, clock));
        let received = receive_pattern(&stream, clock, &what, &mut tally);
        let sent = sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (sent, received)
    });
    match sent {
        Ok(sent) if received == Some(sent) => tally.transfers += 1,
        Ok(sent) => {
            // a read that failed was counted already
            if let Some(received) = received {
                tally.wrong(clock.begin, format!("{what}: {sent} bytes sent, {received} came back"));
            }
        }
        Err(error) => tally.failed(clock.begin, &what, &error),
    }
    tally
}

fn send_pattern(mut stream: &TcpStream, clock: &Clock) -> std::io::Result<u64> {
    let mut sent = 0;
    while !clock.stopped() {
        let chunk: Vec<u8> = (sent..sent + CHUNK as u64).map(pattern).collect();
        stream.write_all(&chunk)?;
        sent += CHUNK as u64;
        std::thread::sleep(BEAT);
    }
    stream.shutdown(Shutdown::Write)?;
    Ok(sent)
}

/// Bytes until the end; `None` after a failure, which is in the tally.
fn receive_pattern(mut stream: &TcpStream, clock: &Clock, what: &str, tally: &mut Tally) -> Option<u64> {
    let mut buffer = [0; CHUNK];
    let mut received = 0;
    loop {
        let begin = Instant::now();
        match stream.read(&mut buffer) {
            Ok(0) => return Some(received),
            Ok(length) => {
                tally.stall_ms = tally.stall_ms.max(begin.elapsed().as_millis() as u64);
                if !buffer[..length].iter().zip(received..).all(|(byte, at)| *byte == pattern(at)) {
                    tally.wrong(clock.begin, format!("{what}: other bytes came back near {received}"));
                    return None;
                }
                received += length as u64;
                tally.bytes += length as u64;
            }
            Err(error) => {
                tally.failed(clock.begin, what, &error);
                return None;
            }
        }
    }
}

fn datagrams(target: &Target, clock: &Clock) -> Tally {
    let mut tally = Tally::default();
    let what = format!("UDP to {}", target.udp);
    let any: SocketAddr =
        if target.udp.is_ipv6() { (Ipv6Addr::UNSPECIFIED, 0).into() } else { ([0, 0, 0, 0], 0).into() };
    let socket = match UdpSocket::bind(any).and_then(|socket| {
        socket.connect(target.udp)?;
        socket.set_read_timeout(Some(ANSWER))?;
        Ok(socket)
    }) {
        Ok(socket) => socket,
        Err(error) => {
            tally.failed(clock.begin, &what, &error);
            return tally;
        }
    };
    let mut number = 0u64;
    while !clock.stopped() {
        number += 1;
        match one_datagram(&socket, number) {
            Ok(None) => {
                tally.lost += 1;
                tally.text(clock.begin, format!("{what}: datagram {number} was not answered"));
            }
            Ok(Some(text)) if pod_of(&text).is_some_and(|pod| target.pods.iter().any(|p| p == pod)) => {
                tally.datagrams += 1;
            }
            Ok(Some(text)) => tally.wrong(clock.begin, format!("{what}: {text:?}")),
            Err(error) => tally.failed(clock.begin, &what, &error),
        }
        std::thread::sleep(DATAGRAM_BEAT);
    }
    tally
}

/// The answer to one datagram, `None` if it does not come; late answers to earlier ones are passed over.
fn one_datagram(socket: &UdpSocket, number: u64) -> std::io::Result<Option<String>> {
    socket.send(format!("seq {number}").as_bytes())?;
    let mut buffer = [0; 2048];
    loop {
        let length = match socket.recv(&mut buffer) {
            Ok(length) => length,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        if text.split_whitespace().last().and_then(|word| word.parse().ok()) == Some(number) {
            return Ok(Some(text));
        }
    }
}
