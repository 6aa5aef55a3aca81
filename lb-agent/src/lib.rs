//! The node agent, a one-way pipeline: watch, store, plan, diff, apply, status.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod apply;
pub mod attachset;
pub mod config;
pub mod datapath;
pub mod desired;
pub mod dump;
pub mod events;
#[cfg(test)]
pub(crate) mod fixture;
pub mod gc;
pub mod glue;
pub mod kernel;
pub mod kubeproxy;
pub mod leftovers;
pub mod links;
#[cfg(test)]
pub(crate) mod memory_kernel;
pub mod model;
pub mod net;
pub mod node;
pub mod peers;
pub mod plan;
pub mod run;
pub mod sockets;
pub mod status;
pub mod store;
pub mod sys;
pub mod tasks;
pub mod watch;
pub mod xdpset;
