//! Lease files that can't be read, of VIPs in service.

use std::fs;
use std::time::Duration;

use crate::harness::{DhcpServer, KEA_POOL, Lan, Node, Sidecar, connect, serve_all, until};

use super::{SOON, wait_until_answered_for, web};

#[test]
fn a_vip_whose_lease_file_is_damaged_is_renewed_and_that_is_said() {
    let lan = Lan::new();
    let server = DhcpServer::kea(&lan, 6, Some(KEA_POOL));
    let node = Node::without_allocator(&lan, 1);
    let sidecar = Sidecar::dhcp(&node, "");
    let client = lan.client(50, &[]);
    let pods = [node.joined(&web())];
    let _servers = serve_all(&pods);
    let vip = pods[0].vip();
    until("the lease is confirmed", SOON, || sidecar.daemon.log().contains("renewed: ").then_some(()));
    sidecar.stop();
    let path = node.dir.path().join("state/leases/shop_web.json");
    let whole = fs::read_to_string(&path).unwrap();
    let torn = &whole[..whole.len() / 2];
    fs::write(&path, torn).unwrap();
    let sidecar = Sidecar::dhcp(&node, "");
    let grants = || server.leases().iter().filter(|line| line.starts_with(&format!("{vip},"))).count();
    let before = grants();
    // Four renewals of a lease of six seconds.
    until("it is renewed", Duration::from_secs(60), || {
        assert_eq!(pods[0].vips(), [vip], "{}", sidecar.daemon.log());
        (grants() >= before + 4).then_some(())
    });
    wait_until_answered_for(&node, vip);
    connect(&client, vip, 3);
    let status = sidecar.status("shop/web").unwrap();
    let error = status["error"].as_str().unwrap();
    assert!(
        error.contains("shop_web.json") && error.ends_with("its lease is renewed, and not kept on disk"),
        "{error}"
    );
    assert_eq!((&status["state"], status["address"].as_str()), (&"bound".into(), Some(&*vip.to_string())));
    assert_eq!(fs::read_to_string(&path).unwrap(), torn, "left as it is");
    // It is written anew when it is missing and something happens to the VIP.
    fs::remove_file(&path).unwrap();
    let second = node.joined(&web());
    assert_eq!(second.vip(), vip);
    until("the lease is on disk", SOON, || {
        fs::read_to_string(&path).ok().filter(|text| text.contains(&vip.to_string()))
    });
    until("nothing is wrong any more", SOON, || sidecar.status("shop/web")?["error"].is_null().then_some(()));
}
