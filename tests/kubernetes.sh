#!/usr/bin/env bash
# Builds what the tests of tests/kubernetes run on from Go modules into target/kubernetes: the parts of Kubernetes, etcd, CoreDNS,
# and the server that their pods run. Does nothing where they are there already. With --e2e also Kubernetes' own end-to-end suite, and what its
# pods run: three minutes of a processor's time more.
# From nothing it takes eleven minutes of a processor's time and 5 GB below Go's cache; GOFLAGS=-p=1 takes one processor.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
# shellcheck source=tests/go.sh
. tests/go.sh

sources=tests/kubernetes/parts
to=$PWD/target/kubernetes
version=$(cat tests/kubernetes.sh $sources/go.mod $sources/go.sum $sources/*.go $sources/*/*.go | sha256sum)

suite=tests/kubernetes/suite
suite_version=$(cat $suite/go.mod $suite/go.sum | sha256sum)
case ${1:-} in
    "") with_suite= ;;
    --e2e) with_suite=1 ;;
    *) echo "usage: tests/kubernetes.sh [--e2e]" >&2; exit 2 ;;
esac

# $1: its file, $2: what it says where nothing is to be done.
is_built() { [ "$(cat "$to/$1" 2>/dev/null || true)" = "$2" ]; }
if is_built version "$version" && { [ -z "$with_suite" ] || is_built suite.version "$suite_version"; }; then exit 0; fi

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

build_suite() {
    local flags
    flags=$(release) && "$go" -C $suite build -buildvcs=false -trimpath -ldflags="-s -w" -o "$to/agnhost" k8s.io/kubernetes/test/images/agnhost &&
        "$go" -C $suite test -c -trimpath -ldflags="-s -w $flags" -o "$to/e2e.test" k8s.io/kubernetes/test/e2e
}

# $1: what is built, $2: the file that says it is there, $3: what that says.
build_part() {
    ! is_built "$2" "$3" || return 0
    # What is as it should be is not linked again.
    rm -f "$to/$2"
    "$1" >"$to/log" 2>&1 || {
        tail -n 20 "$to/log" >&2
        echo "tests/kubernetes.sh: not built; all of what was said is in $to/log" >&2
        exit 1
    }
    rm -f "$to/log"
    echo "$3" >"$to/$2"
}

mkdir -p "$to"
# It takes minutes of all processors, which others may want meanwhile.
[ "$(nice)" -ge 10 ] || renice -n 10 $$ >/dev/null
build_part build_all version "$version"
[ -z "$with_suite" ] || build_part build_suite suite.version "$suite_version"
