//! `viproutectl events`: what has happened on this node lately, and what happens.

use std::io::{self, Write};
use std::path::Path;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::api::client;
use crate::api::protocol::EventEntry;
use crate::ctl::ANSWER;
use crate::model::VipKey;

/// Between two questions for what is new.
const AGAIN: Duration = Duration::from_millis(500);

/// Why events can't be shown.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// viprouted can't be asked.
    #[error(transparent)]
    Allocator(#[from] client::Error),
    /// The reader has closed the output.
    #[error("print events")]
    Print(#[from] io::Error),
}

/// Which events, and how.
#[derive(Clone, Debug)]
pub struct Question {
    /// Those of one VIP only.
    pub vip: Option<VipKey>,
    /// Go on with what happens.
    pub follow: bool,
    /// A JSON object a line, in place of text.
    pub json: bool,
}

/// An event as JSON has it.
#[derive(Debug, Serialize)]
struct Line<'a> {
    time: String,
    kind: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    vip: Option<&'a str>,
    text: &'a str,
}

/// Prints them; where it follows, until the reader closes the output.
pub fn print(allocator: &Path, question: &Question, out: &mut impl Write) -> Result<(), Error> {
    let mut last = 0;
    let mut reached = false;
    loop {
        match client::events(allocator, last, ANSWER) {
            Ok(found) => {
                reached = true;
                last = found.events.last().map_or(last, |event| event.number);
                for event in found.events.iter().filter(|event| is_wanted(event, question)) {
                    writeln!(out, "{}", if question.json { json(event)? } else { text(event) })?;
                }
                out.flush()?;
            }
            // `--follow` continues over a restart.
            Err(client::Error::Unreachable { .. } | client::Error::TimedOut { .. }) if question.follow && reached => {}
            Err(error) => return Err(error.into()),
        }
        if !question.follow {
            return Ok(());
        }
        thread::sleep(AGAIN);
    }
}

fn is_wanted(event: &EventEntry, question: &Question) -> bool {
    question.vip.as_ref().is_none_or(|vip| event.vip.as_deref() == Some(vip.to_string().as_str()))
}

fn text(event: &EventEntry) -> String {
    let vip = event.vip.as_deref().map(|vip| format!("{vip}: ")).unwrap_or_default();
    format!("{} {:<7} {vip}{}", time(event.at), event.kind, event.text)
}

fn json(event: &EventEntry) -> io::Result<String> {
    let EventEntry { at, kind, vip, text, .. } = event;
    Ok(serde_json::to_string(&Line { time: time(*at), kind, vip: vip.as_deref(), text })?)
}

/// RFC 3339, UTC.
fn time(millis: u64) -> String {
    // A later one than a clock can show is viprouted's mistake, not worth an error.
    let at = UNIX_EPOCH.checked_add(Duration::from_millis(millis)).unwrap_or_else(SystemTime::now);
    humantime::format_rfc3339_millis(at).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_a_line() {
        let event = EventEntry {
            number: 1,
            at: 1_790_000_000_123,
            kind: "lease".into(),
            vip: Some("shop/web".into()),
            text: "10.118.0.7 is granted".into(),
        };
        assert_eq!(text(&event), "2026-09-21T14:13:20.123Z lease   shop/web: 10.118.0.7 is granted");
        let line =
            r#"{"time":"2026-09-21T14:13:20.123Z","kind":"lease","vip":"shop/web","text":"10.118.0.7 is granted"}"#;
        assert_eq!(json(&event).unwrap(), line);
        let about_none = EventEntry { vip: None, ..event };
        assert_eq!(text(&about_none), "2026-09-21T14:13:20.123Z lease   10.118.0.7 is granted");
        let question = |vip: &str| Question { vip: vip.parse().ok(), follow: false, json: false };
        assert!(is_wanted(&about_none, &question("")) && !is_wanted(&about_none, &question("shop/web")));
    }
}
