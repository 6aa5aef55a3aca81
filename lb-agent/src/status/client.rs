//! `lb-agent status`: asks the running agent.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use lb_common::counter::Counter;
use serde_json::Value;

use crate::datapath::memory::mebibytes;

/// How long an agent may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks an agent for `/status`.
///
/// # Errors
/// Nobody listens, no answer within 5 s, or it is not the answer of an agent.
pub fn ask(agent: SocketAddr) -> io::Result<Value> {
    let mut stream = TcpStream::connect_timeout(&agent, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("GET /status HTTP/1.0\r\nHost: {agent}\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let strange = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("{agent} {what}"));
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| strange("did not answer in HTTP"))?;
    if !head.lines().next().is_some_and(|line| line.contains(" 200")) {
        return Err(strange("has no /status: is it another program?"));
    }
    serde_json::from_str(body).map_err(|_syntax| strange("did not answer with a status"))
}

/// The answer of [`ask`] for people; what JSON has, but for counters at zero.
#[must_use]
pub fn text(status: &Value) -> String {
    let word = |key: &str| match status.get(key) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => "unknown".to_owned(),
        Some(other) => other.to_string(),
    };
    let mut lines = Vec::new();
    if status.get("node").is_some() {
        lines.push(format!("node       {} (mode {})", word("node"), word("mode")));
        lines.push(format!("in sync    {}{}", word("inSync"), awaited(status)));
    }
    lines.push(format!("serving    {}", word("serving")));
    if status.get("attached").is_some() {
        let names: Vec<&str> = array(status, "interfaces").filter_map(Value::as_str).collect();
        lines.push(format!("attached   {} interfaces: {}", word("attached"), names.join(" ")));
    }
    let xdp: Vec<&str> = array(status, "xdp").filter_map(Value::as_str).collect();
    if !xdp.is_empty() {
        lines.push(format!("xdp        {}", xdp.join(" ")));
    }
    let maglev = status.pointer("/tables/maglev").and_then(Value::as_u64).unwrap_or(0);
    if maglev > 0 {
        lines.push(format!("maglev     {maglev} service ports (`lb-agent dump` says which)"));
    }
    let fast = &status["fast"];
    if fast["on"] == true {
        let forced = if fast["forced"] == true { ", forced" } else { "" };
        lines.push(format!("fast       between pods of this node, {} addresses{forced}", fast["pods"]));
    }
    lines.extend(array(fast, "refused").filter_map(Value::as_str).map(|w| format!("warning    {w}")));
    lines.extend(array(status, "xdpRefused").filter_map(Value::as_str).map(|w| format!("warning    {w}")));
    let peers = array(status, "dsrPeers").filter_map(Value::as_str);
    lines.extend(peers.map(|peer| format!("dsr        {peer}")));
    lines.extend(array(status, "failures").filter_map(Value::as_str).map(|f| format!("FAILED     {f}")));
    let warnings = ["warnings", "leftoverWarnings", "alerts"].into_iter().flat_map(|key| array(status, key));
    lines.extend(warnings.filter_map(Value::as_str).map(|w| format!("warning    {w}")));
    for issue in array(status, "issues") {
        let part = |key: &str| issue.get(key).and_then(Value::as_str).unwrap_or_default();
        let field = if part("field").is_empty() { String::new() } else { format!(", {}", part("field")) };
        lines.push(format!("{:<10} {}{field}: {}", part("severity"), part("object"), part("problem")));
        lines.push(format!("           -> {}", part("cure")));
    }
    lines.extend(array(status, "notes").filter_map(Value::as_str).map(|n| format!("note       {n}")));
    let memory = status.get("mapMemory").and_then(Value::as_u64).filter(|bytes| *bytes > 0);
    let memory = memory.map_or_else(String::new, |bytes| format!("; {} in the kernel", mebibytes(bytes)));
    lines.push(format!("tables     used of capacity{memory}"));
    for row in array(status, "usage") {
        let number = |key: &str| row.get(key).and_then(Value::as_u64);
        let table = row.get("table").and_then(Value::as_str).unwrap_or_default();
        let used = number("used").map_or_else(|| "not counted".to_owned(), |used| used.to_string());
        let evicted = number("evicted").map_or_else(String::new, |n| format!(", {n} evicted while alive"));
        lines
            .push(format!("  {table:<10} {used:>11} of {}{evicted}", number("capacity").unwrap_or_default()));
    }
    if let Some(share) = status.get("portsUsed").and_then(Value::as_f64) {
        let share = share * 100.0;
        lines.push(format!(
            "ports      {share:.0} % of the source ports towards the backend that has most are in use"
        ));
    }
    lines.push("counters   since the tables were made (zero is left out)".to_owned());
    let counters = status.get("counters").and_then(Value::as_object).into_iter().flatten();
    for (name, value) in counters.filter(|(_, value)| value.as_u64() != Some(0)) {
        let known = Counter::ALL.iter().find(|counter| counter.name() == name);
        let value = value.as_u64().unwrap_or_default();
        lines.push(format!("  {name:<24} {value:>9}  {}", known.map_or("", |c| c.help().trim())));
    }
    lines.join("\n") + "\n"
}

