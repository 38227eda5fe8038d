#!/usr/bin/env bash
# Builds what the tests of tests/kubernetes run on from Go modules into target/kubernetes: the parts of Kubernetes, etcd, CoreDNS,
# and the server that their pods run. Does nothing where they are there already.
# From nothing it takes eleven minutes of a processor's time and 5 GB below Go's cache; GOFLAGS=-p=1 takes one processor.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
# shellcheck source=tests/go.sh
. tests/go.sh

sources=tests/kubernetes/parts
to=$PWD/target/kubernetes
version=$(cat tests/kubernetes.sh $sources/go.mod $sources/go.sum $sources/*.go $sources/*/*.go | sha256sum)

[ "$(cat "$to/version" 2>/dev/null || true)" != "$version" ] || exit 0

go=$(go_program) || {
    echo "tests/kubernetes.sh: needs Go 1.26 or newer, or python3-venv and a network to get it from PyPI" >&2
    exit 1
}
export CGO_ENABLED=0 GOTOOLCHAIN=local

# Nodes and clients say the version that the linker writes here.
release() {
    local kubernetes package=k8s.io/component-base/version
    kubernetes=$("$go" -C $sources list -m -f '{{.Version}}' k8s.io/kubernetes)
    echo "-X $package.gitVersion=$kubernetes -X $package.gitMajor=1 -X $package.gitMinor=$(cut -d. -f2 <<<"$kubernetes")"
}

# $1: the program, $2: its package.
build() {
    "$go" -C $sources build -buildvcs=false -trimpath -ldflags="-s -w $flags" -o "$to/$1" "$2"
}

build_all() {
    local flags part
    flags=$(release) && build kube . && build kubectl k8s.io/kubernetes/cmd/kubectl && build coredns ./coredns && build server ./server || return
    for part in etcd kube-apiserver kube-controller-manager kube-proxy kube-scheduler kubelet; do ln -sf kube "$to/$part"; done
}

mkdir -p "$to"
# What is as it should be is not linked again.
rm -f "$to/version"
# It takes minutes of all processors, which others may want meanwhile.
[ "$(nice)" -ge 10 ] || renice -n 10 $$ >/dev/null
build_all >"$to/log" 2>&1 || {
    tail -n 20 "$to/log" >&2
    echo "tests/kubernetes.sh: not built; all of what was said is in $to/log" >&2
    exit 1
}
rm -f "$to/log"
echo "$version" >"$to/version"
