use super::*;

const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

fn read(text: &str) -> ProxyConfig {
    let (config, unknown) = parse(&format!("{HEAD}{text}")).unwrap();
    assert_eq!(unknown, [""; 0]);
    config
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
    let (config, unknown) = parse(&text).unwrap();
    assert_eq!(config.mode, Mode::Nftables);
    assert_eq!(unknown, ["nodePortAdresses", "iptables.masqueradeAl"]);
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
        ("mode: ipvs", "mode"),
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

#[test]
fn go_durations() {
    let read = |text| go_duration(text).map(|d| d.as_millis());
    assert_eq!(
        [read("1h30m"), read("1.5s"), read("100ms"), read("0"), read("2m0s")],
        [Some(5_400_000), Some(1500), Some(100), Some(0), Some(120_000)]
    );
    assert_eq!([read(""), read("5"), read("-1s"), read("s"), read("1x"), read("1..5s")], [None; 6]);
}
