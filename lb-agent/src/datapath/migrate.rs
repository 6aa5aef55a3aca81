//! From the pins of an earlier agent whose tables have another layout, to ours, under traffic.
//!
//! The new set is made beside the old one, which goes on serving:
//!
//! 1. [`Migration::prepare`], at start: tables that programs write and whose layout is the same are *shared* (the very
//!    same map is pinned in both sets); those that the agent writes are copied, so that ids and generations are taken
//!    over and the old programs' tables stay as they are.
//! 2. [`Migration::begin`], when the agent has filled its tables: what programs write and is not shared is copied;
//!    the links move to the new set; from here `CFG_MIGRATING` is set in both, so that a packet whose entry is on the
//!    way is dropped (and sent again) instead of passed or reset.
//! 3. The programs are replaced in the links.
//! 4. [`Migration::settle`]: what is still missing is copied (the old programs went on making flows), the flag goes.
//! 5. [`Migration::finish`], when the socket programs are replaced, too: the old set goes.
//!
//! **Invariant:** killed at any moment, the next agent goes on: see [`super::sets`]. Before the links have moved it
//! begins anew, afterwards it goes on with step 2, and never replaces an entry of the new tables.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use lb_common::abi::layout::{Carry, carry};
use lb_common::abi::{CFG_MIGRATING, names};
use tracing::{info, warn};

use super::carry::{Copied, Existing, copy, difference};
use super::load::Object;
use super::manifest::Manifest;
use super::pins::Pins;
use super::sets::{self, Set};
use crate::sys::bpf::{self, RawMap};

/// Tables that programs write.
const KERNEL_WRITTEN: &[&str] = &[
    names::LB_PAIRS,
    names::LB_AFF4,
    names::LB_AFF6,
    names::LB_CT4,
    names::LB_CT6,
    names::LB_EM4,
    names::LB_EM6,
    names::LB_FRAG4,
    names::LB_FRAG6,
    names::LB_SK_PEER,
    names::LB_SK_CONN,
    names::LB_SK_UDP,
    names::LB_COUNTERS,
];

/// Tables whose entries name backend ids with the generations of this one.
const BY_GENERATION: &[(&str, &[&str])] = &[
    (names::LB_GEN4, &[names::LB_AFF4, names::LB_CT4, names::LB_EM4]),
    (names::LB_GEN6, &[names::LB_AFF6, names::LB_CT6, names::LB_EM6]),
    (names::LB_GEN4, &[names::LB_SK_PEER, names::LB_SK_CONN, names::LB_SK_UDP]),
    (names::LB_GEN6, &[names::LB_SK_PEER, names::LB_SK_CONN, names::LB_SK_UDP]),
];

/// A set to take over from.
#[derive(Clone, Debug)]
struct Source {
    set: Set,
    manifest: Manifest,
}

impl Source {
    fn open(set: Set) -> io::Result<Self> {
        Ok(Source { manifest: Manifest::load(&set.folder, set.version)?, set })
    }

