#!/usr/bin/env bash
# setup.sh [DIR]: makes what run-arm.sh runs, an aarch64 Python with the base install, on an x86-64 Debian or Ubuntu.
#
# Nothing is installed on the machine and root is not needed: qemu-user, Debian's arm64 CPython and the aarch64 wheels
# (about 90 MB) are fetched through apt's and pip's own clients and unpacked into DIR: $DSMR_ARM_DIR, else dsmr-export/arm64
# in the user's cache folder. What is installed is pyproject.toml's base install at the versions of constraints.txt.
# A finished DIR returns at once as long as this script, the base install and the locked versions are the same;
# DSMR_ARM_FORCE=1 makes it anew. PYTHON: one with pip (default python3).
#
# Exit 3: it cannot be had here (no network, not x86-64, a program is missing); 1: it was made and does not work.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
dir=${1:-${DSMR_ARM_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/dsmr-export/arm64}}
python=${PYTHON:-python3}

# bookworm has the last qemu-user that is a dynamic program (7.2), so that it can load the counter, and it is what
# Raspberry Pi OS bookworm is made from: Python 3.11, glibc 2.36.
suite=bookworm
host_packages=(qemu-user)
guest_packages=(libc6 libgcc-s1 libstdc++6 zlib1g libexpat1 libffi8 libbz2-1.0 liblzma5 libssl3 libuuid1 libcrypt1
    libsqlite3-0 python3.11-minimal libpython3.11-minimal libpython3.11-stdlib)
glibc_minor=36
cpus=(cortex-a53 cortex-a72 cortex-a76)

say() { printf 'setup.sh: %s\n' "$*" >&2; }
unavailable() {
    say "$*"
    exit 3
}

for program in apt-get dpkg-deb flock awk "$python"; do
    command -v "$program" >/dev/null || unavailable "$program is missing"
done
[ "$(uname -m)" = x86_64 ] || unavailable "emulation is set up on x86-64 only (this is $(uname -m))"
mkdir -p "$dir" 2>/dev/null || unavailable "$dir cannot be made: give another folder, or set DSMR_ARM_DIR"
dir=$(cd "$dir" && pwd)
exec 9>"$dir/.lock"
flock 9 # two runs of the tests share the folder; the second finds it finished

