//! How much of everything: the full run within half an hour on two cores, the quick one in a few.

use std::time::Duration;

#[derive(Clone, Debug)]
pub struct Scale {
    pub quick: bool,
    /// After one to warm up.
    pub rounds: usize,
    /// One measurement of throughput.
    pub time: Duration,
    /// How often nodes are made anew for CPU time: where things lie in memory makes a difference of a few percent.
    pub nodes: usize,
    /// Slices of CPU time for each contender and transaction on each of these.
    pub slices: usize,
    /// One of them.
    pub slice: Duration,
    /// Between the steps of a rolling update.
    pub step: Duration,
    /// New connections a second during a rolling update.
    pub arrivals: Vec<f64>,
    pub services: Vec<usize>,
    pub replicas: Vec<usize>,
    /// Live connections.
    pub connections: usize,
    /// How long after an event its live connections are asked for the last time.
    pub settled: Duration,
    /// Calls of a plugin, alone, in each round.
    pub calls: usize,
    /// Calls at once.
    pub at_once: usize,
    /// Replicas that are there already when a plugin is called.
    pub present: Vec<usize>,
    /// Endpoints on the agent's node.
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
            time: Duration::from_millis(400),
            nodes: 4,
            slices: 15,
            slice: Duration::from_millis(8),
            step: Duration::from_secs(5),
            arrivals: vec![85.0, 1000.0],
            services: vec![1, 10, 100, 1000, 5000],
            replicas: vec![3, 30, 300],
            connections: 1000,
            settled: Duration::from_secs(2),
            calls: 20,
            at_once: 100,
            present: vec![0, 10, 100, 1000],
            endpoints: vec![10, 1000],
            // The agent checks everything once a minute.
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
            nodes: 1,
            slices: 15,
            slice: Duration::from_millis(4),
            step: Duration::from_secs(1),
            arrivals: vec![85.0, 1000.0],
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
