#!/usr/bin/env bash
# run-arm.sh CPU COMMAND…: runs an aarch64 program in what setup.sh made. COMMAND `python` is its CPython 3.11.
#
# CPU: cortex-a53 (Raspberry Pi Zero 2 W, 3), cortex-a72 (4) or cortex-a76 (5).
# DSMR_ARM_DIR: where setup.sh put it (default: as there). DSMR_ARM_COUNT=FILE: counts instructions into FILE (count.c).
# PYTHONPATH is kept, after the base install; it must hold no x86-64 extension modules. COMMAND can start no further
# programs, for the kernel does not know qemu.
set -euo pipefail

die() {
    printf 'run-arm.sh: %s\n' "$*" >&2
    exit 3
}
[ $# -ge 2 ] || die "usage: run-arm.sh CPU COMMAND…"
dir=${DSMR_ARM_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/dsmr-export/arm64}
cpu=$1
command=$2
shift 2
[ -d "$dir/roots/$cpu" ] || die "no $cpu in $dir: setup.sh makes cortex-a53, cortex-a72 and cortex-a76"
[ "$command" != python ] || command=$dir/root/usr/bin/python3.11

plugin=()
if [ -n "${DSMR_ARM_COUNT:-}" ]; then
    [ -f "$dir/count.so" ] || die "instructions cannot be counted: setup.sh found no gcc"
    plugin=(-plugin "$dir/count.so,out=$DSMR_ARM_COUNT")
fi
ulimit -c 0 # an illegal instruction leaves no core file

# qemu's own libc and libraries, whatever this machine has. The hash seed makes counts repeatable.
libraries=$dir/host/lib/x86_64-linux-gnu:$dir/host/usr/lib/x86_64-linux-gnu
exec "$dir/host/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2" --library-path "$libraries" \
    "$dir/host/usr/bin/qemu-aarch64" "${plugin[@]}" -cpu "$cpu" -L "$dir/roots/$cpu" \
    -U LD_PRELOAD -U LD_LIBRARY_PATH -U PYTHONHOME -E "PYTHONPATH=$dir/site${PYTHONPATH:+:$PYTHONPATH}" \
    -E PYTHONNOUSERSITE=1 -E PYTHONHASHSEED=0 -E LC_ALL=C.UTF-8 "$command" "$@"
