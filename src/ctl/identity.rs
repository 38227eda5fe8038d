//! `viproutectl identity`: who a VIP is to the DHCP server, for a reservation there.

use std::path::Path;

use crate::api::client;
use crate::api::protocol::Identity;
use crate::ctl::ANSWER;
use crate::model::VipKey;

/// Asks viprouted, which knows the cluster's name.
pub fn ask(allocator: &Path, vip: &VipKey) -> Result<Identity, client::Error> {
    client::identity(allocator, &vip.to_string(), ANSWER)
}

/// As text, with the reservation lines of three servers.
pub fn text(identity: &Identity) -> String {
    let Identity { vip, cluster, client_id, mac, host_name } = identity;
    let name = host_name;
    format!(
        "VIP        {vip}\ncluster    {cluster}\nclient id  {client_id}\nMAC        {mac}\nhost name  {host_name}\n\n\
         With the address you choose as ADDRESS:\n\
         dnsmasq    dhcp-host=id:{client_id},ADDRESS,{name}\n\
         Kea        {{ \"client-id\": \"{client_id}\", \"ip-address\": \"ADDRESS\", \"hostname\": \"{name}\" }}\n\
         dhcpd      host {name} {{ option dhcp-client-identifier {client_id}; fixed-address ADDRESS; }}"
    )
}
