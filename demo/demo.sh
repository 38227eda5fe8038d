#!/usr/bin/env bash
# viproute on real parts, in namespaces: a LAN with a DHCP server, a node with pods, a client. Run by `./install.sh demo`,
# which starts it in namespaces of its own; nothing of it can outlive this shell.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."

backend=dhcp
case "$*" in
    "" | "--backend dhcp") ;;
    "--backend pool") backend=pool ;;
    *) echo "usage: ./install.sh demo [--backend dhcp|pool]" >&2; exit 2 ;;
esac

bin=${BINARIES:-$PWD/target/release}
base=/usr/lib/cni
[ -x $base/ptp ] || base=/opt/cni/bin
bold=$(printf '\033[1m') plain=$(printf '\033[0m') bar_colour=$(printf '\033[36m')
if [ ! -t 1 ] || [ -n "${NO_COLOR:-}" ]; then bold='' plain='' bar_colour=''; fi

# The first process of a process namespace has no default signal handlers: without these Ctrl-C would do nothing.
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT

step() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
say() { printf '  %s\n' "$*"; }
show() { sed 's/^/    /'; }
in_ns() { ip netns exec "$@"; }
die() {
    printf 'demo: %s\n' "$*" >&2
    [ ! -s /run/demo/viprouted.log ] || cat /run/demo/viprouted.log >&2
    exit 1
}

# wait_for SECONDS WHAT COMMAND…: until the command succeeds.
wait_for() {
    local deadline=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $deadline ] || die "waited in vain: $what"
        sleep 0.05
    done
}

plug() { # NAMESPACE CIDR: a veth pair from the LAN's bridge to eth0 in the namespace
    ip netns add "$1"
    ip -n "$1" link set lo up
    ip -n lan link add "to-$1" type veth peer name eth0 netns "$1"
    ip -n lan link set "to-$1" master br0 up
    ip -n "$1" addr add "$2" dev eth0
    ip -n "$1" link set eth0 up
}

build_lan() {
    # Our own /run: what is named there (namespaces, sockets, state) is nobody else's and goes with this mount.
    mount --make-rprivate /
    mount -t tmpfs demo /run
    mkdir -p /run/demo/peers /run/demo/bpf
    mount -t bpf demo /run/demo/bpf
    ip netns add lan
    ip -n lan link set lo up
    ip -n lan link add br0 type bridge forward_delay 0
    ip -n lan addr add 192.0.2.254/24 dev br0
    ip -n lan link set br0 up
    plug node 192.0.2.1/24
    plug client 192.0.2.50/24
    ip -n node route add default via 192.0.2.254
}

start_dnsmasq() {
    cat >/run/demo/dnsmasq.conf <<'EOF'
port=0
interface=br0
bind-interfaces
dhcp-authoritative
no-ping
user=root
dhcp-range=192.0.2.100,192.0.2.150,255.255.255.0,10m
dhcp-leasefile=/run/demo/leases
EOF
    in_ns lan dnsmasq -k -C /run/demo/dnsmasq.conf --pid-file= --log-facility=/run/demo/dnsmasq.log &
    wait_for 5 "dnsmasq" grep -q 'sockets bound' /run/demo/dnsmasq.log
}

start_sidecar() {
    cat >/run/demo/viprouted.toml <<EOF
socket = "/run/demo/viprouted.sock"
state_dir = "/run/demo/state"
data_dir = "/run/demo/registry"
metrics = "/run/demo/metrics.sock"
backend = "$backend"
allow = ["192.0.2.0/24", "10.118.0.0/24"]
EOF
    [ "$backend" = dhcp ] || printf '[pool]\ncidr = "10.118.0.0/24"\n' >>/run/demo/viprouted.toml
    in_ns node "$bin/viprouted" --config /run/demo/viprouted.toml >/run/demo/viprouted.log 2>&1 &
    wait_for 5 "viprouted" test -S /run/demo/viprouted.sock
}

