//! One service port -> its rows: ids, backends, slots, frontends, source ranges.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use lb_common::abi::ROLE_BACKEND;

use super::Shared;
use super::encode::{self, PortSets};
use super::expand::{Expanded, FrontendKind};
use super::ids::{FrontendKey, IdTable, ServiceId};
use super::issue::{Issue, Severity};
use super::maglev::{self, Member};
use super::part::{PortRows, Rows};
use super::select::{Place, Selection, select};
use super::slots::Range;
use crate::model::settings::{Algorithm, Settings};
use crate::model::{Family, Key, PortId, SliceSpec};

/// What the service ports of one Service are planned with.
#[derive(Clone, Copy, Debug)]
pub struct PortPlanner<'a> {
    /// Its slices.
    pub slices: Option<&'a BTreeMap<String, Arc<SliceSpec>>>,
    /// What all Services share.
    pub shared: &'a Shared,
}

impl PortPlanner<'_> {
    /// Adds the rows of a service port. What has no number is left out with an issue; whether the tables have room for the
    /// rest is another question.
    pub fn add(&self, port: &Expanded<'_>, ids: &mut IdTable, rows: &mut Rows) {
        let keys: Vec<FrontendKey> = port.frontends.keys().copied().collect();
        if keys.is_empty() {
            return;
        }
        let Some(id) = ids.service(&port.id, &keys) else {
            let used = format!("all {} service ids are in use", self.shared.settings.limits.services);
            rows.lacks(full(port, &used, "delete unused Services"));
            return;
        };
        for family in Family::ALL.into_iter().filter(|f| port.has(*f)) {
            self.add_family(port, id, family, ids, rows);
        }
    }

    fn add_family(
        &self,
        port: &Expanded<'_>,
        id: ServiceId,
        family: Family,
        ids: &mut IdTable,
        rows: &mut Rows,
    ) {
        let settings = &self.shared.settings;
        let place = Place { node: &settings.node_name, zone: &self.shared.zone };
        let selection = select(&port.id, family, self.slices.into_iter().flat_map(|s| s.values()), place);
        let (cluster, local) = self.add_backends(port, id, &selection, ids, rows);
        let tables_of = self.algorithm(port) == Algorithm::Maglev;
        let made = tables_of.then(|| self.maglev(id, family, &selection, (&cluster, &local), ids)).flatten();
        if tables_of && made.is_none() {
            rows.lacks(no_table(port, settings));
        }
        let listed = || {
            let mut list = |set: &[Member]| {
                let set: Vec<u32> = set.iter().map(|m| m.id).collect();
                ids.slots.range(id.id, family, &set)
            };
            Some((list(&cluster)?, list(&local)?))
        };
        let Some((cluster, local)) = made.or_else(listed) else {
            let used = format!("its endpoints do not fit into the {} slots", settings.limits.slots);
            rows.lacks(full(port, &used, "use fewer endpoints; the port is not served in this family"));
            return;
        };
        let sets = PortSets { id, cluster, local, maglev: made.is_some(), has_any: selection.has_any };
        let frontends = port.frontends.iter().filter(|(k, _)| Family::of(k.address) == family);
        rows.ports.push(PortRows {
            id: port.id.clone(),
            service: id.id,
            frontends: frontends
                .map(|(key, kind)| (*key, *kind, encode::svc_value(port.service, *kind, sets, settings)))
                .collect(),
            ranges: self.ranges(port, family),
        });
    }

    fn algorithm(&self, port: &Expanded<'_>) -> Algorithm {
        // a client that meets another first node is to come to the same backend's node
        let external = port.frontends.values().any(|kind| *kind != FrontendKind::ClusterIp);
        let dsr = external && encode::goes_by_dsr(port.service, &self.shared.settings);
        port.service.selection.unwrap_or(if dsr { Algorithm::Maglev } else { self.shared.settings.selection })
    }

    /// The Maglev tables of the Cluster and the Local set; `None` = no room for both.
    fn maglev(
        &self,
        id: ServiceId,
        family: Family,
        selection: &Selection<'_>,
        (cluster, local): (&[Member], &[Member]),
        ids: &mut IdTable,
    ) -> Option<(Range, Range)> {
        let here = selection.endpoints.iter().filter(|e| e.local).count();
        let mut table = |set: &[Member], endpoints: usize| {
            let size = maglev::size(set.len(), endpoints, self.shared.settings.maglev_size);
            ids.slots.table(id.id, family, set.to_vec(), size)
        };
        Some((table(cluster, selection.endpoints.len())?, table(local, here)?))
    }

    /// Backends of all endpoints that serve; the answer is the Cluster and the Local set.
    fn add_backends(
        &self,
        port: &Expanded<'_>,
        id: ServiceId,
        selection: &Selection<'_>,
        ids: &mut IdTable,
        rows: &mut Rows,
    ) -> (Vec<Member>, Vec<Member>) {
        let protocol = port.id.protocol.number();
        let (mut cluster, mut local, mut left_out) = (Vec::new(), Vec::new(), 0_u32);
        for endpoint in &selection.endpoints {
            // Answers of established flows must be found also while the endpoint only drains.
            rows.roles.push((endpoint.address, ROLE_BACKEND));
            if !endpoint.serving {
                continue;
            }
            let Some(backend) = ids.backend(id.id, endpoint.address, endpoint.port) else {
                left_out += 1;
                continue;
            };
            let pod = self.shared.pods.get(&endpoint.address).copied().unwrap_or(0);
            let row = encode::backend(id.id, protocol, endpoint, pod, self.shared.peers.row(endpoint.node));
            rows.backends.push((backend, row));
            let identity = maglev::identity(endpoint.address, endpoint.port, protocol);
            let member = Member { id: backend, identity, weight: endpoint.weight };
            if endpoint.in_cluster {
                cluster.push(member);
            }
            if endpoint.in_local {
                local.push(member);
            }
        }
        if left_out > 0 {
            let limit = self.shared.settings.limits.backends.saturating_sub(1);
            let used = format!("all {limit} backend ids are in use");
            rows.lacks(full(port, &used, &format!("use fewer endpoints; {left_out} of them get no traffic")));
        }
        (cluster, local)
    }

    /// B96-B100.
    fn ranges(&self, port: &Expanded<'_>, family: Family) -> Vec<IpNet> {
        let filtered = FrontendKind::External { filtered: true };
        let vips: Vec<IpAddr> = port
            .frontends
            .iter()
            .filter(|(k, kind)| Family::of(k.address) == family && **kind == filtered)
            .map(|(k, _)| k.address)
            .collect();
        if vips.is_empty() {
            return Vec::new();
        }
        let mut nets: Vec<IpNet> =
            port.service.source_ranges.iter().filter(|n| Family::of_net(n) == family).copied().collect();
        let primary = self.shared.primary(family);
        if primary.is_some_and(|a| nets.iter().any(|n| n.contains(&a))) {
            nets.extend(vips.into_iter().map(IpNet::from));
        }
        nets
    }
}

fn no_table(port: &Expanded<'_>, settings: &Settings) -> Issue {
    Issue::new(
        Severity::Warning,
        Key::Service(port.id.service.clone()),
        format!("port {:?}", port.id.port),
        format!("its Maglev table does not fit into the {} slots", settings.limits.slots),
        "raise --max-slots; endpoints are chosen at random until then",
    )
}

fn full(port: &Expanded<'_>, used: &str, cure: &str) -> Issue {
    no_room(&port.id, used, cure)
}

/// Something of a service port found no room.
pub(super) fn no_room(port: &PortId, used: &str, cure: &str) -> Issue {
    let object = Key::Service(port.service.clone());
    Issue::new(Severity::Error, object, format!("port {:?}", port.port), used, cure)
}
