#!/bin/sh
# Builds the wheel and installs it into a new virtual environment, build/python/env, that sees what build/python/tools has
# (`make python` installs that). Quick when nothing was changed.
set -eu
cd "$(dirname "$0")/.."

tools=build/python/tools
env=build/python/env
wheels=build/python/wheels
log=$(mktemp)
trap 'rm -f "$log"' EXIT
run() {
  "$@" >"$log" 2>&1 || {
    cat "$log" >&2
    exit 1
  }
}

# Without a driver nothing could run CUDA's kernels, and they take minutes to build; `make all` does.
cuda=AUTO
/sbin/ldconfig -p | grep -q 'libcuda\.so\.1' || cuda=OFF

rm -rf "$wheels" "$env"
run $tools/bin/pip --disable-pip-version-check wheel --no-build-isolation --no-deps -w $wheels \
  -Ccmake.define.NORMROPE_CUDA=$cuda .
run python3 -m venv --without-pip $env
$tools/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
  >"$($env/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/tools.pth"
run $tools/bin/pip --disable-pip-version-check --python $env/bin/python install --no-deps --no-index $wheels/*.whl
