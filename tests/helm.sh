#!/usr/bin/env bash
# Builds helm of its Go module into target/helm, for the tests of the chart. Does nothing where it is there already.
# From nothing it takes four minutes of a processor's time; GOFLAGS=-p=1 takes one processor.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
# shellcheck source=tests/go.sh
. tests/go.sh

build_module helm helm.sh/helm/v4/cmd/helm
