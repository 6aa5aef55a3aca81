//! The resources that are followed: how each is selected and translated.

use std::fmt::Debug;

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::Resource;
use kube::core::ObjectMeta;
use serde::de::DeserializeOwned;

use crate::model::{Key, Object, ObjectName};
use crate::watch::decode::wrap;
use crate::watch::{Translated, node, service, slice};

/// Which objects of a resource the server is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Label selector.
    pub labels: Option<String>,
    /// Field selector.
    pub fields: Option<String>,
}

impl Selection {
    /// All objects.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
    }

    /// Objects that are a service proxy's business and no other proxy's (B3, B4).
    #[must_use]
    pub fn proxied() -> Self {
        Self { labels: Some(format!("!{},!{}", service::HEADLESS, service::OTHER_PROXY)), fields: None }
    }
}

/// A resource that is followed.
pub trait Kind:
    Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static
{
    /// The agent can do without: a server that does not have it, or does not show it, is no obstacle (B169).
    const OPTIONAL: bool = false;

    /// Key of an object by its metadata.
    fn key(meta: &ObjectMeta) -> Key;

    /// Translates an object, by the same code as manifests.
    fn translate(&self) -> Translated<Object>;
}

fn namespaced(meta: &ObjectMeta) -> ObjectName {
    ObjectName::new(meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
}

fn bare(meta: &ObjectMeta) -> String {
    meta.name.clone().unwrap_or_default()
}

impl Kind for Service {
    fn key(meta: &ObjectMeta) -> Key {
        Key::Service(namespaced(meta))
    }

    fn translate(&self) -> Translated<Object> {
        wrap(service::translate(namespaced(&self.metadata), self), Object::Service)
    }
}

impl Kind for EndpointSlice {
    fn key(meta: &ObjectMeta) -> Key {
        Key::Slice(namespaced(meta))
    }

    fn translate(&self) -> Translated<Object> {
        wrap(slice::translate(namespaced(&self.metadata), self), Object::Slice)
    }
}

impl Kind for Node {
    fn key(meta: &ObjectMeta) -> Key {
        Key::Node(bare(meta))
    }

    fn translate(&self) -> Translated<Object> {
        wrap(node::translate(bare(&self.metadata), self), Object::Node)
    }
}

impl Kind for ServiceCIDR {
    const OPTIONAL: bool = true;

    fn key(meta: &ObjectMeta) -> Key {
        Key::ServiceCidr(bare(meta))
    }

    fn translate(&self) -> Translated<Object> {
        wrap(node::translate_cidr(bare(&self.metadata), self), Object::ServiceCidr)
    }
}
