#!/bin/sh
# tests/link/cann_program.c against the link names of CANN, in every way that a program may have been linked.
set -eu

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset LD_LIBRARY_PATH LD_PRELOAD
emulator=${NORMROPE_EMULATOR:-}
cann=$BUILD/lib/cann
names="-lascendcl -lnnopbase -lopapi"
"$CC" $CFLAGS -I"$SOURCE/include" -c "$SOURCE/tests/link/cann_program.c" -o "$work/program.o"

needed() { "$READELF" -d "$1" | sed -n 's/.*(NEEDED).*\[\(.*\)\].*/\1/p'; }
fail() {
  echo "$*"
  exit 1
}

for name in ascendcl nnopbase opapi; do
  "$READELF" -d "$cann/lib$name.so" | grep -q "(SONAME).*\[lib$name.so\]" || fail "lib$name.so: wrong SONAME"
  needed "$cann/lib$name.so" | grep -qx 'libnormrope\.so\.[0-9]*' || fail "lib$name.so does not need libnormrope"
done

# Linked here, with what a linker's defaults may be, by each linker there is.
for linker in bfd gold lld; do
  command -v ld.$linker >/dev/null || continue
  for option in --no-as-needed --as-needed --no-copy-dt-needed-entries --no-undefined -znow; do
    echo "ld.$linker $option"
    "$CC" $CFLAGS -fuse-ld=$linker "$work/program.o" -o "$work/program" -Wl,$option -L"$cann" $names -Wl,-rpath,"$cann"
    $emulator "$work/program"
  done
done
"$CC" $CFLAGS "$work/program.o" -o "$work/program" -L"$cann" $names
for name in ascendcl nnopbase opapi; do
  needed "$work/program" | grep -qx "lib$name.so" || fail "the program does not need lib$name.so"
done
echo "LD_LIBRARY_PATH"
LD_LIBRARY_PATH=$cann $emulator "$work/program"
echo "beside libnormrope itself, in either order"
"$CC" $CFLAGS "$work/program.o" -o "$work/program" -L"$BUILD/lib" -lnormrope -Wl,--no-as-needed -L"$cann" $names \
  -Wl,-rpath,"$cann:$BUILD/lib"
$emulator "$work/program"
"$CC" $CFLAGS "$work/program.o" -o "$work/program" -Wl,--no-as-needed -L"$cann" $names -L"$BUILD/lib" -lnormrope \
  -Wl,-rpath,"$cann:$BUILD/lib"
$emulator "$work/program"

# A binary from a machine with CANN: linked with libraries of these SONAMEs that are not ours, run with ours.
echo "a binary linked elsewhere"
mkdir "$work/elsewhere"
"$NM" -u "$work/program.o" | awk '$2 ~ /^acl/ { print "int " $2 "(void) { return -1; }" }' >"$work/elsewhere.c"
for name in ascendcl nnopbase opapi; do
  "$CC" -w -shared -fPIC "$work/elsewhere.c" -o "$work/elsewhere/lib$name.so" -Wl,-soname,lib$name.so
done
"$CC" $CFLAGS "$work/program.o" -o "$work/program" -Wl,--no-as-needed -L"$work/elsewhere" $names
LD_LIBRARY_PATH=$cann $emulator "$work/program"

echo "dlopen and dlsym"
"$CC" $CFLAGS "$SOURCE/tests/link/cann_dlopen.c" -o "$work/program" -ldl
for pair in ascendcl=aclrtSetDevice nnopbase=aclCreateTensor opapi=aclnnNormRopeConcatBackward; do
  $emulator "$work/program" "$cann/lib${pair%=*}.so" "${pair#*=}"
done
