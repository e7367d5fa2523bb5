//! The web application through the VIP: what people do in a browser, what hostile clients try, and many at
//! once, each with a failover in the middle.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking and prints its figures"
)]

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use lab::browser::Browser;
use lab::web::{Account, UPLOADS, Visitor, deploy, stored_files, stored_rows};
use lab::web_load::{Done, WebLoad, content};
use lab::writer::{longest_gap, now};
use lab::{Lab, NodeName, OpenSession, Turn, VIP, wait_until};
use serde_json::json;

use NodeName::{Node1, Node2};

const LIMIT: Duration = Duration::from_secs(90);

/// Files without a row that a power loss in an earlier test has left; ha-app-tidy finds them an hour later.
type Left = BTreeSet<String>;

/// Node1 is the primary, and both nodes have the application.
fn whole_lab() -> (Turn, Lab, Account, Left) {
    let (one_at_a_time, lab) = Lab::whole(env!("CARGO_BIN_EXE_lab"), LIMIT).unwrap();
    let account = deploy(Node1).unwrap();
    await_application(&lab);
    // The standby has the schema and the login.
    in_sync(&lab);
    let rows: Left = stored_rows(&lab, Node1).unwrap().into_iter().collect();
    let files: Left = stored_files(Node1).unwrap().into_iter().collect();
    let left = files.difference(&rows).cloned().collect();
    (one_at_a_time, lab, account, left)
}

/// An active node answers through the VIP.
fn await_application(lab: &Lab) {
    wait_until("an answer through the VIP", LIMIT, || {
        let answer = Visitor::at(lab, VIP).get("healthz.php")?;
        Ok(
            if answer.status == 200 && answer.json()["role"] == "active" {
                Ok(())
            } else {
                Err(format!("{answer:?}"))
            },
        )
    })
    .unwrap();
}

fn in_sync(lab: &Lab) {
    let tables = "ha_app.users, ha_app.files, ha_app.accounts, ha_app.sessions";
    lab.equal_tables(tables, LIMIT).unwrap();
}

/// The returned standby has been compared and has every file, by the word of the primary's sync-realtime.
fn files_in_sync(lab: &Lab, primary: NodeName) {
    wait_until("the files on the standby", LIMIT, || {
        let status = lab
            .exec(primary, &["cat", "/run/keepalived-companion/sync.json"])?
            .text();
        let json: serde_json::Value = serde_json::from_str(&status).unwrap_or_default();
        let whole = json["state"] == "in-sync" && json["standbys"][0]["state"] == "in-sync";
        Ok(if whole { Ok(()) } else { Err(status) })
    })
    .unwrap();
}

fn logged_in<'a>(lab: &'a Lab, account: &Account) -> Visitor<'a> {
    let mut visitor = Visitor::at(lab, VIP);
    visitor.log_in(account).unwrap();
    visitor
}

fn file_with(bytes: &[u8], name: &str) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(name);
    fs::write(&path, bytes).unwrap();
    (directory, path)
}

/// No file without a row on the primary, no row without a file on any node, no half file anywhere.
fn assert_no_orphan(lab: &Lab, primary: NodeName, left: &Left) {
    wait_until("as many files as rows", LIMIT, || {
        let rows = stored_rows(lab, primary)?;
        for node in NodeName::ALL {
            let mut files = stored_files(node)?;
            files.retain(|name| !left.contains(name));
            if files != rows {
                return Ok(Err(format!("{node}: {files:?}, rows {rows:?}")));
            }
        }
        Ok(Ok(()))
    })
    .unwrap();
}

