#!/bin/sh
# Every line of the CUDA kernels was run by the tests that went before (on the host, by tests/cuda_shim), as gcov counts.
set -eu

objects=$BUILD/src/CMakeFiles/normrope_objects.dir/cuda
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${GCOV:-gcov}" --json-format --stdout "$objects"/*.cu.gcda >counts.json
python3 - "$SOURCE" counts.json <<'END'
import json
import sys
from collections import Counter
from pathlib import Path

source = Path(sys.argv[1]).resolve() / "src/cuda"
counts = Counter()
for line in open(sys.argv[2]):
    for file in json.loads(line)["files"]:
        path = Path(file["file"]).resolve()
        if path.parent == source and path.suffix in (".cu", ".cuh"):
            for entry in file["lines"]:
                counts[path.name, entry["line_number"]] += entry["count"]
assert len(counts) > 250, f"only {len(counts)} lines were compiled"
missed = sorted(place for place, count in counts.items() if not count)
for name, line in missed:
    print(f"src/cuda/{name}:{line}: {(source / name).read_text().splitlines()[line - 1].strip()}")
print(f"{len(counts) - len(missed)} of {len(counts)} lines of the CUDA kernels were run")
sys.exit(bool(missed))
END
