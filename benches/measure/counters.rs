//! What the kernel counts in a network namespace.

use anyhow::{Context, Result};

use crate::stage::Netns;

/// A counter of `/proc/net/snmp` or `/proc/net/netstat`: in the line that begins with `group` (`Tcp`), the number under `name`.
pub fn counter(namespace: &Netns, file: &str, group: &str, name: &str) -> Result<u64> {
    // The thread's own: `/proc/net` is that of the process's first thread.
    let text = namespace.try_run(|| Ok(std::fs::read_to_string(format!("/proc/thread-self/net/{file}"))?))?;
    find(&text, group, name).with_context(|| format!("{group} {name} in {file}"))
}

fn find(text: &str, group: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.split_once(": ")).filter(|(start, _)| *start == group);
    let ((_, names), (_, numbers)) = (lines.next()?, lines.next()?);
    let mut pairs = names.split(' ').zip(numbers.split(' '));
    pairs.find(|(known, _)| *known == name)?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_found_by_its_name() {
        let text = "Ip: A B\nIp: 1 2\nTcp: A OutRsts\nTcp: -1 17\n";
        assert_eq!(find(text, "Tcp", "OutRsts"), Some(17));
        assert_eq!(find(text, "Ip", "B"), Some(2));
        assert_eq!(find(text, "Tcp", "B"), None);
    }
}
