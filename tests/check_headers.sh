#!/bin/sh
# Each public header alone, as C and as C++, without a warning.
set -eu

status=0
cd "$SOURCE/include"
for header in $(find . -name '*.h' | sort); do
  for standard in c11 c17 c++11 c++17; do
    case $standard in
    c++*) compiler=$CXX language=c++ ;;
    *) compiler=$CC language=c ;;
    esac
    echo "#include \"${header#./}\"" | "$compiler" -std=$standard -Wall -Wextra -Wpedantic -Werror -I. -fsyntax-only \
      -x $language - || { echo "${header#./}: not clean as $standard"; status=1; }
  done
done
exit $status
