//! Live TCP connections that know which replica they began with.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use super::load::parse;
use super::netns::Netns;
use super::traffic::PORT;
use super::wait::{PATIENCE, deadline, scaled};

/// How many threads open connections.
const OPENERS: usize = 4;

/// Connections from one place to one VIP. They stay open, so no port or address is used twice.
pub struct Flows {
    /// Where they come from.
    pub from: &'static str,
    live: Vec<Flow>,
    /// What became of the others: the replica each began with, and how it ended.
    broken: Vec<(String, String)>,
}

struct Flow {
    stream: TcpStream,
    /// The replica that answered first.
    replica: String,
}

impl Flows {
    /// Opens `count` connections; each must be answered.
    pub fn open(from: &'static str, ns: &Netns, vip: impl Into<IpAddr>, count: usize) -> Self {
        Self::on(from, ns, (vip.into(), PORT), count)
    }

    /// The same to another port.
    pub fn on(from: &'static str, ns: &Netns, to: (impl Into<IpAddr>, u16), count: usize) -> Self {
        let to = SocketAddr::from((to.0.into(), to.1));
        let open = |number: usize| {
            Flow::open(to).unwrap_or_else(|error| panic!("connection {number} from {from} to {to}: {error}"))
        };
        let live = ns.run(|| {
            thread::scope(|scope| {
                let some = |first| (first..count).step_by(OPENERS).map(open).collect::<Vec<_>>();
                let openers: Vec<_> = (0..OPENERS).map(|first| scope.spawn(move || some(first))).collect();
                openers.into_iter().flat_map(|opener| opener.join().expect("connections")).collect()
            })
        });
        Self { from, live, broken: Vec::new() }
    }

    /// Puts a question to every replica that doesn't wait for the answer: [`Self::hear`] does.
    pub fn ask(&mut self) {
        self.sort_out(|flow| flow.stream.write_all(b"who\n"));
    }

    /// Waits for the answers. A connection without one, or with another replica's, is broken for good.
    pub fn hear(&mut self) {
        let deadline = deadline(PATIENCE);
        self.sort_out(|flow| flow.hear(deadline));
    }

    fn sort_out(&mut self, work: impl Fn(&mut Flow) -> io::Result<()>) {
        for mut flow in std::mem::take(&mut self.live) {
            match work(&mut flow) {
                Ok(()) => self.live.push(flow),
                Err(error) => self.broken.push((flow.replica, error.to_string())),
            }
        }
    }

    /// The live ones by replica.
    pub fn live(&self) -> BTreeMap<&str, usize> {
        count(self.live.iter().map(|flow| flow.replica.as_str()))
    }

    /// The broken ones by the replica they began with.
    pub fn broken(&self) -> BTreeMap<&str, usize> {
        count(self.broken.iter().map(|(replica, _)| replica.as_str()))
    }

    /// What is wrong, if connections are broken that began with others than `gone`, or one of those is alive.
    pub fn complaint(&self, gone: &[String]) -> Option<String> {
        let lost: Vec<_> = self.broken.iter().filter(|(replica, _)| !gone.contains(replica)).collect();
        let undead = self.live.iter().filter(|flow| gone.contains(&flow.replica)).count();
        if lost.is_empty() && undead == 0 {
            return None;
        }
        let (lost, some) = (lost.len(), &lost[..lost.len().min(5)]);
        let (from, live, broken) = (self.from, self.live(), self.broken());
        Some(format!(
            "from {from}: {lost} broken, {undead} live without replica; live {live:?} broken {broken:?} {some:?}"
        ))
    }
}

fn count<'a>(replicas: impl Iterator<Item = &'a str>) -> BTreeMap<&'a str, usize> {
    replicas.fold(BTreeMap::new(), |mut counts, replica| {
        *counts.entry(replica).or_default() += 1;
        counts
    })
}

impl Flow {
    fn open(to: SocketAddr) -> io::Result<Self> {
        let mut stream = TcpStream::connect_timeout(&to, scaled(PATIENCE))?;
        stream.set_nodelay(true)?;
        stream.write_all(b"who\n")?;
        let replica = hear(&mut stream, deadline(PATIENCE))?;
        Ok(Self { stream, replica })
    }

    fn hear(&mut self, deadline: Instant) -> io::Result<()> {
        match hear(&mut self.stream, deadline)? {
            replica if replica == self.replica => Ok(()),
            other => Err(io::Error::other(format!("{other} answered"))),
        }
    }
}

/// Reads one answer: whose it is.
pub fn hear(stream: &mut TcpStream, deadline: Instant) -> io::Result<String> {
    let mut line = Vec::new();
    let mut buffer = [0; 256];
    while !line.ends_with(b"\n") {
        let left = deadline.saturating_duration_since(Instant::now());
        // Zero would mean for ever.
        stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        match stream.read(&mut buffer) {
            Ok(0) => return Err(io::Error::other("closed by the other side")),
            Ok(length) => line.extend_from_slice(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::Error::other(format!("no answer within {:?}", scaled(PATIENCE))));
            }
            // The kernel begins no read anew that has a time limit, whatever interrupts it (`sock_intr_errno`).
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let line = String::from_utf8_lossy(&line);
    parse(&line).map(|answer| answer.name).ok_or_else(|| io::Error::other(format!("not an answer: {line:?}")))
}
