//! The web application on the nodes, and a visitor who speaks HTTP to it from the client's place.

use std::fs;
use std::path::{Path, PathBuf};

use process::Program;
use serde_json::Value;

use crate::node::exec;
use crate::{Lab, LabError, NodeName, at, provision};

/// Where the pages keep what was uploaded.
pub const UPLOADS: &str = "var/www/html/uploads";

/// A login that may change things.
#[derive(Debug, Clone)]
pub struct Account {
    /// Its name.
    pub name: String,
    /// Made anew at each deployment.
    pub password: String,
}

fn source() -> PathBuf {
    provision::repository().join("tests/webapp")
}

/// Installs the application on both nodes, lets check-apache ask it, and creates an editor.
pub fn deploy(primary: NodeName) -> Result<Account, LabError> {
    let example = source().join("config.example.ini");
    let text = fs::read_to_string(&example).map_err(at(&example))?;
    let config = Path::new(crate::LIVE).join("ha-app.ini");
    // The application's account as the lab makes it: a throw-away.
    fs::write(&config, text.replace("change-me", "securepass")).map_err(at(&config))?;
    for node in NodeName::ALL {
        let root = node.root();
        Program::new(source().join("install"))
            .arg("--destdir")
            .arg(&root)
            .arg("--config")
            .arg(&config)
            .run()?
            .success()?;
        let settings = root.join("etc/keepalived/companion.toml");
        let text = fs::read_to_string(&settings).map_err(at(&settings))?;
        fs::write(
            &settings,
            text.replace(
                "url = \"http://127.0.0.1/\"",
                "url = \"http://127.0.0.1/healthz.php\"",
            ),
        )
        .map_err(at(&settings))?;
        exec(node, &["rm", "-f", "/var/www/html/index.html"])?.success()?;
        exec(node, &["systemctl", "restart", "apache2"])?.success()?;
    }
    let schema = source().join("schema.sql");
    let schema = fs::read_to_string(&schema).map_err(at(&schema))?;
    provision::sql(
        primary,
        &format!("USE ha_app;\n{schema}\nDELETE FROM login_attempts;"),
    )?;
    let create = |words: &[&str]| {
        let mut command = vec!["ha-app-create-account"];
        command.extend(words);
        exec(primary, &command)
    };
    let name = "ann";
    let mut output = create(&[name, "editor"])?;
    if !output.status.success() {
        // Of an earlier test on this lab.
        output = create(&["--reset", name, "editor"])?.success()?;
    }
    let password = output
        .text()
        .lines()
        .find_map(|line| line.strip_prefix("password:").map(|p| p.trim().to_owned()))
        .ok_or_else(|| LabError::Unfit(format!("no password in: {}", output.text())))?;
    Ok(Account {
        name: name.to_owned(),
        password,
    })
}

/// What was answered.
#[derive(Debug, Clone)]
pub struct Answer {
    /// 0 when there was none.
    pub status: u16,
    /// As it came.
    pub headers: String,
    /// As it came; not UTF-8 is replaced.
    pub body: String,
}

impl Answer {
    /// The body as JSON; nothing when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }

    /// The short code of a refusal.
    pub fn code(&self) -> String {
        self.json()["code"].as_str().unwrap_or_default().to_owned()
    }

    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<String> {
        self.headers.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name)
                .then(|| value.trim().to_owned())
        })
    }
}

/// Somebody with curl.
#[derive(Debug, Clone)]
pub struct Visitor<'a> {
    lab: &'a Lab,
    host: String,
    /// The cookie of the session.
    pub cookie: String,
    /// The token for forms.
    pub csrf: String,
}

impl<'a> Visitor<'a> {
    /// Somebody without a session, who speaks to this address.
    pub fn at(lab: &'a Lab, host: &str) -> Self {
        Self {
            lab,
            host: host.to_owned(),
            cookie: String::new(),
            csrf: String::new(),
        }
    }

    /// The same person at another address.
    pub fn instead_at(&self, host: &str) -> Self {
        Self {
            host: host.to_owned(),
            ..self.clone()
        }
    }

    /// Opens the login form.
    pub fn open_form(&mut self) -> Result<(), LabError> {
        let page = self.get("login.php")?;
        self.take_cookie(&page, "ha_form");
        self.take_token(&page);
        Ok(())
    }

