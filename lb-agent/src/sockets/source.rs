//! `LB_SRC4/6`: the source address that a socket of the host gets towards a frontend.
//!
//! A socket hook runs before the kernel chooses a source, and cannot ask for it. Affinity (B63) and source ranges (B99)
//! go by the client's address, so for the frontends of such service ports the agent asks the kernel's routing, as
//! connect() would, and writes the answer down. Routes and addresses change without events that we follow (a router
//! has many), so a slice of the answers is asked for again every second.
//!
//! **Invariants:** the table holds frontends that are wanted, and no other; what routing cannot answer has no row. Read
//! [`wanted`] first; it is pure.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use lb_common::abi::{
    NODE_HOST_NODEPORT, NODE_NODEPORT, SVC_RANGES, SvcKey4, SvcKey6, SvcValue, capacity, names,
};

use super::netlink::{Netlink, REQUEST, attribute, find};
use crate::desired::{Changes, Desired, Keys};
use crate::sys::bpf::RawMap;

/// Answers that one [`Sources::refresh`] asks for again: some 5 us each.
const SLICE: usize = 512;
const NETLINK_ROUTE: isize = 0;
const RTM_GETROUTE: u16 = 26;
const RTA_DST: u16 = 1;
const RTA_PREFSRC: u16 = 7;
/// Bytes of `struct rtmsg`.
const RTMSG: usize = 12;

/// The addresses of frontends whose clients' addresses matter; that of a NodePort is the unspecified one.
///
/// Pure. `of`: these addresses only; `None` = all.
#[must_use]
pub fn asking(desired: &Desired, of: Option<&BTreeSet<IpAddr>>) -> BTreeSet<IpAddr> {
    let asks = |v: &SvcValue| v.affinity_s != 0 || v.flags & SVC_RANGES != 0;
    let Some(some) = of else {
        let four = desired.services4.iter().map(|(k, v)| (IpAddr::from(k.addr), v));
        let six = desired.services6.iter().map(|(k, v)| (IpAddr::from(k.addr), v));
        return four.chain(six).filter(|(_, v)| asks(v)).map(|(a, _)| a).collect();
    };
    let any = |address: &IpAddr| match address {
        IpAddr::V4(a) => {
            let first = SvcKey4 { addr: a.octets(), ..SvcKey4::default() };
            desired.services4.range(first..).take_while(|(k, _)| k.addr == first.addr).any(|(_, v)| asks(v))
        }
        IpAddr::V6(a) => {
            let first = SvcKey6 { addr: a.octets(), ..SvcKey6::default() };
            desired.services6.range(first..).take_while(|(k, _)| k.addr == first.addr).any(|(_, v)| asks(v))
        }
    };
    some.iter().copied().filter(any).collect()
}

/// The addresses whose sources are wanted where these ask: a NodePort's are those it answers on.
///
/// Pure. At most as many of a family as the table takes.
#[must_use]
pub fn wanted(asking: &BTreeSet<IpAddr>, desired: &Desired) -> BTreeSet<IpAddr> {
    let mut found = asking.clone();
    let answers = |flags: u32| flags & (NODE_NODEPORT | NODE_HOST_NODEPORT) != 0;
    if found.remove(&Ipv4Addr::UNSPECIFIED.into()) {
        found.extend(desired.node4.iter().filter(|(_, f)| answers(**f)).map(|(a, _)| IpAddr::from(*a)));
    }
    if found.remove(&Ipv6Addr::UNSPECIFIED.into()) {
        found.extend(desired.node6.iter().filter(|(_, f)| answers(**f)).map(|(a, _)| IpAddr::from(*a)));
    }
    let mut left = [capacity::SOURCES; 2];
    found.retain(|address| {
        let left = if address.is_ipv4() { &mut left[0] } else { &mut left[1] };
        *left = left.saturating_sub(1);
        *left > 0
    });
    found
}

/// What asks now, where `before` did and no rows but `keys` have changed; `None` = the same, on the same addresses.
fn other_asking(before: &BTreeSet<IpAddr>, desired: &Desired, keys: &Keys) -> Option<BTreeSet<IpAddr>> {
    let four = keys.services4.iter().map(|k| IpAddr::from(k.addr));
    let touched: BTreeSet<IpAddr> = four.chain(keys.services6.iter().map(|k| IpAddr::from(k.addr))).collect();
    let now = asking(desired, Some(&touched));
    let same = touched.iter().all(|address| before.contains(address) == now.contains(address));
    if same && keys.node4.is_empty() && keys.node6.is_empty() {
        return None;
    }
    Some(before.difference(&touched).chain(&now).copied().collect())
}

