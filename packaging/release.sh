#!/usr/bin/env bash
# Makes a release of the commit that is checked out, from a clone of its own: archive, deb, image, list of crates and SHA256SUMS in
# dist/release-VERSION. What is not committed is not in it, and is refused.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."

arch=$(uname -m)
[ $# = 0 ] || { echo "usage: packaging/release.sh  (no arguments: it is made on and for $arch)" >&2; exit 2; }
for needed in git cargo clang jq dpkg-deb nft; do
    PATH=$PATH:/usr/sbin:/sbin command -v "$needed" >/dev/null || { echo "packaging/release.sh: $needed is missing" >&2; exit 1; }
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
packaging/build.sh "$arch"
version=$("dist/bin-$arch/viproutectl" --version | cut -d ' ' -f 2)
export BINARIES=$PWD/dist/bin-$arch
packaging/tarball.sh "$arch"
packaging/deb.sh "$arch"
packaging/image.sh "$arch"
packaging/sbom.sh "$version"
cd - >/dev/null
to=dist/release-$version
rm -rf "$to"
install -D -m 644 -t "$to" "$work"/viproute/dist/viproute[-_]*
(cd "$to" && sha256sum -- * >"$work/sums" && install -m 644 "$work/sums" SHA256SUMS)
echo "$to, in $((SECONDS - begin)) s:"
cat "$to/SHA256SUMS"
