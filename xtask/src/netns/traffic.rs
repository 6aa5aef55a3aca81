//! A 30-second transfer, 200 short connections a second and a UDP exchange survive what is done to an agent, through a
//! local and a remote backend, from a pod, from the node itself and from outside: no reset, no wrong answer.

use std::time::Duration;

use anyhow::{Context as _, Result};

use super::{Case, Context, LOCAL, REMOTE, Side, address, node_port, vips};
use crate::lab::Lab;
use crate::lab::traffic::{Load, Tally, Target, under};

pub(super) const CASES: &[Case] =
    &[("b156_traffic_survives_a_restart", restart), ("b156_traffic_survives_kill_9", kill_9)];

/// How long the traffic lasts.
pub(super) const LASTS: Duration = Duration::from_secs(30);
/// How long no agent runs.
const AWAY: Duration = Duration::from_secs(2);
/// Short connections a second from each side; 200 together.
const RATE: [u32; 3] = [80, 40, 80];

/// Loads through node 1: ClusterIPs from a pod and from the node, NodePorts from outside.
pub(super) fn loads(lab: &Lab) -> Vec<(Side, Load)> {
    let target = |tcp, udp, pod: &str| Target { tcp, udp, pods: vec![pod.into()] };
    let (mut inside, mut outside) = (Vec::new(), Vec::new());
    for (number, pod) in [(LOCAL, "p1a"), (REMOTE, "p2a")] {
        inside.extend(vips(number).into_iter().map(|vip| target(vip, vip, pod)));
        let port = node_port(number);
        outside.extend(
            lab.nodes[0].addresses.iter().map(|ip| target(address(ip, port), address(ip, port + 1), pod)),
        );
    }
    let [pod, node, client] = RATE;
    vec![
        (Side::Pod("p1b"), Load { targets: inside.clone(), rate: pod }),
        (Side::Node(0), Load { targets: inside, rate: node }),
        (Side::Client, Load { targets: outside, rate: client }),
    ]
}

/// Runs `action` under all loads and demands that nothing broke; `lost` datagrams may be missing.
pub(super) fn survive(
    context: &mut Context,
    least: Duration,
    lost: u64,
    action: impl FnOnce(&mut Lab) -> Result<()>,
) -> Result<Tally> {
    let loads = loads(&context.lab);
    let tally = under(&mut context.lab, &loads, least, action)?;
    println!("        {tally}");
    tally.unharmed(lost)?;
    Ok(tally)
}

fn restart(context: &mut Context) -> Result<()> {
    stop_and_start(context, libc::SIGTERM)
}

fn kill_9(context: &mut Context) -> Result<()> {
    stop_and_start(context, libc::SIGKILL)
}

fn stop_and_start(context: &mut Context, signal: libc::c_int) -> Result<()> {
    let agent = context.agent.clone();
    let away = |lab: &mut Lab| -> Result<()> {
        for _ in 0..3 {
            lab.nodes[0].stop_agent(signal)?;
            std::thread::sleep(AWAY);
            lab.nodes[0].start_agent(&agent)?;
            std::thread::sleep(AWAY);
        }
        Ok(())
    };
    survive(context, LASTS, 0, away).with_context(|| format!("signal {signal}")).map(drop)
}
