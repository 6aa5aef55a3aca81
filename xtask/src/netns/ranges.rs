//! loadBalancerSourceRanges, seen by pods, the node itself and a client outside (B96-B103).

use anyhow::{Context as _, Result, ensure};

use super::detect::dropped;
use super::{Case, Context, Side, address, node_port, service, vips};
use crate::lab::CLIENT;
use crate::lab::manifests::Service;
use crate::lab::worker::Ask;

pub(super) const CASES: &[Case] = &[
    ("b96_b99_ranges_filter_load_balancer_addresses_for_everybody_and_nothing_else", filters),
    ("b97_ranges_of_one_family_leave_the_other_open", one_family),
    ("b100_ranges_with_the_nodes_address_admit_its_processes", node),
    ("b103_connections_survive_a_narrowing_of_the_ranges", narrowed),
    ("b102_without_endpoints_who_is_admitted_is_refused_and_others_are_dropped", without_endpoints),
];

/// Number of the Service.
const RANGED: u32 = 34;
const VIPS: [&str; 2] = ["203.0.113.34", "2001:db8:203::34"];
const EXTERNAL: &str = "198.51.100.34";
const PODS: &[&str] = &["p1a", "p2a"];

/// Gives the Service these ranges, and waits until this side is (not) admitted, in the family of the VIP.
fn set(context: &mut Context, ranges: &[String], pods: &[&str], seen: (Side, usize, Expect)) -> Result<()> {
    let list: Vec<String> = ranges.iter().map(|range| format!("\" {range} \"")).collect();
    let ranged = Service {
        lb_ips: VIPS.map(String::from).into(),
        external_ips: vec![EXTERNAL.into()],
        spec: vec![format!("loadBalancerSourceRanges: [{}]", list.join(", "))],
        ..service(RANGED, "ranged")
    };
    context.lab.service(&ranged, pods)?;
    let (side, family, expect) = seen;
    let ask = Ask::Http { to: address(VIPS[family], 80), path: "/".into(), mapped: false };
    let what = format!("{side:?} {expect:?} with {ranges:?}");
    context.eventually(side, &ask, &what, |answer| match expect {
        Expect::Answer => answer.pod().is_some(),
        Expect::Silence => answer.error.as_deref() == Some("TimedOut"),
        Expect::Refusal => answer.error.as_deref() == Some("ConnectionRefused"),
    })?;
    Ok(())
}

#[derive(Clone, Copy, Debug)]
enum Expect {
    Answer,
    Silence,
    Refusal,
}

/// Host prefixes of the client and of pod p1b, in both families.
fn client_and_p1b(context: &mut Context) -> Result<Vec<String>> {
    let [four, six] = context.lab.pod("p1b")?.addresses.clone();
    Ok(vec![
        format!("{}/32", CLIENT[0]),
        format!("{}/128", CLIENT[1]),
        format!("{four}/32"),
        format!("{six}/128"),
    ])
}

fn filters(context: &mut Context) -> Result<()> {
    let ranges = client_and_p1b(context)?;
    set(context, &ranges, PODS, (Side::Pod("p1b"), 0, Expect::Answer))?;
    let node = context.lab.nodes[0].addresses.clone();
    for family in [0, 1] {
        let vip = address(VIPS[family], 80);
        for side in [Side::Client, Side::Pod("p1b")] {
            context.all_protocols(side, vip, vip, PODS)?;
        }
        for side in [Side::Pod("p1a"), Side::Node(0)] {
            dropped(context, side, vip, vip)?;
        }
        // everything else of the same Service is open (B96)
        let port = node_port(RANGED);
        let (tcp, udp) = (address(&node[family], port), address(&node[family], port + 1));
        let cluster = vips(RANGED)[family];
        for side in [Side::Pod("p1a"), Side::Node(0)] {
            context.all_protocols(side, tcp, udp, PODS)?;
            context.all_protocols(side, cluster, cluster, PODS)?;
        }
    }
    let external = address(EXTERNAL, 80);
    for side in [Side::Pod("p1a"), Side::Node(0), Side::Client] {
        context.all_protocols(side, external, external, PODS)?;
    }
    Ok(())
}

fn one_family(context: &mut Context) -> Result<()> {
    for (family, range) in [(0, "198.18.0.0/15"), (1, "2001:db8:ffff::/48")] {
        set(context, &[range.into()], PODS, (Side::Pod("p1a"), family, Expect::Silence))?;
        let open = address(VIPS[1 - family], 80);
        for side in [Side::Pod("p1a"), Side::Node(0), Side::Client] {
            context.all_protocols(side, open, open, PODS)?;
            dropped(context, side, address(VIPS[family], 80), address(VIPS[family], 80))?;
        }
    }
    Ok(())
}

fn node(context: &mut Context) -> Result<()> {
    let [four, six] = context.lab.nodes[0].addresses.clone();
    let ranges = [format!("{four}/32"), format!("{six}/128")];
    set(context, &ranges, PODS, (Side::Pod("p1b"), 0, Expect::Silence))?;
    for vip in VIPS.map(|vip| address(vip, 80)) {
        context.all_protocols(Side::Node(0), vip, vip, PODS)?;
        dropped(context, Side::Pod("p1b"), vip, vip)?;
        dropped(context, Side::Client, vip, vip)?;
    }
    Ok(())
}

fn narrowed(context: &mut Context) -> Result<()> {
    let ranges = client_and_p1b(context)?;
    set(context, &ranges, PODS, (Side::Client, 0, Expect::Answer))?;
    let mut open = Vec::new();
    for side in [Side::Client, Side::Pod("p1b")] {
        for vip in VIPS {
            let id = format!("narrowed {side:?} {vip}");
            let answer = context.ask(side, &Ask::Open { id: id.clone(), to: address(vip, 80) })?;
            ensure!(answer.error.is_none(), "opening {id}: {answer:?}");
            open.push((side, id));
        }
    }
    let others = ["198.18.0.0/15".to_owned(), "2001:db8:ffff::/48".to_owned()];
    set(context, &others, PODS, (Side::Client, 0, Expect::Silence))?;
    for side in [Side::Client, Side::Pod("p1b")] {
        for vip in VIPS.map(|vip| address(vip, 80)) {
            dropped(context, side, vip, vip).context("new connections")?;
        }
    }
    for (side, id) in open {
        for text in ["still", "here"] {
            let said = context.ask(side, &Ask::Say { id: id.clone(), text: text.into() })?;
            ensure!(said.text == text, "{id}: {said:?}");
        }
    }
    Ok(())
}

fn without_endpoints(context: &mut Context) -> Result<()> {
    let ranges = client_and_p1b(context)?;
    set(context, &ranges, &[], (Side::Client, 0, Expect::Refusal))?;
    for vip in VIPS.map(|vip| address(vip, 80)) {
        for side in [Side::Client, Side::Pod("p1b")] {
            context.refused(side, vip, vip)?;
        }
        for side in [Side::Pod("p1a"), Side::Node(0)] {
            dropped(context, side, vip, vip)?;
        }
    }
    Ok(())
}
