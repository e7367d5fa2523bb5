//! The checks as Keepalived runs them: exit status, time, and what they say.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

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
    let config = directory.join("companion.toml");
    let state = directory.display();
    let text = format!(
        "[cluster]\nvip = \"192.0.2.1\"\n[[node]]\nname = \"a\"\nprivate = \"192.0.2.2\"\nfront = \"192.0.2.3\"\n\
         [paths]\nstate = \"{state}\"\nrun = \"{state}\"\nlog = \"{state}\"\n[checks]\nrepair = false\n{settings}"
    );
    std::fs::write(&config, text).unwrap();
    let start = Instant::now();
    let output = Command::new(program)
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
