//! nginx on the node: as a TCP proxy (`stream`) or an HTTP proxy with connections to the pods that stay.

use std::fmt::Write;
use std::net::SocketAddrV4;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use super::haproxy::{RELOAD, addresses, listeners};
use super::{Contender, NGINX_HTTP, NGINX_STREAM, family, service, targets};
use crate::load::PORT;
use crate::stage::{Daemon, World};

/// Where Debian puts the module, if it isn't built in.
const STREAM_MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

/// Which proxy it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Stream,
    Http,
}

pub struct Nginx {
    mode: Mode,
    daemon: Option<Daemon>,
    services: usize,
}

impl Nginx {
    pub fn stream() -> Self {
        Self { mode: Mode::Stream, daemon: None, services: 0 }
    }

    pub fn http() -> Self {
        Self { mode: Mode::Http, daemon: None, services: 0 }
    }

    fn configure(&self, world: &World, services: usize, replicas: &[usize]) -> Result<()> {
        let dir = world.dir.path().display();
        let mut text = String::new();
        if self.mode == Mode::Stream && Path::new(STREAM_MODULE).exists() {
            writeln!(text, "load_module {STREAM_MODULE};")?;
        }
        writeln!(
            text,
            "user root;\nworker_processes auto;\nworker_rlimit_nofile 20000;\npid {dir}/nginx.pid;\n\
             error_log {dir}/nginx-error.log crit;\nevents {{ worker_connections 10000; }}"
        )?;
        let (section, server) = match self.mode {
            Mode::Stream => ("stream {", "proxy_pass"),
            Mode::Http => (
                "http {\naccess_log off;\nkeepalive_requests 10000000;\nproxy_http_version 1.1;\n\
                 proxy_set_header Connection \"\";\nproxy_max_temp_file_size 0;",
                "location / { proxy_pass http://",
            ),
        };
        writeln!(text, "{section}")?;
        for place in 0..services {
            writeln!(text, "upstream svc-{place} {{")?;
            for pod in replicas.iter().map(|at| &world.pods[*at]) {
                writeln!(text, "server {}:{PORT};", pod.address)?;
            }
            let (keep, proxied) = match self.mode {
                Mode::Stream => ("", format!("{server} svc-{place};")),
                Mode::Http => ("keepalive 128;\nkeepalive_requests 10000000;\n", format!("{server}svc-{place}; }}")),
            };
            writeln!(text, "{keep}}}\nserver {{ listen {}:{PORT}; {proxied} }}", service(place))?;
        }
        text.push_str("}\n");
        #[allow(clippy::disallowed_methods)] // nginx reads it when it starts or reloads
        std::fs::write(world.file("nginx.conf"), text).context("nginx's configuration")
    }

    fn start(&mut self, world: &World) -> Result<()> {
        // SIGTERM: its workers would outlive a master that is killed, and keep the port.
        if let Some(daemon) = self.daemon.take() {
            daemon.stop();
        }
        let mut command = world.node.cmd("nginx");
        command.arg("-p").arg(world.dir.path()).arg("-c").arg(world.file("nginx.conf")).args(["-g", "daemon off;"]);
        let mut daemon = Daemon::try_start("nginx", &mut command, world.dir.path())?;
        let listening = format!("-Hltn sport = :{PORT}");
        daemon.ready("nginx listens", Duration::from_secs(60), || listeners(world, &listening) >= self.services)?;
        self.daemon = Some(daemon);
        Ok(())
    }
}

impl Contender for Nginx {
    fn name(&self) -> &'static str {
        match self.mode {
            Mode::Stream => NGINX_STREAM,
            Mode::Http => NGINX_HTTP,
        }
    }

    fn datagrams<'a>(&self, _: &'a [SocketAddrV4]) -> std::result::Result<&'a [SocketAddrV4], &'static str> {
        Err("measured with TCP only")
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
        self.daemon.as_ref().context("nginx runs")?.signal(Signal::SIGHUP);
        thread::sleep(RELOAD);
        Ok(None)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.daemon.take().map(Daemon::stop);
    }
}
