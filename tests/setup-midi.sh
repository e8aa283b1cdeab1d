#!/usr/bin/env bash
# setup-midi.sh: what the MIDI tests run with: a JACK server, whose ports do not need a kernel module, and FluidSynth
# with a small soundfont. Debian's and Ubuntu's packages, installed on the machine: root or sudo without a password.
#
# Exit 3: they cannot be had here, and the tests that need them skip; 1: they were installed and are not there.
set -euo pipefail

name=setup-midi.sh
packages=(jackd2 fluidsynth timgm6mb-soundfont)
there() {
    command -v jackd && command -v fluidsynth && compgen -G '/usr/share/sounds/sf[23]/*.sf[23]'
}
source "$(dirname "$0")/apt.sh"

if found=$(there); then
    echo "already set up: ${found//$'\n'/, }"
    exit 0
fi
install_packages "install a JACK server and FluidSynth by hand"
