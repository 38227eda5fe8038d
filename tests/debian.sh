#!/usr/bin/env bash
# Makes a bare Debian 12 in target/debian12, with the packages in apt-get's cache that the quickstarts install: for the tests that boot it
# (tests/e2e/debian/). Does nothing where it is there already; MIRROR=… takes it from another one of Debian's.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."

to=target/debian12
mirror=${MIRROR:-http://deb.debian.org/debian}
packages=(containerd runc crun containernetworking-plugins nftables iptables jq curl podman)
[ "$(cat $to/made 2>/dev/null || true)" != "${packages[*]}" ] || exit 0
rm -rf $to
debootstrap --variant=- bookworm $to "$mirror" >$to.log
cp /etc/resolv.conf $to/etc/resolv.conf
# shellcheck disable=SC2016  # for that shell to expand
unshare --mount --propagation private bash -euc '
    mount -t proc proc "$0/proc"
    chroot "$0" apt-get update -q
    chroot "$0" apt-get install -q -y --no-install-recommends --download-only "$@"' $to "${packages[@]}" >>$to.log
rm -f $to/etc/resolv.conf $to.log
echo "${packages[*]}" >$to/made
