//! Who asks.

/// `type` of a client id that has an IAID and a DUID (RFC 4361 section 6.1).
const WITH_DUID: u8 = 255;

/// Who asks: one identity is one client, wherever it asks from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Option 61, the whole value with its type octet (RFC 4361: 255, IAID, DUID); 2 to 255 octets. `DHCPv6` has its IAID and DUID.
    pub client_id: Vec<u8>,
    /// `chaddr`: a locally administered unicast MAC address, unique among the identities of one engine.
    pub chaddr: [u8; 6],
    /// Option 12; 1 to 63 letters, digits and hyphens. Left out of the messages when empty.
    pub hostname: String,
}

/// Whom a reply is for, as far as it says.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Client {
    /// `chaddr`.
    Mac([u8; 6]),
    /// `DHCPv6`'s option 1.
    Duid(Vec<u8>),
}

impl Identity {
    /// IAID and DUID; none: the client id has another form.
    pub fn in_dhcpv6(&self) -> Option<(u32, &[u8])> {
        let (kind, rest) = self.client_id.split_first()?;
        let (iaid, duid) = rest.split_first_chunk()?;
        (*kind == WITH_DUID && duid.len() > 2).then(|| (u32::from_be_bytes(*iaid), duid))
    }

    /// All that replies may call it.
    pub fn clients(&self) -> impl Iterator<Item = Client> {
        let duid = self.in_dhcpv6().map(|(_, duid)| Client::Duid(duid.to_vec()));
        std::iter::once(Client::Mac(self.chaddr)).chain(duid)
    }
}
