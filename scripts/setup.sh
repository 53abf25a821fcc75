#!/usr/bin/env bash
# Make .venv from requirements.lock. With `--system NAME...` first see to Debian packages: as root they are installed,
# otherwise one line says what is missing. Nothing here needs more than Python 3.11, git and make to begin with.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '%s\n' "setup: $*"; }

# The package that provides a command or file, only where that is not there yet.
missing=()
need() { # need PACKAGE TEST...
  local package=$1
  shift
  "$@" >/dev/null 2>&1 || missing+=("$package")
}

has_library() { ldconfig -p | grep -q "$1"; }

python=$(command -v python3.11 || command -v python3 || true)
[ -n "$python" ] || { say "python3 is missing: install Python 3.11 or newer"; exit 1; }
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  say "$("$python" --version) is too old: Headrace needs Python 3.11 or newer"
  exit 1
}

need python3-venv "$python" -c 'import ensurepip, venv'
need ca-certificates test -s /etc/ssl/certs/ca-certificates.crt
for name in "$@"; do
  case "$name" in
    --system) ;;
    chromium)
      need chromium command -v chromium
      need libatomic1 has_library libatomic.so.1 # of the driver that Playwright brings
      ;;
    mosquitto) need mosquitto-clients command -v mosquitto_pub ;;
    mosquitto-server) need mosquitto test -x /usr/sbin/mosquitto ;; # a peer of benchmarks; as a package it also starts a service
    compiler) # for the JSON parser; without one the plain decoder does the work
      need gcc command -v cc
      need libc6-dev test -e /usr/include/stdlib.h
      ;;
    postgresql) need postgresql test -x /usr/lib/postgresql/15/bin/initdb ;;
    *) say "unknown system package $name"; exit 2 ;;
  esac
done

if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say "installing ${missing[*]} (apt)"
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2015
    apt-get -qq update >/dev/null && apt-get -qq install -y --no-install-recommends "${missing[@]}" >/dev/null 2>&1 \
      || say "could not install ${missing[*]}; what needs them is skipped"
  else
    say "missing ${missing[*]}; what needs them is skipped (as root they are installed: sudo apt-get install ${missing[*]})"
    case " ${missing[*]} " in *" python3-venv "*) exit 1 ;; esac
  fi
fi

native() { .venv/bin/python src/headrace/core/native.py || true; } # the compiled kernels, where a compiler is

stamp=.venv/.ready
if [ -f "$stamp" ] && [ "$stamp" -nt requirements.lock ] && [ "$stamp" -nt pyproject.toml ]; then
  native >/dev/null
  exit 0
fi
say "making .venv from requirements.lock"
[ -x .venv/bin/python ] || "$python" -m venv .venv
[ -x .venv/bin/uv ] || .venv/bin/python -m pip install -qq --disable-pip-version-check uv
.venv/bin/uv pip install --quiet --compile-bytecode --python .venv/bin/python -r requirements.lock
.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --editable .
say "$(native)"
touch "$stamp"
say "ready: $(du -sh .venv | cut -f1) in .venv"
