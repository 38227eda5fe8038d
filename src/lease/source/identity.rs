//! The identity of a VIP to a DHCP server. Made of the cluster's and the VIP's name alone: every node asks as the same client and
//! is given the same address.

use sha2::{Digest, Sha256};

use crate::dhcp::Identity;
use crate::model::VipKey;

/// Longest DNS label, in bytes.
const MAX_LABEL: usize = 63;

/// The identity of `vip` in `cluster`.
pub fn of(cluster: &str, vip: &VipKey) -> Identity {
    let name = vip.to_string();
    Identity { hostname: hostname(vip, &hash(cluster, &name)), ..of_name(cluster, &name) }
}

/// A zero byte is in neither name.
fn hash(cluster: &str, name: &str) -> [u8; 32] {
    Sha256::digest(format!("{cluster}\0{name}")).into()
}

fn of_name(cluster: &str, name: &str) -> Identity {
    let hash = hash(cluster, name);
    let (iaid, rest) = hash.split_at(4);
    let (uuid, rest) = rest.split_at(16);
    let mut client_id = vec![255]; // RFC 4361 section 6.1
    client_id.extend_from_slice(iaid);
    client_id.extend_from_slice(&[0, 4]); // DUID-UUID, RFC 6355 section 4
    client_id.extend_from_slice(uuid);
    let mut chaddr = [0; 6];
    chaddr.copy_from_slice(&rest[..6]);
    chaddr[0] = chaddr[0] & !0b01 | 0b10; // unicast, locally administered
    Identity { client_id, chaddr, hostname: String::new() }
}

/// The identity of a node that asks for a prefix. `node`: what tells it from others, of the same cluster too, since a prefix is led to one. No VIP
/// is called so.
pub fn of_prefix(cluster: &str, node: &str) -> Identity {
    of_name(cluster, &format!("prefix\0{node}"))
}

/// `<name>-<namespace>`. Where that could be another VIP's too (`a-b` of `c` and `a` of `b-c`), or is too long, it has some
/// of the hash at its end: a server's name for an address is one VIP's.
fn hostname(vip: &VipKey, hash: &[u8]) -> String {
    let mut label = format!("{}-{}", vip.name(), vip.namespace());
    let is_ambiguous = vip.name().contains('-') || vip.namespace().contains('-');
    if is_ambiguous || label.len() > MAX_LABEL {
        let mark = format!("{:08x}", u32::from_be_bytes([hash[28], hash[29], hash[30], hash[31]]));
        label.truncate(MAX_LABEL - 1 - mark.len());
        label = format!("{}-{mark}", label.trim_end_matches('-'));
    }
    label
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(cluster: &str, vip: &str) -> Identity {
        of(cluster, &vip.parse().unwrap())
    }

    #[test]
    fn it_has_the_form_of_the_rfcs() {
        let id = identity("default", "shop/web");
        assert_eq!(id.client_id.len(), 23);
        assert_eq!((id.client_id[0], &id.client_id[5..7]), (255, &[0u8, 4][..]));
        assert_eq!(id.chaddr[0] & 0b11, 0b10);
        assert_eq!(id.hostname, "web-shop");
    }

    #[test]
    fn it_never_changes() {
        // Servers remember it: a change would renumber every VIP.
        let id = identity("default", "shop/web");
        let hex = id.client_id.iter().chain(&id.chaddr).map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat();
        assert_eq!(hex, "ffaa28017900042e5fc44d32b413fbe6ec2b1b04186676ae94f48b7139");
    }

    #[test]
    fn a_node_that_asks_for_a_prefix_is_no_vip_and_has_no_name() {
        let id = of_prefix("default", "4f6a");
        assert_ne!(of_prefix("default", "4f6b").client_id, id.client_id, "each node has its own");
        assert_eq!((id.client_id.len(), id.hostname.as_str()), (23, ""));
        assert_ne!(id.client_id, identity("default", "shop/prefix").client_id);
    }

    #[test]
    fn clusters_and_vips_differ() {
        let all = [identity("a", "x/y"), identity("b", "x/y"), identity("a", "x/z"), identity("a", "y/x")];
        for (i, one) in all.iter().enumerate() {
            for other in &all[..i] {
                assert_ne!(one.client_id, other.client_id);
                assert_ne!(one.chaddr, other.chaddr);
            }
        }
    }

    #[test]
    fn a_host_name_is_one_vips() {
        let names = ["c/a-b", "b-c/a", "a-b/c", "c-a/b", "c/b-a"].map(|vip| identity("default", vip).hostname);
        let distinct: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(distinct.len(), names.len(), "{names:?}");
        assert!(names[0].starts_with("a-b-c-"), "{names:?}");
        assert_eq!(identity("default", "shop/web").hostname, "web-shop");
    }

    #[test]
    fn long_names_stay_labels_and_apart() {
        let (a, b) = (format!("{}a", "n".repeat(62)), format!("{}b", "n".repeat(62)));
        let [a, b] = [a, b].map(|name| identity("c", &format!("space/{name}")).hostname);
        assert_ne!(a, b);
        assert_eq!(a.len(), 63);
        let hyphens = identity("c", &format!("{}/w", "x-".repeat(31) + "x")).hostname;
        assert!(hyphens.len() <= 63 && !hyphens.contains("--"), "{hyphens}");
    }
}
