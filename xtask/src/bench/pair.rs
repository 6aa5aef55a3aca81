//! A client's and a server's sockets in this one process, each in a network namespace of its own: what goes between them
//! is all this process's work.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::meter::Meter;
use crate::lab::netns;

const CHUNK: usize = 64 << 10;
const PATIENCE: Duration = Duration::from_secs(2);

/// What a slice does again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    /// Connect, request, answer, close; an operation is one of it.
    Connections,
    /// Connect and close.
    Connects,
    /// A request and its answer, 64 bytes each, on one connection.
    Exchanges,
    /// One connection, 64 KiB per operation.
    Stream,
}

/// The two ends.
pub(crate) struct Pair {
    client: File,
    listener: TcpListener,
    /// What the client dials.
    pub(crate) to: SocketAddr,
    home: File,
}

impl Pair {
    /// A server that listens in a namespace, and a client in another that dials it at this address.
    ///
    /// # Errors
    /// When a namespace is not there, or the port is taken.
    pub(crate) fn new(client: &str, server: &str, address: &str, port: u16) -> Result<Self> {
        let listener = netns::inside(server, || {
            // another listener of an earlier load may have left connections in TIME-WAIT: std sets SO_REUSEADDR
            Ok(TcpListener::bind((IpAddr::from(Ipv4Addr::UNSPECIFIED), port))?)
        })?;
        Ok(Self {
            client: File::open(netns::path(client))?,
            listener,
            to: SocketAddr::new(address.parse()?, port),
            home: File::open("/proc/thread-self/ns/net")?,
        })
    }

    /// CPU nanoseconds per operation during one slice.
    ///
    /// # Errors
    /// When a connection fails, or what arrives differs from what was sent.
    pub(crate) fn slice(&mut self, load: Load, meter: &Meter, length: Duration) -> Result<f64> {
        netns::enter(&self.client)?;
        let done = self.inside(load, meter, length).with_context(|| format!("{load:?} to {}", self.to));
        netns::enter(&self.home)?;
        done
    }

    fn inside(&mut self, load: Load, meter: &Meter, length: Duration) -> Result<f64> {
        let mut stream = match load {
            Load::Connections | Load::Connects => None,
            Load::Exchanges | Load::Stream => Some(self.connect()?),
        };
        let mut buffer = vec![7; CHUNK];
        let (begin, cpu) = (Instant::now(), meter.now()?);
        let mut operations = 0u32;
        while begin.elapsed() < length {
            match (load, &mut stream) {
                (Load::Stream, Some((client, server))) => {
                    client.write_all(&buffer)?;
                    server.read_exact(&mut buffer)?;
                }
                (_, Some((client, server))) => exchange(client, server)?,
                (Load::Connects, None) => {
                    let (client, server) = self.connect()?;
                    close(client, server)?;
                }
                (_, None) => {
                    let (mut client, mut server) = self.connect()?;
                    exchange(&mut client, &mut server)?;
                    close(client, server)?;
                }
            }
            operations += 1;
        }
        Ok((meter.now()? - cpu) as f64 / f64::from(operations))
    }

    fn connect(&self) -> Result<(TcpStream, TcpStream)> {
        let client = TcpStream::connect_timeout(&self.to, PATIENCE).context("connecting")?;
        let (server, _) = self.listener.accept()?;
        for socket in [&client, &server] {
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.set_write_timeout(Some(PATIENCE))?;
            // a chunk must fit, since one thread writes and then reads it
            set_buffers(socket, 4 * CHUNK as libc::c_int)?;
        }
        Ok((client, server))
    }
}

fn exchange(client: &mut TcpStream, server: &mut TcpStream) -> Result<()> {
    let mut byte = [0; 64];
    client.write_all(&[1; 64])?;
    server.read_exact(&mut byte)?;
    server.write_all(&[2; 64])?;
    client.read_exact(&mut byte)?;
    ensure!(byte == [2; 64], "the answer differs");
    Ok(())
}

/// The server closes first, so TIME-WAIT stays there and the client's ports are free again.
fn close(mut client: TcpStream, server: TcpStream) -> Result<()> {
    drop(server);
    ensure!(client.read(&mut [0; 64])? == 0, "no end of the connection");
    Ok(())
}

fn set_buffers(socket: &TcpStream, bytes: libc::c_int) -> Result<()> {
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
