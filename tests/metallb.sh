#!/usr/bin/env bash
# Builds MetalLB 0.15.2 of its Go module into target/metallb, with its own manifests, to be measured beside viproute. Does nothing where it is there
# already. From nothing it takes two minutes; GOFLAGS=-p=1 takes one processor.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
# shellcheck source=tests/go.sh
. tests/go.sh

sources=tests/metallb
to=$PWD/target/metallb
version=$(cat tests/metallb.sh $sources/go.mod $sources/go.sum | sha256sum)

[ "$(cat "$to/version" 2>/dev/null || true)" != "$version" ] || exit 0

go=$(go_program) || {
    echo "tests/metallb.sh: needs Go 1.26 or newer, or python3-venv and a network to get it from PyPI" >&2
    exit 1
}
export CGO_ENABLED=0 GOTOOLCHAIN=local
mkdir -p "$to"
rm -f "$to/version"
# It takes minutes of all processors, which others may want meanwhile.
[ "$(nice)" -ge 10 ] || renice -n 10 $$ >/dev/null
"$go" -C $sources build -buildvcs=false -trimpath -ldflags="-s -w" -o "$to/" go.universe.tf/metallb/controller go.universe.tf/metallb/speaker >"$to/log" 2>&1 || {
    tail -n 20 "$to/log" >&2
    echo "tests/metallb.sh: not built; all of what was said is in $to/log" >&2
    exit 1
}
from=$("$go" -C $sources list -m -f '{{.Dir}}' go.universe.tf/metallb)
rm -rf "$to/crd" "$to/rbac"
cp -r "$from/config/crd/bases" "$to/crd"
cp -r "$from/config/rbac" "$to/rbac"
chmod -R u+w "$to/crd" "$to/rbac"
rm -f "$to/log"
echo "$version" >"$to/version"
