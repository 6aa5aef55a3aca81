//! Rights that are missing, objects that are missing, servers that lack a resource.

use std::fs;

use anyhow::{Result, ensure};

use super::{Api, Case, FIRST, SECOND};
use crate::kube::plane::ControlPlane;
use crate::netns::MOVING;
use crate::{lab, paths};

pub(super) const CASES: &[Case] = &[
    ("b166_a_forbidden_resource_is_named_with_its_verb_and_served_once_it_is_granted", forbidden),
    ("b169_servicecidrs_that_may_not_be_read_are_no_obstacle", without_service_cidrs),
    ("b154_a_node_that_does_not_exist_is_awaited_and_named", missing_node),
    ("credentials_that_are_not_accepted_are_named", unauthorized),
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
