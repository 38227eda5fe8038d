#!/usr/bin/env bash
# Writes the manifests of conf/ for whoever takes no helm: what the chart gives with its own values. tests/helm.sh builds helm, unless HELM names one.
# An argument is another directory for them.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."

to=${1:-conf}
helm=${HELM:-target/helm/helm}
[ -x "$helm" ] || { echo "packaging/manifests.sh: $helm is missing: run tests/helm.sh" >&2; exit 1; }

# $1: file, $2: its first line, the rest: for helm.
manifest() {
    local file=$to/$1
    {
        echo "# $2"
        echo "# Made by packaging/manifests.sh of packaging/chart: change it there."
        "$helm" template viproute packaging/chart --namespace kube-system "${@:3}" | sed -E '/^(# Source: |$)/d; /^ +helm\.sh\//d; /^  annotations:$/d'
    } >"$file.new"
    mv "$file.new" "$file"
}

manifest daemonset.yaml "viproute on each node of a Kubernetes cluster. The image is packaging/image.sh's: on each node \`ctr -n k8s.io images import FILE\`." \
    --set uninstall.enabled=false
manifest daemonset-uninstall.yaml "Takes viproute off all nodes: apply it, wait for its Job, delete it and daemonset.yaml." --show-only templates/uninstall.yaml
manifest kubernetes-rbac.yaml "What viprouted may do in a cluster, for viprouted outside of the chart." --show-only templates/rbac.yaml
