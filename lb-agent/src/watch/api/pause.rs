//! Growing pauses between tries, with jitter, so that the agents of a cluster do not come back all at once.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

/// First pause.
const FIRST: Duration = Duration::from_millis(200);
/// Longest pause before the jitter, which adds up to as much again.
const LONGEST: Duration = Duration::from_secs(5);

/// Pauses of 0.2 s up to 5 s, each lengthened by up to itself.
#[derive(Debug)]
pub(crate) struct Pause(ExponentialBackoff);

impl Default for Pause {
    fn default() -> Self {
        let builder = ExponentialBuilder::default().with_min_delay(FIRST).with_max_delay(LONGEST);
        Self(builder.with_jitter().without_max_times().build())
    }
}

impl Pause {
    /// Begins with short pauses again.
    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }

    /// Waits for the next pause.
    pub(crate) async fn wait(&mut self) {
        tokio::time::sleep(self.next()).await;
    }

    fn next(&mut self) -> Duration {
        self.0.next().unwrap_or(LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit_for_ever_and_differ() {
        let mut pause = Pause::default();
        let all: Vec<Duration> = (0..50).map(|_| pause.next()).collect();
        assert!(all[0] >= FIRST && all[0] <= 2 * FIRST, "{:?}", all[0]);
        assert!(all[20..].iter().all(|p| *p >= LONGEST && *p <= 2 * LONGEST), "{all:?}");
        assert!(all[20..].windows(2).any(|pair| pair[0] != pair[1]), "no jitter: {all:?}");
        pause.reset();
        assert!(pause.next() <= 2 * FIRST);
    }
}
