#!/usr/bin/env bash
# setup-midi.sh: what the MIDI tests run with: a JACK server, whose ports do not need a kernel module, and FluidSynth
# with a small soundfont. Debian's and Ubuntu's packages, installed on the machine: root or sudo without a password.
#
# Exit 3: they cannot be had here, and the tests that need them skip; 1: they were installed and are not there.
set -euo pipefail

packages=(jackd2 fluidsynth timgm6mb-soundfont)

say() { printf 'setup-midi.sh: %s\n' "$*" >&2; }
unavailable() {
    say "$*"
    exit 3
}
there() {
    command -v jackd >/dev/null && command -v fluidsynth >/dev/null &&
        compgen -G '/usr/share/sounds/sf[23]/*.sf[23]' >/dev/null
}

if there; then
    echo "already set up: $(command -v jackd), $(command -v fluidsynth)"
    exit 0
fi
command -v apt-get >/dev/null || unavailable "apt-get is missing: install a JACK server and FluidSynth by hand"
as_root=(env DEBIAN_FRONTEND=noninteractive)
if [ "$(id -u)" != 0 ]; then
    sudo -n true 2>/dev/null ||
        unavailable "not root: sudo apt install --no-install-recommends ${packages[*]}"
    as_root=(sudo -n "${as_root[@]}")
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt() {
    "${as_root[@]}" apt-get -qq -o Acquire::Retries=2 -o Acquire::http::Timeout=30 "$@" </dev/null >"$log" 2>&1 ||
        unavailable "apt-get $1 failed: $(grep -m1 '^E:' "$log" || tail -n1 "$log")"
}
say "installing ${packages[*]}"
apt update
apt install -y --no-install-recommends "${packages[@]}"
there || {
    say "${packages[*]} are installed, and jackd, fluidsynth or a soundfont is not there"
    exit 1
}
echo "set up: $(command -v jackd), $(command -v fluidsynth)"
