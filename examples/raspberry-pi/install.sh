#!/usr/bin/env bash
# Installs dsmr on a Raspberry Pi, or any 64-bit ARM or x86 Linux: checks the system, makes a virtual
# environment, installs a wheel or the source tree this script stands in, and runs `dsmr doctor`; with --service
# it installs dsmr-play.service too. May be run again at any time. $DESTDIR stands before /etc, for trying.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
tree=$(dirname "$(dirname "$here")")

usage() {
    cat <<'TEXT'
Usage: install.sh [--venv DIR] [--wheel FILE] [--python PYTHON] [--live] [--service] [--dry-run]

  --venv DIR       the virtual environment to make or to update (default: ~/dsmr, with --service /opt/dsmr)
  --wheel FILE     dsmr_export-….whl to install (default: the source tree this script stands in)
  --python PYTHON  the Python to make a new environment with (default: python3)
  --live           MIDI ports too (python-rtmidi)
  --service        dsmr play as a service that starts with the board; with sudo, and --live is included
  --dry-run        check the system, and print what would be done
TEXT
}

say() { printf '%s\n' "$*"; }
die() {
    printf 'install.sh: %s\n' "$*" >&2
    exit 1
}
wrong_usage() {
    printf 'install.sh: %s\n' "$*" >&2
    usage >&2
    exit 2
}

venv='' wheel='' python=python3 extra='' service='' dry=''
while [ $# -gt 0 ]; do
    case $1 in
        --venv | --wheel | --python)
            [ $# -ge 2 ] && [ -n "$2" ] || wrong_usage "$1 needs a value"
            case $1 in
                --venv) venv=$2 ;;
                --wheel) wheel=$2 ;;
                --python) python=$2 ;;
            esac
            shift
            ;;
        --live) extra='[live]' ;;
        --service) service=yes extra='[live]' ;;
        --dry-run) dry=yes ;;
        -h | --help)
            usage
            exit
            ;;
        *) wrong_usage "unknown argument: $1" ;;
    esac
    shift
done

[ -n "$venv" ] || venv=${service:+/opt/dsmr}
[ -n "$venv" ] || venv=$HOME/dsmr

# run COMMAND…: does it, or says that it would.
run() {
    if [ -n "$dry" ]; then
        printf 'would run:'
        printf ' %q' "$@"
        printf '\n'
    else
        "$@"
    fi
}

# at_least VERSION LEAST: both as 2.36.
at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

# The system. A 64-bit kernel may carry a 32-bit system, and that one a 64-bit Python or the other way round.
machine=$(uname -m)
os64='install the 64-bit Raspberry Pi OS (onnxruntime has no wheels for 32-bit systems)'
case $machine in
    aarch64 | arm64 | x86_64) ;;
    armv6l) die "this is a 32-bit system (armv6l): the first Raspberry Pi, Zero and Zero W cannot run dsmr" ;;
    arm* | i?86) die "this is a 32-bit system ($machine): $os64" ;;
    *) die "there are no onnxruntime wheels for $machine: use a 64-bit ARM or x86 machine" ;;
esac
bits=$(getconf LONG_BIT 2>/dev/null || echo 64)
[ "$bits" = 64 ] || die "this is a $bits-bit system under a 64-bit kernel ($machine): $os64"
libc=$(getconf GNU_LIBC_VERSION 2>/dev/null) ||
    die "this system has no glibc, which onnxruntime's wheels need: use Raspberry Pi OS, Debian or Ubuntu"
at_least "${libc#glibc }" 2.28 ||
    die "$libc is too old, onnxruntime's wheels need 2.28: use Raspberry Pi OS bookworm or newer"

