//! Modules of the kernel's that are missing: named with the command that loads them, by doctor and by the call that needs them. They
//! are unloaded, and the kernel is kept from loading them, for all of the machine: `tests/kernels.sh` runs these tests by
//! themselves, in a guest.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::Patient;
use crate::harness::{Join, PATIENCE, Run, VIPROUTECTL, until};

/// While this is there, the kernel loads no module by itself.
struct NoAutoload(String);

impl NoAutoload {
    const PATH: &str = "/proc/sys/kernel/modprobe";

    fn new() -> Self {
        let before = fs::read_to_string(Self::PATH).expect("a kernel with modules");
        fs::write(Self::PATH, "/nowhere").expect("kernel.modprobe");
        Self(before.trim().to_owned())
    }
}

impl Drop for NoAutoload {
    fn drop(&mut self) {
        let _ = fs::write(Self::PATH, &self.0);
    }
}

/// What is no module of this kernel's can't be missing.
fn is_module(name: &str) -> bool {
    Command::new("modinfo").args(["-F", "filename", name]).finish("").stdout.contains(".ko")
}

/// Namespaces that have just gone may use it for a moment.
fn unload(module: &str) {
    until(&format!("{module} can be unloaded"), PATIENCE, || {
        Command::new("rmmod").arg(module).finish("");
        (!Path::new("/sys/module").join(module).exists()).then_some(())
    });
}

#[test]
#[ignore = "unloads modules of the kernel's: tests/kernels.sh runs it in a guest"]
fn what_programs_of_devices_need() {
    let patient = Patient::new(0);
    let (pod, web) = (patient.node.pod(), Join::annotated("web"));
    for module in ["sch_ingress", "cls_bpf"] {
        let _kept = NoAutoload::new();
        unload(module);
        let error = patient.node.add(&pod, &web).error();
        assert_eq!(error.code, 108, "{error:?}");
        assert!(error.text().contains(&format!("run modprobe {module}")), "{error:?}");
        patient.recovers("error", &format!("the kernel's module {module} isn't loaded"));
        patient.node.add(&pod, &web).ok();
        patient.node.del(&pod, &web).ok();
    }
}

#[test]
#[ignore = "unloads modules of the kernel's: tests/kernels.sh runs it in a guest"]
fn what_listings_of_sockets_need() {
    let patient = Patient::new(1);
    let name = format!("default/{}", patient.pods[0].name);
    let tool = |arguments: &[&str]| {
        let mut tool = patient.node.ns.cmd(VIPROUTECTL);
        tool.args(["--data-dir", &patient.node.data()]).args(arguments).finish("")
    };
    let modules = ["tcp_diag", "udp_diag"].into_iter().filter(|module| is_module(module));
    for module in modules {
        let _kept = NoAutoload::new();
        unload(module);
        if module == "tcp_diag" {
            let refused = tool(&["drain", "--wait", &name]);
            assert!(refused.stderr.contains("run modprobe tcp_diag"), "{refused:?}");
            tool(&["undrain", &name]).ok();
        }
        patient.recovers("warning", &format!("the kernel's module {module} isn't loaded"));
    }
}
