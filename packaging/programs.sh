# shellcheck shell=bash disable=SC2154
# For the scripts beside it, which source it: `viproutectl` is the one in $programs. Another machine's is run by qemu.

if [ "$arch" = "$(uname -m)" ]; then
    runs_it=()
else
    runs_it=("qemu-$arch-static")
    command -v "${runs_it[0]}" >/dev/null || { echo "packaging: ${runs_it[0]}, which runs programs for $arch, is missing: apt-get install qemu-user-static" >&2; exit 1; }
fi

viproutectl() {
    "${runs_it[@]}" "$programs/viproutectl" "$@"
}
