#!/usr/bin/env bash
# Installs viproute on this machine, removes it, shows it at work, tests it. Debian and Ubuntu.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")"

usage() {
    cat <<'EOF'
usage: ./install.sh install [--no-chain]     build and install plugin, sidecar, configuration; join the node's pod
                                             network (--no-chain: leave /etc/cni/net.d alone)
       ./install.sh uninstall [--detach|--force]
                                             remove them again (--detach: take attached pods out of their VIPs first;
                                             --force: although pods are attached)
       ./install.sh demo [--backend pool]    show it in throw-away network namespaces; changes nothing else
       ./install.sh test                     formatting, lints, all tests
       ./install.sh test --kernels [KERNEL…]
                                             a part of the tests under other kernels: 6.1, 6.12, uml (all, if none is named)
       ./install.sh test --kubernetes [FILTER…]
                                             a cluster of Kubernetes' own parts, and the tests in it whose names have a FILTER;
                                            --conformance instead of a FILTER: Kubernetes' own specs of load balancers in it
       ./install.sh test --with-kubernetes [FILTER…]
                                             all tests and those in the cluster, whose parts are built meanwhile
       ./install.sh test --release          what a release must pass besides: its archive, package and quickstarts on a bare
                                             Debian 12, its programs for arm64
       ./install.sh bench [--quick]          measure it beside others, in throw-away network namespaces; writes docs/
       ./install.sh bench --kubernetes       measure it beside MetalLB on clusters of Kubernetes' own parts; writes docs/
DESTDIR=/some/dir    install and uninstall work below that directory
BINARIES=/some/dir   install, demo and bench take the programs from there and build nothing
EOF
}

# Unpacked from a release's archive: the programs lie beside this script, and nothing is built.
release=''
if [ -x bin/viproutectl ] && [ ! -e Cargo.toml ]; then release=yes BINARIES=${BINARIES:-$PWD/bin}; fi
root=${DESTDIR:-}
built=${BINARIES:-$PWD/dist/bin-$(uname -m)}
plugins=$root/opt/cni/bin
binaries=$root/usr/local/bin
share=$root/usr/local/share
settings=$root/etc/viproute
chains=$root/etc/cni/net.d
unit=$root/etc/systemd/system/viprouted.service
# Where viprouted's configuration says, or its default.
registry=$(sed -n 's/^data_dir *= *"\([^"]*\)".*/\1/p' "$settings/viprouted.toml" 2>/dev/null || true)
registry=$root${registry:-/var/lib/cni/viproute}
pins=$root/sys/fs/bpf/viproute
# What joins a chain.
entry='{ "type": "viproute", "capabilities": { "io.kubernetes.cri.pod-annotations": true } }'

say() { printf '%s\n' "$*"; }
die() { printf 'install.sh: %s\n' "$*" >&2; exit 1; }

need_root() {
    [ "$(id -u)" = 0 ] || die "run it as root: it $1"
}

# Asked before any package is installed: without cargo none of them is of use.
need_cargo() {
    [ -z "${BINARIES:-}" ] || return 0
    command -v cargo >/dev/null || die "cargo is missing: install Rust $(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml) or newer (https://rustup.rs)"
}

# Debian packages that cargo needs. clang: the flow owner's programs, for the kernel's own processor.
compilers() {
    [ -n "${BINARIES:-}" ] || say gcc libc6-dev clang linux-libc-dev
}

# All programs, and what is named; nothing is built where they were brought along.
build() {
    [ -n "${BINARIES:-}" ] || packaging/build.sh "$(uname -m)" "$@"
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
    apt_quietly "${missing[@]}" || die "apt-get could not install: ${missing[*]}"
}

# A DHCP server must not start on this machine just because a test wants its program: policy-rc.d forbids it meanwhile. In a
# shell of its own, whose trap takes the file away however apt-get, or this script, ends.
apt_quietly() (
    policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then
        trap 'rm -f $policy' EXIT
        trap 'exit 130' INT
        trap 'exit 143' TERM HUP
        printf '#!/bin/sh\nexit 101\n' >$policy
        chmod 755 $policy
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get install -y -q --no-install-recommends "$@" ||
        { apt-get update -q && apt-get install -y -q --no-install-recommends "$@"; }
)