#[test]
fn the_standby_refuses_every_change_and_serves_readers() {
    let (_one_at_a_time, lab, account, left) = whole_lab();
    let active = logged_in(&lab, &account);
    let (_kept, file) = file_with(b"hello", "hello.txt");
    let stored = active.upload(&file, "hello.txt").unwrap();
    assert_eq!(stored.status, 200, "{stored:?}");
    assert_eq!(stored.json()["files"][0]["stored"], "stored", "{stored:?}");
    in_sync(&lab);
    let standby = active.instead_at(&Node2.front());
    // Reading works, with the same session.
    let files = standby.get("files.php").unwrap();
    assert_eq!(files.json()["files"][0]["name"], "hello.txt", "{files:?}");
    let id = files.json()["files"][0]["id"].to_string();
    let download = standby.get(&format!("download.php?id={id}")).unwrap();
    assert_eq!(download.body, "hello", "{download:?}");
    assert_eq!(
        download.header("X-Content-Type-Options").as_deref(),
        Some("nosniff")
    );
    let status = standby.get("status.php").unwrap().json();
    assert_eq!(
        (&status["role"], &status["database"], &status["vip_here"]),
        (&json!("standby"), &json!("read-only"), &json!(false)),
        "{status}"
    );
    let before = lab
        .sql(Node2, "CHECKSUM TABLE ha_app.users, ha_app.files EXTENDED")
        .unwrap();
    let changes: [(&str, &[(&str, &str)]); 6] = [
        ("users.php", &[("action", "add")]),
        (
            "files.php",
            &[("action", "rename"), ("id", &id), ("name", "x.txt")],
        ),
        ("files.php", &[("action", "delete"), ("id", &id)]),
        (
            "login.php",
            &[("action", "login"), ("name", "ann"), ("password", "x")],
        ),
        ("login.php", &[("action", "logout")]),
        ("number.php", &[("writer", "1"), ("n", "1")]),
    ];
    let mut refused = vec![standby.upload(&file, "again.txt").unwrap()];
    for (page, fields) in changes {
        refused.push(standby.post(page, fields).unwrap());
    }
    for answer in &refused {
        assert_eq!(answer.status, 503, "{answer:?}");
        assert_eq!(
            answer.header("Retry-After").as_deref(),
            Some("2"),
            "{answer:?}"
        );
        assert!(answer.body.contains("standby"), "{answer:?}");
    }
    println!("{} changes refused by the standby", refused.len());
    let after = lab
        .sql(Node2, "CHECKSUM TABLE ha_app.users, ha_app.files EXTENDED")
        .unwrap();
    assert_eq!(before, after);
    assert_no_orphan(&lab, Node1, &left);
}

#[test]
fn hostile_requests_change_nothing() {
    let (_one_at_a_time, lab, account, left) = whole_lab();
    let visitor = logged_in(&lab, &account);
    let (_kept, file) = file_with(b"hello", "hello.txt");
    let rows = stored_rows(&lab, Node1).unwrap().len();
    let longest = format!("{}.txt", "a".repeat(251));
    for (name, status, code) in [
        ("evil.php", 415, "type"),
        (".htaccess", 415, "type"),
        ("..", 415, "type"),
        ("evil.php.", 415, "type"),
        ("evil.txt\u{7}", 422, "name"),
        (&format!("b{longest}"), 422, "name"),
    ] {
        let answer = visitor.upload(&file, name).unwrap();
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (status, code),
            "{name:?}: {answer:?}"
        );
    }
    assert_eq!(stored_rows(&lab, Node1).unwrap().len(), rows);
    // Kept as they were typed, stored under another name.
    let kept = [
        "../../../etc/passwd.txt",
        "a b  c.txt",
        "<script>alert(1)</script>.txt",
        "Ünïcode ☃.txt",
        "'; DROP TABLE files; --.txt",
        "evil.php.txt",
        "evil.php.txt",
        &longest,
    ];
    for name in kept {
        let answer = visitor.upload(&file, name).unwrap();
        assert_eq!(answer.status, 200, "{name:?}: {answer:?}");
        assert_eq!(answer.json()["files"][0]["name"], name, "{answer:?}");
    }
    assert_eq!(stored_rows(&lab, Node1).unwrap().len(), rows + kept.len());
    let plain =
        |name: &String| name.len() == 36 && Path::new(name).extension().is_some_and(|e| e == "bin");
    assert!(stored_files(Node1).unwrap().iter().all(plain));
    let html = visitor.page("files.php").unwrap();
    assert!(html.body.contains("&lt;script&gt;alert(1)"), "{html:?}");
    assert!(!html.body.contains("<script>alert"), "not escaped");
    let id = visitor.get("files.php").unwrap().json()["files"][0]["id"].to_string();
    for (name, status) in [
        ("x\0.txt", 422),
        ("x\n.txt", 422),
        ("x.php", 415),
        ("../up.txt", 200),
    ] {
        // As bytes: an argument cannot hold a NUL.
        let escaped = name
            .replace('\0', "%00")
            .replace('\n', "%0a")
            .replace('/', "%2f");
        let body = format!("action=rename&id={id}&csrf={}&name={escaped}", visitor.csrf);
        let answer = visitor
            .curl("files.php", &["--data".to_owned(), body])
            .unwrap();
        assert_eq!(answer.status, status, "{name:?}: {answer:?}");
    }
    assert_no_orphan(&lab, Node1, &left);
}

