//! Model -> ABI types: the only place where the two meet.

use std::net::IpAddr;

use ipnet::IpNet;
use lb_common::abi::{
    Addr4, Addr6, BE_IN_CLUSTER, BE_IN_LOCAL, BE_LOCAL, Backend4, Backend6, RangeKey4, RangeKey6,
    SVC_ADDRESS, SVC_DSR, SVC_EXTERNAL, SVC_HAS_ANY, SVC_LOCAL, SVC_MAGLEV, SVC_MASQ_ALL, SVC_RANGES,
    SvcKey4, SvcKey6, SvcValue,
};

use super::expand::FrontendKind;
use super::ids::{FrontendKey, ServiceId};
use super::select::Selected;
use super::slots::Range;
use crate::desired::{Desired, Prefix};
use crate::model::settings::{Dsr, Limits, Settings};
use crate::model::{Forwarding, Policy, ServiceSpec};

/// A table has no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// Bits of a u32 service id in front of the address in range keys.
const ID_BITS: u32 = 32;

/// A service port in one family: what all its frontends share.
#[derive(Clone, Copy, Debug)]
pub struct PortSets {
    /// Id and generation.
    pub id: ServiceId,
    /// Cluster set.
    pub cluster: Range,
    /// Local set.
    pub local: Range,
    /// Both are Maglev tables.
    pub maglev: bool,
    /// Some endpoint anywhere is usable (B46).
    pub has_any: bool,
}

/// The value of one frontend (B47-B50, B80, B97).
#[must_use]
pub fn svc_value(service: &ServiceSpec, kind: FrontendKind, sets: PortSets, settings: &Settings) -> SvcValue {
    let bit = |set: bool, bit: u32| if set { bit } else { 0 };
    let own = match kind {
        FrontendKind::ClusterIp => {
            bit(service.internal == Policy::Local, SVC_LOCAL) | bit(settings.masquerade_all, SVC_MASQ_ALL)
        }
        FrontendKind::External { filtered } => {
            SVC_EXTERNAL
                | bit(service.external_policy() == Policy::Local, SVC_LOCAL)
                | bit(filtered, SVC_RANGES)
                | bit(goes_by_dsr(service, settings), SVC_DSR)
        }
    };
    SvcValue {
        id: sets.id.id,
        generation: sets.id.generation,
        flags: own | bit(sets.has_any, SVC_HAS_ANY) | bit(sets.maglev, SVC_MAGLEV),
        affinity_s: service.affinity_s.unwrap_or(0),
        cluster_start: sets.cluster.start,
        cluster_len: sets.cluster.len,
        local_start: sets.local.start,
        local_len: sets.local.len,
    }
}

/// Whether packets from outside for endpoints of other nodes keep their source.
pub(super) fn goes_by_dsr(service: &ServiceSpec, settings: &Settings) -> bool {
    settings.dsr != Dsr::Off && service.forwarding != Some(Forwarding::Snat)
}

/// The value of an active ClusterIP (B91).
#[must_use]
pub fn active_value() -> SvcValue {
    SvcValue { flags: SVC_ADDRESS, ..SvcValue::default() }
}

/// The value that marks an external address.
#[must_use]
pub fn external_value() -> SvcValue {
    SvcValue { flags: SVC_ADDRESS | SVC_EXTERNAL, ..SvcValue::default() }
}

/// Puts a frontend into its table.
///
/// # Errors
/// The table of its family holds `limits.frontends` others; nothing was changed.
pub fn put_service(
    tables: &mut Desired,
    key: &FrontendKey,
    value: SvcValue,
    limits: &Limits,
) -> Result<(), Full> {
    match table_key(key) {
        TableKey::V4(key) => {
            room(tables.services4.len(), limits.frontends)?;
            tables.services4.insert(key, value);
        }
        TableKey::V6(key) => {
            room(tables.services6.len(), limits.frontends)?;
            tables.services6.insert(key, value);
        }
    }
    Ok(())
}

/// Takes a frontend out of its table.
pub fn remove_service(tables: &mut Desired, key: &FrontendKey) {
    match table_key(key) {
        TableKey::V4(key) => _ = tables.services4.remove(&key),
        TableKey::V6(key) => _ = tables.services6.remove(&key),
    }
}

/// The key of a frontend's row.
#[derive(Clone, Copy, Debug)]
pub enum TableKey {
    /// In `LB_SVC4`.
    V4(SvcKey4),
    /// In `LB_SVC6`.
    V6(SvcKey6),
}

