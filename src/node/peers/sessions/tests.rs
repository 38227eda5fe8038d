//! Two nodes and a wire that loses, repeats and forges.

use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::window::WINDOW;
use super::*;

const A: SocketAddr = at(1);
const B: SocketAddr = at(2);

const fn at(last: u8) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, last)), 8119)
}

fn keys(first: u8) -> Keys {
    Keys::new([first; 32], None)
}

/// Two nodes that have each other's tokens.
struct Pair {
    a: Sessions,
    b: Sessions,
    now: Instant,
}

impl Pair {
    fn strange() -> Self {
        Self { a: Sessions::new(keys(1), A), b: Sessions::new(keys(1), B), now: Instant::now() }
    }

    fn new() -> Self {
        let mut pair = Self::strange();
        assert_eq!(pair.say(b"lost: it asks for the token"), None);
        assert_eq!(pair.say(b"hello"), Some(b"hello".to_vec()));
        pair
    }

    /// What the datagrams that A sends to B lead to, with all answers.
    fn exchange(&mut self, to_b: Vec<Vec<u8>>) -> Option<Vec<u8>> {
        let (mut to_b, mut to_a, mut message) = (to_b, Vec::new(), None);
        for _ in 0..8 {
            for datagram in std::mem::take(&mut to_b) {
                let Ok(opened) = self.b.open(A, &datagram, self.now) else { continue };
                to_a.extend(opened.replies);
                message = message.or(opened.message);
            }
            for datagram in std::mem::take(&mut to_a) {
                to_b.extend(self.a.open(B, &datagram, self.now).map(|opened| opened.replies).unwrap_or_default());
            }
        }
        assert!(to_a.is_empty() && to_b.is_empty(), "no end of it");
        message
    }

    /// A says it to B; the clock goes on by a round of gossip.
    fn say(&mut self, message: &[u8]) -> Option<Vec<u8>> {
        self.now += Duration::from_millis(200);
        let datagrams = self.a.seal(B, message, self.now);
        self.exchange(datagrams)
    }

    fn dropped(&self, why: Drop) -> u64 {
        self.b.dropped().find(|(reason, _)| *reason == why).unwrap().1
    }
}

#[test]
fn nodes_of_one_key_understand_each_other_and_none_of_another() {
    let mut pair = Pair::new();
    assert_eq!(pair.b.heard(A), Some(pair.now));
    assert_eq!(pair.say(b""), Some(Vec::new()));
    let mut other = Pair::strange();
    other.a.change_keys(keys(2));
    for _ in 0..5 {
        assert_eq!(other.say(b"hello"), None);
    }
    assert_eq!((other.dropped(Drop::BadKey), other.b.heard(A)), (5, None));
    assert_eq!(other.b.strangers(other.now).collect::<Vec<_>>(), [A.ip()]);
    assert_eq!(other.b.strangers(other.now + STRANGER).count(), 0);
}

#[test]
fn keys_are_changed_on_one_node_after_the_other() {
    let mut pair = Pair::new();
    let (old, new) = ([1; 32], [2; 32]);
    for (at_a, at_b) in [
        (Keys::new(old, Some(new)), Keys::new(old, None)),
        (Keys::new(old, Some(new)), Keys::new(old, Some(new))),
        (Keys::new(new, Some(old)), Keys::new(old, Some(new))),
        (Keys::new(new, Some(old)), Keys::new(new, Some(old))),
        (Keys::new(new, None), Keys::new(new, Some(old))),
        (Keys::new(new, None), Keys::new(new, None)),
    ] {
        pair.a.change_keys(at_a);
        pair.b.change_keys(at_b);
        assert_eq!(pair.say(b"still here").as_deref(), Some(&b"still here"[..]));
    }
    assert_eq!(pair.dropped(Drop::BadKey), 0);
}

