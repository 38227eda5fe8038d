//! ADD: a pod joins its VIPs.

use std::net::IpAddr;
use std::path::Path;

use nix::errno::Errno;

use crate::cni::protocol::config::ConfigError;
use crate::cni::protocol::env::{self, EnvError};
use crate::cni::protocol::result::{self, Interface};
use crate::cni::protocol::{Call, Config, PrevResult};
use crate::dataplane::attachment::PodDevices;
use crate::dataplane::ids::{POD_DEVICE, VethNames};
use crate::membership::{self, Host, Pod, Registration, Want, node};
use crate::model::AttachmentId;
use crate::net::{self, Netns, PodNet};
use crate::registry::{self, Registry, record};

use super::annotations;
use super::error::Error;
use super::pod_address;
use super::report::Report;

/// Attaches the pod; returns the result for stdout.
pub fn run(call: &Call, config: Config, report: &mut Report) -> Result<String, Error> {
    let wants = annotations::read(call, &config).inspect_err(|_| report.is_ours(&config, []))?;
    let Some(wants) = wants else {
        if config.register
            && let Err(error) = register(call, &config)
        {
            report.not_registered(&config, &error);
        }
        return Ok(pass_through(config));
    };
    report.is_ours(&config, wants.iter().map(|want| want.vip.clone()));
    Request::check(call, &config)?.attach(&wants)
}

/// Passes through a pod that names no VIP: prevResult goes out as it came in, to the letter where it has the right version.
fn pass_through(config: Config) -> String {
    let Config { prev_result, cni_version, .. } = config;
    let nothing = || format!("{{\"cniVersion\":\"{cni_version}\"}}");
    prev_result.map_or_else(nothing, |raw| result::in_version(&raw, &cni_version))
}

/// Records a pod that is passed through, so that it can join VIPs later.
fn register(call: &Call, config: &Config) -> Result<(), Error> {
    let (attachment, netns) = named(call)?;
    let result = config.prev_result.as_deref().map(PrevResult::parse).transpose()?;
    let registration = Registration {
        attachment: attachment.clone(),
        netns: registry::Netns::at(netns).map_err(|e| Error::Io("look at CNI_NETNS", e))?,
        address: result.as_ref().and_then(|result| first_address(result, &attachment.ifname)),
        name: name(call),
        network: config.network(),
    };
    Ok(membership::register(&Registry::new(&config.data_dir), registration)?)
}

/// By which a pod that is passed through can be known: of IPv6 where the result has none of IPv4.
fn first_address(result: &PrevResult, ifname: &str) -> Option<IpAddr> {
    result.addresses(ifname).first().or_else(|| result.others(ifname).first().copied())
}

fn named(call: &Call) -> Result<(&AttachmentId, &Path), Error> {
    let missing = |what| Error::Env(EnvError::Missing(what));
    let attachment = call.attachment.as_ref().ok_or(missing("CNI_CONTAINERID"))?;
    Ok((attachment, call.netns.as_deref().ok_or(missing("CNI_NETNS"))?))
}

fn name(call: &Call) -> record::Pod {
    let env::Pod { namespace, name, uid } = call.pod.clone();
    record::Pod { namespace, name, uid }
}

/// An ADD with valid input. Nothing has been changed so far.
struct Request<'a> {
    config: &'a Config,
    result: PrevResult,
    pod: Pod,
    net: PodNet,
    devices: PodDevices,
}

impl<'a> Request<'a> {
    fn check(call: &Call, config: &'a Config) -> Result<Self, Error> {
        node::check_kernel()?;
        let (attachment, netns) = named(call)?;
        let prev_result = config.prev_result.as_ref().ok_or(ConfigError::Missing("prevResult"))?;
        let result = PrevResult::parse(prev_result)?;
        let net = open_pod(netns)?;
        let devices =
            PodDevices::read(&net, &attachment.ifname)?.ok_or_else(|| Error::NoInterface(attachment.ifname.clone()))?;
        let address = pod_address::find(&result, &net, &devices.interface)?;
        let (device, inode) = net.netns().identity()?;
        let netns = registry::Netns { path: netns.to_owned(), device, inode };
        let others = result.others(&attachment.ifname);
        let pod = Pod { attachment: attachment.clone(), netns, address, others, name: name(call) };
        Ok(Self { config, result, pod, net, devices })
    }

    fn attach(self, wants: &[Want]) -> Result<String, Error> {
        let Self { config, result, pod, net, devices } = self;
        let registry = Registry::new(&config.data_dir);
        let host = Host::open(config.network(), registry, config.allocator.clone())?;
        let vips = membership::attach(&host, &pod, (&net, devices), wants)?;
        with_devices(config, result, &pod, &vips)
    }
}

/// prevResult and our two devices.
fn with_devices(config: &Config, mut result: PrevResult, pod: &Pod, vips: &[IpAddr]) -> Result<String, Error> {
    let VethNames { host, host_mac, pod_mac } = VethNames::of(&pod.attachment);
    let host = Interface { name: host, mac: host_mac.to_string(), sandbox: String::new() };
    let sandbox = pod.netns.path.display().to_string();
    let container = Interface { name: POD_DEVICE.to_owned(), mac: pod_mac.to_string(), sandbox };
    result.add_interface(&host);
    let index = result.add_interface(&container);
    // Not by default: kubelet would show them as the pod's own.
    if config.report_ips {
        for vip in vips {
            result.add_address(&config.cni_version, *vip, index);
        }
    }
    result.to_json(&config.cni_version).map_err(|e| Error::Io("encode the result", e.into()))
}

fn open_pod(netns: &Path) -> Result<PodNet, Error> {
    let not_one = |source: net::Error| match source.errno {
        Errno::ENOENT
        | Errno::ENOTDIR
        | Errno::EISDIR
        | Errno::EINVAL
        | Errno::ENOTTY
        | Errno::ELOOP
        | Errno::ENXIO => Error::NotANetns { path: netns.display().to_string(), source },
        _ => Error::Net(source),
    };
    let netns = Netns::open(netns).map_err(not_one)?;
    // ADD would change the node's own interfaces as it changes a pod's.
    if netns.is_own()? {
        return Err(Error::NodesOwnNetns(netns.path().display().to_string()));
    }
    Ok(PodNet::open(netns)?)
}
