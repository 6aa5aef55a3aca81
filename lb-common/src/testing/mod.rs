//! What the tests of the packet path share (feature `test-util`): tables in plain collections, packets, worlds of
//! Services, and the golden packets, which run natively and through `BPF_PROG_TEST_RUN`.
//!
//! Panics are fine here: nothing of it is part of a program.
#![allow(missing_docs, reason = "names say it, and only tests read them")]

mod errors;
pub mod fake;
pub mod golden;
pub mod machine;
mod net;
pub mod packets;
pub mod world;

pub use fake::{FakeEnv, Side, Tables};
pub use golden::{Expect, Golden, Walk, goldens};
pub use machine::{Direction, Machine};
pub use packets::{PacketBuilder, check, checksums};
pub use world::World;
