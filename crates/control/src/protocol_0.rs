//! Version 0 of the conversation, as the release before [`crate::wire`] spoke it: its types, copied and never
//! changed again, and lines that it wrote. What that release says must be read here, and what is said here
//! must be read by it.

use role::GtidSet;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::wire;

/// One question of each kind, as that release wrote it.
const QUESTIONS: &str = include_str!("protocol_0/questions.jsonl");
/// One answer of each kind.
const ANSWERS: &str = include_str!("protocol_0/answers.jsonl");

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "verb", deny_unknown_fields)]
enum Request {
    Observe {},
    Files {},
    Lock { patience_ms: u64 },
    Grant { to: String },
    SealFiles { limit_ms: u64 },
    UnsealFiles {},
    Fence {},
    Standby { on: bool },
    RestartKeepalived {},
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "answer")]
enum Response {
    Done {},
    Node { node: Box<NodeView> },
    Files { status: Option<Value> },
    Sealed { files: Sealed },
    Busy {},
    Failed { why: String },
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "files")]
enum Sealed {
    Whole {},
    Behind { paths: u64 },
    NoSender {},
    Unknown { why: String },
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct NodeView {
    name: String,
    vip: bool,
    keepalived: bool,
    database: Database,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Database {
    Answering(Box<Server>),
    Starting,
    Silent,
    Down,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[expect(clippy::struct_field_names, reason = "they are the names on the wire")]
struct Server {
    server_id: u32,
    writable: bool,
    epoch: Option<Epoch>,
    binlog_state: GtidSet,
    slave_pos: GtidSet,
    channels: Vec<Channel>,
    semi_sync: SemiSync,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Epoch {
    number: u64,
    primary: String,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Channel {
    name: String,
    source: String,
    io: IoThread,
    sql_running: bool,
    follows_slave_pos: bool,
    io_errno: u32,
    sql_errno: u32,
    received: GtidSet,
    filtered: bool,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum IoThread {
    Stopped,
    Connecting,
    Running,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct SemiSync {
    enabled: bool,
    active: bool,
    clients: u32,
    replicas: u32,
}

#[test]
fn its_questions_are_read_and_ours_are_the_same() {
    for line in QUESTIONS.lines() {
        let read = wire::Request::read(line.as_bytes()).unwrap();
        let ours = serde_json::to_string(&read).unwrap();
        assert_eq!(ours, line, "version 0 hangs up on anything else");
        let heard: Request = serde_json::from_str(&ours).unwrap();
        assert_eq!(serde_json::to_string(&heard).unwrap(), line);
    }
}

#[test]
fn its_answers_are_read_and_it_reads_ours() {
    for line in ANSWERS.lines() {
        let read: wire::Response = serde_json::from_str(line).unwrap();
        // Through the types that the decisions are made with, as an answer from here comes.
        let ours = match read {
            wire::Response::Node { node, protocol, .. } => {
                assert_eq!(protocol, 0, "it does not tell its version");
                let view = role::NodeView::from(*node);
                wire::Response::Node {
                    node: Box::new(view.into()),
                    protocol: wire::PROTOCOL,
                    window_ms: Some(4500),
                }
            }
            other => other,
        };
        let ours = serde_json::to_string(&ours).unwrap();
        let heard: Response = serde_json::from_str(&ours).unwrap();
        assert_eq!(heard, serde_json::from_str(line).unwrap(), "from {ours}");
    }
}
