//! What the image is made of, as CycloneDX 1.6: <https://cyclonedx.org/docs/1.6/json/>.

use anyhow::Result;
use serde_json::{Value, json};

use super::binary::Target;
use super::components::{Component, purl};
use super::oci::rfc3339;

/// The document. It has no serial number, which would have to differ from build to build.
///
/// # Errors
/// The date is beyond the year 9999.
pub(crate) fn cyclonedx(components: &[Component], target: &Target, created: u64) -> Result<String> {
    let (agent, others): (Vec<_>, Vec<_>) = components.iter().partition(|c| c.name == "lb-agent");
    let reference = |(name, version): &(String, String)| purl("cargo", name, version);
    let dependencies: Vec<Value> = components
        .iter()
        .map(|c| json!({"ref": c.purl(), "dependsOn": c.uses.iter().map(reference).collect::<Vec<_>>()}))
        .collect();
    let document = json!({
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": rfc3339(created)?,
            "component": agent.first().map(|c| described(c, "application")),
            "properties": [
                {"name": "lb:target", "value": target.triple},
                {"name": "lb:libc", "value": target.libc_name()},
            ],
        },
        "components": others.iter().map(|c| described(c, "library")).collect::<Vec<_>>(),
        "dependencies": dependencies,
    });
    Ok(serde_json::to_string_pretty(&document)? + "\n")
}

fn described(component: &Component, kind: &str) -> Value {
    json!({
        "type": kind,
        "bom-ref": component.purl(),
        "name": component.name,
        "version": component.version,
        "purl": component.purl(),
        "licenses": [{"expression": component.licence}],
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::binary::Libc;
    use super::*;

    #[test]
    fn every_dependency_is_a_component() {
        let component = |name: &str, uses: &[&str]| Component {
            name: name.into(),
            version: "1.0.0+x".into(),
            licence: "MIT".into(),
            texts: Vec::new(),
            registry: Some("cargo"),
            uses: uses.iter().map(|name| ((*name).to_owned(), "1.0.0+x".to_owned())).collect::<BTreeSet<_>>(),
        };
        let target = Target { triple: "t".into(), libc: Libc::Musl };
        let text = cyclonedx(&[component("lb-agent", &["a"]), component("a", &[])], &target, 0).unwrap();
        let document: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(document["metadata"]["component"]["name"], "lb-agent");
        assert_eq!(document["components"][0]["bom-ref"], "pkg:cargo/a@1.0.0%2Bx");
        assert_eq!(document["dependencies"][0]["dependsOn"][0], "pkg:cargo/a@1.0.0%2Bx");
    }
}
