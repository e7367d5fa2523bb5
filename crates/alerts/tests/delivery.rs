//! Alerts against real HTTP servers on loopback that answer, refuse, stall and change their mind.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use alerts::{Alert, Report, Severity, enqueue, flush, queue};
use nodefiles::proof::Now;
use settings::Settings;

/// A server that gives one answer to each request in turn, the last one for ever, and tells the bodies.
fn server(answers: &'static [&'static str]) -> (String, Receiver<String>) {
    let mut given = answers.iter().copied();
    let last = *answers.last().unwrap();
    server_that(move |_| given.next().unwrap_or(last).to_owned())
}

/// A server whose answer depends on the request: the first line and the body. It tells them, too. What follows an empty
/// line of the answer is its body.
fn server_that(
    mut answer: impl FnMut(&str) -> String + Send + 'static,
) -> (String, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (sender, bodies) = channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let asked = read_request(&stream);
            match answer(&asked).as_str() {
                // Held open without an answer until the client gives up.
                "hang" => drop(stream.read(&mut [0])),
                said => {
                    let (head, body) = said.split_once("\r\n\r\n").unwrap_or((said, ""));
                    let length = body.len();
                    let text = format!(
                        "HTTP/1.1 {head}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
                    );
                    stream.write_all(text.as_bytes()).unwrap();
                }
            }
            let _ = sender.send(asked);
        }
    });
    (url, bodies)
}

fn read_request(stream: &TcpStream) -> String {
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
    format!("{first}{}", String::from_utf8(body).unwrap())
}

