//! Many VIPs from a DHCP server.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use viproute::internals::api::client;

use super::Scale;
use crate::contenders::{LIMITS, acquire, key, sidecar};
use crate::results::{Chapter, Column, Table, Unit};
use crate::stage::{Daemon, PodKind, Sidecar, World};

/// Callers at the same time, as ADDs would be; viprouted takes 256.
const CALLERS: usize = 200;
/// Longer than any answer takes.
const CALL: Duration = Duration::from_secs(10);
/// All of them must have an address within this.
const TIMEOUT: Duration = Duration::from_secs(300);
/// dnsmasq's shortest lease; it is renewed after half of it.
const LEASE: Duration = Duration::from_secs(120);

pub fn run(scale: &Scale) -> Result<Chapter> {
    let mut table = Table::new(
        "dhcp",
        "VIPs from dnsmasq",
        &format!(
            "dnsmasq without its ping and without its lease file (it writes and syncs the whole of it for each lease), leases of \
             {} s. From cold: that many acquired at once through viprouted's socket, each probed by ARP as always, until the last \
             one has its address. Renewals: DHCPACKs in dnsmasq's log during {} s, after all were acquired and half a lease has \
             passed; a renewal is due at half of the lease.",
            LEASE.as_secs(),
            scale.renewing.as_secs()
        ),
    );
    table.columns = vec![
        Column::new("all acquired", Unit::Seconds),
        Column::new("renewals a minute", Unit::PerMinute),
        Column::new("due a minute", Unit::PerMinute),
        Column::new("viprouted's processor time a minute", Unit::Seconds),
        Column::new("leases lost", Unit::Count),
    ];
    let cold = Site::new("cold").and_then(|site| site.acquire(scale.leases));
    let later = "not waited for";
    let row = match cold {
        Ok(seconds) => vec![Ok(vec![seconds])],
        Err(error) => vec![Err(format!("{error:#}"))],
    };
    let row = row.into_iter().chain((1..table.columns.len()).map(|_| Err(later.to_owned())));
    table.note(&format!("{} VIPs from cold", Unit::Count.text(scale.leases as f64)), row.collect());
    let name = format!("{} VIPs renewed", Unit::Count.text(Scale::full().renewed as f64));
    let renewed = match scale.renewed {
        0 => Err(anyhow::anyhow!("takes minutes, which a quick run hasn't")),
        _ => Site::new("renew").and_then(|site| renew(&site, scale)),
    };
    match renewed {
        Ok(numbers) => table.note(&name, numbers.into_iter().map(|number| Ok(vec![number])).collect()),
        Err(error) => table.note(&name, table.columns.iter().map(|_| Err(format!("{error:#}"))).collect()),
    }
    Ok(Chapter { title: "DHCP".into(), text: String::new(), tables: vec![table] })
}

fn renew(site: &Site, scale: &Scale) -> Result<Vec<f64>> {
    let acquired = site.acquire(scale.renewed)?;
    thread::sleep((LEASE / 2).saturating_sub(Duration::from_secs_f64(acquired)));
    let (acks, cpu) = (site.acks(), seconds(site));
    thread::sleep(scale.renewing);
    let minutes = scale.renewing.as_secs_f64() / 60.0;
    let renewed = (site.acks() - acks) as f64 / minutes;
    let due = scale.renewed as f64 * 60.0 / (LEASE.as_secs_f64() / 2.0);
    let leases = client::leases(&site.world.file("viprouted.sock"), CALL)?.leases;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
    let live = leases.iter().filter(|lease| lease.expires.is_none_or(|at| at > now)).count();
    let lost = scale.renewed.saturating_sub(live);
    Ok(vec![acquired, renewed, due, (seconds(site) - cpu) / minutes, lost as f64])
}

fn seconds(site: &Site) -> f64 {
    site.agent.daemon.cpu_time().as_secs_f64()
}

/// A node on a link with a DHCP server. Fields are dropped in this order.
struct Site {
    agent: Sidecar,
    server: Daemon,
    world: World,
}

impl Site {
    fn new(name: &str) -> Result<Self> {
        let world = World::new(name, 0, PodKind::Bare)?;
        world.client.ip_lines("addr add 10.119.255.254/16 dev eth0\n")?;
        world.node.ip_lines("addr add 10.119.0.1/16 dev eth0\n")?;
        let conf = format!(
            "port=0\ninterface=eth0\nbind-interfaces\ndhcp-authoritative\nno-ping\nuser=root\ndhcp-lease-max=20000\n\
             dhcp-range=10.119.16.0,10.119.250.250,255.255.0.0,{}s\nleasefile-ro\n",
            LEASE.as_secs()
        );
        let path = world.file("dnsmasq.conf");
        #[allow(clippy::disallowed_methods)] // its reader isn't there yet
        std::fs::write(&path, conf)?;
        let mut command = world.client.cmd("dnsmasq");
        command.args(["-k", "--log-facility=-", "--pid-file=", "-C"]).arg(&path);
        let mut server = Daemon::try_start("dnsmasq", &mut command, world.dir.path())?;
        let log = world.file("dnsmasq.log");
        let bound = || std::fs::read_to_string(&log).is_ok_and(|text| text.contains("sockets bound"));
        server.ready("dnsmasq listens", CALL, bound)?;
        let agent = sidecar(
            &world,
            &format!("backend = \"dhcp\"\nallow = [\"10.119.0.0/16\"]\n[dhcp]\ninterface = \"eth0\"\n{LIMITS}"),
        )?;
        Ok(Self { agent, server, world })
    }

    /// Seconds until `count` VIPs have their addresses.
    fn acquire(&self, count: usize) -> Result<f64> {
        let (socket, start) = (self.world.file("viprouted.sock"), Instant::now());
        let next = AtomicUsize::new(0);
        thread::scope(|scope| {
            let caller = || -> Result<()> {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return Ok(());
                    }
                    acquire(&socket, &key(number)?, TIMEOUT)?;
                }
            };
            let callers: Vec<_> = (0..CALLERS.min(count)).map(|_| scope.spawn(caller)).collect();
            callers.into_iter().try_for_each(|caller| caller.join().ok().context("a caller")?)
        })?;
        Ok(start.elapsed().as_secs_f64())
    }

    fn acks(&self) -> usize {
        self.server.log().lines().filter(|line| line.contains("DHCPACK")).count()
    }
}
