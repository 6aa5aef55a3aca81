//! What the loop needs of a kernel.

use std::collections::BTreeMap;

use serde::Serialize;
use thiserror::Error;

use crate::desired::{Changes, Desired};
use crate::gc::alerts::Alert;
use crate::links::{Attachment, NodeNet};
use crate::model::settings::Limits;

/// The kernel refused; the text names what was tried, on what, and what to do.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct KernelError(pub String);

/// What an apply did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ApplyReport {
    /// Entries written or deleted.
    pub changed: usize,
    /// What failed, with table and key; empty = the kernel holds exactly what was desired.
    pub failures: Vec<String>,
}

/// What attaching did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct AttachReport {
    /// Interfaces that carry our programs now.
    pub attached: usize,
    /// Their names, sorted.
    pub interfaces: Vec<String>,
    /// What failed, with interface and program; empty = exactly the attach set carries our programs.
    pub failures: Vec<String>,
    /// Names of the interfaces that carry XDP, too.
    pub xdp: Vec<String>,
    /// Interfaces that were to carry XDP and do not, each with the reason. No failure: TC does the work.
    pub refused: Vec<String>,
}

/// How full a table is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// The table's name.
    pub table: &'static str,
    /// Entries in use; `None` = not counted yet (flow tables are counted by whole sweeps).
    pub used: Option<u64>,
    /// Entries that fit.
    pub capacity: u64,
    /// Entries of established flows that the kernel evicted since the agent started, at least.
    #[serde(skip_serializing_if = "is_zero")]
    pub evicted: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde wants a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The kernel side of the agent. Implemented by the data path, and in memory by the tests of [`crate::run`].
///
/// **Laws:** every call is idempotent; after `apply` without failures `actual` returns what was desired, but for
/// tables that cannot be read back exactly (roles). Calls are made by one task, one at a time.
pub trait Kernel: Send + 'static {
    /// Which interfaces carry programs; a pure function of the links.
    fn attach_set(&self, net: &NodeNet) -> BTreeMap<u32, Attachment>;

    /// `CFG_*` bits that probing the kernel gave.
    fn config_flags(&self) -> u32;

    /// What fits into the tables; `None` = what the settings say.
    fn limits(&self) -> Option<Limits> {
        None
    }

    /// What the operator should know of the kernel's side while nothing is wrong.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }

    /// Bytes that the tables take.
    fn memory(&self) -> u64 {
        0
    }

    /// The tables as the kernel holds them.
    ///
    /// # Errors
    /// A table cannot be read.
    fn actual(&mut self) -> Result<Desired, KernelError>;

    /// Attaches to exactly these interfaces; tries all of them whatever fails. `net` has their names. Cheap when
    /// nothing changed.
    fn attach(&mut self, net: &NodeNet, attachments: &BTreeMap<u32, Attachment>) -> AttachReport;

    /// Makes the kernel's tables equal to `desired`; what failed is tried again by the next call. No rows but those of
    /// `changes` differ from what the last call desired.
    fn apply(&mut self, desired: &Desired, changes: &Changes) -> ApplyReport;

    /// Counters by name, ever increasing while the tables live.
    fn counters(&self) -> Vec<(&'static str, u64)>;

    /// How full the tables are that can fill up.
    fn usage(&self) -> Vec<Usage> {
        Vec::new()
    }

    /// What the operator should hear before a table or a pool of ports is used up.
    fn alerts(&self) -> Vec<Alert> {
        Vec::new()
    }

    /// The largest share of a pool of source ports in use, 0 to 1.
    fn ports_used(&self) -> f64 {
        0.0
    }

    /// Whether what `attach` did is still there; false asks for another round. Cheap.
    fn intact(&mut self) -> bool {
        true
    }

    /// Deletes a bounded slice of what has ended or expired in the flow tables.
    fn sweep(&mut self);
}