fn settings(directory: &Path, channels: &[(&str, &str)]) -> Settings {
    let mut text = format!(
        "[cluster]\nvip = \"192.0.2.1\"\n[[node]]\nname = \"a\"\nprivate = \"192.0.2.2\"\nfront = \"192.0.2.3\"\n\
         [paths]\nstate = \"{0}\"\nrun = \"{0}/run\"\n[alerts]\ntotal_timeout_ms = 500\nbackoff_s = 1\n",
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
fn while_the_state_directory_takes_nothing_alerts_are_told_by_the_run_directory() {
    let directory = tempfile::tempdir().unwrap();
    let (url, bodies) = server(&["200 OK"]);
    let settings = settings(directory.path(), &[("hook", &url)]);
    enqueue(&settings, &alert("before")).unwrap();
    // Root may write anywhere; a file where the directory should be stops it, too.
    let queue_directory = settings.paths.state.join("alerts");
    std::fs::rename(&queue_directory, directory.path().join("before")).unwrap();
    std::fs::write(&queue_directory, "").unwrap();
    enqueue(&settings, &alert("while it is full")).unwrap();
    assert!(flush(&settings).is_err());
    assert!(bodies.recv().unwrap().contains("while it is full"));
    std::fs::remove_file(&queue_directory).unwrap();
    std::fs::rename(directory.path().join("before"), &queue_directory).unwrap();
    let report = flush(&settings).unwrap();
    assert_eq!((report.delivered, report.waiting), (1, 0));
    assert!(bodies.recv().unwrap().contains("before"));
    assert!(bodies.try_recv().is_err());
}

#[test]
fn alerts_do_not_go_near_a_disk_that_may_hang() {
    let directory = tempfile::tempdir().unwrap();
    let (url, bodies) = server(&["200 OK"]);
    let settings = settings(directory.path(), &[("hook", &url)]);
    // Not tried for longer than every half a minute; below zero right after this machine's boot.
    let since = Now {
        at: host::uptime_seconds() - 1000.0,
        boot_id: host::boot_id(),
    };
    nodefiles::writable::begin(&settings, &since).unwrap();
    enqueue(&settings, &alert("news")).unwrap();
    assert!(!settings.paths.state.join("alerts").exists());
    assert_eq!(flush(&settings).unwrap().delivered, 1);
    assert!(bodies.recv().unwrap().contains("news"));
    assert!(!settings.paths.state.join("alerts").exists());
}

#[test]
fn what_cannot_be_marked_is_not_sent_again_and_again() {
    let directory = tempfile::tempdir().unwrap();
    let (url, bodies) = server(&["200 OK"]);
    let settings = settings(directory.path(), &[("hook", &url)]);
    enqueue(&settings, &alert("once")).unwrap();
    // Nothing can be put beside the entry; root may write anywhere else.
    let beside = settings.paths.state.join("alerts/000000000001.tried");
    std::fs::create_dir(&beside).unwrap();
    // Nowhere else either.
    std::fs::remove_dir_all(&settings.paths.run).unwrap();
    std::fs::write(&settings.paths.run, "").unwrap();
    assert!(flush(&settings).is_err());
    assert!(bodies.try_recv().is_err());
    // The run directory takes the note of it.
    std::fs::remove_file(&settings.paths.run).unwrap();
    assert_eq!(flush(&settings).unwrap().delivered, 1);
    assert!(bodies.recv().unwrap().contains("once"));
    assert_eq!(flush(&settings).unwrap().delivered, 0);
    std::fs::remove_dir(&beside).unwrap();
    let report = flush(&settings).unwrap();
    assert_eq!((report.delivered, report.waiting), (0, 0));
    assert!(bodies.try_recv().is_err());
}

#[test]
fn a_wrong_secret_costs_its_channel_only() {
    let directory = tempfile::tempdir().unwrap();
    let (url, bodies) = server(&["200 OK"]);
    let text = format!(
        "[cluster]\nvip = \"192.0.2.1\"\n[[node]]\nname = \"a\"\nprivate = \"192.0.2.2\"\nfront = \"192.0.2.3\"\n\
         [paths]\nstate = \"{0}\"\nrun = \"{0}/run\"\n\
         [[alerts.channel]]\nkind = \"webhook\"\nname = \"wrong\"\nurl_file = \"{0}/missing\"\n\
         [[alerts.channel]]\nkind = \"webhook\"\nname = \"hook\"\nurl = \"{url}\"\n",
        directory.path().display()
    );
    let settings = settings::parse(&text, Path::new("test.toml"), Some("a")).unwrap();
    enqueue(&settings, &alert("heard")).unwrap();
    let report = flush(&settings).unwrap();
    assert_eq!((report.delivered, report.waiting), (1, 1));
    assert!(bodies.recv().unwrap().contains("heard"));
    let wrong = alerts::wrong_secrets(&settings);
    assert!(
        wrong.len() == 1 && wrong[0].contains("`wrong`"),
        "{wrong:?}"
    );
    let told = alerts::test_channels(&settings);
    assert!(
        told[0].1.as_ref().unwrap_err().contains("missing"),
        "{told:?}"
    );
    assert!(told[1].1.is_ok());
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
fn a_new_alert_does_not_wait_for_the_back_off_of_the_one_before() {
    for (refusal, delivered) in [
        ("500 Internal Server Error", 2),
        // The server asked for patience.
        ("429 Too Many Requests\r\nretry-after: 600", 0),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let answers: &'static [&'static str] = Box::leak(Box::new([refusal, "200 OK"]));
        let (url, _bodies) = server(answers);
        let settings = settings(directory.path(), &[("hook", &url)]);
        enqueue(&settings, &alert("before")).unwrap();
        assert_eq!(flush(&settings).unwrap().waiting, 1);
        enqueue(&settings, &alert("news")).unwrap();
        assert_eq!(flush(&settings).unwrap().delivered, delivered, "{refusal}");
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

fn flush_at_once(settings: &Settings) -> Report {
    let _ = std::fs::remove_file(settings.paths.state.join("alerts/backoff"));
    flush(settings).unwrap()
}

#[test]
fn an_alert_that_is_refused_holds_up_no_other_and_is_given_up_after_three_tries() {
    let directory = tempfile::tempdir().unwrap();
    let (url, bodies) = server_that(|asked| {
        if asked.contains("refused") {
            "400 Bad Request\r\n\r\n{\"description\":\"Bad Request: can't parse entities\"}"
                .to_owned()
        } else {
            "200 OK".to_owned()
        }
    });
    let settings = settings(directory.path(), &[("hook", &url)]);
    enqueue(&settings, &alert("refused")).unwrap();
    for accepted in ["one", "two", "three"] {
        assert!(!queue(&settings).unwrap().is_empty(), "given up too early");
        enqueue(&settings, &alert(accepted)).unwrap();
        assert_eq!(flush_at_once(&settings).delivered, 1);
    }
    assert!(queue(&settings).unwrap().is_empty());
    let asked: Vec<String> = bodies.try_iter().collect();
    assert_eq!(asked.iter().filter(|a| a.contains("refused")).count(), 3);
}

#[test]
fn a_channel_that_refuses_everything_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let refuses = Arc::new(AtomicBool::new(true));
    let state = Arc::clone(&refuses);
    let (url, bodies) = server_that(move |_| {
        if state.load(Ordering::Relaxed) {
            "401 Unauthorized".to_owned()
        } else {
            "200 OK".to_owned()
        }
    });
    let settings = settings(directory.path(), &[("hook", &url)]);
    for message in ["one", "two", "three", "four"] {
        enqueue(&settings, &alert(message)).unwrap();
    }
    for _ in 0..5 {
        assert_eq!(flush_at_once(&settings).waiting, 4);
    }
    // And it is not asked for each of them.
    assert_eq!(bodies.try_iter().count(), 15);
    refuses.store(false, Ordering::Relaxed);
    let report = flush_at_once(&settings);
    assert_eq!((report.delivered, report.waiting), (4, 0));
}

#[test]
fn refused_alerts_at_the_head_do_not_block_a_channel() {
    let directory = tempfile::tempdir().unwrap();
    let (url, bodies) = server_that(|asked| {
        if asked.contains("refused") {
            "413 Content Too Large".to_owned()
        } else {
            "200 OK".to_owned()
        }
    });
    let settings = settings(directory.path(), &[("hook", &url)]);
    for message in ["refused 1", "refused 2", "refused 3", "good 1", "good 2"] {
        enqueue(&settings, &alert(message)).unwrap();
    }
    let report = flush_at_once(&settings);
    assert_eq!((report.delivered, report.waiting), (2, 3));
    assert!(bodies.try_iter().any(|asked| asked.contains("good 1")));
}

#[test]
fn channels_are_served_beside_each_other() {
    let directory = tempfile::tempdir().unwrap();
    let (asked, was_asked) = channel();
    // It answers when the other one has been asked.
    let (first, _) = server_that(move |_| {
        was_asked.recv().unwrap();
        "200 OK".to_owned()
    });
    let (second, _) = server_that(move |_| {
        asked.send(()).unwrap();
        "200 OK".to_owned()
    });
    let settings = settings(directory.path(), &[("first", &first), ("second", &second)]);
    enqueue(&settings, &alert("news")).unwrap();
    assert_eq!(flush(&settings).unwrap().delivered, 2);
}

/// Bot channels read their token from a file.
fn bot(directory: &Path, kind: &str, url: &str, more: &str) -> Settings {
    let token = directory.join("token");
    std::fs::write(&token, "123:abc").unwrap();
    std::fs::set_permissions(&token, PermissionsExt::from_mode(0o600)).unwrap();
    let text = format!(
        "[cluster]\nvip = \"192.0.2.1\"\n[[node]]\nname = \"a\"\nprivate = \"192.0.2.2\"\nfront = \"192.0.2.3\"\n\
         [paths]\nstate = \"{0}\"\nrun = \"{0}/run\"\n\
         [[alerts.channel]]\nkind = \"{kind}\"\nname = \"bot\"\nbase_url = \"{url}\"\nchat_id = \"1\"\n\
         token_file = \"{0}/token\"\n{more}",
        directory.display()
    );
    settings::parse(&text, Path::new("test.toml"), Some("a")).unwrap()
}

#[test]
fn a_text_that_is_too_long_for_a_messenger_is_cut_and_arrives() {
    for kind in ["telegram", "bale"] {
        let directory = tempfile::tempdir().unwrap();
        let (url, bodies) = server_that(|asked| {
            let (_, body) = asked.split_once('\n').unwrap();
            let body: serde_json::Value = serde_json::from_str(body).unwrap();
            // As Telegram counts and answers.
            if body["text"].as_str().unwrap().encode_utf16().count() > 4096 {
                "400 Bad Request\r\n\r\n{\"ok\":false,\"description\":\"Bad Request: message is too long\"}".to_owned()
            } else {
                "200 OK".to_owned()
            }
        });
        let settings = bot(directory.path(), kind, &url, "");
        enqueue(&settings, &alert(&"\u{1F600}_".repeat(4000))).unwrap();
        assert_eq!(flush(&settings).unwrap().delivered, 1, "{kind}");
        assert!(bodies.recv().unwrap().contains("the logs of this node"));
    }
}

#[test]
fn what_the_messenger_says_is_told_and_its_time_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let (url, _bodies) = server(&[
        "400 Bad Request\r\n\r\n{\"ok\":false,\"description\":\"Bad Request: chat not found\"}",
        "429 Too Many Requests\r\n\r\n{\"ok\":false,\"description\":\"Too Many Requests\",\"parameters\":{\"retry_after\":600}}",
        "200 OK",
    ]);
    let settings = bot(directory.path(), "telegram", &url, "");
    let told = alerts::test_channels(&settings);
    let why = told[0].1.as_ref().unwrap_err();
    assert_eq!(why, "HTTP status 400: Bad Request: chat not found");
    enqueue(&settings, &alert("later")).unwrap();
    assert_eq!(flush(&settings).unwrap().waiting, 1);
    let backoff = std::fs::read_to_string(directory.path().join("alerts/backoff")).unwrap();
    let backoff: serde_json::Value = serde_json::from_str(&backoff).unwrap();
    let until: jiff::Timestamp = backoff["bot"]["not_before"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    let wait = until.duration_since(jiff::Timestamp::now()).as_secs();
    assert!((590..=600).contains(&wait), "{wait} s");
}

#[test]
fn a_channel_goes_by_its_own_proxy() {
    let directory = tempfile::tempdir().unwrap();
    let (proxy, asked) = server(&["200 OK"]);
    // No name server knows it.
    let settings = bot(
        directory.path(),
        "telegram",
        "http://telegram.invalid",
        &format!("proxy = \"{proxy}\"\n"),
    );
    enqueue(&settings, &alert("by proxy")).unwrap();
    flush(&settings).unwrap();
    let asked = asked.recv().unwrap();
    assert!(asked.contains("telegram.invalid"), "{asked}");
}
