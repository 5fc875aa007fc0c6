#!/bin/sh
# The libraries' names keep to themselves: the shared library exports nr_* and acl* and nothing else, and neither does
# the archive define any other name.
set -eu

shared=$("$NM" -D --defined-only "$BUILD/lib/libnormrope.so" | awk '{ print $3 }')
archive=$("$NM" -g --defined-only "$BUILD/lib/libnormrope.a" | awk 'NF == 3 { print $3 }')
status=0
for list in shared archive; do
  eval "names=\$$list"
  [ -n "$names" ] || { echo "$list library: no names at all"; exit 1; }
  # Compilers' own (sanitizers, coverage) are none of ours.
  foreign=$(echo "$names" | grep -Ev '^(nr_|acl)' | grep -Ev '^(__odr_asan|__asan_|__gcov)' || true)
  # Kernels, which are C++ (namespace nr, or of the structures nr_...); the tests' stand-in for CUDA.
  foreign=$(echo "$foreign" | grep -Ev '^_Z.*(2nr|nr_cuda)|^__cuda' || true)
  [ "$CUDA" != SHIM ] || foreign=$(echo "$foreign" | grep -Ev '^(cuda|shim|_Z|DW\.ref|threadIdx$|blockIdx$)' || true)
  [ -z "$foreign" ] || { echo "$list library: foreign names:" $foreign; status=1; }
  echo "$list library: $(echo "$names" | wc -l) names"
done

# It exports what the headers declare, and nothing else.
cd "$SOURCE/include"
declared=$({
  sed -n 's/^NR_API .*[ *]\(nr_[a-z_]*\)(.*/\1/p' normrope.h
  grep -rhoE '\bacl[A-Za-z0-9_]*\(' acl aclnn aclnnop | tr -d '('
} | sort -u)
difference=$({ echo "$declared"; echo "$shared" | grep -E '^(nr_|acl)'; } | sort | uniq -u)
[ -z "$difference" ] || { echo "either declared or exported, not both:" $difference; status=1; }

# Each of CANN's functions is behind one of its link names.
behind=$("$NM" -D --defined-only "$BUILD"/lib/cann/lib*.so | awk 'NF == 3 { print $3 }')
difference=$({ echo "$behind"; echo "$shared" | grep '^acl'; } | sort | uniq -c | awk '$1 != 2 { print $2 }')
[ -z "$difference" ] || { echo "not behind exactly one link name:" $difference; status=1; }
exit $status
