//! Connected UDP sockets leave an endpoint that is gone (B105-B110, as users see them).
//!
//! A socket is translated once, in connect(); no hook sees its datagrams afterwards, so it would go on sending to where
//! nobody listens, for ever. When an endpoint leaves its service port, the sockets that a hook aimed at it are aborted:
//! the next call fails with ECONNABORTED, and who connects again gets another endpoint. Sockets that were connected to the
//! same pod directly, and TCP (B106), are left alone.
//!
//! **Invariants:** it runs after the tables were written, so that who connects again meets the new ones; and once more
//! a second later, for a connect() that had read the old ones. Only a socket whose backend's generation has moved is
//! aborted. Read [`Cutover::aimed`] and [`is_stale`] first.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::path::Path;

use lb_common::abi::{SkConnected, names};
use tracing::{info, warn};

use super::diag::{Connected, Sockets};
use crate::apply::raw::Raw;
use crate::desired::{Changes, Desired};
use crate::sys::bpf::RawMap;

/// Seconds between two looks for entries of closed sockets.
const TIDY: u32 = 16;

/// Whether a generation of some backend differs between two states of the tables, of which no rows but those of `changes` do.
#[must_use]
pub fn moves(actual: &Desired, desired: &Desired, changes: &Changes) -> bool {
    fn differs(old: &BTreeMap<u32, u32>, new: &BTreeMap<u32, u32>, rows: Option<&BTreeSet<u32>>) -> bool {
        match rows {
            None => old.iter().any(|(id, generation)| new.get(id) != Some(generation)),
            Some(rows) => rows.iter().any(|id| old.get(id).is_some_and(|was| new.get(id) != Some(was))),
        }
    }
    let keys = changes.keys();
    differs(&actual.generations4, &desired.generations4, keys.map(|k| &k.generations4))
        || differs(&actual.generations6, &desired.generations6, keys.map(|k| &k.generations6))
}

/// Whether a socket's backend is gone: its generation is another one now.
fn is_stale(socket: &Connected, aimed: SkConnected, tables: &Desired) -> bool {
    let generations = match socket.to.0 {
        IpAddr::V4(_) => &tables.generations4,
        IpAddr::V6(_) => &tables.generations6,
    };
    generations.get(&aimed.backend) != Some(&aimed.generation)
}

/// What is left to do.
#[derive(Debug)]
pub struct Cutover {
    sockets: Sockets,
    aimed: RawMap,
    /// To be done after the next complete apply.
    due: bool,
    /// To be done once more.
    again: bool,
    /// Seconds until closed sockets are looked for.
    tidy: u32,
    /// Entries without a socket at the last look: a connect() may have been under way.
    closed: BTreeSet<u64>,
    /// The kernel cannot do it: said once.
    refused: bool,
}

impl Cutover {
    /// Opens what it takes; `folder` holds the pins.
    ///
    /// # Errors
    /// `LB_SK_CONN` is missing, or there is no netlink socket.
    pub fn open(folder: &Path) -> io::Result<Cutover> {
        Ok(Cutover {
            sockets: Sockets::open()?,
            aimed: RawMap::open(&folder.join(names::LB_SK_CONN))?,
            // endpoints may have gone while no agent ran
            due: true,
            again: false,
            tidy: TIDY,
            closed: BTreeSet::new(),
            refused: false,
        })
    }

    /// Notes that an apply is about to move generations.
    pub fn expect(&mut self, moves: bool) {
        self.due |= moves;
    }

    /// The tables are written: aborts the sockets whose endpoint they no longer name.
    pub fn carry_out(&mut self, tables: &Desired) {
        if std::mem::take(&mut self.due) {
            self.abort(tables);
            self.again = true;
        }
    }

    /// A second later: sockets that were connected meanwhile by the old tables; now and then, entries of closed ones.
    pub fn tick(&mut self, tables: &Desired) {
        if std::mem::take(&mut self.again) {
            self.abort(tables);
        }
        self.tidy -= 1;
        if self.tidy == 0 {
            self.tidy = TIDY;
            if let Err(error) = self.forget_closed() {
                warn!(%error, "LB_SK_CONN cannot be tidied");
            }
        }
    }

