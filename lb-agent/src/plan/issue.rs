//! What is wrong with a user's object, in words that the user can act on.

use std::fmt;

use serde::Serialize;

/// How bad it is for the traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As documented, but the user may wonder.
    Note,
    /// Part of what the object asks for is not served.
    Warning,
    /// The object is not served, or an old version of it is.
    Error,
}

/// A fault in a user's object.
///
/// Never stops the others: whoever finds one serves the rest and hands the issue on to `status`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Issue {
    /// How bad it is.
    pub severity: Severity,
    /// The object, such as `Service shop/web`, or the file it could not be read from.
    pub object: String,
    /// Path of the field; empty = the whole object.
    pub field: String,
    /// What is wrong.
    pub problem: String,
    /// What to do about it.
    pub cure: String,
}

impl Issue {
    /// An issue of a severity.
    #[must_use]
    pub fn new(
        severity: Severity,
        object: impl fmt::Display,
        field: impl Into<String>,
        problem: impl Into<String>,
        cure: impl Into<String>,
    ) -> Self {
        Self {
            severity,
            object: object.to_string(),
            field: field.into(),
            problem: problem.into(),
            cure: cure.into(),
        }
    }
}

impl fmt::Display for Issue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dot = if self.field.is_empty() { "" } else { ", " };
        write!(f, "{}{dot}{}: {}; {}", self.object, self.field, self.problem, self.cure)
    }
}
