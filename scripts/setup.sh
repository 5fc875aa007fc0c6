#!/bin/sh
# Installs what building and testing need and this machine lacks (Debian and its relatives, as root or with sudo).
# Quiet and quick when nothing is missing; elsewhere it names what is needed.
set -u

missing=
need() { missing="$missing $1"; }
{ command -v cc && command -v c++ && command -v make; } >/dev/null || need build-essential
command -v cmake >/dev/null || need cmake
command -v ninja >/dev/null || need ninja-build
command -v pkg-config >/dev/null || need pkg-config
command -v python3 >/dev/null || need python3 # for the package and its tests
python3 -c 'import ensurepip' 2>/dev/null || need python3-venv
pkg-config --exists jansson 2>/dev/null || need libjansson-dev
pkg-config --exists cmocka 2>/dev/null || need libcmocka-dev
[ -n "$missing" ] || exit 0

as_root=
[ "$(id -u)" = 0 ] || as_root="sudo -n"
if command -v apt-get >/dev/null && $as_root true 2>/dev/null; then
  echo "setup: installing$missing"
  log=$(mktemp)
  apt() {
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 "$@" >>"$log" 2>&1
  }
  # shellcheck disable=SC2086  # a list of words
  if apt install --no-install-recommends $missing || { apt update && apt install --no-install-recommends $missing; }; then
    rm -f "$log"
    exit 0
  fi
  cat "$log" >&2
  rm -f "$log"
fi

if [ "$missing" = " ninja-build" ]; then
  exit 0 # make does as well
fi
cat >&2 <<END
setup: cannot install what is missing here. Needed: a C17 and a C++17 compiler with OpenMP, make, CMake 3.25 or later,
pkg-config, jansson, cmocka, Python 3.10 with venv; Ninja where there is one. Not found (by Debian's names):$missing
END
exit 1
