#!/usr/bin/env bash
# Installs viproute on this machine, removes it, shows it at work, tests it. Debian and Ubuntu.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")"

usage() {
    cat <<'EOF'
usage: ./install.sh install [--no-chain]     build and install plugin, sidecar, configuration; join the node's pod
                                             network (--no-chain: leave /etc/cni/net.d alone)
       ./install.sh uninstall [--force]      remove them again (--force: although pods are attached)
       ./install.sh demo [--backend pool]    show it in throw-away network namespaces; changes nothing else
       ./install.sh test                     formatting, lints, all tests
       ./install.sh bench [--quick]          measure it beside others, in throw-away network namespaces; writes docs/
DESTDIR=/some/dir    install and uninstall work below that directory
BINARIES=/some/dir   install, demo and bench take the programs from there and build nothing
EOF
}

root=${DESTDIR:-}
built=${BINARIES:-$PWD/target/release}
plugins=$root/opt/cni/bin
binaries=$root/usr/local/bin
share=$root/usr/local/share
settings=$root/etc/viproute
chains=$root/etc/cni/net.d
unit=$root/etc/systemd/system/viprouted.service
registry=$root/var/lib/cni/viproute
pins=$root/sys/fs/bpf/viproute
# What joins a chain.
entry='{ "type": "viproute", "capabilities": { "io.kubernetes.cri.pod-annotations": true } }'

say() { printf '%s\n' "$*"; }
die() { printf 'install.sh: %s\n' "$*" >&2; exit 1; }

need_root() {
    [ "$(id -u)" = 0 ] || die "run it as root: it $1"
}

need_cargo() {
    command -v cargo >/dev/null || die "cargo is missing: install Rust $(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml) or newer (https://rustup.rs)"
    # clang: the flow owner's programs, for the kernel's own processor.
    packages gcc libc6-dev clang linux-libc-dev
}

# What cargo is told; nothing is built where the programs were brought along.
build() {
    [ -z "${BINARIES:-}" ] || return 0
    need_cargo
    cargo build --release "$@"
}

# Installs those of the named Debian packages that are missing, and says so first.
packages() {
    local missing=() package
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null || die "missing, and there is no apt-get: ${missing[*]}"
    [ "$(id -u)" = 0 ] || die "missing: apt-get install ${missing[*]}"
    say "Installing Debian packages: ${missing[*]}"
    apt_quietly "${missing[@]}"
}

# A DHCP server must not start on this machine just because a test wants its program: policy-rc.d forbids it meanwhile.
apt_quietly() {
    local policy=/usr/sbin/policy-rc.d ours=
    if [ ! -e $policy ]; then
        printf '#!/bin/sh\nexit 101\n' >$policy
        chmod 755 $policy
        ours=yes
    fi
    local status=0
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@" ||
        { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@"; } || status=$?
    [ -z "$ours" ] || rm -f $policy
    [ $status = 0 ] || die "apt-get could not install: $*"
}

# With DESTDIR this is somebody's packaging: the unit belongs to it, and nothing is started.
wants_unit() { [ -n "$root" ] || [ -d /run/systemd/system ]; }
systemd() { [ -n "$root" ] || systemctl "$@"; }

do_install() {
    need_root "writes to /opt/cni/bin, /usr/local/bin and /etc"
    local join=yes chain=
    case "$*" in
        "") ;;
        --no-chain) join= ;;
        *) usage >&2; exit 2 ;;
    esac
    if [ -n "$join" ]; then find_chain; fi
    local started=", enabled and started"
    [ -z "$root" ] || started=
    say "This installs:"
    say "  $plugins/viproute (the CNI plugin; a link to it in /usr/lib/cni if that directory exists)"
    say "  $binaries/viprouted, $binaries/viproutectl, their manual pages and shell completions below $share"
    say "  $settings/viprouted.toml, unless there is one"
    if wants_unit; then say "  $unit$started"; fi
    if [ -n "$chain" ]; then
        say "  viproute as the last plugin of $chain; the original is kept in $settings"
    elif [ -n "$join" ]; then
        say "  $chains/10-viproute.conflist, as there is no pod network yet"
    fi
    build --bins
    install -D -m 755 "$built/viproute" "$plugins/viproute.new"
    # Renamed into place: a runtime may call the old one at this moment.
    mv "$plugins/viproute.new" "$plugins/viproute"
    if [ -d "$root/usr/lib/cni" ]; then ln -sf /opt/cni/bin/viproute "$root/usr/lib/cni/viproute"; fi
    install -D -m 755 -t "$binaries" "$built/viprouted" "$built/viproutectl"
    install_documentation
    if [ -e "$settings/viprouted.toml" ]; then
        say "Kept: $settings/viprouted.toml"
    else
        install -D -m 644 conf/viprouted.toml "$settings/viprouted.toml"
    fi
    install_unit
    install_chain
    command -v nft >/dev/null || say "The program nft is missing (apt-get install nftables): VIP traffic will be tracked."
    say "Installed. Try: viproutectl status"
}

