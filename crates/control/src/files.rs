//! What a role change asks of the file synchronisation: the sender of the old active node sends what
//! it has and stops, and the receivers of the new one end before it opens.

use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::time::Duration;

use nodefiles::{FileError, receive_lock, recovered};
use serde::{Deserialize, Serialize};
use settings::Settings;

/// Longest time for the last files. Writes are frozen meanwhile, and a queue that takes longer would
/// cost more than it is worth: what is not sent is kept.
const LONGEST_SEAL: Duration = Duration::from_secs(1);
/// To send again takes no time; only a sender that hangs needs more.
const UNSEAL: Duration = Duration::from_millis(500);
/// The sender gives a sample up before this.
const SAMPLE: Duration = Duration::from_secs(12);
/// A receiver ends as soon as it reads the role; the longest that a failover waits for one that hangs.
const RECEIVER_PATIENCE: Duration = Duration::from_secs(1);

/// How the sending of files ended on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "files")]
pub enum Sealed {
    /// Everything was sent.
    Whole {},
    /// The time ran out; nothing is sent after it all the same.
    Behind {
        /// Paths that were not sent.
        paths: u64,
    },
    /// No sender runs there.
    NoSender {},
    /// Nobody knows what was sent.
    Unknown {
        /// For a person.
        why: String,
    },
}

/// How long the old active node may send while its database is frozen: a fifth of the freeze, since
/// the database must catch up in the rest.
pub fn seal_limit(freeze_limit: Duration) -> Duration {
    (freeze_limit / 5).min(LONGEST_SEAL)
}

/// Lets this node's sender send its queue and then stop.
pub fn seal(settings: &Settings, limit: Duration) -> Sealed {
    let limit = limit.min(LONGEST_SEAL);
    // It answers when its own time is over; the last fifth is for the way of the answer.
    let its_own = limit * 4 / 5;
    let request = format!("seal {}", its_own.as_millis());
    sealed(observe::sync_request(settings, &request, limit))
}

fn sealed(answer: io::Result<String>) -> Sealed {
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) if no_sender(&error) => return Sealed::NoSender {},
        Err(error) => {
            return Sealed::Unknown {
                why: error.to_string(),
            };
        }
    };
    let behind = |text: &str| text.strip_prefix("behind ")?.parse().ok();
    match behind(&answer) {
        Some(paths) => Sealed::Behind { paths },
        None if answer == "sealed" => Sealed::Whole {},
        None => Sealed::Unknown {
            why: format!("sync-realtime answered `{answer}`"),
        },
    }
}

/// What a sample of this node's files has shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sampled {
    /// The standby has the same.
    Same {
        /// How many were compared.
        files: usize,
    },
    /// Some differ, and are sent again.
    Differ {
        /// For a person.
        what: String,
    },
    /// They are not known to be the same now.
    NotYet {
        /// For a person.
        why: String,
    },
    /// No sender runs here.
    NoSender {},
}

/// Lets this node's sender compare about so many files with a standby's, by their digests.
pub fn sample(settings: &Settings, files: usize, standby: &str) -> Sampled {
    sampled(observe::sync_request(
        settings,
        format!("sample {files} {standby}"),
        SAMPLE,
    ))
}

fn sampled(answer: io::Result<String>) -> Sampled {
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) if no_sender(&error) => return Sampled::NoSender {},
        Err(error) => {
            return Sampled::NotYet {
                why: error.to_string(),
            };
        }
    };
    let words: Vec<&str> = answer.splitn(4, ' ').collect();
    match words.as_slice() {
        ["same", files] => match files.parse() {
            Ok(files) => Sampled::Same { files },
            Err(_) => Sampled::NotYet {
                why: answer.clone(),
            },
        },
        ["differ", count, files, path] => Sampled::Differ {
            what: format!(
                "{count} of {files} taken at random differ and are sent again, as {path}"
            ),
        },
        _ => Sampled::NotYet {
            why: answer.clone(),
        },
    }
}

/// Lets this node's sender go on, if there is one.
pub fn unseal(settings: &Settings) -> io::Result<()> {
    match observe::sync_request(settings, "unseal", UNSEAL) {
        Err(error) if !no_sender(&error) => Err(error),
        Ok(_) | Err(_) => Ok(()),
    }
}

fn no_sender(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::NotFound | ErrorKind::ConnectionRefused
    )
}

/// What a person should know of files that the old active node did not send; none when it sent all.
pub fn unsent(settings: &Settings, node: &str, sealed: &Sealed, epoch: u64) -> Option<String> {
    let what = match sealed {
        Sealed::Whole {} | Sealed::NoSender {} => return None,
        Sealed::Behind { paths } => format!("paths of {node} that were not sent: {paths}"),
        Sealed::Unknown { why } => {
            format!("nobody knows how many paths of {node} were not sent ({why})")
        }
    };
    let folder = recovered::of_epoch(settings, epoch);
    Some(format!(
        "the switch-over did not wait for files; {what}. They will be in {} on {node} once it follows",
        folder.display()
    ))
}

