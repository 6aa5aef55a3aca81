//! Follows one resource of one server: list, watch, and again.
//!
//! kube's own `watcher` is not used here, because it does not say when a watch stands (so a fault could not be taken
//! back in a quiet cluster), sets no limit to a list's time, begins a watch that ends at once again without a pause,
//! and trusts a server whose history went backwards.

use std::future::Future;
use std::time::Duration;

use futures_util::TryStreamExt;
use kube::api::{Api, ListParams, WatchEvent, WatchParams};
use kube::core::DeserializeGuard;
use kube::{Client, Resource as _, ResourceExt as _};
use tokio::time::{Instant, timeout};
use tracing::{debug, info, warn};

use super::Out;
use super::fault::{Cause, ServerVoice, WatchFault};
use super::kinds::{Kind, Selection};
use super::pause::Pause;
use super::table::Table;
use crate::plan::issue::Severity;
use crate::store::Event;

/// Objects in one page of a list.
const PAGE: u32 = 500;
/// How long a page, or the beginning of a watch, may take.
const ANSWER: Duration = Duration::from_secs(30);
/// How long the server keeps a watch open, in seconds; as kube-rs and client-go do, they end one within 5 to 10 min.
const WATCH_S: u32 = 290;
/// A watch that says nothing for this long is dead: bookmarks come about once a minute, its end after [`WATCH_S`].
const SILENCE: Duration = Duration::from_secs(WATCH_S as u64 + 10);
/// A watch that ends sooner is no success.
const SHORT: Duration = Duration::from_secs(1);
/// Faults in a row after which a server is left, if there is another, or a watch is given up for a new list.
const TRIES: u32 = 2;
/// A resource that the server does not have, or show, is asked for again after this.
const OPTIONAL_AGAIN: Duration = Duration::from_secs(60);

/// Why following ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Nobody listens any more.
    Closed,
    /// The server does not answer, and there may be another one.
    Lost {
        /// It did answer before.
        heard: bool,
    },
}

/// Follows one resource.
pub(crate) struct Follower<'a, F> {
    pub(crate) client: Client,
    pub(crate) select: Selection,
    pub(crate) out: &'a Out,
    pub(crate) voice: &'a ServerVoice,
    /// Whether there is another place to ask.
    pub(crate) others: &'a F,
}

/// Why a list or a watch ended early.
enum Stop {
    Closed,
    Fault(WatchFault),
}

impl From<WatchFault> for Stop {
    fn from(fault: WatchFault) -> Self {
        Self::Fault(fault)
    }
}

/// Where the watch is.
#[derive(Debug, Default)]
struct Position {
    /// What the table holds is of this version; `None` = a list is needed.
    version: Option<String>,
    /// The server was away since: it may be another one now, with less history.
    doubtful: bool,
    /// The server has answered as it should.
    heard: bool,
    /// Faults since something went well.
    faults: u32,
    /// The fault that was said last and still lasts.
    said: Option<WatchFault>,
}