#[test]
fn a_datagram_counts_once_and_from_where_it_was_sent() {
    let mut pair = Pair::new();
    let sent = pair.a.seal(B, b"once", pair.now);
    assert!(pair.b.open(at(3), &sent[0], pair.now) == Err(Drop::BadKey));
    assert!(pair.b.open(SocketAddr::new(A.ip(), 9), &sent[0], pair.now) == Err(Drop::BadKey));
    assert_eq!(pair.exchange(sent.clone()).as_deref(), Some(&b"once"[..]));
    assert_eq!(pair.exchange(sent.clone()), None);
    assert_eq!(pair.dropped(Drop::Replay), 1);
    // Reflected to its sender, or to a third node.
    assert_eq!(pair.a.open(A, &sent[0], pair.now), Err(Drop::BadKey));
    let mut third = Sessions::new(keys(1), at(3));
    assert_eq!(third.open(A, &sent[0], pair.now), Err(Drop::BadKey));
}

#[test]
fn a_note_is_no_message_and_counts_once() {
    let mut pair = Pair::new();
    let sent = pair.a.seal_note(B, b"lease? 1 shop/web", pair.now).unwrap();
    let opened = pair.b.open(A, &sent, pair.now).unwrap();
    assert_eq!((opened.note.as_deref(), opened.message), (Some(&b"lease? 1 shop/web"[..]), None));
    assert_eq!(pair.b.open(A, &sent, pair.now), Err(Drop::Replay));
    assert_eq!(pair.a.seal_note(B, &[0; PART + 1], pair.now), None);
    // Whoever starts again doesn't take it.
    let sent = pair.a.seal_note(B, b"old", pair.now).unwrap();
    pair.b = Sessions::new(keys(1), B);
    assert!(pair.b.open(A, &sent, pair.now).unwrap().note.is_none());
    assert!(matches!(
        Head::read(&Sessions::new(keys(1), A).seal_note(B, b"first", pair.now).unwrap()),
        Some(Head { kind: Kind::Ask, .. })
    ));
}

#[test]
fn what_was_captured_before_a_restart_is_worth_nothing() {
    let mut pair = Pair::new();
    let captured = pair.a.seal(B, b"old", pair.now);
    // B starts again: it knows nobody, and A finds out by what it sends.
    pair.b = Sessions::new(keys(1), B);
    assert_eq!(pair.exchange(captured.clone()), None);
    assert_eq!(pair.say(b"new").as_deref(), Some(&b"new"[..]), "without being told twice");
    assert_eq!(pair.exchange(captured), None);
    // A starts again, and what its process before sent no longer counts.
    let before = pair.a.seal(B, b"before", pair.now);
    pair.a = Sessions::new(keys(1), A);
    assert_eq!(pair.say(b"lost: it asks for the token"), None);
    assert_eq!(pair.say(b"again").as_deref(), Some(&b"again"[..]));
    assert_eq!(pair.exchange(before), None);
    assert_eq!(pair.dropped(Drop::Stale), 3);
    assert_eq!(pair.say(b"and on").as_deref(), Some(&b"and on"[..]));
}

#[test]
fn questions_and_answers_that_are_repeated_change_nothing() {
    let mut pair = Pair::strange();
    let question = pair.a.seal(B, b"", pair.now).remove(0);
    let answers = pair.b.open(A, &question, pair.now).unwrap().replies;
    assert_eq!(pair.exchange(vec![question.clone()]), None);
    assert_eq!(pair.say(b"one").as_deref(), Some(&b"one"[..]));
    for _ in 0..3 {
        pair.now += Duration::from_millis(100);
        assert_eq!(pair.exchange(vec![question.clone()]), None);
        let repeated = pair.a.open(B, &answers[0], pair.now);
        assert!(repeated.is_err(), "{repeated:?}");
        assert_eq!(pair.say(b"on").as_deref(), Some(&b"on"[..]));
    }
}

