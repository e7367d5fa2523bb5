//! Many visitors at once: uploads, and people added at a steady rate, through the VIP. What was acknowledged
//! is remembered.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::web::Visitor;
use crate::writer::{json_lines, now};
use crate::{Lab, LabError, VIP, at, network};

/// A browser waits longer; a request to a node without power is never answered.
const PATIENCE: Duration = Duration::from_secs(3);
/// The kernel's own SYN retry would hide what is measured.
const CONNECT: Duration = Duration::from_millis(300);

/// Something that the application said was done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "what")]
pub enum Done {
    /// A person is in the list.
    User {
        /// By this.
        uid: String,
        /// Seconds on the monotonic clock.
        at: f64,
    },
    /// A file is stored.
    Upload {
        /// In the uploads directory.
        stored_name: String,
        /// Its content is this number, repeated.
        number: u64,
        /// Bytes.
        size: usize,
        /// `stored` or `alone`.
        stored: String,
        /// Seconds on the monotonic clock.
        at: f64,
    },
    /// Refused or without an answer.
    Failed {
        /// 0 without an answer.
        status: u16,
        /// Seconds on the monotonic clock.
        at: f64,
    },
}

/// The content of an upload.
pub fn content(number: u64, size: usize) -> Vec<u8> {
    format!("{number:016x}\n")
        .into_bytes()
        .into_iter()
        .cycle()
        .take(size)
        .collect()
}

/// Running visitors in the client's namespace.
#[derive(Debug)]
pub struct WebLoad {
    child: Child,
    stdin: Option<ChildStdin>,
    reader: JoinHandle<Vec<Done>>,
    uploads: Arc<AtomicUsize>,
    users: Arc<AtomicUsize>,
}

impl WebLoad {
    /// Starts so many uploaders, and people added at this rate in all, as this visitor.
    pub fn start(
        lab: &Lab,
        visitor: &Visitor<'_>,
        uploaders: u32,
        users_a_second: u32,
    ) -> Result<Self, LabError> {
        let mut child = network::client_process(lab.program())
            .args(["web-load", "--uploaders", &uploaders.to_string()])
            .args(["--users-a-second", &users_a_second.to_string()])
            .args(["--cookie", &visitor.cookie, "--csrf", &visitor.csrf])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(at(lab.program()))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take();
        let (uploads, users) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let counted = (Arc::clone(&uploads), Arc::clone(&users));
        let reader = thread::spawn(move || {
            json_lines(stdout)
                .inspect(|done| match done {
                    Done::Upload { .. } => drop(counted.0.fetch_add(1, Ordering::Relaxed)),
                    Done::User { .. } => drop(counted.1.fetch_add(1, Ordering::Relaxed)),
                    Done::Failed { .. } => {}
                })
                .collect()
        });
        Ok(Self {
            child,
            stdin,
            reader,
            uploads,
            users,
        })
    }

    /// Acknowledged uploads and people so far.
    pub fn acknowledged(&self) -> (usize, usize) {
        (
            self.uploads.load(Ordering::Relaxed),
            self.users.load(Ordering::Relaxed),
        )
    }

    /// Stops the visitors once their requests are answered, and gives what they saw.
    pub fn stop(mut self) -> Result<Vec<Done>, LabError> {
        self.stdin = None;
        let status = self.child.wait().map_err(at("lab web-load"))?;
        let done = self.reader.join().unwrap_or_default();
        if status.success() {
            Ok(done)
        } else {
            Err(LabError::Unfit(format!("the visitors ended with {status}")))
        }
    }
}

/// What the visitors share.
struct Shared {
    agent: ureq::Agent,
    cookie: String,
    csrf: String,
    output: Mutex<std::io::Stdout>,
    stop: AtomicUsize,
    next: AtomicU64,
}

