#!/usr/bin/env bash
# Makes dist/viproute-VERSION-linux-ARCH.oci.tar, an image (OCI) of the static programs and of nft with its libraries, which it takes from
# this machine. Nothing else is in it, not even a shell. `podman load --input FILE` and `ctr images import FILE` take it; its name is
# localhost/viproute:VERSION, with - in place of +. The same sources and the same nft make the same image.
# BINARIES=/some/dir takes the programs from there and builds nothing.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."

arch=${1:-}
[ -n "$arch" ] || { echo "usage: packaging/image.sh ARCH  (here: $(uname -m))" >&2; exit 2; }
[ "$arch" = "$(uname -m)" ] || { echo "packaging/image.sh: nft is taken from this machine, which is $(uname -m)" >&2; exit 2; }
case $arch in
    x86_64) name=amd64 ;;
    aarch64) name=arm64 ;;
    *) echo "packaging/image.sh: the registries' name of $arch is not known here" >&2; exit 2 ;;
esac
nft=$(PATH=$PATH:/usr/sbin:/sbin command -v nft) || { echo "packaging/image.sh: nft is missing: apt-get install nftables" >&2; exit 1; }
[ -n "${BINARIES:-}" ] || packaging/build.sh "$arch"
programs=${BINARIES:-dist/bin-$arch}
version=$("$programs/viproutectl" --version | cut -d ' ' -f 2)
commit=${version#*+g}
[ "$commit" != "$version" ] || commit=v$version
epoch=${SOURCE_DATE_EPOCH:-0}
umask 022
work=$(mktemp -d)
# shellcheck disable=SC2064  # the name is known now
trap "rm -rf '$work'" EXIT
root=$work/root blobs=$work/image/blobs/sha256
install -d "$root" "$blobs"

# The same bytes whoever packs them when.
pack() {
    LC_ALL=C tar --sort=name --format=gnu --mtime="@$epoch" --owner=0 --group=0 --numeric-owner -C "$1" -cf "$2" .
}

# Puts a file among the blobs; its digest.
blob() {
    local digest
    digest=$(sha256sum "$1" | cut -d ' ' -f 1)
    mv "$1" "$blobs/$digest"
    echo "$digest"
}

install -D -m 755 -t "$root/usr/local/bin" "$programs/viproute" "$programs/viprouted" "$programs/viproutectl"
install -D -m 755 "$nft" "$root/usr/sbin/nft"
# `libnftables.so.1 => /lib/…/libnftables.so.1 (0x…)`, and the loader's own path. Programs of a build for tests may have libraries, too.
{ ldd "$nft" && for program in viproute viprouted viproutectl; do ldd "$programs/$program" 2>/dev/null || true; done; } | grep -o '/[^ ]*' | LC_ALL=C sort -u | while read -r library; do
    install -D -m 755 "$library" "$root/$library"
done
# doctor's cures are by that.
install -d "$root/usr/local/share/viproute" "$root/etc/viproute"
echo image >"$root/usr/local/share/viproute/installed-by"
install -m 644 LICENSE "$root/usr/local/share/viproute/LICENSE"

pack "$root" "$work/layer.tar"
layer=$(sha256sum "$work/layer.tar" | cut -d ' ' -f 1)
gzip -n "$work/layer.tar"
size=$(stat -c %s "$work/layer.tar.gz")
packed=$(blob "$work/layer.tar.gz")
created=$(date -u -d "@$epoch" +%Y-%m-%dT%H:%M:%SZ)
labels=$(printf '"org.opencontainers.image.title":"viproute","org.opencontainers.image.description":"%s","org.opencontainers.image.licenses":"Apache-2.0","org.opencontainers.image.version":"%s","org.opencontainers.image.revision":"%s"' \
    "A NAT-free load balancer for pods that lives in the routing table: a chained CNI plugin" "$version" "$commit")
printf '{"created":"%s","architecture":"%s","os":"linux","config":{"Entrypoint":["/usr/local/bin/viprouted"],"Env":["PATH=/usr/local/bin:/usr/sbin"],"Labels":{%s}},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]},"history":[{"created":"%s","created_by":"packaging/image.sh"}]}' \
    "$created" "$name" "$labels" "$layer" "$created" >"$work/config"
config_size=$(stat -c %s "$work/config")
config=$(blob "$work/config")
printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:%s","size":%s},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"sha256:%s","size":%s}],"annotations":{%s}}' \
    "$config" "$config_size" "$packed" "$size" "$labels" >"$work/manifest"
manifest_size=$(stat -c %s "$work/manifest")
manifest=$(blob "$work/manifest")
tag=localhost/viproute:${version//+/-}
printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:%s","size":%s,"platform":{"architecture":"%s","os":"linux"},"annotations":{"io.containerd.image.name":"%s","org.opencontainers.image.ref.name":"%s"}}]}' \
    "$manifest" "$manifest_size" "$name" "$tag" "$tag" >"$work/image/index.json"
printf '{"imageLayoutVersion":"1.0.0"}' >"$work/image/oci-layout"
file=dist/viproute-$version-linux-$arch.oci.tar
mkdir -p dist
pack "$work/image" "$file"
echo "$file"
