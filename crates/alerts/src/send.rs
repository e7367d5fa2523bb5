//! One alert to one channel, over HTTP.

use std::time::Duration;

use serde::Deserialize;
use settings::{Channel, ChannelKind, Settings, read_secret};

use crate::spool::{self, QueueEntry};

/// The longest text of a message, in UTF-16 units (core.telegram.org/bots/api, sendMessage; Bale's is the same).
const LONGEST: usize = 4096;
/// In the place of what a channel does not take.
const CUT: &str = "… (cut: the channel takes no more; the logs of this node have all of it)";
/// More than an answer needs.
const ANSWER: u64 = 64 * 1024;

/// What came of it.
pub(crate) enum Outcome {
    Delivered,
    /// The channel answered that it does not take this.
    Refused(String),
    /// Try again, not before this time when the server names one.
    Later(String, Option<Duration>),
}

pub(crate) fn send(settings: &Settings, channel: &Channel, entry: &QueueEntry) -> Outcome {
    let (url, body) = match request(channel, entry) {
        Ok(request) => request,
        Err(why) => return Outcome::Later(why, None),
    };
    let proxy = match channel.proxy.as_deref().map(ureq::Proxy::new).transpose() {
        Ok(proxy) => proxy,
        Err(error) => return Outcome::Later(format!("proxy: {error}"), None),
    };
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_connect(Some(settings.alerts.connect_timeout))
        .timeout_global(Some(settings.alerts.total_timeout))
        .http_status_as_error(false)
        .max_redirects(0)
        .proxy(proxy)
        .build()
        .into();
    match agent.post(&url).send_json(body) {
        Ok(response) => judge(response),
        // The error's text may hold the URL, and the URL the token.
        Err(error) => Outcome::Later(error.to_string().replace(&url, "«url»"), None),
    }
}

fn request(channel: &Channel, entry: &QueueEntry) -> Result<(String, serde_json::Value), String> {
    let text = spool::text(entry);
    let bot = |base: &str, token: &std::path::Path, chat: &str, text: String| {
        let token = read_secret(token, None).map_err(|error| error.to_string())?;
        let url = format!("{base}/bot{}/sendMessage", token.reveal());
        Ok((url, serde_json::json!({"chat_id": chat, "text": text})))
    };
    match &channel.kind {
        ChannelKind::Telegram {
            base_url,
            token_file,
            chat_id,
        } => bot(base_url, token_file, chat_id, fitted(&text, str::to_owned)),
        ChannelKind::Bale {
            base_url,
            token_file,
            chat_id,
        } => bot(
            base_url,
            token_file,
            chat_id,
            fitted(&text, escape_markdown),
        ),
        ChannelKind::Webhook { url } => {
            let url = url.read().map_err(|error| error.to_string())?;
            let body = serde_json::json!({
                "text": text, "node": entry.node, "time": entry.at.to_string(),
                "event": entry.alert.event, "severity": entry.alert.severity, "count": entry.count,
            });
            Ok((url.reveal().to_owned(), body))
        }
    }
}

/// The text as it is sent, as far as a message takes it.
fn fitted(text: &str, escape: impl Fn(&str) -> String) -> String {
    let units = |text: &str| text.encode_utf16().count();
    let whole = escape(text);
    if units(&whole) <= LONGEST {
        return whole;
    }
    let cut = escape(CUT);
    let mut left = LONGEST.saturating_sub(units(&cut));
    let mut fitted = String::new();
    for c in text.chars() {
        let piece = escape(c.encode_utf8(&mut [0; 4]));
        match left.checked_sub(units(&piece)) {
            Some(rest) => left = rest,
            None => break,
        }
        fitted.push_str(&piece);
    }
    fitted + &cut
}

/// What the Bot API says in the body of an answer.
#[derive(Deserialize, Default)]
struct Said {
    description: Option<String>,
    #[serde(default)]
    parameters: Parameters,
}

#[derive(Deserialize, Default)]
struct Parameters {
    /// Seconds.
    retry_after: Option<u64>,
}

fn judge(mut response: ureq::http::Response<ureq::Body>) -> Outcome {
    let status = response.status().as_u16();
    if (200..300).contains(&status) {
        return Outcome::Delivered;
    }
    let header = response
        .headers()
        .get("retry-after")
        .and_then(|value| value.to_str().ok()?.trim().parse().ok());
    let body = response.body_mut().with_config().limit(ANSWER);
    // Only for the reason: an answer that is no JSON gives none.
    let said: Said = body.read_json().unwrap_or_default();
    let why = match said.description {
        Some(description) => format!("HTTP status {status}: {description}"),
        None => format!("HTTP status {status}"),
    };
    match status {
        408 | 429 => {
            let seconds = header.or(said.parameters.retry_after);
            Outcome::Later(why, seconds.map(Duration::from_secs))
        }
        300..=499 => Outcome::Refused(why),
        _ => Outcome::Later(why, None),
    }
}

/// Bale renders the text as Markdown.
fn escape_markdown(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '*' | '_' | '`' | '[' | ']' | '(' | ')' | '~' | '\\') {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_to_what_a_message_takes_in_units_of_utf_16() {
        let longest = "a".repeat(LONGEST);
        assert_eq!(fitted(&longest, str::to_owned), longest);
        // Two units each.
        let faces = "\u{1F600}".repeat(LONGEST);
        for (text, escape) in [
            (format!("{longest}b"), str::to_owned as fn(&str) -> String),
            (faces.clone(), str::to_owned),
            (faces, escape_markdown),
            ("_".repeat(LONGEST), escape_markdown),
        ] {
            let sent = fitted(&text, escape);
            let units = sent.encode_utf16().count();
            assert!((LONGEST - 1..=LONGEST).contains(&units), "{units}");
            assert!(sent.ends_with(&escape(CUT)), "{sent}");
        }
    }
}
