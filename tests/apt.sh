# apt.sh: what the setup-*.sh beside it share. Sourced, with `name` (of the script), `packages` (Debian's) and a
# function `there` (prints what is there, or fails).
#
# Exit 3: they cannot be had here, and the tests that need them skip; 1: they were installed and are not there.

say() { printf '%s: %s\n' "$name" "$*" >&2; }
unavailable() {
    say "$*"
    exit 3
}

# install_packages BY_HAND: the packages, as root or by sudo without a password. BY_HAND: what to say where apt is missing.
install_packages() {
    local found log as_root=(env DEBIAN_FRONTEND=noninteractive)
    command -v apt-get >/dev/null || unavailable "apt-get is missing: $1"
    if [ "$(id -u)" != 0 ]; then
        sudo -n true 2>/dev/null ||
            unavailable "not root: sudo apt install --no-install-recommends ${packages[*]}"
        as_root=(sudo -n "${as_root[@]}")
    fi
    log=$(mktemp)
    trap 'rm -f "'"$log"'"' EXIT
    say "installing ${packages[*]}"
    apt update
    apt install -y --no-install-recommends "${packages[@]}"
    found=$(there) || {
        say "${packages[*]}: installed, and not there"
        exit 1
    }
    echo "set up: ${found//$'\n'/, }"
}

# Of install_packages, whose variables it sees.
apt() {
    "${as_root[@]}" apt-get -qq -o Acquire::Retries=2 -o Acquire::http::Timeout=30 "$@" </dev/null >"$log" 2>&1 ||
        unavailable "apt-get $1 failed: $(grep -m1 '^E:' "$log" || tail -n1 "$log")"
}