/// The visitors themselves, until standard input closes.
pub fn run(uploaders: u32, users_a_second: u32, cookie: String, csrf: String) {
    let agent = ureq::Agent::config_builder()
        .timeout_connect(Some(CONNECT))
        .timeout_global(Some(PATIENCE))
        .http_status_as_error(false)
        .max_idle_connections(0)
        .build()
        .new_agent();
    let shared = Arc::new(Shared {
        agent,
        cookie,
        csrf,
        output: Mutex::new(std::io::stdout()),
        stop: AtomicUsize::new(0),
        next: AtomicU64::new(u64::from(std::process::id()) << 32),
    });
    let mut visitors = Vec::new();
    for _ in 0..uploaders {
        let shared = Arc::clone(&shared);
        visitors.push(thread::spawn(move || shared.repeat(Shared::upload)));
    }
    // Each adds four people a second, as long as it is answered in time.
    for index in 0..users_a_second / 4 {
        let shared = Arc::clone(&shared);
        visitors.push(thread::spawn(move || {
            let mut next = Instant::now() + Duration::from_millis(u64::from(index * 37 % 250));
            shared.repeat(|shared| {
                thread::sleep(next.saturating_duration_since(Instant::now()));
                next = (next + Duration::from_millis(250)).max(Instant::now());
                shared.add_user()
            });
        }));
    }
    let mut rest = Vec::new();
    drop(std::io::stdin().read_to_end(&mut rest));
    shared.stop.store(1, Ordering::Relaxed);
    for visitor in visitors {
        drop(visitor.join());
    }
}

impl Shared {
    fn repeat(&self, mut visit: impl FnMut(&Self) -> Done) {
        while self.stop.load(Ordering::Relaxed) == 0 {
            let done = visit(self);
            let mut line = serde_json::to_vec(&done).unwrap_or_default();
            line.push(b'\n');
            let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
            if output
                .write_all(&line)
                .and_then(|()| output.flush())
                .is_err()
            {
                return;
            }
            drop(output);
            // As a person would: not at once.
            match done {
                Done::Failed { .. } => thread::sleep(Duration::from_millis(100)),
                Done::Upload { .. } => thread::sleep(Duration::from_millis(500)),
                Done::User { .. } => {}
            }
        }
    }

    fn send(&self, page: &str, kind: &str, body: &[u8]) -> Result<serde_json::Value, u16> {
        let mut answer = self
            .agent
            .post(format!("http://{VIP}/{page}"))
            .header("Accept", "application/json")
            .header("Cookie", &self.cookie)
            .header("Content-Type", kind)
            .send(body)
            .map_err(|_| 0_u16)?;
        let status = answer.status().as_u16();
        let text = answer.body_mut().read_to_string().map_err(|_| 0_u16)?;
        let json: serde_json::Value = serde_json::from_str(&text).map_err(|_| status)?;
        if status == 200 && json["ok"] == true {
            Ok(json)
        } else {
            Err(status)
        }
    }

    fn add_user(&self) -> Done {
        let body = format!("action=add&csrf={}", self.csrf);
        match self.send(
            "users.php",
            "application/x-www-form-urlencoded",
            body.as_bytes(),
        ) {
            Ok(json) => Done::User {
                uid: json["uid"].as_str().unwrap_or_default().to_owned(),
                at: now(),
            },
            Err(status) => Done::Failed { status, at: now() },
        }
    }

    fn upload(&self) -> Done {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        // From a note to a small picture.
        let size = 1024 + usize::try_from(number * 7919 % 60_000).unwrap_or_default();
        let boundary = "part-of-the-lab";
        let mut body = Vec::with_capacity(size + 512);
        for (name, value) in [("action", "upload"), ("csrf", &self.csrf)] {
            body.extend(
                format!("--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
                    .bytes(),
            );
        }
        body.extend(
            format!(
                "--{boundary}\r\nContent-Disposition: form-data; name=\"files[]\"; filename=\"load {number}.txt\"\r\n\
                 Content-Type: text/plain\r\n\r\n"
            )
            .bytes(),
        );
        body.extend(content(number, size));
        body.extend(format!("\r\n--{boundary}--\r\n").bytes());
        let kind = format!("multipart/form-data; boundary={boundary}");
        match self.send("files.php", &kind, &body) {
            Ok(json) => {
                let file = &json["files"][0];
                let text = |key: &str| file[key].as_str().unwrap_or_default().to_owned();
                Done::Upload {
                    stored_name: text("stored_name"),
                    number,
                    size,
                    stored: text("stored"),
                    at: now(),
                }
            }
            Err(status) => Done::Failed { status, at: now() },
        }
    }
}
