#!/usr/bin/env bash
# Builds MetalLB 0.15.2 of its Go module into target/metallb, with its own manifests, to stand beside viproute. Does nothing where it is there
# already. From nothing it takes two minutes; GOFLAGS=-p=1 takes one processor.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
# shellcheck source=tests/go.sh
. tests/go.sh

finish() {
    local from
    from=$("$go" -C "$sources" list -m -f '{{.Dir}}' go.universe.tf/metallb)
    rm -rf "$to/crd" "$to/rbac"
    cp -r "$from/config/crd/bases" "$to/crd"
    cp -r "$from/config/rbac" "$to/rbac"
    chmod -R u+w "$to/crd" "$to/rbac"
}

build_module metallb go.universe.tf/metallb/controller go.universe.tf/metallb/speaker
