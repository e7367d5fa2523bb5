//! The conversation between a sender and the forced command on a standby: one JSON line each way.

use serde::{Deserialize, Serialize};

/// What a sender asks. Every request is refused unless the node is a standby and the epoch is current.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "verb", deny_unknown_fields)]
pub enum Request {
    /// Who sends, and which trees. Always the first.
    Hello {
        /// The sender's node.
        from: String,
        /// Its epoch.
        epoch: u64,
        /// The trees' paths.
        trees: Vec<String>,
    },
    /// What was sent is to be on the disk.
    Flush {},
    /// Directories were moved; nothing is ever replaced.
    Rename {
        /// Index in the list of trees.
        tree: u16,
        /// Path relative to the root, in bytes.
        from: Vec<u8>,
        /// Path relative to the root, in bytes.
        to: Vec<u8>,
    },
    /// Whether the canary is there, and what it holds.
    Canary {
        /// Index in the list of trees.
        tree: u16,
    },
    /// The standby has everything; the token names this state.
    Complete {
        /// Made by the sender.
        token: String,
    },
}

/// What a standby answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "answer", deny_unknown_fields)]
pub enum Response {
    /// To [`Request::Hello`].
    Welcome {
        /// The token of the last [`Request::Complete`] of this epoch and this boot of the standby: what was not
        /// flushed before another boot may be lost.
        complete: Option<String>,
    },
    /// Done.
    Done {},
    /// Not done, for a reason of the file system; nothing has changed.
    NotDone {
        /// For a person.
        why: String,
    },
    /// To [`Request::Canary`].
    Canary {
        /// Its content; none when it is not there.
        content: Option<String>,
    },
    /// This node takes nothing from this sender now.
    Refused {
        /// For a person.
        why: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_not_text_pass() {
        let request = Request::Rename {
            tree: 0,
            from: b"a\xff\nb".to_vec(),
            to: b"c".to_vec(),
        };
        let line = serde_json::to_string(&request).unwrap();
        assert!(!line.contains('\n'));
        assert_eq!(serde_json::from_str::<Request>(&line).unwrap(), request);
    }

    #[test]
    fn an_unknown_verb_is_an_error() {
        assert!(serde_json::from_str::<Request>(r#"{"verb":"run"}"#).is_err());
        assert!(serde_json::from_str::<Request>(r#"{"verb":"flush","x":1}"#).is_err());
    }
}
