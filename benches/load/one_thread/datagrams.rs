//! Datagrams one way, and there and back.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use anyhow::{Context, Result};
use nix::sys::socket::{setsockopt, sockopt};

use super::{Ends, FLOWS, Transaction, any, enter, served};
use crate::load::datagrams::Batch;
use crate::load::server::Received;

/// Of each flow, in a lap one way: sent by one system call.
const IN_A_ROW: usize = 4;
/// Bytes of a datagram that is answered.
const SHORT: usize = 64;
/// Room for what is sent before it is received.
const BUFFER: usize = 8 << 20;

pub struct Datagrams {
    clients: Vec<UdpSocket>,
    servers: Vec<UdpSocket>,
    echo: bool,
    payload: Vec<u8>,
    batch: Batch,
    received: Received,
}

impl Datagrams {
    pub fn open(ends: &Ends, kind: Transaction) -> Result<Self> {
        let to = ends.path.datagrams.clone().map_err(anyhow::Error::msg)?;
        let server = |(namespace, own): &(std::fs::File, IpAddr)| -> Result<UdpSocket> {
            enter(namespace)?;
            let has = |address| UdpSocket::bind((address, 0)).map(drop);
            let socket = UdpSocket::bind((served(&to, *own, has), to[0].port()))?;
            setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        let servers = ends.pods.iter().map(server).collect::<Result<_>>()?;
        enter(&ends.client)?;
        let client = |to: &SocketAddr| -> Result<UdpSocket> {
            let socket = UdpSocket::bind((any(to.ip()), 0))?;
            socket.connect(to).context("a datagram's way")?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        let clients = to.iter().cycle().take(FLOWS).map(client).collect::<Result<_>>()?;
        let size = if let Transaction::Datagrams(size) = kind { size } else { SHORT };
        let (payload, batch) = (vec![0; size], Batch::new(IN_A_ROW));
        Ok(Self { clients, servers, echo: kind == Transaction::Echo, payload, batch, received: Received::default() })
    }

    /// Those that arrived, or whose answer did: what is lost costs, and counts for nothing.
    pub fn lap(&mut self) -> Result<usize> {
        if self.echo { self.there_and_back() } else { self.one_way() }
    }

    fn one_way(&mut self) -> Result<usize> {
        for client in &self.clients {
            self.batch.send(client, &mut self.payload)?;
        }
        let received = self.servers.iter().map(|server| self.received.receive(server)).sum::<u64>();
        Ok(usize::try_from(received)?)
    }

    fn there_and_back(&mut self) -> Result<usize> {
        let mut room = [0; 2048];
        for client in &self.clients {
            dropped_is_fine(client.send(&self.payload))?;
        }
        for server in &self.servers {
            while let Ok((length, from)) = server.recv_from(&mut room) {
                dropped_is_fine(server.send_to(&room[..length], from))?;
            }
        }
        Ok(self.clients.iter().filter(|client| client.recv(&mut room).is_ok()).count())
    }
}

fn dropped_is_fine(sent: io::Result<usize>) -> io::Result<()> {
    match sent {
        Err(error) if error.kind() != io::ErrorKind::WouldBlock && error.raw_os_error() != Some(libc::ENOBUFS) => {
            Err(error)
        }
        _ => Ok(()),
    }
}
