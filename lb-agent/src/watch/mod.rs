//! Sources of objects: they translate, and nothing else. Kubernetes types end here.
//!
//! Each source sends [`crate::store::Event`]s through a bounded channel; when it is full the source waits.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::string_slice))]

pub mod address;
pub mod annotation;
pub mod api;
pub mod decode;
pub mod folder;
pub mod manifests;
pub mod node;
pub mod service;
pub mod slice;

/// A field that cannot be used: path of the field, what is wrong, what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Path of the field, such as `spec.ports[0].port`.
    pub field: String,
    /// What is wrong with it.
    pub problem: String,
    /// What to do about it.
    pub cure: String,
}

impl Fault {
    /// Names a fault.
    #[must_use]
    pub fn new(field: impl Into<String>, problem: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { field: field.into(), problem: problem.into(), cure: cure.into() }
    }
}

/// An object and the parts of it that were left out.
#[derive(Clone, Debug, PartialEq)]
pub struct Translated<T> {
    /// What can be served; `None` = nothing of it concerns this agent.
    pub object: Option<T>,
    /// What was left out.
    pub faults: Vec<Fault>,
}