# Where viproutectl's completions go, by shell.
completions() {
    say "bash $share/bash-completion/completions/viproutectl"
    say "zsh $share/zsh/site-functions/_viproutectl"
    say "fish $share/fish/vendor_completions.d/viproutectl.fish"
}

# Made by the program itself, so that they are this version's.
install_documentation() {
    install -d "$share/man/man8"
    "$built/viproutectl" man "$share/man/man8"
    local shell file
    completions | while read -r shell file; do
        install -d "${file%/*}"
        "$built/viproutectl" completions "$shell" >"$file"
    done
}

install_unit() {
    wants_unit || { say "No systemd here: start $binaries/viprouted yourself."; return 0; }
    install -D -m 644 conf/viprouted.service "$unit"
    systemd daemon-reload
    systemd enable viprouted
    systemd restart viprouted
}

# The files of a directory whose names match, in order; none if there is no such directory.
files_in() {
    [ ! -d "$1" ] || find "$1" -maxdepth 1 -type f -regex "$2" | sort
}

# The network configurations a runtime sees, in its order: containerd and CRI-O use the first one.
networks() {
    [ ! -d "$chains" ] || find "$chains" -maxdepth 1 ! -type d -regex '.*\.\(conflist\|conf\|json\)' | LC_ALL=C sort
}

# Sets `chain` to the one that viproute joins. What isn't understood is refused before anything is changed: a wrong edit
# takes the node's network away.
find_chain() {
    chain=$(networks | head -n 1)
    [ -n "$chain" ] || return 0
    packages jq
    local wrong
    if [ -L "$chain" ]; then
        wrong="it is a symbolic link, so somebody else keeps it"
    else
        wrong=$(wrong_with "$chain" 2>&1) || wrong="it is not valid JSON: $wrong"
    fi
    [ -z "$wrong" ] || die "$chain: $wrong. Nothing was changed.
Put that right, or use --no-chain and add this as the last of the network's \"plugins\":
    $entry"
}

