#!/bin/sh
# The library with CUDA needs neither the driver nor the runtime to be there: it starts, and says what devices it has.
set -eu

needed=$("$READELF" -d "$BUILD/lib/libnormrope.so" | sed -n 's/.*(NEEDED).*\[\(.*\)\].*/\1/p')
case $needed in
*cuda*)
  echo "libnormrope.so needs" $needed
  exit 1
  ;;
esac
cli=$BUILD/bin/normrope
devices=$("$cli" info --json | python3 -c 'import json, sys; print(*json.load(sys.stdin)["runtime_devices"], sep="\n")')
echo "$devices"
[ "$(echo "$devices" | head -n 1)" = CPU ] || { echo "expected the CPU to be device 0"; exit 1; }
[ "$(NORMROPE_DEVICES=cpu "$cli" info --json | grep -A1 runtime_devices | grep -c CPU)" = 1 ]
# Where a driver is missing (here it is hidden, if there is one) there is one device, and asking for another is refused.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
hidden() { CUDA_VISIBLE_DEVICES='' SHIM_DEVICES=0 "$@"; }
[ "$(hidden "$cli" info --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["runtime_devices"])')" = "['CPU']" ]
"$cli" make-case reference -o "$work/case.st"
status=0
hidden "$cli" backward "$work/case.st" -o "$work/result.st" --device cuda 2>"$work/text" || status=$?
[ $status = 4 ] && grep -q 'no CUDA device' "$work/text" || { cat "$work/text"; exit 1; }