/// Something may go on to receive files here.
#[derive(Debug, thiserror::Error)]
pub enum ReceiverError {
    /// A receiver does not end.
    #[error(
        "a receiver of files has not ended within {RECEIVER_PATIENCE:?} and may still change files here; see which: fuser -v {path}"
    )]
    Stuck {
        /// The lock that receivers hold.
        path: PathBuf,
    },
    /// It cannot be told.
    #[error("{0}; a receiver of files may still change files here")]
    Io(#[from] FileError),
}

/// Waits until nothing receives files here any more: receivers hold a shared lock, and end when they
/// read that this node is no standby. The lock is given back at once, for the next that begins must
/// read the role anyway.
pub fn await_receivers(settings: &Settings) -> Result<(), ReceiverError> {
    match receive_lock::exclude(settings, RECEIVER_PATIENCE)? {
        Some(_lock) => Ok(()),
        None => Err(ReceiverError::Stuck {
            path: receive_lock::file(settings),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_the_sender_are_understood() {
        let said = |text: &str| sealed(Ok(text.to_owned()));
        assert_eq!(said("sealed"), Sealed::Whole {});
        assert_eq!(said("behind 12"), Sealed::Behind { paths: 12 });
        for other in [
            "standby",
            "error no space left",
            "behind",
            "behind all",
            "",
            "sealed?",
        ] {
            assert!(
                matches!(said(other), Sealed::Unknown { why } if why.contains(other)),
                "{other}"
            );
        }
        let failed = |kind: ErrorKind| sealed(Err(kind.into()));
        assert_eq!(failed(ErrorKind::NotFound), Sealed::NoSender {});
        assert_eq!(failed(ErrorKind::ConnectionRefused), Sealed::NoSender {});
        assert!(matches!(
            failed(ErrorKind::TimedOut),
            Sealed::Unknown { .. }
        ));
    }

    #[test]
    fn answers_to_a_sample_are_understood() {
        let said = |text: &str| sampled(Ok(text.to_owned()));
        assert_eq!(said("same 20"), Sampled::Same { files: 20 });
        assert_eq!(
            said("differ 2 20 a b/c"),
            Sampled::Differ {
                what: "2 of 20 taken at random differ and are sent again, as a b/c".to_owned()
            }
        );
        for (answer, part) in [
            (
                "error this node is not the active one",
                "not the active one",
            ),
            ("same", "same"),
            ("same many", "same many"),
        ] {
            assert!(
                matches!(said(answer), Sampled::NotYet { why } if why.contains(part)),
                "{answer}"
            );
        }
        let failed = |kind: ErrorKind| sampled(Err(kind.into()));
        assert_eq!(failed(ErrorKind::NotFound), Sampled::NoSender {});
        assert!(matches!(
            failed(ErrorKind::TimedOut),
            Sampled::NotYet { .. }
        ));
    }

    #[test]
    fn the_last_files_have_a_fifth_of_the_freeze_and_a_second_at_most() {
        for (freeze, expected) in [(500, 100), (5000, 1000), (60_000, 1000)] {
            assert_eq!(
                seal_limit(Duration::from_millis(freeze)),
                Duration::from_millis(expected)
            );
        }
    }

    #[test]
    fn only_files_that_were_or_may_be_left_are_told_of() {
        let directory = tempfile::tempdir().unwrap();
        let settings = crate::testing::settings(directory.path());
        let told = |sealed| unsent(&settings, "b", &sealed, 7);
        assert_eq!(told(Sealed::Whole {}), None);
        assert_eq!(told(Sealed::NoSender {}), None);
        let folder = directory.path().join("recovered/7");
        for (sealed, what) in [
            (Sealed::Behind { paths: 3 }, "not sent: 3"),
            (
                Sealed::Unknown {
                    why: "gone".to_owned(),
                },
                "(gone)",
            ),
        ] {
            let text = told(sealed).unwrap();
            assert!(
                text.contains(what) && text.contains(&format!("in {} on b", folder.display())),
                "{text}"
            );
        }
    }

    #[test]
    fn a_node_without_a_sender_is_sealed_and_unsealed() {
        let directory = tempfile::tempdir().unwrap();
        let settings = crate::testing::settings(directory.path());
        assert_eq!(seal(&settings, LONGEST_SEAL), Sealed::NoSender {});
        unseal(&settings).unwrap();
    }

    #[test]
    fn receivers_are_waited_for_and_no_longer_than_patience() {
        let directory = tempfile::tempdir().unwrap();
        let settings = crate::testing::settings(directory.path());
        await_receivers(&settings).unwrap();
        let receiver = receive_lock::share(&settings).unwrap().unwrap();
        let error = await_receivers(&settings).unwrap_err();
        assert!(error.to_string().contains("fuser -v"), "{error}");
        drop(receiver);
        await_receivers(&settings).unwrap();
    }
}
