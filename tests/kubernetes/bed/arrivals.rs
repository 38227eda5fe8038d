//! How soon new Services answer.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::process::{Child, ChildStdout, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::cluster::Cluster;
use crate::harness::{Connection, LONG, PORT, until};

/// A client that learns of each Service and its address by a watch, and calls it until it answers.
pub struct Arrivals {
    kubectl: Child,
    state: Arc<State>,
    reader: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct State {
    over: AtomicBool,
    services: Mutex<BTreeMap<String, Arrival>>,
}

/// When one was seen to be there, and when it answered first.
struct Arrival {
    made: Instant,
    is_called: bool,
    answered: Option<Instant>,
}

impl Arrivals {
    pub fn watch(cluster: &Cluster) -> Self {
        let columns = "--output=custom-columns=NAME:.metadata.name,IP:.status.loadBalancer.ingress[0].ip";
        let mut kubectl = cluster.control.kubectl(&["get", "services", "--watch", "--no-headers", columns]);
        let mut kubectl = kubectl.stdout(Stdio::piped()).spawn().expect("start kubectl");
        let (state, stdout) = (Arc::<State>::default(), kubectl.stdout.take().expect("its output"));
        let read = {
            let state = state.clone();
            move || state.read(stdout)
        };
        // Its threads call from there, too.
        let reader = cluster.client.run(|| thread::spawn(read));
        Self { kubectl, state, reader: Some(reader) }
    }

    /// How long each of these took from its creation to its first answer, the shortest first.
    pub fn of(&self, names: &[String]) -> Vec<Duration> {
        let mut taken = until("all Services have answered", LONG, || {
            thread::sleep(Duration::from_millis(50));
            let services = self.state.services.lock().expect("the Services");
            let taken = |name: &String| services.get(name).and_then(|seen| Some(seen.answered? - seen.made));
            names.iter().map(taken).collect::<Option<Vec<_>>>()
        });
        taken.sort_unstable();
        taken
    }
}

impl State {
    /// Each line is a Service's name and its address or `<none>`.
    fn read(self: Arc<Self>, stdout: ChildStdout) {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let Some((name, address)) = line.split_once(' ') else { continue };
            let mut services = self.services.lock().expect("the Services");
            let new = Arrival { made: Instant::now(), is_called: false, answered: None };
            let service = services.entry(name.to_owned()).or_insert(new);
            let Ok(address) = address.trim().parse() else { continue };
            if !std::mem::replace(&mut service.is_called, true) {
                let (state, name) = (self.clone(), name.to_owned());
                thread::spawn(move || state.call(&name, address));
            }
        }
    }

    fn call(&self, name: &str, address: Ipv4Addr) {
        while !self.over.load(Ordering::Relaxed) {
            if Connection::open((address, PORT).into()).and_then(|mut connection| connection.ask()).is_ok() {
                let mut services = self.services.lock().expect("the Services");
                services.get_mut(name).expect("who is called is known").answered = Some(Instant::now());
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Arrivals {
    fn drop(&mut self) {
        self.state.over.store(true, Ordering::Relaxed);
        let _ = self.kubectl.kill();
        let _ = self.kubectl.wait();
        let _ = self.reader.take().map(JoinHandle::join);
    }
}
