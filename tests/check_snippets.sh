#!/bin/sh
# The C snippets of the documents, each as the body of a function, compile without a warning. tests/snippets/snippets.h
# declares what they take as given.
set -eu

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for page in README.md docs/native.md docs/cuda.md; do
  awk -v page="$SOURCE/$page" -v header="$SOURCE/tests/snippets/snippets.h" '
    BEGIN { printf "#include \"%s\"\n", header }
    /^```c$/ {
      inside = 1
      n++
      printf "static void snippet_%d(void) {\n#line %d \"%s\"\n", n, NR + 1, page
      next
    }
    inside && /^```/ { inside = 0; print "}"; next }
    inside { print }
    END { if (!n) { print "no snippets in " page >"/dev/stderr"; exit 1 } }' "$SOURCE/$page" >"$work/snippets.c"
  "$CC" $CFLAGS -std=c17 -Wall -Wextra -Wpedantic -Werror -Wno-unused-function -Wno-unused-variable \
    -Wno-unused-but-set-variable -I"$SOURCE/include" -fsyntax-only "$work/snippets.c"
  echo "$page: $(grep -c '^#line' "$work/snippets.c") snippets"
done
