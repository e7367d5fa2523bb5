//! Version 0 of the conversation between sender and standby: its types, copied and never changed again, and
//! lines that it wrote. Either side may still have it, so its lines must be read here, and read ours.

use serde::{Deserialize, Serialize};

use crate::session;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "verb", deny_unknown_fields)]
enum Request {
    Hello {
        from: String,
        epoch: u64,
        trees: Vec<String>,
    },
    Flush {},
    Rename {
        tree: u16,
        from: Vec<u8>,
        to: Vec<u8>,
    },
    Canary {
        tree: u16,
    },
    Complete {
        token: String,
    },
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "answer", deny_unknown_fields)]
enum Response {
    Welcome { complete: Option<String> },
    Done {},
    NotDone { why: String },
    Canary { content: Option<String> },
    Refused { why: String },
}

const REQUESTS: [&str; 5] = [
    r#"{"verb":"hello","from":"node1","epoch":7,"trees":["/var/www/html"]}"#,
    r#"{"verb":"flush"}"#,
    r#"{"verb":"rename","tree":0,"from":[97,255],"to":[99]}"#,
    r#"{"verb":"canary","tree":0}"#,
    r#"{"verb":"complete","token":"t"}"#,
];
const ANSWERS: [&str; 7] = [
    r#"{"answer":"welcome","complete":null}"#,
    r#"{"answer":"welcome","complete":"t"}"#,
    r#"{"answer":"done"}"#,
    r#"{"answer":"not-done","why":"x"}"#,
    r#"{"answer":"canary","content":"c"}"#,
    r#"{"answer":"canary","content":null}"#,
    r#"{"answer":"refused","why":"x"}"#,
];

#[test]
fn each_side_reads_the_other() {
    for line in REQUESTS {
        let theirs: Request = serde_json::from_str(line).unwrap();
        assert_eq!(serde_json::to_string(&theirs).unwrap(), line);
        let ours = session::Request::read(line).unwrap();
        assert_eq!(serde_json::to_string(&ours).unwrap(), line);
    }
    for line in ANSWERS {
        let theirs: Response = serde_json::from_str(line).unwrap();
        assert_eq!(serde_json::to_string(&theirs).unwrap(), line);
        let ours: session::Response = serde_json::from_str(line).unwrap();
        assert_eq!(serde_json::to_string(&ours).unwrap(), line);
    }
}

/// Why the sender says hello a second time.
#[test]
fn it_does_not_understand_a_version() {
    let hello = r#"{"verb":"hello","from":"node1","epoch":7,"trees":[],"protocol":1}"#;
    assert!(session::Request::read(hello).is_ok());
    assert!(serde_json::from_str::<Request>(hello).is_err());
    let welcome = r#"{"answer":"welcome","complete":null,"protocol":1}"#;
    assert!(serde_json::from_str::<Response>(welcome).is_err());
}
