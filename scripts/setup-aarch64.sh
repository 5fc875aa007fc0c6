#!/bin/sh
# Installs what building for AArch64 and running it here need (Debian and its relatives, as root or with sudo): the cross
# compilers and qemu's user mode. The libraries are only unpacked, into build/aarch64-packages, so that the machine gets
# no second architecture. Quiet and quick when nothing is missing.
set -eu
cd "$(dirname "$0")/.."

packages=build/aarch64-packages
libraries="libcmocka-dev libcmocka0 libjansson-dev libjansson4"
missing=
command -v aarch64-linux-gnu-gcc >/dev/null || missing="$missing gcc-aarch64-linux-gnu"
command -v aarch64-linux-gnu-g++ >/dev/null || missing="$missing g++-aarch64-linux-gnu"
command -v qemu-aarch64 >/dev/null || command -v qemu-aarch64-static >/dev/null || missing="$missing qemu-user"
unpacked=$(cat "$packages/unpacked" 2>/dev/null || true)
[ -n "$missing" ] || [ "$unpacked" != "$libraries" ] || exit 0

log=$(mktemp)
work=$(mktemp -d)
trap 'rm -rf "$log" "$work"' EXIT
failed() {
  cat "$log" >&2
  echo "setup-aarch64: cannot install what is missing here. Needed, by Debian's names:$missing," \
    "and for arm64 $libraries" >&2
  exit 1
}

if [ -n "$missing" ]; then
  echo "setup-aarch64: installing$missing"
  as_root=
  [ "$(id -u)" = 0 ] || as_root="sudo -n"
  apt() {
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 "$@" >>"$log" 2>&1
  }
  # shellcheck disable=SC2086  # a list of words
  apt install --no-install-recommends $missing || { apt update && apt install --no-install-recommends $missing; } ||
    failed
fi

if [ "$unpacked" != "$libraries" ]; then
  echo "setup-aarch64: unpacking $libraries"
  mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
  # Lists of its own: the system's know nothing of arm64, and stay as they are.
  foreign() {
    (cd "$work" && apt-get -q -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o Dir::State::lists="$work/lists" \
      -o Dir::Cache="$work/cache" -o APT::Sandbox::User="$(id -un)" -o Acquire::Languages=none "$@") >>"$log" 2>&1
  }
  # shellcheck disable=SC2086
  { foreign update && foreign download $libraries; } || failed
  rm -rf "$packages"
  mkdir -p "$packages"
  for package in "$work"/*.deb; do
    dpkg-deb -x "$package" "$packages" >>"$log" 2>&1 || failed
  done
  ln -s /usr/aarch64-linux-gnu/lib "$packages/lib" # so that it is all that the loader needs
  echo "$libraries" >"$packages/unpacked"
fi
