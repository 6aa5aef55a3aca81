//! What runs in a pod: one TCP port and one UDP port that tell who answered and whom they saw.
//!
//! TCP speaks by its first line: `GET ...` gives an HTTP answer, `ECHO` echoes lines until the end, `PIPE` echoes
//! bytes, `BULK n` reads n bytes and sends them back. Every answer is `pod NAME node NODE peer ADDRESS`; a datagram
//! `seq N` has its own text at the end of the answer, and `BIG n` asks for one of n bytes.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};

use anyhow::{Context, Result};

use super::worker::plain;

/// Serves TCP and UDP on a port forever, on one address or (`::`) on every address of both families. On one address
/// a datagram's answer comes from it; on all, from where the kernel thinks fit.
///
/// # Errors
/// When a port is taken.
pub(crate) fn serve(pod: &str, node: &str, address: IpAddr, port: u16) -> Result<()> {
    let listener = TcpListener::bind((address, port)).context("TCP port")?;
    let socket = UdpSocket::bind((address, port)).context("UDP port")?;
    println!("listening");
    std::io::stdout().flush()?;
    let name = format!("pod {pod} node {node}");
    let udp_name = name.clone();
    std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        loop {
            // an ICMP error of an earlier answer is reported here too; it concerns nobody else
            if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let text = String::from_utf8_lossy(&buffer[..length]);
                let sequence = if text.starts_with("seq ") { &text } else { "" };
                let mut answer =
                    format!("{udp_name} peer {} {sequence}", plain(from)).trim_end().as_bytes().to_vec();
                if let Some(bytes) = text.strip_prefix("BIG ").and_then(|size| size.trim().parse().ok()) {
                    answer.resize(bytes, b' ');
                }
                socket.send_to(&answer, from).ok();
            }
        }
    });
    for stream in listener.incoming().flatten() {
        let name = name.clone();
        std::thread::spawn(move || converse(&stream, &name));
    }
    Ok(())
}

fn converse(stream: &TcpStream, name: &str) -> std::io::Result<()> {
    let who = format!("{name} peer {}", plain(stream.peer_addr()?));
    let (mut reader, mut writer) = (BufReader::new(stream), stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    match line.split_whitespace().collect::<Vec<_>>()[..] {
        ["GET", ..] => {
            while !line.trim().is_empty() {
                line.clear();
                reader.read_line(&mut line)?;
            }
            write!(writer, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{who}\n", who.len() + 1)
        }
        ["ECHO"] => {
            writeln!(writer, "{who}")?;
            loop {
                line.clear();
                if reader.read_line(&mut line)? == 0 {
                    return Ok(());
                }
                writer.write_all(line.as_bytes())?;
            }
        }
        ["PIPE"] => std::io::copy(&mut reader, &mut writer).map(drop),
        ["BULK", bytes] => {
            let mut data = vec![0; bytes.parse().unwrap_or(0)];
            reader.read_exact(&mut data)?;
            writer.write_all(&data)
        }
        _ => Ok(()),
    }
}