/// What is waited for, in brackets; empty = nothing.
fn awaited(status: &Value) -> String {
    let names: Vec<&str> = array(status, "awaited").filter_map(Value::as_str).collect();
    if names.is_empty() { String::new() } else { format!(" (waiting for {})", names.join(", ")) }
}

fn array<'a>(status: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    status.get(key).and_then(Value::as_array).into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Usage;
    use crate::plan::issue::{Issue, Severity};
    use crate::status::Status;

    #[test]
    fn people_see_what_is_served_what_is_wrong_and_what_was_dropped() {
        let status = Status {
            node: "n1".to_owned(),
            attached: 2,
            interfaces: vec!["eth0".to_owned(), "veth1".to_owned()],
            awaited: vec!["Network".to_owned()],
            failures: vec!["eth1: no".to_owned()],
            warnings: vec!["--config: field ipvs has no effect".to_owned()],
            leftover_warnings: vec!["kube-proxy's rules are in the kernel".to_owned()],
            issues: vec![Issue::new(Severity::Error, "Service a/b", "spec.ports", "is bad", "mend it")]
                .into(),
            usage: vec![
                Usage { table: "LB_SVC4", used: Some(7), capacity: 64, evicted: 0 },
                Usage { table: "LB_CT4", used: None, capacity: 128, evicted: 3 },
            ],
            notes: vec!["LB_CT4 keeps its size".to_owned()],
            alerts: vec!["LB_CT4 is 83 % full".to_owned()],
            ports_used: 0.12,
            map_memory: 3 << 20,
            counters: vec![("drop_no_snat_address", 3), ("new_flows", 0)],
            ..Status::default()
        };
        let text = text(&serde_json::to_value(&status).unwrap());
        for part in [
            "node       n1",
            "(waiting for Network)",
            "2 interfaces: eth0 veth1",
            "FAILED     eth1: no",
            "warning    --config: field ipvs has no effect",
            "warning    kube-proxy's rules are in the kernel",
            "Service a/b, spec.ports: is bad",
            "-> mend it",
            "note       LB_CT4 keeps its size",
            "used of capacity; 3.0 MiB in the kernel",
            "LB_SVC4              7 of 64",
            "LB_CT4     not counted of 128, 3 evicted while alive",
            "warning    LB_CT4 is 83 % full",
            "ports      12 % of the source ports towards the backend that has most are in use",
            "drop_no_snat_address             3  Dropped: the interface has no address to masquerade to.",
        ] {
            assert!(text.contains(part), "{part:?} in\n{text}");
        }
        assert!(!text.contains("new_flows"), "{text}");
    }
}
