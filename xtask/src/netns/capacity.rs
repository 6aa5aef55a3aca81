//! Small tables and many flows: what is idle lives on while short connections, datagrams and a flood pass by.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{Case, Context, LOCAL, REMOTE, address, node_port, vips};
use crate::lab::Lab;
use crate::lab::crowd::{Crowd, Strangers, room_for_sockets, storm, syn_flood};
use crate::lab::netns::run_in;

pub(super) const CASES: &[Case] = &[
    ("a_thousand_idle_connections_outlive_twice_the_table_of_short_ones", short_flows),
    ("a_thousand_idle_connections_outlive_a_syn_flood", flood),
];

/// Entries of the smallest tables, and idle connections by family: half of these masqueraded.
const SMALLEST: usize = 8192;
const IDLE: [usize; 2] = [1000, 200];

/// Stops node 1's agent and starts it with this option.
fn restart(lab: &mut Lab, agent: &Path, extra: Option<String>) -> Result<()> {
    let node = &mut lab.nodes[0];
    node.stop_agent(libc::SIGTERM)?;
    node.extra = extra.into_iter().collect();
    node.start_agent(agent)
}

/// Runs `case` with the smallest flow tables on node 1.
fn in_small_tables(context: &mut Context, case: fn(&mut Context) -> Result<()>) -> Result<()> {
    room_for_sockets(4096)?;
    let agent = context.agent.clone();
    restart(&mut context.lab, &agent, Some(format!("--max-flows={SMALLEST}")))?;
    let done = case(context);
    restart(&mut context.lab, &agent, None)?;
    done
}

fn status(context: &mut Context) -> Result<serde_json::Value> {
    std::thread::sleep(Duration::from_millis(2200)); // a sweep, and its publication
    let answer = context.lab.nodes[0].http("127.0.0.1:10249", "/status")?;
    serde_json::from_str(&answer.text).with_context(|| format!("{answer:?}"))
}

/// A row of `usage`: live entries, capacity, evicted.
fn row(status: &serde_json::Value, table: &str) -> Result<[u64; 3]> {
    let rows = status["usage"].as_array().context("no usage")?;
    let row =
        rows.iter().find(|row| row["table"] == table).with_context(|| format!("no {table}: {status}"))?;
    Ok(["used", "capacity", "evicted"].map(|key| row[key].as_u64().unwrap_or(0)))
}

/// From where, and to which frontend: a pod to a pod of its node, and from outside to a pod of another one.
fn ways(context: &Context) -> Result<Vec<[(String, SocketAddr); 2]>> {
    let pod = context.lab.pods.get("p1b").context("no pod p1b")?.namespace.clone();
    let client = format!("{}-client", context.lab.tag);
    let node = context.lab.nodes[0].addresses.clone();
    Ok((0..2)
        .map(|family| {
            let port = node_port(REMOTE);
            [(pod.clone(), vips(LOCAL)[family]), (client.clone(), address(&node[family], port))]
        })
        .collect())
}

/// The idle connections of each family.
fn crowds(context: &Context) -> Result<Vec<(Crowd, usize)>> {
    let mut crowds = Vec::new();
    for (ways, idle) in ways(context)?.into_iter().zip(IDLE) {
        for (namespace, to) in ways {
            crowds.push((Crowd::open(&namespace, to, idle / 2)?, idle / 2));
        }
    }
    Ok(crowds)
}

fn all_alive(crowds: &[(Crowd, usize)]) -> Result<()> {
    let alive: Vec<usize> = crowds.iter().map(|(crowd, _)| crowd.alive()).collect();
    let wanted: Vec<usize> = crowds.iter().map(|(_, count)| *count).collect();
    ensure!(alive == wanted, "{alive:?} of {wanted:?} idle connections are alive");
    Ok(())
}

fn short_flows(context: &mut Context) -> Result<()> {
    in_small_tables(context, |context| {
        let crowds = crowds(context)?;
        // twice as many flows as a table has entries, and each has two or four; fewer in the other family
        for (ways, count) in ways(context)?.into_iter().zip([SMALLEST / 2, SMALLEST / 16]) {
            for (namespace, tcp) in ways {
                // a NodePort's UDP port is the next one
                let udp_port = if tcp.port() == 80 { 80 } else { tcp.port() + 1 };
                let udp = SocketAddr::new(tcp.ip(), udp_port);
                for (to, is_udp) in [(tcp, false), (udp, true)] {
                    let storm = storm(&namespace, to, is_udp, count)?;
                    println!(
                        "        {to}: {} of {count} in {:.1} s",
                        storm.answered,
                        storm.took.as_secs_f64()
                    );
                    storm.complete(count).with_context(|| format!("{to}, UDP {is_udp}"))?;
                }
            }
        }
        let status = status(context)?;
        all_alive(&crowds)?;
        for table in ["LB_CT4", "LB_CT6"] {
            let [live, capacity, evicted] = row(&status, table)?;
            println!("        {table}: {live} of {capacity} entries, {evicted} evicted");
            ensure!(capacity == SMALLEST as u64, "{table} has {capacity} entries");
            ensure!(evicted == 0, "{table}: {evicted} entries were evicted");
        }
        let retired = status["counters"]["flow_retired"].as_u64().unwrap_or(0);
        ensure!(retired >= SMALLEST as u64, "only {retired} flows were retired");
        Ok(())
    })
}

fn flood(context: &mut Context) -> Result<()> {
    in_small_tables(context, |context| {
        let crowds = crowds(context)?;
        let node = context.lab.nodes[0].namespace.clone();
        let link = run_in(&node, &["ip", "-o", "link", "show", "eth0"], "")?;
        let mut words = link.split_whitespace().skip_while(|word| *word != "link/ether");
        let mac = words.nth(1).with_context(|| link.clone())?;
        let bytes: Vec<u8> =
            mac.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<_, _>>()?;
        let mac =
            <[u8; 6]>::try_from(bytes).map_err(|bytes| anyhow::anyhow!("{bytes:?} is no MAC address"))?;
        // all of it is masqueraded, so no pod of another node sees where it comes from
        let pods = context.lab.pods.values().filter(|pod| pod.node != 0);
        let watches = pods.map(|pod| Strangers::watch(&pod.namespace)).collect::<Result<Vec<_>>>()?;
        for [_, (client, to)] in ways(context)? {
            let sent = syn_flood(&client, "eth0", mac, to, 50_000)?;
            println!("        {sent} SYNs to {to}");
            ensure!(sent > 20_000, "only {sent} SYNs were sent");
        }
        let status = status(context)?;
        let strangers: u32 = watches.iter().map(Strangers::count).sum::<Result<u32>>()?;
        let lost = &status["counters"]["drop_flow_lost"];
        println!("        {strangers} packets came with the client's address, {lost} were dropped");
        ensure!(strangers == 0, "{strangers} packets reached a pod with the client's address");
        let flows = status["counters"]["new_flows"].as_u64().unwrap_or(0);
        ensure!(flows > 10_000, "only {flows} SYNs began a flow");
        let alerts = status["alerts"].to_string();
        ensure!(alerts.contains("LB_EM") && !alerts.contains("LB_CT"), "the status tells: {alerts}");
        all_alive(&crowds)?;
        for table in ["LB_CT4", "LB_CT6"] {
            let [live, capacity, evicted] = row(&status, table)?;
            ensure!(evicted == 0, "{table}: {evicted} of {capacity} entries were evicted, {live} are left");
        }
        // and others still get in
        for [_, (client, to)] in ways(context)? {
            storm(&client, to, false, 100)?.complete(100).context("after the flood")?;
        }
        Ok(())
    })
}
