//! Showing something again and again (`status --watch`).

use std::io::{self, IsTerminal, Stdout, Write};
use std::thread;
use std::time::Duration;

/// How often.
const PACE: Duration = Duration::from_secs(1);

/// Shows what `frame` gives, each second, until the reader closes the output or it fails. A terminal is drawn over in place, and
/// nothing of it is changed that would have to be put back; anything else gets one text after the other.
pub fn watch(stdout: &Stdout, mut frame: impl FnMut() -> Result<String, String>) -> Result<(), String> {
    let mut cleared = false;
    loop {
        let text = frame()?;
        let shown = if stdout.is_terminal() { draw(stdout, &text, &mut cleared) } else { write_line(stdout, &text) };
        if shown.is_err() {
            return Ok(()); // the reader has closed the output
        }
        thread::sleep(PACE);
    }
}

/// Overwrites each line, then clears what is below: without a blank screen in between, which would flicker.
fn draw(mut stdout: &Stdout, text: &str, cleared: &mut bool) -> io::Result<()> {
    const HOME: &str = "\x1b[H";
    const REST_OF_LINE: &str = "\x1b[K";
    const REST_OF_SCREEN: &str = "\x1b[J";
    let mut frame = String::from(HOME);
    if !std::mem::replace(cleared, true) {
        frame.push_str(REST_OF_SCREEN);
    }
    for line in text.lines() {
        frame.push_str(line);
        frame.push_str(REST_OF_LINE);
        frame.push('\n');
    }
    frame.push_str(REST_OF_SCREEN);
    stdout.write_all(frame.as_bytes())?;
    stdout.flush()
}

fn write_line(mut stdout: &Stdout, text: &str) -> io::Result<()> {
    writeln!(stdout, "{text}")?;
    stdout.flush()
}
