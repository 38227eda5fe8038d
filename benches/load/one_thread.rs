//! Client, node and servers driven by one thread on one processor, so that the thread's CPU time is the whole transaction's:
//! what the kernel does for a packet on its way (routes, netfilter, programs, the receiver's protocol) it does in the sender's
//! context. What other processes do meanwhile isn't counted, nor is waiting; a clock that changes cancels out between
//! contenders that take turns every few milliseconds.
//!
//! A proxy is another process: the CPU time of its processes, on the same processor, is added to the thread's. What is spent on nobody's account is
//! counted for no contender: connection tracking's clean-up, `ksoftirqd`.

mod datagrams;
mod streams;

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, setns};
use nix::time::{ClockId, clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

use super::poll::unshare_descriptors;
use crate::results::{Outcome, interleaved};
use datagrams::Datagrams;
use streams::Streams;

/// Connections or flows at the same time.
const FLOWS: usize = 64;
/// Nothing that works takes longer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// A slice ends after so many times its CPU time on the wall's clock: with a proxy the thread mostly waits.
const PATIENT: u32 = 20;
/// A download's slice is so many times as long: windows grow and shrink.
const DOWNLOAD: u32 = 4;
/// Until a proxy has done what it had left to do.
const QUIET: Duration = Duration::from_millis(2);

/// What is done again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transaction {
    /// Datagrams of so many bytes, one way.
    Datagrams(usize),
    /// A datagram and its answer.
    Echo,
    /// Request and answer over connections that stay, all of them at the same time.
    Requests,
    /// The same, one after another.
    InTurn,
    /// Connect, request, answer, close.
    Connections,
    /// Bytes of downloads.
    Bulk,
}

/// From where to where.
#[derive(Clone, Debug)]
pub struct Path {
    /// The client's network namespace.
    pub client: String,
    pub to: Vec<SocketAddr>,
    /// Where datagrams go, or why none do.
    pub datagrams: std::result::Result<Vec<SocketAddr>, &'static str>,
    /// The pods' network namespaces and own addresses.
    pub pods: Vec<(String, IpAddr)>,
    /// Those that carry the bytes, if the kernel doesn't.
    pub processes: Vec<i32>,
}

/// How often and how long.
#[derive(Clone, Copy, Debug)]
pub struct Slices {
    /// After one to warm up.
    pub rounds: usize,
    /// CPU time of the thread.
    pub length: Duration,
}

/// Transactions for each second of CPU time, of each kind over each path: slices in turn.
pub fn carried(
    paths: &[std::result::Result<Path, String>],
    kinds: &[Transaction],
    slices: Slices,
) -> Result<Vec<Vec<Outcome>>> {
    softirq_counts()?;
    let measure = || -> Result<_> {
        unshare_descriptors()?;
        let processor = last_processor()?;
        sched_setaffinity(Pid::from_raw(0), &processor)?;
        for process in paths.iter().flatten().flat_map(|path| &path.processes) {
            pin(*process, &processor)?;
        }
        let open = |path: &std::result::Result<Path, String>| match path {
            Ok(path) => Ends::new(path).map_err(|error| format!("{error:#}")),
            Err(reason) => Err(reason.clone()),
        };
        let mut ends: Vec<_> = paths.iter().map(open).collect();
        let of = |kind: &Transaction| {
            let outcomes = interleaved(ends.len(), slices.rounds, |at| match &mut ends[at] {
                Ok(ends) => Ok(vec![ends.slice(*kind, slices.length)?]),
                Err(reason) => bail!(reason.clone()),
            });
            for ends in ends.iter_mut().flatten() {
                ends.sockets = Sockets::None;
            }
            outcomes
        };
        Ok(kinds.iter().map(of).collect())
    };
    thread::scope(|scope| scope.spawn(measure).join()).ok().context("the thread that measures")?
}

/// A kernel that accounts soft interrupts apart takes the path's own work out of the thread's time.
fn softirq_counts() -> Result<()> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let zipped = std::process::Command::new("zcat").arg("/proc/config.gz").output();
    let config = zipped.ok().filter(|output| output.status.success()).map(|output| output.stdout);
    let config = config.or_else(|| fs::read(format!("/boot/config-{}", release.trim())).ok()).unwrap_or_default();
    let command_line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    ensure!(
        !accounts_apart(&String::from_utf8_lossy(&config), &command_line),
        "this kernel accounts soft interrupts apart (CONFIG_IRQ_TIME_ACCOUNTING), so that a thread's time misses what the node \
         does: boot with tsc=noirqtime"
    );
    Ok(())
}

fn accounts_apart(config: &str, command_line: &str) -> bool {
    config.lines().any(|line| line == "CONFIG_IRQ_TIME_ACCOUNTING=y")
        && !command_line.split_whitespace().any(|word| word == "tsc=noirqtime")
}

/// The last one the thread may use: interrupts usually go to the first.
fn last_processor() -> Result<CpuSet> {
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    let last = (0..CpuSet::count()).rev().find(|at| allowed.is_set(*at).unwrap_or(false)).context("a processor")?;
    let mut one = CpuSet::new();
    one.set(last)?;
    Ok(one)
}

/// All threads of a process: on two processors it would also pay for waking each other, sometimes.
fn pin(process: i32, processor: &CpuSet) -> Result<()> {
    for thread in fs::read_dir(format!("/proc/{process}/task")).context("a proxy's threads")? {
        let thread = thread?.file_name().to_string_lossy().parse()?;
        sched_setaffinity(Pid::from_raw(thread), processor)?;
    }
    Ok(())
}

