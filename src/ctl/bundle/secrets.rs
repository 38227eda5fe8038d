//! Blanks secrets in what a bug report takes along: as far as they can be known by the name of their key, or by their form.

use std::collections::BTreeSet;

use serde_json::Value;

/// Stands where a secret was.
const BLANK: &str = "(blanked)";

/// What is in the name of a key whose value is a secret; punctuation and capitals don't count.
const WORDS: [&str; 9] =
    ["token", "secret", "password", "passwd", "passphrase", "credential", "authorization", "bearer", "psk"];

/// Shorter ones are in too many other words.
const SHORTEST: usize = 4;

/// Whether a key's, or a file's, value is a secret: `k8sAuthToken`, `api_key`, `cluster-secret`.
pub fn is_secret(key: &str) -> bool {
    let plain: String = key.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect();
    WORDS.iter().any(|word| plain.contains(word)) || plain.ends_with("key") || plain.ends_with("keys")
}

/// The secrets of this machine's configurations.
#[derive(Default)]
pub struct Secrets {
    values: BTreeSet<String>,
}

impl Secrets {
    /// Remembers what is under a secret's key in a JSON or TOML document: such a value is blanked wherever it is.
    pub fn learn(&mut self, text: &str) {
        let json = serde_json::from_str(text).ok();
        let toml = || text.parse::<toml::Table>().ok().and_then(|table| serde_json::to_value(table).ok());
        if let Some(document) = json.or_else(toml) {
            self.walk(&document, false);
        }
    }

    fn walk(&mut self, value: &Value, below_a_secret: bool) {
        match value {
            Value::Object(map) => {
                map.iter().for_each(|(key, value)| self.walk(value, below_a_secret || is_secret(key)));
            }
            Value::Array(list) => list.iter().for_each(|value| self.walk(value, below_a_secret)),
            Value::String(text) if below_a_secret && text.len() >= SHORTEST => {
                self.values.insert(text.clone());
                // As another document quotes it.
                let quoted = Value::from(text.as_str()).to_string();
                self.values.insert(quoted[1..quoted.len() - 1].to_owned());
            }
            _ => {}
        }
    }

    /// The text without them.
    pub fn blank(&self, text: &str) -> String {
        let mut text = text.to_owned();
        // One may be the beginning of another.
        let mut values: Vec<_> = self.values.iter().collect();
        values.sort_by_key(|value| std::cmp::Reverse(value.len()));
        for value in values {
            text = text.replace(value.as_str(), BLANK);
        }
        let lines = without_private_keys(&text).lines().map(|line| line_blanked(line) + "\n").collect::<String>();
        without_passwords(&lines)
    }
}

/// PEM (RFC 7468): from its first to its last line, on lines of its own or within one.
fn without_private_keys(text: &str) -> String {
    const BEGIN: &str = "PRIVATE KEY-----";
    const END: &str = "-----END ";
    let mut blanked = String::new();
    let mut rest = text;
    while let Some(begin) = rest.find(BEGIN) {
        let (before, key) = rest.split_at(begin + BEGIN.len());
        blanked.push_str(before);
        blanked.push_str(BLANK);
        rest = key.find(END).map_or("", |end| &key[end + END.len()..]);
        // That line has the words again.
        rest = rest.find(BEGIN).map_or("", |end| &rest[end + BEGIN.len()..]);
    }
    blanked + rest
}

/// `user:password@` of an address.
fn without_passwords(text: &str) -> String {
    let mut blanked = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, address) = rest.split_at(at + 3);
        blanked.push_str(before);
        let end = address.find(|c: char| c.is_whitespace() || "/\"'<>".contains(c)).unwrap_or(address.len());
        rest = match address[..end].rfind('@') {
            Some(sign) => {
                blanked.push_str(BLANK);
                &address[sign..]
            }
            None => address,
        };
    }
    blanked + rest
}

/// The value behind each key of a secret: `token = "…"`, `"token":"…"`, `\"token\":\"…\"`, `?token=…&`, `Authorization: …`.
fn line_blanked(line: &str) -> String {
    let mut blanked = String::new();
    let mut rest = line;
    let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    while let Some(begin) = rest.find(is_word) {
        blanked.push_str(&rest[..begin]);
        let end = rest[begin..].find(|c| !is_word(c)).map_or(rest.len(), |length| begin + length);
        let word = &rest[begin..end];
        blanked.push_str(word);
        rest = &rest[end..];
        // Three base64 parts of a JSON web token, the first of which is `{"`.
        if word.starts_with("eyJ") && word.matches('.').count() == 2 {
            blanked.truncate(blanked.len() - word.len());
            blanked.push_str(BLANK);
        } else if is_secret(word)
            && let Some((before, after)) = around_value(rest)
        {
            blanked.push_str(before);
            blanked.push_str(BLANK);
            rest = after;
        }
    }
    blanked + rest
}

