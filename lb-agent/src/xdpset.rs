//! Which interfaces carry XDP: a pure function of the link table and of what the operator asked for.
//!
//! What may not carry it is named with its reason, and TC does the work there as everywhere else. See
//! docs/design/xdp.md.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::abi::port_row;

use crate::attachset::attach_set;
use crate::links::{Attachment, Link, NodeNet};
use crate::model::settings::Xdp;

/// The attach set, with `xdp` where it belongs, and a line for each interface that was asked for and does not get it.
///
/// Pure; cost linear in the number of links.
#[must_use]
pub fn with_xdp(net: &NodeNet, choice: &Xdp) -> (BTreeMap<u32, Attachment>, Vec<String>) {
    let mut set = attach_set(net);
    let mut refused = Vec::new();
    let mut rows = BTreeSet::new();
    for (index, link) in net.links.iter().filter(|(_, link)| wanted(choice, link)) {
        let why = match set.get(index) {
            None => Some(not_routed(net, link)),
            Some(attachment) => forbidden(net, *index, link, *attachment),
        };
        let why = why.or_else(|| {
            (!rows.insert(port_row(*index)))
                .then(|| "its number has the remainder of another one's modulo 255".to_owned())
        });
        match why {
            Some(why) => refused.push(format!("{}: no XDP, packets are balanced at TC: {why}", link.name)),
            None => {
                set.entry(*index).and_modify(|attachment| attachment.xdp = true);
            }
        }
    }
    if let Xdp::Named(names) = choice {
        for name in names.iter().filter(|name| !net.links.values().any(|link| matches(name, &link.name))) {
            refused.push(format!("{name}: --xdp names it, and there is no such interface"));
        }
    }
    (set, refused)
}

fn wanted(choice: &Xdp, link: &Link) -> bool {
    match choice {
        Xdp::Off => false,
        // a physical device by which packets leave the node
        Xdp::Auto => {
            link.kind.is_empty()
                && link.ethernet
                && !link.loopback
                && link.up
                && link.master.is_none()
                && (link.default_route || !link.addresses.is_empty())
        }
        Xdp::Named(names) => names.iter().any(|name| matches(name, &link.name)),
    }
}

/// `*` at the end of a name stands for any rest.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => pattern == name,
    }
}

fn not_routed(net: &NodeNet, link: &Link) -> String {
    match link.master.and_then(|master| net.links.get(&master)) {
        Some(master) => format!("its packets are routed by {}: name that", master.name),
        None => "no packets are routed through it".to_owned(),
    }
}

/// Why an interface of the attach set may not carry XDP.
fn forbidden(net: &NodeNet, index: u32, link: &Link, attachment: Attachment) -> Option<String> {
    if attachment.l3 {
        return Some("it has no Ethernet header".to_owned());
    }
    if attachment.pod_facing {
        return Some("pods of this node are behind it, whose connections would become slow".to_owned());
    }
    if let Some(master) = link.master.and_then(|master| net.links.get(&master)) {
        return Some(format!("it belongs to {}, by which packets are routed", master.name));
    }
    if net.xfrm_policies {
        return Some("there are xfrm (IPsec) policies, which it would bypass".to_owned());
    }
    let tagged = net.links.values().find(|other| other.kind == "vlan" && other.lower == Some(index));
    if let (Some(vlan), true) = (tagged, link.strips_tags) {
        return Some(format!(
            "the device takes off VLAN tags, and {} is on top of it (ethtool -K {} rxvlan off)",
            vlan.name, link.name
        ));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(links: &[(u32, &str, &str, &[&str])]) -> NodeNet {
        let mut net = NodeNet::default();
        for (index, name, kind, words) in links {
            let mut link = Link {
                name: (*name).to_owned(),
                kind: (*kind).to_owned(),
                ethernet: true,
                up: true,
                ..Link::default()
            };
            for word in *words {
                match word.split_once('=') {
                    Some(("m", n)) => link.master = Some(n.parse().expect("master")),
                    Some(("on", n)) => link.lower = Some(n.parse().expect("lower")),
                    _ => match *word {
                        "default" => link.default_route = true,
                        "strips" => link.strips_tags = true,
                        "l3" => link.ethernet = false,
                        other => panic!("{other}"),
                    },
                }
            }
            net.links.insert(*index, link);
        }
        net
    }

    fn names(net: &NodeNet, choice: &Xdp) -> (Vec<String>, Vec<String>) {
        let (set, refused) = with_xdp(net, choice);
        (set.iter().filter(|(_, a)| a.xdp).map(|(i, _)| net.links[i].name.clone()).collect(), refused)
    }

    fn named(list: &[&str]) -> Xdp {
        Xdp::Named(list.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn off_unless_it_is_asked_for() {
        let node = net(&[(2, "eth0", "", &["default"])]);
        assert_eq!(names(&node, &Xdp::Off), (vec![], vec![]));
        assert_eq!(names(&node, &Xdp::Auto).0, ["eth0"]);
        assert_eq!(names(&node, &named(&["eth0"])).0, ["eth0"]);
        assert_eq!(names(&node, &named(&["eth*"])).0, ["eth0"]);
    }

    #[test]
    fn auto_is_physical_uplinks_only() {
        let node = net(&[
            (2, "eth0", "", &["default"]),
            (3, "veth3", "veth", &["default"]),
            (4, "bond0", "bond", &["default"]),
            (5, "eth1", "", &["m=4"]),
            (6, "eth2", "", &[]),
        ]);
        assert_eq!(names(&node, &Xdp::Auto), (vec!["eth0".to_owned()], vec![]));
    }

    #[test]
    fn what_may_not_carry_it_is_named_with_its_reason() {
        let node = net(&[
            (2, "eth0", "", &["default", "strips"]),
            (3, "veth3", "veth", &[]),
            (4, "bond0", "bond", &[]),
            (5, "eth1", "", &["m=4"]),
            (6, "wg0", "wireguard", &["l3"]),
            (7, "eth0.5", "vlan", &["on=2"]),
        ]);
        for (name, why) in [
            ("eth0", "eth0.5 is on top of it"),
            ("veth3", "pods of this node"),
            ("eth1", "name that"),
            ("wg0", "no Ethernet header"),
            ("eth9", "no such interface"),
        ] {
            let (on, refused) = names(&node, &named(&[name]));
            assert!(on.is_empty(), "{name}");
            assert!(
                refused.len() == 1 && refused[0].contains(name) && refused[0].contains(why),
                "{refused:?}"
            );
        }
        assert_eq!(names(&node, &named(&["bond0"])).0, ["bond0"]);
    }

    #[test]
    fn tags_that_stay_in_the_frame_are_no_obstacle() {
        let node = net(&[(2, "eth0", "", &["default"]), (7, "eth0.5", "vlan", &["on=2"])]);
        assert_eq!(names(&node, &named(&["eth0"])).0, ["eth0"]);
    }

    #[test]
    fn ipsec_forbids_all_of_it() {
        let mut node = net(&[(2, "eth0", "", &["default"])]);
        node.xfrm_policies = true;
        let (on, refused) = names(&node, &Xdp::Auto);
        assert!(on.is_empty() && refused[0].contains("xfrm"));
    }

    #[test]
    fn two_of_one_remainder() {
        let node = net(&[(2, "eth0", "", &["default"]), (257, "eth1", "", &["default"])]);
        let (on, refused) = names(&node, &Xdp::Auto);
        assert_eq!((on, refused.len()), (vec!["eth0".to_owned()], 1));
    }
}
