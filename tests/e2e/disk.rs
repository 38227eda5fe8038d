//! A disk that is full or read-only: what can't be recorded isn't done, and what serves goes on serving.

use serde_json::json;

use crate::harness::{Failure, Join, Lan, Node, Pod, PodServer, Sidecar, SmallFs, connect};

/// A node whose registry is on a file system of its own, with a survivor and a pod that is about to join.
struct Scene {
    disk: SmallFs,
    survivor: Pod,
    _server: PodServer,
    pod: Pod,
    node: Node,
    _lan: Lan,
}

impl Scene {
    fn new() -> Self {
        let lan = Lan::new();
        let (node, disk) = (Node::new(&lan, 1), SmallFs::new(64, 128));
        let survivor = node.joined(&join_on(&disk, "web"));
        let server = PodServer::start(&survivor);
        let pod = node.pod();
        let scene = Self { disk, survivor, _server: server, pod, node, _lan: lan };
        // Once there and back: what a first ADD leaves on a node by design is there then.
        scene.node.add(&scene.pod, &scene.join("web,fresh")).ok();
        scene.node.del(&scene.pod, &scene.join("web,fresh")).ok();
        *scene.pod.result.lock().unwrap() = None;
        scene
    }

    fn join(&self, vips: &str) -> Join {
        join_on(&self.disk, vips)
    }

    /// An ADD on a disk with so much room: whole, or refused with nothing left of it. Returns why it was refused.
    fn squeezed(&self, pages: u64, files: u64) -> Option<Failure> {
        let join = self.join("web,fresh");
        let before = self.node.snapshot(&[&self.survivor, &self.pod]);
        self.disk.fill(pages, files);
        let reply = self.node.add(&self.pod, &join);
        let refused = (!reply.succeeded()).then(|| reply.error());
        if refused.is_none() {
            self.node.check(&self.pod, &join).ok();
            // To remove something takes no room.
            self.disk.fill(0, 0);
            self.node.del(&self.pod, &join).ok();
            *self.pod.result.lock().unwrap() = None;
        }
        self.node.gc(&[&self.survivor], &join).ok();
        self.disk.empty();
        let what = format!("an ADD with room for {pages} pages and {files} files ({refused:?})");
        before.assert_same(&self.node.snapshot(&[&self.survivor, &self.pod]), &what);
        self.node.check(&self.survivor, &self.join("web")).ok();
        connect(&self.node.ns, self.survivor.vip(), 2);
        refused
    }
}

fn join_on(disk: &SmallFs, vips: &str) -> Join {
    Join::annotated(vips).key("dataDir", json!(disk.path().join("data")))
}

/// One page, or one file, more each time: the disk is full at every write in turn.
#[test]
fn full_at_each_write() {
    let scene = Scene::new();
    for (limit, room) in [("pages", 0), ("files", 1)] {
        let mut refusals = 0;
        let done = (0..30).find(|room_left| {
            let (pages, files) = if room == 0 { (*room_left, 40) } else { (40, *room_left) };
            match scene.squeezed(pages, files) {
                Some(error) => {
                    assert_eq!(error.code, 5, "{error:?}");
                    assert!(error.text().contains("data/"), "the file is named: {error:?}");
                    refusals += 1;
                    false
                }
                None => true,
            }
        });
        assert!(done.is_some(), "30 {limit} are enough");
        assert!(refusals > 2, "an ADD writes more than {refusals} {limit}");
    }
}

/// Nothing works that would have to be recorded, and nothing changes; once it can be written to, all goes on.
#[test]
fn read_only() {
    let scene = Scene::new();
    let join = scene.join("web,fresh");
    // Its devices go when the kernel finds time: it stays to the end.
    let plain = scene.node.pod();
    let before = scene.node.snapshot(&[&scene.survivor, &scene.pod]);
    scene.disk.set_read_only(true);
    let error = scene.node.add(&scene.pod, &join).error();
    assert_eq!(error.code, 5, "{error:?}");
    assert!(error.details.contains("Read-only"), "{error:?}");
    scene.node.add(&plain, &Join::nothing()).ok();
    let error = scene.node.del(&scene.survivor, &join).error();
    assert_eq!(error.code, 5, "{error:?}");
    assert_eq!(scene.node.gc(&[], &join).error().code, 5);
    connect(&scene.node.ns, scene.survivor.vip(), 2);
    scene.disk.set_read_only(false);
    before.assert_same(&scene.node.snapshot(&[&scene.survivor, &scene.pod]), "calls on a read-only disk");
    scene.node.add(&scene.pod, &join).ok();
    scene.node.check(&scene.pod, &join).ok();
    scene.node.gc(&[], &join).ok();
    assert_eq!(scene.node.ns.ip("nexthop show proto 118") + &scene.node.ns.ip("route show proto 118"), "");
}

/// An address that can't be recorded isn't granted; there is room again, and it is.
#[test]
fn full_where_the_leases_are() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let disk = SmallFs::new(64, 128);
    std::os::unix::fs::symlink(disk.path(), node.dir.file("state")).unwrap();
    let sidecar = Sidecar::pool(&node, "10.118.0.0/24");
    let held = sidecar.acquire("default/held").unwrap();
    for (pages, files) in [(0, 10), (1, 0), (0, 0)] {
        disk.fill(pages, files);
        let error = sidecar.acquire(&format!("default/more-{pages}-{files}")).unwrap_err();
        assert_eq!(error.code, 5, "{error:?}");
        let kept = sidecar.status("default/held").unwrap();
        assert_eq!(kept["address"], json!(held), "what is held goes on: {kept}");
    }
    disk.empty();
    let late = sidecar.acquire("default/more-0-0").unwrap();
    assert_ne!(late, held);
    disk.fill(0, 0);
    drop(sidecar);
    let sidecar = Sidecar::pool(&node, "10.118.0.0/24");
    for (vip, address) in [("default/held", held), ("default/more-0-0", late)] {
        assert_eq!(sidecar.status(vip).unwrap()["address"], json!(address), "after a start on a full disk");
    }
    disk.empty();
    assert_eq!(sidecar.acquire("default/held").unwrap(), held);
    assert_eq!(sidecar.acquire("default/more-0-0").unwrap(), late);
}
