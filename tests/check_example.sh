#!/bin/sh
# The program on the reference's page, as it stands, but for the indentation: built for CANN, run with ours, its numbers
# held against the reference backend's. Skipped (77) where the page is not at hand.
set -eu

page=$SOURCE/../shared/seed/aclnnNormRopeConcatBackward.md
if [ ! -f "$page" ]; then
  echo "skipped: the reference's page is not beside the source"
  exit 77
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
awk '/^ *```c\+\+/ { inside = 1; match($0, /^ */); indent = RLENGTH; next }
     /^ *```/ { inside = 0 }
     inside { for (n = 0; n < indent && substr($0, 1, 1) == " "; n++) $0 = substr($0, 2); print }' "$page" >"$work/example.cpp"
cann=$BUILD/lib/cann
"$CXX" $CXXFLAGS -std=c++17 -I"$SOURCE/include" "$work/example.cpp" -o "$work/example" -L"$cann" \
  -lascendcl -lnnopbase -lopapi -Wl,-rpath,"$cann"
emulator=${NORMROPE_EMULATOR:-}
$emulator "$work/example" >"$work/output"
$emulator "$BUILD/tests/example_reference" <"$work/output"