#[test]
fn what_is_nobodys_business_is_refused() {
    let (_one_at_a_time, lab, account, left) = whole_lab();
    let mut visitor = logged_in(&lab, &account);
    let (_kept, file) = file_with(b"hello", "hello.txt");
    assert_eq!(visitor.upload(&file, "hello.txt").unwrap().status, 200);
    // What lies in the document root and is nobody's business.
    let stored = stored_files(Node1).unwrap();
    for path in [
        format!("uploads/{}", stored[0]),
        "uploads/".to_owned(),
        ".keepalived-companion/".to_owned(),
        "../etc/passwd".to_owned(),
        "..%2f..%2fetc/passwd".to_owned(),
    ] {
        let answer = visitor.get(&path).unwrap();
        assert!(
            matches!(answer.status, 400 | 403 | 404),
            "{path}: {answer:?}"
        );
    }
    for path in ["download.php?id=../1", "download.php?id=-1", "download.php"] {
        assert_eq!(visitor.get(path).unwrap().status, 404, "{path}");
    }
    // Too large: by the settings, and by what PHP takes at all.
    for mebibytes in [17, 101] {
        let (_kept, large) = file_with(&vec![b'x'; mebibytes << 20], "large.txt");
        let answer = visitor.upload(&large, "large.txt").unwrap();
        assert_eq!(answer.status, 413, "{mebibytes} MiB: {answer:?}");
    }
    let token = std::mem::replace(&mut visitor.csrf, "0".repeat(64));
    let forged = visitor.post("users.php", &[("action", "add")]).unwrap();
    assert_eq!(
        (forged.status, forged.code().as_str()),
        (403, "csrf"),
        "{forged:?}"
    );
    visitor.csrf = token;
    let stranger = Visitor::at(&lab, VIP);
    assert_eq!(
        stranger
            .post("users.php", &[("action", "add")])
            .unwrap()
            .status,
        401
    );
    let mut guest = Visitor::at(&lab, VIP);
    guest.open_form().unwrap();
    let wrong = [("action", "login"), ("name", "bob"), ("password", "x")];
    let answers: Vec<u16> = (0..6)
        .map(|_| guest.post("login.php", &wrong).unwrap().status)
        .collect();
    assert_eq!(answers, [401, 401, 401, 401, 401, 429]);
    assert_no_orphan(&lab, Node1, &left);
}

#[test]
fn a_database_that_closes_in_mid_request_leaves_no_orphan() {
    let (_one_at_a_time, lab, account, left) = whole_lab();
    let visitor = logged_in(&lab, &account);
    let (_kept, file) = file_with(b"hello", "hello.txt");
    let rows = stored_rows(&lab, Node1).unwrap();
    let files = stored_files(Node1).unwrap();
    let mut session = OpenSession::holding(Node1, "FLUSH TABLES WITH READ LOCK").unwrap();
    wait_until("the lock", LIMIT, || {
        let held = lab.sql(
            Node1,
            "SELECT COUNT(*) FROM information_schema.METADATA_LOCK_INFO WHERE LOCK_MODE LIKE 'MDL_BACKUP_FTWRL%'",
        )?;
        Ok(if held == "0" { Err(held) } else { Ok(()) })
    })
    .unwrap();
    let answer = thread::scope(|scope| {
        let upload = scope.spawn(|| visitor.upload(&file, "hello.txt").unwrap());
        wait_until("the row that waits", LIMIT, || {
            let waiting = lab.sql(
                Node1,
                "SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE INFO LIKE 'INSERT INTO files%'",
            )?;
            Ok(if waiting == "0" { Err(waiting) } else { Ok(()) })
        })
        .unwrap();
        session.run("SET GLOBAL read_only = 1").unwrap();
        session.run("UNLOCK TABLES").unwrap();
        upload.join().unwrap()
    });
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(answer.code(), "read-only", "{answer:?}");
    assert_eq!(stored_rows(&lab, Node1).unwrap(), rows);
    assert_eq!(stored_files(Node1).unwrap(), files);
    // The audit opens it again: this node has the VIP and the newest data.
    lab.settled(Node1, LIMIT).unwrap();
    assert_eq!(visitor.upload(&file, "hello.txt").unwrap().status, 200);
    assert_no_orphan(&lab, Node1, &left);
}

