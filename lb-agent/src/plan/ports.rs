//! One service port -> its rows: ids, backends, slots, frontends, source ranges.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use lb_common::abi::{PROTO_EXTERNAL, ROLE_BACKEND, ROLE_FRONTEND};

use super::encode::{self, Full, PortSets};
use super::expand::{Expanded, FrontendKind};
use super::ids::{FrontendKey, IdTable, ServiceId};
use super::issue::{Issue, Severity};
use super::maglev::{self, Member};
use super::node::NodeFacts;
use super::peers::Peers;
use super::select::{Place, Selection, select};
use super::slots::Range;
use crate::desired::Desired;
use crate::model::settings::{Algorithm, Settings};
use crate::model::{Family, Key};
use crate::store::Snapshot;

/// What all service ports of a plan share.
#[derive(Debug)]
pub struct PortPlanner<'a> {
    /// What the cluster wants.
    pub snapshot: &'a Snapshot,
    /// What this node is.
    pub node: &'a NodeFacts<'a>,
    /// How the operator wants it.
    pub settings: &'a Settings,
    /// The other nodes.
    pub peers: &'a Peers,
    /// The time of the plan.
    pub now: Duration,
}

impl PortPlanner<'_> {
    /// Adds the rows of a service port; what does not fit is left out with an issue.
    pub fn add(&self, port: &Expanded<'_>, ids: &mut IdTable, tables: &mut Desired, issues: &mut Vec<Issue>) {
        let keys: Vec<FrontendKey> = port.frontends.keys().copied().collect();
        if keys.is_empty() {
            return;
        }
        let Some(id) = ids.service(&port.id, &keys) else {
            let used = format!("all {} service ids are in use", self.settings.limits.services);
            issues.push(full(port, &used, "delete unused Services"));
            return;
        };
        for family in Family::ALL.into_iter().filter(|f| port.has(*f)) {
            self.add_family(port, id, family, ids, tables, issues);
        }
    }

    fn add_family(
        &self,
        port: &Expanded<'_>,
        id: ServiceId,
        family: Family,
        ids: &mut IdTable,
        tables: &mut Desired,
        issues: &mut Vec<Issue>,
    ) {
        let slices = self.snapshot.slices.get(&port.id.service);
        let place = Place { node: &self.settings.node_name, zone: self.node.zone() };
        let selection = select(&port.id, family, slices.into_iter().flat_map(|s| s.values()), place);
        let (cluster, local) = self.add_backends(port, id, &selection, ids, tables, issues);
        let tables_of = self.algorithm(port) == Algorithm::Maglev;
        let made = tables_of.then(|| self.maglev(id, family, &selection, (&cluster, &local), ids)).flatten();
        if tables_of && made.is_none() {
            issues.push(no_table(port, self.settings));
        }
        let listed = || {
            let mut list = |set: &[Member]| {
                let set: Vec<u32> = set.iter().map(|m| m.id).collect();
                ids.slots.range(id.id, family, &set)
            };
            Some((list(&cluster)?, list(&local)?))
        };
        let Some((cluster, local)) = made.or_else(listed) else {
            let used = format!("its endpoints do not fit into the {} slots", self.settings.limits.slots);
            issues.push(full(port, &used, "use fewer endpoints; the port is not served in this family"));
            return;
        };
        let sets = PortSets { id, cluster, local, maglev: made.is_some(), has_any: selection.has_any };
        for (key, kind) in port.frontends.iter().filter(|(k, _)| Family::of(k.address) == family) {
            let value = encode::svc_value(port.service, *kind, sets, self.settings);
            if encode::put_service(tables, key, value, &self.settings.limits) == Err(Full) {
                let used = format!("all {} frontends are in use", self.settings.limits.frontends);
                issues.push(full(port, &used, "delete unused Services"));
            } else if !key.address.is_unspecified() {
                ids.roles.give(key.address, ROLE_FRONTEND, self.now);
                if matches!(kind, FrontendKind::External { .. }) {
                    let mark = FrontendKey { address: key.address, port: 0, protocol: PROTO_EXTERNAL };
                    // without room for it, fragments that come before their first pass
                    let _ =
                        encode::put_service(tables, &mark, encode::external_value(), &self.settings.limits);
                }
            }
        }
        self.add_ranges(port, id, family, tables, issues);
    }

    fn algorithm(&self, port: &Expanded<'_>) -> Algorithm {
        // a client that meets another first node is to come to the same backend's node
        let external = port.frontends.values().any(|kind| *kind != FrontendKind::ClusterIp);
        let dsr = external && encode::goes_by_dsr(port.service, self.settings);
        port.service.selection.unwrap_or(if dsr { Algorithm::Maglev } else { self.settings.selection })
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
            let size = maglev::size(set.len(), endpoints, self.settings.maglev_size);
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
        tables: &mut Desired,
        issues: &mut Vec<Issue>,
    ) -> (Vec<Member>, Vec<Member>) {
        let (mut cluster, mut local, mut left_out) = (Vec::new(), Vec::new(), 0_u32);
        for endpoint in &selection.endpoints {
            // Answers of established flows must be found also while the endpoint only drains.
            ids.roles.give(endpoint.address, ROLE_BACKEND, self.now);
            if !endpoint.serving {
                continue;
            }
            let Some(backend) = ids.backend(id.id, endpoint.address, endpoint.port) else {
                left_out += 1;
                continue;
            };
            encode::put_backend(
                tables,
                backend,
                id.id,
                port.id.protocol.number(),
                endpoint,
                self.peers.row(endpoint.node),
            );
            let identity = maglev::identity(endpoint.address, endpoint.port, port.id.protocol.number());
            let member = Member { id: backend, identity, weight: endpoint.weight };
            if endpoint.in_cluster {
                cluster.push(member);
            }
            if endpoint.in_local {
                local.push(member);
            }
        }
        if left_out > 0 {
            let used =
                format!("all {} backend ids are in use", self.settings.limits.backends.saturating_sub(1));
            issues.push(full(
                port,
                &used,
                &format!("use fewer endpoints; {left_out} of them get no traffic"),
            ));
        }
        (cluster, local)
    }

    /// B96-B100.
    fn add_ranges(
        &self,
        port: &Expanded<'_>,
        id: ServiceId,
        family: Family,
        tables: &mut Desired,
        issues: &mut Vec<Issue>,
    ) {
        let filtered = FrontendKind::External { filtered: true };
        let vips: Vec<IpAddr> = port
            .frontends
            .iter()
            .filter(|(k, kind)| Family::of(k.address) == family && **kind == filtered)
            .map(|(k, _)| k.address)
            .collect();
        if vips.is_empty() {
            return;
        }
        let mut nets: Vec<IpNet> =
            port.service.source_ranges.iter().filter(|n| Family::of_net(n) == family).copied().collect();
        let primary = self.node.primary(family);
        if primary.is_some_and(|a| nets.iter().any(|n| n.contains(&a))) {
            nets.extend(vips.into_iter().map(IpNet::from));
        }
        let put = |net| encode::put_range(tables, id.id, net, &self.settings.limits);
        if nets.iter().map(put).any(|r| r == Err(Full)) {
            let used = format!("all {} source ranges are in use", self.settings.limits.ranges);
            issues.push(full(
                port,
                &used,
                "use fewer loadBalancerSourceRanges; sources without room are dropped",
            ));
        }
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
    let object = Key::Service(port.id.service.clone());
    Issue::new(Severity::Error, object, format!("port {:?}", port.id.port), used, cure)
}
