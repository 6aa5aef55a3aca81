use super::*;
use crate::model::settings::Mode;
use clap::{CommandFactory, Parser};

fn run(arguments: &[&str]) -> Result<RunConfig, StartError> {
    let all = ["lb-agent", "run"].iter().chain(arguments);
    match Cli::try_parse_from(all).unwrap().command {
        Command::Run(args) => args.resolve(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_command_line_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn a_folder_and_an_api_server_exclude_each_other() {
    for other in [["--kubeconfig", "f"], ["--apiserver", "https://a"]] {
        let both = ["lb-agent", "run", "--manifests", "d"].into_iter().chain(other);
        assert!(Cli::try_parse_from(both).is_err());
    }
}

#[test]
fn without_any_way_to_an_api_server_one_message_names_all_of_them() {
    let error = run(&["--node-name", "a", "--state-dir", "/nowhere"]).unwrap_err().to_string();
    for way in [
        "--kubeconfig",
        "--apiserver",
        "clientConnection.kubeconfig",
        "KUBERNETES_SERVICE_HOST",
        "--manifests",
    ] {
        assert!(error.contains(way), "{way} in {error}");
    }
    let error = run(&["--node-name", "a", "--kubeconfig", "/nowhere"]).unwrap_err().to_string();
    assert!(error.contains("--kubeconfig /nowhere"), "{error}");
}

#[test]
fn an_empty_state_folder_keeps_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = folder.path().join("kubeconfig");
    std::fs::write(&kubeconfig, "clusters: [{name: c, cluster: {server: 'https://a'}}]\n").unwrap();
    let memory = |state: &[&str]| {
        let some = ["--node-name", "a", "--kubeconfig", kubeconfig.to_str().unwrap()];
        match run(&[&some, state].concat()).unwrap().source {
            SourceConfig::Api(source) => source.bootstrap.memory,
            other @ SourceConfig::Manifests(_) => panic!("{other:?}"),
        }
    };
    assert_eq!(memory(&[]), Some("/var/lib/lb-agent".into()));
    assert_eq!(memory(&["--state-dir", "d"]), Some("d".into()));
    assert_eq!(memory(&["--state-dir", ""]), None);
    assert_eq!(memory(&["--state-dir="]), None);
}

#[test]
fn b163_flags_win_over_the_file_where_they_overlap() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("c.yaml");
    let text = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: nftables\n\
        hostnameOverride: elm\nhealthzBindAddress: 127.0.0.1:1\nwrong: 1\n";
    std::fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap();
    let from_file = run(&["--manifests", "d", "--config", file]).unwrap();
    assert_eq!((from_file.settings.node_name.as_str(), from_file.settings.mode), ("elm", Mode::Nftables));
    assert_eq!(from_file.healthz.to_string(), "127.0.0.1:1");
    assert_eq!(from_file.warnings.len(), 1);
    assert!(from_file.warnings[0].contains("wrong"));
    let flags =
        ["--manifests", "d", "--config", file, "--node-name", "ASH", "--healthz-bind-address", "[::1]:2"];
    let from_flags = run(&flags).unwrap();
    assert_eq!(from_flags.settings.node_name, "ash");
    assert_eq!(from_flags.healthz.to_string(), "[::1]:2");
}

#[test]
fn own_settings_and_their_defaults() {
    let plain = run(&["--node-name", "a", "--manifests", "d"]).unwrap();
    assert_eq!((plain.settings.socket_lb, plain.settings.masquerade_local), (SocketLb::Host, false));
    assert_eq!(plain.kernel.bpffs, PathBuf::from("/sys/fs/bpf"));
    let own =
        ["--node-name", "a", "--manifests", "d", "--socket-lb", "all", "--masquerade-local", "--xdp", "auto"];
    let own = run(&own).unwrap();
    assert_eq!((own.settings.socket_lb, own.settings.masquerade_local), (SocketLb::All, true));
    assert_eq!((plain.settings.xdp, own.settings.xdp), (Xdp::Off, Xdp::Auto));
    let fast = |words: &[&str]| {
        run(&[&["--node-name", "a", "--manifests", "d"], words].concat()).map(|run| run.settings.fast)
    };
    assert_eq!((fast(&[]).unwrap(), fast(&["--fast"]).unwrap()), (Fast::Off, Fast::On));
    assert_eq!((fast(&["--fast=off"]).unwrap(), fast(&["--fast=force"]).unwrap()), (Fast::Off, Fast::Force));
    let named = run(&["--node-name", "a", "--manifests", "d", "--xdp", "eth0, en*,"]).unwrap();
    assert_eq!(named.settings.xdp, Xdp::Named(vec!["eth0".into(), "en*".into()]));
}

#[test]
fn b160_the_configuration_in_force_needs_no_source() {
    let args = ["lb-agent", "run", "--write-config-to", "f"];
    let Command::Run(args) = Cli::try_parse_from(args).unwrap().command else { panic!() };
    let text = args.effective().unwrap();
    assert!(text.contains("\nclusterCIDR: ''\n") && text.contains("\noomScoreAdj: -999\n"), "{text}");
    assert_eq!(args.duties().unwrap().oom_score, -999);
}

#[test]
fn a_missing_file_is_named() {
    let error = run(&["--node-name", "a", "--manifests", "d", "--config", "/nowhere"]).unwrap_err();
    assert!(error.to_string().contains("/nowhere"));
}

#[test]
fn tables_have_the_size_that_was_asked_for_within_bounds() {
    use lb_common::abi::names;
    let sizes = |arguments: &[&str]| {
        let all = ["--node-name", "a", "--manifests", "d"].iter().chain(arguments).copied();
        run(&all.collect::<Vec<_>>()).unwrap().sizes
    };
    let chosen = sizes(&["--max-flows", "40000", "--max-frontends", "2048"]);
    assert_eq!((chosen.of(names::LB_CT4), chosen.of(names::LB_EM6)), (Some(40_000), Some(10_000)));
    assert_eq!((chosen.of(names::LB_SVC6), chosen.of(names::LB_BE4)), (Some(2048), None));
    assert!(sizes(&[]).of(names::LB_CT6).is_some_and(|n| n >= 8192), "by memory");
    for outside in ["8191", "16777217", "-1", "many"] {
        let all = ["lb-agent", "run", "--manifests", "d", "--max-flows", outside];
        assert!(Cli::try_parse_from(all).is_err(), "{outside}");
    }
}
