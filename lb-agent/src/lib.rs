//! The node agent, a one-way pipeline: watch, store, plan, diff, apply, status.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::string_slice
    )
)]

pub mod config;
pub mod desired;
pub mod kubeproxy;
pub mod links;
pub mod model;
pub mod plan;
pub mod store;
pub mod watch;
