# Sourced by tests of bench/*.py, before support/command.sh. After find_python MODULES `python` is one that has those
# modules, of `make bench-torch` where that was run; where there is none the test is skipped (77).
bench=${NORMROPE_SOURCE_DIR:?}/bench

find_python() {
  for python in "$NORMROPE_SOURCE_DIR/build/bench-venv/bin/python" "${PYTHON:-python3}"; do
    "$python" -c "import $1" 2>/dev/null && return
  done
  echo "skipped: no Python with $1; 'make bench-torch' installs them"
  exit 77
}
