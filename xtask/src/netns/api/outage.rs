//! API servers that stop, come back, and forget.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{Api, Case, FIRST, SECOND};
use crate::lab::Lab;
use crate::netns::traffic::{LASTS, survive};
use crate::netns::{LATE, MOVING};

pub(super) const CASES: &[Case] = &[
    ("b152_without_api_servers_the_data_path_and_an_agent_restart_go_on", outage),
    ("b152_deletions_while_the_agent_was_away_take_effect", deletions),
    ("b152_deletions_while_the_api_server_was_away_take_effect", deletions_while_cut_off),
    ("a_compacted_history_is_listed_anew_and_nothing_is_lost", compacted),
    ("another_api_server_takes_over", takes_over),
    ("b152_traffic_survives_an_outage_and_agents_that_die_in_it", traffic),
];

/// Long enough for a second try and its pause.
const WHILE: Duration = Duration::from_secs(3);

fn outage(api: &mut Api) -> Result<()> {
    api.move_to("p1a")?;
    api.serves(MOVING, "p1a")?;
    let agent = api.context.agent.clone();
    let before = api.logged("cannot be reached");
    for server in [FIRST, SECOND] {
        api.plane.kill_server(server)?;
    }
    api.web_is_served().context("without API servers")?;
    api.status_says("cannot be reached")?;
    ensure!(api.context.lab.nodes[0].http("127.0.0.1:10256", "/healthz")?.status == 200, "not healthy");
    api.context.lab.nodes[0].stop_agent(libc::SIGKILL)?;
    api.context.lab.nodes[0].spawn_agent(&agent)?;
    let status = api.status_says("cannot be reached")?;
    ensure!(status.contains("in sync    false"), "in sync without an API server:\n{status}");
    ensure!(status.contains("ApiServices"), "the status does not say what is waited for:\n{status}");
    std::thread::sleep(WHILE);
    ensure!(
        api.context.lab.nodes[0].http("127.0.0.1:10256", "/healthz")?.status == 503,
        "healthy although nothing was listed"
    );
    ensure!(
        api.context.lab.nodes[0].http("127.0.0.1:10256", "/livez")?.status == 200,
        "waiting is no illness"
    );
    api.web_is_served().context("with a new agent and without API servers")?;
    let said = api.logged("cannot be reached") - before;
    api.plane.start_server(FIRST)?;
    api.move_to("p2a")?;
    api.healthy()?;
    api.serves(MOVING, "p2a")?;
    api.plane.start_server(SECOND)?;
    // two agents, two servers, each said once per round of places; not once per try of four watches
    ensure!(said <= 24, "{said} lines about servers that cannot be reached");
    Ok(())
}

fn deletions(api: &mut Api) -> Result<()> {
    api.make_late()?;
    api.serves(LATE, "p2b")?;
    let agent = api.context.agent.clone();
    api.context.lab.nodes[0].stop_agent(libc::SIGTERM)?;
    api.remove_late()?;
    api.move_to("p1a")?;
    api.serves(LATE, "p2b").context("without an agent")?;
    api.context.lab.nodes[0].start_agent(&agent)?;
    api.is_gone(LATE)?;
    api.serves(MOVING, "p1a")
}

/// The agent stays, but its only server is away while another one takes the changes.
fn deletions_while_cut_off(api: &mut Api) -> Result<()> {
    api.begin(api.feed(&[SECOND]))?;
    api.healthy()?;
    api.make_late()?;
    api.serves(LATE, "p2b")?;
    api.plane.kill_server(SECOND)?;
    api.remove_late()?;
    api.move_to("p2a")?;
    api.serves(LATE, "p2b").context("cut off")?;
    api.status_says("cannot be reached")?;
    api.plane.start_server(SECOND)?;
    api.is_gone(LATE)?;
    api.serves(MOVING, "p2a")?;
    api.status_says("serving    true")?;
    Ok(())
}

/// As [`deletions_while_cut_off`], and when the server is back it has no history from before: 410.
fn compacted(api: &mut Api) -> Result<()> {
    api.begin(api.feed(&[SECOND]))?;
    api.healthy()?;
    api.make_late()?;
    api.serves(LATE, "p2b")?;
    let before = api.logged("listing anew");
    api.plane.kill_server(SECOND)?;
    api.remove_late()?;
    api.move_to("p1a")?;
    api.plane.compact()?;
    api.plane.start_server(SECOND)?;
    api.is_gone(LATE)?;
    api.serves(MOVING, "p1a")?;
    api.web_is_served()?;
    ensure!(api.logged("listing anew") > before, "no list was made anew: was nothing compacted?");
    Ok(())
}

fn takes_over(api: &mut Api) -> Result<()> {
    api.begin(api.feed(&[SECOND, FIRST]))?;
    api.healthy()?;
    api.plane.kill_server(SECOND)?;
    api.move_to("p2a")?;
    api.serves(MOVING, "p2a")?;
    api.plane.start_server(SECOND)
}

/// A transfer, 200 short connections a second and a UDP exchange, through a local and a remote backend, while both
/// servers die, an agent dies without them, its successor waits for them, lists, and is restarted.
fn traffic(api: &mut Api) -> Result<()> {
    let agent = api.context.agent.clone();
    let Api { context, plane, .. } = api;
    let outage = |lab: &mut Lab| -> Result<()> {
        for server in [FIRST, SECOND] {
            plane.kill_server(server)?;
        }
        std::thread::sleep(WHILE);
        lab.nodes[0].stop_agent(libc::SIGKILL)?;
        std::thread::sleep(WHILE);
        lab.nodes[0].spawn_agent(&agent)?;
        std::thread::sleep(WHILE);
        plane.start_server(FIRST)?;
        lab.nodes[0].wait_healthy()?;
        lab.nodes[0].stop_agent(libc::SIGTERM)?;
        lab.nodes[0].start_agent(&agent)?;
        plane.start_server(SECOND)
    };
    survive(context, LASTS, 0, outage).map(drop)
}
