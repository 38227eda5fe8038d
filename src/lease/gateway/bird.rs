//! BIRD 2, by its control socket: a line for each question, answers with codes at the beginning of lines (`doc/reply_codes`
//! of its source).

use std::net::IpAddr;
use std::path::PathBuf;

use ipnetwork::IpNetwork;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::model::Family;
use crate::net::PROTOCOL;
use crate::net::route;

use super::{Connection, Error, Heard, Known};

/// An answer is no longer, in bytes: a list of protocols, or the routes to one address.
const MOST: usize = 4 << 20;

/// "Network not found"
const NOT_FOUND: u16 = 8001;
/// A command that isn't understood or can't be carried out.
const REFUSED: u16 = 9001;

/// The longest match in what each established BGP session has received, and in BIRD's own tables.
pub(super) async fn ask(socket: &PathBuf, candidate: IpAddr) -> Result<Vec<Heard>, Error> {
    let mut bird = Bird::open(socket).await?;
    let sessions = bird.sessions(Family::of(candidate)).await?;
    if !sessions.is_empty() && !sessions.iter().any(|session| session.is_established) {
        return Err(Error::NoSession(socket.clone()));
    }
    let mut heard = Vec::new();
    for session in sessions.iter().filter(|session| session.is_established) {
        let table = format!("{}.{}", quoted(&session.name), session.family);
        let question = format!("show route for {candidate} all import table {table}");
        let received = bird.question_of_routes(&question).await?;
        if received.code == REFUSED {
            bird.has_everything(session, &question, &received)?;
            continue;
        }
        heard.extend(foreign(&received.lines));
    }
    heard.extend(foreign(&bird.tables(candidate).await?));
    Ok(heard)
}

/// Whether a BGP session exchanges routes of the family.
pub(super) async fn exchanges(socket: &PathBuf, family: Family) -> Result<bool, Error> {
    Ok(!Bird::open(socket).await?.sessions(family).await?.is_empty())
}

/// The VIP in BIRD's own tables.
pub(super) async fn known(socket: &PathBuf, vip: IpAddr) -> Result<Known, Error> {
    let mut bird = Bird::open(socket).await?;
    let mut known = Known::default();
    for (heard, ours) in routes(&bird.tables(vip).await?) {
        if ours {
            known.learned = true;
        } else if route::is_host(heard.prefix) && heard.next_hop.is_some() {
            known.taken.push(heard.by);
        }
    }
    Ok(known)
}

struct Bird<'a> {
    connection: Connection<'a>,
    /// What has been read beyond the last answer.
    rest: Vec<u8>,
}

/// An answer without its codes.
struct Answer {
    /// That of its last line.
    code: u16,
    lines: Vec<String>,
}

impl<'a> Bird<'a> {
    async fn open(socket: &'a PathBuf) -> Result<Self, Error> {
        let mut bird = Self { connection: Connection::open(socket).await?, rest: Vec::new() };
        bird.answer("the greeting").await?;
        // Nothing can be changed by this connection.
        bird.question("restrict").await?;
        Ok(bird)
    }

    /// The routes of the longest match in BIRD's tables.
    async fn tables(&mut self, address: IpAddr) -> Result<Vec<String>, Error> {
        let question = format!("show route for {address} all table all");
        let known = self.question_of_routes(&question).await?;
        if known.code == REFUSED {
            return Err(self.connection.strange(&question, &known.lines.join("\n")));
        }
        Ok(known.lines)
    }

    /// An answer that is no error.
    async fn question(&mut self, question: &str) -> Result<Answer, Error> {
        let answer = self.question_of_routes(question).await?;
        if answer.code >= 8000 {
            return Err(self.connection.strange(question, &answer.lines.join("\n")));
        }
        Ok(answer)
    }

    /// An answer to a question that BIRD may refuse; other errors are errors.
    async fn question_of_routes(&mut self, question: &str) -> Result<Answer, Error> {
        let line = format!("{question}\n");
        let sent = self.connection.stream.write_all(line.as_bytes()).await;
        sent.map_err(|error| self.connection.broken(error))?;
        let answer = self.answer(question).await?;
        match answer.code {
            code if code >= 8000 && !matches!(code, NOT_FOUND | REFUSED) => {
                Err(self.connection.strange(question, &answer.lines.join("\n")))
            }
            _ => Ok(answer),
        }
    }

