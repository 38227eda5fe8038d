//! Bulk throughput: a few downloads without end.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::ENDLESS;
use super::client::Load;

const TIMEOUT: Duration = Duration::from_secs(3);

/// Bytes a second over `load`'s connections.
pub fn bulk(load: &Load<'_>) -> Result<f64> {
    let (received, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    load.from.try_run(|| {
        thread::scope(|scope| {
            let (received, stop) = (&received, &stop);
            let one = |number: usize| {
                let from = load.to[number % load.to.len()].into();
                scope.spawn(move || download(from, received, stop))
            };
            let downloads: Vec<_> = (0..load.concurrency).map(one).collect();
            // The windows open first.
            thread::sleep(Duration::from_millis(100));
            let (before, start) = (received.load(Ordering::Relaxed), Instant::now());
            thread::sleep(load.time);
            let (bytes, seconds) = (received.load(Ordering::Relaxed) - before, start.elapsed().as_secs_f64());
            stop.store(true, Ordering::Relaxed);
            for download in downloads {
                download.join().ok().context("a download")??;
            }
            Ok(bytes as f64 / seconds)
        })
    })
}

fn download(from: SocketAddr, received: &AtomicU64, stop: &AtomicBool) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&from, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(ENDLESS)?;
    let mut buffer = vec![0; 1 << 18];
    while !stop.load(Ordering::Relaxed) {
        let count = stream.read(&mut buffer).context("a download")?;
        anyhow::ensure!(count > 0, "a download was closed by the other side");
        received.fetch_add(count as u64, Ordering::Relaxed);
    }
    Ok(())
}
