//! What can go wrong with a request, in words that an operator can act on; said once in the log.

use std::sync::{Mutex, PoisonError};

use kube::core::Status;
use tracing::{info, warn};

use super::bootstrap::Place;
use crate::plan::issue::{Issue, Severity};

/// Kinds of faults; two of a kind are said once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// 410: the history that was asked for is compacted. Not a fault: everything is listed anew.
    Expired,
    /// No connection, no answer, or 5xx.
    Unreachable,
    /// 401, or no usable credentials.
    Unauthorized,
    /// 403.
    Forbidden,
    /// 404: the server does not have the resource.
    Absent,
    /// Any other answer.
    Refused,
}

/// A request that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WatchFault {
    pub(crate) cause: Cause,
    /// `list` or `watch`.
    pub(crate) verb: &'static str,
    text: String,
}

impl WatchFault {
    /// By an error of the client.
    pub(crate) fn of(verb: &'static str, error: &kube::Error) -> Self {
        let cause = match error {
            kube::Error::Api(status) => return Self::of_status(verb, status),
            kube::Error::Auth(_) => Cause::Unauthorized,
            kube::Error::SerdeError(_) | kube::Error::BuildRequest(_) | kube::Error::FromUtf8(_) => {
                Cause::Refused
            }
            _ => Cause::Unreachable,
        };
        Self { cause, verb, text: chain(error) }
    }

    /// By an error that the server answered.
    pub(crate) fn of_status(verb: &'static str, status: &Status) -> Self {
        let cause = match status.code {
            401 => Cause::Unauthorized,
            403 => Cause::Forbidden,
            404 => Cause::Absent,
            410 => Cause::Expired,
            500.. => Cause::Unreachable,
            _ => Cause::Refused,
        };
        let text = if status.message.is_empty() { &status.reason } else { &status.message };
        let text = if cause == Cause::Unreachable {
            format!("it answers {}: {text}", status.code)
        } else {
            text.clone()
        };
        Self { cause, verb, text }
    }

    /// By a time limit.
    pub(crate) fn silent(verb: &'static str) -> Self {
        Self { cause: Cause::Unreachable, verb, text: "it does not answer in time".to_owned() }
    }

    /// Every request to this server is likely to fail like this, and another server may do better.
    pub(crate) fn is_the_servers(&self) -> bool {
        matches!(self.cause, Cause::Unreachable | Cause::Unauthorized)
    }

    /// Two faults about which one message is enough.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        self.cause == other.cause && (self.is_the_servers() || self.verb == other.verb)
    }

    /// For `status`.
    pub(crate) fn issue(&self, resource: &str, server: &ServerVoice, optional: bool) -> Issue {
        let Self { cause, verb, text } = self;
        let issue = |severity, problem: String, cure: &str| {
            let field = if self.is_the_servers() { "" } else { resource };
            Issue::new(severity, format!("API server {}", server.url), field, problem, cure)
        };
        let grant = format!(
            "grant the verb {verb} on {resource} to this user; deploy/base/rbac.yaml has all that the agent needs"
        );
        match cause {
            Cause::Unreachable => issue(
                Severity::Error,
                format!("cannot be reached: {text}"),
                "what was listed stays served; the agent goes on trying",
            ),
            Cause::Unauthorized => issue(
                Severity::Error,
                format!("does not accept our credentials: {text}"),
                "renew the token or certificate; what was listed stays served",
            ),
            Cause::Forbidden if optional => {
                issue(Severity::Warning, format!("does not let us {verb}: {text}"), &grant)
            }
            Cause::Forbidden => issue(Severity::Error, format!("does not let us {verb}: {text}"), &grant),
            Cause::Absent if optional => issue(
                Severity::Note,
                "does not have this resource".to_owned(),
                "no harm: an older cluster; unknown addresses of the Service range are not dropped",
            ),
            Cause::Expired | Cause::Absent | Cause::Refused => issue(
                Severity::Error,
                format!("answers our {verb} with: {text}"),
                "what was listed stays served; the agent goes on trying",
            ),
        }
    }
}

/// Speaks for one server: its faults are those of four followers, and said once.
#[derive(Debug)]
pub(crate) struct ServerVoice {
    url: String,
    place: String,
    /// `None` = nothing was said yet; `Some(None)` = all is well.
    said: Mutex<Option<Option<Cause>>>,
}

impl ServerVoice {
    pub(crate) fn new(place: &Place) -> Self {
        Self { url: place.url(), place: place.to_string(), said: Mutex::new(None) }
    }

    /// A request was answered as it should.
    pub(crate) fn well(&self) {
        if self.is_new(None) {
            info!(server = self.place, "Following the API server");
        }
    }

    /// Says a fault of the server, once.
    pub(crate) fn say(&self, cause: Cause, issue: &Issue) {
        if self.is_new(Some(cause)) {
            warn!(server = self.place, "{issue}");
        }
    }

    /// A client could not even be made.
    pub(crate) fn cannot_connect(&self, error: &kube::Error) -> Issue {
        let issue = Issue::new(
            Severity::Error,
            format!("API server {}", self.url),
            "",
            format!("our credentials or certificates for it cannot be used: {}", chain(error)),
            "correct the files that the kubeconfig or the service account names",
        );
        self.say(Cause::Unauthorized, &issue);
        issue
    }

    fn is_new(&self, now: Option<Cause>) -> bool {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).replace(now) != Some(now)
    }
}

/// An error with its causes, each said once.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let more = next.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = next.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn voice() -> ServerVoice {
        ServerVoice {
            url: "https://192.0.2.1:6443".into(),
            place: "https://192.0.2.1:6443 (--apiserver)".into(),
            said: Mutex::new(None),
        }
    }

    fn fault(code: u16, message: &str) -> WatchFault {
        WatchFault::of_status("watch", &Status::failure(message, "Reason").with_code(code))
    }

    #[test]
    fn a_forbidden_resource_names_verb_and_resource() {
        let issue = fault(403, "nope").issue("services", &voice(), false).to_string();
        for part in
            ["https://192.0.2.1:6443", "services", "does not let us watch: nope", "grant the verb watch"]
        {
            assert!(issue.contains(part), "{part:?} in {issue}");
        }
    }

    #[test]
    fn b169_a_server_without_service_cidrs_is_worth_a_note_only() {
        assert_eq!(fault(404, "").issue("servicecidrs", &voice(), true).severity, Severity::Note);
        assert_eq!(fault(404, "").issue("services", &voice(), false).severity, Severity::Error);
    }

    #[test]
    fn only_faults_of_the_server_itself_make_us_leave_it() {
        for (code, leave) in
            [(401, true), (403, false), (404, false), (410, false), (429, false), (503, true)]
        {
            assert_eq!(fault(code, "").is_the_servers(), leave, "{code}");
        }
        assert!(WatchFault::silent("list").is_the_servers());
    }

    #[test]
    fn a_fault_is_said_once_until_it_changes() {
        let voice = voice();
        assert!(voice.is_new(Some(Cause::Unreachable)));
        assert!(!voice.is_new(Some(Cause::Unreachable)));
        assert!(voice.is_new(None));
        assert!(!voice.is_new(None));
        assert!(voice.is_new(Some(Cause::Unreachable)));
    }
}
