#!/usr/bin/env bash
# Builds the programs that are installed into dist/bin-ARCH: static, so that they run under any libc or none, and the same
# wherever they are built. Further arguments are cargo's, such as --example demo, whose program is put into examples/ there.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."

arch=${1:-}
[ -n "$arch" ] || { echo "usage: packaging/build.sh ARCH [ARGUMENT OF cargo build…]  (here: $(uname -m))" >&2; exit 2; }
shift
# Named even where it is this machine's: with static flags for the host cargo could not build procedural macros.
target=$arch-unknown-linux-gnu
to=dist/bin-$arch
built=${CARGO_TARGET_DIR:-${CARGO_BUILD_TARGET_DIR:-target}}

# Where sources and crates lie must not be in the programs. Later rules win.
flags=(
    -Ctarget-feature=+crt-static
    "--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo"
    "--remap-path-prefix=$PWD=/viproute"
)
if [ "$arch" != "$(uname -m)" ]; then
    # shellcheck source=packaging/cross.sh
    . packaging/cross.sh
    need_cross_compiler "$arch"
    flags+=("-Clinker=$arch-linux-gnu-gcc")
fi

# One character between them, so that a path may have spaces. It takes the place of RUSTFLAGS and of cargo's configuration.
CARGO_ENCODED_RUSTFLAGS=$(IFS=$'\x1f'; printf %s "${flags[*]}")
export CARGO_ENCODED_RUSTFLAGS
cargo build --release --locked --target "$target" --bins "$@"

install -D -m 755 -t "$to" "$built/$target/release/viproute" "$built/$target/release/viprouted" "$built/$target/release/viproutectl"
for example in demo bench; do
    case " $* " in
        *" --example $example "*) install -D -m 755 -t "$to/examples" "$built/$target/release/examples/$example" ;;
    esac
done
