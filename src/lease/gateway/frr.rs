//! FRR, by the socket of bgpd that vtysh uses: a command ended by NUL, an answer ended by three and a status byte
//! (`vtysh_client_run` of its source).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::model::Family;
use crate::net::route;

use super::{Connection, Error, Heard, Known};

/// Bytes of an answer: some 100,000 routes. Who has more announced to a node had better announce less.
const MOST: usize = 48 << 20;
/// What ends an answer, before its status.
const END: [u8; 3] = [0; 3];

/// The routes that hold `candidate` among those that each established session has received.
pub(super) async fn ask(socket: &PathBuf, candidate: IpAddr) -> Result<Vec<Heard>, Error> {
    let mut bgpd = Bgpd(Connection::open(socket).await?);
    let family = Family::of(candidate);
    let summary = bgpd.summary(family).await?;
    let established = |peer: &Peer| peer.state == "Established";
    if !summary.peers.is_empty() && !summary.peers.values().any(established) {
        return Err(Error::NoSession(socket.clone()));
    }
    let mut heard = Vec::new();
    for (neighbour, _) in summary.peers.iter().filter(|(_, peer)| established(peer)) {
        let question = format!("show bgp {family} unicast neighbors {neighbour} received-routes json");
        let received: Received = bgpd.question(&question).await?;
        if let Some(warning) = received.warning {
            if warning.contains("soft reconfiguration not enabled") {
                let setting = format!("neighbor {neighbour} soft-reconfiguration inbound");
                return Err(bgpd.0.not_kept(format!("FRR's session with {neighbour}"), &setting));
            }
            return Err(bgpd.0.strange(&question, &warning));
        }
        heard.extend(covering(&received.routes, candidate, neighbour));
    }
    Ok(heard)
}

/// The VIP in bgpd's table.
pub(super) async fn known(socket: &PathBuf, vip: IpAddr) -> Result<Known, Error> {
    let mut bgpd = Bgpd(Connection::open(socket).await?);
    let best: Best = bgpd.question(&format!("show bgp {} unicast {vip} json", Family::of(vip))).await?;
    Ok(best.known(vip))
}

/// Whether a BGP session exchanges routes of the family.
pub(super) async fn exchanges(socket: &PathBuf, family: Family) -> Result<bool, Error> {
    Ok(!Bgpd(Connection::open(socket).await?).summary(family).await?.peers.is_empty())
}

struct Bgpd<'a>(Connection<'a>);

impl Bgpd<'_> {
    /// The sessions that are to exchange routes of the family.
    async fn summary(&mut self, family: Family) -> Result<Summary, Error> {
        self.question(&format!("show bgp {family} unicast summary json")).await
    }

    async fn question<T: DeserializeOwned>(&mut self, question: &str) -> Result<T, Error> {
        let sent = self.0.stream.write_all(format!("{question}\0").as_bytes()).await;
        sent.map_err(|error| self.0.broken(error))?;
        let mut answer = Vec::new();
        while !(answer.len() > END.len() && answer[..answer.len() - 1].ends_with(&END)) {
            if answer.len() > MOST {
                return Err(self.0.strange(question, "more than 48 MiB: have fewer routes announced to this node"));
            }
            let read = self.0.stream.read_buf(&mut answer).await;
            if read.map_err(|error| self.0.broken(error))? == 0 {
                return Err(self.0.broken(std::io::ErrorKind::UnexpectedEof.into()));
            }
        }
        answer.truncate(answer.len() - END.len() - 1);
        serde_json::from_slice(&answer).map_err(|_| self.0.strange(question, &String::from_utf8_lossy(&answer)))
    }
}

/// Without any neighbour the answer is `{}`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Summary {
    peers: BTreeMap<String, Peer>,
}

