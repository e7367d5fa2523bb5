//! A question about this host that found no answer.

/// It could not be told, and why. Never to be taken for a "no": whoever decides has to choose the
/// careful side.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotKnown(String);

impl NotKnown {
    /// What was asked or read, and what came of it.
    pub(crate) fn new(what: impl std::fmt::Display, why: impl std::fmt::Display) -> Self {
        Self(format!("{what}: {why}"))
    }
}
