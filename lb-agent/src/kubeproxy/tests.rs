use super::*;

const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

fn read(text: &str) -> ProxyConfig {
    let parsed = parse(&format!("{HEAD}{text}")).unwrap();
    assert_eq!(parsed.warnings, [""; 0]);
    parsed.config
}

fn warnings(text: &str) -> Vec<String> {
    parse(&format!("{HEAD}{text}")).unwrap().warnings
}

#[test]
fn b164_defaults() {
    let config = read("");
    assert_eq!((config.mode, config.hostname.as_deref(), config.bind_address), (Mode::Iptables, None, None));
    assert_eq!(config.healthz.to_string(), "0.0.0.0:10256");
    assert_eq!(config.metrics.to_string(), "127.0.0.1:10249");
    assert_eq!((config.min_sync, config.sync), (Duration::from_secs(1), Duration::from_secs(30)));
    assert_eq!((config.masquerade_all, config.localhost_node_ports), (false, true));
    assert_eq!(config.detect, DetectLocal::ClusterCidr(Vec::new()));
}

#[test]
fn the_blocks_of_the_other_mode_do_not_count() {
    let text = "iptables: {masqueradeAll: true, minSyncPeriod: 5s}\nnftables: {minSyncPeriod: 100ms, syncPeriod: 1m30s}\n";
    let config = read(&format!("{text}mode: nftables"));
    assert_eq!((config.mode, config.masquerade_all), (Mode::Nftables, false));
    assert_eq!((config.min_sync, config.sync), (Duration::from_millis(100), Duration::from_secs(90)));
    assert!(read(text).masquerade_all);
}

#[test]
fn what_kubeadm_writes_is_read_without_a_warning() {
    let text = "
bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection: {acceptContentTypes: '', burst: 0, contentType: '', kubeconfig: /var/lib/kube-proxy/kubeconfig.conf, qps: 0}
clusterCIDR: 10.244.0.0/16,fd00:10:244::/56
configSyncPeriod: 0s
conntrack: {maxPerCore: null, min: null, tcpCloseWaitTimeout: null, tcpEstablishedTimeout: null}
detectLocal: {bridgeInterface: '', interfaceNamePrefix: ''}
detectLocalMode: ''
enableProfiling: false
healthzBindAddress: ''
hostnameOverride: ''
iptables: {localhostNodePorts: null, masqueradeAll: false, masqueradeBit: null, minSyncPeriod: 0s, syncPeriod: 0s}
ipvs: {excludeCIDRs: null, minSyncPeriod: 0s, scheduler: '', strictARP: false, syncPeriod: 0s, tcpFinTimeout: 0s, tcpTimeout: 0s, udpTimeout: 0s}
logging: {flushFrequency: 0, options: {json: {infoBufferSize: '0'}}, verbosity: 0}
metricsBindAddress: ''
mode: ''
nodePortAddresses: null
oomScoreAdj: null
portRange: ''
showHiddenMetricsForVersion: ''
winkernel: {enableDSR: false, forwardHealthCheckVip: false, networkName: '', rootHnsEndpointName: '', sourceVip: ''}
";
    let config = read(text);
    let DetectLocal::ClusterCidr(cidrs) = config.detect else { panic!("{:?}", config.detect) };
    assert_eq!(cidrs.len(), 2);
    assert_eq!((config.min_sync, config.sync), (Duration::from_secs(1), Duration::from_secs(30)));
}

#[test]
fn b163_unknown_fields_are_named_and_the_rest_counts() {
    let text = format!("{HEAD}mode: nftables\nnodePortAdresses: [primary]\niptables: {{masqueradeAl: true}}");
    let parsed = parse(&text).unwrap();
    assert_eq!(parsed.config.mode, Mode::Nftables);
    let expected = ["nodePortAdresses", "iptables.masqueradeAl"]
        .map(|field| format!("field {field} is not known and has no effect; is it misspelt?"));
    let mut found = parsed.warnings;
    found.sort();
    assert_eq!(found, [expected[1].clone(), expected[0].clone()]);
}

