//! YAML objects and their places in the API.

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::Value;

/// What is needed of an object to find its place.
#[derive(Deserialize, Clone, Debug, PartialEq, Eq)]
struct Header {
    #[serde(rename = "apiVersion")]
    api_version: String,
    kind: String,
    metadata: Metadata,
}

#[derive(Deserialize, Clone, Debug, PartialEq, Eq)]
struct Metadata {
    name: String,
    #[serde(default)]
    namespace: String,
}

/// An object and where it lives.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Item {
    /// Path of the object, from `/` on.
    pub(crate) path: String,
    /// The object as JSON text; YAML is only for people.
    pub(crate) body: String,
    /// It has a status that is to be written too.
    pub(crate) has_status: bool,
}

/// All documents of a YAML file.
///
/// # Errors
/// When one is no Kubernetes object of a kind that the tests use.
pub(crate) fn items(text: &str) -> Result<Vec<Item>> {
    let documents = text.split("\n---\n").filter(|d| d.lines().any(|l| !l.is_empty() && !l.starts_with('#')));
    documents.map(item).collect()
}

fn item(text: &str) -> Result<Item> {
    let value: Value = serde_yaml_ng::from_str(text).context("not valid YAML")?;
    let header: Header = serde_json::from_value(value.clone()).context("no Kubernetes object")?;
    let plural = match header.kind.as_str() {
        "Service" => "services",
        "EndpointSlice" => "endpointslices",
        "Node" => "nodes",
        "Namespace" => "namespaces",
        "ServiceAccount" => "serviceaccounts",
        "ServiceCIDR" => "servicecidrs",
        "ClusterRole" => "clusterroles",
        "ClusterRoleBinding" => "clusterrolebindings",
        other => bail!("objects of kind {other} are not used by the tests"),
    };
    let root = if header.api_version == "v1" { "api" } else { "apis" };
    let Metadata { name, namespace } = header.metadata;
    let namespace = if namespace.is_empty() { namespace } else { format!("namespaces/{namespace}/") };
    Ok(Item {
        path: format!("/{root}/{}/{namespace}{plural}/{name}", header.api_version),
        has_status: value.get("status").is_some(),
        body: value.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::items;

    #[test]
    fn objects_find_their_places() {
        let text = "# why\napiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: n}\nstatus: {}\n---\n\
            apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {name: b}\n";
        let found = items(text).unwrap();
        assert_eq!(found[0].path, "/api/v1/namespaces/n/services/a");
        assert_eq!(found[1].path, "/apis/rbac.authorization.k8s.io/v1/clusterroles/b");
        assert_eq!((found[0].has_status, found[1].has_status), (true, false));
        assert!(items("kind: Pod\napiVersion: v1\nmetadata: {name: p}\n").is_err());
    }

    #[test]
    fn the_shipped_rights_are_objects_that_the_tests_can_make() {
        let text = include_str!("../../../deploy/base/rbac.yaml");
        assert_eq!(items(text).unwrap().len(), 3);
    }
}