/// The tables with what they hold; the only writer.
#[derive(Debug)]
pub struct Sources {
    v4: RawMap,
    v6: RawMap,
    route: Netlink,
    held: BTreeMap<IpAddr, IpAddr>,
    wanted: BTreeSet<IpAddr>,
    /// See [`asking`]; `None` = the tables may lack something of it.
    asking: Option<BTreeSet<IpAddr>>,
    /// Where the next refresh goes on.
    next: Option<IpAddr>,
}

impl Sources {
    /// Opens the tables pinned in `folder` and reads them.
    ///
    /// # Errors
    /// A table is missing or cannot be read, or there is no netlink socket.
    pub fn open(folder: &Path) -> io::Result<Sources> {
        let open = |name: &str| {
            RawMap::open(&folder.join(name))
                .map_err(|error| io::Error::new(error.kind(), format!("{name}: {error}")))
        };
        let (v4, v6) = (open(names::LB_SRC4)?, open(names::LB_SRC6)?);
        let route = Netlink::open(NETLINK_ROUTE)?;
        let mut held = BTreeMap::new();
        read::<4>(&v4, |frontend, source| held.insert(frontend.into(), source.into()))?;
        read::<16>(&v6, |frontend, source| held.insert(frontend.into(), source.into()))?;
        Ok(Sources { v4, v6, route, held, wanted: BTreeSet::new(), asking: None, next: None })
    }

    /// Makes the tables fit what is about to be applied: new frontends get their answer, others go. `changes` names the rows
    /// that may differ from those of the last call.
    ///
    /// # Errors
    /// The first that was met; the rest was tried.
    pub fn follow(&mut self, desired: &Desired, changes: &Changes) -> io::Result<()> {
        let now = match (self.asking.take(), changes.keys()) {
            (Some(before), Some(keys)) => match other_asking(&before, desired, keys) {
                Some(now) => now,
                None => {
                    self.asking = Some(before);
                    return Ok(());
                }
            },
            _ => asking(desired, None),
        };
        self.wanted = wanted(&now, desired);
        let gone: Vec<IpAddr> = self.held.keys().filter(|a| !self.wanted.contains(a)).copied().collect();
        let new: Vec<IpAddr> = self.wanted.iter().filter(|a| !self.held.contains_key(a)).copied().collect();
        let removed = gone.into_iter().map(|frontend| self.set(frontend, None)).collect::<Vec<_>>();
        let asked = new.into_iter().map(|frontend| self.update(frontend)).collect::<Vec<_>>();
        removed.into_iter().chain(asked).collect::<io::Result<()>>()?;
        self.asking = Some(now);
        Ok(())
    }

    /// Asks again for some of the answers, those of the last call's successors.
    ///
    /// # Errors
    /// The first that was met; the rest was tried.
    pub fn refresh(&mut self) -> io::Result<()> {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = self.next.map_or(Unbounded, Excluded);
        let slice: Vec<IpAddr> = self.wanted.range((from, Unbounded)).take(SLICE).copied().collect();
        self.next = slice.last().filter(|_| slice.len() == SLICE).copied();
        let results: Vec<_> = slice.into_iter().map(|frontend| self.update(frontend)).collect();
        results.into_iter().collect()
    }

    fn update(&mut self, frontend: IpAddr) -> io::Result<()> {
        let source = source_towards(&self.route, frontend)?;
        self.set(frontend, source)
    }

    fn set(&mut self, frontend: IpAddr, source: Option<IpAddr>) -> io::Result<()> {
        if self.held.get(&frontend) == source.as_ref() {
            return Ok(());
        }
        match (frontend, source) {
            (IpAddr::V4(f), Some(IpAddr::V4(s))) => self.v4.update(&f.octets(), &s.octets())?,
            (IpAddr::V6(f), Some(IpAddr::V6(s))) => self.v6.update(&f.octets(), &s.octets())?,
            (IpAddr::V4(f), _) => self.v4.delete(&f.octets())?,
            (IpAddr::V6(f), _) => self.v6.delete(&f.octets())?,
        }
        match source {
            Some(source) => self.held.insert(frontend, source),
            None => self.held.remove(&frontend),
        };
        Ok(())
    }
}

/// Every entry of a table of addresses.
fn read<const N: usize>(
    map: &RawMap,
    mut take: impl FnMut([u8; N], [u8; N]) -> Option<IpAddr>,
) -> io::Result<()> {
    let mut key = map.next_key(None)?;
    while let Some(found) = key {
        let mut value = [0; N];
        if map.lookup(&found, &mut value)?
            && let Ok(frontend) = <[u8; N]>::try_from(found.as_slice())
        {
            take(frontend, value);
        }
        key = map.next_key(Some(&found))?;
    }
    Ok(())
}