    /// The BGP sessions that are to exchange routes of the family.
    async fn sessions(&mut self, family: Family) -> Result<Vec<Session>, Error> {
        let mut all = sessions(&self.question("show protocols all").await?.lines);
        all.retain(|session| session.family == family.to_string());
        Ok(all)
    }

    /// Without an import table a session is good only if its filter refuses nothing: then BIRD's tables have it all.
    fn has_everything(&self, session: &Session, question: &str, refusal: &Answer) -> Result<(), Error> {
        if !refusal.lines.iter().any(|line| line.contains("No import table")) {
            return Err(self.connection.strange(question, &refusal.lines.join("\n")));
        }
        if session.takes_all {
            return Ok(());
        }
        Err(self.connection.not_kept(format!("BIRD's {}", session.name), "import table on;"))
    }

    /// Reads up to the line that ends an answer: its code is followed by a blank.
    async fn answer(&mut self, question: &str) -> Result<Answer, Error> {
        let mut lines = Vec::new();
        let mut length = 0;
        loop {
            let line = self.line().await?;
            length += line.len();
            if length > MOST {
                return Err(self.connection.strange(question, "more than was to be expected"));
            }
            // What is logged meanwhile comes by the same way.
            if line.starts_with('+') {
                continue;
            }
            let code = line.get(..4).and_then(|code| code.parse::<u16>().ok());
            let text = line.get(if code.is_some() { 5 } else { 1 }..).unwrap_or_default();
            lines.push(text.to_owned());
            if let (Some(code), Some(' ')) = (code, line.chars().nth(4)) {
                return Ok(Answer { code, lines });
            }
        }
    }

