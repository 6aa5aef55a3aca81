//! Where API servers may be, in the order in which they are asked (DESIGN section 4).
//!
//! The in-cluster address comes last: it is a ClusterIP that this agent itself has to program first, unless an
//! earlier run did, or another service proxy is still there.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use kube::Config;
use kube::config::{KubeConfigOptions, Kubeconfig};
use thiserror::Error;

use super::fault::chain;
use super::remember;

/// Where the kubelet puts a pod's service account.
pub const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Every API server's certificate has this name.
const SERVER_NAME: &str = "kubernetes.default.svc";

/// What flags, configuration and environment say about API servers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bootstrap {
    /// `--kubeconfig`.
    pub kubeconfig: Option<PathBuf>,
    /// `clientConnection.kubeconfig` of `--config`.
    pub config_kubeconfig: Option<PathBuf>,
    /// `--apiserver`.
    pub servers: Vec<String>,
    /// `--state-dir`, where the last known endpoints are; `None` = they are not kept.
    pub memory: Option<PathBuf>,
    /// `KUBERNETES_SERVICE_HOST` and `KUBERNETES_SERVICE_PORT`.
    pub in_cluster: Option<(String, u16)>,
    /// Folder with `token` and `ca.crt`.
    pub service_account: PathBuf,
}

/// Why no API server can be asked.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BootstrapError {
    /// An address that is no URL.
    #[error("--apiserver {0}: write https://HOST:PORT, several with commas between them")]
    Url(String),
    /// The kubeconfig of the command line.
    #[error("--kubeconfig {path}: {problem}")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Addresses, but nothing to show there.
    #[error(
        "--apiserver needs credentials: run in a pod with a service account (token and ca.crt in {0}), or give \
         --kubeconfig FILE"
    )]
    NoCredentials(PathBuf),
    /// Nothing at all.
    #[error(
        "there is no way to an API server: give --kubeconfig FILE, or --apiserver URL[,URL] inside a pod, or set \
         clientConnection.kubeconfig in --config; the in-cluster way needs KUBERNETES_SERVICE_HOST and a service \
         account in {0}. Without a cluster: --manifests DIR"
    )]
    Nothing(PathBuf),
}

/// Who we are at a server.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Identity {
    Kubeconfig(PathBuf),
    ServiceAccount(PathBuf),
}

/// One place to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// How it was found.
    found: &'static str,
    /// `None` = the kubeconfig's own server.
    url: Option<String>,
    /// A name that the server's certificate must have in place of the URL's host.
    server_name: Option<&'static str>,
    identity: Identity,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.url(), self.found)
    }
}

impl Bootstrap {
    /// Whether there is anything to try.
    ///
    /// # Errors
    /// See [`BootstrapError`].
    pub fn check(&self) -> Result<(), BootstrapError> {
        for url in &self.servers {
            let known = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
            if known.is_none_or(str::is_empty) || url.parse().map(Config::new).is_err() {
                return Err(BootstrapError::Url(url.clone()));
            }
        }
        if let Some(path) = &self.kubeconfig {
            let problem = |problem| BootstrapError::Kubeconfig { path: path.clone(), problem };
            let read = Kubeconfig::read_from(path).map_err(|error| problem(chain(&error)))?;
            if read.clusters.is_empty() {
                return Err(problem("names no cluster; is it a kubeconfig?".to_owned()));
            }
        }
        if !self.places().is_empty() {
            Ok(())
        } else if self.servers.is_empty() {
            Err(BootstrapError::Nothing(self.service_account.clone()))
        } else {
            Err(BootstrapError::NoCredentials(self.service_account.clone()))
        }
    }