#[test]
fn a_large_message_comes_in_parts_and_one_part_lost_loses_it() {
    let mut pair = Pair::new();
    let large: Vec<u8> = (0..65_507_u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
    let mut parts = pair.a.seal(B, &large, pair.now);
    assert!(parts.len() > 50 && parts.iter().all(|part| part.len() <= 1232), "{}", parts.len());
    parts.reverse();
    assert_eq!(pair.exchange(parts).as_ref(), Some(&large), "in any order");
    let mut parts = pair.a.seal(B, &large, pair.now);
    parts.remove(7);
    assert_eq!(pair.exchange(parts), None);
    assert_eq!(pair.say(&large), Some(large.clone()));
    assert_eq!(pair.a.seal(B, &vec![0; PART * MAX_PARTS + 1], pair.now), Vec::<Vec<u8>>::new());
}

#[test]
fn what_is_remembered_is_bounded() {
    let mut pair = Pair::new();
    for n in 0..5_000_u32 {
        let from = SocketAddr::new(Ipv4Addr::from(0x0a00_0000 + n).into(), 8119);
        let mut member = Sessions::new(keys(1), from);
        let question = member.seal(B, b"", pair.now).remove(0);
        pair.now += Duration::from_millis(1);
        assert!(pair.b.open(from, &question, pair.now).is_ok(), "{n}");
        let mut stranger = Sessions::new(keys(2), from);
        let question = stranger.seal(B, b"", pair.now).remove(0);
        pair.now += Duration::from_millis(1);
        assert_eq!(pair.b.open(from, &question, pair.now), Err(Drop::BadKey));
    }
    assert!(pair.b.known.len() <= MAX_SESSIONS && pair.b.strangers.len() <= MAX_STRANGERS);
    pair.say(b"lost where A had to make room");
    assert_eq!(pair.say(b"still").as_deref(), Some(&b"still"[..]));
}

proptest! {
    #[test]
    fn nothing_but_what_was_sent_is_heard(at in 0usize..200, bit in 0u8..8, cut in 0usize..200, noise: Vec<u8>) {
        let mut pair = Pair::new();
        let sent = pair.a.seal(B, b"a message of some length, so that bits can be turned in it", pair.now).remove(0);
        let mut changed = sent.clone();
        let place = at % changed.len();
        changed[place] ^= 1 << bit;
        prop_assert!(pair.b.open(A, &changed, pair.now).is_err());
        prop_assert!(pair.b.open(A, &sent[..cut % sent.len()], pair.now).is_err());
        prop_assert!(pair.b.open(A, &noise, pair.now).is_err());
        prop_assert!(pair.b.open(A, &[&sent[..], &noise[..noise.len().min(1)], &[0]].concat(), pair.now).is_err());
        prop_assert!(pair.exchange(vec![sent]).is_some());
    }

    #[test]
    fn each_counter_is_taken_once(counters in proptest::collection::vec(1u64..4000, 1..400)) {
        let (mut window, mut taken) = (Window::default(), std::collections::BTreeSet::new());
        for counter in counters {
            let fine = window.take(counter);
            let highest = taken.last().copied().unwrap_or(0);
            prop_assert_eq!(fine, !taken.contains(&counter) && counter + WINDOW > highest, "{}", counter);
            if fine {
                taken.insert(counter);
            }
        }
    }
}

/// What a tag is over differs from what any pair of the other family's has.
#[test]
fn nodes_speak_by_ipv6_as_by_ipv4() {
    let [a, b] = [1, 2].map(|last| SocketAddr::new(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last).into(), 8119));
    let now = Instant::now();
    let (mut here, mut there) = (Sessions::new(keys(1), a), Sessions::new(keys(1), b));
    let question = here.seal(b, b"hello", now).remove(0);
    assert!(Sessions::new(keys(1), at(2)).open(a, &question, now) == Err(Drop::BadKey), "for another address");
    for reply in there.open(a, &question, now).unwrap().replies {
        let _ = here.open(b, &reply, now);
    }
    let sent = here.seal(b, b"hello", now).remove(0);
    assert_eq!(there.open(a, &sent, now).unwrap().message, Some(b"hello".to_vec()));
    assert_eq!(there.heard(a), Some(now));
}