fn picture(browser: &Browser<'_>, name: &str) {
    let text = browser.picture().unwrap();
    assert!(text.len() > 1000, "no picture of {name}");
    // `LAB_SCREENSHOTS=docs/screenshots` keeps them.
    let Some(directory) = std::env::var_os("LAB_SCREENSHOTS") else {
        return;
    };
    let path = Path::new(&directory).join(format!("{name}.png"));
    let decoded = Command::new("base64")
        .arg("--decode")
        .stdin(Stdio::piped())
        .stdout(fs::File::create(&path).unwrap())
        .spawn()
        .and_then(|mut child| {
            child.stdin.take().unwrap().write_all(text.as_bytes())?;
            child.wait()
        })
        .unwrap();
    assert!(decoded.success());
}

fn fact(browser: &Browser<'_>, name: &str, wanted: &str) {
    browser
        .await_text(&format!("[data-fact={name}] dd"), wanted)
        .unwrap();
}

#[test]
fn a_person_works_through_a_failover() {
    let (_one_at_a_time, lab, account, left) = whole_lab();
    let browser = Browser::open(&lab).unwrap();
    let page = |name: &str| format!("http://{VIP}/{name}");
    browser.go(&page("users.php")).unwrap();
    browser.await_url("login.php").unwrap();
    picture(&browser, "login");
    browser.type_into("#name", &account.name).unwrap();
    browser.type_into("#password", &account.password).unwrap();
    browser.click("button[value=login]").unwrap();
    browser.await_url("users.php").unwrap();
    browser.click("button[value=add]").unwrap();
    browser.await_url("done=user-added").unwrap();
    fact(&browser, "node", "node1");
    fact(&browser, "database", "read-write");
    // Upload, rename, delete.
    let (_kept, file) = file_with(b"a note", "a note.txt");
    browser.go(&page("files.php")).unwrap();
    let path = file.display().to_string();
    browser.type_into("#choose", &path).unwrap();
    browser.click("#upload button.primary").unwrap();
    browser.await_text("main", "a note.txt").unwrap();
    browser.await_text("main", "on the standby").unwrap();
    picture(&browser, "files-light");
    let emulate = |theme: &str| {
        let media = json!({"features": [{"name": "prefers-color-scheme", "value": theme}]});
        browser
            .devtools("Emulation.setEmulatedMedia", &media)
            .unwrap();
    };
    emulate("dark");
    picture(&browser, "files-dark");
    let phone = json!({"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": true});
    browser
        .devtools("Emulation.setDeviceMetricsOverride", &phone)
        .unwrap();
    picture(&browser, "files-phone");
    browser
        .devtools("Emulation.clearDeviceMetricsOverride", &json!({}))
        .unwrap();
    emulate("light");
    browser.click("a[href*='rename=']").unwrap();
    browser.clear("#name").unwrap();
    browser.type_into("#name", "another name.txt").unwrap();
    browser.click("button[value=rename]").unwrap();
    browser.await_url("done=renamed").unwrap();
    browser.await_text("main", "another name.txt").unwrap();
    // The power goes; the next click is answered by the other node, with the same session.
    browser.go(&page("users.php")).unwrap();
    let struck = now();
    lab.power_off(Node1).unwrap();
    lab.await_roles("the other node", LIMIT, |roles| {
        roles.vip == [Node2] && roles.writable == [Node2]
    })
    .unwrap();
    browser.click("button[value=add]").unwrap();
    browser.await_url("done=user-added").unwrap();
    println!(
        "the next click worked {:.1} s after the power loss",
        now() - struck
    );
    fact(&browser, "node", "node2");
    fact(&browser, "role", "active");
    picture(&browser, "users-light");
    emulate("dark");
    picture(&browser, "users-dark");
    emulate("light");
    browser.go(&page("files.php")).unwrap();
    browser.await_text("main", "another name.txt").unwrap();
    assert_eq!(
        lab.sql(Node2, "SELECT COUNT(*) >= 2 FROM ha_app.users")
            .unwrap(),
        "1"
    );
    browser.click("a[data-delete]").unwrap();
    browser.click("dialog button.danger").unwrap();
    browser.await_url("done=deleted").unwrap();
    lab.power_on(Node1).unwrap();
    lab.settled(Node2, LIMIT).unwrap();
    assert_no_orphan(&lab, Node2, &left);
}

