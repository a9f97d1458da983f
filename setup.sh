#!/usr/bin/env bash
# Makes the virtual environment that every `make` verb uses: setup.sh [DIRECTORY, default .venv].
# Needs Python 3.11 or newer with venv; installs that with apt-get when it is missing and you are root.
set -euo pipefail
cd "$(dirname "$0")"
venv=${1:-.venv}
python=${PYTHON:-python3}

system_packages() {   # $1: why; the rest: Debian package names
  local why=$1; shift
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "setup: $why; installing $*" >&2
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
  else
    echo "setup: $why. Please install: $* (Debian/Ubuntu names), then run this again." >&2
    exit 1
  fi
}

command -v "$python" >/dev/null || system_packages "$python is missing" python3 python3-venv
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "setup: Debut needs Python 3.11 or newer, $python is $("$python" -V 2>&1). Set PYTHON=/path/to/python3.11." >&2
  exit 1
}
"$python" -c 'import venv, ensurepip' 2>/dev/null || system_packages "$python has no venv module" python3-venv

command -v curl >/dev/null || system_packages "curl is missing (the README's calls, and their test, use it)" curl ca-certificates

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
echo "setup: installing packages into $venv (the first time takes a few minutes)" >&2
log=$venv/pip.log
"$venv/bin/python" -m pip install --disable-pip-version-check --no-input --constraint constraints.txt \
  --editable '.[service,train,dev]' >"$log" 2>&1 || {
  tail -n 20 "$log" >&2
  echo "setup: pip could not install the packages; the whole log is in $log" >&2
  exit 1
}
touch "$venv/ready"