/// The key of a frontend's row.
#[must_use]
pub fn table_key(key: &FrontendKey) -> TableKey {
    let (port, proto) = (key.port.to_be_bytes(), key.protocol);
    match key.address {
        IpAddr::V4(a) => TableKey::V4(SvcKey4 { addr: a.octets(), port, proto, _pad: 0 }),
        IpAddr::V6(a) => TableKey::V6(SvcKey6 { addr: a.octets(), port, proto, _pad: 0 }),
    }
}

/// The row of a backend.
#[derive(Clone, Copy, Debug)]
pub enum BackendRow {
    /// Of `LB_BE4`.
    V4(Backend4),
    /// Of `LB_BE6`.
    V6(Backend6),
}

/// The row of a backend. `pod`: the row of `LB_NH` by which it is reached past the stack, if it is of this node; `node`: that
/// of `LB_PEERS` of its node; 0 = none.
#[must_use]
pub fn backend(service: u32, protocol: u8, endpoint: &Selected<'_>, pod: u32, node: u32) -> BackendRow {
    let bit = |set: bool, bit: u8| if set { bit } else { 0 };
    let flags = bit(endpoint.local, BE_LOCAL)
        | bit(endpoint.in_cluster, BE_IN_CLUSTER)
        | bit(endpoint.in_local, BE_IN_LOCAL);
    let port = endpoint.port.to_be_bytes();
    let (proto, nexthop) = (protocol, if endpoint.local && pod != 0 { pod } else { node });
    match endpoint.address {
        IpAddr::V4(a) => BackendRow::V4(Backend4 { addr: a.octets(), port, proto, flags, service, nexthop }),
        IpAddr::V6(a) => {
            BackendRow::V6(Backend6 { addr: a.octets(), port, proto, flags, service, nexthop, _pad: [0; 4] })
        }
    }
}

/// The key of a row of source ranges.
#[derive(Clone, Copy, Debug)]
pub enum RangeKey {
    /// In `LB_RANGE4`.
    V4(Prefix<RangeKey4>),
    /// In `LB_RANGE6`.
    V6(Prefix<RangeKey6>),
}

/// Lets a source prefix pass to the filtered frontends of a service port (B99); the answer is its row.
///
/// # Errors
/// The table of its family holds `limits.ranges` others; nothing was changed.
pub fn put_range(tables: &mut Desired, service: u32, net: &IpNet, limits: &Limits) -> Result<RangeKey, Full> {
    let id = service.to_be_bytes();
    let length = ID_BITS + u32::from(net.prefix_len());
    match net {
        IpNet::V4(n) => {
            room(tables.ranges4.len(), limits.ranges)?;
            let key = (length, RangeKey4 { service: id, addr: n.network().octets() });
            tables.ranges4.insert(key, 1);
            Ok(RangeKey::V4(key))
        }
        IpNet::V6(n) => {
            room(tables.ranges6.len(), limits.ranges)?;
            let key = (length, RangeKey6 { service: id, addr: n.network().octets() });
            tables.ranges6.insert(key, 1);
            Ok(RangeKey::V6(key))
        }
    }
}

/// Puts a service CIDR into its table (B92).
pub fn put_cidr(tables: &mut Desired, net: &IpNet) {
    let length = u32::from(net.prefix_len());
    match net {
        IpNet::V4(n) => tables.cidrs4.insert((length, Addr4 { addr: n.network().octets() }), 1),
        IpNet::V6(n) => tables.cidrs6.insert((length, Addr6 { addr: n.network().octets() }), 1),
    };
}

/// Puts a node address into its table.
///
/// # Errors
/// The table of its family holds `limits.node_addresses` others; nothing was changed.
pub fn put_node(tables: &mut Desired, address: IpAddr, flags: u32, limits: &Limits) -> Result<(), Full> {
    match address {
        IpAddr::V4(a) => {
            room(tables.node4.len(), limits.node_addresses)?;
            tables.node4.insert(a.octets(), flags);
        }
        IpAddr::V6(a) => {
            room(tables.node6.len(), limits.node_addresses)?;
            tables.node6.insert(a.octets(), flags);
        }
    }
    Ok(())
}

fn room(used: usize, limit: usize) -> Result<(), Full> {
    if used < limit { Ok(()) } else { Err(Full) }
}
