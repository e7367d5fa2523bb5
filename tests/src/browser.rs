//! A headless Chromium at the client's place, driven over the W3C's web driver protocol
//! (w3.org/TR/webdriver2). The few commands go by curl, since the driver listens in the client's namespace only.

use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::{Lab, LabError, at, network, wait_until};

const DRIVER: &str = "http://127.0.0.1:9515";
/// How an element is named in an answer.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";
/// A start takes seconds on a busy machine; a page that waits for a database, too.
const LIMIT: Duration = Duration::from_secs(60);

/// An open browser with one window.
#[derive(Debug)]
pub struct Browser<'a> {
    lab: &'a Lab,
    driver: Child,
    session: String,
}

impl<'a> Browser<'a> {
    /// Starts the driver and a browser.
    pub fn open(lab: &'a Lab) -> Result<Self, LabError> {
        let driver = network::client_process("chromedriver")
            .args(["--port=9515", "--silent"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(at("chromedriver"))?;
        let mut browser = Self {
            lab,
            driver,
            session: String::new(),
        };
        wait_until("the browser's driver", LIMIT, || {
            let answer = browser.call("GET", "/status", &Value::Null);
            Ok(match answer {
                Ok(status) if status["ready"] == true => Ok(()),
                other => Err(format!("{other:?}")),
            })
        })?;
        let wanted = json!({"capabilities": {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": {"args": [
            // Root in a namespace of its own.
            "--no-sandbox", "--headless=new", "--disable-gpu", "--disable-dev-shm-usage",
            "--window-size=1100,800", "--force-device-scale-factor=1", "--lang=en",
        ]}}}});
        let answer = browser.call("POST", "/session", &wanted)?;
        answer["sessionId"]
            .as_str()
            .unwrap_or_default()
            .clone_into(&mut browser.session);
        Ok(browser)
    }

    fn call(&self, method: &str, path: &str, body: &Value) -> Result<Value, LabError> {
        let url = format!("{DRIVER}{path}");
        let text = body.to_string();
        let mut command = vec!["curl", "--silent", "--max-time", "120", "-X", method];
        if !body.is_null() {
            command.extend([
                "-H",
                "Content-Type: application/json",
                "--data-binary",
                &text,
            ]);
        }
        command.push(&url);
        let output = self.lab.client(&command)?;
        let answer: Value = serde_json::from_slice(&output.stdout)
            .map_err(|_| LabError::Unfit(format!("{method} {path}: {}", output.text())))?;
        let value = answer["value"].clone();
        if let Some(error) = value["error"].as_str() {
            let message = value["message"].as_str().unwrap_or_default();
            return Err(LabError::Unfit(format!(
                "{method} {path}: {error}: {message}"
            )));
        }
        Ok(value)
    }

    fn command(&self, method: &str, path: &str, body: &Value) -> Result<Value, LabError> {
        self.call(method, &format!("/session/{}{path}", self.session), body)
    }

    /// Opens a page.
    pub fn go(&self, url: &str) -> Result<(), LabError> {
        self.command("POST", "/url", &json!({"url": url}))?;
        Ok(())
    }

    /// The address that the window is at.
    pub fn url(&self) -> Result<String, LabError> {
        let url = self.command("GET", "/url", &Value::Null)?;
        Ok(url.as_str().unwrap_or_default().to_owned())
    }

    fn element(&self, css: &str) -> Result<String, LabError> {
        let found = self.command(
            "POST",
            "/element",
            &json!({"using": "css selector", "value": css}),
        )?;
        found[ELEMENT]
            .as_str()
            .map(str::to_owned)
            .ok_or_else(|| LabError::Unfit(format!("{css}: {found}")))
    }

    /// Clicks the first element that fits.
    pub fn click(&self, css: &str) -> Result<(), LabError> {
        let element = self.element(css)?;
        self.command("POST", &format!("/element/{element}/click"), &json!({}))?;
        Ok(())
    }

    /// Types into it; for a file field the file's path.
    pub fn type_into(&self, css: &str, text: &str) -> Result<(), LabError> {
        let element = self.element(css)?;
        self.command(
            "POST",
            &format!("/element/{element}/value"),
            &json!({"text": text}),
        )?;
        Ok(())
    }

    /// Empties a field.
    pub fn clear(&self, css: &str) -> Result<(), LabError> {
        let element = self.element(css)?;
        self.command("POST", &format!("/element/{element}/clear"), &json!({}))?;
        Ok(())
    }

    /// Its text as a person sees it; none while there is no such element.
    pub fn text(&self, css: &str) -> Result<Option<String>, LabError> {
        let script = "const e = document.querySelector(arguments[0]); return e === null ? null : e.innerText";
        let text = self.run(script, &json!([css]))?;
        Ok(text.as_str().map(str::to_owned))
    }

    /// Runs a script in the page.
    pub fn run(&self, script: &str, arguments: &Value) -> Result<Value, LabError> {
        self.command(
            "POST",
            "/execute/sync",
            &json!({"script": script, "args": arguments}),
        )
    }

    /// Waits until an element has a text that contains this.
    pub fn await_text(&self, css: &str, wanted: &str) -> Result<(), LabError> {
        wait_until(&format!("`{wanted}` in {css}"), LIMIT, || {
            Ok(match self.text(css) {
                Ok(Some(text)) if text.contains(wanted) => Ok(()),
                Ok(text) => Err(format!("{text:?} at {}", self.url().unwrap_or_default())),
                Err(error) => Err(error.to_string()),
            })
        })
    }

    /// Waits until the address contains this.
    pub fn await_url(&self, wanted: &str) -> Result<(), LabError> {
        wait_until(&format!("an address with {wanted}"), LIMIT, || {
            let url = self.url()?;
            Ok(if url.contains(wanted) {
                Ok(())
            } else {
                Err(format!("{url}: {}", self.text("body")?.unwrap_or_default()))
            })
        })
    }

    /// A command of the browser itself (Chrome `DevTools` Protocol).
    pub fn devtools(&self, name: &str, parameters: &Value) -> Result<(), LabError> {
        self.command(
            "POST",
            "/goog/cdp/execute",
            &json!({"cmd": name, "params": parameters}),
        )?;
        Ok(())
    }

    /// A picture of the window, as PNG in base64.
    pub fn picture(&self) -> Result<String, LabError> {
        let picture = self.command("GET", "/screenshot", &Value::Null)?;
        Ok(picture.as_str().unwrap_or_default().to_owned())
    }
}

impl Drop for Browser<'_> {
    fn drop(&mut self) {
        if !self.session.is_empty() {
            // Its processes go with the session.
            drop(self.command("DELETE", "", &Value::Null));
        }
        drop(self.driver.kill());
        drop(self.driver.wait());
    }
}
