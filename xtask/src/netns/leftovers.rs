//! The change from kube-proxy to the agent, under connections (B157).

use anyhow::{Context as _, Result, ensure};

use super::{Case, Context, LOCAL, REMOTE, Side, vips};
use crate::lab::netns::run_in;
use crate::lab::worker::Ask;

pub(super) const CASES: &[Case] =
    &[("b157_connections_of_kube_proxys_rules_survive_its_replacement", replacement)];

/// The rules of kube-proxy's nftables mode for two Services.
fn rules(context: &mut Context) -> Result<String> {
    let mut text = String::new();
    for (family, table) in [(0, "ip"), (1, "ip6")] {
        let mut jumps = String::new();
        for (number, pod) in [(LOCAL, "p1a"), (REMOTE, "p2a")] {
            let pod = context.lab.pod(pod)?.addresses[family].clone();
            let to = if family == 0 { format!("{pod}:8080") } else { format!("[{pod}]:8080") };
            jumps += &format!("{table} daddr {} tcp dport 80 dnat to {to}\n", vips(number)[family].ip());
        }
        text += &format!(
            "table {table} kube-proxy {{\nchain services {{\n{jumps}}}\nchain nat-prerouting {{\n\
             type nat hook prerouting priority dstnat;\njump services\n}}\n}}\n"
        );
    }
    Ok(text)
}

/// kube-proxy's rules carry connections; the agent starts beside them, and they are removed.
fn replacement(context: &mut Context) -> Result<()> {
    let agent = context.agent.clone();
    let node = context.lab.nodes[0].namespace.clone();
    context.lab.nodes[0].stop_agent(libc::SIGTERM)?;
    context.lab.nodes[0].agent_command(&agent, "cleanup")?;
    let rules = rules(context)?;
    run_in(&node, &["nft", "-f", "-"], &rules)?;
    let mut connections = Vec::new();
    for to in [vips(LOCAL), vips(REMOTE)].concat() {
        let id = format!("kube-proxy {to}");
        let opened = context.ask(Side::Pod("p1b"), &Ask::Open { id: id.clone(), to })?;
        ensure!(opened.error.is_none(), "opening {id}: {opened:?}");
        connections.push(id);
    }
    let talk = |context: &mut Context, when: &str| -> Result<()> {
        for id in &connections {
            let answer = context.ask(Side::Pod("p1b"), &Ask::Say { id: id.clone(), text: when.into() })?;
            ensure!(answer.error.is_none() && answer.text == when, "{when}, {id}: {answer:?}");
        }
        Ok(())
    };
    talk(context, "before the agent")?;
    context.lab.nodes[0].start_agent(&agent)?;
    talk(context, "beside the agent")?;
    let status = context.lab.nodes[0].agent_command(&agent, "status")?;
    ensure!(status.contains("table ip6 kube-proxy"), "`lb-agent status` does not name the rules:\n{status}");
    let said = context.lab.nodes[0].agent_command(&agent, "cleanup --kube-proxy")?;
    talk(context, "after the rules").with_context(|| said.clone())?;
    let left = run_in(&node, &["nft", "list", "tables"], "")?;
    ensure!(!left.contains("kube-proxy") && left.contains("lb-keep-nat"), "{said}\n{left}");
    for vip in [vips(LOCAL)[0], vips(LOCAL)[1]] {
        context.all_protocols(Side::Pod("p1b"), vip, vip, &["p1a"]).context("the agent serves alone")?;
    }
    run_in(&node, &["nft", "delete", "table", "inet", "lb-keep-nat"], "").map(drop)
}
