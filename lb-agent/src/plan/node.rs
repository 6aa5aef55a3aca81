//! What this node is: its addresses, and on which of them NodePorts answer (B20, B36-B42, B58).

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::links::{Link, NodeNet};
use crate::model::settings::{Mode, NodePortEntry, Settings};
use crate::model::{Family, NodeSpec};
use crate::store::Snapshot;

/// IPVS gives every ClusterIP to this dummy interface; they are not the node's own.
const IPVS_DUMMY: &str = "kube-ipvs0";

/// Facts of this node, gathered once per plan.
#[derive(Debug)]
pub struct NodeFacts<'a> {
    /// The Node object, if there is one.
    pub spec: Option<&'a NodeSpec>,
    /// Every address that is assigned to the node, loopback too.
    pub owned: BTreeSet<IpAddr>,
    net: &'a NodeNet,
    settings: &'a Settings,
}

impl<'a> NodeFacts<'a> {
    /// Gathers them.
    #[must_use]
    pub fn new(snapshot: &'a Snapshot, net: &'a NodeNet, settings: &'a Settings) -> Self {
        let links = net.links.values().filter(|l| l.name != IPVS_DUMMY);
        let owned = links.flat_map(|l| l.addresses.iter().map(|(a, _)| *a)).collect();
        Self { spec: snapshot.nodes.get(&settings.node_name).map(AsRef::as_ref), owned, net, settings }
    }

    /// Its zone; empty = none.
    #[must_use]
    pub fn zone(&self) -> &str {
        self.spec.map_or("", |n| &n.zone)
    }

    /// Its primary address of a family (B20): `bindAddress`, else the Node object's; never a loopback address.
    #[must_use]
    pub fn primary(&self, family: Family) -> Option<IpAddr> {
        let bound = self.settings.bind_address.filter(|a| Family::of(*a) == family);
        let listed = self.spec.and_then(|n| n.addresses.iter().copied().find(|a| Family::of(*a) == family));
        bound.or(listed).filter(|a| !a.is_loopback() && !a.is_unspecified())
    }

    /// What a packet is masqueraded to where the device has no address of its own: the primary address if it is
    /// assigned here, else the first of a device with a default route, else the first of any.
    #[must_use]
    pub fn masquerade_fallback(&self, family: Family) -> Option<IpAddr> {
        let uplinks = self.net.links.values().filter(|l| l.default_route);
        self.primary(family)
            .filter(|a| self.owned.contains(a))
            .or_else(|| uplinks.filter_map(|l| first_address(l, family)).next())
            .or_else(|| self.net.links.values().filter_map(|l| first_address(l, family)).next())
    }

    /// Whether NodePorts answer on an address of the node (B36-B42).
    #[must_use]
    pub fn answers_node_ports(&self, address: IpAddr) -> bool {
        let family = Family::of(address);
        let entries = self.node_port_entries();
        let nets: Vec<IpNet> = entries.iter().filter_map(|e| self.net_of(e, family)).collect();
        // B36: a family that no entry names is open.
        let covered = nets.is_empty() || nets.iter().any(|n| n.contains(&address));
        if !address.is_loopback() {
            return covered;
        }
        match self.settings.mode {
            // B42: named, or a CIDR of loopback addresses only; `all` and zero CIDRs do not count.
            Mode::Nftables => entries.iter().any(|entry| match entry {
                NodePortEntry::Localhost => true,
                NodePortEntry::Cidr(net) => net.network().is_loopback() && net.contains(&address),
                NodePortEntry::Primary | NodePortEntry::All => false,
            }),
            Mode::Iptables => self.settings.localhost_node_ports && covered,
        }
    }

    /// `nodePortAddresses` with the default of the mode (B38).
    fn node_port_entries(&self) -> Vec<NodePortEntry> {
        match (self.settings.node_port_addresses.as_slice(), self.settings.mode) {
            ([], Mode::Nftables) => vec![NodePortEntry::Primary],
            ([], Mode::Iptables) => vec![NodePortEntry::All],
            (entries, _) => entries.to_vec(),
        }
    }

    /// Where health check node ports listen (B118): on these addresses, where a family that is open has its zero address;
    /// `None` = both are open.
    #[must_use]
    pub fn health_check_addresses(&self) -> Option<BTreeSet<IpAddr>> {
        let entries = self.node_port_entries();
        let open = |family| {
            let mut nets = entries.iter().filter_map(|e| self.net_of(e, family)).peekable();
            nets.peek().is_none() || nets.any(|net| net.prefix_len() == 0)
        };
        if Family::ALL.into_iter().all(open) {
            return None;
        }
        let zero = |family| match family {
            Family::V4 => IpAddr::from(Ipv4Addr::UNSPECIFIED),
            Family::V6 => IpAddr::from(Ipv6Addr::UNSPECIFIED),
        };
        let selected = self
            .owned
            .iter()
            .copied()
            .filter(|a| !open(Family::of(*a)) && !a.is_loopback() && self.answers_node_ports(*a));
        Some(selected.chain(Family::ALL.into_iter().filter(|f| open(*f)).map(zero)).collect())
    }

    fn net_of(&self, entry: &NodePortEntry, family: Family) -> Option<IpNet> {
        match (entry, family) {
            (NodePortEntry::Cidr(net), _) => (Family::of_net(net) == family).then_some(*net),
            (NodePortEntry::Primary, _) => self.primary(family).map(IpNet::from),
            (NodePortEntry::Localhost, Family::V4) => Some(IpNet::V4(crate::model::settings::loopback4())),
            (NodePortEntry::Localhost, Family::V6) => Some(IpNet::from(IpAddr::from(Ipv6Addr::LOCALHOST))),
            (NodePortEntry::All, Family::V4) => Some(IpNet::V4(Ipv4Net::default())),
            (NodePortEntry::All, Family::V6) => Some(IpNet::V6(Ipv6Net::default())),
        }
    }
}

/// The first address of a link in a family that other machines can use.
#[must_use]
pub fn first_address(link: &Link, family: Family) -> Option<IpAddr> {
    let usable = |a: &IpAddr| Family::of(*a) == family && !a.is_loopback();
    if link.loopback || link.name == IPVS_DUMMY {
        return None;
    }
    link.addresses.iter().map(|(a, _)| *a).find(usable)
}

#[cfg(test)]
#[path = "node_tests.rs"]
mod tests;
