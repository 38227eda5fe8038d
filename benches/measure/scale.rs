//! How much of everything: the full run within 40 minutes of two cores, the quick one in about three.

use std::time::Duration;

#[derive(Clone, Debug)]
pub struct Scale {
    pub quick: bool,
    /// After one to warm up.
    pub rounds: usize,
    /// One measurement of throughput.
    pub time: Duration,
    pub services: Vec<usize>,
    pub replicas: Vec<usize>,
    /// Live connections.
    pub connections: usize,
    /// How long after an event its live connections are looked at for the last time.
    pub settled: Duration,
    /// Calls of a plugin, alone, in each round.
    pub calls: usize,
    /// Calls at once.
    pub at_once: usize,
    /// Replicas that are there already when a plugin is called.
    pub present: Vec<usize>,
    /// Endpoints the agent looks after.
    pub endpoints: Vec<usize>,
    /// How long the agent is watched.
    pub watch: Duration,
    /// VIPs acquired from cold.
    pub leases: usize,
    /// Leases that are renewed, if any, and how long that is watched.
    pub renewed: usize,
    pub renewing: Duration,
}

impl Scale {
    pub fn full() -> Self {
        Self {
            quick: false,
            rounds: 5,
            time: Duration::from_millis(800),
            services: vec![1, 10, 100, 1000, 5000],
            replicas: vec![3, 30, 300],
            connections: 1000,
            settled: Duration::from_secs(2),
            calls: 20,
            at_once: 100,
            present: vec![0, 10, 100, 1000],
            endpoints: vec![10, 100, 1000],
            // The agent looks at everything once a minute.
            watch: Duration::from_secs(60),
            leases: 500,
            renewed: 5000,
            renewing: Duration::from_secs(60),
        }
    }

    pub fn quick() -> Self {
        Self {
            quick: true,
            rounds: 3,
            time: Duration::from_millis(150),
            services: vec![1, 100, 1000],
            replicas: vec![3, 30],
            connections: 200,
            settled: Duration::from_millis(700),
            calls: 5,
            at_once: 20,
            present: vec![0, 10, 50],
            endpoints: vec![10, 50],
            watch: Duration::from_secs(1),
            leases: 50,
            renewed: 0,
            renewing: Duration::from_secs(60),
        }
    }
}
