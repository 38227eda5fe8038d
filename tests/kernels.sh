#!/usr/bin/env bash
# Runs a part of the end-to-end tests (tests/kernels.list) under kernels other than this machine's. The guests see this
# machine's files read-only, under an overlay in memory, so that they test the programs just built and leave nothing.
#
#   tests/kernels.sh [KERNEL…]               6.1 and 6.12: Debian's, in qemu. uml: User Mode Linux, which has no BTF
#   tests/kernels.sh --command LINE KERNEL   that line of shell instead of the tests
#
# Debian on x86-64, as root. Packages of kernels are unpacked below target/kernels; the machine's own package sources stay as
# they are.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."

known=(6.1 6.12 uml)
cache=$PWD/target/kernels
# Guests emulate every instruction: what tests wait for takes its time.
patience=${VIPROUTE_TEST_PATIENCE:-12}

say() { printf '%s\n' "$*"; }
die() { printf 'tests/kernels.sh: %s\n' "$*" >&2; exit 1; }

install_packages() {
    local missing=() package
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    say "Installing Debian packages: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get install -y -q --no-install-recommends "${missing[@]}" >/dev/null ||
        { apt-get update -q && apt-get install -y -q --no-install-recommends "${missing[@]}"; } >/dev/null
}

# apt-get with sources and lists of its own: this release and its backports, which have the newer kernel.
private_apt() {
    local program=$1 state=$cache/apt
    shift
    "$program" -o Dir::State::Lists="$state/lists" -o Dir::Cache="$state/cache" -o Dir::Etc::SourceList=/dev/null \
        -o Dir::Etc::SourceParts="$state/sources" "$@"
}

refresh_lists() {
    local state=$cache/apt release mirror
    [ ! -e "$state/fresh" ] || return 0
    # shellcheck source=/dev/null
    release=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    # shellcheck source=/dev/null
    [ "$(. /etc/os-release && echo "$ID")" = debian ] || die "the kernels are packages of Debian, and this is not Debian"
    mirror=$(apt-cache policy | sed -n "s|^ *[0-9]* \(https\?://[^ ]*\) $release/main.*|\1|p" | head -n 1)
    [ -n "$mirror" ] || die "apt-cache policy names no mirror of Debian $release: run apt-get update"
    mkdir -p "$state/lists/partial" "$state/cache/archives/partial" "$state/sources"
    printf 'Types: deb\nURIs: %s\nSuites: %s %s-backports\nComponents: main\nSigned-By: %s\n' "$mirror" "$release" "$release" \
        /usr/share/keyrings/debian-archive-keyring.gpg >"$state/sources/debian.sources"
    private_apt apt-get update -q >/dev/null
    touch "$state/fresh"
}

