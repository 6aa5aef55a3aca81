//! The one place that knows which kernel the product runs on.
//!
//! AT MERGE: `Datapath` of `crate::datapath` takes the place of [`NoDatapath`], and `crate::net::watch` that of
//! [`watch_net`]; nothing else changes.

use std::collections::BTreeMap;

use tokio::sync::watch;

use crate::config::KernelArgs;
use crate::desired::Desired;
use crate::kernel::{ApplyReport, AttachReport, Kernel, KernelError};
use crate::links::{Attachment, NodeNet};

/// No value of it exists: a build without the data path refuses to start.
#[derive(Debug)]
pub enum NoDatapath {}

impl Kernel for NoDatapath {
    fn attach_set(&self, _net: &NodeNet) -> BTreeMap<u32, Attachment> {
        match *self {}
    }

    fn config_flags(&self) -> u32 {
        match *self {}
    }

    fn actual(&mut self) -> Result<Desired, KernelError> {
        match *self {}
    }

    fn attach(&mut self, _net: &NodeNet, _attachments: &BTreeMap<u32, Attachment>) -> AttachReport {
        match *self {}
    }

    fn apply(&mut self, _desired: &Desired) -> ApplyReport {
        match *self {}
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        match *self {}
    }

    fn sweep(&mut self) {
        match *self {}
    }
}

/// Opens the data path.
///
/// # Errors
/// This build has none.
pub fn open(_kernel: &KernelArgs) -> Result<NoDatapath, KernelError> {
    Err(KernelError("this build has no data path".to_owned()))
}

/// The tables as the pins hold them, without loading or attaching anything.
///
/// # Errors
/// This build has no data path.
pub fn read(_kernel: &KernelArgs) -> Result<Desired, KernelError> {
    Err(KernelError("this build has no data path".to_owned()))
}

/// Removes everything from the kernel.
///
/// # Errors
/// This build has no data path.
pub fn cleanup(_kernel: &KernelArgs) -> Result<(), KernelError> {
    Err(KernelError("this build has no data path".to_owned()))
}

/// Watches the node's network until `net` is dropped.
pub async fn watch_net(net: watch::Sender<NodeNet>) {
    net.closed().await;
}
