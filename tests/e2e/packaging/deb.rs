//! packaging/deb.sh: what Debian's own tools make of the package.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use super::{built, sources};
use crate::harness::{Run, TempDir, tool};
use crate::install::{MACHINE, THEIRS};

/// Makes the package of the static programs; its path.
fn package(sources: &TempDir) -> PathBuf {
    let mut command = Command::new(sources.path().join("packaging/deb.sh"));
    command.arg(std::env::consts::ARCH).env("BINARIES", built("viproute").parent().unwrap());
    sources.path().join(command.finish("").ok().trim())
}

#[test]
fn lintian_finds_nothing_and_two_packages_are_the_same() {
    let places = [sources(), sources()];
    let made = [package(&places[0]), package(&places[1])];
    assert!(fs::read(&made[0]).unwrap() == fs::read(&made[1]).unwrap(), "two packages of one source differ");
    let mut lintian = Command::new(tool("lintian"));
    lintian.args(["--allow-root", "--no-cfg", "--fail-on", "error,warning"]).arg(&made[0]);
    assert_eq!(lintian.finish("").ok(), "");
}

/// Everything but what dpkg notes for itself.
const LIFE: &str = r##"
rm -rf /run/systemd
tree() {
    find /etc /opt /usr /var /run ! -type d -printf '%p %m %l\n' |
        grep -vE '^/var/(lib/dpkg|log|cache)/|^/etc/ld.so.cache' | LC_ALL=C sort
}
tree >/tmp/before
dpkg -i /deb >/tmp/said
grep "viproutectl node join" /tmp/said
chain=/etc/cni/net.d/10-theirs.conflist
printf %s "$THEIRS" | cmp - $chain
echo '{"cniVersion":"1.0.0"}' | CNI_COMMAND=VERSION /opt/cni/bin/viproute | grep supportedVersions
[ "$(readlink /etc/systemd/system/multi-user.target.wants/viprouted.service)" = /lib/systemd/system/viprouted.service ]
grep ExecStart=/usr/sbin/viprouted /lib/systemd/system/viprouted.service
[ -e /usr/share/man/man8/viproutectl-doctor.8.gz ] && [ -e /usr/share/man/man5/viprouted.toml.5.gz ]
viproutectl node join
grep '"viproute"' $chain

echo "a pod is attached"
attachment=/var/lib/cni/viproute/attachments/c1@eth0.json
mkdir -p ${attachment%/*}
printf '{"schema":1,"network":"n","vips":[],"netns":{"path":"/proc/self/ns/net","device":%s,"inode":%s},"former":{}}' \
    $(stat -L -c '%d %i' /proc/self/ns/net) >$attachment
if dpkg -r viproute 2>/tmp/refused; then exit 1; fi
grep "1 pods are attached" /tmp/refused
dpkg -s viproute | grep "Status: .* installed"
cmp /usr/lib/cni/viproute "$BINARIES/viproute"
grep '"viproute"' $chain

echo "another version, and back"
echo "# mine" >>/etc/viproute/viprouted.toml
dpkg-deb -R /deb /tmp/newer
sed -i 's/^Version: .*/&.1/' /tmp/newer/DEBIAN/control
dpkg-deb --root-owner-group -Zgzip -z1 -b /tmp/newer /tmp/newer.deb
for package in /tmp/newer.deb /deb; do
    dpkg -i $package >/tmp/said
    if grep "node join" /tmp/said; then exit 1; fi
    grep "# mine" /etc/viproute/viprouted.toml
    grep '"viproute"' $chain
    [ -e $attachment ]
done

echo "removed"
rm $attachment
touch /var/lib/viproute-lease; mkdir -p /var/lib/viproute; mv /var/lib/viproute-lease /var/lib/viproute/
dpkg -r viproute
printf %s "$THEIRS" | cmp - $chain
[ -e /var/lib/viproute/viproute-lease ] && [ -e /etc/viproute/viprouted.toml ] && [ ! -e /usr/sbin/viproutectl ]
dpkg -P viproute
tree | diff /tmp/before - && [ ! -e /opt/cni/bin/viproute ] && [ ! -e /etc/viproute ] && [ ! -e /var/lib/cni/viproute ]
echo as it was
"##;

/// On this machine's files, each change to them kept in memory and lost; with a runtime's network, a pod of a VIP, and an edited configuration.
#[test]
fn a_package_comes_stays_and_goes() {
    let (made_in, temporary) = (sources(), TempDir::new());
    let deb = package(&made_in);
    // What it is called among the machine's files.
    let prepare = MACHINE.replace("exec chroot", "cp \"$DEB\" root/deb; exec chroot");
    let mut command = Command::new(tool("unshare"));
    command.args(["--mount", "--net", "--propagation", "private", "sh", "-c", &prepare, LIFE]);
    command.env_remove("DESTDIR").env("TMPDIR", temporary.path()).env("SOURCE", env!("CARGO_MANIFEST_DIR"));
    command.env("BINARIES", built("viproute").parent().unwrap()).env("THEIRS", THEIRS).env("DEB", deb);
    // What package builds set: no systemd is asked to start anything.
    let said = command.env("SYSTEMD_OFFLINE", "1").env("DEBIAN_FRONTEND", "noninteractive").finish("").ok();
    assert!(said.ends_with("as it was\n"), "{said}");
}
