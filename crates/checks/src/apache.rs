//! check-apache: does the web server answer a real request?

use std::io::Read;
use std::time::Instant;

use settings::{Settings, Web};
use ureq::Agent;

use crate::cli::{Common, EXIT_HELP};
use crate::repair::{Condition, WhenHung};
use crate::run::{Check, Finding, Names, Scene};
use crate::verdict::{Timing, Verdict};
use crate::{audited, cli};

/// Most bytes of a body that are searched for the expected text.
const BODY_CAP: u64 = 1024 * 1024;

const EXAMPLES: &str = "\
Examples:
  check-apache                      as Keepalived calls it: exit 0 or 1
  check-apache --verbose            the same, and the reason in words
  check-apache --output nagios      one line and exit 0 to 3 for a monitoring agent

A failure is forgiven (exit 0, an alert) while every peer is known to be unfit: the VIP would have
nowhere to go. When it fails, the unit is restarted within the limits of [checks] in the settings.
";

/// Check the web server of this node with one HTTP request.
#[derive(Debug, clap::Parser)]
#[command(name = "check-apache", version, after_help = format!("{EXAMPLES}\n{EXIT_HELP}"))]
pub(crate) struct CheckApache {
    #[command(flatten)]
    common: Common,
}

impl Check for CheckApache {
    fn common(&self) -> &cli::Common {
        &self.common
    }

    fn names(&self) -> Names {
        Names {
            program: "check-apache",
            log: "check_apache2.log",
            state: "check_apache2",
            service: "web server",
        }
    }

    fn asks_database(&self) -> bool {
        false
    }

    fn unit<'a>(&self, settings: &'a Settings) -> Option<&'a str> {
        Some(&settings.web.unit)
    }

    fn look(&self, scene: &Scene<'_>) -> Finding {
        let web = &scene.settings.web;
        scene.watchdog.doing(format!("asking {}", web.url));
        let start = Instant::now();
        let answer = request(scene);
        let timing = Timing::new("request", start.elapsed(), scene.settings.checks.deadline);
        let broken = match judge(web, &answer) {
            Ok(reason) => return Finding::healthy(Verdict::ok(reason).with_time(timing)),
            Err(broken) => broken,
        };
        let unit = scene.ask_unit(&web.unit);
        let broken = format!("{broken}; {unit}");
        let nowhere_to_go = audited::every_peer_unfit(scene.settings, &scene.now);
        let mut finding = Finding {
            condition: Some(Condition::of(unit.state, unit.alive, WhenHung::Restart)),
            ..verdict_on_failure(&broken, nowhere_to_go.as_deref())
        };
        finding.verdict = finding.verdict.with_time(timing);
        finding
    }
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// A response.
    Response {
        /// Its status.
        status: u16,
        /// Whether the body holds the expected text; the reason when it could not be read.
        /// True when no text is expected.
        text: Result<bool, String>,
    },
    /// None, and why.
    None(String),
}

/// Whether the answer is a healthy server's; the reason in either case.
pub(crate) fn judge(web: &Web, answer: &Answer) -> Result<String, String> {
    let Web {
        url,
        expected_status,
        ..
    } = web;
    match answer {
        Answer::None(why) => Err(format!("{url}: {why}")),
        Answer::Response { status, .. } if status != expected_status => Err(format!(
            "{url} answered {status}, expected {expected_status}"
        )),
        Answer::Response { text: Err(why), .. } => Err(format!("{url}: the body broke off: {why}")),
        Answer::Response {
            text: Ok(false), ..
        } => Err(format!(
            "{url} answered {expected_status} without the text `{}`",
            web.expected_text.as_deref().unwrap_or_default()
        )),
        Answer::Response { text: Ok(true), .. } => Ok(format!("{url} answered {expected_status}")),
    }
}

/// A failure drops the VIP only when it has somewhere to go.
fn verdict_on_failure(broken: &str, nowhere_to_go: Option<&str>) -> Finding {
    match nowhere_to_go {
        None => Finding::failed(Verdict::failed(broken)),
        Some(why) => Finding {
            alert: Some(format!(
                "kept: the peer is unfit ({why}), and here {broken}"
            )),
            ..Finding::failed(Verdict::degraded(format!(
                "kept: the peer is unfit ({why}); {broken}"
            )))
        },
    }
}

fn request(scene: &Scene<'_>) -> Answer {
    let web = &scene.settings.web;
    let agent: Agent = Agent::config_builder()
        // The rest is for asking systemd: what hangs is to be restarted.
        .timeout_global(Some(scene.question_limit()))
        // A redirect is an answer, to be judged by its status; nothing elsewhere is asked.
        .max_redirects(0)
        .max_redirects_will_error(false)
        .http_status_as_error(false)
        // Keepalived's environment must not send the question elsewhere.
        .proxy(None)
        .user_agent("keepalived-companion/check-apache")
        .build()
        .into();
    let mut response = match agent.get(&web.url).header("Connection", "close").call() {
        Ok(response) => response,
        Err(error) => return Answer::None(error.to_string()),
    };
    let text = match &web.expected_text {
        None => Ok(true),
        Some(expected) => {
            let mut body = Vec::new();
            response
                .body_mut()
                .as_reader()
                .take(BODY_CAP)
                .read_to_end(&mut body)
                .map(|_| contains(&body, expected.as_bytes()))
                .map_err(|error| error.to_string())
        }
    };
    Answer::Response {
        status: response.status().as_u16(),
        text,
    }
}

fn contains(body: &[u8], text: &[u8]) -> bool {
    text.is_empty() || body.windows(text.len()).any(|window| window == text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::Level;

    fn web(text: Option<&str>) -> Web {
        Web {
            unit: "apache2.service".to_owned(),
            url: "http://127.0.0.1/".to_owned(),
            expected_status: 200,
            expected_text: text.map(str::to_owned),
        }
    }

    fn response(status: u16, text: Result<bool, String>) -> Answer {
        Answer::Response { status, text }
    }

    #[test]
    fn answers_are_judged() {
        for (answer, healthy, word) in [
            (response(200, Ok(true)), true, "answered 200"),
            (response(200, Ok(false)), false, "without the text `hello`"),
            (
                response(200, Err("reset".to_owned())),
                false,
                "broke off: reset",
            ),
            (response(500, Ok(true)), false, "answered 500, expected 200"),
            (response(301, Ok(true)), false, "answered 301"),
            (Answer::None("refused".to_owned()), false, "refused"),
        ] {
            let judged = judge(&web(Some("hello")), &answer);
            assert_eq!(judged.is_ok(), healthy, "{answer:?}");
            let (Ok(reason) | Err(reason)) = judged;
            assert!(reason.contains(word), "{reason}");
        }
    }

    #[test]
    fn a_failure_needs_somewhere_to_go() {
        let dropped = verdict_on_failure("broken", None);
        assert_eq!(
            (dropped.verdict.level, dropped.alert),
            (Level::Failed, None)
        );
        let kept = verdict_on_failure("broken", Some("node2: stale"));
        assert_eq!(kept.verdict.level, Level::Degraded);
        assert!(
            kept.alert
                .unwrap()
                .starts_with("kept: the peer is unfit (node2: stale)")
        );
    }

    #[test]
    fn text_is_found() {
        assert!(contains(b"say hello", b"hello"));
        assert!(contains(b"x", b""));
        assert!(!contains(b"hell", b"hello"));
    }
}