#[test]
fn b163_of_a_field_given_twice_the_last_one_counts_and_it_is_named() {
    let text = "mode: iptables\niptables: {syncPeriod: 5s, syncPeriod: 7s}\nmode: nftables\n";
    let parsed = parse(&format!("{HEAD}{text}")).unwrap();
    assert_eq!(parsed.config.mode, Mode::Nftables);
    assert_eq!(parsed.effective["iptables"]["syncPeriod"], "7s");
    let expected =
        ["iptables.syncPeriod", "mode"].map(|f| format!("field {f} is given twice; the last one counts"));
    assert_eq!(parsed.warnings, expected);
}

#[test]
fn every_field_without_a_meaning_here_is_named_once_with_the_reason() {
    let text = "
featureGates: {KubeProxyDrainingTerminatingNodes: true}
clientConnection: {contentType: application/json, qps: 50, burst: 100}
configSyncPeriod: 1m
enableProfiling: true
iptables: {masqueradeBit: 13}
ipvs: {scheduler: lc}
logging: {verbosity: 4}
portRange: 1-2
showHiddenMetricsForVersion: '1.35'
winkernel: {networkName: x}
";
    let found = warnings(text);
    let fields = [
        "featureGates.KubeProxyDrainingTerminatingNodes",
        "clientConnection.contentType",
        "clientConnection.qps",
        "clientConnection.burst",
        "configSyncPeriod",
        "enableProfiling",
        "iptables.masqueradeBit",
        "ipvs.scheduler",
        "logging.verbosity",
        "portRange",
        "showHiddenMetricsForVersion",
        "winkernel.networkName",
    ];
    for field in fields {
        let begin = format!("field {field} has no effect: ");
        assert_eq!(found.iter().filter(|w| w.starts_with(&begin)).count(), 1, "{field} in {found:?}");
    }
    assert_eq!(found.len(), fields.len(), "{found:?}");
}

#[test]
fn mode_ipvs_is_served_as_iptables_and_told() {
    let parsed = parse(&format!("{HEAD}mode: ipvs")).unwrap();
    assert_eq!(parsed.config.mode, Mode::Iptables);
    assert!(parsed.warnings[0].contains("IPVS"), "{:?}", parsed.warnings);
}

#[test]
fn b164_b114_conntrack_and_its_zeros() {
    let config = read("").conntrack;
    assert_eq!((config.max_per_core, config.min), (Some(32_768), 131_072));
    assert_eq!(config.tcp_established, Some(Duration::from_secs(86_400)));
    assert_eq!(config.tcp_close_wait, Some(Duration::from_secs(3600)));
    assert_eq!((config.udp, config.udp_stream, config.tcp_be_liberal), (None, None, false));
    let config =
        read("conntrack: {maxPerCore: 0, tcpEstablishedTimeout: 0s, udpTimeout: 30s, tcpBeLiberal: true}");
    let found = config.conntrack;
    assert_eq!((found.max_per_core, found.tcp_established), (None, None));
    assert_eq!((found.udp, found.tcp_be_liberal), (Some(Duration::from_secs(30)), true));
    assert_eq!((read("oomScoreAdj: 0").oom_score, read("").oom_score), (0, -999));
}

#[test]
fn b160_what_is_in_force_can_be_read_again_without_a_word() {
    let text = "mode: nftables\nclusterCIDR: 10.244.0.0/16\niptables: {localhostNodePorts: false}\nbindAddress: fd00::1\n";
    let first = parse(&format!("{HEAD}{text}")).unwrap();
    let written = serde_yaml_ng::to_string(&first.effective).unwrap();
    assert!(written.contains("healthzBindAddress: '[::]:10256'"), "{written}");
    assert!(written.contains("tcpEstablishedTimeout: 24h0m0s"), "{written}");
    assert_eq!(parse(&written).unwrap(), first);
}

