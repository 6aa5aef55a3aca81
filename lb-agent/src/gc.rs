//! Deletes flows that have ended or expired, in bounded slices.
//!
//! The kernel never deletes a flow by time: it only stops touching it. The tables would still work without this
//! (they are LRU), but a full LRU evicts live flows as well. So the fuller a table is, the more time a turn gets, and
//! the sooner what is over or hardly begun goes ([`Timeouts::at`]); what is alive keeps its time.
//!
//! **Invariants:** an entry goes only after its time-out; a flow that wakes in the microseconds between look and
//! deletion is put back by the other half of its pair. Read [`Sweeper::turn`] first; [`expired`] is pure.

pub mod alerts;
pub mod evicted;
pub mod ports;

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use lb_common::abi::{
    CT_DSR, CT_FIN_BACKEND, CT_FIN_CLIENT, CT_REPLIED, CT_RST, CtKey4, CtKey6, CtValue4, CtValue6, SkUdpKey,
    SkUdpValue, names,
};
use lb_common::counter::Counter;

use self::evicted::{Balance, Evicted};
use self::ports::{Holds, PortUse};
use crate::apply::raw::Raw;
use crate::datapath::counters;
use crate::model::Family;
use crate::sys::bpf::RawMap;

/// Nanoseconds of one tick of `last_tick`, as a shift.
const TICK_SHIFT: u32 = 30;
/// The kernel gives whole buckets, so a round must have room for the longest one.
const MAX_ROUND: u32 = 1 << 16;

/// How long flows are kept after their last packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP and SCTP after the handshake.
    pub established: Duration,
    /// TCP after one side's FIN.
    pub half_closed: Duration,
    /// TCP and SCTP after both sides' FIN, or a RST.
    pub closing: Duration,
    /// TCP of which only the client is seen (DSR) after its FIN.
    pub dsr_closing: Duration,
    /// TCP and SCTP before the handshake is over.
    pub embryonic: Duration,
    /// UDP without an answer, or answered within its first two seconds and no more.
    pub udp: Duration,
    /// UDP streams: answered, and gone on with after two seconds.
    pub udp_replied: Duration,
}

impl Default for Timeouts {
    /// 24 h and 1 h as kube-proxy's `conntrack.tcpEstablishedTimeout` and `tcpCloseWaitTimeout`; the others as netfilter's own defaults, except 10 s
    /// for closing (netfilter: 120 s in TIME_WAIT), because a SYN on a closed flow is decided anew anyway.
    fn default() -> Self {
        Timeouts {
            established: Duration::from_secs(24 * 3600),
            half_closed: Duration::from_secs(3600),
            closing: Duration::from_secs(10),
            dsr_closing: Duration::from_secs(120),
            embryonic: Duration::from_secs(60),
            udp: Duration::from_secs(30),
            udp_replied: Duration::from_secs(180),
        }
    }
}

impl Timeouts {
    /// The times in a table that is filled so far (0 to 1). From the half on, what is over, or hardly begun, goes sooner:
    /// a packet that is sent again after a loss comes within 2 s, mostly; an answer to a datagram, too. What is alive
    /// keeps its time, but for UDP streams in a table that is nearly full.
    #[must_use]
    pub fn at(self, fill: f64) -> Timeouts {
        let most = |time: Duration, seconds: u64| time.min(Duration::from_secs(seconds));
        let (closing, embryonic, udp, stream) = match fill {
            _ if fill >= TIGHT => (2, 8, 6, 60),
            _ if fill >= HALF => (4, 20, 15, 180),
            _ => return self,
        };
        Timeouts {
            closing: most(self.closing, closing),
            embryonic: most(self.embryonic, embryonic),
            udp: most(self.udp, udp),
            udp_replied: most(self.udp_replied, stream),
            ..self
        }
    }
}

/// Fill from which a table is swept harder, ...
const HALF: f64 = 0.5;
/// ... and hardest.
const TIGHT: f64 = 0.75;

/// What a turn may take while no table is half full, while one is, and when one is tight: at most 5 % of a CPU, with
/// some 200 ns an entry.
const TURNS: [Duration; 3] = [Duration::from_millis(2), Duration::from_millis(20), Duration::from_millis(50)];

/// What decides an entry's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    /// IP protocol number.
    pub proto: u8,
    /// `CT_*` bits.
    pub flags: u16,
    /// Last packet, ticks of 2^30 ns since boot.
    pub last_tick: u32,
}