    /// All places, first the one to ask first. The last known endpoints are read anew each time.
    #[must_use]
    pub fn places(&self) -> Vec<Place> {
        let mut places: Vec<Place> = Vec::new();
        let mut add = |found, url: Option<String>, server_name, identity: &Identity| {
            if url.is_none() || places.iter().all(|p: &Place| p.url != url) {
                places.push(Place { found, url, server_name, identity: identity.clone() });
            }
        };
        let account = self.service_account.join("token").exists();
        let account = account.then(|| Identity::ServiceAccount(self.service_account.clone()));
        let named = self.kubeconfig.clone().map(Identity::Kubeconfig);
        let shared = self.config_kubeconfig.clone().filter(|p| p.exists()).map(Identity::Kubeconfig);
        if let Some(identity) = &named {
            add("--kubeconfig", None, None, identity);
        } else if let Some(identity) = &shared {
            add("clientConnection.kubeconfig", None, None, identity);
        }
        // Who names a kubeconfig names a cluster: nobody else's service account may lead to another one.
        let Some(identity) = named.clone().or_else(|| account.clone()).or(shared) else { return places };
        for url in &self.servers {
            add("--apiserver", Some(url.trim_end_matches('/').to_owned()), None, &identity);
        }
        for endpoint in self.memory.as_deref().map(remember::read).unwrap_or_default() {
            add("last known endpoint", Some(format!("https://{endpoint}")), Some(SERVER_NAME), &identity);
        }
        if let (None, Some(account), Some((host, port))) = (named, account, &self.in_cluster) {
            add("in-cluster address", Some(https(host, *port)), None, &account);
        }
        places
    }
}

/// A URL; IPv6 addresses in brackets.
fn https(host: &str, port: u16) -> String {
    match host.parse() {
        Ok(address) => format!("https://{}", SocketAddr::new(address, port)),
        Err(_name) => format!("https://{host}:{port}"),
    }
}

impl Place {
    /// The server's URL; for a kubeconfig its file.
    #[must_use]
    pub fn url(&self) -> String {
        match (&self.url, &self.identity) {
            (Some(url), _) => url.clone(),
            (None, Identity::Kubeconfig(path) | Identity::ServiceAccount(path)) => {
                server_of(path).unwrap_or_else(|| path.display().to_string())
            }
        }
    }

    /// What a client needs for it; reads the files of the identity.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub async fn config(&self) -> Result<Config, String> {
        let mut config = match &self.identity {
            Identity::Kubeconfig(path) => {
                let file = Kubeconfig::read_from(path).map_err(|error| chain(&error))?;
                let options = KubeConfigOptions::default();
                Config::from_custom_kubeconfig(file, &options).await.map_err(|error| chain(&error))?
            }
            Identity::ServiceAccount(folder) => service_account(folder)?,
        };
        if let Some(url) = &self.url {
            config.cluster_url = url.parse().map_err(|_invalid| format!("{url} is no URL"))?;
        }
        if let Some(name) = self.server_name {
            // What stands in a file of ours may be another machine by now: it must prove itself.
            if config.accept_invalid_certs {
                return Err("not asked, because the kubeconfig says not to verify certificates".to_owned());
            }
            config.tls_server_name = Some(name.to_owned());
        }
        Ok(config)
    }
}

/// The server that a kubeconfig's current context names.
fn server_of(path: &Path) -> Option<String> {
    let file = Kubeconfig::read_from(path).ok()?;
    let current = file.current_context?;
    let context = file.contexts.into_iter().find(|c| c.name == current)?.context?;
    let cluster = file.clusters.into_iter().find(|c| c.name == context.cluster)?.cluster?;
    cluster.server
}

/// The service account's token, read anew when it is renewed, and its CA.
fn service_account(folder: &Path) -> Result<Config, String> {
    let (token, ca) = (folder.join("token"), folder.join("ca.crt"));
    for file in [&token, &ca] {
        if let Err(error) = std::fs::read(file) {
            return Err(format!("cannot read {}: {error}", file.display()));
        }
    }
    let mut config = Config::new(Default::default());
    config.auth_info.token_file = Some(token.display().to_string());
    config.root_cert_file = Some(ca);
    Ok(config)
}

#[cfg(test)]
#[path = "bootstrap_tests.rs"]
mod tests;