    async fn line(&mut self) -> Result<String, Error> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            if self.rest.len() > MOST {
                return Err(self.connection.strange("", "a line without end"));
            }
            let read = self.connection.stream.read_buf(&mut self.rest).await;
            if read.map_err(|error| self.connection.broken(error))? == 0 {
                return Err(self.connection.broken(std::io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }
}

/// A BGP session, as far as it exchanges routes of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Session {
    name: String,
    is_established: bool,
    /// As BIRD names the channel: `ipv4`.
    family: String,
    /// Its import filter refuses nothing.
    takes_all: bool,
}

/// `router1    BGP        ---        up     21:55:32.040  Established`
fn is_bgp(line: &str) -> bool {
    line.split_whitespace().nth(1) == Some("BGP")
}

/// The BGP sessions of `show protocols all`: a line for each protocol, what belongs to it indented, `Channel ipv4` before what is that channel's.
fn sessions(protocols: &[String]) -> Vec<Session> {
    let (mut found, mut protocol): (Vec<Session>, _) = (Vec::new(), None);
    for line in protocols {
        let text = line.trim();
        if !line.starts_with(' ') {
            let name = line.split_whitespace().next().filter(|_| is_bgp(line));
            protocol = name.map(|name| (name.to_owned(), line.split_whitespace().any(|word| word == "Established")));
        } else if let (Some((name, is_established)), Some(family)) = (&protocol, text.strip_prefix("Channel ")) {
            let (name, family) = (name.clone(), family.to_owned());
            found.push(Session { name, is_established: *is_established, family, takes_all: false });
        } else if let (Some(_), Some(filter), Some(session)) =
            (&protocol, text.strip_prefix("Input filter:"), found.last_mut())
        {
            session.takes_all = filter.trim() == "ACCEPT";
        }
    }
    found
}

/// A name with signs of its own is quoted in BIRD's language.
fn quoted(name: &str) -> String {
    let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if plain { name.to_owned() } else { format!("'{name}'") }
}

/// The routes of an answer: a line for each (`10.118.0.16/28  unicast [router1 21:55:35.044] * (100) [AS65000i]`; the prefix
/// once for several), its attributes after it. Whether each is viproute's own, which BIRD has learned.
fn routes(lines: &[String]) -> Vec<(Heard, bool)> {
    let mut found: Vec<(Heard, bool)> = Vec::new();
    let mut prefix: Option<IpNetwork> = None;
    for line in lines {
        let text = line.trim();
        if let Some((key, value)) = text.split_once(": ") {
            let Some((heard, ours)) = found.last_mut() else { continue };
            match key {
                "BGP.next_hop" => heard.next_hop = value.split_whitespace().next().and_then(|hop| hop.parse().ok()),
                "Kernel.source" => *ours = value.trim().parse() == Ok(PROTOCOL),
                _ => {}
            }
            continue;
        }
        let first = text.split_whitespace().next().filter(|word| word.contains('/'));
        prefix = first.and_then(|word| word.parse().ok()).or(prefix);
        let protocol = text.split_once('[').and_then(|(_, rest)| rest.split_whitespace().next());
        if let (Some(prefix), Some(protocol), false) = (prefix, protocol, text.starts_with("via ")) {
            found.push((Heard { prefix, next_hop: None, by: format!("BIRD's {protocol}") }, false));
        }
    }
    found
}

/// Those that are not viproute's own.
fn foreign(lines: &[String]) -> impl Iterator<Item = Heard> {
    routes(lines).into_iter().filter(|(_, ours)| !ours).map(|(heard, _)| heard)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    /// As BIRD 2.0.12 says it.
    const ROUTES: &str = "Table import:
10.118.0.16/28       unicast [router1 21:55:35.044] * (100) [AS65000i]
\tvia 192.0.2.254 on e0
\tType: BGP univ
\tBGP.origin: IGP
\tBGP.as_path: 65000
\tBGP.next_hop: 192.0.2.254
\tBGP.local_pref: 100
                     unicast [router2 21:55:35.044] (100) [AS65000i]
\tvia 192.0.2.253 on e0
\tType: BGP univ
\tBGP.next_hop: 192.0.2.2 fe80::1
Table master4:
10.118.0.17/32       unicast [vips 21:55:28.258] * (10)
\tvia 10.1.1.2 on vip81927f0e8b1 onlink
\tType: inherit univ
\tKernel.source: 118
\tKernel.metric: 0
10.118.0.17/32       blackhole [mine 21:55:28.258] * (200)
\tType: static univ
";

    #[test]
    fn routes_are_read_with_their_next_hops_and_ours_are_left_out() {
        let heard = |prefix: &str, next_hop: &str, by: &str| Heard {
            prefix: prefix.parse().unwrap(),
            next_hop: next_hop.parse().ok(),
            by: by.into(),
        };
        let expected = [
            heard("10.118.0.16/28", "192.0.2.254", "BIRD's router1"),
            heard("10.118.0.16/28", "192.0.2.2", "BIRD's router2"),
            heard("10.118.0.17/32", "", "BIRD's mine"),
        ];
        assert_eq!(foreign(&lines(ROUTES)).collect::<Vec<_>>(), expected);
        assert_eq!(foreign(&lines("Network not found")).count(), 0);
    }

    #[test]
    fn sessions_are_read_with_their_channels() {
        let text = "Name       Proto      Table      State  Since         Info
device1    Device     ---        up     21:55:28.258
router1    BGP        ---        up     21:55:32.040  Established
  BGP state:          Established
    Neighbor address: 192.0.2.254
  Channel ipv4
    State:          UP
    Input filter:   routes_in
  Channel ipv6
    State:          UP
    Input filter:   ACCEPT

router2    BGP        ---        start  21:55:28.258  Active        Socket: No route to host
  BGP state:          Active
  Channel ipv6
    State:          DOWN
    Input filter:   REJECT
static1    Static     master4    up     21:55:28.258
  Channel ipv4
    Input filter:   ACCEPT
";
        let session = |name: &str, is_established, family: &str, takes_all| Session {
            name: name.into(),
            is_established,
            family: family.into(),
            takes_all,
        };
        let expected = [
            session("router1", true, "ipv4", false),
            session("router1", true, "ipv6", true),
            session("router2", false, "ipv6", false),
        ];
        assert_eq!(sessions(&lines(text)), expected);
        assert_eq!((quoted("router1"), quoted("to-router.1")), ("router1".into(), "'to-router.1'".into()));
    }
}