    /// The map of that name; `None` if it has none.
    fn map(&self, name: &str) -> io::Result<Option<RawMap>> {
        match RawMap::open(&self.set.folder.join(name)) {
            Ok(map) => Ok(Some(map)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What becomes of the entries of a map. Entries that name generations go with the generations, or not at all.
    fn carry(&self, name: &str) -> Carry {
        let without = |(generations, tables): &(&str, &[&str])| {
            tables.contains(&name)
                && matches!(carry(generations, self.manifest.layout(generations)), Carry::Forget)
        };
        if BY_GENERATION.iter().any(without) {
            return Carry::Forget;
        }
        carry(name, self.manifest.layout(name))
    }
}

/// A migration under way.
#[derive(Debug)]
pub(super) struct Migration {
    /// The set that served until now first.
    sources: Vec<Source>,
    /// Maps that are the same in the first source and in the new set.
    shared: BTreeSet<&'static str>,
    /// The links are in the new set: programs of ours may run.
    begun: bool,
    /// Every TC program is ours, and everything was copied since.
    settled: bool,
    started: Instant,
}

impl Migration {
    /// A new set in `pins`, to take over from `sources` (the live set first). Shares maps; the others are made by
    /// loading the object.
    ///
    /// # Errors
    /// As the kernel says; the new set is given up by the next survey.
    pub(super) fn plan(sources: Vec<Set>, pins: &Pins, object: &Object) -> io::Result<Self> {
        let sources = sources.into_iter().map(Source::open).collect::<io::Result<Vec<_>>>()?;
        let mut shared = BTreeSet::new();
        if let Some(live) = sources.first() {
            for (name, wanted) in object.wanted() {
                let Some(map) = live.map(name)? else { continue };
                if KERNEL_WRITTEN.contains(name)
                    && matches!(live.carry(name), Carry::Same)
                    && difference(map.info(), *wanted).is_none()
                {
                    bpf::obj_pin(&map, &pins.map(name))?;
                    shared.insert(*name);
                }
            }
        }
        Ok(Migration { sources, shared, begun: false, settled: false, started: Instant::now() })
    }

    /// A set in `pins` that has the links already, and sources that were not yet removed.
    ///
    /// # Errors
    /// As the kernel says.
    pub(super) fn resume(sources: Vec<Set>) -> io::Result<Self> {
        let sources = sources.into_iter().map(Source::open).collect::<io::Result<Vec<_>>>()?;
        Ok(Migration {
            sources,
            shared: BTreeSet::new(),
            begun: true,
            settled: false,
            started: Instant::now(),
        })
    }

    /// Step 1, when the maps of the new set are there: copies what the agent writes.
    ///
    /// # Errors
    /// As the kernel says.
    pub(super) fn prepare(&self, pins: &Pins) -> io::Result<()> {
        let Some(live) = self.sources.first().filter(|_| !self.begun) else { return Ok(()) };
        let mut total = Copied::default();
        for name in names::PINNED_MAPS.iter().filter(|name| !KERNEL_WRITTEN.contains(name)) {
            let Some(old) = live.map(name)? else { continue };
            let how = live.carry(name);
            if matches!(how, Carry::Forget) {
                warn!(
                    table = name,
                    layout = live.manifest.layout(name),
                    "A table of a layout that this agent does not know: filled anew"
                );
            }
            total.add(copy(&old, &RawMap::open(&pins.map(name))?, how, Existing::Replace)?);
        }
        info!(
            from = %live.set.folder.display(),
            to = %pins.folder().display(),
            entries = total.written,
            left = total.left,
            shared = self.shared.len(),
            "Tables of another layout: made new ones beside them"
        );
        Ok(())
    }

    /// Step 2. May be called again, after a settling that found programs which could not be replaced.
    ///
    /// # Errors
    /// As the kernel says; nothing was replaced.
    pub(super) fn begin(&mut self, pins: &Pins) -> io::Result<()> {
        if self.settled {
            return Ok(());
        }
        let existing = if self.begun { Existing::Keep } else { Existing::Replace };
        self.copy_flows(pins, existing)?;
        if !self.begun {
            if let Some(live) = self.sources.first() {
                match std::fs::rename(live.set.folder.join(sets::LINKS), pins.links()) {
                    // Removed by hand: nothing is attached.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        std::fs::create_dir(pins.links())?
                    }
                    result => result?,
                }
            }
            self.begun = true;
        }
        for source in &self.sources {
            if let Some(config) = source.map(names::LB_CONFIG)? {
                mark(&config, true)?;
            }
        }
        mark(&RawMap::open(&pins.map(names::LB_CONFIG))?, true)
    }

    /// Step 4. `complete`: every link has its new program.
    ///
    /// # Errors
    /// As the kernel says; it is tried again by the next begin.
    pub(super) fn settle(&mut self, pins: &Pins, complete: bool) -> io::Result<()> {
        if self.settled {
            return Ok(());
        }
        let copied = self.copy_flows(pins, Existing::Keep);
        // Whatever happened: packets without state are not to be dropped for longer than this.
        mark(&RawMap::open(&pins.map(names::LB_CONFIG))?, false)?;
        let copied = copied?;
        self.settled = complete;
        info!(
            late = copied.written,
            complete,
            ms = self.started.elapsed().as_millis(),
            "Programs use the new tables"
        );
        Ok(())
    }

    /// Step 5; returns the final folder of the set, or `None` if it is too early.
    ///
    /// # Errors
    /// As the kernel says; it is tried again by the next call.
    pub(super) fn finish(&mut self, bpffs: &Path, pins: &Pins) -> io::Result<Option<PathBuf>> {
        if !self.settled {
            return Ok(None);
        }
        // The old socket programs went on after the settling.
        self.copy_flows(pins, Existing::Keep)?;
        while let Some(source) = self.sources.first() {
            sets::retire(bpffs, &source.set)?;
            self.sources.remove(0);
        }
        let folder = sets::finish(bpffs, pins.folder())?;
        info!(folder = %folder.display(), "The old tables are gone");
        Ok(Some(folder))
    }

    /// Copies what programs write and is not shared; says what is lost, the first time.
    fn copy_flows(&self, pins: &Pins, existing: Existing) -> io::Result<Copied> {
        let mut total = Copied::default();
        for (number, source) in self.sources.iter().enumerate() {
            let existing = if number == 0 { existing } else { Existing::Keep };
            for name in KERNEL_WRITTEN.iter().filter(|name| number > 0 || !self.shared.contains(*name)) {
                let Some(old) = source.map(name)? else { continue };
                let new = RawMap::open(&pins.map(name))?;
                if old.info().id == new.info().id {
                    continue;
                }
                if *name == names::LB_PAIRS {
                    // Hashes can't be read backwards: every pair may have a flow.
                    new.update(&0u32.to_ne_bytes(), &vec![1; new.value_len()])?;
                    continue;
                }
                let how = source.carry(name);
                if matches!(how, Carry::Forget) && !self.begun {
                    let layout = source.manifest.layout(name);
                    warn!(
                        table = name,
                        layout,
                        "A table of a layout that this agent does not know: what it holds is forgotten, and \
                         connections in it are reset"
                    );
                }
                total.add(copy(&old, &new, how, existing)?);
            }
        }
        Ok(total)
    }
}

/// Sets or clears [`CFG_MIGRATING`] in a configuration of any layout.
fn mark(config: &RawMap, on: bool) -> io::Result<()> {
    let key = 0u32.to_ne_bytes();
    let mut value = vec![0; config.value_len()];
    config.lookup(&key, &mut value)?;
    let Some((flags, _)) = value.split_first_chunk_mut::<4>() else { return Ok(()) };
    let bits = u32::from_ne_bytes(*flags);
    *flags = (if on { bits | CFG_MIGRATING } else { bits & !CFG_MIGRATING }).to_ne_bytes();
    config.update(&key, &value)
}