# unpack KERNEL: sets `root` (the package's files) and `release` (as uname -r has it).
unpack() {
    if [ "$1" = uml ]; then
        install_packages user-mode-linux
        root=/usr/lib/uml
        release=$(ls $root/modules)
        modules=$root/modules/$release
        return
    fi
    root=$cache/$1/root
    if [ ! -e "$cache/$1/unpacked" ]; then
        local package
        refresh_lists
        package=$(private_apt apt-cache pkgnames "linux-image-$1." | grep -E '^linux-image-[0-9.+deb-]*-amd64$' | sort -V | tail -n 1)
        [ -n "$package" ] || die "Debian has no kernel $1 here: expected one of ${known[*]}"
        say "Fetching $package"
        rm -rf "${cache:?}/$1"
        mkdir -p "$root"
        (cd "$cache/$1" && private_apt apt-get download -q "$package" >/dev/null && dpkg -x "$package"_*.deb root && rm -f ./*.deb)
        depmod -b "$root" "$(ls "$root/lib/modules")"
        touch "$cache/$1/unpacked"
    fi
    release=$(ls "$root/lib/modules")
    modules=$root/lib/modules/$release
}

# initrd KERNEL: what a guest starts with, the overlay over this machine's files. The modules for that are loaded in the order
# of their numbers.
make_initrd() {
    local wanted=(overlay) staged number=100 file
    [ "$1" = uml ] || wanted=(virtio_pci 9pnet_virtio 9p overlay virtio_rng)
    staged=$cache/$1/initrd.d
    rm -rf "$staged"
    mkdir -p "$staged"/{bin,proc,sys,dev,lower,upper,new,modules}
    cp /bin/busybox "$staged/bin/busybox"
    ln -s busybox "$staged/bin/sh"
    # One line an insmod, dependencies first; /lib/modules of the package stands where modprobe looks for it.
    for file in $(depends "$1" "${wanted[@]}"); do
        number=$((number + 1))
        case $file in
            *.xz) xz -dc "$file" >"$staged/modules/$number.ko" ;;
            *) cp "$file" "$staged/modules/$number.ko" ;;
        esac
    done
    sed "s|@HOST@|$([ "$1" = uml ] && echo hostfs || echo 9p)|" >"$staged/init" <<'INIT'
#!/bin/sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in /modules/*; do insmod $module; done
# host WHAT DIR OPTIONS
host() {
    case @HOST@ in
        hostfs) mount -t hostfs -o "$1" none $2 ;;
        9p) mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,$3 $4 $2 ;;
    esac
}
host / /lower ro,cache=loose root
mount -t tmpfs -o size=75% tmpfs /upper
mkdir /upper/changed /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/changed,workdir=/upper/work overlay /new
out=$(sed -n 's/.*viproute_out=\([^ ]*\).*/\1/p' /proc/cmdline)
mkdir -p /new/$out
host $out /new/$out cache=none out
for dir in proc sys dev; do mount --move /$dir /new/$dir; done
exec switch_root /new /bin/bash $out/first
INIT
    chmod +x "$staged/init"
    (cd "$staged" && find . | cpio -o -H newc --quiet | gzip -1) >"$cache/$1/initrd"
}

# depends KERNEL MODULE…: their files and those they need, each once.
depends() {
    local kernel=$1 module base=$root
    shift
    if [ "$kernel" = uml ]; then
        base=$cache/uml/root
        mkdir -p "$base/lib"
        ln -sfn /usr/lib/uml/modules "$base/lib/modules"
    fi
    for module in "$@"; do
        modprobe -d "$base" -S "$release" --show-depends "$module" | awk '$1 == "insmod" { print $2 }'
    done | awk '!seen[$0]++'
}

# What the guest's first process does: a machine as the tests expect it, then the command.
write_first() {
    cat >"$1/first" <<FIRST
export PATH=$PATH HOME=/root CARGO_HOME=${CARGO_HOME:-/root/.cargo}
mount -t tmpfs tmpfs /run; mkdir -p /run/netns /run/lock /dev/shm /dev/pts
mount -t tmpfs tmpfs /dev/shm; mount -t devpts devpts /dev/pts
mount -t bpf bpf /sys/fs/bpf; mount -t cgroup2 cgroup /sys/fs/cgroup
for link in fd:/proc/self/fd stdin:fd/0 stdout:fd/1 stderr:fd/2; do ln -sfn \${link#*:} /dev/\${link%%:*}; done
rm -rf /lib/modules; mkdir -p /lib/modules/$release; mount --bind $modules /lib/modules/$release
echo /sbin/modprobe >/proc/sys/kernel/modprobe
ulimit -Hn 65536; ulimit -n 65536; ip link set lo up; hostname guest; date -s @$(date +%s) >/dev/null
cd $PWD
bash $1/command </dev/null >$1/output 2>&1
echo \$? >$1/status
sync; echo o >/proc/sysrq-trigger; sleep 60
FIRST
}

boot_qemu() {
    # With a thread for each of its processors a guest may run code that it has just patched as it was before.
    qemu-system-x86_64 -machine q35 -accel tcg,thread=single -cpu max -smp 2 -m 4096 -display none -serial stdio -monitor none \
        -no-reboot -nic none -device virtio-rng-pci \
        -virtfs local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap \
        -virtfs local,path="$1",mount_tag=out,security_model=none,multidevs=remap \
        -kernel "$(echo "$root"/boot/vmlinuz-*)" -initrd "$cache/$2/initrd" \
        -append "console=ttyS0 panic=-1 quiet mitigations=off viproute_out=$1" </dev/null
}

boot_uml() {
    TMPDIR=/dev/shm linux.uml mem=3G con=null con0=null,fd:1 initrd="$cache/$2/initrd" panic=-1 quiet "viproute_out=$1" </dev/null
}

# guest KERNEL COMMAND: its output is shown as it comes; the status is the command's.
guest() {
    local out status shown
    install_packages busybox-static kmod cpio xz-utils
    [ "$1" = uml ] || install_packages qemu-system-x86
    unpack "$1"
    mkdir -p "$cache/$1"
    make_initrd "$1"
    out=$(mktemp -d)
    # shellcheck disable=SC2064  # the name is known now
    trap "rm -rf '$out'" EXIT
    printf '%s\n' "$2" >"$out/command"
    : >"$out/output"
    write_first "$out"
    tail -f "$out/output" &
    shown=$!
    if [ "$1" = uml ]; then boot_uml "$out" "$1" >"$out/console" 2>&1; else boot_qemu "$out" "$1" >"$out/console" 2>&1; fi || true
    sleep 1
    kill $shown
    wait $shown 2>/dev/null || true
    status=$(cat "$out/status" 2>/dev/null || true)
    if [ -z "$status" ]; then
        tail -n 40 "$out/console" >&2
        die "the guest $1 ended before its command did"
    fi
    return "$status"
}

# chosen KERNEL: the tests of the list, a filter each.
chosen() {
    sed "/!$1/d; s/#.*//; s/!.*//; s/[[:space:]]*\$//; /^\$/d" tests/kernels.list
}

# The program that cargo has built last.
e2e() {
    cargo test --no-run --test e2e --message-format json 2>/dev/null |
        sed -n 's/.*"name":"e2e".*"executable":"\([^"]*\)".*/\1/p' | tail -n 1
}

tests_of() {
    local program skipped=''
    program=$(e2e)
    [ -x "$program" ] || die "the tests don't build: cargo test --no-run --test e2e"
    # Without BTF there is no IPv6.
    [ "$1" != uml ] || skipped='--skip ipv6'
    # Those that are ignored elsewhere unload modules: by themselves, once the others are done.
    printf 'uname -r; export TMPDIR=/run VIPROUTE_TEST_PATIENCE=%s\n' "$patience"
    printf 'RUST_TEST_THREADS=2 %s %s %s; first=$?\n' "$program" "$skipped" "$(chosen "$1" | tr '\n' ' ')"
    # shellcheck disable=SC2016  # for the guest's shell
    printf 'RUST_TEST_THREADS=1 %s --ignored doctor::modules:: && exit $first\n' "$program"
}

[ "$(id -u)" = 0 ] || die "run it as root: the guests see root's files"
[ "$(uname -m)" = x86_64 ] || die "the kernels are those of x86-64, and this is $(uname -m)"
command=
if [ "${1:-}" = --command ]; then
    [ $# = 3 ] || die "expected: --command LINE KERNEL"
    command=$2
    shift 2
fi
failed=0
[ $# -gt 0 ] || set -- "${known[@]}"
for kernel; do
    case " ${known[*]} " in *" $kernel "*) ;; *) die "$kernel is none of the kernels: ${known[*]}" ;; esac
    say "== $kernel"
    (guest "$kernel" "${command:-$(tests_of "$kernel")}") || failed=1
done
exit $failed