    fn abort(&mut self, tables: &Desired) {
        if self.refused {
            return;
        }
        match self.try_abort(tables) {
            Ok(0) => {}
            Ok(count) => info!(count, "Told connected UDP sockets that their endpoint is gone"),
            Err(error) => {
                self.refused = matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOENT));
                warn!(
                    %error,
                    "Connected UDP sockets of this host keep endpoints that are gone until they connect again (the \
                     kernel needs CONFIG_INET_UDP_DIAG and CONFIG_INET_DIAG_DESTROY)"
                );
            }
        }
    }

    fn try_abort(&self, tables: &Desired) -> io::Result<usize> {
        let mut count = 0;
        for socket in self.sockets.connected_udp()? {
            if self.aimed(socket.cookie)?.is_some_and(|aimed| is_stale(&socket, aimed, tables)) {
                count += usize::from(self.sockets.destroy(&socket)?);
            }
        }
        Ok(count)
    }

    /// What a hook aimed a socket at; `None` = it was connected without a hook's doing.
    fn aimed(&self, cookie: u64) -> io::Result<Option<SkConnected>> {
        let mut value = [0; SkConnected::LEN];
        let found = self.aimed.lookup(&cookie.to_ne_bytes(), &mut value)?;
        Ok(found.then(|| SkConnected::get(&value)))
    }

    /// Deletes the entries that had no socket at this look and at the one before.
    fn forget_closed(&mut self) -> io::Result<()> {
        let open: BTreeSet<u64> = self.sockets.connected_udp()?.iter().map(|socket| socket.cookie).collect();
        let mut closed = BTreeSet::new();
        let mut key = self.aimed.next_key(None)?;
        while let Some(bytes) = key {
            key = self.aimed.next_key(Some(&bytes))?;
            if let Ok(cookie) = <[u8; 8]>::try_from(bytes.as_slice()).map(u64::from_ne_bytes)
                && !open.contains(&cookie)
            {
                if self.closed.contains(&cookie) {
                    self.aimed.delete(&bytes)?;
                } else {
                    closed.insert(cookie);
                }
            }
        }
        self.closed = closed;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::Keys;

    fn tables(generations: &[(u32, u32)]) -> Desired {
        Desired { generations4: generations.iter().copied().collect(), ..Desired::default() }
    }

    #[test]
    fn b105_b107_only_a_moved_generation_makes_a_socket_stale() {
        let (before, after) = (tables(&[(1, 5), (2, 5)]), tables(&[(1, 5), (2, 6), (3, 1)]));
        let all = Changes::All;
        assert!(moves(&before, &after, &all) && !moves(&after, &after, &all));
        let named =
            |id| Changes::Some(Box::new(Keys { generations4: BTreeSet::from([id]), ..Keys::default() }));
        let seen = [1, 2, 3].map(|id| moves(&before, &after, &named(id)));
        assert_eq!(seen.iter().filter(|moves| **moves).count(), 1, "only the row that moved: {seen:?}");
        // an endpoint that comes takes nothing away
        assert!(!moves(&before, &tables(&[(1, 5), (2, 5), (3, 1)]), &all));
        assert!(!moves(&before, &tables(&[(1, 5), (2, 5), (3, 1)]), &named(3)));
        let socket = Connected::to("10.0.0.1:53".parse().unwrap());
        let stale = |backend, generation| is_stale(&socket, SkConnected { backend, generation }, &after);
        assert_eq!([stale(1, 5), stale(2, 5), stale(2, 6), stale(9, 1)], [false, true, false, true]);
        // ids of the other family are other ids
        let socket = Connected::to("[::1]:53".parse().unwrap());
        assert!(is_stale(&socket, SkConnected { backend: 1, generation: 5 }, &after));
    }
}