/// Whether an entry is over at `now` (ticks).
///
/// Pure. `embryonic`: it was found in a table of embryonic flows. A last packet in the future (the clock was read
/// before the table) counts as now.
#[must_use]
pub fn expired(life: Life, embryonic: bool, now: u32, timeouts: &Timeouts) -> bool {
    let connection = matches!(i32::from(life.proto), libc::IPPROTO_TCP | libc::IPPROTO_SCTP);
    let fins = CT_FIN_CLIENT | CT_FIN_BACKEND;
    let dsr = life.flags & CT_DSR != 0;
    let limit = if !connection {
        if dsr || life.flags & CT_REPLIED != 0 && !embryonic { timeouts.udp_replied } else { timeouts.udp }
    } else if life.flags & CT_RST != 0 || life.flags & fins == fins {
        timeouts.closing
    } else if dsr && life.flags & CT_FIN_CLIENT != 0 {
        timeouts.dsr_closing
    } else if embryonic {
        timeouts.embryonic
    } else if life.flags & fins != 0 {
        timeouts.half_closed
    } else {
        timeouts.established
    };
    let age = now.wrapping_sub(life.last_tick);
    let age = if age > u32::MAX / 2 { 0 } else { age };
    u128::from(age) << TICK_SHIFT >= limit.as_nanos()
}

/// One flow table under the sweep.
#[derive(Debug)]
struct FlowTable {
    name: &'static str,
    map: RawMap,
    life: fn(&[u8], &[u8]) -> Life,
    /// Whose source port an entry holds, in a table of flows.
    holds: Option<Holds>,
    family: Option<Family>,
    embryonic: bool,
    /// Where the next round goes on; `None` = at the start.
    position: Option<Vec<u8>>,
    round: u32,
    /// Live entries of this pass so far, ...
    live: u64,
    /// ... and all entries that it met.
    met: u64,
    /// How full the last pass found it, before it deleted anything.
    fill: f64,
    /// Counters of the entries that the programs made and deleted, where they are counted.
    counted: Option<[Counter; 2]>,
    /// Entries that the sweep deleted.
    swept: u64,
    evicted: Evicted,
}

/// Fill of one table, counted by a whole pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Occupancy {
    /// The table's name.
    pub table: &'static str,
    /// Entries that are alive.
    pub live: u64,
    /// Entries that the pass met, those included that it deleted.
    pub met: u64,
    /// Its capacity.
    pub capacity: u32,
    /// Entries that the kernel evicted since the sweeper was opened, at least; counted for established flows only.
    pub evicted: u64,
}

/// What one [`Sweeper::step`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SweepReport {
    /// Entries looked at.
    pub scanned: u64,
    /// Entries deleted.
    pub deleted: u64,
    /// The table whose pass this step ended, if it did.
    pub finished: Option<Occupancy>,
}

/// Walks over all flow tables, again and again.
#[derive(Debug)]
pub struct Sweeper {
    tables: Vec<FlowTable>,
    current: usize,
    timeouts: Timeouts,
    ports: [PortUse; 2],
    counters: RawMap,
}

macro_rules! life {
    ($key:ty, $value:ty) => {
        |key: &[u8], value: &[u8]| {
            let (key, value) = (<$key>::get(key), <$value>::get(value));
            Life { proto: key.proto, flags: value.flags, last_tick: value.last_tick }
        }
    };
}

