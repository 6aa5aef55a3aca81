//! The text of the file -> one value with all defaults, and what is strange about the text (B163, B164).

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::ConfigError;

/// Defaults and known fields.
const DEFAULTS: &str = include_str!("defaults.yaml");

/// Below these every name is good.
const OPEN: [&str; 2] = ["featureGates", "logging.options"];

/// Fields where an explicit zero is not the default: kube-proxy tells it from nothing.
const ZERO_COUNTS: [&str; 5] = [
    "conntrack",
    "oomScoreAdj",
    "iptables.localhostNodePorts",
    "iptables.masqueradeBit",
    "nftables.masqueradeBit",
];

/// Known fields that mean nothing here, each with the reason.
const IDLE: [(&str, &str); 14] = [
    ("featureGates", "kube-proxy's feature gates are not this agent's"),
    ("clientConnection.acceptContentTypes", "objects are read as JSON"),
    ("clientConnection.contentType", "objects are read as JSON"),
    ("clientConnection.burst", "the agent makes four watches and hardly any other request"),
    ("clientConnection.qps", "the agent makes four watches and hardly any other request"),
    ("configSyncPeriod", "there is no copy of the objects to go through again"),
    ("enableProfiling", "there is no profiler inside; use perf"),
    ("iptables.masqueradeBit", "no packet mark is used"),
    ("nftables.masqueradeBit", "no packet mark is used"),
    ("ipvs", "there is no IPVS here"),
    ("logging", "use the environment variable RUST_LOG"),
    ("portRange", "kube-proxy does not use it either"),
    ("showHiddenMetricsForVersion", "there are no hidden metrics"),
    ("winkernel", "this is not Windows"),
];

/// Reads the text; every default is filled in. The second value says what is strange, in sentences.
///
/// # Errors
/// It is no YAML, or no mapping.
pub(super) fn decode(text: &str) -> Result<(Value, Vec<String>), ConfigError> {
    let shape = |problem: String| ConfigError::Shape { field: String::new(), problem };
    let Tree(read, twice) =
        serde_yaml_ng::from_str::<Tree>(text).map_err(|error| shape(error.to_string()))?;
    let read = match read {
        Value::Null => Value::Object(Map::new()),
        Value::Object(_) => read,
        _ => return Err(shape("is not a mapping of fields".to_owned())),
    };
    let mut strange: Vec<String> =
        twice.iter().map(|field| format!("field {field} is given twice; the last one counts")).collect();
    let mut merged = defaults()?;
    merge(&mut merged, read, "", &mut strange);
    idle(&merged, &defaults()?, "", &mut strange);
    Ok((merged, strange))
}

fn defaults() -> Result<Value, ConfigError> {
    serde_yaml_ng::from_str(DEFAULTS)
        .map_err(|error| ConfigError::Shape { field: "defaults".to_owned(), problem: error.to_string() })
}

/// Puts what was read over the defaults.
fn merge(into: &mut Value, read: Value, path: &str, strange: &mut Vec<String>) {
    match (into, read) {
        (Value::Object(known), Value::Object(given)) => {
            for (name, value) in given {
                let at = join(path, &name);
                match known.get_mut(&name) {
                    Some(default) => merge(default, value, &at, strange),
                    None if OPEN.contains(&path) => {
                        known.insert(name, value);
                    }
                    None => {
                        strange.push(format!("field {at} is not known and has no effect; is it misspelt?"))
                    }
                }
            }
        }
        (_, Value::Null) => {}
        (_, zero) if is_zero(&zero) && !below(path, &ZERO_COUNTS) => {}
        (into, value) => *into = value,
    }
}

/// Names what is given and means nothing here.
fn idle(value: &Value, default: &Value, path: &str, strange: &mut Vec<String>) {
    let reason = IDLE.iter().find(|(field, _)| below(path, &[field])).map(|(_, reason)| *reason);
    match (value, default) {
        (Value::Object(given), Value::Object(known)) => {
            for (name, value) in given {
                idle(value, known.get(name).unwrap_or(&Value::Null), &join(path, name), strange);
            }
        }
        (Value::Object(given), Value::Null) => {
            for (name, value) in given {
                idle(value, &Value::Null, &join(path, name), strange);
            }
        }
        (value, default) if value != default && !(default.is_null() && is_zero(value)) => {
            if let Some(reason) = reason {
                strange.push(format!("field {path} has no effect: {reason}"));
            }
        }
        _ => {}
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// Whether a path is one of these or below one.
fn below(path: &str, fields: &[&str]) -> bool {
    fields
        .iter()
        .any(|field| path.strip_prefix(field).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => matches!(text.as_str(), "" | "0" | "0s"),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(true) => false,
    }
}

/// A YAML value in which a field may be given twice, with the paths of those that are; the last one counts.
struct Tree(Value, Vec<String>);

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(TreeVisitor)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree(Value::Null, Vec::new()))
    }

    // An empty document.
    fn visit_none<E>(self) -> Result<Tree, E> {
        Ok(Tree(Value::Null, Vec::new()))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Tree, E> {
        Ok(Tree(value.into(), Vec::new()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Tree, E> {
        Ok(Tree(value.into(), Vec::new()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Tree, E> {
        Ok(Tree(value.into(), Vec::new()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Tree, E> {
        Ok(Tree(value.into(), Vec::new()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Tree, E> {
        Ok(Tree(value.into(), Vec::new()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Tree, A::Error> {
        let (mut values, mut twice) = (Vec::new(), Vec::new());
        while let Some(Tree(value, below)) = list.next_element()? {
            values.push(value);
            twice.extend(below);
        }
        Ok(Tree(Value::Array(values), twice))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tree, A::Error> {
        let (mut values, mut twice) = (Map::new(), Vec::new());
        while let Some((Tree(name, _), Tree(value, below))) = map.next_entry()? {
            let Value::String(name) = name else {
                return Err(A::Error::custom(format!("{name} is not the name of a field")));
            };
            twice.extend(below.iter().map(|field| join(&name, field)));
            if values.insert(name.clone(), value).is_some() {
                twice.push(name);
            }
        }
        Ok(Tree(Value::Object(values), twice))
    }
}
