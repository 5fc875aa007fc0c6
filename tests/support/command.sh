# What the scripts about the command share; source it. NORMROPE_CLI is the command. It moves to a folder of its own, which
# goes when the script ends.
set -uo pipefail
cli=${NORMROPE_CLI:?the path of the normrope command}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir" || exit 1
failures=0
if [ -n "${NORMROPE_EMULATOR:-}" ]; then
  printf '#!/bin/sh\nexec %s "%s" "$@"\n' "$NORMROPE_EMULATOR" "$cli" >emulated
  chmod +x emulated
  cli=$dir/emulated
fi

fail() {
  echo "FAIL: $*"
  failures=$((failures + 1))
}

# expect CODE ARGUMENT...: the command's exit code; stdout and stderr are kept in out and err.
expect() {
  local code=$1 got
  shift
  "$cli" "$@" >out 2>err </dev/null
  got=$?
  [ "$got" = "$code" ] || fail "normrope $*: exit $got, expected $code: $(head -c 400 err) $(grep -B1 beyond out | head -4)"
}

# says TEXT: the last command's stderr has this text, after "normrope: ".
says() {
  grep -q "^normrope: .*$1" err || fail "expected '$1' in: $(cat err)"
}
