# shellcheck shell=bash
# For the scripts beside it, which source it: what building for another architecture takes.

# Ends the script with what is missing to build for $1 by Debian's packages, which ring's own code asks for by itself.
need_cross_compiler() {
    local arch=$1 compiler=$1-linux-gnu-gcc target=$1-unknown-linux-gnu debian
    case $arch in x86_64) debian=amd64 ;; aarch64) debian=arm64 ;; *) debian=$arch ;; esac
    command -v "$compiler" >/dev/null || missing_to_cross "$compiler" "apt-get install gcc-${arch//_/-}-linux-gnu"
    # The compiler's package recommends it, and no more.
    "$compiler" -E -include stdint.h -x c /dev/null >/dev/null 2>&1 || missing_to_cross "the C library for $arch" "apt-get install libc6-dev-$debian-cross"
    [ -d "$(rustc --print target-libdir --target "$target")" ] || missing_to_cross "Rust's own library for $target" "rustup target add $target"
}

missing_to_cross() {
    echo "$0: $1 is missing: $2" >&2
    exit 1
}
