//! The way to the API server: its own address before that of the Service `kubernetes`, which kube-proxy has to translate.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use k8s_openapi::api::core::v1::{Namespace, Service};
use kube::Api;
use kube::api::ListParams;
use kube::client::ConfigExt;
use kube::config::{KubeConfigOptions, Kubeconfig};

use crate::node::config::Kubernetes;
use crate::node::peers::lookup;

use super::API_SERVICE;

/// A connection that isn't there after this time is tried elsewhere.
const CONNECT: Duration = Duration::from_secs(5);
/// A request that isn't answered after this time has failed.
pub const ANSWER: Duration = Duration::from_secs(10);
/// A server that has gone without a word is found out within half a minute: a watch may have nothing to say for minutes.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(10), Duration::from_secs(5), 3);

/// Why the API can't be asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file of kubernetes.kubeconfig.
    #[error("kubernetes.kubeconfig can't be used")]
    Kubeconfig(#[source] kube::config::KubeconfigError),
    /// No pod's credentials are here.
    #[error("no kubernetes.kubeconfig is set, and viprouted runs in no pod of the cluster")]
    InCluster(#[source] kube::config::InClusterError),
    /// Its address.
    #[error("the API server {0:?} is no https://HOST:PORT")]
    Server(String),
    /// Its name.
    #[error("the API server's name {name} isn't known: {why}")]
    Name {
        /// The name.
        name: String,
        /// Why not.
        why: String,
    },
    /// Credentials.
    #[error(transparent)]
    Client(#[from] kube::Error),
    /// No answer in time.
    #[error("the API server gave no answer within {} s", ANSWER.as_secs())]
    TimedOut,
}

/// Where the API server may be, the best place first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Where the configuration says.
    Configured,
    /// The API server's own address, as the cluster has told.
    Own(SocketAddr),
}

/// Where to look for the API server. `remembered`: where it was.
pub fn places(settings: &Kubernetes, remembered: &[SocketAddr]) -> Vec<Place> {
    let is_told = settings.server.is_some() || settings.kubeconfig.is_some();
    let own = remembered.iter().filter(|_| !is_told).map(|address| Place::Own(*address));
    own.chain([Place::Configured]).collect()
}

/// A client of the API server there.
pub async fn client(settings: &Kubernetes, place: &Place) -> Result<kube::Client, Error> {
    let mut config = match &settings.kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path).map_err(Error::Kubeconfig)?;
            let options = KubeConfigOptions::default();
            kube::Config::from_custom_kubeconfig(file, &options).await.map_err(Error::Kubeconfig)?
        }
        None => kube::Config::incluster().map_err(Error::InCluster)?,
    };
    if let Some(server) = &settings.server {
        config.cluster_url = server.parse().map_err(|_| Error::Server(server.clone()))?;
    }
    let host = config.cluster_url.host().unwrap_or_default().to_owned();
    let at = match place {
        Place::Own(address) => Some(*address),
        Place::Configured => address_of(&host, config.cluster_url.port_u16().unwrap_or(443)).await?,
    };
    if let Some(address) = at {
        // The certificate is for the name, or for the Service's address.
        config.tls_server_name.get_or_insert(host);
        let (scheme, path) = (config.cluster_url.scheme_str().unwrap_or("https"), config.cluster_url.path());
        let server = format!("{scheme}://{address}{path}");
        config.cluster_url = server.parse().map_err(|_| Error::Server(server))?;
    }
    build(config)
}

/// The address of a name; `None`: it is one already. The C library isn't asked, which a static program can't count on.
async fn address_of(host: &str, port: u16) -> Result<Option<SocketAddr>, Error> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    if bare.parse::<IpAddr>().is_ok() {
        return Ok(None);
    }
    let unknown = |why| Error::Name { name: host.to_owned(), why };
    let found = lookup(&format!("{host}:{port}")).await.map_err(unknown)?;
    let first = found.iter().find(|at| has_way(**at)).or(found.first());
    Ok(Some(*first.ok_or_else(|| unknown("it has no address".to_owned()))?))
}

/// Whether this node has a route to it, and an address to call from.
fn has_way(at: SocketAddr) -> bool {
    let any: IpAddr = if at.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    UdpSocket::bind((any, 0)).and_then(|socket| socket.connect(at)).is_ok()
}

fn build(config: kube::Config) -> Result<kube::Client, Error> {
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(CONNECT));
    http.set_keepalive(Some(KEEPALIVE.0));
    http.set_keepalive_interval(Some(KEEPALIVE.1));
    http.set_keepalive_retries(Some(KEEPALIVE.2));
    let https = config.rustls_https_connector_with_connector(http)?;
    let service = tower::ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .map_err(tower::BoxError::from)
        .service(hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(https));
    Ok(kube::Client::new(service, config.default_namespace))
}

/// Which cluster it is: the identity of its namespace kube-system. And whether it has the API's own Service, which none is without.
pub async fn cluster(client: &kube::Client) -> Result<(String, bool), Error> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let (namespace, name) = API_SERVICE.split_once('/').unwrap_or_default();
    let services: Api<Service> = Api::namespaced(client.clone(), namespace);
    let its = ListParams::default().fields(&format!("metadata.name={name}"));
    let asked = async { tokio::try_join!(namespaces.get("kube-system"), services.list(&its)) };
    let (system, services) = tokio::time::timeout(ANSWER, asked).await.map_err(|_| Error::TimedOut)??;
    Ok((system.metadata.uid.unwrap_or_default(), !services.items.is_empty()))
}

/// What went wrong, in few words: the API's own where it gave some.
pub fn reason(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if status.code == 403 => {
            format!("{} (apply the rights of conf/kubernetes-rbac.yaml)", status.message)
        }
        kube::Error::Api(status) => format!("{} ({})", status.message, status.code),
        other => crate::with_causes(other),
    }
}
