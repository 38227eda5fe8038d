#!/usr/bin/env bash
# Makes dist/viproute_VERSION_ARCH.deb of the static programs. The same sources make the same package. BINARIES=/some/dir takes the programs
# from there and builds nothing; DEBFULLNAME and DEBEMAIL say who packs it, as for Debian's own tools.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."

arch=${1:-}
[ -n "$arch" ] || { echo "usage: packaging/deb.sh ARCH  (here: $(uname -m))" >&2; exit 2; }
case $arch in
    x86_64) debian=amd64 ;;
    aarch64) debian=arm64 ;;
    *) echo "packaging/deb.sh: Debian's name of $arch is not known here" >&2; exit 2 ;;
esac
[ -n "${BINARIES:-}" ] || packaging/build.sh "$arch"
programs=${BINARIES:-dist/bin-$arch}
# shellcheck source=packaging/programs.sh
. packaging/programs.sh
version=$(viproutectl --version | cut -d ' ' -f 2)
maintainer="${DEBFULLNAME:-viproute maintainers} <${DEBEMAIL:-maintainers@viproute.invalid}>"
# Any day will do; lintian takes files of 1970 for a mistake.
epoch=${SOURCE_DATE_EPOCH:-$(date -u -d 2026-01-01 +%s)}
umask 022
work=$(mktemp -d)
# shellcheck disable=SC2064  # the name is known now
trap "rm -rf '$work'" EXIT
root=$work/root
doc=$root/usr/share/doc/viproute

put() { install -D -m "$1" "$2" "$root/$3"; }
packed() { gzip -9n >"$1"; }

put 755 "$programs/viproute" usr/lib/cni/viproute
put 755 "$programs/viprouted" usr/sbin/viprouted
put 755 "$programs/viproutectl" usr/sbin/viproutectl
# Where runtimes look unless they are told otherwise.
install -d "$root/opt/cni/bin"
ln -s /usr/lib/cni/viproute "$root/opt/cni/bin/viproute"
install -d "$root/lib/systemd/system"
sed 's|/usr/local/bin/|/usr/sbin/|g' conf/viprouted.service >"$root/lib/systemd/system/viprouted.service"
put 644 conf/viprouted.toml etc/viproute/viprouted.toml
for example in conf/*.conflist conf/alerts.yaml conf/grafana.json; do
    put 644 "$example" "usr/share/doc/viproute/examples/${example#conf/}"
done
install -d "$root/usr/share/man/man8" "$root/usr/share/man/man5"
viproutectl man "$root/usr/share/man/man8"
mv "$root"/usr/share/man/man8/*.5 "$root/usr/share/man/man5"
gzip -9n "$root"/usr/share/man/man[58]/*
install -d "$root/usr/share/bash-completion/completions" "$root/usr/share/zsh/vendor-completions" "$root/usr/share/fish/vendor_completions.d"
viproutectl completions bash >"$root/usr/share/bash-completion/completions/viproutectl"
viproutectl completions zsh >"$root/usr/share/zsh/vendor-completions/_viproutectl"
viproutectl completions fish >"$root/usr/share/fish/vendor_completions.d/viproutectl.fish"
# doctor's cures are by that.
install -d "$root/usr/share/viproute"
echo deb >"$root/usr/share/viproute/installed-by"
put 644 packaging/deb/copyright usr/share/doc/viproute/copyright
put 644 packaging/deb/lintian-overrides usr/share/lintian/overrides/viproute
packed "$doc/changelog.gz" <<LOG
viproute ($version) stable; urgency=medium

  * What has changed is in CHANGELOG.md.gz.

 -- $maintainer  $(LC_ALL=C date -u -R -d "@$epoch")
LOG
packed "$doc/CHANGELOG.md.gz" <CHANGELOG.md

install -d "$root/DEBIAN"
cat >"$root/DEBIAN/control" <<CONTROL
Package: viproute
Version: $version
Architecture: $debian
Maintainer: $maintainer
Installed-Size: $(du -k -s --apparent-size "$root" | cut -f 1)
Depends: init-system-helpers (>= 1.54~)
Recommends: nftables
Suggests: containerd | cri-o | podman, containernetworking-plugins
Section: net
Priority: optional
Description: load balancer for pods that lives in the routing table
 Each service gets a virtual IP address; the node has one multipath route for
 it, and the kernel sends each flow straight to a pod, without NAT, proxy or
 connection tracking.
 .
 This package has the chained CNI plugin viproute, the daemon viprouted, which
 gets addresses by DHCP or from a pool, and the tool viproutectl. Installed, it
 changes no network: "viproutectl node join" puts it into the one that the
 container runtime uses.
CONTROL
echo /etc/viproute/viprouted.toml >"$root/DEBIAN/conffiles"
for script in postinst prerm postrm; do
    install -m 755 "packaging/deb/$script" "$root/DEBIAN/$script"
done
(cd "$root" && find . -type f ! -path './DEBIAN/*' ! -path './etc/*' -printf '%P\n' | LC_ALL=C sort | xargs -d '\n' md5sum) >"$work/sums"
install -m 644 "$work/sums" "$root/DEBIAN/md5sums"
find "$root" -exec touch --no-dereference --date="@$epoch" {} +
mkdir -p dist
SOURCE_DATE_EPOCH=$epoch dpkg-deb --root-owner-group --uniform-compression -Zxz --build "$root" "dist/viproute_${version}_$debian.deb" >/dev/null
echo "dist/viproute_${version}_$debian.deb"