#[test]
fn an_upload_through_a_failover_is_whole_or_not_there() {
    let (_one_at_a_time, lab, account, left) = whole_lab();
    let browser = Browser::open(&lab).unwrap();
    browser.go(&format!("http://{VIP}/login.php")).unwrap();
    browser.type_into("#name", &account.name).unwrap();
    browser.type_into("#password", &account.password).unwrap();
    browser.click("button[value=login]").unwrap();
    browser.await_url("users.php").unwrap();
    browser.go(&format!("http://{VIP}/files.php")).unwrap();
    let (_kept, file) = file_with(&content(7, 12 << 20), "large.txt");
    browser
        .type_into("#choose", &file.display().to_string())
        .unwrap();
    // About six seconds of uploading.
    browser.devtools("Network.enable", &json!({})).unwrap();
    browser
        .devtools(
            "Network.emulateNetworkConditions",
            &json!({"offline": false, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 2 << 20}),
        )
        .unwrap();
    browser.click("#upload button.primary").unwrap();
    wait_until("an upload that has begun", LIMIT, || {
        let script = "const p = document.querySelector('#upload-progress progress') ?? \
                      document.querySelector('#upload-progress'); return p === null ? null : p.value / p.max";
        let done = browser.run(script, &json!([]))?;
        Ok(match done.as_f64() {
            Some(part) if part > 0.1 => Ok(()),
            _ => Err(done.to_string()),
        })
    })
    .unwrap();
    lab.power_off(Node1).unwrap();
    lab.await_roles("the other node", LIMIT, |roles| roles.writable == [Node2])
        .unwrap();
    let mut told = String::new();
    wait_until("an outcome", LIMIT, || {
        told = browser.text("#upload-outcome")?.unwrap_or_default();
        let done = browser.url()?.contains("done=uploaded");
        Ok(if done || !told.trim().is_empty() {
            Ok(())
        } else {
            Err(told.clone())
        })
    })
    .unwrap();
    let done = browser.url().unwrap().contains("done=uploaded");
    let rows = lab
        .sql(
            Node2,
            "SELECT COUNT(*) FROM ha_app.files WHERE name = 'large.txt'",
        )
        .unwrap();
    println!(
        "the upload ended as {}: {told}",
        if done { "stored" } else { "failed" }
    );
    assert_eq!(rows, if done { "1" } else { "0" }, "{told}");
    lab.power_on(Node1).unwrap();
    lab.settled(Node2, LIMIT).unwrap();
    // PHP's temporary file of the half upload is not in the tree, and nothing else is left.
    assert_no_orphan(&lab, Node2, &left);
}

/// Everything below recovered/ on a node, by name.
fn recovered(lab: &Lab, node: NodeName) -> BTreeSet<String> {
    let list =
        "find /var/lib/keepalived-companion/recovered -type f -printf '%f\\n' 2>/dev/null || true";
    lab.exec(node, &["sh", "-c", list])
        .unwrap()
        .text()
        .lines()
        .map(str::to_owned)
        .collect()
}

/// What was acknowledged and is not on the node; and how many uploads were acknowledged as `alone`.
fn missing_on(lab: &Lab, node: NodeName, done: &[Done]) -> (Vec<String>, usize) {
    let known: BTreeSet<String> = lab
        .sql(node, "SELECT uid FROM ha_app.users")
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect();
    let rows: BTreeSet<String> = stored_rows(lab, node).unwrap().into_iter().collect();
    let saved = recovered(lab, node);
    let mut missing = Vec::new();
    let mut alone = 0;
    for what in done {
        match what {
            Done::User { uid, .. } if !known.contains(uid) => missing.push(uid.clone()),
            Done::Upload {
                stored_name,
                number,
                size,
                stored,
                ..
            } => {
                let path = node.root().join(UPLOADS).join(stored_name);
                let whole = fs::read(&path).is_ok_and(|bytes| bytes == content(*number, *size));
                let listed = rows.contains(stored_name);
                if stored == "alone" {
                    alone += 1;
                }
                // The only copy of one that was stored alone may have been on the lost node, where it is
                // kept apart once the node is back.
                let apart = stored == "alone" && node == Node1 && saved.contains(stored_name);
                if !(whole && listed || apart) {
                    missing.push(format!(
                        "{stored_name} ({stored}): whole {whole}, listed {listed}"
                    ));
                }
            }
            Done::User { .. } | Done::Failed { .. } => {}
        }
    }
    (missing, alone)
}

