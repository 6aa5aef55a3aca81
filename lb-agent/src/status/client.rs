//! `lb-agent status`: asks the running agent.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

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

/// The answer of [`ask`] for people.
#[must_use]
pub fn text(status: &Value) -> String {
    let word = |key: &str| match status.get(key) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => "unknown".to_owned(),
        Some(other) => other.to_string(),
    };
    let mut lines = vec![
        format!("node       {} (mode {})", word("node"), word("mode")),
        format!("in sync    {}", word("inSync")),
        format!("serving    {}", word("serving")),
        format!("attached   {} interfaces", word("attached")),
    ];
    let tables = status.get("tables").and_then(Value::as_object).into_iter().flatten();
    lines.extend(tables.map(|(name, rows)| format!("  {name:<18} {rows}")));
    let failures = status.get("failures").and_then(Value::as_array).into_iter().flatten();
    lines.extend(failures.filter_map(Value::as_str).map(|failure| format!("FAILED     {failure}")));
    for issue in status.get("issues").and_then(Value::as_array).into_iter().flatten() {
        let part = |key: &str| issue.get(key).and_then(Value::as_str).unwrap_or_default();
        let field = if part("field").is_empty() { String::new() } else { format!(", {}", part("field")) };
        lines.push(format!("{:<10} {}{field}: {}", part("severity"), part("object"), part("problem")));
        lines.push(format!("           -> {}", part("cure")));
    }
    lines.join("\n") + "\n"
}