mapfile -t base < <("$python" -c '
import sys, tomllib
with open(sys.argv[1], "rb") as file:
    print(*tomllib.load(file)["project"]["dependencies"], sep="\n")
' "$root/pyproject.toml")
stamp=$({ cat "${BASH_SOURCE[0]}" "$here/count.c"; printf '%s\n' "${base[@]}"; } | sha256sum | cut -c1-16)

# finished: the same script and base install, and every version that was installed is still the locked one.
finished() {
    [ "$(cat "$dir/.stamp" 2>/dev/null)" = "$stamp" ] || return 1
    ! grep -vixFf "$root/constraints.txt" "$dir/packages.txt"
}
if [ -z "${DSMR_ARM_FORCE:-}" ] && finished >/dev/null; then
    printf 'already set up: %s\n' "$dir"
    exit 0
fi
for part in .stamp packages.txt apt host root roots site count.so; do rm -rf "${dir:?}/$part"; done
trap 'rm -rf "$dir/apt"' EXIT

# 1. A private apt: its own lists, cache and empty status, two architectures. The machine's own is not touched; of
#    that one only the mirror is asked for (--print-uris fetches nothing).
apt=$dir/apt
mkdir -p "$apt"/{lists,cache/archives}/partial
: >"$apt/status"
archives=$(apt-get update --print-uris 2>/dev/null |
    sed -n "s#^'\\(.*\\)/dists/\\(.*\\)/InRelease' .*#\\1 \\2#p" | sort -u) || true
source=$(awk -v suite=$suite '$2 == suite { print; exit }' <<<"$archives")
if [ -z "$source" ]; then # another Debian: the same mirror has this suite too
    mirror=$(awk '$1 ~ /debian/ && $1 !~ /security/ { print $1; exit }' <<<"$archives")
    source="${mirror:-http://deb.debian.org/debian} $suite"
fi
options="arch=amd64,arm64"
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
[ ! -f $keyring ] || options="$options signed-by=$keyring"
printf 'deb [%s] %s main\n' "$options" "$source" >"$apt/sources.list"
cat >"$apt/apt.conf" <<CONF
Dir::State "$apt"; Dir::State::lists "$apt/lists"; Dir::State::status "$apt/status"; Dir::Cache "$apt/cache";
Dir::Etc::sourcelist "$apt/sources.list"; Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null"; Dir::Etc::preferencesparts "/dev/null";
Acquire::Languages "none"; Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";
Acquire::Retries "2"; Acquire::http::Timeout "30"; Acquire::https::Timeout "30";
APT::Sandbox::User "root"; APT::Install-Recommends "false"; APT::Architecture "amd64";
#clear APT::Architectures;
APT::Architectures { "amd64"; "arm64"; };
CONF
private_apt() {
    DEBIAN_FRONTEND=noninteractive apt-get -c "$apt/apt.conf" -qq "$@" >"$apt/log" 2>&1 ||
        unavailable "apt-get $1 failed: $(grep -m1 '^E:' "$apt/log" || tail -n1 "$apt/log")"
}
unpack() { # DEBS-FOLDER INTO
    mkdir -p "$2"
    for package in "$1"/*.deb; do dpkg-deb -x "$package" "$2"; done
    rm "$1"/*.deb
}
say "fetching qemu-user, an arm64 Python and the aarch64 wheels into $dir"
private_apt update

# 2. qemu-user with every library it needs, its own libc too: the machine's release does not matter.
private_apt -y --download-only install "${host_packages[@]}"
unpack "$apt/cache/archives" "$dir/host"
rm -rf "$dir/host/usr/share"
find "$dir/host/usr/bin" -type f ! -name qemu-aarch64 -delete

# 3. CPython and its libraries for arm64: unpacked only, nothing of them runs here.
(cd "$apt" && private_apt download "${guest_packages[@]/%/:arm64}")
unpack "$apt" "$dir/root"
rm -rf "$dir"/root/usr/share/{doc,man,locale,lintian,bug}

# 4. The base install. pip takes only the platforms that are named, not the older ones they include.
platforms=(--platform manylinux2014_aarch64)
for ((minor = 17; minor <= glibc_minor; minor++)); do platforms+=(--platform "manylinux_2_${minor}_aarch64"); done
"$python" -m pip install --quiet --no-input --disable-pip-version-check --no-compile --only-binary=:all: \
    --timeout 30 --retries 2 "${platforms[@]}" --python-version 3.11 --implementation cp --abi cp311 --abi abi3 \
    --abi none --constraint "$root/constraints.txt" --target "$dir/site" "${base[@]}" 2>"$apt/log" ||
    unavailable "pip install failed: $(grep -m1 '^ERROR' "$apt/log" || tail -n1 "$apt/log")"
"$python" -m pip list --disable-pip-version-check --path "$dir/site" --format freeze >"$dir/packages.txt"

# 5. A root for every CPU: qemu redirects paths that exist below it, so each carries the /proc/cpuinfo and /sys of a
#    Raspberry Pi with that CPU. qemu 7.2 would show the x86 ones, at which onnxruntime's cpuinfo fails; and onnxruntime
#    picks its kernels by them, so they must agree with -cpu: a wrong asimddp is an illegal instruction.
cpu_root() { # CPU PART VARIANT REVISION FEATURES
    local top=$dir/roots/$1 cpu file sys
    mkdir -p "$top/proc"
    for file in usr lib etc; do ln -sfn "../../root/$file" "$top/$file"; done
    for cpu in 0 1 2 3; do
        printf 'processor\t: %d\nBogoMIPS\t: 108.00\nFeatures\t: %s\n' $cpu "$5"
        printf 'CPU implementer\t: 0x41\nCPU architecture: 8\n'
        printf 'CPU variant\t: %s\nCPU part\t: %s\nCPU revision\t: %s\n\n' "$3" "$2" "$4"
    done >"$top/proc/cpuinfo"
    sys=$top/sys/devices/system/cpu
    mkdir -p "$sys"
    echo 3 >"$sys/kernel_max"
    for file in possible present online; do echo 0-3 >"$sys/$file"; done
    for cpu in 0 1 2 3; do
        mkdir -p "$sys/cpu$cpu"/{topology,cpufreq}
        echo 0 >"$sys/cpu$cpu/topology/physical_package_id"
        echo $cpu >"$sys/cpu$cpu/topology/core_id"
        for file in core_siblings_list package_cpus_list cluster_cpus_list; do
            echo 0-3 >"$sys/cpu$cpu/topology/$file"
        done
        for file in thread_siblings_list core_cpus_list; do echo $cpu >"$sys/cpu$cpu/topology/$file"; done
        echo 1500000 >"$sys/cpu$cpu/cpufreq/cpuinfo_max_freq"
        echo 600000 >"$sys/cpu$cpu/cpufreq/cpuinfo_min_freq"
    done
}
without_dot_products="fp asimd evtstrm crc32 cpuid"
cpu_root cortex-a53 0xd03 0x0 4 "$without_dot_products" # Raspberry Pi Zero 2 W and 3
cpu_root cortex-a72 0xd08 0x0 3 "$without_dot_products" # Raspberry Pi 4
cpu_root cortex-a76 0xd0b 0x4 1 "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm \
lrcpc dcpop asimddp" # Raspberry Pi 5

# 6. The instruction counter.
if command -v gcc >/dev/null; then
    gcc -O2 -shared -fPIC -o "$dir/count.so" "$here/count.c"
else
    say "gcc is missing: programs run, their instructions cannot be counted"
fi

# 7. It works: onnxruntime imports on every CPU (the first run writes the .pyc files), and the emulation is strict: a
#    CPU without dot products refuses SDOT.
on() { DSMR_ARM_DIR=$dir bash "$here/run-arm.sh" "$@"; }
sdot='
import ctypes, mmap
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(bytes.fromhex("0094804ec0035fd6"))  # sdot v0.4s, v0.16b, v0.16b; ret
ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()
'
for cpu in "${cpus[@]}"; do
    on "$cpu" python -c 'import platform, onnxruntime; assert platform.machine() == "aarch64"' || {
        say "onnxruntime does not import on $cpu"
        exit 1
    }
done
on cortex-a76 python -c "$sdot" || {
    say "cortex-a76 refuses SDOT, which it has"
    exit 1
}
for cpu in cortex-a53 cortex-a72; do
    if (on "$cpu" python -c "$sdot") 2>/dev/null; then
        say "$cpu accepts SDOT, which it has not"
        exit 1
    fi
done
echo "$stamp" >"$dir/.stamp"
printf 'set up: %s (%d MB)\n' "$dir" "$(($(du -sk "$dir" | cut -f1) / 1000))"
