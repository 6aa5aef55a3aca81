//! What is told of fast forwarding.

use serde::Serialize;
use tracing::{info, warn};

use crate::links::NodeNet;
use crate::model::settings::{Fast, Settings};
use crate::plan::network;

/// Whether flows between pods of this node go past the stack.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FastState {
    /// New flows do.
    pub on: bool,
    /// By `--fast=force`.
    pub forced: bool,
    /// Addresses of pods that can be reached so.
    pub pods: usize,
    /// Why it was refused, each with the place; empty = it was not.
    pub refused: Vec<String>,
}

impl FastState {
    /// As the plan has it.
    #[must_use]
    pub fn of(net: &NodeNet, settings: &Settings) -> Self {
        let allowed = network::fast(net, settings);
        let why = |place: &String| {
            format!(
                "--fast is refused, pods are reached through the stack: netfilter enforces policy on forwarded packets, \
                 which would be bypassed: {place} (--fast=force overrides)"
            )
        };
        Self {
            on: allowed == Ok(true),
            forced: settings.fast == Fast::Force,
            pods: net.pods.len(),
            refused: allowed.err().unwrap_or_default().iter().map(why).collect(),
        }
    }

    /// Logs what differs from the last time; pods that come and go are no news.
    pub fn tell_if_other(&self, last: &Self) {
        if (self.on, self.forced, &self.refused) == (last.on, last.forced, &last.refused) {
            return;
        }
        for line in &self.refused {
            warn!("{line}");
        }
        if self.on {
            info!(pods = self.pods, forced = self.forced, "Fast forwarding between pods");
        }
    }
}
