//! `cargo xtask bench direct`: what traffic that is not ours pays for the agent's presence (invariant I5).
//!
//! Two pods of one node talk directly; the server pod is itself a backend of a Service, so its packets pass the
//! look-ups of both hooks. Client and server live in one process pinned to one core, and the kernel's work on a veth
//! is done by the sender, so `CLOCK_PROCESS_CPUTIME_ID` counts everything. Many short slices in random order; the
//! ratio is min / min. The second idle arm shows what the machine's noise alone does: a run in which it is off by
//! more than 4 % says nothing.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::meter::{cpu_nanoseconds, pin_to_one_core};
use super::stats::{NOISE, interval, least, median, order};
use crate::lab::manifests::Service;
use crate::lab::{Kind, Lab, netns};
use crate::packages;

/// Slices per arm.
const SLICES: usize = 24;
const SLICE: Duration = Duration::from_millis(150);
const CHUNK: usize = 64 << 10;

/// What a slice does again and again.
#[derive(Clone, Copy, Debug)]
enum Load {
    /// Connect, request, answer, close; an operation is one of it.
    Connections,
    /// One connection, 64 KiB per operation.
    Stream,
}

/// Measures both loads and prints a line for each. The figures themselves never fail.
///
/// # Errors
/// When the cluster can't be built, the agent does not start, or traffic gets lost or is altered.
pub(crate) fn direct(agent: &Path) -> Result<()> {
    packages::need(packages::LAB)?;
    let mut lab = Lab::new("lbbench", Kind::Friendly)?;
    let service = Service {
        name: "bench".into(),
        cluster_ips: vec!["10.96.0.10".into(), "fd96::10".into()],
        ..Service::default()
    };
    lab.service(&service, &["p1a"])?;
    pin_to_one_core()?;
    for load in [Load::Connections, Load::Stream] {
        let mut pair = Pair::new(&lab)?;
        let mut arms: [Vec<f64>; 3] = Default::default();
        pair.slice(load)?; // caches, neighbours
        // the agent is attached and detached for blocks of slices: its start is much longer than a slice
        for block in order(3, SLICES / 4) {
            let attached = block == 2;
            if attached {
                lab.nodes[0].start_agent(agent)?;
                // its own work is not what is measured; the programs stay when it is gone
                lab.nodes[0].stop_agent(libc::SIGTERM)?;
            }
            for _ in 0..4 {
                let cost = pair.slice(load)?;
                arms[block].push(cost);
            }
            if attached {
                lab.nodes[0].agent_command(agent, "cleanup")?;
            }
        }
        report(load, &arms);
    }
    Ok(())
}

fn report(load: Load, arms: &[Vec<f64>; 3]) {
    let noise = least(&arms[1]) / least(&arms[0]);
    let idle: Vec<f64> = arms[0].iter().chain(&arms[1]).copied().collect();
    let ratio = least(&arms[2]) / least(&idle);
    let (low, high) = interval(&arms[2], &idle);
    println!(
        "    direct {load:?}: {:.0} ns idle, {:.0} ns with the agent: x{ratio:.3} min/min, x{:.3} median [{low:.3}, {high:.3}], \
         A/A x{noise:.3}{}",
        least(&idle),
        least(&arms[2]),
        median(&arms[2]) / median(&idle),
        if (noise - 1.0).abs() > NOISE { " (void: the machine is too noisy)" } else { "" }
    );
}

/// Client and server sockets of two pods in this one process.
struct Pair {
    client: File,
    listener: TcpListener,
    to: SocketAddr,
    home: File,
}

impl Pair {
    fn new(lab: &Lab) -> Result<Self> {
        let server = &lab.pods["p1a"];
        let port = 9000;
        let listener = netns::inside(&server.namespace, || {
            // another listener of an earlier load may have left connections in TIME-WAIT: std sets SO_REUSEADDR
            Ok(TcpListener::bind(("0.0.0.0", port))?)
        })?;
        Ok(Self {
            client: File::open(netns::path(&lab.pods["p1b"].namespace))?,
            listener,
            to: SocketAddr::new(server.addresses[0].parse()?, port),
            home: File::open("/proc/thread-self/ns/net")?,
        })
    }

    /// CPU nanoseconds per operation during one slice.
    fn slice(&mut self, load: Load) -> Result<f64> {
        netns::enter(&self.client)?;
        let done = self.inside(load);
        netns::enter(&self.home)?;
        done
    }

    fn inside(&mut self, load: Load) -> Result<f64> {
        let mut stream = match load {
            Load::Connections => None,
            Load::Stream => Some(self.connect()?),
        };
        let mut buffer = vec![7; CHUNK];
        let (begin, cpu) = (Instant::now(), cpu_nanoseconds());
        let mut operations = 0u32;
        while begin.elapsed() < SLICE {
            match &mut stream {
                None => self.connection()?,
                Some((client, server)) => {
                    client.write_all(&buffer)?;
                    server.read_exact(&mut buffer)?;
                }
            }
            operations += 1;
        }
        Ok((cpu_nanoseconds() - cpu) as f64 / f64::from(operations))
    }

    fn connect(&self) -> Result<(TcpStream, TcpStream)> {
        let client = TcpStream::connect_timeout(&self.to, Duration::from_secs(2)).context("connecting")?;
        let (server, _) = self.listener.accept()?;
        for socket in [&client, &server] {
            socket.set_read_timeout(Some(Duration::from_secs(2)))?;
            socket.set_write_timeout(Some(Duration::from_secs(2)))?;
            // a chunk must fit, since one thread writes and then reads it
            set_buffers(socket, 4 * CHUNK as libc::c_int)?;
        }
        Ok((client, server))
    }

    fn connection(&self) -> Result<()> {
        let (mut client, mut server) = self.connect()?;
        let mut byte = [0; 64];
        client.write_all(&[1; 64])?;
        server.read_exact(&mut byte)?;
        server.write_all(&[2; 64])?;
        client.read_exact(&mut byte)?;
        ensure!(byte == [2; 64], "the answer differs");
        // the server closes first, so TIME-WAIT stays there and the client's ports are free again
        drop(server);
        ensure!(client.read(&mut byte)? == 0, "no end of the connection");
        Ok(())
    }
}

fn set_buffers(socket: &TcpStream, bytes: libc::c_int) -> Result<()> {
    use std::os::fd::AsRawFd;
    for option in [libc::SO_SNDBUFFORCE, libc::SO_RCVBUFFORCE] {
        // SAFETY: the descriptor is open and the value is an int of the length given.
        let done = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                (&raw const bytes).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        ensure!(done == 0, "buffer size: {}", std::io::Error::last_os_error());
    }
    Ok(())
}