/// The source that the kernel's routing gives a socket without one; `None` = there is no route.
///
/// # Errors
/// Netlink failed otherwise.
pub fn source_towards(route: &Netlink, frontend: IpAddr) -> io::Result<Option<IpAddr>> {
    let (family, octets) = match frontend {
        IpAddr::V4(a) => (libc::AF_INET, a.octets().to_vec()),
        IpAddr::V6(a) => (libc::AF_INET6, a.octets().to_vec()),
    };
    let mut body = vec![0; RTMSG];
    if let [af, bits, ..] = body.as_mut_slice() {
        (*af, *bits) = (family as u8, 8 * octets.len() as u8);
    }
    body.extend(attribute(RTA_DST, &octets));
    let mut source = None;
    let asked = route.ask(RTM_GETROUTE, REQUEST, &body, |answer| {
        source = answer.get(RTMSG..).and_then(|attributes| find(attributes, RTA_PREFSRC)).and_then(address);
    });
    match asked {
        Ok(()) => Ok(source),
        // what connect() would fail with, too
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL)
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn address(octets: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(octets).map(IpAddr::from);
    four.or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from)).ok()
}

#[cfg(test)]
mod tests {
    use lb_common::abi::NODE_LOCAL;

    use super::*;

    #[test]
    fn b63_b99_only_frontends_that_ask_for_the_client_are_wanted() {
        let mut desired = Desired::default();
        let mut put = |last: u8, value: SvcValue| {
            desired
                .services4
                .insert(SvcKey4 { addr: [10, 0, 0, last], port: [0, 80], proto: 6, _pad: 0 }, value);
            let mut addr = [0; 16];
            addr[15] = last;
            desired.services6.insert(SvcKey6 { addr, port: [0, 80], proto: 6, _pad: 0 }, value);
        };
        put(1, SvcValue { id: 1, ..SvcValue::default() });
        put(2, SvcValue { id: 2, affinity_s: 60, ..SvcValue::default() });
        put(3, SvcValue { id: 3, flags: SVC_RANGES, ..SvcValue::default() });
        let text = |desired: &Desired| {
            let found = wanted(&asking(desired, None), desired);
            found.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(text(&desired), ["10.0.0.2", "10.0.0.3", "::2", "::3"]);
        // a NodePort with affinity
        let affine = SvcValue { id: 4, affinity_s: 60, ..SvcValue::default() };
        desired.services4.clear();
        desired.services6.clear();
        desired.services4.insert(SvcKey4 { addr: [0; 4], port: [117, 48], proto: 6, _pad: 0 }, affine);
        desired.node4.insert([192, 0, 2, 1], NODE_LOCAL | NODE_NODEPORT);
        desired.node4.insert([192, 0, 2, 2], NODE_LOCAL);
        desired.node4.insert([127, 0, 0, 1], NODE_LOCAL | NODE_HOST_NODEPORT);
        assert_eq!(text(&desired), ["127.0.0.1", "192.0.2.1"]);
    }

    #[test]
    fn b63_what_asks_is_followed_by_the_rows_that_changed() {
        let key = |last: u8, port: u8| SvcKey4 { addr: [10, 0, 0, last], port: [0, port], proto: 6, _pad: 0 };
        let (asks, quiet) = (SvcValue { affinity_s: 60, ..SvcValue::default() }, SvcValue::default());
        let mut desired = Desired::default();
        let mut before = BTreeSet::new();
        let steps = [
            (key(1, 80), Some(asks)),
            (key(1, 81), Some(asks)),
            (key(1, 80), Some(quiet)),
            (key(2, 80), Some(quiet)),
            (SvcKey4 { addr: [0; 4], ..key(0, 80) }, Some(asks)),
            (key(1, 81), None),
            (SvcKey4 { addr: [0; 4], ..key(0, 80) }, None),
        ];
        let mut others = 0;
        for (key, value) in steps {
            match value {
                Some(value) => _ = desired.services4.insert(key, value),
                None => _ = desired.services4.remove(&key),
            }
            let keys = Keys { services4: BTreeSet::from([key]), ..Keys::default() };
            if let Some(now) = other_asking(&before, &desired, &keys) {
                others += 1;
                before = now;
            }
            assert_eq!(before, asking(&desired, None));
        }
        assert_eq!(others, 4, "a frontend that asks beside others, or never did, changes nothing");
        let keys = Keys { node4: BTreeSet::from([[192, 0, 2, 1]]), ..Keys::default() };
        assert!(other_asking(&before, &desired, &keys).is_some(), "NodePorts answer elsewhere");
    }

    #[test]
    fn the_kernel_gives_the_source_that_a_socket_gets() {
        let route = Netlink::open(NETLINK_ROUTE).unwrap();
        for to in ["127.0.0.1", "127.9.9.9", "::1", "10.255.255.254"] {
            let to: IpAddr = to.parse().unwrap();
            let any: IpAddr =
                if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            let socket = std::net::UdpSocket::bind((any, 0));
            let real = socket.and_then(|s| s.connect((to, 9)).and_then(|()| s.local_addr())).ok();
            assert_eq!(source_towards(&route, to).unwrap(), real.map(|r| r.ip()), "{to}");
        }
    }
}
