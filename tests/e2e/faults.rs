use crate::harness::*;
#[test]
fn plan() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let web = Join::annotated("web");
    node.remove(&node.joined(&web), &web);
    let pod = node.pod();
    let mut command = node.ns.cmd(tool("strace").to_str().unwrap());
    command.args(["-f", "-o", "/tmp/vt/trace", VIPROUTE]);
    node.run(&mut command, &node.environment("ADD", &pod, &web), &node.stdin("ADD", &pod, &web).to_string()).ok();
}
