//! A VIP's name, `<namespace>/<name>`.

/// Whether `text` is `<namespace>/<name>`, both RFC 1123 labels.
pub fn is_vip(text: &str) -> bool {
    split(text).is_some()
}

/// Namespace and name.
pub fn split(vip: &str) -> Option<(&str, &str)> {
    vip.split_once('/').filter(|(namespace, name)| is_label(namespace) && is_label(name))
}

/// 1 to 63 lower-case letters, digits and hyphens, no hyphen at either end.
fn is_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}
