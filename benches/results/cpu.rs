//! Processor time of the whole machine: much of a path's cost is spent in the kernel on nobody's account.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A second of `/proc/stat`'s ticks (`USER_HZ`, the same on all machines).
const TICKS: f64 = 100.0;

/// How long the machine is looked at before it counts as at rest.
const LOOK: Duration = Duration::from_millis(100);
/// Busy seconds a second of others' that are let pass.
const TOLERATED: f64 = 0.2;
/// How long rest is waited for.
const PATIENCE: Duration = Duration::from_secs(3);

/// Busy time since it was made.
pub struct Cpu {
    busy: f64,
    start: Instant,
}

impl Cpu {
    pub fn now() -> Result<Self> {
        Ok(Self { busy: busy()?, start: Instant::now() })
    }

    /// Seconds the processors were busy, with whatever it was.
    pub fn since(&self) -> Result<f64> {
        Ok(busy()? - self.busy)
    }

    /// Waits until the machine is at rest; how busy it is then, in seconds a second. Asked before every measurement of processor
    /// time: what others do meanwhile would be taken for the path's.
    pub fn at_rest() -> Result<f64> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let cpu = Self::now()?;
            thread::sleep(LOOK);
            let busy = cpu.since()? / cpu.start.elapsed().as_secs_f64();
            if busy <= TOLERATED {
                return Ok(busy);
            }
            if Instant::now() > deadline {
                bail!("the machine was busy with something else, which can't be told from the path");
            }
        }
    }
}

fn busy() -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().context("/proc/stat")?;
    let ticks: Vec<f64> = line.split_whitespace().skip(1).filter_map(|text| text.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal …
    let [user, nice, system, _, _, irq, softirq, ..] = ticks[..] else { bail!("/proc/stat: {line}") };
    Ok((user + nice + system + irq + softirq) / TICKS)
}
