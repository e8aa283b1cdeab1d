#!/usr/bin/env bash
# setup-chromium.sh: what the tests of pages run with: a Chromium without a window. Debian's package, installed on the
# machine: root or sudo without a password. (Ubuntu's package of that name is a snap, which sees no files of the tests:
# there any Chromium or Google Chrome on the PATH will do.)
#
# Exit 3: it cannot be had here, and the tests that need it skip; 1: it was installed and is not there.
set -euo pipefail

name=setup-chromium.sh
packages=(chromium)
there() {
    command -v chromium || command -v chromium-browser || command -v google-chrome || command -v google-chrome-stable
}
source "$(dirname "$0")/apt.sh"

if found=$(there); then
    echo "already set up: $found"
    exit 0
fi
by_hand="install Chromium by hand"
grep -qs '^ID=debian$' /etc/os-release || unavailable "not Debian: $by_hand"
install_packages "$by_hand"
