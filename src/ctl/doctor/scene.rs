//! The state that every group of findings examines, read once.

use std::path::{Path, PathBuf};

use crate::api::client;
use crate::api::protocol::Status;
use crate::ctl::ANSWER;
use crate::ctl::networks::Network;
use crate::lease::settings::{Gateway, RoutingDaemon};
use crate::model::{Cluster, VipKey};
use crate::net::{self, NodeNet, link, route};
use crate::node::config::{self, Config};
use crate::registry::{Endpoint, VipRecord, nodes};

use super::Places;
use super::installed::Installed;

/// The node as it is.
pub struct Scene<'a> {
    pub places: &'a Places,
    pub net: NodeNet,
    /// The VIPs with all their usable files; none where the registry is of another boot.
    pub vips: Vec<Vip>,
    /// This node and the others, as recorded; none where it stands alone.
    pub cluster: Option<Cluster>,
    /// The device of the default route.
    pub uplink: Option<String>,
    /// The runtime's networks, in its order.
    pub networks: Vec<Network>,
    /// viprouted's configuration; none: there is no such file.
    pub config: Option<Result<Config, config::Error>>,
    /// What viprouted says.
    pub agent: Result<Status, client::Error>,
    /// Who has installed viproute.
    pub installed: Installed,
}

/// A VIP of this node.
pub struct Vip {
    pub key: VipKey,
    pub record: VipRecord,
    /// By attachment.
    pub endpoints: Vec<(String, Endpoint)>,
}

impl<'a> Scene<'a> {
    pub fn read(places: &'a Places) -> net::Result<Self> {
        let net = NodeNet::open()?;
        let uplink = match route::first_default_way(&net)?.and_then(|way| way.hop.index) {
            Some(index) => link::by_index(&net, index)?.map(|link| link.name),
            None => None,
        };
        Ok(Self {
            places,
            uplink,
            vips: vips(places),
            cluster: cluster(places),
            networks: Network::read_all(&places.conf_dir),
            config: places.config.exists().then(|| Config::load(&places.config)),
            agent: client::status(&places.allocator, ANSWER),
            installed: Installed::read(),
            net,
        })
    }

    /// Whether this node serves its VIPs together with others.
    pub fn has_other_nodes(&self) -> bool {
        self.cluster.as_ref().is_some_and(|cluster| !cluster.nodes.is_empty())
    }

    /// The endpoints of all VIPs.
    pub fn endpoints(&self) -> impl Iterator<Item = &(String, Endpoint)> {
        self.vips.iter().flat_map(|vip| &vip.endpoints)
    }

    /// The configuration, where it is right.
    pub fn good_config(&self) -> Option<&Config> {
        self.config.as_ref()?.as_ref().ok()
    }

    /// Whether viprouted asks a BIRD, which can be this node's own.
    pub fn has_bird(&self) -> bool {
        let is_bird = |gateway: &Gateway| gateway.daemon == RoutingDaemon::Bird;
        self.good_config().is_some_and(|config| config.lease.gateways.iter().any(is_bird))
    }

    /// Who looks for the plugin, and where: the first directory that has it.
    pub fn lookups(&self) -> Vec<(&'static str, Vec<PathBuf>)> {
        const USUAL: [&str; 2] = ["/opt/cni/bin", "/usr/lib/cni"];
        let Places { bin_dirs, runtimes, .. } = self.places;
        match (&bin_dirs[..], &runtimes[..]) {
            ([], []) => vec![("a runtime", USUAL.map(PathBuf::from).into())],
            ([], runtimes) => runtimes.iter().map(|runtime| (runtime.name, runtime.plugin_dirs.clone())).collect(),
            (given, _) => vec![("a runtime", given.to_vec())],
        }
    }

    /// The plugin, where any runtime finds it.
    pub fn plugin(&self) -> Option<PathBuf> {
        self.lookups().iter().find_map(|(_, dirs)| in_dirs(dirs))
    }

    /// Where the flow owner is pinned; none where every network does without it.
    pub fn bpf_dir(&self) -> Option<PathBuf> {
        let recorded = self.vips.iter().find_map(|vip| vip.record.flow_owner.clone());
        recorded.or_else(|| {
            let entries: Vec<_> = self.networks.iter().filter_map(Network::entry).collect();
            let with = |config: &&crate::cni::protocol::Config| config.flow_owner;
            match entries.iter().filter_map(|entry| entry.config.as_ref().ok()).find(with) {
                Some(config) => Some(config.bpf_dir.clone()),
                None if entries.is_empty() => Some(Path::new("/sys/fs/bpf/viproute").to_owned()),
                None => None,
            }
        })
    }
}

/// The plugin, as a runtime finds it.
pub fn in_dirs(dirs: &[PathBuf]) -> Option<PathBuf> {
    dirs.iter().map(|dir| dir.join("viproute")).find(|path| path.is_file())
}

fn cluster(places: &Places) -> Option<Cluster> {
    let registry = &places.registry;
    registry.is_of_this_boot().unwrap_or(false).then(|| nodes::load(registry).ok().flatten()).flatten()
}

/// Files that can't be used are `registry`'s business.
fn vips(places: &Places) -> Vec<Vip> {
    let registry = &places.registry;
    if !registry.is_of_this_boot().unwrap_or(false) {
        return Vec::new();
    }
    let read = |key: VipKey| {
        let record = registry.vip_record(&key).ok()??;
        let endpoints = registry.endpoints(&key).ok()?;
        let endpoints = endpoints.into_iter().filter_map(|(name, endpoint)| Some((name, endpoint.ok()?))).collect();
        Some(Vip { key, record, endpoints })
    };
    registry.vips().unwrap_or_default().into_iter().filter_map(read).collect()
}