# With DESTDIR this is somebody's packaging: the unit belongs to it, and nothing is started.
wants_unit() { [ -n "$root" ] || [ -d /run/systemd/system ]; }
systemd() { [ -n "$root" ] || systemctl "$@"; }

do_install() {
    need_root "writes to /opt/cni/bin, /usr/local/bin and /etc"
    local no_chain=() links='' chain='' own='' joins='' loopback='' lacking='' staged
    case "$*" in
        "") ;;
        --no-chain) no_chain=(--no-chain) ;;
        *) usage >&2; exit 2 ;;
    esac
    need_cargo
    # shellcheck disable=SC2046  # a list of packages
    packages $(compilers)
    build
    look_around
    if [ -n "$own" ]; then base_plugins; fi
    staged=$(mktemp -d)
    # shellcheck disable=SC2064  # the name is known now
    trap "rm -rf '$staged'" EXIT
    stage "$staged"
    put_in_place "$staged"
}

# The network that is installed where there is none calls others' plugins. A release installs no packages: without them no network is made.
base_plugins() {
    if [ -z "$release" ]; then packages containernetworking-plugins
    elif [ ! -x "$plugins/ptp" ] && [ ! -x "$root/usr/lib/cni/ptp" ]; then own='' lacking=yes; fi
}

# Everything that is to be installed, in a directory that stands for the root.
stage() {
    install -D -m 755 -t "$1/opt/cni/bin" "$built/viproute"
    install -D -m 755 -t "$1/usr/local/bin" "$built/viprouted" "$built/viproutectl"
    stage_documentation "$1/usr/local/share"
    note "$1/usr/local/share"
    if wants_unit; then install -D -m 644 conf/viprouted.service "$1/etc/systemd/system/viprouted.service"; fi
    [ -e "$settings/viprouted.toml" ] || install -D -m 644 conf/viprouted.toml "$1/etc/viproute/viprouted.toml"
    [ -z "$own" ] || install -D -m 644 conf/10-viproute.conflist "$1/etc/cni/net.d/10-viproute.conflist"
}

# Who has installed it: doctor's cures are by that.
note() {
    install -d "$1/viproute"
    if [ -n "$release" ]; then say archive; else say "checkout $PWD"; fi >"$1/viproute/installed-by"
}

# What of the staged files is not here yet, or another.
differing() {
    find "$1" -type f -printf '%P\n' | LC_ALL=C sort | while read -r file; do
        if ! cmp -s "$1/$file" "$root/$file" || [ "$(mode "$1/$file")" != "$(mode "$root/$file")" ]; then say "$file"; fi
    done
}

mode() { if [ -x "$1" ]; then say 755; else say 644; fi }

put_in_place() {
    local files file dir restart=
    files=$(differing "$1")
    if [ -n "$root" ] || ! wants_unit; then :
    elif ! systemctl -q is-enabled viprouted 2>/dev/null || grep -qE '/viprouted(\.service)?$' <<<"$files"; then restart=yes; fi
    if [ -z "$files$links$restart$joins" ]; then
        say "Nothing was done: all of viproute is installed already.$(state_of_chain)"
        return
    fi
    say "This installs:"
    for file in $files; do say "  $root/$file"; done
    for dir in $links; do say "  $root$dir/viproute, a link to the plugin: a runtime looks for it there"; done
    if [ -n "$joins" ]; then say "  viproute as the last plugin of $chain; the original is kept in $settings"; fi
    if [ -n "$restart" ]; then say "  viprouted, enabled and started by systemd"; fi
    for file in $files; do
        install -D -m "$(mode "$1/$file")" "$1/$file" "$root/$file.viproute-new"
        # Renamed into place: a runtime may call the old one at this moment.
        mv "$root/$file.viproute-new" "$root/$file"
    done
    if [ -n "$restart" ]; then
        systemctl daemon-reload
        systemctl enable viprouted
        systemctl restart viprouted
    fi
    # Last: from now on the runtime calls the plugin.
    if [ -n "$links$joins" ]; then "$built/viproutectl" node install "${no_chain[@]}" --root "${root:-/}"; fi
    advise
    say "Installed. Try: viproutectl status"
}

# viproutectl as it is to be installed, or as it is.
tool() {
    if [ -x "$built/viproutectl" ]; then say "$built/viproutectl"; else say "$binaries/viproutectl"; fi
}

