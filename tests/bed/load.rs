//! A client that opens many connections and counts who answers.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, BufReader, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// No answer within this time is a failed connection.
const PATIENCE: Duration = Duration::from_secs(5);

/// What to do: `count` connections, one question each.
pub struct Load {
    /// The VIP and port.
    pub to: SocketAddr,
    /// How many connections in all.
    pub count: usize,
    /// At most so many a second; `None`: as fast as it goes.
    pub rate: Option<u32>,
    /// Threads.
    pub concurrency: usize,
}

/// What came of it.
#[derive(Default, Debug)]
pub struct Tally {
    /// Answers by the answering server's name.
    pub names: BTreeMap<String, usize>,
    /// Client addresses as the servers saw them.
    pub clients: BTreeSet<IpAddr>,
    /// Connections with no or no proper answer.
    pub failed: usize,
    /// What the last of those ended with.
    pub error: String,
}

impl Load {
    /// Runs in the network namespace of the calling thread: threads inherit it.
    pub fn run(&self) -> Tally {
        let (next, start) = (AtomicUsize::new(0), Instant::now());
        thread::scope(|scope| {
            let workers: Vec<_> =
                (0..self.concurrency.max(1)).map(|_| scope.spawn(|| self.work(&next, start))).collect();
            workers.into_iter().filter_map(|worker| worker.join().ok()).fold(Tally::default(), Tally::and)
        })
    }

    fn work(&self, next: &AtomicUsize, start: Instant) -> Tally {
        let mut tally = Tally::default();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= self.count {
                return tally;
            }
            if let Some(rate) = self.rate {
                let due = Duration::from_secs(1) * u32::try_from(number).unwrap_or(u32::MAX) / rate;
                thread::sleep(due.saturating_sub(start.elapsed()));
            }
            match Connection::open(self.to).and_then(|mut connection| connection.ask()) {
                Ok(answer) => tally.add(answer),
                Err(error) => {
                    tally.failed += 1;
                    tally.error = error.to_string();
                }
            }
        }
    }
}

impl Tally {
    fn add(&mut self, answer: Answer) {
        *self.names.entry(answer.name).or_default() += 1;
        self.clients.insert(answer.client.ip());
    }

    fn and(mut self, other: Self) -> Self {
        for (name, count) in other.names {
            *self.names.entry(name).or_default() += count;
        }
        self.clients.extend(other.clients);
        self.failed += other.failed;
        if !other.error.is_empty() {
            self.error = other.error;
        }
        self
    }

    /// `{"names":{"p1":1000},"clients":["192.0.2.2"],"failed":0}`
    pub fn to_json(&self) -> String {
        let names: Vec<_> = self.names.iter().map(|(name, count)| format!("{name:?}:{count}")).collect();
        let clients: Vec<_> = self.clients.iter().map(|client| format!("\"{client}\"")).collect();
        format!("{{\"names\":{{{}}},\"clients\":[{}],\"failed\":{}}}", names.join(","), clients.join(","), self.failed)
    }
}

/// What a server says: its name, and the client as it sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The server's name.
    pub name: String,
    /// The client's address and port.
    pub client: SocketAddr,
}

/// A connection that can be asked again and again.
pub struct Connection(BufReader<TcpStream>);

impl Connection {
    /// Connects, with a time limit on that and on each answer.
    pub fn open(to: SocketAddr) -> io::Result<Self> {
        Self::over(TcpStream::connect_timeout(&to, PATIENCE)?)
    }

    /// The same over a connection that exists.
    pub fn over(stream: TcpStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Asks who is there.
    pub fn ask(&mut self) -> io::Result<Answer> {
        self.0.get_mut().write_all(b"who\n")?;
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        parse(&line).ok_or_else(|| io::Error::other(format!("not an answer: {line:?}")))
    }

    /// Ends the connection once the server has ended it.
    pub fn end_after_server(&mut self) -> io::Result<()> {
        io::copy(&mut self.0, &mut io::sink())?;
        self.0.get_ref().shutdown(Shutdown::Write)
    }
}

/// `<name> <client ip:port>`; a name is plain, so that it needs no quoting anywhere.
pub fn parse(line: &str) -> Option<Answer> {
    let (name, client) = line.trim_end().split_once(' ')?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    (!name.is_empty() && name.chars().all(plain))
        .then(|| client.parse().ok())?
        .map(|client| Answer { name: name.to_string(), client })
}
