//! The express path as viprouted's parts share it: its switch (the generation that every lease carries), the devices that
//! have its programs, and what is shown of it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::api::protocol;
use crate::dataplane::node::uplinks;
use crate::ebpf;
use crate::net::NodeNet;
use crate::with_causes;

/// Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Express {
    switch: Arc<Mutex<Switch>>,
    attached: Arc<Mutex<Attached>>,
    status: Arc<Mutex<Option<protocol::Express>>>,
}

#[derive(Debug, Default)]
struct Switch {
    /// viprouted ends: it stays off.
    stopped: bool,
    /// While it is on.
    on: Option<On>,
}

/// The map by which it is on.
#[derive(Debug)]
struct On {
    dir: PathBuf,
    map: ebpf::Express,
    /// As it was read or written last.
    generation: u64,
}

impl On {
    /// `None`: there is no such map.
    fn open(dir: &Path) -> ebpf::Result<Option<Self>> {
        let Some(map) = ebpf::Express::open(dir)? else { return Ok(None) };
        let generation = map.generation()?;
        Ok(Some(Self { dir: dir.to_owned(), map, generation }))
    }

    fn set(&mut self, generation: u64) -> ebpf::Result<()> {
        self.map.set_generation(generation)?;
        self.generation = generation;
        Ok(())
    }
}

/// The devices that may have programs of ours.
#[derive(Debug, Default)]
pub struct Attached {
    /// viprouted ends: no more are put there.
    stopped: bool,
    /// Their indexes.
    pub indexes: BTreeSet<u32>,
}

impl Express {
    /// Lets packets take it, by the map in `dir`. A generation that the run before left is raised. Returns the generation;
    /// 0: the map isn't there, or viprouted ends.
    pub fn on(&self, dir: &Path) -> ebpf::Result<u64> {
        let mut switch = lock(&self.switch);
        if switch.stopped {
            return Ok(0);
        }
        if let Some(before) = switch.on.as_mut().filter(|before| before.dir != dir) {
            before.set(0)?;
        }
        // Anew each time: the pins may have been made anew.
        let was_off = switch.on.take().is_none();
        let Some(mut on) = On::open(dir)? else { return Ok(0) };
        if on.generation == 0 {
            // Not one that was in use a moment ago.
            on.set(u64::from(rand::random::<u16>()) << 8 | 1)?;
        } else if was_off {
            // Nobody has noticed what has changed meanwhile.
            on.set(on.generation + 1)?;
        }
        Ok(switch.on.insert(on).generation)
    }

    /// No packet takes it any more, nor one of the run before's by a map in one of `dirs`.
    pub fn off<'a>(&self, dirs: impl Iterator<Item = &'a Path>) -> ebpf::Result<()> {
        let mut switch = lock(&self.switch);
        if let Some(mut on) = switch.on.take() {
            on.set(0)?;
        }
        for dir in dirs {
            if let Some(mut left) = On::open(dir)?.filter(|left| left.generation > 0) {
                left.set(0)?;
            }
        }
        Ok(())
    }

    /// Ends all leases: something has changed that may concern a packet which has one. At once; nothing where it is off.
    pub fn bump(&self) {
        let mut switch = lock(&self.switch);
        let Some(on) = &mut switch.on else { return };
        if let Err(error) = on.set(on.generation + 1) {
            tracing::warn!(error = with_causes(&error), "the express path's generation can't be written");
            // Opened anew with the next look. Leases end by themselves.
            switch.on = None;
        }
    }

    /// The devices, for who changes what is on them; none: viprouted ends.
    pub fn attached(&self) -> Option<MutexGuard<'_, Attached>> {
        Some(lock(&self.attached)).filter(|attached| !attached.stopped)
    }

    /// Off, and its programs taken off: nobody would end leases when rules change, and nothing is left when viprouted is
    /// removed.
    pub fn stop(&self, node: &NodeNet) {
        {
            let mut switch = lock(&self.switch);
            switch.stopped = true;
            if let Some(mut on) = switch.on.take()
                && let Err(error) = on.set(0)
            {
                tracing::warn!(error = with_causes(&error), "the express path isn't switched off");
            }
        }
        let mut attached = lock(&self.attached);
        attached.stopped = true;
        for index in std::mem::take(&mut attached.indexes) {
            if let Err(error) = uplinks::clear(node, index) {
                tracing::warn!(error = with_causes(&error), "the express path's programs stay on link {index}");
            }
        }
    }

    /// As it was when it was last looked at, with the generation of this moment.
    pub fn status(&self) -> Option<protocol::Express> {
        let generation = lock(&self.switch).on.as_ref().map_or(0, |on| on.generation);
        lock(&self.status).clone().map(|status| protocol::Express { generation, ..status })
    }

    /// What is shown from now on.
    pub fn publish(&self, status: protocol::Express) {
        *lock(&self.status) = Some(status);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
