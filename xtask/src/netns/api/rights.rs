//! Rights that are missing, objects that are missing, servers that lack a resource.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::{Api, Case, FIRST, SECOND, SLOW};
use crate::kube::plane::ControlPlane;
use crate::netns::MOVING;
use crate::{lab, paths};

pub(super) const CASES: &[Case] = &[
    ("b166_a_forbidden_resource_is_named_with_its_verb_and_served_once_it_is_granted", forbidden),
    ("b169_servicecidrs_that_may_not_be_read_are_no_obstacle", without_service_cidrs),
    ("b154_a_node_that_does_not_exist_is_awaited_and_named", missing_node),
    ("credentials_that_are_not_accepted_are_named", unauthorized),
    ("b166_b167_every_right_is_used_and_nothing_else_is_asked_for", exact),
];

const ROLE: &str = "/apis/rbac.authorization.k8s.io/v1/clusterroles/lb-agent";

fn rights() -> Result<String> {
    Ok(fs::read_to_string(paths::root().join("deploy/base/rbac.yaml"))?)
}

fn forbidden(api: &mut Api) -> Result<()> {
    api.plane.delete(FIRST, ROLE)?;
    let before = api.logged("does not let us list");
    api.begin(api.feed(&[SECOND]))?;
    for resource in ["services", "endpointslices", "nodes"] {
        api.status_says(&format!("{resource}: does not let us list"))?;
        api.status_says(&format!("grant the verb list on {resource}"))?;
    }
    std::thread::sleep(std::time::Duration::from_secs(3));
    let said = api.logged("does not let us list") - before;
    let done = api.plane.apply(FIRST, &rights()?);
    // services, endpointslices, nodes, servicecidrs: once each
    ensure!(said == 4, "{said} lines about four forbidden resources");
    done?;
    api.healthy()?;
    api.web_is_served()?;
    let status = api.status_says("serving    true")?;
    ensure!(!status.contains("services: does not let us"), "the fault stays in the status:\n{status}");
    Ok(())
}

fn without_service_cidrs(api: &mut Api) -> Result<()> {
    let less: String = rights()?.replace("resources: [servicecidrs]", "resources: [ingresses]");
    api.plane.delete(FIRST, ROLE)?;
    api.plane.apply(FIRST, &less)?;
    let done = api.begin(api.feed(&[SECOND])).and_then(|()| {
        api.healthy()?;
        api.status_says("servicecidrs: does not let us list")?;
        api.web_is_served()
    });
    api.plane.delete(FIRST, ROLE)?;
    api.plane.apply(FIRST, &rights()?)?;
    done
}

fn missing_node(api: &mut Api) -> Result<()> {
    let name = std::mem::replace(&mut api.context.lab.nodes[0].name, "ghost".into());
    let done = ghost(api);
    api.context.lab.nodes[0].name = name;
    api.begin_empty(api.feed(&[SECOND]))?;
    api.healthy()?;
    done
}

/// On an emptied node: what is pinned belongs to the node of the other name, and would be refused.
fn ghost(api: &mut Api) -> Result<()> {
    api.begin_empty(api.feed(&[SECOND]))?;
    api.status_says("Node ghost: does not exist")?;
    ensure!(
        api.context.lab.nodes[0].http("127.0.0.1:10256", "/healthz")?.status == 503,
        "healthy without its Node"
    );
    let addresses = api.context.lab.nodes[0].addresses.clone();
    let cidrs = ["10.77.1.0/24".to_owned()];
    api.plane.apply(FIRST, &lab::manifests::node("ghost", &addresses, &cidrs))?;
    api.healthy()?;
    api.web_is_served()?;
    api.plane.delete(FIRST, "/api/v1/nodes/ghost")?;
    api.status_says("Node ghost: was deleted")?;
    api.web_is_served()?;
    api.move_to("p1a")?;
    api.serves(MOVING, "p1a")
}

fn unauthorized(api: &mut Api) -> Result<()> {
    let token = api.account.join("token");
    let good = fs::read_to_string(&token)?;
    fs::write(&token, "nonsense")?;
    let done = api.begin(api.feed(&[SECOND])).and_then(|()| {
        api.status_says(&format!(
            "API server {}: does not accept our credentials",
            ControlPlane::url(SECOND, 0)
        ))
    });
    fs::write(&token, good)?;
    done?;
    // the token file is read anew
    api.begin(api.feed(&[SECOND]))?;
    api.healthy()
}

/// The servers' audit logs against the shipped role: what all cases so far have asked for.
fn exact(api: &mut Api) -> Result<()> {
    api.healthy()?;
    let granted = granted(&api.plane.get(FIRST, ROLE)?).context("the role has another shape")?;
    let begin = Instant::now();
    loop {
        let asked = api.plane.asked()?;
        if asked == granted {
            return Ok(());
        }
        let extra: Vec<_> = asked.difference(&granted).collect();
        ensure!(extra.is_empty(), "asked for without a right in the role: {extra:?}");
        // the event of the agent's start may be under way
        ensure!(
            begin.elapsed() < SLOW,
            "in the role and never asked for: {:?}",
            granted.difference(&asked).collect::<Vec<_>>()
        );
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// (verb, API group, resource) of every rule of a role.
fn granted(role: &serde_json::Value) -> Option<BTreeSet<(String, String, String)>> {
    let words = |rule: &serde_json::Value, field: &str| -> Option<Vec<String>> {
        rule[field].as_array()?.iter().map(|word| word.as_str().map(str::to_owned)).collect()
    };
    let mut granted = BTreeSet::new();
    for rule in role["rules"].as_array()? {
        for group in words(rule, "apiGroups")? {
            for resource in words(rule, "resources")? {
                for verb in words(rule, "verbs")? {
                    granted.insert((verb, group.clone(), resource.clone()));
                }
            }
        }
    }
    Some(granted)
}
