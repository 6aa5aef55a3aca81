//! How many source ports of the pool are in use towards each backend, counted by the sweep as it passes.
//!
//! A masqueraded flow takes one port of (SNAT address, backend, protocol). Flows that have ended do not count: their
//! ports are used again when no others are left.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use lb_common::abi::{CT_REPLIED, CtKey, CtKey4, CtKey6, CtValue, CtValue4, CtValue6};
use lb_common::family::Family as Side;
use lb_common::flow::{Role, is_closed};

use crate::apply::raw::Raw;
use crate::model::Family;

/// Tuples that are counted, at most: as many as there are backends by default. Others are left out.
const MOST: usize = 131_072;

/// One pool of source ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tuple {
    /// Address and port of the backend.
    pub backend: SocketAddr,
    /// IP protocol number.
    pub proto: u8,
    /// The node's address that stands for the clients.
    pub snat: IpAddr,
}

impl fmt::Display for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let proto = match i32::from(self.proto) {
            libc::IPPROTO_TCP => "TCP",
            libc::IPPROTO_UDP => "UDP",
            libc::IPPROTO_SCTP => "SCTP",
            _ => "?",
        };
        write!(f, "backend {}/{proto} from {}", self.backend, self.snat)
    }
}

/// Counts of one family.
#[derive(Debug, Default)]
pub struct PortUse {
    counting: HashMap<Tuple, u32>,
    /// The most used pools of the last whole pass, the most used first.
    top: Vec<(Tuple, u32)>,
}

/// Pools that are told of.
const TOP: usize = 16;

impl PortUse {
    /// A pass begins.
    pub fn begin(&mut self) {
        self.counting.clear();
    }

    /// An entry holds a port of this tuple, or none.
    pub fn add(&mut self, holds: Option<Tuple>) {
        let Some(tuple) = holds else { return };
        if let Some(count) = self.counting.get_mut(&tuple) {
            *count += 1;
        } else if self.counting.len() < MOST {
            self.counting.insert(tuple, 1);
        }
    }

    /// A pass ends.
    pub fn end(&mut self) {
        let mut all: Vec<(Tuple, u32)> = self.counting.drain().collect();
        all.sort_by_key(|(tuple, count)| (std::cmp::Reverse(*count), *tuple));
        all.truncate(TOP);
        self.top = all;
    }

    /// The most used pools with the number of ports in use, the most used first.
    #[must_use]
    pub fn top(&self) -> &[(Tuple, u32)] {
        &self.top
    }
}

/// Says whose port an entry, given as key and value, holds.
pub(super) type Holds = fn(&[u8], &[u8]) -> Option<Tuple>;

/// The function that says whose port an entry of a flow table holds.
pub(super) fn holder(family: Family, embryonic: bool) -> Holds {
    match (family, embryonic) {
        (Family::V4, false) => |key, value| held(&CtKey4::get(key), &CtValue4::get(value), false),
        (Family::V4, true) => |key, value| held(&CtKey4::get(key), &CtValue4::get(value), true),
        (Family::V6, false) => |key, value| held(&CtKey6::get(key), &CtValue6::get(value), false),
        (Family::V6, true) => |key, value| held(&CtKey6::get(key), &CtValue6::get(value), true),
    }
}

/// Whose port an entry holds. A young TCP entry that was answered is mostly the copy of an established one.
fn held<F: Side>(key: &CtKey<F>, value: &CtValue<F>, embryonic: bool) -> Option<Tuple>
where
    F::Addr: AsRef<[u8]>,
{
    if !matches!(Role::of(value.role), Role::SnatReply | Role::XdpReply) || is_closed(value.flags) {
        return None;
    }
    let tcp = i32::from(key.proto) == libc::IPPROTO_TCP;
    if embryonic && tcp && value.flags & CT_REPLIED != 0 {
        return None;
    }
    let port = u16::from_be_bytes(key.sport);
    Some(Tuple {
        backend: (address(key.src.as_ref())?, port).into(),
        proto: key.proto,
        snat: address(key.dst.as_ref())?,
    })
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        _ => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
    }
}

#[cfg(test)]
mod tests {
    use lb_common::abi::{CT_FIN_BACKEND, CT_FIN_CLIENT};

    use super::*;

    fn entry(role: Role, flags: u16) -> (CtKey4, CtValue4) {
        let key = CtKey4 {
            src: [10, 0, 0, 5].into(),
            dst: [192, 0, 2, 1].into(),
            sport: [0, 80],
            dport: [4, 1],
            proto: 6,
            ..CtKey4::default()
        };
        (key, CtValue4 { role: role as u8, flags, ..CtValue4::default() })
    }

    #[test]
    fn each_live_flow_holds_one_port() {
        let mut used = PortUse::default();
        used.begin();
        // Role, flags, in the young table.
        for (role, flags, embryonic) in [
            (Role::SnatReply, CT_REPLIED, false),
            (Role::XdpReply, CT_REPLIED, false),
            (Role::XdpReply, 0, true),
            // a copy, a flow that ended, and the other entries of a flow
            (Role::SnatReply, CT_REPLIED, true),
            (Role::SnatReply, CT_FIN_CLIENT | CT_FIN_BACKEND, true),
            (Role::SnatForward, CT_REPLIED, false),
            (Role::DnatReply, CT_REPLIED, false),
            (Role::XdpForward, CT_REPLIED, false),
        ] {
            let (key, value) = entry(role, flags);
            used.add(holder(Family::V4, embryonic)(&key.bytes(), &value.bytes()));
        }
        used.end();
        let text: Vec<String> = used.top().iter().map(|(tuple, count)| format!("{tuple}: {count}")).collect();
        assert_eq!(text, ["backend 10.0.0.5:80/TCP from 192.0.2.1: 3"]);
        used.begin();
        assert_eq!(used.top().len(), 1, "until the next pass has ended");
        used.end();
        assert_eq!(used.top(), []);
    }
}
