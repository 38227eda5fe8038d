//! Which counters were there, and which parts of a message.

use super::wire::Head;

/// Datagrams may overtake so many others.
pub const WINDOW: u64 = 1024;

/// Which of the last counters were there.
#[derive(Debug)]
pub struct Window {
    highest: u64,
    seen: [u64; (WINDOW / 64) as usize],
}

impl Default for Window {
    fn default() -> Self {
        Self { highest: 0, seen: [0; (WINDOW / 64) as usize] }
    }
}

impl Window {
    /// Whether a counter is new; it isn't from now on. Those before the window aren't known any more, and count as seen.
    pub fn take(&mut self, counter: u64) -> bool {
        if counter == 0 || counter.saturating_add(WINDOW) <= self.highest {
            return false;
        }
        if counter > self.highest {
            let passed = (counter - self.highest).min(WINDOW);
            (0..passed).for_each(|back| self.clear(counter - back));
            self.highest = counter;
        }
        let (word, bit) = place(counter);
        let new = self.seen[word] & bit == 0;
        self.seen[word] |= bit;
        new
    }

    fn clear(&mut self, counter: u64) {
        let (word, bit) = place(counter);
        self.seen[word] &= !bit;
    }
}

/// Where a counter's bit is.
#[allow(clippy::cast_possible_truncation)] // below the window's size
fn place(counter: u64) -> (usize, u64) {
    let at = counter % WINDOW;
    ((at / 64) as usize, 1 << (at % 64))
}

/// A message of which not all parts are there.
#[derive(Debug, Default)]
pub struct Message {
    /// The counter of its first part.
    first: u64,
    parts: Vec<Option<Vec<u8>>>,
}

impl Message {
    /// The whole message with its last part. A later message takes the place of one that lacks parts.
    pub fn take(&mut self, head: &Head, body: &[u8]) -> Option<Vec<u8>> {
        if head.parts == 1 {
            return Some(body.to_vec());
        }
        let first = head.counter.saturating_sub(u64::from(head.part));
        if first > self.first || self.parts.len() != usize::from(head.parts) {
            (self.first, self.parts) = (first, vec![None; usize::from(head.parts)]);
        }
        let part = self.parts.get_mut(usize::from(head.part)).filter(|_| first == self.first)?;
        *part = Some(body.to_vec());
        if self.parts.iter().any(Option::is_none) {
            return None;
        }
        Some(std::mem::take(&mut self.parts).into_iter().flatten().flatten().collect())
    }
}