#[derive(Debug, Deserialize)]
struct Peer {
    state: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Received {
    #[serde(rename = "receivedRoutes")]
    routes: BTreeMap<String, Route>,
    warning: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Route {
    /// Of IPv6 the one beside the link-local one.
    #[serde(rename = "nextHop", alias = "nextHopGlobal")]
    next_hop: Option<IpAddr>,
}

/// The longest match; `{}` where there is none.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Best {
    prefix: Option<IpNetwork>,
    paths: Vec<Path>,
}

/// A path; one that zebra has redistributed is `sourced`.
#[derive(Debug, Deserialize)]
struct Path {
    #[serde(default)]
    sourced: bool,
    peer: PathPeer,
}

#[derive(Debug, Deserialize)]
struct PathPeer {
    #[serde(rename = "peerId")]
    id: String,
}

impl Best {
    fn known(&self, vip: IpAddr) -> Known {
        if self.prefix != Some(route::host(vip)) {
            return Known::default();
        }
        let foreign = self.paths.iter().filter(|path| !path.sourced);
        let taken = foreign.map(|path| format!("FRR's session with {}", path.peer.id)).collect();
        Known { learned: self.paths.iter().any(|path| path.sourced), taken }
    }
}

fn covering(routes: &BTreeMap<String, Route>, candidate: IpAddr, neighbour: &str) -> Vec<Heard> {
    let heard = |(prefix, route): (&String, &Route)| {
        let prefix: IpNetwork = prefix.parse().ok()?;
        let by = format!("FRR's session with {neighbour}");
        prefix.contains(candidate).then_some(Heard { prefix, next_hop: route.next_hop, by })
    };
    routes.iter().filter_map(heard).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_frr_8_are_read() {
        let text = r#"{ "bgpTableVersion":0, "receivedRoutes":{
            "0.0.0.0/0":{ "network":"0.0.0.0/0", "nextHop":"192.0.2.254", "path":"65000" },
            "10.118.0.16/28":{ "network":"10.118.0.16/28", "nextHop":"192.0.2.254", "path":"65000" },
            "10.118.0.32/28":{ "network":"10.118.0.32/28", "nextHop":"192.0.2.254", "path":"65000" } } }"#;
        let received: Received = serde_json::from_str(text).unwrap();
        let heard = covering(&received.routes, [10, 118, 0, 17].into(), "192.0.2.254");
        let prefixes: Vec<_> = heard.iter().map(|heard| heard.prefix.to_string()).collect();
        assert_eq!(prefixes, ["0.0.0.0/0", "10.118.0.16/28"]);
        assert_eq!(heard[1].next_hop, Some([192, 0, 2, 254].into()));
        let text = r#"{ "receivedRoutes":{ "fd00:118::1/128":{ "nextHopGlobal":"2001:db8::fe", "path":"65000" } } }"#;
        let received: Received = serde_json::from_str(text).unwrap();
        let heard = covering(&received.routes, "fd00:118::1".parse().unwrap(), "2001:db8::fe");
        assert_eq!(heard[0].next_hop, Some("2001:db8::fe".parse().unwrap()));
        let text = r#"{ "prefix":"10.118.0.7/32", "paths":[ { "sourced":true, "peer":{ "peerId":"0.0.0.0" } },
            { "valid":true, "peer":{ "peerId":"192.0.2.254" } } ] }"#;
        let best: Best = serde_json::from_str(text).unwrap();
        let taken = vec!["FRR's session with 192.0.2.254".into()];
        assert_eq!(best.known([10, 118, 0, 7].into()), Known { learned: true, taken });
        assert_eq!(best.known([10, 118, 0, 8].into()), Known::default(), "another prefix is no word on it");
        assert_eq!(serde_json::from_str::<Best>("{}").unwrap().known([10, 118, 0, 7].into()), Known::default());
        let warning: Received =
            serde_json::from_str(r#"{ "warning": "Inbound soft reconfiguration not enabled" }"#).unwrap();
        assert!(warning.warning.is_some() && warning.routes.is_empty());
        assert!(serde_json::from_str::<Summary>("{}").unwrap().peers.is_empty());
    }
}