# The service: root installs it, and no home exists for it (ProtectHome= in dsmr-play.service).
if [ -n "$service" ]; then
    command -v systemctl >/dev/null || die "--service needs systemd, which this system does not have"
    [ -n "$dry" ] || [ -w "${DESTDIR:-}/etc" ] || die "--service writes into /etc: run it with sudo"
    venv=$(realpath -m "$venv")
    case $venv in
        /home/* | /root/* | /run/user/*)
            die "a service cannot use $venv, which is in a home: give another folder with --venv, as /opt/dsmr" ;;
        *[[:space:]%]*) die "a service cannot use '$venv': give a folder without spaces and % with --venv" ;;
    esac
fi

# The environment: one that works is kept, with the Python it has; one whose Python is gone is made again.
make=()
if [ -e "$venv/pyvenv.cfg" ]; then
    if "$venv/bin/python" -c '' 2>/dev/null; then
        python=$venv/bin/python
        say "environment: $venv, which is there already"
    else
        make=(--clear)
        say "environment: $venv, made again, because its Python does not run any more"
    fi
elif [ -e "$venv" ] && [ -n "$(ls -A "$venv")" ]; then
    die "$venv is there and is not a virtual environment: give another folder with --venv"
else
    say "environment: $venv, new"
fi

facts=$("$python" -c '
import struct, sys
print("%d.%d %d %s" % (sys.version_info[:2] + (8 * struct.calcsize("P"), sys.base_prefix)))' 2>/dev/null) ||
    die "$python does not run: sudo apt install python3 python3-venv, or give another one with --python"
read -r version python_bits prefix <<<"$facts"
[ "$python_bits" = 64 ] || die "$python has $python_bits bits: $os64"
at_least "$version" 3.11 ||
    die "$python is Python $version, dsmr needs 3.11: use Raspberry Pi OS bookworm or newer, or --python"
if [ -n "$service" ] && [[ $prefix = /home/* || $prefix = /root/* ]]; then
    die "a service cannot use $python, which is in a home ($prefix): give the system's with --python"
fi
say "system: $machine, $libc, Python $version"

# Versions that are known to exist as wheels for this Python.
constraints=()
for file in "$here"/constraints-*-py"${version/./}".txt; do
    [ -e "$file" ] && constraints=(--constraint "$file")
done
if [ ${#constraints[@]} -gt 0 ]; then
    say "versions: ${constraints[1]}"
else
    say "versions: the newest, there is no tested list for Python $version"
fi

# What is installed.
if [ -n "$wheel" ]; then
    [ -f "$wheel" ] || die "$wheel does not exist: give the wheel's file with --wheel"
    source=$wheel
elif [ -f "$tree/pyproject.toml" ]; then
    source=$tree
else
    die "there is no source tree around $here: give a wheel with --wheel"
fi
say "source: $source"

if [ "$python" != "$venv/bin/python" ]; then
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        die "$python cannot make environments: sudo apt install python3-venv"
    run "$python" -m venv "${make[@]}" "$venv"
fi

# pip_install ARGUMENT…: pip says itself what is wrong, this says what is usual.
pip_install() {
    run "$venv/bin/python" -m pip install --disable-pip-version-check "$@" ||
        die "pip could not install it, see above: is this machine online, and is there room on its disk?"
}
if [ -n "$wheel" ]; then
    pip_install "${constraints[@]}" "$wheel$extra"
    # A wheel of the version that is there already is installed too.
    pip_install --quiet --no-deps --force-reinstall "$wheel"
else
    # From a copy: pip would leave build/ in the tree, and pack what is there from an older run.
    copy=$(mktemp -d)
    trap 'rm -rf "$copy"' EXIT
    run mkdir -p "$copy/examples/web" # the sources of dsmr web's page, without what npm leaves beside them
    run cp -R "$tree"/{pyproject.toml,README.md,LICENSE,NOTICE,dsmr_export,model,targets} "$copy"
    run cp -R "$tree/examples/web"/{index.html,package.json,package-lock.json,tsconfig.json,vite.config.ts,src,public} \
        "$copy/examples/web"
    pip_install "${constraints[@]}" "$copy$extra"
fi

if [ -n "$dry" ]; then
    run "$venv/bin/dsmr" doctor
elif "$venv/bin/dsmr" doctor; then
    say "installed: $venv/bin/dsmr"
else
    die "installed in $venv, but dsmr doctor does not pass here: see what it says above"
fi
[ -n "$service" ] || exit 0

# The service. A TOML file that is there is somebody's; the unit is ours (systemctl edit changes it and lasts).
unit=${DESTDIR:-}/etc/systemd/system/dsmr-play.service
settings=${DESTDIR:-}/etc/dsmr/dsmr-play.toml
run install -D -m 644 "$here/dsmr-play.service" "$unit"
run sed -i "s|^ExecStart=/opt/dsmr/|ExecStart=$venv/|" "$unit"
if [ -e "$settings" ]; then
    say "settings: $settings, which is there already and stays as it is"
else
    run install -D -m 644 "$here/dsmr-play.toml" "$settings"
fi
run systemctl daemon-reload
run systemctl enable dsmr-play.service
run systemctl try-restart dsmr-play.service
say "service: dsmr-play, from the next start of this machine on, or now: sudo systemctl start dsmr-play"
