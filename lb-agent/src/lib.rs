//! The node agent, a one-way pipeline: watch, store, plan, diff, apply, status.

pub mod desired;
pub mod links;
