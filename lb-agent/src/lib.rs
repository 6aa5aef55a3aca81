//! The node agent, a one-way pipeline: watch, store, plan, diff, apply, status.

pub mod apply;
pub mod attachset;
pub mod datapath;
pub mod desired;
pub mod gc;
pub mod links;
pub mod net;
pub mod sys;
