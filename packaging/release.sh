#!/usr/bin/env bash
# Makes a release of the commit that is checked out, from a clone of its own: archive and deb for each ARCH (this machine's, unless they are
# named), this machine's image, list of crates and SHA256SUMS in dist/release-VERSION. What is not committed is not in it, and is refused.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."

here=$(uname -m)
archs=("$@")
[ $# -gt 0 ] || archs=("$here")
needed=(git cargo clang jq dpkg-deb nft)
# shellcheck source=packaging/cross.sh
. packaging/cross.sh
for arch in "${archs[@]}"; do
    case $arch in
        "$here") ;;
        x86_64 | aarch64) need_cross_compiler "$arch" && needed+=("qemu-$arch-static") ;;
        *) echo "usage: packaging/release.sh [x86_64] [aarch64]  (here: $here)" >&2; exit 2 ;;
    esac
done
for program in "${needed[@]}"; do
    PATH=$PATH:/usr/sbin:/sbin command -v "$program" >/dev/null || { echo "packaging/release.sh: $program is missing" >&2; exit 1; }
done
[ -z "$(git status --porcelain)" ] || { echo "packaging/release.sh: not committed: $(git status --porcelain)" >&2; exit 1; }
begin=$SECONDS
work=$(mktemp -d)
# shellcheck disable=SC2064  # the name is known now
trap "rm -rf '$work'" EXIT
git clone --quiet --no-hardlinks . "$work/viproute"
# Files have the time of the commit.
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH
cd "$work/viproute"

# Of this architecture what a machine can install.
pack() (
    arch=$1 programs=dist/bin-$1
    packaging/build.sh "$arch"
    # shellcheck source=packaging/programs.sh
    . packaging/programs.sh
    viproutectl --version >"$work/version-$arch"
    export BINARIES=$PWD/$programs
    packaging/tarball.sh "$arch"
    packaging/deb.sh "$arch"
    [ "$arch" != "$here" ] || packaging/image.sh "$arch"
)
for arch in "${archs[@]}"; do pack "$arch"; done
# It says the release, and the eBPF programs' hash, which are the same for every processor of one byte order.
said=$(sort -u "$work"/version-*)
[ "$(wc -l <<<"$said")" = 1 ] || { echo "packaging/release.sh: programs of one source differ in version: $said" >&2; exit 1; }
version=$(cut -d ' ' -f 2 <<<"$said")
packaging/sbom.sh "$version"
cd - >/dev/null
to=dist/release-$version
rm -rf "$to"
install -D -m 644 -t "$to" "$work"/viproute/dist/viproute[-_]*
(cd "$to" && sha256sum -- * >"$work/sums" && install -m 644 "$work/sums" SHA256SUMS)
echo "$to, in $((SECONDS - begin)) s:"
cat "$to/SHA256SUMS"