# Where viproutectl's completions go, by shell.
completions() {
    say "bash $1/bash-completion/completions/viproutectl"
    say "zsh $1/zsh/site-functions/_viproutectl"
    say "fish $1/fish/vendor_completions.d/viproutectl.fish"
}

# Made by the program itself, so that they are this version's. $1: in place of `share`.
stage_documentation() {
    install -d "$1/man/man8" "$1/man/man5"
    "$built/viproutectl" man "$1/man/man8"
    mv "$1"/man/man8/*.5 "$1/man/man5"
    local shell file
    completions "$1" | while read -r shell file; do
        install -d "${file%/*}"
        "$built/viproutectl" completions "$shell" >"$file"
    done
}

# The network configurations a runtime sees, in its order: containerd and CRI-O use the first one. The directory may be a
# link (MicroK8s, k3s), and a file's name may begin with a dot: runtimes take both.
networks() {
    [ ! -d "$chains/" ] || find "$chains/" -maxdepth 1 ! -type d -regex '.*\.\(conflist\|conf\|json\)' | sed 's|//*|/|g' | LC_ALL=C sort
}

# Sets `links` to the directories where a runtime would look for the plugin in vain, and `chain` to the network that viproute joins
# (`joins`) or has joined, or `own` where there is none. What isn't understood is refused before anything is changed: a wrong edit takes the
# node's network away.
look_around() {
    local plan line
    plan=$("$built/viproutectl" node install --dry-run "${no_chain[@]}" --root "${root:-/}") || die "nothing was changed.
Put that right, or use --no-chain and add this as the last of the network's \"plugins\":
    $entry"
    while read -r line; do
        case $line in
            "link "*) links="$links ${line#link }" ;;
            "join "*) chain=${line#join } joins=yes ;;
            "has "*) chain=${line#has } ;;
            no-network) own=yes ;;
            "loopback "*) loopback=${line#loopback } ;;
        esac
    done <<<"$plan"
}

state_of_chain() {
    [ -z "$chain" ] || say " $chain has viproute."
}

# What is left to people.
advise() {
    if [ ${#no_chain[@]} != 0 ]; then
        say "Left alone: $chains. viproute is to be the last of a network's \"plugins\" there:"
        say "    $entry"
    elif [ -n "$own" ]; then
        say "The pod network of $chains/10-viproute.conflist uses ptp and host-local: the runtime must find them"
        say "beside viproute (Debian's are in /usr/lib/cni). Give each node its own subnet there."
    elif [ -n "$lacking" ]; then
        say "No pod network was made: none is in $chains, and the plugins for one (ptp, host-local, portmap; Debian's package"
        say "containernetworking-plugins) are missing. Once there is one: viproutectl node join"
    elif [ -z "$chain" ]; then
        say "podman is the only runtime here. It passes no annotations to plugins: containers join by the name of a network"
        say "that has \"vips\", and no network of a package's is changed. To have one, named web, with the VIP default/web:"
        say "    install -m 644 $PWD/conf/podman-web.conflist $chains/"
        say "    podman run --network web ..."
        say "(podman 4 with network_backend = \"cni\" in containers.conf; podman 5 calls no CNI plugins.)"
    fi
    if [ -n "$loopback" ]; then
        say "$loopback comes first and gives pods nothing but a loopback: a runtime that takes the first file uses it. Rename it."
    fi
    if ! wants_unit; then say "No systemd here: start $binaries/viprouted yourself."; fi
    command -v nft >/dev/null || say "The program nft is missing (apt-get install nftables): VIP traffic will be tracked."
}

# Takes viproute out of the chain it joined, unless somebody has worked on that since.
leave_chain() {
    # Names may begin with a dot.
    [ -n "$(find "$settings" -maxdepth 1 -name '*.orig' 2>/dev/null)" ] || return 0
    "$(tool)" node leave --root "${root:-/}" || die "the network was left as it is, and nothing is removed"
}

do_uninstall() {
    need_root "removes files from /opt/cni/bin, /usr/local/bin and /etc"
    case "$*" in
        "" | --detach | --force) ;;
        *) usage >&2; exit 2 ;;
    esac
    local attached dirs
    attached=$(attached | wc -l)
    if [ "$attached" -gt 0 ] && [ -z "${1:-}" ]; then
        die "$attached pods are attached to VIPs; without the plugin their runtime can't remove them. Delete them first, or
--detach: they are taken out of their VIPs and live on (--force: they are left as they are)"
    fi
    # First: with the chain gone nobody calls the plugin any more.
    leave_chain
    if [ "${1:-}" = --detach ]; then detach_all; attached=0; fi
    if [ -e "$unit" ]; then
        systemd stop viprouted
        systemd disable viprouted
    fi
    remove_table
    remove_programs
    dirs=$("$(tool)" plugin-dirs "${root:-/}" 2>/dev/null || true)
    local dir
    for dir in $dirs; do
        if [ "$(readlink "$root$dir/viproute" || true)" = /opt/cni/bin/viproute ]; then remove "$root$dir/viproute"; fi
    done
    remove "$unit" "$binaries/viprouted" "$binaries/viproutectl" "$plugins/viproute"
    remove "$share"/man/man5/viprouted.toml.5 "$share"/man/man8/viproute.8 "$share"/man/man8/viprouted.8 "$share"/man/man8/viproutectl.8 "$share"/man/man8/viproutectl-*.8
    local shell file
    completions "$share" | while read -r shell file; do remove "$file"; done
    remove "$share/viproute/installed-by"
    remove_empty "$share/viproute" "$share"/man/man{5,8} "$share"/{bash-completion,zsh,fish}/*/ "$share"/{bash-completion,zsh,fish} "$plugins" "$root/opt/cni"
    # The kernel keeps the flow owner's programs and maps for as long as they are pinned.
    if [ "$attached" = 0 ] && [ -d "$pins" ]; then rm -rf "$pins" && say "Removed: $pins"; fi
    remove_unchanged conf/10-viproute.conflist "$chains/10-viproute.conflist"
    remove_unchanged conf/viprouted.toml "$settings/viprouted.toml"
    rmdir "$settings" 2>/dev/null || true
    if wants_unit; then systemd daemon-reload; fi
    local other
    networks | while read -r other; do
        if grep -q '"viproute"' "$other"; then
            say "Take the entry with \"type\": \"viproute\" out of $other yourself: pods can't start while it is there."
        fi
    done
    say "Leases stay in /var/lib/viproute, the registry in $registry."
}

