use super::*;
use std::collections::BTreeMap;
use std::sync::Arc;

fn link(name: &str, addresses: &[&str]) -> Link {
    Link {
        name: name.to_owned(),
        loopback: name == "lo",
        addresses: addresses.iter().map(|a| (a.parse().unwrap(), 24)).collect(),
        ..Link::default()
    }
}

fn net() -> NodeNet {
    let links = [
        link("lo", &["127.0.0.1", "::1"]),
        link("eth0", &["192.0.2.11", "2001:db8:aa::11"]),
        link("eth1", &["198.18.5.11", "2001:db8:bb::11"]),
        link("kube-ipvs0", &["10.200.0.10"]),
    ];
    NodeNet { links: (1..).zip(links).collect(), ..NodeNet::default() }
}

fn snapshot() -> Snapshot {
    let node = NodeSpec {
        name: "ash".to_owned(),
        addresses: vec!["192.0.2.11".parse().unwrap(), "2001:db8:aa::11".parse().unwrap()],
        ..NodeSpec::default()
    };
    Snapshot { nodes: BTreeMap::from([("ash".to_owned(), Arc::new(node))]), ..Snapshot::default() }
}

/// The addresses on which NodePorts answer.
fn answering(settings: &Settings) -> Vec<String> {
    let (snapshot, net) = (snapshot(), net());
    let node = NodeFacts::new(&snapshot, &net, settings);
    node.owned.iter().filter(|a| node.answers_node_ports(**a)).map(ToString::to_string).collect()
}

fn settings(mode: Mode, entries: &[&str]) -> Settings {
    let entry = |text: &&str| match *text {
        "primary" => NodePortEntry::Primary,
        "localhost" => NodePortEntry::Localhost,
        "all" => NodePortEntry::All,
        cidr => NodePortEntry::Cidr(cidr.parse().unwrap()),
    };
    Settings { mode, node_port_addresses: entries.iter().map(entry).collect(), ..Settings::for_node("ash") }
}

const PRIMARY: [&str; 2] = ["192.0.2.11", "2001:db8:aa::11"];
const PUBLIC: [&str; 4] = ["192.0.2.11", "198.18.5.11", "2001:db8:aa::11", "2001:db8:bb::11"];

#[test]
fn b38_unset_is_primary_in_nftables_mode_and_everything_in_iptables_mode() {
    assert_eq!(answering(&settings(Mode::Nftables, &[])), PRIMARY);
    let all = ["127.0.0.1", "192.0.2.11", "198.18.5.11", "::1", "2001:db8:aa::11", "2001:db8:bb::11"];
    assert_eq!(answering(&settings(Mode::Iptables, &[])), all);
}

#[test]
fn b36_a_family_that_no_entry_names_is_open() {
    let found = answering(&settings(Mode::Nftables, &["198.18.5.0/24"]));
    assert_eq!(found, ["198.18.5.11", "2001:db8:aa::11", "2001:db8:bb::11"]);
}

#[test]
fn b36_cidrs_of_both_families_restrict_both() {
    let found = answering(&settings(Mode::Nftables, &["198.18.5.0/24", "2001:db8:bb::/64"]));
    assert_eq!(found, ["198.18.5.11", "2001:db8:bb::11"]);
}

#[test]
fn b37_an_unknown_primary_opens_its_family() {
    let (snapshot, net) = (Snapshot::default(), net());
    let settings = settings(Mode::Nftables, &["primary"]);
    let node = NodeFacts::new(&snapshot, &net, &settings);
    let found: Vec<String> =
        node.owned.iter().filter(|a| node.answers_node_ports(**a)).map(ToString::to_string).collect();
    assert_eq!(found, PUBLIC);
}

#[test]
fn b39_zero_cidrs_are_all_addresses_but_loopback_in_nftables_mode() {
    assert_eq!(answering(&settings(Mode::Nftables, &["0.0.0.0/0", "::/0"])), PUBLIC);
    assert_eq!(answering(&settings(Mode::Nftables, &["all"])), PUBLIC);
}

#[test]
fn b42_localhost_must_be_named_in_nftables_mode() {
    let found = answering(&settings(Mode::Nftables, &["primary", "localhost"]));
    assert_eq!(found, ["127.0.0.1", "192.0.2.11", "::1", "2001:db8:aa::11"]);
    let found = answering(&settings(Mode::Nftables, &["primary", "127.0.0.0/8"]));
    assert_eq!(found, ["127.0.0.1", "192.0.2.11", "2001:db8:aa::11"]);
    let found = answering(&settings(Mode::Nftables, &["primary", "::1/128"]));
    assert_eq!(found, ["192.0.2.11", "::1", "2001:db8:aa::11"]);
    // another loopback address
    assert_eq!(answering(&settings(Mode::Nftables, &["primary", "127.0.0.2/32"])), PRIMARY);
}

#[test]
fn b40_localhost_needs_the_switch_and_a_cover_in_iptables_mode() {
    let off = Settings { localhost_node_ports: false, ..settings(Mode::Iptables, &[]) };
    assert_eq!(answering(&off), PUBLIC);
    assert_eq!(answering(&settings(Mode::Iptables, &["primary"])), PRIMARY);
}

#[test]
fn b20_bind_address_overrides_the_primary_of_its_family() {
    let settings =
        Settings { bind_address: "198.18.5.11".parse().ok(), ..settings(Mode::Nftables, &["primary"]) };
    assert_eq!(answering(&settings), ["198.18.5.11", "2001:db8:aa::11"]);
}

#[test]
fn addresses_of_the_ipvs_dummy_are_not_the_nodes_own() {
    let (snapshot, net, settings) = (snapshot(), net(), settings(Mode::Nftables, &[]));
    assert!(!NodeFacts::new(&snapshot, &net, &settings).owned.contains(&IpAddr::from([10, 200, 0, 10])));
}

#[test]
fn masquerading_falls_back_to_an_address_that_the_node_has() {
    let (mut net, settings) = (net(), settings(Mode::Nftables, &[]));
    let ip = |text: &str| text.parse::<IpAddr>().ok();
    let known = snapshot();
    assert_eq!(NodeFacts::new(&known, &net, &settings).masquerade_fallback(Family::V4), ip("192.0.2.11"));
    net.links.get_mut(&3).unwrap().default_route = true;
    let unknown = Snapshot::default();
    assert_eq!(NodeFacts::new(&unknown, &net, &settings).masquerade_fallback(Family::V4), ip("198.18.5.11"));
}

#[test]
fn b118_where_health_checks_listen() {
    let (snapshot, net) = (snapshot(), net());
    let listening = |mode, entries: &[&str]| {
        let settings = settings(mode, entries);
        let addresses = NodeFacts::new(&snapshot, &net, &settings).health_check_addresses();
        addresses.map(|set| set.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    let list = |texts: &[&str]| Some(texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>());
    assert_eq!(listening(Mode::Iptables, &[]), None, "everywhere");
    assert_eq!(listening(Mode::Nftables, &[]), list(&["192.0.2.11", "2001:db8:aa::11"]), "primary");
    assert_eq!(listening(Mode::Nftables, &["198.18.0.0/16"]), list(&["198.18.5.11", "::"]), "IPv6 is open");
    assert_eq!(
        listening(Mode::Iptables, &["0.0.0.0/0", "2001:db8:bb::/64"]),
        list(&["0.0.0.0", "2001:db8:bb::11"])
    );
}
