//! HAProxy in TCP mode on the node, a `listen` section a service.

use std::fmt::Write;
use std::net::SocketAddrV4;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use super::{Contender, HAPROXY, family, service, targets};
use crate::load::PORT;
use crate::stage::{Daemon, World};

/// How long a reload may take until new connections meet the new configuration.
pub const RELOAD: Duration = Duration::from_millis(1500);

#[derive(Default)]
pub struct Haproxy {
    daemon: Option<Daemon>,
    services: usize,
    /// Servers are checked each second, and a connection that one refuses goes to another.
    checked: bool,
}

impl Haproxy {
    /// As it is set up where servers come and go.
    pub fn checked() -> Self {
        Self { checked: true, ..Self::default() }
    }

    fn configure(&self, world: &World, services: usize, replicas: &[usize]) -> Result<()> {
        let socket = world.file("haproxy.sock");
        let mut text = format!(
            "global\n  maxconn 4000\n  stats socket {} mode 600 level admin expose-fd listeners\ndefaults\n  mode tcp\n  \
             timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n  balance roundrobin\n",
            socket.display()
        );
        if self.checked {
            text.push_str("  option redispatch 1\n  default-server check inter 1s fall 1 rise 1\n");
        }
        for place in 0..services {
            writeln!(text, "listen svc-{place}\n  bind {}:{PORT}", service(place))?;
            for pod in replicas.iter().map(|at| &world.pods[*at]) {
                writeln!(text, "  server {} {}:{PORT}", pod.name(), pod.address)?;
            }
        }
        #[allow(clippy::disallowed_methods)] // HAProxy reads it when it starts or reloads
        std::fs::write(world.file("haproxy.cfg"), text).context("HAProxy's configuration")
    }

    fn start(&mut self, world: &World) -> Result<()> {
        self.daemon = None;
        let mut command = world.node.cmd("haproxy");
        command.args(["-W", "-db", "-f"]).arg(world.file("haproxy.cfg"));
        let mut daemon = Daemon::try_start("haproxy", &mut command, world.dir.path())?;
        let listening = format!("-Hltn sport = :{PORT}");
        daemon.ready("HAProxy listens", Duration::from_secs(60), || listeners(world, &listening) >= self.services)?;
        self.daemon = Some(daemon);
        Ok(())
    }
}

/// How many sockets listen on the services' port on the node.
pub fn listeners(world: &World, filter: &str) -> usize {
    use crate::stage::Run;
    let output = world.node.cmd("ss").args(filter.split(' ')).output_of("");
    output.map_or(0, |text| text.lines().count())
}

/// The node has the services' addresses: a proxy listens on them.
pub fn addresses(world: &World, services: usize) -> Result<()> {
    let lines: Vec<_> = (0..services).map(|place| format!("addr replace {}/32 dev lo\n", service(place))).collect();
    world.node.ip_lines(&lines.concat()).map(drop)
}

impl Contender for Haproxy {
    fn name(&self) -> &'static str {
        HAPROXY
    }

    fn datagrams<'a>(&self, _: &'a [SocketAddrV4]) -> std::result::Result<&'a [SocketAddrV4], &'static str> {
        Err("carries TCP only")
    }

    fn serve(&mut self, world: &World, services: usize, replicas: &[usize]) -> Result<Vec<SocketAddrV4>> {
        addresses(world, services)?;
        self.configure(world, services, replicas)?;
        if self.daemon.is_some() && self.services == services {
            self.reload(world)?;
        } else {
            self.services = services;
            self.start(world)?;
        }
        Ok(targets(services))
    }

    fn processes(&self) -> Vec<i32> {
        self.daemon.as_ref().map(|daemon| family(daemon.pid())).unwrap_or_default()
    }

    fn restart(&mut self, world: &World) -> Result<Option<&'static str>> {
        self.start(world).map(|()| None)
    }

    fn reload(&mut self, _world: &World) -> Result<Option<&'static str>> {
        self.daemon.as_ref().context("HAProxy runs")?.signal(Signal::SIGUSR2);
        thread::sleep(RELOAD);
        Ok(None)
    }
}