impl Sweeper {
    /// Opens the flow tables pinned in `folder`.
    ///
    /// # Errors
    /// With the name of a table that is missing or of another shape.
    pub fn open(folder: &Path, timeouts: Timeouts) -> io::Result<Self> {
        type Parts = (&'static str, fn(&[u8], &[u8]) -> Life, usize, usize, bool, Option<Family>);
        let v4: fn(&[u8], &[u8]) -> Life = life!(CtKey4, CtValue4);
        let v6: fn(&[u8], &[u8]) -> Life = life!(CtKey6, CtValue6);
        // A correspondent is known like a UDP flow that was answered; that its socket is closed nobody tells.
        let correspondent: fn(&[u8], &[u8]) -> Life = |_key: &[u8], value: &[u8]| Life {
            proto: libc::IPPROTO_UDP as u8,
            flags: CT_REPLIED,
            last_tick: SkUdpValue::get(value).last_tick,
        };
        let parts: [Parts; 5] = [
            (names::LB_CT4, v4, CtKey4::LEN, CtValue4::LEN, false, Some(Family::V4)),
            (names::LB_CT6, v6, CtKey6::LEN, CtValue6::LEN, false, Some(Family::V6)),
            (names::LB_EM4, v4, CtKey4::LEN, CtValue4::LEN, true, Some(Family::V4)),
            (names::LB_EM6, v6, CtKey6::LEN, CtValue6::LEN, true, Some(Family::V6)),
            (names::LB_SK_UDP, correspondent, SkUdpKey::LEN, SkUdpValue::LEN, false, None),
        ];
        let mut tables = Vec::new();
        for (name, life, key, value, embryonic, family) in parts {
            let map = RawMap::open(&folder.join(name))
                .map_err(|error| io::Error::new(error.kind(), format!("{name}: {error}")))?;
            if map.info().key_size as usize != key || map.value_len() != value {
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{name}: other sizes")));
            }
            tables.push(FlowTable {
                name,
                map,
                life,
                holds: family.map(|family| ports::holder(family, embryonic)),
                family,
                embryonic,
                position: None,
                round: 0,
                live: 0,
                met: 0,
                fill: 0.0,
                counted: match (family, embryonic) {
                    (Some(Family::V4), false) => Some([Counter::Established4Made, Counter::Established4Gone]),
                    (Some(Family::V6), false) => Some([Counter::Established6Made, Counter::Established6Gone]),
                    _ => None,
                },
                swept: 0,
                evicted: Evicted::default(),
            });
        }
        let counters = RawMap::open(&folder.join(names::LB_COUNTERS))
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", names::LB_COUNTERS)))?;
        Ok(Sweeper { tables, current: 0, timeouts, ports: Default::default(), counters })
    }

    /// One turn, to be had once a second: sweeps slices of `budget` entries until every table was seen, or its time is
    /// over, which is short as long as no table fills up. Tells of the tables whose pass ended.
    ///
    /// # Errors
    /// As [`Sweeper::step`].
    pub fn turn(&mut self, budget: u32) -> io::Result<Vec<Occupancy>> {
        let begin = Instant::now();
        let mut finished = Vec::new();
        loop {
            finished.extend(self.step(budget)?.finished);
            let fullest = self.tables.iter().map(FlowTable::present_fill).fold(0.0, f64::max);
            let time = TURNS[usize::from(fullest >= HALF) + usize::from(fullest >= TIGHT)];
            if finished.len() >= self.tables.len() || begin.elapsed() >= time {
                return Ok(finished);
            }
        }
    }

    /// How far the source ports towards the backends of a family are in use, by the last whole pass.
    #[must_use]
    pub fn ports(&self, family: Family) -> &PortUse {
        &self.ports[family as usize]
    }

    /// Looks at about `budget` entries of the table it is at, and deletes those that are over.
    ///
    /// At the end of a table it reports the fill and goes on with the next one at the next call. Two to three system
    /// calls a step; a few hundred nanoseconds an entry.
    ///
    /// # Errors
    /// As the kernel says; the next call starts the table again.
    pub fn step(&mut self, budget: u32) -> io::Result<SweepReport> {
        let now = (crate::sys::monotonic_ns() >> TICK_SHIFT) as u32;
        let table = &mut self.tables[self.current];
        let ports = table.family.map(|family| &mut self.ports[family as usize]);
        if let Some(balance) = table.balance(&self.counters)? {
            table.evicted.begin(balance);
        }
        let mut result = table.step(budget, now, &self.timeouts, ports);
        if let Ok(SweepReport { finished: Some(found), .. }) = &mut result
            && let Some(balance) = table.balance(&self.counters)?
        {
            table.evicted.end(balance, found.met);
            found.evicted = table.evicted.count();
        }
        match &result {
            Ok(report) if report.finished.is_none() => {}
            _ => {
                if result.is_err() {
                    table.evicted.abandon();
                }
                table.position = None;
                (table.live, table.met) = (0, 0);
                self.current = (self.current + 1) % self.tables.len();
            }
        }
        result
    }

    /// Capacity of all tables together: what a pass has to look at, at most.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.tables.iter().map(|table| u64::from(table.map.info().max_entries)).sum()
    }
}

impl FlowTable {
    /// What was put in and taken out, where it is counted.
    fn balance(&self, map: &RawMap) -> io::Result<Option<Balance>> {
        let Some([made, gone]) = self.counted else { return Ok(None) };
        let (made, gone) = (counters::one(map, made as u32)?, counters::one(map, gone as u32)?);
        Ok(Some(Balance { made, gone, swept: self.swept }))
    }

    /// How full it is, as far as is known: this pass may have met more than the last one.
    fn present_fill(&self) -> f64 {
        self.fill.max(self.met as f64 / f64::from(self.map.info().max_entries))
    }