/// Both ends of a path, in the thread that measures.
struct Ends {
    path: Path,
    client: File,
    pods: Vec<(File, IpAddr)>,
    /// The CPU time of each process.
    clocks: Vec<ClockId>,
    sockets: Sockets,
}

enum Sockets {
    /// Those of the next kind are made at its first slice.
    None,
    Streams(Streams),
    Datagrams(Datagrams),
}

impl Ends {
    fn new(path: &Path) -> Result<Self> {
        let open = |path: &str| File::open(path).with_context(|| format!("open {path}"));
        let pods = path.pods.iter().map(|(path, address)| Ok((open(path)?, *address))).collect::<Result<_>>()?;
        let clock = |pid: &i32| clock_getcpuclockid(Pid::from_raw(*pid)).context("a proxy's CPU time");
        let clocks = path.processes.iter().map(clock).collect::<Result<_>>()?;
        Ok(Self { client: open(&path.client)?, pods, clocks, path: path.clone(), sockets: Sockets::None })
    }

    /// Transactions for each second of CPU time.
    fn slice(&mut self, kind: Transaction, length: Duration) -> Result<f64> {
        if matches!(self.sockets, Sockets::None) {
            self.sockets = self.open(kind)?;
        }
        let length = if kind == Transaction::Bulk { length * DOWNLOAD } else { length };
        enter(&self.client)?;
        let (proxy, begun, start) = (self.proxy_time()?, thread_time()?, Instant::now());
        let mut done = 0;
        while thread_time()?.saturating_sub(begun) < length && start.elapsed() < length * PATIENT {
            done += match &mut self.sockets {
                Sockets::Streams(streams) => streams.lap()?,
                Sockets::Datagrams(datagrams) => datagrams.lap()?,
                Sockets::None => 0,
            };
        }
        let mut spent = thread_time()?.saturating_sub(begun);
        if !self.clocks.is_empty() {
            thread::sleep(QUIET);
            spent += self.proxy_time()?.saturating_sub(proxy);
        }
        ensure!(done > 0, "nothing came through");
        Ok(done as f64 / spent.as_secs_f64())
    }

    fn open(&self, kind: Transaction) -> Result<Sockets> {
        match kind {
            Transaction::Datagrams(_) | Transaction::Echo => Ok(Sockets::Datagrams(Datagrams::open(self, kind)?)),
            _ => Ok(Sockets::Streams(Streams::open(self, kind)?)),
        }
    }

    fn proxy_time(&self) -> Result<Duration> {
        self.clocks.iter().map(|clock| Ok(Duration::from(clock_gettime(*clock)?))).sum()
    }
}

fn thread_time() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}

#[allow(clippy::disallowed_methods)] // the thread is the measurement's own, and ends with it
fn enter(namespace: &File) -> Result<()> {
    Ok(setns(namespace, CloneFlags::CLONE_NEWNET)?)
}

/// Does `pass` until it says that all is done. At once where the kernel carries the packets; where it has put some off, the
/// processor is left to others meanwhile.
fn spin(what: &str, mut pass: impl FnMut() -> Result<bool>) -> Result<()> {
    let mut start = None;
    while !pass()? {
        let start = start.get_or_insert_with(Instant::now);
        ensure!(start.elapsed() < TIMEOUT, "{what}: not within {TIMEOUT:?}");
        thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}

/// An address that the pod has: of those that clients ask, or its own, to which those were translated.
fn served(asked: &[SocketAddr], own: IpAddr, bind: impl Fn(IpAddr) -> std::io::Result<()>) -> IpAddr {
    asked.iter().map(SocketAddr::ip).find(|asked| bind(*asked).is_ok()).unwrap_or(own)
}

/// No address in particular, of that one's family.
fn any(address: IpAddr) -> IpAddr {
    if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_accounts_soft_interrupts_apart_is_known() {
        assert!(accounts_apart("CONFIG_A=y\nCONFIG_IRQ_TIME_ACCOUNTING=y\n", "quiet"));
        assert!(!accounts_apart("CONFIG_IRQ_TIME_ACCOUNTING=y\n", "quiet tsc=noirqtime"));
        assert!(!accounts_apart("# CONFIG_IRQ_TIME_ACCOUNTING is not set\nCONFIG_HAVE_IRQ_TIME_ACCOUNTING=y\n", ""));
    }

    #[test]
    fn a_server_takes_the_address_it_is_asked_by_where_the_pod_has_it() {
        let [vip, own] = [Ipv4Addr::new(10, 118, 0, 1), Ipv4Addr::new(10, 1, 0, 2)].map(IpAddr::V4);
        let asked = [SocketAddr::new(vip, 80)];
        assert_eq!(served(&asked, own, |_| Ok(())), vip);
        assert_eq!(served(&asked, own, |_| Err(std::io::ErrorKind::AddrNotAvailable.into())), own);
    }

    #[test]
    fn spinning_ends_with_what_it_waits_for() {
        let mut passes = 0;
        spin("three passes", || {
            passes += 1;
            Ok(passes == 3)
        })
        .unwrap();
        assert_eq!(passes, 3);
        assert!(spin("never", || bail!("broken")).is_err());
    }
}
