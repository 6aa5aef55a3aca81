//! What an agent does once and ends, or ends for: conntrack settings, the configuration in force, clean-up, a new file.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use super::{Case, Context, Side, WEB, vips};
use crate::lab::netns::run_in;
use crate::lab::worker::Ask;

pub(super) const CASES: &[Case] = &[
    ("b114_b159_init_only_sets_conntrack_and_serves_nothing", init_only),
    ("b160_the_configuration_in_force_is_written_and_can_be_used", write_config),
    ("b158_cleanup_leaves_nothing_and_a_clean_node_is_no_error", cleanup),
    ("b161_a_new_configuration_ends_the_agent_and_not_the_traffic", new_configuration),
];

fn conntrack(context: &Context, name: &str) -> Result<String> {
    let namespace = &context.lab.nodes[0].namespace;
    let file = format!("/proc/sys/net/netfilter/nf_conntrack_{name}");
    Ok(run_in(namespace, &["cat", &file], "").context("no connection tracking?")?.trim().to_owned())
}

fn init_only(context: &mut Context) -> Result<()> {
    let agent = context.agent.clone();
    let file = context.lab.folder.join("init.yaml");
    let settings = ["udp_timeout", "udp_timeout_stream", "tcp_timeout_established", "tcp_be_liberal"];
    let before = settings.map(|name| conntrack(context, name)).into_iter().collect::<Result<Vec<_>>>()?;
    let config = |values: [&str; 4]| {
        format!(
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nconntrack:\n  \
             {{maxPerCore: 0, min: 0, tcpCloseWaitTimeout: 0s, udpTimeout: {}s, udpStreamTimeout: {}s, \
             tcpEstablishedTimeout: {}s, tcpBeLiberal: {}}}\n",
            values[0], values[1], values[2], values[3]
        )
    };
    let run = format!("run --init-only --node-name node1 --config {}", file.display());
    context.lab.nodes[0].stop_agent(libc::SIGTERM)?;
    context.lab.nodes[0].agent_command(&agent, "cleanup")?;
    for values in [["41", "142", "4242", "true"], ["41", "0", "0", "false"]] {
        fs::write(&file, config(values))?;
        context.lab.nodes[0].agent_command(&agent, &run)?;
        // 0 and `false` leave alone what is there
        let now = settings.map(|name| conntrack(context, name)).into_iter().collect::<Result<Vec<_>>>()?;
        ensure!(now == ["41", "142", "4242", "1"], "{settings:?} are {now:?} after {values:?}");
    }
    let served = context.http(Side::Pod("p1b"), vips(WEB)[0])?;
    ensure!(served.error.is_some(), "--init-only serves: {served:?}");
    let namespace = context.lab.nodes[0].namespace.clone();
    for (name, value) in settings.iter().zip(before) {
        let file = format!("/proc/sys/net/netfilter/nf_conntrack_{name}");
        run_in(&namespace, &["tee", &file], &value)?;
    }
    context.lab.nodes[0].start_agent(&agent)
}

fn write_config(context: &mut Context) -> Result<()> {
    let agent = context.agent.clone();
    let config = context.lab.nodes[0].config.clone();
    let written = context.lab.folder.join("written.yaml");
    let run = format!(
        "run --node-name node1 --config {} --write-config-to {}",
        config.display(),
        written.display()
    );
    context.lab.nodes[0].agent_command(&agent, &run)?;
    let text = fs::read_to_string(&written)?;
    for line in ["mode: nftables", "clusterCIDR: 10.77.0.0/16,fd77::/32", "configSyncPeriod: 15m"] {
        ensure!(text.contains(line), "{line} is not in\n{text}");
    }
    let usual = fs::read_to_string(&config)?;
    restart(context, &text)?;
    let log = fs::read_to_string(&context.lab.nodes[0].log)?;
    let last = log.rsplit("Stopping").next().unwrap_or_default();
    ensure!(
        !last.contains("WARN lb_agent::tasks: Configuration"),
        "a written configuration is warned about:\n{last}"
    );
    for vip in vips(WEB) {
        context.all_protocols(Side::Pod("p1b"), vip, vip, &["p1a", "p2a"])?;
    }
    restart(context, &usual)
}

fn restart(context: &mut Context, configuration: &str) -> Result<()> {
    let agent = context.agent.clone();
    let node = &mut context.lab.nodes[0];
    node.stop_agent(libc::SIGTERM)?;
    fs::write(&node.config, configuration)?;
    node.start_agent(&agent)
}

fn cleanup(context: &mut Context) -> Result<()> {
    let agent = context.agent.clone();
    context.lab.nodes[0].stop_agent(libc::SIGTERM)?;
    let done = clean_twice(context);
    context.lab.nodes[0].start_agent(&agent)?;
    done?;
    for vip in vips(WEB) {
        context.all_protocols(Side::Node(0), vip, vip, &["p1a", "p2a"])?;
    }
    Ok(())
}

fn clean_twice(context: &mut Context) -> Result<()> {
    let agent = context.agent.clone();
    for time in ["first", "second"] {
        context.lab.nodes[0].agent_command(&agent, "cleanup").context(time)?;
        context.lab.nodes[0].agent_command(&agent, "cleanup --kube-proxy").context(time)?;
        ensure!(!context.lab.nodes[0].bpffs.join("lb").exists(), "the {time} clean-up leaves pins");
        let attached = run_in(&context.lab.nodes[0].namespace, &["bpftool", "net", "show"], "")?;
        ensure!(!attached.contains("lb_tc"), "the {time} clean-up leaves\n{attached}");
    }
    let served = context.http(Side::Node(0), vips(WEB)[0])?;
    ensure!(served.error.is_some(), "a clean node serves: {served:?}");
    Ok(())
}

fn new_configuration(context: &mut Context) -> Result<()> {
    let agent = context.agent.clone();
    let config = context.lab.nodes[0].config.clone();
    let usual = fs::read_to_string(&config)?;
    let opened = Ask::Open { id: "b161".into(), to: vips(WEB)[0] };
    ensure!(context.ask(Side::Pod("p1b"), &opened)?.error.is_none(), "no connection");
    // by rename, as editors and ConfigMap volumes do
    let fresh = config.with_extension("new");
    fs::write(&fresh, format!("{usual}oomScoreAdj: -998\n"))?;
    fs::rename(&fresh, &config)?;
    let health = Ask::Http { to: "127.0.0.1:10256".parse()?, path: "/livez".into(), mapped: false };
    let gone = |answer: &crate::lab::worker::Answer| answer.error.as_deref() == Some("ConnectionRefused");
    context.eventually(Side::Node(0), &health, "the agent's end", gone)?;
    let ended = context.lab.nodes[0].wait_ended()?;
    ensure!(ended.code() == Some(1), "the agent ended with {ended}, not with status 1");
    let log = fs::read_to_string(&context.lab.nodes[0].log)?;
    ensure!(log.contains("the file of --config has changed"), "the log does not say why it ended");
    let said = context.ask(Side::Pod("p1b"), &Ask::Say { id: "b161".into(), text: "still".into() })?;
    ensure!(said.text == "still", "{said:?}");
    for vip in vips(WEB) {
        context.all_protocols(Side::Pod("p1b"), vip, vip, &["p1a", "p2a"]).context("without an agent")?;
    }
    fs::write(&config, usual)?;
    context.lab.nodes[0].start_agent(&agent)
}
