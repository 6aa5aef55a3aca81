//! A Service with Maglev tables: two nodes choose the same pod for the same client and port.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};

use super::{Case, Context, Side, address, node_port, service};
use crate::lab::manifests::Service;
use crate::lab::worker::Ask;

pub(super) const CASES: &[Case] =
    &[("maglev_two_nodes_choose_the_same_pod", agree), ("maglev_with_affinity_goes_by_client", affinity)];

/// Numbers of the Services.
const AGREED: u32 = 51;
const STUCK: u32 = 52;
const PODS: &[&str] = &["p1a", "p1b", "p2a", "p2b"];
/// That two nodes agree by chance so often, each of four pods likely: 1 in 10^7.
const TRIES: usize = 12;

fn maglev(number: u32, name: &str) -> Service {
    Service { annotations: vec!["lb-agent.io/selection: maglev".into()], ..service(number, name) }
}

/// From one port to the NodePorts of both nodes: the pods that answered, which must be one.
fn pod_of_both(context: &mut Context, number: u32, family: usize, udp: bool) -> Result<String> {
    let to = [0, 1].map(|node| {
        let node: &str = &context.lab.nodes[node].addresses[family];
        address(node, node_port(number) + u16::from(udp))
    });
    let answer = context.ask(Side::Client, &Ask::Both { to, udp })?;
    ensure!(answer.error.is_none(), "{to:?}: {answer:?}");
    let pods: BTreeSet<&str> =
        answer.text.lines().filter_map(|line| line.split_whitespace().nth(1)).collect();
    ensure!(pods.len() == 1, "{to:?}, UDP {udp}: {pods:?} answered one port of the client");
    Ok(pods.into_iter().collect())
}

/// Until both nodes know the Service.
fn serve(context: &mut Context, service: &Service, number: u32) -> Result<()> {
    context.lab.service(service, PODS)?;
    for node in [0, 1] {
        for family in [0, 1] {
            let to = address(&context.lab.nodes[node].addresses[family], node_port(number));
            let ask = Ask::Http { to, path: "/".into(), mapped: false };
            context.eventually(Side::Client, &ask, &service.name, |answer| answer.pod().is_some())?;
        }
    }
    Ok(())
}

fn agree(context: &mut Context) -> Result<()> {
    serve(context, &maglev(AGREED, "agreed"), AGREED)?;
    for family in [0, 1] {
        for udp in [false, true] {
            let seen = (0..TRIES)
                .map(|_| pod_of_both(context, AGREED, family, udp))
                .collect::<Result<BTreeSet<String>>>()?;
            ensure!(seen.len() > 1, "all {TRIES} ports went to {seen:?}");
        }
    }
    Ok(())
}

fn affinity(context: &mut Context) -> Result<()> {
    let spec = vec!["sessionAffinity: ClientIP".to_owned()];
    serve(context, &Service { spec, ..maglev(STUCK, "stuck") }, STUCK)?;
    for family in [0, 1] {
        let seen = (0..4)
            .map(|_| pod_of_both(context, STUCK, family, false))
            .collect::<Result<BTreeSet<String>>>()?;
        ensure!(seen.len() == 1, "{seen:?} answered one client");
    }
    Ok(())
}
