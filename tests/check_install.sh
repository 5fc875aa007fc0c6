#!/bin/sh
# Installs into a fresh prefix, moves it, and builds tests/install/consumer.c against it: through the package config and
# through pkg-config, shared and static, each run.
set -eu

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset DESTDIR LD_LIBRARY_PATH
emulator=${NORMROPE_EMULATOR:-}
"$CMAKE" --install "$BUILD" --prefix "$work/first" >"$work/log"
prefix=$work/moved
mv "$work/first" "$prefix"
lib=$prefix/$LIBDIR

"$CMAKE" -S "$SOURCE/tests/install" -B "$work/build" -DCMAKE_PREFIX_PATH="$prefix" >"$work/log" 2>&1 \
  || { cat "$work/log"; exit 1; }
"$CMAKE" --build "$work/build" >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
for program in consumer_shared consumer_static consumer_cpp; do
  echo "package config: $program"
  $emulator "$work/build/$program"
done

export PKG_CONFIG_PATH="$lib/pkgconfig"
# shellcheck disable=SC2046,SC2086  # lists of words
{
  echo "pkg-config: shared"
  "$CC" $CFLAGS "$SOURCE/tests/install/consumer.c" -o "$work/shared" $(pkg-config --cflags --libs normrope) \
    -Wl,-rpath,"$lib"
  $emulator "$work/shared"
  echo "pkg-config: static"
  "$CC" $CFLAGS "$SOURCE/tests/install/consumer.c" -o "$work/static" \
    $(pkg-config --static --cflags --libs normrope | sed 's/-lnormrope/-l:libnormrope.a/')
  $emulator "$work/static"
}
! "$READELF" -d "$work/static" | grep -q 'NEEDED.*normrope' || { echo "the static program needs libnormrope.so"; exit 1; }

if [ -e "$BUILD/bin/normrope" ]; then
  echo "the installed command"
  $emulator "$prefix/bin/normrope" --version
fi
