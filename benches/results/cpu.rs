//! Processor time of the whole machine: much of a path's cost is spent in the kernel on nobody's account.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// A second of `/proc/stat`'s ticks (`USER_HZ`, the same on all machines).
const TICKS: f64 = 100.0;

/// Busy time since it was made.
pub struct Cpu {
    busy: f64,
    start: Instant,
}

impl Cpu {
    pub fn now() -> Result<Self> {
        Ok(Self { busy: busy()?, start: Instant::now() })
    }

    /// Seconds the processors were busy, less what they are when nothing is measured (`idle`, busy seconds a second).
    pub fn since(&self, idle: f64) -> Result<f64> {
        Ok((busy()? - self.busy - idle * self.start.elapsed().as_secs_f64()).max(0.0))
    }

    /// How busy the machine is while nothing is measured, in seconds a second.
    pub fn idle(time: Duration) -> Result<f64> {
        let cpu = Self::now()?;
        thread::sleep(time);
        Ok(cpu.since(0.0)? / cpu.start.elapsed().as_secs_f64())
    }
}

fn busy() -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().context("/proc/stat")?;
    let ticks: Vec<f64> = line.split_whitespace().skip(1).filter_map(|text| text.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal …
    let [user, nice, system, _, _, irq, softirq, ..] = ticks[..] else { anyhow::bail!("/proc/stat: {line}") };
    Ok((user + nice + system + irq + softirq) / TICKS)
}