#[test]
fn what_was_acknowledged_to_many_at_once_is_there_after_a_failover() {
    let (_one_at_a_time, lab, account, _left) = whole_lab();
    let visitor = logged_in(&lab, &account);
    let load = WebLoad::start(&lab, &visitor, 50, 200).unwrap();
    let more = |uploads: usize, users: usize| {
        let (begin_uploads, begin_users) = load.acknowledged();
        wait_until("acknowledged uploads and people", LIMIT, || {
            let (u, p) = load.acknowledged();
            Ok(
                if u >= begin_uploads + uploads && p >= begin_users + users {
                    Ok(())
                } else {
                    Err(format!("{u} uploads, {p} people"))
                },
            )
        })
        .unwrap();
    };
    let began = now();
    more(200, 1000);
    let struck = now();
    let before = load.acknowledged();
    lab.power_off(Node1).unwrap();
    more(200, 1000);
    let done = load.stop().unwrap();
    lab.power_on(Node1).unwrap();
    lab.settled(Node2, LIMIT).unwrap();
    in_sync(&lab);
    files_in_sync(&lab, Node2);
    let mut users = Vec::new();
    let mut uploads = Vec::new();
    let mut failed = 0;
    for what in &done {
        match what {
            Done::User { at, .. } => users.push(*at),
            Done::Upload { at, .. } => uploads.push(*at),
            Done::Failed { .. } => failed += 1,
        }
    }
    println!(
        "{} people and {} uploads in {:.1} s, then a power loss; {} and {} in all, {failed} refused or unanswered",
        before.1,
        before.0,
        struck - began,
        users.len(),
        uploads.len(),
    );
    // Until the last one: after that the visitors were stopped.
    let gap = |moments: &[f64]| {
        let last = moments.iter().copied().fold(struck, f64::max);
        longest_gap(moments.iter().copied(), struck, last)
    };
    println!(
        "{:.2} s without a person added, {:.2} s without an upload",
        gap(&users),
        gap(&uploads),
    );
    for node in NodeName::ALL {
        let (missing, alone) = missing_on(&lab, node, &done);
        println!(
            "{node}: {} lost, {alone} had been stored on one node only",
            missing.len()
        );
        assert_eq!(
            missing,
            Vec::<String>::new(),
            "acknowledged and not on {node}"
        );
    }
}

#[test]
fn uploads_that_only_the_old_node_had_are_kept_apart() {
    let (_one_at_a_time, lab, account, left) = whole_lab();
    files_in_sync(&lab, Node1);
    let visitor = logged_in(&lab, &account);
    let upload = |name: &str| {
        let (_kept, file) = file_with(name.as_bytes(), name);
        let answer = visitor.upload(&file, name).unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        let stored = &answer.json()["files"][0];
        (
            stored["stored_name"].as_str().unwrap().to_owned(),
            stored["stored"].as_str().unwrap().to_owned(),
        )
    };
    // Nothing is sent any more; the check of it would move the VIP some seconds later.
    lab.exec(Node1, &["systemctl", "kill", "-s", "STOP", "sync-realtime"])
        .unwrap()
        .success()
        .unwrap();
    let unsent: Vec<_> = (0..3).map(|n| upload(&format!("unsent{n}.txt"))).collect();
    lab.power_off(Node1).unwrap();
    await_application(&lab);
    let during: Vec<_> = (0..5).map(|n| upload(&format!("during{n}.txt"))).collect();
    assert!(
        unsent
            .iter()
            .chain(&during)
            .all(|(_, stored)| stored == "alone"),
        "{unsent:?} {during:?}"
    );
    lab.power_on(Node1).unwrap();
    lab.settled(Node2, LIMIT).unwrap();
    files_in_sync(&lab, Node2);
    let failback = lab
        .exec(Node1, &["/usr/libexec/keepalived-companion/failback"])
        .unwrap();
    assert!(failback.status.success(), "{failback:?}");
    let saved = recovered(&lab, Node1);
    for node in NodeName::ALL {
        let here = stored_files(node).unwrap();
        for (name, _) in &during {
            assert!(here.contains(name), "{name} is not on {node}");
        }
        for (name, _) in &unsent {
            assert!(!here.contains(name), "{name} is on {node}");
        }
    }
    let kept = unsent
        .iter()
        .filter(|(name, _)| saved.contains(name))
        .count();
    println!(
        "5 uploads of the outage on both nodes, {kept} of 3 unsent ones in the recovery folder"
    );
    assert_eq!(kept, 3, "{saved:?}");
    // What the operator does with them, and nothing is missing any more.
    for (name, _) in &unsent {
        let take_back = format!(
            "cp -a $(find /var/lib/keepalived-companion/recovered -name {name}) /var/www/html/uploads/"
        );
        lab.exec(Node1, &["sh", "-c", &take_back])
            .unwrap()
            .success()
            .unwrap();
    }
    assert_no_orphan(&lab, Node1, &left);
}
