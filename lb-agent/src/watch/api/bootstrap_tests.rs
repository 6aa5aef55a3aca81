use super::*;

const KUBECONFIG: &str = "
apiVersion: v1
kind: Config
current-context: c
clusters: [{name: k, cluster: {server: 'https://192.0.2.9:6443', insecure-skip-tls-verify: true}}]
users: [{name: u, user: {token: t}}]
contexts: [{name: c, context: {cluster: k, user: u}}]
";

struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("kubeconfig"), KUBECONFIG).unwrap();
        for (file, text) in [("token", "t"), ("ca.crt", "")] {
            std::fs::write(folder.path().join(file), text).unwrap();
        }
        let memory = r#"{"endpoints":["192.0.2.1:6443","[2001:db8::1]:6443"]}"#;
        std::fs::write(folder.path().join("apiserver-endpoints.json"), memory).unwrap();
        Self { folder }
    }

    fn kubeconfig(&self) -> Option<PathBuf> {
        Some(self.folder.path().join("kubeconfig"))
    }

    /// A pod with everything.
    fn pod(&self) -> Bootstrap {
        Bootstrap {
            servers: vec!["https://a.example:6443".into(), "https://b.example:6443/".into()],
            memory: Some(self.folder.path().to_owned()),
            in_cluster: Some(("fd96::1".into(), 443)),
            service_account: self.folder.path().to_owned(),
            ..Bootstrap::default()
        }
    }
}

fn names(bootstrap: &Bootstrap) -> Vec<String> {
    bootstrap.places().iter().map(ToString::to_string).collect()
}

#[test]
fn places_in_the_order_of_the_design() {
    let files = Files::new();
    let all = Bootstrap { config_kubeconfig: files.kubeconfig(), ..files.pod() };
    assert_eq!(
        names(&all),
        [
            "https://192.0.2.9:6443 (clientConnection.kubeconfig)",
            "https://a.example:6443 (--apiserver)",
            "https://b.example:6443 (--apiserver)",
            "https://192.0.2.1:6443 (last known endpoint)",
            "https://[2001:db8::1]:6443 (last known endpoint)",
            "https://[fd96::1]:443 (in-cluster address)",
        ]
    );
}

#[test]
fn a_kubeconfig_of_the_command_line_never_leads_to_the_cluster_of_the_pod() {
    let files = Files::new();
    let named =
        Bootstrap { kubeconfig: files.kubeconfig(), config_kubeconfig: files.kubeconfig(), ..files.pod() };
    let names = names(&named);
    assert_eq!(names[0], "https://192.0.2.9:6443 (--kubeconfig)");
    assert!(names.iter().all(|n| !n.contains("in-cluster") && !n.contains("clientConnection")), "{names:?}");
}

#[test]
fn each_way_alone_is_a_way_and_none_is_an_error() {
    let files = Files::new();
    let nothing = Bootstrap { service_account: "/nowhere".into(), ..Bootstrap::default() };
    assert!(matches!(nothing.check(), Err(BootstrapError::Nothing(_))));
    let account = Bootstrap { service_account: files.folder.path().to_owned(), ..Bootstrap::default() };
    assert!(matches!(account.check(), Err(BootstrapError::Nothing(_))), "an account without an address");
    for way in [
        Bootstrap { kubeconfig: files.kubeconfig(), ..nothing.clone() },
        Bootstrap { config_kubeconfig: files.kubeconfig(), ..nothing.clone() },
        Bootstrap { servers: vec!["https://a".into()], ..account.clone() },
        Bootstrap { memory: Some(files.folder.path().to_owned()), ..account.clone() },
        Bootstrap { in_cluster: Some(("10.96.0.1".into(), 443)), ..account.clone() },
    ] {
        assert_eq!(way.check(), Ok(()), "{way:?}");
    }
}

#[test]
fn what_cannot_be_used_is_named_at_the_start() {
    let files = Files::new();
    for url in ["a.example:6443", "https://", "https://a b", ""] {
        let bad = Bootstrap { servers: vec![url.into()], ..files.pod() };
        assert_eq!(bad.check(), Err(BootstrapError::Url(url.into())), "{url}");
    }
    let alone = Bootstrap {
        servers: vec!["https://a".into()],
        service_account: "/nowhere".into(),
        ..Bootstrap::default()
    };
    assert!(matches!(alone.check(), Err(BootstrapError::NoCredentials(_))));
    let missing = Bootstrap { kubeconfig: Some("/nowhere".into()), ..files.pod() };
    assert!(matches!(missing.check(), Err(BootstrapError::Kubeconfig { .. })));
    // another program's file is not the end: the cluster's shared configuration may name it for others
    let other = Bootstrap { config_kubeconfig: Some("/nowhere".into()), ..files.pod() };
    assert_eq!(other.check(), Ok(()));
}

#[tokio::test]
async fn a_remembered_endpoint_must_prove_itself() {
    let files = Files::new();
    let pod = files.pod();
    let place = pod.places().into_iter().find(|p| p.found == "last known endpoint").unwrap();
    let config = place.config().await.unwrap();
    assert_eq!(config.tls_server_name.as_deref(), Some("kubernetes.default.svc"));
    assert!(config.root_cert_file.is_some() && !config.accept_invalid_certs);
    let careless = Bootstrap { kubeconfig: files.kubeconfig(), ..files.pod() };
    let place = careless.places().into_iter().find(|p| p.found == "last known endpoint").unwrap();
    assert!(place.config().await.is_err());
}
