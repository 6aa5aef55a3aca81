//! Everything the load balancer decides without a kernel.
//!
//! Compiled twice: into the BPF programs, and into the agent and plain tests. **Invariants:** nothing here reads a
//! clock, does I/O, or knows a kernel helper; `unsafe` is forbidden (but for `aya::Pod` under the feature `user`).
#![cfg_attr(not(any(feature = "std", test)), no_std)]
#![cfg_attr(not(feature = "user"), forbid(unsafe_code))]
#![cfg_attr(feature = "user", deny(unsafe_code))]

#[cfg(feature = "std")]
extern crate std;

pub mod abi;
pub mod bench;
pub mod bound;
pub mod claim;
pub mod counter;
pub mod crc32c;
pub mod csum;
pub mod decide;
pub mod dsr;
pub mod env;
pub mod family;
pub mod fast;
pub mod flow;
pub mod fragment;
pub mod frame;
pub mod hash;
pub mod icmp;
pub mod maglev;
pub mod nat;
pub mod packet;
pub mod pair;
pub mod plain;
pub mod reject;
pub mod sock;
pub mod straight;
pub mod switch;
pub mod tc;
#[cfg(feature = "test-util")]
pub mod testing;
pub mod track;
pub mod verdict;
pub mod xdp;
