//! Text of a manifest file -> objects and issues.
//!
//! **Invariant:** documents of one file are split before they are parsed, so that a bad one never hides the others.

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_yaml_ng::Value;
use std::sync::Arc;

use super::{Fault, Translated, node, service, slice};
use crate::model::{Key, Object, ObjectName};
use crate::plan::issue::{Issue, Severity};

/// What a file holds.
#[derive(Debug, Default)]
pub struct Decoded {
    /// Objects that can be served.
    pub good: Vec<Object>,
    /// Objects that are named but cannot be read: an earlier version of them stays.
    pub bad: Vec<Key>,
    /// A document could not even be named: all earlier objects of the file that it no longer shows stay.
    pub unnamed: bool,
    /// What is wrong, in the order of the file.
    pub issues: Vec<Issue>,
}

/// Decodes a file; `file` names it in issues. Pure.
#[must_use]
pub fn decode(file: &str, text: &str) -> Decoded {
    let mut out = Decoded::default();
    for document in documents(text) {
        match serde_yaml_ng::from_str::<Value>(&document) {
            Ok(Value::Null) => {}
            Ok(value) => out.value(file, value),
            Err(error) => {
                out.unnamed = true;
                let cure = "correct the YAML; what this file gave before stays in force";
                out.issues.push(Issue::new(
                    Severity::Error,
                    file,
                    "",
                    format!("is not valid YAML: {error}"),
                    cure,
                ));
            }
        }
    }
    out
}

/// Splits at lines that begin with `---`; line numbers of later documents are kept by empty lines in front.
fn documents(text: &str) -> Vec<String> {
    let mut found = vec![String::new()];
    for (number, line) in text.lines().enumerate() {
        let marker = line == "---" || line.starts_with("--- ") || line == "...";
        if marker {
            found.push("\n".repeat(number + 1));
        } else if let Some(last) = found.last_mut() {
            last.push_str(line);
            last.push('\n');
        }
    }
    found.retain(|d| d.lines().any(|l| !l.trim().is_empty() && !l.trim_start().starts_with('#')));
    found
}

/// The part of an object that every kind has.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Header {
    #[serde(rename = "apiVersion")]
    api_version: String,
    kind: String,
    metadata: Metadata,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Metadata {
    name: String,
    namespace: String,
}

impl Decoded {
    fn value(&mut self, file: &str, value: Value) {
        let header = match serde_path_to_error::deserialize::<_, Header>(&value) {
            Ok(header) => header,
            Err(error) => {
                let (field, problem) = (error.path().to_string(), error.inner().to_string());
                return self.cannot_name(file, field, problem);
            }
        };
        if header.kind == "List" || header.kind.is_empty() && value.get("items").is_some() {
            for item in value.get("items").and_then(Value::as_sequence).cloned().unwrap_or_default() {
                self.value(file, item);
            }
            return;
        }
        let served = matches!(header.kind.as_str(), "Service" | "EndpointSlice" | "Node" | "ServiceCIDR");
        if header.kind.is_empty() {
            return self.cannot_name(file, "kind".to_owned(), "is missing".to_owned());
        }
        if !served {
            let object = format!("{file}: {} {}", header.kind, header.metadata.name);
            let cure = "only Service, EndpointSlice, Node and ServiceCIDR are read; remove it if it was meant to act";
            self.issues.push(Issue::new(
                Severity::Note,
                object,
                "kind",
                "is not a kind that is read here",
                cure,
            ));
            return;
        }
        if header.metadata.name.is_empty() {
            return self.cannot_name(file, "metadata.name".to_owned(), "is missing".to_owned());
        }
        let namespace =
            if header.metadata.namespace.is_empty() { "default" } else { &header.metadata.namespace };
        let name = ObjectName::new(namespace, &header.metadata.name);
        self.object(file, &header, name, value);
    }

    fn object(&mut self, file: &str, header: &Header, name: ObjectName, value: Value) {
        let bare = name.name.clone();
        let expected = match header.kind.as_str() {
            "Service" | "Node" => "v1",
            "EndpointSlice" => "discovery.k8s.io/v1",
            _ => "networking.k8s.io/v1",
        };
        let key = match header.kind.as_str() {
            "Service" => Key::Service(name.clone()),
            "EndpointSlice" => Key::Slice(name.clone()),
            "Node" => Key::Node(bare.clone()),
            _ => Key::ServiceCidr(bare.clone()),
        };
        if header.api_version != expected {
            let problem = format!("is {:?}", header.api_version);
            let fault = Fault::new("apiVersion", problem, format!("write apiVersion: {expected}"));
            return self.reject(file, key, fault);
        }
        let read = match &key {
            Key::Service(_) => {
                typed::<Service>(&value).map(|o| wrap(service::translate(name, &o), Object::Service))
            }
            Key::Slice(_) => {
                typed::<EndpointSlice>(&value).map(|o| wrap(slice::translate(name, &o), Object::Slice))
            }
            Key::Node(_) => typed::<Node>(&value).map(|o| wrap(node::translate(bare, &o), Object::Node)),
            Key::ServiceCidr(_) => typed::<ServiceCIDR>(&value)
                .map(|o| wrap(node::translate_cidr(bare, &o), Object::ServiceCidr)),
        };
        match read {
            Ok(translated) => {
                for fault in translated.faults {
                    self.fault(Severity::Warning, file, &key, fault);
                }
                self.good.extend(translated.object);
            }
            Err(fault) => self.reject(file, key, fault),
        }
    }

    fn reject(&mut self, file: &str, key: Key, fault: Fault) {
        let cure = format!("{}; the last good version stays in force", fault.cure);
        self.fault(Severity::Error, file, &key, Fault { cure, ..fault });
        self.bad.push(key);
    }

    fn fault(&mut self, severity: Severity, file: &str, key: &Key, fault: Fault) {
        let object = format!("{file}: {key}");
        self.issues.push(Issue::new(severity, object, fault.field, fault.problem, fault.cure));
    }

    fn cannot_name(&mut self, file: &str, field: String, problem: String) {
        self.unnamed = true;
        let cure = "every document needs apiVersion, kind and metadata.name; what this file gave before stays in force";
        self.issues.push(Issue::new(Severity::Error, file, field, problem, cure));
    }
}

fn typed<T: DeserializeOwned>(value: &Value) -> Result<T, Fault> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        Fault::new(
            error.path().to_string(),
            error.inner().to_string(),
            "give the field the type the API asks for",
        )
    })
}

pub(super) fn wrap<T>(translated: Translated<T>, kind: fn(Arc<T>) -> Object) -> Translated<Object> {
    Translated { object: translated.object.map(|o| kind(Arc::new(o))), faults: translated.faults }
}
