//! Two tun devices in two namespaces with a wire between them: the L3 device that every kernel has.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result};

use super::netns::{inside, ip};

/// `TUNSETIFF`.
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;

/// The wire; dropping it takes the devices away.
pub(crate) struct Tunnel {
    over: Arc<AtomicBool>,
    carried: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Tunnel {
    /// A device of that name in each namespace, up.
    ///
    /// # Errors
    /// Without /dev/net/tun, or when the name is taken.
    pub(crate) fn new(first: &str, second: &str, name: &str) -> Result<Self> {
        let ends = [open(first, name)?, open(second, name)?].map(Arc::new);
        for namespace in [first, second] {
            ip(namespace, &[format!("link set {name} up")])?;
        }
        let mut tunnel = Self { over: Arc::default(), carried: Arc::default(), threads: Vec::new() };
        for (from, to) in [(0, 1), (1, 0)] {
            let (from, to) = (ends[from].clone(), ends[to].clone());
            let (over, carried) = (tunnel.over.clone(), tunnel.carried.clone());
            tunnel.threads.push(std::thread::spawn(move || carry(&from, &to, &over, &carried)));
        }
        Ok(tunnel)
    }

    /// Packets that went over it.
    pub(crate) fn packets(&self) -> u64 {
        self.carried.load(Ordering::Relaxed)
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

fn open(namespace: &str, name: &str) -> Result<File> {
    inside(namespace, || {
        let file = File::options().read(true).write(true).open("/dev/net/tun").context("/dev/net/tun")?;
        // struct ifreq: the name, then the flags
        let mut request = [0_u8; 40];
        request.iter_mut().zip(name.bytes().take(15)).for_each(|(to, from)| *to = from);
        let flags = (libc::IFF_TUN | libc::IFF_NO_PI) as i16;
        request[16..18].copy_from_slice(&flags.to_ne_bytes());
        // SAFETY: the descriptor is open, the request has the size of a struct ifreq.
        match unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, request.as_mut_ptr()) } {
            0 => Ok(file),
            _ => Err(std::io::Error::last_os_error()).context("TUNSETIFF"),
        }
    })
}

fn carry(from: &File, to: &File, over: &AtomicBool, carried: &AtomicU64) {
    let mut packet = vec![0; 65536];
    let (mut reader, mut writer) = (from, to);
    while !over.load(Ordering::Relaxed) {
        let mut wait = libc::pollfd { fd: from.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one structure of ours, an open descriptor.
        if unsafe { libc::poll(&raw mut wait, 1, 100) } <= 0 {
            continue;
        }
        let Ok(length) = reader.read(&mut packet) else { return };
        // a device that is down refuses, as a wire would lose it
        if writer.write_all(packet.get(..length).unwrap_or_default()).is_ok() {
            carried.fetch_add(1, Ordering::Relaxed);
        }
    }
}
