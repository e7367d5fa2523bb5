//! Alerts against real HTTP servers on loopback that answer, refuse, stall and change their mind.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use alerts::{Alert, Severity, enqueue, flush, queue};
use settings::Settings;

/// A server that gives one answer to each request in turn, the last one for ever, and tells the bodies.
fn server(answers: &'static [&'static str]) -> (String, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (sender, bodies) = channel();
    thread::spawn(move || {
        for (index, stream) in listener.incoming().enumerate() {
            let answer = answers[index.min(answers.len() - 1)];
            let _ = sender.send(talk(stream.unwrap(), answer));
        }
    });
    (url, bodies)
}

fn talk(stream: TcpStream, answer: &str) -> String {
    let mut reader = BufReader::new(stream);
    let mut length = 0;
    let mut first = String::new();
    reader.read_line(&mut first).unwrap();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    if answer == "hang" {
        // Held open without an answer until the client gives up.
        let _ = reader.read(&mut [0]);
    } else {
        let text = format!("HTTP/1.1 {answer}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        reader.get_mut().write_all(text.as_bytes()).unwrap();
    }
    format!("{first}{}", String::from_utf8(body).unwrap())
}

fn settings(directory: &Path, channels: &[(&str, &str)]) -> Settings {
    let mut text = format!(
        "[cluster]\nvip = \"192.0.2.1\"\n[[node]]\nname = \"a\"\nprivate = \"192.0.2.2\"\nfront = \"192.0.2.3\"\n\
         [paths]\nstate = \"{0}\"\nrun = \"{0}\"\n[alerts]\ntotal_timeout_ms = 500\nbackoff_s = 1\n",
        directory.display()
    );
    for (name, url) in channels {
        text.push_str("[[alerts.channel]]\nkind = \"webhook\"\n");
        writeln!(text, "name = \"{name}\"\nurl = \"{url}\"").unwrap();
    }
    settings::parse(&text, Path::new("test.toml"), Some("a")).unwrap()
}

fn alert(message: &str) -> Alert {
    Alert {
        event: "test".to_owned(),
        severity: Severity::Warning,
        message: message.to_owned(),
    }
}

#[test]
fn delivered_in_order_and_once() {
    let directory = tempfile::tempdir().unwrap();
    let (url, bodies) = server(&["200 OK"]);
    let settings = settings(directory.path(), &[("hook", &url)]);
    for message in ["first", "second", "third"] {
        enqueue(&settings, &alert(message)).unwrap();
    }
    assert_eq!(flush(&settings).unwrap().delivered, 3);
    assert_eq!(flush(&settings).unwrap().delivered, 0);
    for message in ["first", "second", "third"] {
        assert!(bodies.recv().unwrap().contains(message));
    }
    assert!(bodies.try_recv().is_err());
}

#[test]
fn equal_alerts_fold_into_one_with_a_count() {
    let directory = tempfile::tempdir().unwrap();
    let (url, bodies) = server(&["200 OK"]);
    let settings = settings(directory.path(), &[("hook", &url)]);
    let threads: Vec<_> = (0..5)
        .map(|_| {
            let settings = settings.clone();
            thread::spawn(move || enqueue(&settings, &alert("again")).unwrap())
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(flush(&settings).unwrap().delivered, 1);
    assert!(bodies.recv().unwrap().contains("again (5 times)"));
}

#[test]
fn one_dead_channel_does_not_hold_up_another_and_nothing_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    let (hanging, _) = server(&["hang"]);
    let (well, bodies) = server(&["200 OK"]);
    let settings = settings(
        directory.path(),
        &[("closed", &closed), ("hanging", &hanging), ("well", &well)],
    );
    enqueue(&settings, &alert("news")).unwrap();
    let report = flush(&settings).unwrap();
    assert_eq!((report.delivered, report.waiting), (1, 2));
    assert!(bodies.recv().unwrap().contains("news"));
    assert_eq!(queue(&settings).unwrap()[0].pending, ["closed", "hanging"]);
}

#[test]
fn a_server_error_is_tried_again_after_the_back_off_and_not_before() {
    for refusal in [
        "500 Internal Server Error",
        "429 Too Many Requests\r\nretry-after: 600",
    ] {
        let directory = tempfile::tempdir().unwrap();
        let answers: &'static [&'static str] = Box::leak(Box::new([refusal, "200 OK"]));
        let (url, _bodies) = server(answers);
        let settings = settings(directory.path(), &[("hook", &url)]);
        enqueue(&settings, &alert("later")).unwrap();
        assert_eq!(flush(&settings).unwrap().waiting, 1);
        // Not due yet: the server would say 200 now.
        assert_eq!(flush(&settings).unwrap().delivered, 0);
        // The time that the back-off names has come, or the file is lost: both mean now.
        std::fs::remove_file(directory.path().join("alerts/backoff")).unwrap();
        assert_eq!(flush(&settings).unwrap().delivered, 1);
    }
}

#[test]
fn a_damaged_file_is_set_aside_and_blocks_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (url, _bodies) = server(&["200 OK"]);
    let settings = settings(directory.path(), &[("hook", &url)]);
    enqueue(&settings, &alert("good")).unwrap();
    std::fs::write(
        directory.path().join("alerts/000000000000.json"),
        b"{\"even",
    )
    .unwrap();
    assert_eq!(flush(&settings).unwrap().delivered, 1);
    assert!(
        directory
            .path()
            .join("alerts/000000000000.damaged")
            .exists()
    );
}

#[test]
fn a_channel_that_refuses_an_alert_loses_it_after_three_tries() {
    let directory = tempfile::tempdir().unwrap();
    let (url, bodies) = server(&[
        "400 Bad Request",
        "400 Bad Request",
        "400 Bad Request",
        "200 OK",
    ]);
    let settings = settings(directory.path(), &[("hook", &url)]);
    enqueue(&settings, &alert("refused")).unwrap();
    enqueue(&settings, &alert("accepted")).unwrap();
    for _ in 0..3 {
        let _ = std::fs::remove_file(directory.path().join("alerts/backoff"));
        flush(&settings).unwrap();
    }
    assert!(queue(&settings).unwrap().is_empty());
    assert!(bodies.iter().take(4).last().unwrap().contains("accepted"));
}