impl<F: Fn() -> bool> Follower<'_, F> {
    /// Follows until the server is lost or nobody listens.
    pub(crate) async fn run<K: Kind>(self, table: &mut Table<K>) -> Ended {
        let api: Api<DeserializeGuard<K>> = Api::all(self.client.clone());
        let mut at = Position::default();
        let mut pause = Pause::default();
        loop {
            let done = match at.version.clone() {
                None => self.list(&api, table, &mut at).await,
                Some(version) => {
                    let begun = Instant::now();
                    let done = self.watch(&api, table, &mut at, version).await;
                    if begun.elapsed() > SHORT {
                        pause.reset();
                    } else if done.is_ok() {
                        pause.wait().await;
                    }
                    done
                }
            };
            let fault = match done {
                Ok(()) => continue,
                Err(Stop::Closed) => return Ended::Closed,
                Err(Stop::Fault(fault)) => fault,
            };
            if fault.cause == Cause::Expired {
                info!(resource = %K::plural(&()), "The history is compacted, listing anew");
                at.version = None;
                pause.wait().await;
                continue;
            }
            at.faults += 1;
            if fault.cause == Cause::Forbidden && at.heard && at.faults < TRIES {
                // A server that has just started answers so until it knows its roles.
                at.doubtful = true;
                pause.wait().await;
                continue;
            }
            if !self.out.send(self.say(table, &fault, &mut at)).await {
                return Ended::Closed;
            }
            if fault.is_the_servers() {
                at.doubtful = true;
                if at.faults >= TRIES && (self.others)() {
                    return Ended::Lost { heard: at.heard };
                }
            } else if at.faults >= TRIES && fault.cause == Cause::Refused {
                at.version = None;
            }
            if self.is_dispensable::<K>(&fault) {
                tokio::time::sleep(OPTIONAL_AGAIN).await;
            } else {
                pause.wait().await;
            }
        }
    }

    /// Lists everything, page by page; the table hands it on when the last page is there.
    async fn list<K: Kind>(
        &self,
        api: &Api<DeserializeGuard<K>>,
        table: &mut Table<K>,
        at: &mut Position,
    ) -> Result<(), Stop> {
        table.list_begins();
        let mut params = self.list_params(PAGE);
        let version = loop {
            let page = answer("list", api.list(&params)).await?;
            page.items.iter().for_each(|object| table.listed(object));
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None => break page.metadata.resource_version.unwrap_or_default(),
            }
        };
        let mut events = self.well(table, at);
        events.extend(table.list_ends());
        at.version = Some(version);
        self.send(events).await
    }

    /// Watches from a version on until the server ends the watch.
    async fn watch<K: Kind>(
        &self,
        api: &Api<DeserializeGuard<K>>,
        table: &mut Table<K>,
        at: &mut Position,
        version: String,
    ) -> Result<(), Stop> {
        if at.doubtful && went_back(&version, &self.version(api).await?) {
            warn!(resource = %K::plural(&()), "The API server has less history than before, listing anew");
            at.version = None;
            return Ok(());
        }
        let params = WatchParams {
            label_selector: self.select.labels.clone(),
            field_selector: self.select.fields.clone(),
            timeout: Some(WATCH_S),
            bookmarks: true,
            ..WatchParams::default()
        };
        let stream = answer("watch", api.watch(&params, &version)).await?;
        self.send(self.well(table, at)).await?;
        tokio::pin!(stream);
        loop {
            let (version, events) = match timeout(SILENCE, stream.try_next()).await {
                Err(_elapsed) => return Err(WatchFault::silent("watch").into()),
                Ok(Ok(None)) => return Ok(()),
                Ok(Err(error)) => {
                    // A server that restarts breaks its watches; whether it is away, the next request tells.
                    debug!(resource = %K::plural(&()), %error, "The watch broke");
                    at.doubtful = true;
                    return Ok(());
                }
                Ok(Ok(Some(WatchEvent::Added(object) | WatchEvent::Modified(object)))) => {
                    (object.resource_version(), table.put(&object))
                }
                Ok(Ok(Some(WatchEvent::Deleted(object)))) => {
                    (object.resource_version(), table.remove(object.meta()))
                }
                Ok(Ok(Some(WatchEvent::Bookmark(mark)))) => {
                    (Some(mark.metadata.resource_version), Vec::new())
                }
                Ok(Ok(Some(WatchEvent::Error(status)))) => {
                    return Err(WatchFault::of_status("watch", &status).into());
                }
            };
            at.version = version.filter(|v| !v.is_empty()).or_else(|| at.version.take());
            self.send(events).await?;
        }
    }

    /// The version that the server is at.
    async fn version<K: Kind>(&self, api: &Api<DeserializeGuard<K>>) -> Result<String, WatchFault> {
        let page = answer("list", api.list(&self.list_params(1))).await?;
        Ok(page.metadata.resource_version.unwrap_or_default())
    }

    fn list_params(&self, limit: u32) -> ListParams {
        ListParams {
            label_selector: self.select.labels.clone(),
            field_selector: self.select.fields.clone(),
            limit: Some(limit),
            ..ListParams::default()
        }
    }

    async fn send(&self, events: Vec<Event>) -> Result<(), Stop> {
        if self.out.send(events).await { Ok(()) } else { Err(Stop::Closed) }
    }

    fn is_dispensable<K: Kind>(&self, fault: &WatchFault) -> bool {
        K::OPTIONAL && matches!(fault.cause, Cause::Absent | Cause::Forbidden)
    }

    /// Something went well: what was wrong is taken back.
    fn well<K: Kind>(&self, table: &mut Table<K>, at: &mut Position) -> Vec<Event> {
        self.voice.well();
        if let Some(fault) = at.said.take().filter(|fault| !fault.is_the_servers()) {
            info!(resource = %K::plural(&()), verb = fault.verb, "The API server lets us again");
        }
        at.heard = true;
        at.doubtful = false;
        at.faults = 0;
        table.fault(Vec::new())
    }

    /// Says a fault once, and hands it on for `status`.
    fn say<K: Kind>(&self, table: &mut Table<K>, fault: &WatchFault, at: &mut Position) -> Vec<Event> {
        if at.said.as_ref().is_some_and(|said| said.is_like(fault)) {
            return Vec::new();
        }
        let issue = fault.issue(&K::plural(&()), self.voice, K::OPTIONAL);
        if fault.is_the_servers() {
            self.voice.say(fault.cause, &issue);
        } else if issue.severity == Severity::Note {
            info!("{issue}");
        } else {
            warn!("{issue}");
        }
        at.said = Some(fault.clone());
        let mut events = table.fault(vec![issue]);
        if self.is_dispensable::<K>(fault) {
            events.extend(table.do_without());
        }
        events
    }
}

/// Waits for an answer, but not for ever.
async fn answer<T>(
    verb: &'static str,
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, WatchFault> {
    match timeout(ANSWER, request).await {
        Ok(answered) => answered.map_err(|error| WatchFault::of(verb, &error)),
        Err(_elapsed) => Err(WatchFault::silent(verb)),
    }
}

/// Whether a server is at an earlier version than we have seen, as after a restore from a backup (versions are
/// comparable numbers by KEP-5504).
fn went_back(ours: &str, theirs: &str) -> bool {
    matches!((ours.parse::<u128>(), theirs.parse::<u128>()), (Ok(ours), Ok(theirs)) if theirs < ours)
}

#[cfg(test)]
mod tests {
    use super::went_back;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert!(went_back("100", "99"));
        assert!(!went_back("99", "100"));
        assert!(!went_back("100", "100"));
        assert!(!went_back("abc", "99"));
    }
}