/// What is before a key's value, behind the key, and what is behind the value. None: no value follows.
fn around_value(rest: &str) -> Option<(&str, &str)> {
    let is_quote = |c: char| matches!(c, '\\' | '"' | '\'');
    let unquoted = rest.trim_start_matches(is_quote).trim_start();
    let behind_sign = unquoted.strip_prefix([':', '='])?;
    let value = behind_sign.trim_start();
    let quotes = &value[..value.len() - value.trim_start_matches(is_quote).len()];
    let text = &value[quotes.len()..];
    if text.is_empty() {
        return None;
    }
    let end = if quotes.is_empty() {
        // Behind a blank the value is all of the line, such as a header's.
        let all = value.len() < behind_sign.len();
        let is_end = |c: char| c.is_whitespace() || "&,;)]}\"'".contains(c);
        if all { text.len() } else { text.find(is_end).unwrap_or(text.len()) }
    } else {
        closing(text, quotes)
    };
    let begin = rest.len() - text.len();
    Some((&rest[..begin], &rest[begin + end..]))
}

/// Where a quoted text ends: at the quotes it began with, that are not escaped by one backslash more.
fn closing(text: &str, quotes: &str) -> usize {
    let ends = text.match_indices(quotes).map(|(at, _)| at);
    ends.into_iter().find(|at| !text[..*at].ends_with('\\')).unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_secrets_value_is_blanked_whatever_the_form() {
        let cases = [
            (r#"{"token":"s3cret","mtu":1450}"#, r#"{"token":"(blanked)","mtu":1450}"#),
            (r#"  "apiKey" : "a \" b", "x": 1"#, r#"  "apiKey" : "(blanked)", "x": 1"#),
            (r#"line {\"etcd_password\":\"a\",\"x\":1}"#, r#"line {\"etcd_password\":\"(blanked)\",\"x\":1}"#),
            ("cluster_secret = 's' # why", "cluster_secret = '(blanked)' # why"),
            ("http:80/live?token=abc&x=1 fall=2", "http:80/live?token=(blanked)&x=1 fall=2"),
            ("Authorization: Bearer abc def", "Authorization: (blanked)"),
            ("to https://user:pw@host/x and http://host/@", "to https://(blanked)@host/x and http://host/@"),
            ("key eyJhbGciOi.eyJzdWIi.c2ln!", "key (blanked)!"),
            ("tokens are 3, the key fits; password", "tokens are 3, the key fits; password"),
            ("token = \"\"", "token = \"\""),
        ];
        for (text, expected) in cases {
            assert_eq!(Secrets::default().blank(text), format!("{expected}\n"));
        }
    }

    #[test]
    fn a_private_key_is_blanked() {
        let begin = "-----BEGIN EC PRIVATE KEY-----";
        let text = format!("a\n{begin}\nMHcCAQ\nabc=\n-----END EC PRIVATE KEY-----\nb {begin}\\nx");
        let blanked = Secrets::default().blank(&text);
        assert_eq!(blanked, format!("a\n{begin}(blanked)\nb {begin}(blanked)\n"));
    }

    /// A log may quote a value without its key.
    #[test]
    fn what_a_configuration_says_is_secret_is_blanked_everywhere() {
        let mut secrets = Secrets::default();
        secrets.learn(
            r#"{"plugins":[{"datastore":{"credentials":{"user":"a\"dmin","list":["hunter22"]}},"name":"visible"}]}"#,
        );
        secrets.learn("secret = '''\nline one\nline two'''\n");
        secrets.learn("neither JSON nor TOML");
        let blanked = secrets.blank("said hunter22, a\"dmin and a\\\"dmin; visible; line one\nline two");
        assert_eq!(blanked, "said (blanked), (blanked) and (blanked); visible; (blanked)\n");
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(token|key|:|=|\"|'|\\\\|://|@|-----END |PRIVATE KEY-----|é|[ -~\n])*") {
            let mut secrets = Secrets::default();
            secrets.learn(&text);
            let _ = secrets.blank(&text);
        }

        #[test]
        fn a_planted_value_never_comes_through(value in "[a-zA-Z0-9+/]{8,40}", before in "[ -~]{0,20}") {
            let text = format!("{before}\n\"authToken\": \"{value}\"\nagain {value}");
            let mut secrets = Secrets::default();
            secrets.learn(&format!("{{\"authToken\": \"{value}\"}}"));
            prop_assert!(!secrets.blank(&text).contains(&value));
        }
    }
}
