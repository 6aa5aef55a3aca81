//! What the host's own sockets need beside the tables of the plan, because only the running kernel knows it: the source
//! address that a socket would get ([`source`]), and the sockets that still talk to an endpoint that is gone ([`diag`]).
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::string_slice))]

pub mod cutover;
pub mod diag;
pub mod netlink;
pub mod source;
