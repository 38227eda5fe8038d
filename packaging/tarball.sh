#!/usr/bin/env bash
# Makes dist/viproute-VERSION-linux-ARCH.tar.gz: all that a machine needs that has neither cargo nor network. The same sources make the same
# archive wherever they lie. BINARIES=/some/dir takes the programs from there and builds nothing.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."

arch=${1:-}
[ -n "$arch" ] || { echo "usage: packaging/tarball.sh ARCH  (here: $(uname -m))" >&2; exit 2; }
[ -n "${BINARIES:-}" ] || packaging/build.sh "$arch"
programs=${BINARIES:-dist/bin-$arch}
# shellcheck source=packaging/programs.sh
. packaging/programs.sh
# viproutectl 0.2.0+g0123456789ab (flow owner …)
version=$(viproutectl --version | cut -d ' ' -f 2)
name=viproute-$version-linux-$arch
work=$(mktemp -d)
# shellcheck disable=SC2064  # the name is known now
trap "rm -rf '$work'" EXIT
stage=$work/$name

install -D -m 755 -t "$stage/bin" "$programs/viproute" "$programs/viprouted" "$programs/viproutectl"
install -m 755 install.sh "$stage"
install -m 644 LICENSE CHANGELOG.md "$stage"
install -D -m 644 -t "$stage/conf" conf/*
cp -r packaging/chart "$stage/chart"
install -d "$stage/man" "$stage/completions"
viproutectl man "$stage/man"
for shell in bash zsh fish; do
    viproutectl completions $shell >"$stage/completions/viproutectl.$shell"
done
(cd "$stage" && find . -type f ! -name SHA256SUMS -printf '%P\n' | LC_ALL=C sort | xargs -d '\n' sha256sum) >"$work/sums"
install -m 644 "$work/sums" "$stage/SHA256SUMS"
# Neither who made it when, nor in which order a directory is read.
install -d dist
LC_ALL=C tar --sort=name --format=gnu --mtime="@${SOURCE_DATE_EPOCH:-0}" --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX \
    -C "$work" -cf "$work/tar" "$name"
gzip -n <"$work/tar" >"dist/$name.tar.gz"
echo "dist/$name.tar.gz"
