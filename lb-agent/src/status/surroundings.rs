//! Looks now and then at what else there is on the node: kube-proxy and what it left.

use std::time::Duration;

use tokio::sync::watch;
use tracing::{info, warn};

use super::Status;
use crate::leftovers::{self, Leftovers};

/// How often. A list of ten thousand nftables chains takes some 10 ms.
const PERIOD: Duration = Duration::from_secs(60);

/// Keeps `Status::leftovers` true, logs what is new, and takes our nat table away when no flow needs it any more.
pub async fn watch(status: watch::Sender<Status>) {
    let mut said = Vec::new();
    loop {
        // A system call that blocks: not on the threads that answer probes. A look that panicked found nothing.
        let found = tokio::task::spawn_blocking(look).await.unwrap_or_default();
        let warnings = found.warnings();
        for warning in warnings.iter().filter(|warning| !said.contains(*warning)) {
            warn!(warning, "Surroundings");
        }
        said.clone_from(&warnings);
        status.send_if_modified(|s| {
            s.leftovers = found;
            s.leftover_warnings = warnings;
            false
        });
        tokio::time::sleep(PERIOD).await;
    }
}

fn look() -> Leftovers {
    let mut found = leftovers::look();
    if found.kept_flows == Some(0) {
        match leftovers::release() {
            Ok(0) => {
                info!("No flow of kube-proxy's is left; removed the table that kept them");
                found.kept_flows = None;
            }
            Ok(_new) => {}
            Err(error) => found.failures.push(format!("our nat table cannot be removed: {error}")),
        }
    }
    found
}
