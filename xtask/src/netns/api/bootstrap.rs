//! Ways to an API server, on a node that comes up empty: no other proxy, nothing in the kernel.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};

use super::{Api, Case, FIRST, SECOND};
use crate::kube::plane::{ControlPlane, HOSTS, PORT};
use crate::lab::node::ApiFeed;

pub(super) const CASES: &[Case] = &[
    ("bootstrap_by_kubeconfig", kubeconfig),
    ("bootstrap_by_the_kubeconfig_of_the_configuration", config_kubeconfig),
    ("bootstrap_by_apiserver", apiserver),
    ("bootstrap_by_last_known_endpoints", last_known),
    ("bootstrap_past_stale_endpoints", stale),
    ("the_in_cluster_address_serves_a_restart_and_cannot_serve_an_empty_node", in_cluster),
    ("without_any_way_one_message_says_what_to_set", nothing),
];

/// Without environment, state or addresses.
fn bare(api: &Api) -> ApiFeed {
    api.feed(&[])
}

fn gets_there(api: &mut Api, feed: ApiFeed) -> Result<()> {
    api.begin_empty(feed)?;
    api.healthy()?;
    api.web_is_served()
}

/// A file with the kubeconfig of the shipped account.
fn write_kubeconfig(api: &Api, server: usize, family: usize) -> Result<String> {
    let path = api.context.lab.folder.join("kubeconfig");
    fs::write(&path, ControlPlane::kubeconfig(server, family, &api.account))?;
    Ok(path.display().to_string())
}

fn kubeconfig(api: &mut Api) -> Result<()> {
    for (server, family) in [(SECOND, 0), (FIRST, 1)] {
        let file = write_kubeconfig(api, server, family)?;
        let mut feed = ApiFeed { account: None, ..bare(api) };
        feed.arguments.extend(["--kubeconfig".into(), file]);
        gets_there(api, feed).with_context(|| format!("family {family}"))?;
    }
    Ok(())
}

fn config_kubeconfig(api: &mut Api) -> Result<()> {
    let file = write_kubeconfig(api, SECOND, 0)?;
    let config = api.context.lab.nodes[0].config.clone();
    let text = fs::read_to_string(&config)?;
    fs::write(&config, format!("{text}clientConnection: {{kubeconfig: \"{file}\"}}\n"))?;
    let done = gets_there(api, ApiFeed { account: None, ..bare(api) });
    fs::write(&config, text)?;
    done
}

fn apiserver(api: &mut Api) -> Result<()> {
    gets_there(api, api.feed(&[SECOND]))
}

/// A fresh state folder.
fn state(api: &Api, name: &str) -> Result<PathBuf> {
    let folder = api.context.lab.folder.join(name);
    fs::remove_dir_all(&folder).ok();
    Ok(folder)
}

fn last_known(api: &mut Api) -> Result<()> {
    let state = state(api, "state")?;
    api.begin(api.feed_with_state(&[SECOND], &state))?;
    api.healthy()?;
    let text = fs::read_to_string(state.join("apiserver-endpoints.json")).context("nothing was kept")?;
    for host in HOSTS {
        ensure!(text.contains(&format!("{}:{PORT}", host[0])), "{text} lacks {}", host[0]);
    }
    gets_there(api, api.feed_with_state(&[], &state))?;
    // the first server alone, whose certificate does not have the address that was kept
    api.plane.kill_server(SECOND)?;
    gets_there(api, api.feed_with_state(&[], &state))
        .context("by the server without its address in its certificate")
}

fn stale(api: &mut Api) -> Result<()> {
    let state = state(api, "stale")?;
    fs::create_dir_all(&state)?;
    // nobody there; somebody else's server there, without a certificate of the cluster; and the right one
    let pod = api.context.lab.pods["p2a"].addresses[0].clone();
    let text = format!(r#"{{"endpoints":["192.0.2.250:{PORT}","{pod}:8080","{}:{PORT}"]}}"#, HOSTS[1][0]);
    fs::write(state.join("apiserver-endpoints.json"), text)?;
    gets_there(api, api.feed_with_state(&[], &state))?;
    let text = fs::read_to_string(state.join("apiserver-endpoints.json"))?;
    ensure!(!text.contains("192.0.2.250") && text.contains(HOSTS[0][0]), "the file was not renewed: {text}");
    Ok(())
}

fn in_cluster(api: &mut Api) -> Result<()> {
    let mut feed = bare(api);
    feed.environment = vec![
        ("KUBERNETES_SERVICE_HOST".into(), "10.96.0.1".into()),
        ("KUBERNETES_SERVICE_PORT".into(), "443".into()),
    ];
    api.begin(feed.clone())?;
    api.healthy().context("by the ClusterIP that an earlier run has programmed")?;
    api.web_is_served()?;
    api.begin_empty(feed.clone())?;
    api.status_says("https://10.96.0.1:443").context("on an empty node")?;
    ensure!(api.logged("10.96.0.1:443 (in-cluster address)") > 0, "the log does not name the address");
    feed.arguments.splice(0..0, api.feed(&[SECOND]).arguments.into_iter().take(2));
    gets_there(api, feed)
}

fn nothing(api: &mut Api) -> Result<()> {
    api.begin(ApiFeed { account: None, ..bare(api) })?;
    let error = match api.healthy() {
        Ok(()) => anyhow::bail!("the agent found a server without any way to one"),
        Err(error) => format!("{error:#}"),
    };
    for way in ["--kubeconfig", "--apiserver", "clientConnection.kubeconfig", "KUBERNETES_SERVICE_HOST"] {
        ensure!(error.contains(way), "the message does not name {way}: {error}");
    }
    Ok(())
}
