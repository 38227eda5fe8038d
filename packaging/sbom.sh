#!/usr/bin/env bash
# Makes dist/viproute-VERSION.cdx.json: which crates are in the programs, with versions, licences and checksums (CycloneDX 1.5). Crates of
# tests and build scripts are in no program and not in it.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."

version=${1:-}
[ -n "$version" ] || { echo "usage: packaging/sbom.sh VERSION" >&2; exit 2; }
command -v jq >/dev/null || { echo "packaging/sbom.sh: jq is missing: apt-get install jq" >&2; exit 1; }
work=$(mktemp -d)
# shellcheck disable=SC2064  # the name is known now
trap "rm -rf '$work'" EXIT
cargo metadata --locked --format-version 1 --filter-platform "$(uname -m)-unknown-linux-gnu" >"$work/metadata"
# `name version checksum`, a line each.
awk '/^name = /{n=$3} /^version = /{v=$3} /^checksum = /{gsub("\"",""); print n, v, $3}' Cargo.lock | tr -d '"' >"$work/checksums"
mkdir -p dist
jq -n --slurpfile metadata "$work/metadata" --rawfile checksums "$work/checksums" --arg version "$version" '
    $metadata[0] as $all
    | ($checksums | split("\n") | map(split(" ") | select(length == 3)) | map({ key: (.[0] + " " + .[1]), value: .[2] }) | from_entries) as $sums
    | ($all.resolve.nodes | map({ key: .id, value: [.deps[] | select(any(.dep_kinds[]; .kind == null)) | .pkg] }) | from_entries) as $deps
    | def reached($todo; $known):
        if ($todo | length) == 0 then $known
        else (($todo | map($deps[.][]) | unique) - $known) as $new | reached($new; $known + $new) end;
    ($all.packages | map({ key: .id, value: . }) | from_entries) as $packages
    | (reached([$all.resolve.root]; []) | map($packages[.]) | sort_by(.name, .version)) as $crates
    | {
        bomFormat: "CycloneDX", specVersion: "1.5", version: 1,
        metadata: { component: {
            type: "application", name: "viproute", version: $version, "bom-ref": "viproute",
            licenses: [{ expression: "Apache-2.0" }]
        } },
        components: ($crates | map({
            type: "library", name, version, "bom-ref": "pkg:cargo/\(.name)@\(.version)", purl: "pkg:cargo/\(.name)@\(.version)",
            licenses: [{ expression: (.license // "" | gsub("/"; " OR ")) }],
            hashes: [{ alg: "SHA-256", content: $sums[.name + " " + .version] }]
        })),
        dependencies: ([$all.resolve.root] + ($crates | map(.id)) | unique | map({
            ref: (if . == $all.resolve.root then "viproute" else $packages[.] | "pkg:cargo/\(.name)@\(.version)" end),
            dependsOn: [$deps[.][] | $packages[.] | "pkg:cargo/\(.name)@\(.version)"] | unique
        }) | sort_by(.ref))
    }' >"dist/viproute-$version.cdx.json"
echo "dist/viproute-$version.cdx.json"