# cni VERB POD: the chain ptp → viproute as a runtime runs it; a DEL goes the other way round.
cni() {
    local verb=$1 pod=$2 ptp viproute result
    ptp='{"cniVersion":"1.0.0","name":"demo","type":"ptp","ipam":{"type":"host-local","dataDir":"/run/demo/host-local",
          "ranges":[[{"subnet":"10.1.1.0/24"}]],"routes":[{"dst":"0.0.0.0/0"}]}}'
    viproute='{"cniVersion":"1.0.0","name":"demo","type":"viproute","dataDir":"/run/demo/registry","bpfDir":"/run/demo/bpf/viproute",
          "allocator":"/run/demo/viprouted.sock","capabilities":{"io.kubernetes.cri.pod-annotations":true},
          "runtimeConfig":{"io.kubernetes.cri.pod-annotations":{"viproute.io/vip":"web"}}}'
    if [ "$verb" = ADD ]; then
        result=$(call ADD "$pod" $base/ptp <<<"$ptp")
        jq -c --argjson result "$result" '. + {prevResult: $result}' <<<"$viproute" |
            call ADD "$pod" "$bin/viproute" >"/run/demo/$pod.json"
    else
        jq -c --slurpfile result "/run/demo/$pod.json" '. + {prevResult: $result[0]}' <<<"$viproute" |
            call DEL "$pod" "$bin/viproute" >/dev/null
        call DEL "$pod" $base/ptp <<<"$ptp" >/dev/null
    fi
}

call() { # VERB POD PLUGIN, the configuration on stdin
    local output
    output=$(in_ns node env CNI_COMMAND="$1" CNI_CONTAINERID="demo-$2" CNI_NETNS="/run/netns/$2" CNI_IFNAME=eth0 \
        CNI_PATH="$base" CNI_ARGS="IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=$2" "$3") ||
        die "$3 $1 $2: $output"
    [ -z "$output" ] || printf '%s\n' "$output"
}

join_pod() { # POD: a namespace, the chain's ADD, a server
    ip netns add "$1"
    ip -n "$1" link set lo up
    cni ADD "$1"
    in_ns "$1" "$bin/examples/peer" serve --name "$1" --port 8080 >"/run/demo/peers/$1" &
    wait_for 5 "the server in $1" grep -q ready "/run/demo/peers/$1"
    say "$1 has joined: its own address is $(jq -r '.ips[0].address' "/run/demo/$1.json")"
}

requests() { # 300 from the client, as a bar chart
    local tally name count
    tally=$(in_ns client "$bin/examples/peer" connect --to "$vip:8080" --count 300) || die "requests failed: $tally"
    jq -r '.names | to_entries[] | "\(.key) \(.value)"' <<<"$tally" | while read -r name count; do
        printf '    %s %s%s%s %d\n' "$name" "$bar_colour" "$(printf '%*s' $((count / 4)) '' | tr ' ' '#')" "$plain" "$count"
    done
}

# An idle bucket moves to the replica it is due to after one second.
settle() { sleep 2; }

vip_address() { ip -n p1 -j -4 addr show dev vip0 | jq -r '.[0].addr_info[0].local'; }

start=$SECONDS
step "A LAN, a node and a client, each in a network namespace"
build_lan
if [ $backend = dhcp ]; then
    start_dnsmasq
    say "dnsmasq hands out 192.0.2.100 to .150; the node is 192.0.2.1, the client 192.0.2.50."
else
    ip -n client route add 10.118.0.0/24 via 192.0.2.1
    say "No DHCP server: VIPs come from the pool 10.118.0.0/24. The node is 192.0.2.1, the client 192.0.2.50."
fi
start_sidecar

step "Three pods with the annotation viproute.io/vip: \"web\""
for pod in p1 p2 p3; do join_pod $pod; done
vip=$(vip_address)
if [ $backend = dhcp ]; then
    say "The VIP of shop/web is $vip, leased by DHCP. dnsmasq's lease table:"
    show </run/demo/leases
else
    say "The VIP of shop/web is $vip, from the pool."
fi

step "The node's route to the VIP: one nexthop per pod"
ip -n node route show proto 118 | show
ip -n node nexthop show proto 118 | show

step "300 requests from the client to $vip:8080"
requests
say "The client as the pods see it: $(sed -n 's/^client \(.*\):[0-9]*$/\1/p' /run/demo/peers/* | sort -u | paste -sd ' ')"
say "No NAT, no proxy: the node has $(in_ns node ip -j link | jq '[.[] | select(.ifname | startswith("vip"))] | length') veth pairs for it."

step "A fourth pod joins"
join_pod p4
settle
requests

step "p1 leaves"
cni DEL p1
say "p1 has left"
settle
requests

step "All leave"
for pod in p2 p3 p4; do cni DEL $pod; done
left=$(ip -n node route show proto 118; ip -n node nexthop show proto 118; ip -n node -o link show | grep ': vip' || true)
[ -z "$left" ] || die "left behind: $left"
say "No route, no nexthop, no device of viproute is left on the node."
say "Took $((SECONDS - start)) seconds."
