//! The conversation between a sender and the forced command on a standby: one JSON line each way.
//!
//! The nodes are upgraded one after the other, so each line is also read by another release: a verb that is not
//! known is answered with [`Response::Unsupported`], and fields that are not known are ignored. Version 0 did
//! neither: it hangs up on another field of a request, and does not understand another one of an answer. So the
//! sender names its version first, and to a standby that hangs up on that it says hello as version 0 does. The
//! standby names its own only to a sender that has.

use serde::{Deserialize, Serialize};

use crate::trash::Aside;

/// The version of this conversation. Files are sent between any two versions, so what version 0 can say stays as
/// it is; something new is said only to a version that knows it.
pub const PROTOCOL: u32 = 1;

/// What a sender asks. Every request is refused unless the node is a standby and the epoch is current.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "verb")]
pub enum Request {
    /// Who sends, and which trees. Always the first.
    Hello {
        /// The sender's node.
        from: String,
        /// Its epoch.
        epoch: u64,
        /// The trees' paths.
        trees: Vec<String>,
        /// The sender's [`PROTOCOL`]; version 0 does not name it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        protocol: Option<u32>,
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
    /// What is of another kind, or gone, on the active node by now is to be kept aside. Only said to a standby
    /// that has a trash.
    SetAside {
        /// Index in the list of trees.
        tree: u16,
        /// The names.
        names: Vec<Aside>,
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

/// Why a line is no [`Request`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoRequest {
    /// A verb that is not known here, or whose fields are not those that are known.
    Unsupported {
        /// The verb.
        verb: String,
    },
    /// Not a request at all; the reason.
    NotARequest(String),
}

impl Request {
    /// Reads a line.
    pub fn read(line: &str) -> Result<Self, NoRequest> {
        #[derive(Deserialize)]
        struct Asked {
            verb: String,
        }
        serde_json::from_str(line).map_err(|error| match serde_json::from_str(line) {
            Ok(Asked { verb }) => NoRequest::Unsupported { verb },
            Err(_) => NoRequest::NotARequest(error.to_string()),
        })
    }
}

/// What a standby answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "answer")]
pub enum Response {
    /// To [`Request::Hello`].
    Welcome {
        /// The token of the last [`Request::Complete`] of this epoch and this boot of the standby: what was not
        /// flushed before another boot may be lost.
        complete: Option<String>,
        /// The standby's [`PROTOCOL`], to a sender that has named its own.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        protocol: Option<u32>,
        /// Whether it keeps a copy of what it overwrites or deletes, to the same.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        keeps: Option<bool>,
        /// Whether it keeps what it is told to set aside.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        trash: bool,
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
    /// The request is not known in this form; nothing was done. Version 0 hangs up instead.
    Unsupported {
        /// The verb.
        verb: String,
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
    fn a_request_is_read_as_far_as_it_is_known() {
        let later = r#"{"verb":"flush","x":1}"#;
        assert_eq!(Request::read(later), Ok(Request::Flush {}));
        for (line, verb) in [
            (r#"{"verb":"run"}"#, "run"),
            (r#"{"verb":"hello"}"#, "hello"),
        ] {
            let verb = verb.to_owned();
            assert_eq!(Request::read(line), Err(NoRequest::Unsupported { verb }));
        }
        for line in ["", "flush", r#"{"word":"flush"}"#] {
            let read = Request::read(line);
            assert!(matches!(read, Err(NoRequest::NotARequest(_))), "{line}");
        }
    }
}
