//! The checks as Keepalived runs them: exit status, time, and what they say.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use nodefiles::role_state::{NodeRole, RoleState};
use nodefiles::sync_status::{SyncState, SyncStatus, TreeStatus};
use observe::{boot_id, uptime_seconds};

/// The deadline is 0.7 s; a loaded machine gets time on top.
const GENEROUS: Duration = Duration::from_secs(3);

fn web_server(answer: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 2048]);
            if answer == "hang" {
                // Held open, without an answer, until the check gives up.
                let _ = stream.read(&mut [0; 1]);
            } else {
                stream.write_all(answer.as_bytes()).unwrap();
            }
        }
    });
    url
}

fn run(program: &str, directory: &Path, settings: &str, arguments: &[&str]) -> (Output, Duration) {
    let settings = format!("repair = false\n{settings}");
    run_with_checks(program, directory, &settings, arguments)
}

/// The settings begin within `[checks]`.
fn run_with_checks(
    program: &str,
    directory: &Path,
    settings: &str,
    arguments: &[&str],
) -> (Output, Duration) {
    // Programs of the directory come first: a test may have its own systemctl.
    let path = std::env::var("PATH").unwrap();
    let config = directory.join("companion.toml");
    let state = directory.display();
    let text = format!(
        "[cluster]\nvip = \"192.0.2.1\"\n[[node]]\nname = \"a\"\nprivate = \"192.0.2.2\"\nfront = \"192.0.2.3\"\n\
         [paths]\nstate = \"{state}\"\nrun = \"{state}\"\nlog = \"{state}\"\n[checks]\n{settings}"
    );
    std::fs::write(&config, text).unwrap();
    let start = Instant::now();
    let output = Command::new(program)
        .env("PATH", format!("{state}:{path}"))
        .args(["--node", "a", "--config"])
        .arg(&config)
        .args(arguments)
        .output()
        .unwrap();
    (output, start.elapsed())
}

#[test]
fn check_apache_judges_the_answer() {
    let cases = [
        (
            web_server("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"),
            0,
        ),
        (
            web_server("HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n"),
            1,
        ),
        (
            web_server("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nbad"),
            1,
        ),
        (web_server("hang"), 1),
        ("http://127.0.0.1:1/".to_owned(), 1),
    ];
    for (url, expected) in cases {
        let directory = tempfile::tempdir().unwrap();
        let settings = format!("[web]\nurl = \"{url}\"\nexpected_text = \"ok\"\n");
        let (output, took) = run(
            env!("CARGO_BIN_EXE_check-apache"),
            directory.path(),
            &settings,
            &[],
        );
        assert_eq!(output.status.code(), Some(expected), "{url}: {output:?}");
        assert!(took < GENEROUS, "{url} took {took:?}");
        if expected == 0 {
            assert!(
                output.stdout.is_empty() && output.stderr.is_empty(),
                "success is silent"
            );
        }
    }
}

