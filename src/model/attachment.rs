//! An attachment's name.

/// The namespace of a pod whose runtime knows none (podman, Nomad).
pub const DEFAULT_NAMESPACE: &str = "default";

/// One attachment, in the runtime's terms: a container and the interface that joins it to the network.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttachmentId {
    /// `CNI_CONTAINERID`
    pub container_id: String,
    /// `CNI_IFNAME`
    pub ifname: String,
}

/// What the container ID begins with where no runtime has given one.
const BY_NETNS: &str = "netns-";

impl AttachmentId {
    /// The attachment of a pod that the plugin was never called for: named by device and inode of its network namespace,
    /// so that a later call, which names the namespace and a container ID of the runtime's, finds it.
    pub fn by_netns((device, inode): (u64, u64), ifname: &str) -> Self {
        Self { container_id: format!("{BY_NETNS}{device}-{inode}"), ifname: ifname.to_owned() }
    }

    /// It was named by [`AttachmentId::by_netns`]: no runtime knows it.
    pub fn is_by_netns(&self) -> bool {
        let rest = self.container_id.strip_prefix(BY_NETNS).and_then(|rest| rest.split_once('-'));
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        rest.is_some_and(|(device, inode)| is_number(device) && is_number(inode))
    }
}

#[cfg(test)]
mod tests {
    use super::AttachmentId;

    #[test]
    fn what_no_runtime_named_is_told_apart() {
        let by_netns = AttachmentId::by_netns((4, 4_026_532_345), "eth0");
        assert_eq!((by_netns.container_id.as_str(), by_netns.ifname.as_str()), ("netns-4-4026532345", "eth0"));
        assert!(by_netns.is_by_netns());
        for id in ["0123456789abcdef", "netns-", "netns-4", "netns-4-", "netns-4-x", "netns-0b5f-77", "cnitool-1-2"] {
            assert!(!AttachmentId { container_id: id.into(), ifname: "eth0".into() }.is_by_netns(), "{id}");
        }
    }
}