#[test]
fn b165_node_port_addresses_of_one_family_are_named() {
    let found = warnings("nodePortAddresses: [192.0.2.0/24]");
    assert_eq!(found, ["nodePortAddresses has no IPv6 entry: NodePorts answer on all IPv6 addresses"]);
}

#[test]
fn b36_b37_node_port_addresses() {
    let config = read("nodePortAddresses: [primary, localhost, all, 010.0.0.0/8]");
    let net = NodePortEntry::Cidr("10.0.0.0/8".parse().unwrap());
    let expected = [NodePortEntry::Primary, NodePortEntry::Localhost, NodePortEntry::All, net];
    assert_eq!(config.node_port_addresses, expected);
}

#[test]
fn b129_b135_an_ipv6_bind_address_moves_the_defaults() {
    let config = read("bindAddress: fd00::1");
    assert_eq!(
        (config.healthz.to_string(), config.metrics.to_string()),
        ("[::]:10256".into(), "[::1]:10249".into())
    );
    assert_eq!(config.bind_address, "fd00::1".parse().ok());
    assert_eq!(read("bindAddress: '::'").bind_address, None);
    assert_eq!(read("healthzBindAddress: 192.0.2.11").healthz.to_string(), "192.0.2.11:10256");
}

#[test]
fn b153_the_host_name_is_trimmed_and_lower_cased() {
    assert_eq!(read("hostnameOverride: ' ASH '").hostname.as_deref(), Some("ash"));
}

#[test]
fn b165_every_bad_value_names_its_field() {
    let cases = [
        ("mode: userspace", "mode"),
        ("bindAddress: nowhere", "bindAddress"),
        ("healthzBindAddress: 10256", "healthzBindAddress"),
        ("metricsBindAddress: ':x'", "metricsBindAddress"),
        ("clusterCIDR: 10.0.0.0", "clusterCIDR"),
        ("clusterCIDR: 10.0.0.0/8,11.0.0.0/8", "clusterCIDR"),
        ("detectLocalMode: Magic", "detectLocalMode"),
        ("detectLocalMode: BridgeInterface", "detectLocal.bridgeInterface"),
        ("detectLocalMode: InterfaceNamePrefix", "detectLocal.interfaceNamePrefix"),
        ("nodePortAddresses: [secondary]", "nodePortAddresses"),
        ("iptables: {syncPeriod: 1s, minSyncPeriod: 2s}", "minSyncPeriod"),
        ("iptables: {minSyncPeriod: -1s}", "minSyncPeriod"),
        ("iptables: {minSyncPeriod: 5}", "minSyncPeriod"),
        ("iptables: {masqueradeBit: 32}", "masqueradeBit"),
        ("configSyncPeriod: soon", "configSyncPeriod"),
        ("oomScoreAdj: -1001", "oomScoreAdj"),
        ("conntrack: {min: -1}", "conntrack.min"),
        ("conntrack: {udpTimeout: -5s}", "conntrack.udpTimeout"),
    ];
    for (text, expected) in cases {
        match parse(&format!("{HEAD}{text}")) {
            Err(ConfigError::Value { field, .. }) => assert_eq!(field, expected, "{text}"),
            Err(ConfigError::Shape { field, .. }) => assert!(field.ends_with(expected), "{text}: {field}"),
            Ok(_) => panic!("accepted: {text}"),
        }
    }
    assert!(parse("kind: KubeProxyConfiguration\napiVersion: v2").is_err());
    assert!(parse("kind: KubeletConfiguration").is_err());
}

#[test]
fn a_wrong_type_names_its_path() {
    let error = parse(&format!("{HEAD}detectLocal: {{bridgeInterface: [a]}}")).unwrap_err();
    assert!(error.to_string().contains("detectLocal.bridgeInterface"), "{error}");
}