# Why viproute can't join that network; nothing if it can.
wrong_with() {
    if [ "${1%.conflist}" = "$1" ]; then
        say 'it is no .conflist: runtimes read a single plugin from it. Put that into the "plugins" of a .conflist'
        return
    fi
    # A chain of another version would be refused by the plugin, at every pod.
    jq -rs '
        if length != 1 or (.[0] | type) != "object" then "it is not one JSON object"
        else .[0] | (.cniVersion // "missing") as $version |
            if (.plugins | type) != "array" or .plugins == [] then "it has no list of \"plugins\""
            elif any(.plugins[]; type != "object" or (.type | type) != "string") then "one of its plugins has no \"type\""
            elif any(.plugins[]; .type == "viproute") then empty
            elif any("0.4.0", "1.0.0", "1.1.0"; . == $version) then empty
            else "its cniVersion is \($version); viproute needs 0.4.0, 1.0.0 or 1.1.0 (most plugins take 1.0.0)" end
        end' "$1"
}

install_chain() {
    if [ -z "$join" ]; then
        say "Left alone: $chains. viproute is to be the last of a network's \"plugins\" there:"
        say "    $entry"
    elif [ -z "$chain" ]; then
        packages containernetworking-plugins
        install -D -m 644 conf/10-viproute.conflist "$chains/10-viproute.conflist"
        say "The pod network of $chains/10-viproute.conflist uses ptp and host-local: the runtime must find them"
        say "beside viproute (Debian's are in /usr/lib/cni). Give each node its own subnet there."
    elif jq -e 'any(.plugins[]; .type == "viproute")' "$chain" >/dev/null; then
        say "Kept: $chain has viproute already."
    else
        join_chain
    fi
}

# The original and what became of it stay outside net.d, where a runtime would take them for networks.
join_chain() {
    local name=${chain##*/}
    cp -p "$chain" "$settings/$name.orig"
    jq --argjson entry "$entry" '.plugins += [$entry]' "$chain" >"$settings/$name.joined"
    replace "$chain" "$settings/$name.joined"
    say "Joined: $chain. As it was: $settings/$name.orig"
}

# replace FILE NEW: in one step and with the owner and mode it has. A runtime that watches the directory must see neither
# half a file nor another network: it ignores names that end like this.
replace() {
    local new
    new=$(dirname "$1")/.$(basename "$1").viproute-new
    cp -p "$1" "$new"
    cat "$2" >"$new"
    sync "$new"
    mv "$new" "$1"
}

# Takes viproute out of the chain it joined, unless somebody has worked on that since.
leave_chain() {
    local original name chain
    for original in "$settings"/*.orig; do
        [ -e "$original" ] || continue
        name=$(basename "$original" .orig)
        chain=$chains/$name
        if cmp -s "$chain" "$settings/$name.joined"; then
            replace "$chain" "$original"
            say "Restored: $chain"
        elif [ ! -e "$chain" ] || grep -q '"viproute"' "$chain"; then
            say "Kept, as it was changed: $chain. As it was before viproute joined: $original"
            continue
        fi
        rm -f "$original" "$settings/$name.joined"
    done
}

do_uninstall() {
    need_root "removes files from /opt/cni/bin, /usr/local/bin and /etc"
    local attached
    attached=$(files_in "$registry/attachments" '.*\.json' | wc -l)
    if [ "$attached" -gt 0 ] && [ "${1:-}" != --force ]; then
        die "$attached pods are attached to VIPs; without the plugin their runtime can't remove them. Delete them first, or --force"
    fi
    # First: with the chain gone nobody calls the plugin any more.
    leave_chain
    if [ -e "$unit" ]; then
        systemd stop viprouted
        systemd disable viprouted
    fi
    remove_table
    remove "$unit" "$binaries/viprouted" "$binaries/viproutectl" "$plugins/viproute"
    if [ -L "$root/usr/lib/cni/viproute" ]; then remove "$root/usr/lib/cni/viproute"; fi
    remove "$share"/man/man8/viprouted.8 "$share"/man/man8/viproutectl.8 "$share"/man/man8/viproutectl-*.8
    local shell file
    completions | while read -r shell file; do remove "$file"; done
    # The kernel keeps the flow owner's programs and maps for as long as they are pinned.
    if [ "$attached" = 0 ] && [ -d "$pins" ]; then rm -rf "$pins" && say "Removed: $pins"; fi
    remove_unchanged conf/10-viproute.conflist "$chains/10-viproute.conflist"
    remove_unchanged conf/viprouted.toml "$settings/viprouted.toml"
    rmdir "$settings" 2>/dev/null || true
    if wants_unit; then systemd daemon-reload; fi
    local other
    for other in "$chains"/*; do
        if [ -f "$other" ] && grep -q '"viproute"' "$other"; then
            say "Take the entry with \"type\": \"viproute\" out of $other yourself: pods can't start while it is there."
        fi
    done
    say "Leases stay in /var/lib/viproute, the registry in /var/lib/cni/viproute."
}

# The kernel keeps it until somebody removes it; with DESTDIR it isn't this kernel's that is meant.
remove_table() {
    if [ -z "$root" ] && command -v nft >/dev/null && nft list table ip viproute >/dev/null 2>&1; then
        nft delete table ip viproute && say "Removed: the nftables table viproute"
    fi
}

remove() {
    local file
    for file in "$@"; do
        if [ -e "$file" ] || [ -L "$file" ]; then rm -f "$file" && say "Removed: $file"; fi
    done
}

# A file that was edited is somebody's work.
remove_unchanged() {
    [ -e "$2" ] || return 0
    if cmp -s "$1" "$2"; then remove "$2"; else say "Kept, as it was changed: $2"; fi
}

do_demo() {
    need_root "makes network namespaces"
    packages iproute2 util-linux containernetworking-plugins dnsmasq-base jq
    build --bins --example peer
    # Its own process, mount and network namespace: whatever ends the demo, the kernel clears it all away.
    exec unshare --mount --net --pid --fork --kill-child --mount-proc env BINARIES="$built" bash demo/demo.sh "$@"
}

do_bench() {
    need_root "makes network namespaces"
    # The stream module is nginx-light's own in older releases.
    packages iproute2 util-linux iptables nftables conntrack haproxy nginx-light libnginx-mod-stream \
        containernetworking-plugins dnsmasq-base strace time
    build --bins --example bench
    # Thousands of connections, and a namespace's worth of descriptors for each of a thousand pods.
    ulimit -n "$(ulimit -Hn)"
    # As the demo: whatever ends it, the kernel clears it all away.
    exec unshare --mount --net --pid --fork --kill-child --mount-proc env BINARIES="$built" "$built/examples/bench" "$@"
}

do_test() {
    need_root "makes network namespaces"
    packages iproute2 containernetworking-plugins dnsmasq-base kea-dhcp4-server isc-dhcp-server \
        util-linux tcpdump conntrack nftables iptables strace shellcheck systemd jq \
        busybox-static podman procps prometheus
    # Docker's own containerd has another package, which Debian's would replace.
    command -v containerd >/dev/null || packages containerd runc
    need_cargo
    local failures=() output passed failed
    check() { say "== $*"; "$@" || failures+=("$*"); }
    check shellcheck install.sh demo/demo.sh .ci/run
    check cargo fmt --check
    check cargo clippy --all-targets -- -D warnings
    output=$(mktemp)
    # shellcheck disable=SC2064  # the name is known now
    trap "rm -f '$output'" EXIT
    # Tests wait more than they work.
    export RUST_TEST_THREADS=${RUST_TEST_THREADS:-$((2 * $(nproc)))}
    say "== cargo test"
    cargo test --no-fail-fast 2>&1 | tee "$output" || failures+=("cargo test")
    passed=$(total passed "$output")
    failed=$(total failed "$output")
    local failure
    for failure in "${failures[@]}"; do
        say "failed: $failure"
        # A test program that didn't compile or was killed has no result line, and is no success; nor is a check.
        if [ "$failure" != "cargo test" ] || [ "$failed" = 0 ]; then failed=$((failed + 1)); fi
    done
    say "$passed passed, $failed failed"
    [ ${#failures[@]} = 0 ]
}

# The sum over all of cargo's result lines: `test result: ok. 12 passed; 0 failed; …`
total() {
    sed -n "s/^test result: .* \([0-9]*\) $1;.*/\1/p" "$2" | awk '{ sum += $1 } END { print sum + 0 }'
}

verb=${1:-}
[ $# = 0 ] || shift
case $verb in
    install) do_install "$@" ;;
    uninstall) do_uninstall "$@" ;;
    demo) do_demo "$@" ;;
    bench) do_bench "$@" ;;
    test) do_test ;;
    *) usage >&2; exit 2 ;;
esac
