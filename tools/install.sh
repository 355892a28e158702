#!/usr/bin/env bash
# Installs what `make demo` and `make test` need on a fresh Debian 12: system packages (as root), a virtual environment
# with the locked Python packages, and a real kubectl. Each step is skipped when its result is already there.
#   tools/install.sh run    for the demo        tools/install.sh test   for the tests as well
set -euo pipefail
cd "$(dirname "$0")/.."
what=${1:-run}

say() { printf '==> %s\n' "$*" >&2; }

missing=()
need() { command -v "$1" >/dev/null 2>&1 || missing+=("$2"); }
need ip iproute2
need unshare util-linux
need setpriv util-linux
need curl curl
python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
if [ "$what" = test ]; then
  [ -n "$(ls -d /usr/lib/postgresql/*/bin/initdb 2>/dev/null)" ] || missing+=(postgresql)
fi
if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" = 0 ]; then
    say "installing Debian packages: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    # The tests start a private PostgreSQL of their own: the package must not start one.
    mkdir -p /etc/postgresql-common
    [ -e /etc/postgresql-common/createcluster.conf ] || echo 'create_main_cluster = false' > /etc/postgresql-common/createcluster.conf
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
  else
    say "not root, so these Debian packages are not installed: ${missing[*]}"
  fi
fi

stamp=.venv/.installed
want=$(sha256sum requirements.lock pyproject.toml | sha256sum | cut -d' ' -f1)
if [ "$(cat $stamp 2>/dev/null)" != "$want" ]; then
  say "installing the locked Python packages into .venv"
  [ -x .venv/bin/python ] || python3 -m venv .venv
  .venv/bin/python -m pip install -q --disable-pip-version-check --require-hashes --no-deps -r requirements.lock
  # The project itself, from this checkout; the build backend is in the lock too.
  .venv/bin/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
  echo "$want" > $stamp
fi

if [ ! -x .cache/bin/kubectl ]; then
  say "fetching kubectl"
  .venv/bin/python tools/fetch_kubectl.py .cache/bin
fi