#[test]
fn nagios_gets_its_own_exit_codes_and_figures() {
    let directory = tempfile::tempdir().unwrap();
    let well = web_server("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    let program = env!("CARGO_BIN_EXE_check-apache");
    let (output, _) = run(
        program,
        directory.path(),
        &format!("[web]\nurl = \"{well}\"\n"),
        &["--output", "nagios"],
    );
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.code() == Some(0) && text.starts_with("OK") && text.contains(" |"),
        "{text}"
    );
    let (output, _) = run(
        program,
        directory.path(),
        "[web]\nurl = \"http://127.0.0.1:1/\"\n",
        &["--output", "nagios"],
    );
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_database_that_cannot_be_asked_is_not_healthy() {
    for program in [
        env!("CARGO_BIN_EXE_check-mariadb"),
        env!("CARGO_BIN_EXE_check-master"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let missing = format!(
            "[database]\nsocket = \"{}/none.sock\"\n",
            directory.path().display()
        );
        let (output, took) = run(program, directory.path(), &missing, &[]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(took < GENEROUS, "{took:?}");

        // It accepts and says nothing, as a stopped server does.
        let socket = directory.path().join("mute.sock");
        let _mute = UnixListener::bind(&socket).unwrap();
        let mute = format!("[database]\nsocket = \"{}\"\n", socket.display());
        let (output, took) = run(program, directory.path(), &mute, &[]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(took < GENEROUS, "{took:?}");
    }
}

#[test]
fn bad_settings_fail_the_check_and_say_where() {
    let directory = tempfile::tempdir().unwrap();
    let (output, _) = run(
        env!("CARGO_BIN_EXE_check-apache"),
        directory.path(),
        "[web]\nurll = 1\n",
        &[],
    );
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("web.urll") && said.contains("did you mean `url`"),
        "{said}"
    );
}

const CHECK_SYNC: &str = env!("CARGO_BIN_EXE_check-sync");
const CHECK_INOTIFY: &str = env!("CARGO_BIN_EXE_check-inotify");

const ALIVE: (&str, u32) = ("active", 812);
const DEAD: (&str, u32) = ("failed", 0);

/// A node with one tree, a systemctl of its own, and what sync-realtime and the role tools left in the
/// run directory.
struct Node {
    directory: tempfile::TempDir,
    /// They begin within `[checks]`.
    settings: String,
}

impl Node {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let tree = directory.path().join("tree");
        fs::create_dir_all(tree.join(".keepalived-companion")).unwrap();
        let node = Self {
            settings: format!(
                "repair = false\n[[sync.tree]]\npath = \"{}\"\n",
                tree.display()
            ),
            directory,
        };
        // A link: a program that has just been written may be held open by another test's fork.
        let systemctl = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/systemctl");
        symlink(systemctl, node.path("systemctl")).unwrap();
        node.unit(ALIVE);
        node
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn tree(&self) -> PathBuf {
        self.path("tree")
    }

    fn probe(&self) -> PathBuf {
        self.tree().join(".keepalived-companion/probe")
    }

    /// What systemd says; what else it is asked to do is written down.
    fn unit(&self, (state, pid): (&str, u32)) {
        let text = format!("LoadState=loaded\nActiveState={state}\nMainPID={pid}\n");
        fs::write(self.path("unit"), text).unwrap();
    }

    fn asked(&self) -> String {
        fs::read_to_string(self.path("asked")).unwrap_or_default()
    }

    /// A role since long ago.
    fn role(&self, role: NodeRole) {
        let state = RoleState {
            role,
            epoch: 3,
            at: uptime_seconds() - 5000.0,
            closed: false,
        };
        self.write("role.json", &state);
    }

    fn write(&self, name: &str, value: &impl serde::Serialize) {
        fs::write(self.path(name), serde_json::to_vec(value).unwrap()).unwrap();
    }

    fn status(&self, state: SyncState) -> SyncStatus {
        SyncStatus {
            node: "a".to_owned(),
            at: uptime_seconds(),
            // One that has been running for long.
            pid: 1,
            state,
            reason: None,
            epoch: 3,
            paths_behind: 0,
            bytes_behind: 0,
            oldest_unsent_seconds: None,
            last_acknowledged: None,
            watches: 40,
            overflows: 0,
            retries: 0,
            trees: vec![TreeStatus {
                path: self.tree(),
                watches: 40,
                polled: 0,
                files: 500,
            }],
            standbys: Vec::new(),
        }
    }

    fn says(&self, status: &SyncStatus) {
        self.write("sync.json", status);
    }

    /// Listens as sync-realtime does and answers what the last written token makes of it; `None`
    /// keeps silent, and holds the connection.
    fn answers(&self, answer: impl Fn(&Path, String) -> Option<String> + Send + 'static) {
        let listener = UnixListener::bind(self.path("sync.sock")).unwrap();
        let (tree, probe) = (self.tree(), self.probe());
        thread::spawn(move || {
            let mut silent = Vec::new();
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut request = String::new();
                BufReader::new(&stream).read_line(&mut request).unwrap();
                assert_eq!(request, "probe\n");
                let token = fs::read_to_string(&probe).unwrap_or_default();
                match answer(&tree, token) {
                    // The check may have gone at its deadline.
                    Some(line) => drop(stream.write_all(format!("{line}\n").as_bytes())),
                    None => silent.push(stream),
                }
            }
        });
    }

    fn keepalived(&self, program: &str, arguments: &[&str]) -> (i32, String) {
        let (output, took) =
            run_with_checks(program, self.directory.path(), &self.settings, arguments);
        assert!(took < GENEROUS, "took {took:?}: {output:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        (output.status.code().unwrap(), said)
    }

    fn nagios(&self, program: &str) -> (i32, String) {
        let arguments = ["--output", "nagios"];
        let (output, took) =
            run_with_checks(program, self.directory.path(), &self.settings, &arguments);
        assert!(took < GENEROUS, "took {took:?}: {output:?}");
        let said = String::from_utf8(output.stdout).unwrap();
        (output.status.code().unwrap(), said)
    }

    /// Both exit statuses, and that both say why.
    fn expect(&self, program: &str, keepalived: i32, nagios: i32, word: &str) {
        let (status, said) = self.keepalived(program, &["--verbose"]);
        assert!(said.contains(word), "{said}");
        assert_eq!(status, keepalived, "{said}");
        let (status, said) = self.nagios(program);
        assert!(said.contains(word), "{said}");
        assert_eq!(status, nagios, "{said}");
    }
}

fn seen(tree: &Path, token: &str) -> String {
    serde_json::json!({ tree.to_str().unwrap(): token }).to_string()
}

#[test]
fn check_sync_fails_only_where_a_failover_helps() {
    use NodeRole::{Active, Standby};
    for (role, unit, state, expected, word) in [
        (Active, ALIVE, SyncState::InSync, (0, 0), "in sync"),
        (Active, ALIVE, SyncState::Behind, (0, 0), "sending"),
        (Active, ALIVE, SyncState::Held, (0, 1), "held: look here"),
        (
            Active,
            ALIVE,
            SyncState::Standby,
            (1, 2),
            "still says `standby`",
        ),
        (
            Active,
            DEAD,
            SyncState::InSync,
            (1, 2),
            "sync-realtime.service has failed",
        ),
        (Standby, ALIVE, SyncState::Standby, (0, 0), "standby"),
        (
            Standby,
            DEAD,
            SyncState::Standby,
            (0, 1),
            "sync-realtime.service has failed",
        ),
        (
            Standby,
            ALIVE,
            SyncState::InSync,
            (0, 1),
            "still says `in-sync`",
        ),
    ] {
        let node = Node::new();
        node.role(role);
        node.unit(unit);
        node.says(&SyncStatus {
            reason: (state == SyncState::Held).then(|| "look here".to_owned()),
            ..node.status(state)
        });
        node.expect(CHECK_SYNC, expected.0, expected.1, word);
    }
}

#[test]
fn check_sync_needs_a_sign_of_life() {
    for (role, keepalived, nagios) in [(NodeRole::Active, 1, 2), (NodeRole::Standby, 0, 1)] {
        let node = Node::new();
        node.role(role);
        node.expect(
            CHECK_SYNC,
            keepalived,
            nagios,
            "has said nothing since the boot",
        );
        node.says(&SyncStatus {
            at: uptime_seconds() - 60.0,
            ..node.status(SyncState::InSync)
        });
        node.expect(CHECK_SYNC, keepalived, nagios, "no sign of life");
    }
}

#[test]
fn check_sync_sees_a_crash_loop() {
    let node = Node::new();
    node.role(NodeRole::Active);
    let mut child = Command::new("sleep").arg("60").spawn().unwrap();
    let begin = |node: &Node| {
        node.says(&SyncStatus {
            pid: child.id(),
            ..node.status(SyncState::InSync)
        });
    };
    begin(&node);
    node.expect(CHECK_SYNC, 0, 0, "in sync");
    let history = fs::read_to_string(node.path("check_sync_realtime.repair.json")).unwrap();
    assert!(history.contains("\"failing_since\":{"), "{history}");

    // As if every run of the last minute had found one that has just begun.
    let since = serde_json::json!({"at": uptime_seconds() - 60.0, "boot_id": boot_id()});
    node.write(
        "check_sync_realtime.repair.json",
        &serde_json::json!({
            "attempts": 0, "last": null, "failing_since": since, "healthy_since": null,
            "told": "nothing",
        }),
    );
    begin(&node);
    node.expect(CHECK_SYNC, 1, 2, "does not stay up: started");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn check_sync_gives_its_figures() {
    let node = Node::new();
    node.role(NodeRole::Active);
    node.says(&SyncStatus {
        paths_behind: 7,
        bytes_behind: 4096,
        oldest_unsent_seconds: Some(75.5),
        ..node.status(SyncState::Behind)
    });
    let (status, said) = node.nagios(CHECK_SYNC);
    assert_eq!(status, 1, "{said}");
    assert!(
        said.ends_with(
            " 'paths_behind'=7;;;0; 'bytes_behind'=4096B;;;0; 'oldest_unsent'=75.500000s;;;0;\n"
        ),
        "{said}"
    );
}

#[test]
fn check_sync_repairs_before_it_fails_and_stays_where_nobody_is_better() {
    let mut node = Node::new();
    node.settings = node
        .settings
        .replace("repair = false", "repair_attempts = 2")
        + "[[node]]\nname = \"b\"\nprivate = \"192.0.2.4\"\nfront = \"192.0.2.5\"\n";
    node.role(NodeRole::Active);
    node.unit(DEAD);
    node.says(&node.status(SyncState::InSync));
    for tried in ["0 of 2 restarts tried", "1 of 2 restarts tried"] {
        let (status, said) = node.keepalived(CHECK_SYNC, &["--verbose"]);
        assert_eq!(status, 0, "{said}");
        assert!(said.contains(tried), "{said}");
    }
    assert_eq!(node.asked(), "--no-block restart sync-realtime.service\n");

    // Both restarts were tried a minute ago.
    let ago =
        |seconds: f64| serde_json::json!({"at": uptime_seconds() - seconds, "boot_id": boot_id()});
    node.write(
        "check_sync_realtime.repair.json",
        &serde_json::json!({
            "attempts": 2, "last": ago(60.0), "failing_since": ago(70.0), "healthy_since": null,
            "told": "begun",
        }),
    );
    let (status, said) = node.keepalived(CHECK_SYNC, &["--verbose"]);
    assert_eq!(status, 1, "{said}");
    let history = fs::read_to_string(node.path("check_sync_realtime.repair.json")).unwrap();
    assert!(history.contains("\"exhausted\""), "{history}");

    let mut peers = ago(0.0);
    peers["peers"] = serde_json::json!([{"name": "b", "fit": false, "why": "stale"}]);
    node.write("peers.json", &peers);
    let (status, said) = node.keepalived(CHECK_SYNC, &["--verbose"]);
    assert_eq!(status, 0, "{said}");
    assert!(said.contains("the peer is unfit (b: stale)"), "{said}");
}

#[test]
fn check_inotify_believes_a_token_only() {
    type Answer = fn(&Path, String) -> Option<String>;
    let cases: [(&str, Answer, bool); 6] = [
        (
            "sees the probe",
            |tree, token| Some(seen(tree, &token)),
            true,
        ),
        (
            "does not see the probe",
            |tree, _| Some(seen(tree, "0.5-1-0")),
            false,
        ),
        (
            "does not see the probe",
            |tree, _| Some(seen(tree, "")),
            false,
        ),
        ("does not watch", |_, _| Some("{}".to_owned()), false),
        (
            "it answers `error no`",
            |_, _| Some("error no".to_owned()),
            false,
        ),
        ("did not answer within the time", |_, _| None, false),
    ];
    for (role, state, fault) in [
        (NodeRole::Active, SyncState::InSync, (1, 2)),
        (NodeRole::Standby, SyncState::Standby, (0, 1)),
    ] {
        for (word, answer, well) in cases {
            let node = Node::new();
            node.role(role);
            node.says(&node.status(state));
            node.answers(answer);
            let (keepalived, nagios) = if well { (0, 0) } else { fault };
            node.expect(CHECK_INOTIFY, keepalived, nagios, word);
        }
        // Nobody listens.
        let node = Node::new();
        node.role(role);
        node.says(&node.status(state));
        node.expect(
            CHECK_INOTIFY,
            fault.0,
            fault.1,
            "does not tell what its watcher sees",
        );
    }
}

#[test]
fn check_inotify_is_patient_with_a_late_watcher() {
    let node = Node::new();
    node.role(NodeRole::Active);
    node.says(&node.status(SyncState::InSync));
    let before = format!("{:.6}-1-0", uptime_seconds());
    node.answers(move |tree, _| Some(seen(tree, &before)));
    node.expect(CHECK_INOTIFY, 0, 0, "the watcher is busy");
}

#[test]
fn check_inotify_waits_for_the_watcher() {
    let node = Node::new();
    node.role(NodeRole::Active);
    node.says(&node.status(SyncState::InSync));
    // Not seen at the first looks.
    let looks = std::sync::atomic::AtomicU32::new(0);
    node.answers(move |tree, token| {
        let look = looks.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Some(seen(tree, if look < 3 { "" } else { &token }))
    });
    node.expect(CHECK_INOTIFY, 0, 0, "40 directories are watched");
}

#[test]
fn check_inotify_tells_what_is_not_watched() {
    let node = Node::new();
    node.role(NodeRole::Active);
    let mut status = node.status(SyncState::Degraded);
    status.trees[0].polled = 12;
    node.says(&status);
    node.answers(|tree, token| Some(seen(tree, &token)));
    node.expect(
        CHECK_INOTIFY,
        0,
        1,
        "12 directories cannot be watched and are polled",
    );
    let (_, said) = node.nagios(CHECK_INOTIFY);
    assert!(
        said.contains(" 'watches'=40;;;0; 'polled'=12;;;0;"),
        "{said}"
    );
}

#[test]
fn check_inotify_needs_an_adopted_tree() {
    for (role, keepalived, nagios) in [(NodeRole::Active, 1, 2), (NodeRole::Standby, 0, 1)] {
        let node = Node::new();
        node.role(role);
        node.says(&node.status(SyncState::InSync));
        fs::remove_dir(node.tree().join(".keepalived-companion")).unwrap();
        node.answers(|tree, token| Some(seen(tree, &token)));
        node.expect(CHECK_INOTIFY, keepalived, nagios, "or not mounted?");
    }
}

#[test]
fn check_inotify_ends_when_the_disk_hangs() {
    let node = Node::new();
    node.role(NodeRole::Active);
    node.says(&node.status(SyncState::InSync));
    node.answers(|tree, token| Some(seen(tree, &token)));
    // Opening one that nobody reads waits for ever.
    let made = Command::new("mkfifo").arg(node.probe()).status().unwrap();
    assert!(made.success());
    node.expect(CHECK_INOTIFY, 1, 3, "still writing a probe into");
}

#[test]
fn check_inotify_can_look_for_a_process() {
    let node = Node::new();
    node.role(NodeRole::Active);
    let program = node.path("companion-of-tests");
    // The kernel names a process by what was started, link or not.
    symlink("/bin/sleep", &program).unwrap();
    let name = ["--verbose", "--process", "companion-of-tests"];
    // Its own command line holds the name, as the original's did.
    let (status, said) = node.keepalived(CHECK_INOTIFY, &name);
    assert_eq!(status, 1, "{said}");
    assert!(
        said.contains("there is no process companion-of-tests"),
        "{said}"
    );

    let mut child = Command::new(program).arg("60").spawn().unwrap();
    let (status, said) = node.keepalived(CHECK_INOTIFY, &name);
    assert_eq!(status, 0, "{said}");
    let (status, said) = node.keepalived(CHECK_INOTIFY, &["-v", "--process", "companion-of"]);
    assert_eq!(status, 1, "{said}");

    child.kill().unwrap();
    let file = PathBuf::from(format!("/proc/{}/stat", child.id()));
    let ended = || fs::read_to_string(&file).unwrap().contains(") Z ");
    let start = Instant::now();
    while !ended() {
        assert!(start.elapsed() < GENEROUS, "it does not end");
        thread::yield_now();
    }
    let (status, said) = node.keepalived(CHECK_INOTIFY, &name);
    assert_eq!(status, 1, "a zombie counts: {said}");
    child.wait().unwrap();
}
