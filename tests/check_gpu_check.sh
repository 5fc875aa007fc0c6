#!/bin/sh
# scripts/gpu_check.py where no device is to be seen: it says so, does nothing and fails. And its steps anywhere: each
# one's end is reported, one that hangs is cut with all that it has started, and the report is there after each.
set -eu

status=0
text=$(CUDA_VISIBLE_DEVICES='' python3 "$SOURCE/scripts/gpu_check.py" 2>&1) || status=$?
echo "$text"
[ $status = 2 ] || { echo "ended with $status, expected 2"; exit 1; }
case $text in
"gpu-check: nothing was checked: "*) ;;
*) exit 1 ;;
esac

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$SOURCE/scripts" python3 - "$work" <<'END'
import json
import sys
import time
from pathlib import Path

import gpu_check

folder = Path(sys.argv[1])
check = gpu_check.Check(60, folder)


def result(name: str) -> str:
    report = json.loads((folder / "report.json").read_text())
    assert name in (folder / "report.txt").read_text()
    return next(step["result"] for step in report["steps"] if step["step"] == name)


assert check.run("good", ["sh", "-c", "echo said; echo more >&2"], 20) == "said\n"
assert result("good") == "passed" and check.failures == []
assert check.run("bad", ["sh", "-c", "echo said; exit 3"], 20) is None
assert result("bad") == "failed with 3"
assert check.run("absent", [folder / "no such program"], 20) is None
assert result("absent").startswith("failed: ")
check.keep("torch", check.run("cut short", ["echo", '{"results": ['], 20))
assert result("torch: result").startswith("failed: no JSON")
begun = time.monotonic()
hang = f"sleep 120 & echo $! >'{folder}/child'; echo before; sleep 120"
assert check.run("hangs", ["sh", "-c", hang], 5) is None
assert time.monotonic() - begun < 20
assert result("hangs") == "failed: longer than 5 s"
assert "before" in (folder / "log.txt").read_text()
child, deadline = Path("/proc", (folder / "child").read_text().strip(), "stat"), time.monotonic() + 10
while child.exists() and child.read_text().split()[2] != "Z":  # the step's child, which nobody waits for
    assert time.monotonic() < deadline, "it still runs"
    time.sleep(0.05)
check.seconds = 0
assert check.run("late", ["true"], 20) is None
assert result("late") == "left out: no time"
failed = [line.split(":")[0] for line in check.failures]
assert failed == ["bad", "absent", "torch", "hangs", "late"], failed
assert json.loads((folder / "report.json").read_text())["failures"] == check.failures

# What a run without devices, tests and PyTorch would report: the result of the benchmark alone.
results = [{"preset": "p", "dtype": "d", "direction": "forward", "bytes": 1e6, "bandwidth_of_copy": 0.9}]
results[0]["microseconds"] = {"operator": {"median": 2.0}, "copy": {"median": 1.8}}
check.keep("benchmark", json.dumps({"results": results}))
assert "90.0%" in gpu_check.as_text(check.report)
END
