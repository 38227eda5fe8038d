//! docs/quickstart/kubernetes.md, as it stands.

use std::fs;
use std::path::Path;
use std::time::Instant;

use crate::bed::{Cluster, Setup, programs, tag};
use crate::harness::{blocks, image, script};

/// In place of the one that would read a machine's own configuration.
const KUBECTL: &str = "#!/bin/sh\nexec PARTS/kubectl \"$@\"\n";
const HELM: &str = "#!/bin/sh\nexec HELM \"$@\"\n";
/// An overlay can't lie on another one.
const CTR: &str = "#!/bin/sh\nexport CONTAINERD_SNAPSHOTTER=native\nexec /usr/bin/ctr \"$@\"\n";

/// Before the block that begins so, people wait for this: the address is there a moment before the pods are attached, and they a moment before they get
/// connections.
const WAITS: [(&str, &str); 1] = [(
    "kubectl get service web",
    "[ \"$(for pod in $(kubectl -n kube-system get pods -l app.kubernetes.io/component=agent -o name); do \
     kubectl -n kube-system exec $pod -c viprouted -- viproutectl status; done | grep -c ' serving .* [1-9][0-9.]* %')\" = 2 ]",
)];

#[test]
fn the_quickstart_is_right() {
    let cluster = Cluster::with(&Setup { bare: true, ..Setup::default() });
    let nginx = cluster.workers[0].containerd.machine.path("/root/nginx.tar");
    image::server(&nginx, "docker.io/library/nginx:alpine");
    for worker in &cluster.workers {
        worker.containerd.import(&nginx, "docker.io/library/nginx:alpine");
    }
    let [first, second] = [&cluster.workers[0], &cluster.workers[1]].map(|worker| &worker.containerd);
    let machine = &first.machine;
    let helm = concat!(env!("CARGO_MANIFEST_DIR"), "/target/helm/helm");
    let parts = concat!(env!("CARGO_MANIFEST_DIR"), "/target/kubernetes");
    let replaced =
        [("kubectl", KUBECTL.replace("PARTS", parts)), ("helm", HELM.replace("HELM", helm)), ("ctr", CTR.into())];
    for (name, text) in replaced {
        machine.write(&format!("/usr/local/bin/{name}"), &text);
        machine.sh(&format!("chmod 755 /usr/local/bin/{name}"));
    }
    machine.write("/root/.kube/config", &cluster.control.admin());
    // Its dist/ is the test's own.
    machine.sh("mkdir /root/viproute && cp -r \"$SOURCE/packaging\" \"$SOURCE/LICENSE\" /root/viproute");

    let blocks = blocks("kubernetes.md");
    assert!(blocks.len() >= 7, "{blocks:#?}");
    let (image, rest) = blocks.split_first().expect("blocks");
    let environment =
        format!("set -eu\ncd /root/viproute\nexport HOME=/root BINARIES={}\nPATH=/usr/local/bin:$PATH\n", programs());
    let run = |text: &str| {
        machine.write("/root/quickstart.sh", &(environment.clone() + text));
        machine.sh("bash /root/quickstart.sh >/root/said 2>&1 </dev/null || { cat /root/said >&2; exit 1; }");
        machine.read("/root/said")
    };
    let begin = Instant::now();
    let made = run(image);
    // "Copy it to each node, and there": the import is in what follows.
    let archive = machine.path(&format!("/root/viproute/{}", made.trim()));
    let tag = tag();
    second.import(Path::new(&archive), &format!("localhost/viproute:{tag}"));
    assert!(fs::metadata(&archive).expect("the image").len() > 1 << 20);

    let said = run(&script(rest, &WAITS));
    eprintln!("from the image to the last block: {:.1} s", begin.elapsed().as_secs_f32());
    for part in [
        "STATUS: deployed",
        "service/web condition met",
        "192.0.2.20",
        " serving ",
        "a page of the server",
        "release \"viproute\" uninstalled",
        "== the end",
    ] {
        assert!(said.contains(part), "no {part:?} in\n{said}");
    }
}