# The attachments whose pods live. Where viproutectl is gone, so is the rest.
attached() { [ ! -x "$(tool)" ] || "$(tool)" --data-dir "$registry" attached; }

# Takes each pod out of its VIPs, as its runtime's DEL would: the pod lives on without them.
detach_all() {
    local file name failed=
    for file in "$registry"/attachments/*.json; do
        [ -e "$file" ] || continue
        name=$(basename "$file" .json)
        if printf '{"cniVersion":"1.0.0","name":"viproute","type":"viproute","dataDir":"%s"}' "$registry" |
            CNI_COMMAND=DEL CNI_CONTAINERID=${name%%@*} CNI_IFNAME=${name#*@} CNI_PATH=$plugins "$plugins/viproute"; then
            say "Detached: $name"
        else
            failed="$failed $name"
        fi
    done
    [ -z "$failed" ] || die "could not take out of their VIPs:$failed. The programs are still installed, the network no longer has viproute"
}

# The kernel keeps it until somebody removes it; with DESTDIR it isn't this kernel's that is meant.
remove_table() {
    if [ -z "$root" ] && command -v nft >/dev/null && nft list table ip viproute >/dev/null 2>&1; then
        nft delete table ip viproute && say "Removed: the nftables table viproute"
    fi
}

# Those that a viprouted which was killed has left on uplinks; it takes them off itself when it ends.
remove_programs() {
    if [ -z "$root" ] && [ -x "$binaries/viproutectl" ]; then
        "$binaries/viproutectl" unload || say "That is left to you: a reboot takes them off, too."
    fi
}

remove() {
    local file
    for file in "$@"; do
        if [ -e "$file" ] || [ -L "$file" ]; then rm -f "$file" && say "Removed: $file"; fi
    done
}

# Directories that install has made, or others have left without a file.
remove_empty() { rmdir "$@" 2>/dev/null || true; }

# A file that was edited is somebody's work.
remove_unchanged() {
    [ -e "$2" ] || return 0
    if cmp -s "$1" "$2"; then remove "$2"; else say "Kept, as it was changed: $2"; fi
}

do_demo() {
    need_root "makes network namespaces"
    need_cargo
    # shellcheck disable=SC2046  # a list of packages
    packages iproute2 util-linux containernetworking-plugins dnsmasq-base $(compilers)
    build --example demo
    # Its own process, mount and network namespace: whatever ends the demo, the kernel clears it all away. A process
    # namespace's first process has no default signal handlers: without these Ctrl-C would do nothing.
    # shellcheck disable=SC2016  # for that shell to expand
    exec unshare --mount --net --pid --fork --kill-child --mount-proc env BINARIES="$built" TMPDIR=/run bash -c '
        trap "exit 130" INT; trap "exit 143" TERM
        mount -t tmpfs demo /run
        "$0" "$@" &
        wait $!' "$built/examples/demo" "$@"
}

do_bench() {
    need_root "makes network namespaces"
    need_cargo
    if [ "$*" = --kubernetes ]; then bench_kubernetes; return; fi
    # The stream module is nginx-light's own in older releases.
    # shellcheck disable=SC2046  # a list of packages
    packages iproute2 util-linux iptables nftables conntrack haproxy nginx-light libnginx-mod-stream \
        containernetworking-plugins dnsmasq-base strace time $(compilers)
    build --example bench
    # Thousands of connections, and a namespace's worth of descriptors for each of a thousand pods.
    ulimit -n "$(ulimit -Hn)"
    # As the demo: whatever ends it, the kernel clears it all away.
    exec unshare --mount --net --pid --fork --kill-child --mount-proc env BINARIES="$built" TMPDIR=/run "$built/examples/bench" "$@"
}

# What is measured runs as in the tests.
bench_kubernetes() {
    cluster_parts
    packaging/build.sh "$(uname -m)"
    VIPROUTE_PROGRAMS=$PWD/dist/bin-$(uname -m) VIPROUTE_TEST_PATIENCE=${VIPROUTE_TEST_PATIENCE:-3} RUST_TEST_THREADS=1 cargo test --test kubernetes -- --ignored --nocapture beside::
}

do_test() {
    need_root "makes network namespaces"
    need_cargo
    local cluster=false tests=()
    case ${1:-} in
        "") ;;
        --kernels) test_kernels "${@:2}"; return ;;
        --kubernetes) test_kubernetes "${@:2}"; return ;;
        --with-kubernetes) cluster=true tests=("${@:2}") ;;
        --release) test_release; return ;;
        *) usage >&2; exit 2 ;;
    esac
    # shellcheck disable=SC2046  # a list of packages
    packages iproute2 containernetworking-plugins dnsmasq-base kea-dhcp4-server kea-dhcp6-server isc-dhcp-server \
        util-linux tcpdump conntrack nftables iptables strace shellcheck systemd jq curl \
        busybox-static podman procps prometheus bird2 frr lintian linux-libc-dev-arm64-cross $(compilers)
    # Docker's own containerd has another package, which Debian's would replace.
    command -v containerd >/dev/null || packages containerd runc
    ! $cluster || cluster_packages
    local failures=() output
    check() { say "== $*"; "$@" || failures+=("$*"); }
    output=$(mktemp)
    # shellcheck disable=SC2064  # the name is known now
    trap "end_builds; rm -f '$output'" EXIT
    check shellcheck install.sh tests/kernels.sh tests/previous.sh tests/debian.sh tests/containerd2.sh tests/kubernetes.sh tests/helm.sh tests/metallb.sh tests/go.sh packaging/*.sh packaging/deb/p* .ci/run
    check cargo fmt --check
    # Tests wait more than they work. As many share a processor, what they wait for may take its time.
    export RUST_TEST_THREADS=${RUST_TEST_THREADS:-$((5 * $(nproc) / 2))} VIPROUTE_TEST_PATIENCE=${VIPROUTE_TEST_PATIENCE:-3}
    check cargo test --no-run
    start_builds $cluster
    say "== cargo test"
    cargo test --no-fail-fast -- "${late_tests[@]/#/--skip=}" 2>&1 | tee "$output" || once_more "$output" || failures+=("cargo test")
    wait_for_builds || failures+=("lints and what the other tests need")
    run_late_tests "$output" || failures+=("cargo test -- ${late_tests[*]}")
    ! $cluster || RUST_TEST_THREADS=1 cluster_tests "$output" "${tests[@]}" || failures+=("cargo test --test kubernetes")
    closing_line "$output" "${failures[@]}"
}

# They need what takes minutes of a processor's time to build: the programs as they are installed, those of the release before, a runtime that
# calls STATUS, what reads the chart. That is built, and the code linted, beside the other tests, which wait more than they work.
late_tests=(packaging:: containerd2:: upgrade::)

# $1: whether clusters' parts are needed too.
start_builds() {
    # The optimization of the whole program takes most of a release's build, once for each program, and nothing here asks for it (--release does).
    local quick='env CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16'
    # Two at a time: the last crates of each take minutes of one processor, and the tests may be over by then.
    local one=("$quick packaging/build.sh $(uname -m)" tests/helm.sh) other=(tests/previous.sh tests/containerd2.sh)
    # The target kubernetes is none of all: it is run by --kubernetes alone.
    other+=("cargo clippy --all-targets -- -D warnings" "cargo clippy --test kubernetes -- -D warnings")
    ! $1 || one+=(tests/kubernetes.sh tests/metallb.sh)
    builds_log=$(mktemp)
    # A process group of its own, which ends with this script.
    set -m
    {
        renice -n 19 "$BASHPID" >/dev/null
        in_turn "${one[@]}" &
        in_turn "${other[@]}"
        wait
    } >"$builds_log" 2>&1 &
    builder=$!
    set +m
}

in_turn() {
    local build
    for build; do $build || echo "failed: $build"; done
}

# Says what was not built or is not clean, and why.
wait_for_builds() {
    say "== lints and what the other tests need"
    renice -n 0 -g "$builder" >/dev/null 2>&1 || true
    wait "$builder" || true
    builder=
    ! grep -q '^failed: ' "$builds_log" || { cat "$builds_log"; return 1; }
}

end_builds() {
    [ -z "${builder:-}" ] || kill -- "-$builder" 2>/dev/null || true
    rm -f "${builds_log:-}"
}

run_late_tests() {
    local output code=0
    output=$(mktemp)
    cargo test --no-fail-fast --test e2e -- "${late_tests[@]}" 2>&1 | tee "$output" || once_more "$output" || code=1
    cat "$output" >>"$1"
    rm -f "$output"
    return $code
}

cluster_tests() {
    cargo test --no-fail-fast --test kubernetes -- "${@:2}" 2>&1 | tee -a "$1"
}

# $1: what cargo printed, then what failed. CI may show nothing else.
closing_line() {
    local passed failed failure output=$1
    shift
    passed=$(total passed "$output")
    failed=$(total failed "$output")
    sed -n '/^---- .* stdout ----$/,/^failures:$/p' "$output"
    if [ $# = 0 ] && [ "$failed" != 0 ]; then
        say "passed when they ran once more, alone: $(failed_tests "$output" | xargs)"
        passed=$((passed + failed)) failed=0
    fi
    for failure in "$@"; do
        say "failed: $failure"
        # A test program that didn't compile or was killed has no result line, and is no success; nor is a check.
        case $failure in "cargo test"*) [ "$failed" = 0 ] || continue ;; esac
        failed=$((failed + 1))
    done
    say "$passed passed, $failed failed"
    [ $# = 0 ]
}

# In guests, which see this machine's files: what the tests need must be here.
test_kernels() {
    # shellcheck disable=SC2046  # a list of packages
    packages iproute2 containernetworking-plugins dnsmasq-base util-linux tcpdump conntrack nftables iptables procps $(compilers)
    cargo build --all-targets
    exec tests/kernels.sh "$@"
}

# No part of what CI runs: it compiles all twice as a release does, and boots machines that debootstrap fetches.
test_release() {
    # shellcheck disable=SC2046  # a list of packages
    packages debootstrap systemd-container iproute2 util-linux busybox-static lintian gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static linux-libc-dev-arm64-cross $(compilers)
    ! command -v rustup >/dev/null || rustup target add aarch64-unknown-linux-gnu
    tests/debian.sh
    packaging/build.sh "$(uname -m)"
    packaging/build.sh aarch64
    RUST_TEST_THREADS=1 VIPROUTE_TEST_PATIENCE=${VIPROUTE_TEST_PATIENCE:-3} cargo test --test e2e -- --include-ignored packaging::arm64:: debian::
}

cluster_packages() {
    # shellcheck disable=SC2046  # a list of packages
    packages iproute2 util-linux containernetworking-plugins nftables iptables conntrack procps busybox-static openssl curl dnsmasq-base $(compilers)
    command -v containerd >/dev/null || packages containerd runc
    debian_go
}

# What a cluster is built of. It takes minutes, and lies in target/ and Go's cache afterwards.
cluster_parts() {
    cluster_packages
    tests/containerd2.sh
    tests/kubernetes.sh
    tests/helm.sh
    tests/metallb.sh
}

test_kubernetes() {
    cluster_parts
    if [ "${1:-}" = --conformance ]; then
        packages curl dash netcat-openbsd wget
        tests/kubernetes.sh --e2e
        shift
        # Each of its specs waits for minutes: it is for who asks for it.
        set -- --ignored --nocapture conformance:: "$@"
    fi
    local output failures=()
    output=$(mktemp)
    # shellcheck disable=SC2064  # the name is known now
    trap "rm -f '$output'" EXIT
    # Each has a cluster of its own, whose parts take a processor for seconds; the kernel gives a user 128 inotify instances, of which a cluster
    # takes about 25.
    export RUST_TEST_THREADS=${RUST_TEST_THREADS:-1} VIPROUTE_TEST_PATIENCE=${VIPROUTE_TEST_PATIENCE:-3}
    cluster_tests "$output" "$@" || failures=("cargo test --test kubernetes")
    closing_line "$output" "${failures[@]}"
}

# Debian's Go where it is new enough; tests/go.sh knows where to look for another one.
debian_go() {
    local candidate
    # shellcheck source=tests/go.sh
    . tests/go.sh
    ! new_enough go && command -v apt-cache >/dev/null || return 0
    candidate=$(apt-cache policy golang-go | sed -n 's/^  Candidate: \([0-9]*:\)\{0,1\}\([0-9.]*\).*/\2/p')
    if [ "$(printf '%s\n' 1.26 "${candidate:-0}" | sort -V | head -n 1)" = 1.26 ]; then packages golang-go; else packages python3-venv; fi
}

