#!/usr/bin/env bash
# setup-chromium.sh: what the report's browser tests run with: a Chromium without a window. Debian's package, installed
# on the machine: root or sudo without a password. (Ubuntu's package of that name is a snap, which sees no files of the
# tests: there any Chromium or Google Chrome on the PATH will do.)
#
# Exit 3: it cannot be had here, and the tests that need it skip; 1: it was installed and is not there.
set -euo pipefail

packages=(chromium)

say() { printf 'setup-chromium.sh: %s\n' "$*" >&2; }
unavailable() {
    say "$*"
    exit 3
}
there() {
    command -v chromium || command -v chromium-browser || command -v google-chrome || command -v google-chrome-stable
}

if found=$(there); then
    echo "already set up: $found"
    exit 0
fi
command -v apt-get >/dev/null || unavailable "apt-get is missing: install Chromium by hand"
grep -qs '^ID=debian$' /etc/os-release || unavailable "not Debian: install Chromium by hand"
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
found=$(there) || {
    say "${packages[*]} is installed, and no Chromium is there"
    exit 1
}
echo "set up: $found"
