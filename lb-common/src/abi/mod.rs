//! The kernel ABI: keys and values of every BPF map.
//!
//! **Rules.** `#[repr(C)]`, only `u8/u16/u32/u64`, arrays of them and other ABI types; explicit zeroed padding;
//! addresses and ports are byte arrays in network order, counters, ids and flags are host order. Type names are
//! unique C identifiers, so that `bpftool map dump` prints them. Sizes are asserted here: a type that drifts does
//! not compile. A change of any layout bumps [`ABI_VERSION`], which is part of the pin folder, and [`layout`] says
//! how entries of the old one become entries of the new one.
//!
//! Read [`svc`] first, then [`ct`].

pub mod affinity;
pub mod backend;
pub mod capacity;
pub mod config;
pub mod ct;
pub mod fragment;
pub mod iface;
pub mod layout;
pub mod names;
#[cfg(any(feature = "std", feature = "abi-next", test))]
pub mod next;
pub mod peer;
#[cfg(feature = "user")]
pub mod pod;
pub mod sock;
pub mod svc;

pub use affinity::*;
pub use backend::*;
pub use config::*;
pub use ct::*;
pub use fragment::*;
pub use iface::*;
#[cfg(feature = "abi-next")]
pub use next::{CtValue, CtValue4, CtValue6};
pub use peer::*;
pub use sock::*;
pub use svc::*;

/// Number of the layout of all pinned maps; part of the pin folder's name.
pub const ABI_VERSION: u32 = if cfg!(feature = "abi-next") { 2 } else { 1 };