failed_tests() { sed -n 's/^test \(.*\) \.\.\. FAILED$/\1/p' "$1"; }

# An end-to-end test that failed runs once more, alone: so a machine that was too busy is told from a change that is wrong. It is named
# either way, with what it said at first. Three at most: more is no coincidence. Tests of pure logic have no second run.
once_more() {
    local tests programs again passed
    mapfile -t tests < <(failed_tests "$1")
    # Cargo's closing list: `--test e2e`
    programs=$(sed -n 's/^    .--\(lib\|bins\|bin [a-z0-9]*\|test [a-z0-9]*\|bench [a-z0-9]*\|doc\).$/\1/p' "$1")
    [ "$programs" = 'test e2e' ] && [ ${#tests[@]} -gt 0 ] && [ ${#tests[@]} -le 3 ] || return 1
    say "== once more, alone: ${tests[*]}"
    again=$(mktemp)
    RUST_TEST_THREADS=1 cargo test --test e2e -- --exact "${tests[@]}" 2>&1 | tee "$again" || true
    passed=$(total passed "$again")
    rm -f "$again"
    [ "$passed" = ${#tests[@]} ]
}

# The sum over all of cargo's result lines: `test result: ok. 12 passed; 0 failed; …`
total() {
    sed -n "s/^test result: .* \([0-9]*\) $1;.*/\1/p" "$2" | awk '{ sum += $1 } END { print sum + 0 }'
}

verb=${1:-}
[ $# = 0 ] || shift
if [ -n "$release" ]; then
    case $verb in demo | bench | test) die "$verb needs the sources: this is a release's archive" ;; esac
fi
case $verb in
    install) do_install "$@" ;;
    uninstall) do_uninstall "$@" ;;
    demo) do_demo "$@" ;;
    bench) do_bench "$@" ;;
    test) do_test "$@" ;;
    *) usage >&2; exit 2 ;;
esac