    /// Logs in.
    pub fn log_in(&mut self, account: &Account) -> Result<(), LabError> {
        self.open_form()?;
        let answer = self.post(
            "login.php",
            &[
                ("action", "login"),
                ("name", &account.name),
                ("password", &account.password),
            ],
        )?;
        self.take_cookie(&answer, "ha_session");
        self.take_token(&answer);
        if answer.status == 200 {
            Ok(())
        } else {
            Err(LabError::Unfit(format!("login: {answer:?}")))
        }
    }

    fn take_token(&mut self, answer: &Answer) {
        let json = answer.json();
        json["csrf"]
            .as_str()
            .unwrap_or_default()
            .clone_into(&mut self.csrf);
    }

    fn take_cookie(&mut self, answer: &Answer, name: &str) {
        let set = answer.headers.lines().filter_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case("set-cookie").then(|| value.trim())
        });
        for cookie in set.filter_map(|value| value.split(';').next()) {
            if cookie.starts_with(name) {
                cookie.clone_into(&mut self.cookie);
            }
        }
    }

    /// Asks for a page, in JSON where it has one.
    pub fn get(&self, path: &str) -> Result<Answer, LabError> {
        self.curl(path, &[])
    }

    /// Asks for a page as a browser does.
    pub fn page(&self, path: &str) -> Result<Answer, LabError> {
        self.request(path, "text/html", &[])
    }

    /// Sends a form with the token.
    pub fn post(&self, path: &str, fields: &[(&str, &str)]) -> Result<Answer, LabError> {
        let mut words = Vec::new();
        for (name, value) in fields.iter().chain([&("csrf", self.csrf.as_str())]) {
            words.push("--data-urlencode".to_owned());
            words.push(format!("{name}={value}"));
        }
        self.curl(path, &words)
    }

    /// Uploads a file under a name.
    pub fn upload(&self, file: &Path, name: &str) -> Result<Answer, LabError> {
        let quoted = name.replace('\\', "\\\\").replace('"', "\\\"");
        let words = [
            "-F".to_owned(),
            "action=upload".to_owned(),
            "-F".to_owned(),
            format!("csrf={}", self.csrf),
            "-F".to_owned(),
            format!("files[]=@{};filename=\"{quoted}\"", file.display()),
        ];
        self.curl("files.php", &words)
    }

    /// Runs curl with these words more.
    pub fn curl(&self, path: &str, words: &[String]) -> Result<Answer, LabError> {
        self.request(path, "application/json", words)
    }

    fn request(&self, path: &str, accept: &str, words: &[String]) -> Result<Answer, LabError> {
        let accept = format!("Accept: {accept}");
        let url = format!("http://{}/{path}", self.host);
        let mut command = vec![
            "curl",
            "--silent",
            "--include",
            "--max-time",
            "30",
            "--path-as-is",
            "-H",
            &accept,
            "-H",
            "Expect:",
        ];
        let cookie = format!("Cookie: {}", self.cookie);
        if !self.cookie.is_empty() {
            command.extend(["-H", &cookie]);
        }
        command.extend(words.iter().map(String::as_str));
        command.push(&url);
        let output = self.lab.client(&command)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (headers, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = headers
            .split_whitespace()
            .nth(1)
            .and_then(|word| word.parse().ok())
            .unwrap_or_default();
        Ok(Answer {
            status,
            headers: headers.to_owned(),
            body: body.to_owned(),
        })
    }
}

/// The stored names that the uploads directory of a node has.
pub fn stored_files(node: NodeName) -> Result<Vec<String>, LabError> {
    let directory = node.root().join(UPLOADS);
    let mut names = Vec::new();
    for entry in fs::read_dir(&directory).map_err(at(&directory))? {
        let entry = entry.map_err(at(&directory))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// The stored names that the table of a node has.
pub fn stored_rows(lab: &Lab, node: NodeName) -> Result<Vec<String>, LabError> {
    let text = lab.sql(node, "SELECT stored_name FROM ha_app.files")?;
    let mut names: Vec<String> = text.lines().map(str::to_owned).collect();
    names.sort();
    Ok(names)
}
