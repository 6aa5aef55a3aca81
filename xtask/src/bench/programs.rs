//! The programs of target/lb-bench.o, loaded once per place that needs maps of its own.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};
use aya::maps::{Array, HashMap, MapData, PerCpuArray};
use aya::programs::links::LinkOrder;
use aya::programs::tc::TcAttachOptions;
use aya::programs::{CgroupAttachMode, CgroupSockAddr, SchedClassifier, TcAttachType, Xdp};
use aya::{Ebpf, EbpfLoader};
use lb_common::bench::{BenchConfig, BenchKey, BenchPeer, BenchValue, Count};

use crate::lab::xdp::attach;
use crate::paths;

/// Programs that share a configuration and counts.
pub(crate) struct Programs {
    ebpf: Ebpf,
    links: Vec<OwnedFd>,
}

impl Programs {
    /// Maps only; programs are loaded when they are asked for.
    ///
    /// # Errors
    /// When the object is missing or the kernel refuses.
    pub(crate) fn load() -> Result<Self> {
        let object = std::fs::read(paths::bench_object())
            .with_context(|| format!("{}: not built yet", paths::bench_object().display()))?;
        Ok(Self { ebpf: EbpfLoader::new().load(&object)?, links: Vec::new() })
    }

    /// An XDP program, loaded.
    ///
    /// # Errors
    /// When there is none of that name, or the verifier refuses it.
    pub(crate) fn xdp(&mut self, name: &str) -> Result<OwnedFd> {
        let program: &mut Xdp = self.ebpf.program_mut(name).context("no such program")?.try_into()?;
        if program.fd().is_err() {
            program.load().with_context(|| name.to_owned())?;
        }
        Ok(program.fd()?.as_fd().try_clone_to_owned()?)
    }

    /// Attaches an XDP program to an interface of the calling thread's namespace, natively, while this lives.
    ///
    /// # Errors
    /// As [`Programs::xdp`], and when the device refuses.
    pub(crate) fn attach(&mut self, name: &str, ifindex: u32) -> Result<()> {
        let program = self.xdp(name)?;
        self.links.push(attach(&program, ifindex).with_context(|| name.to_owned())?);
        Ok(())
    }

    /// Attaches a program to what an interface of the calling thread's namespace receives, or sends, while this
    /// lives (TCX, Linux 6.6: a link knows its interface, whichever namespace lets it go).
    ///
    /// # Errors
    /// As [`Programs::attach`].
    pub(crate) fn classify(&mut self, name: &str, device: &str, hook: TcAttachType) -> Result<()> {
        let program: &mut SchedClassifier =
            self.ebpf.program_mut(name).context("no such program")?.try_into()?;
        if program.fd().is_err() {
            program.load().with_context(|| name.to_owned())?;
        }
        program
            .attach_with_options(device, hook, TcAttachOptions::TcxOrder(LinkOrder::default()))
            .with_context(|| format!("{name} on {device}"))?;
        Ok(())
    }

    /// Attaches a socket program to a cgroup while this lives.
    ///
    /// # Errors
    /// As [`Programs::attach`].
    pub(crate) fn cgroup(&mut self, name: &str, group: &Path) -> Result<()> {
        let program: &mut CgroupSockAddr =
            self.ebpf.program_mut(name).context("no such program")?.try_into()?;
        program.load().with_context(|| name.to_owned())?;
        program.attach(std::fs::File::open(group)?, CgroupAttachMode::Single)?;
        Ok(())
    }

    /// What the programs are told.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn configure(&mut self, config: BenchConfig) -> Result<()> {
        let mut map: Array<&mut MapData, BenchConfig> =
            self.ebpf.map_mut("BENCH_CONFIG").context("no such map")?.try_into()?;
        Ok(map.set(0, config, 0)?)
    }

    /// How often so far, all CPUs.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn count(&self, what: Count) -> Result<u64> {
        let map: PerCpuArray<&MapData, u64> =
            self.ebpf.map("BENCH_COUNTS").context("no such map")?.try_into()?;
        Ok(map.get(&(what as u32), 0)?.iter().sum())
    }

    /// Tells the ideal program what becomes of a flow.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn flows(&mut self, flows: impl IntoIterator<Item = (BenchKey, BenchValue)>) -> Result<()> {
        let mut map: HashMap<&mut MapData, BenchKey, BenchValue> =
            self.ebpf.map_mut("BENCH_FLOWS").context("no such map")?.try_into()?;
        for (key, value) in flows {
            map.insert(key, value, 0)?;
        }
        Ok(())
    }

    /// Tells the ideal between pods where the one whose address ends so is.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn peer(&mut self, last: u8, peer: BenchPeer) -> Result<()> {
        let mut map: Array<&mut MapData, BenchPeer> =
            self.ebpf.map_mut("BENCH_PEERS").context("no such map")?.try_into()?;
        Ok(map.set(u32::from(last), peer, 0)?)
    }
}