    fn step(
        &mut self,
        budget: u32,
        now: u32,
        timeouts: &Timeouts,
        mut ports: Option<&mut PortUse>,
    ) -> io::Result<SweepReport> {
        let timeouts = timeouts.at(self.present_fill());
        if let Some(ports) = &mut ports
            && self.position.is_none()
            && !self.embryonic
        {
            ports.begin();
        }
        let mut round = budget.clamp(64, MAX_ROUND).max(self.round);
        let batch = loop {
            match self.map.lookup_batch(self.position.as_deref(), round) {
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && round < MAX_ROUND => round *= 2,
                result => break result?,
            }
        };
        if round > budget {
            self.round = round;
        }
        let info = self.map.info();
        let keys = batch.keys.chunks_exact(info.key_size as usize);
        let mut over = Vec::new();
        let mut report = SweepReport::default();
        for (key, value) in keys.zip(batch.values.chunks_exact(self.map.value_len())) {
            report.scanned += 1;
            if expired((self.life)(key, value), self.embryonic, now, &timeouts) {
                over.extend_from_slice(key);
                continue;
            }
            self.live += 1;
            if let (Some(ports), Some(holds)) = (&mut ports, self.holds) {
                ports.add(holds(key, value));
            }
        }
        self.met += report.scanned;
        report.deleted = self.delete(&over)?;
        self.swept += report.deleted;
        self.position = batch.next;
        if self.position.is_none() {
            let (live, met, capacity) = (self.live, self.met, info.max_entries);
            self.fill = met as f64 / f64::from(capacity);
            report.finished = Some(Occupancy { table: self.name, live, met, capacity, evicted: 0 });
            if let Some(ports) = ports
                && self.embryonic
            {
                ports.end();
            }
        }
        Ok(report)
    }

    /// Deletes keys that may be gone already; returns how many were there.
    fn delete(&self, mut keys: &[u8]) -> io::Result<u64> {
        let size = self.map.info().key_size as usize;
        let mut deleted = 0;
        while !keys.is_empty() {
            let (done, result) = self.map.delete_batch(keys, (keys.len() / size) as u32);
            deleted += u64::from(done);
            match result {
                Ok(()) => break,
                // Evicted meanwhile: go on behind it.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                    keys = &keys[(done as usize + 1) * size..];
                }
                Err(error) => return Err(error),
            }
        }
        Ok(deleted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ticks of some seconds, rounded up.
    fn ticks(seconds: u64) -> u32 {
        ((seconds * 1_000_000_000) >> TICK_SHIFT) as u32 + 1
    }

    #[test]
    fn each_state_has_its_time() {
        const TCP: u8 = 6;
        const UDP: u8 = 17;
        const SCTP: u8 = 132;
        let fins = CT_FIN_CLIENT | CT_FIN_BACKEND;
        // Protocol, flags, embryonic, seconds.
        let rows = [
            (TCP, CT_REPLIED, false, 24 * 3600),
            (SCTP, CT_REPLIED, false, 24 * 3600),
            (TCP, CT_REPLIED | CT_FIN_CLIENT, false, 3600),
            (TCP, CT_REPLIED | CT_FIN_BACKEND, false, 3600),
            (TCP, CT_REPLIED | fins, false, 10),
            (TCP, CT_RST, true, 10),
            (TCP, 0, true, 60),
            (SCTP, CT_REPLIED, true, 60),
            (UDP, 0, true, 30),
            (UDP, CT_REPLIED, true, 30),
            (UDP, CT_REPLIED, false, 180),
            // FIN bits mean nothing without connections.
            (UDP, CT_REPLIED | fins, false, 180),
        ];
        let timeouts = Timeouts::default();
        for (proto, flags, embryonic, seconds) in rows {
            let life = Life { proto, flags, last_tick: 1000 };
            let over = |now| expired(life, embryonic, now, &timeouts);
            assert!(over(1000 + ticks(seconds)), "{proto} {flags:#x} {embryonic}");
            assert!(!over(1000 + ticks(seconds) - 2), "{proto} {flags:#x} {embryonic}");
        }
    }

    #[test]
    fn a_table_that_fills_up_loses_what_is_over_sooner_and_nothing_that_is_alive() {
        let usual = Timeouts::default();
        assert_eq!(usual.at(0.49), usual);
        let mut before = usual;
        for fill in [0.5, 0.75, 1.0] {
            let now = usual.at(fill);
            for (shorter, longer) in [
                (now.closing, before.closing),
                (now.embryonic, before.embryonic),
                (now.udp, before.udp),
                (now.udp_replied, before.udp_replied),
            ] {
                assert!(shorter <= longer && shorter >= Duration::from_secs(2));
            }
            assert_eq!((now.established, now.half_closed), (usual.established, usual.half_closed));
            before = now;
        }
        assert!(before.closing < usual.closing && before.embryonic < usual.embryonic);
    }

    #[test]
    fn ticks_wrap_and_may_be_ahead_of_the_clock() {
        let timeouts = Timeouts::default();
        let life = |last_tick| Life { proto: 17, flags: 0, last_tick };
        assert!(!expired(life(1001), true, 1000, &timeouts));
        assert!(expired(life(u32::MAX - 10), true, ticks(30), &timeouts));
        assert!(!expired(life(u32::MAX - 2), true, 3, &timeouts));
    }
}
