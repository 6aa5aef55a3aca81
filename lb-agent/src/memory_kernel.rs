//! A kernel in memory, with faults to order, for tests.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::time::Instant;

use crate::desired::{Changes, Desired};
use crate::fixture;
use crate::gc::alerts::Alert;
use crate::kernel::{ApplyReport, AttachReport, Kernel, KernelError};
use crate::links::{Attachment, NodeNet};

/// What the tests see of a kernel, and how they make it fail.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    pub(crate) tables: Desired,
    pub(crate) applies: Vec<Instant>,
    /// What every apply that did not fail was told to look at.
    pub(crate) changes: Vec<Changes>,
    pub(crate) attached: Vec<u32>,
    pub(crate) order: Vec<&'static str>,
    pub(crate) failing_applies: usize,
    pub(crate) failing_attaches: usize,
    pub(crate) failing_reads: usize,
    pub(crate) alerts: Vec<Alert>,
}

/// A kernel in memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct MemoryKernel(pub(crate) Arc<Mutex<Memory>>);

impl Kernel for MemoryKernel {
    fn attach_set(&self, _net: &NodeNet) -> BTreeMap<u32, Attachment> {
        fixture::attachments()
    }

    fn config_flags(&self) -> u32 {
        1 << 7
    }

    fn actual(&mut self) -> Result<Desired, KernelError> {
        let mut memory = self.0.lock().unwrap();
        memory.order.push("actual");
        if memory.failing_reads > 0 {
            memory.failing_reads -= 1;
            return Err(KernelError("cannot read".to_owned()));
        }
        Ok(memory.tables.clone())
    }

    fn attach(&mut self, _net: &NodeNet, attachments: &BTreeMap<u32, Attachment>) -> AttachReport {
        let mut memory = self.0.lock().unwrap();
        memory.order.push("attach");
        if memory.failing_attaches > 0 {
            memory.failing_attaches -= 1;
            return AttachReport { failures: vec!["eth0: no".to_owned()], ..AttachReport::default() };
        }
        memory.attached = attachments.keys().copied().collect();
        AttachReport { attached: attachments.len(), ..AttachReport::default() }
    }

    fn apply(&mut self, desired: &Desired, changes: &Changes) -> ApplyReport {
        let mut memory = self.0.lock().unwrap();
        memory.order.push("apply");
        memory.applies.push(Instant::now());
        if memory.failing_applies > 0 {
            memory.failing_applies -= 1;
            return ApplyReport { changed: 0, failures: vec!["LB_SVC4: full".to_owned()] };
        }
        memory.tables = desired.clone();
        memory.changes.push(changes.clone());
        ApplyReport { changed: 1, failures: Vec::new() }
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        vec![("drop_no_backend", 3)]
    }

    fn alerts(&self) -> Vec<Alert> {
        self.0.lock().unwrap().alerts.clone()
    }

    fn sweep(&mut self) {}
}
