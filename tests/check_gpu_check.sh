#!/bin/sh
# scripts/gpu_check.py where no device is to be seen: it says so, does nothing and fails. And its steps anywhere: each
# one's end is reported, one that hangs is cut with all that it has started, and the report is there after each. A
# signal ends all of it.
set -eu

status=0
text=$(CUDA_VISIBLE_DEVICES='' python3 "$SOURCE/scripts/gpu_check.py" 2>&1) || status=$?
echo "$text"
[ $status = 2 ] || { echo "ended with $status, expected 2"; exit 1; }
case $text in
"gpu-check: nothing was checked: "*) ;;
*) exit 1 ;;
esac

export PATH="${CMAKE:+$(dirname "$CMAKE"):}$PATH" # of ctest
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$SOURCE/scripts" python3 - "$work" <<'END'
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import gpu_check

folder = Path(sys.argv[1])
check = gpu_check.Check(60, folder)


def alive(pid: str) -> bool:
    try:
        return Path("/proc", pid, "stat").read_text().split()[2] != "Z"  # which nobody waits for
    except OSError:
        return False


def wait(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


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
assert result("torch: result").startswith("failed: not what was expected: JSONDecodeError")
begun = time.monotonic()
hang = f"sleep 120 & echo $! >'{folder}/child'; echo before; sleep 120"
assert check.run("hangs", ["sh", "-c", hang], 5, partial=True) == "before\n"
assert time.monotonic() - begun < 20
assert result("hangs") == "failed: longer than 5 s"
assert "before" in (folder / "log.txt").read_text()
child = (folder / "child").read_text().strip()
wait(lambda: not alive(child))
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
assert "90.0%" in (folder / "report.txt").read_text()
assert json.loads((folder / "report.json").read_text())["benchmark"] == {"results": results}
for number, unexpected in enumerate(("[]", "1", '{"results": [{"preset": "p"}]}', "{}"), 1):
    check.keep("torch", unexpected)
    assert len(check.failures) == len(failed) + number and result("torch: result").startswith("failed: not")

# Of a comparison that was cut, what it said until then.
(folder / "bin").mkdir()
benchmark = folder / "bin/gpu_bench"
benchmark.write_text("#!/bin/sh\necho '[]'\n")
benchmark.chmod(0o755)
package = folder / "python/normrope/bench"
package.mkdir(parents=True)
(folder / "python/torch.py").write_text("class cuda:\n    is_available = lambda: True\n")
results[0]["not_taken"] = {"other": "absent"}
said = [json.dumps({"torch": "9.9"}), "tuning", json.dumps(results[0]), json.dumps(results[0])[:20]]
(package / "gpu.py").write_text(f"import sys\nprint({chr(10).join(said)!r}, end='')\nsys.exit(3)\n")
os.environ["PYTHONPATH"] += f":{folder / 'python'}"  # for the question whether PyTorch is there
gpu_check.ROOT = gpu_check.BUILD = folder
check = gpu_check.Check(300, folder)
gpu_check.compare(check, 3)
report = json.loads((folder / "report.json").read_text())
assert report["torch"] == {"torch": "9.9", "results": results}
assert "PyTorch 9.9" in (folder / "report.txt").read_text() and "benchmark" not in report
failed = [line.split(": ", 1) for line in report["failures"]]
assert len(failed) == 2 and failed[0][0] == "benchmark" and failed[1] == ["comparison with PyTorch", "failed with 3"]

# Tests that were skipped are seen, programs and single ones.
cmocka = """
[ RUN      ] good
[       OK ] good
[ RUN      ] a_stream_of_another_device
[  SKIPPED ] a_stream_of_another_device
[==========] 2 test(s) run.
[  PASSED  ] 1 test(s).
[  SKIPPED ] 1 test(s), listed below:
[  SKIPPED ] a_stream_of_another_device

 1 SKIPPED TEST(S)
"""
(folder / "cmocka").write_text(cmocka)
ctest = f"""
add_test(device_cuda cat "{folder}/cmocka")
add_test(device_values sh -c "exit 77")
set_tests_properties(device_values PROPERTIES SKIP_RETURN_CODE 77)
"""
for count, tests, left_out in (
    (1, ctest, "device_values"),
    (2, ctest, "a_stream_of_another_device device_values"),
    (1, "\n".join(ctest.splitlines()[:2]), ""),
):
    (folder / "CTestTestfile.cmake").write_text(tests)
    gpu_check.devices = lambda count=count: (0, count)
    check = gpu_check.Check(300, folder)
    gpu_check.test(check)
    name = "tests on the device"
    assert check.failures == ([f"{name}: all of them: failed: skipped {left_out}"] if left_out else []), check.failures
    assert result(name) == "passed"

# Steps of a pool that raise are failures.
gpu_check.tool = lambda name: name
check.run = lambda *step: 1 / 0
check.report["steps"] = []
gpu_check.sanitize(check)
assert len(check.failures) == 12 and result("memcheck test_cuda") == "failed: ZeroDivisionError('division by zero')"

# Stopped amid the sanitizers: they end, no further one begins, and the report says so.
(folder / "tests").mkdir()
(folder / "tests/test_cuda").touch()
sanitizer = folder / "sanitizer"
sanitizer.write_text(f"#!/bin/sh\necho $$ >'{folder}'/new-$$\nmv '{folder}'/new-$$ '{folder}'/pid-$$\nexec sleep 120\n")
sanitizer.chmod(0o755)
program = """
import sys
from pathlib import Path

import gpu_check

folder = Path(sys.argv.pop())
gpu_check.BUILD = folder
gpu_check.tool = lambda name: str(folder / "sanitizer")
gpu_check.missing = lambda: None
gpu_check.build = lambda check: True
gpu_check.test = gpu_check.compare = lambda *arguments: None
sys.exit(gpu_check.main())
"""
for number in (2, 15):  # SIGINT, SIGTERM
    process = subprocess.Popen([sys.executable, "-c", program, folder], stderr=subprocess.PIPE, text=True)
    try:
        wait(lambda: len(list(folder.glob("pid-*"))) == gpu_check.SANITIZERS_AT_ONCE)
        process.send_signal(number)
        assert process.communicate(timeout=20)[1] == "" and process.returncode == 1
    finally:
        process.kill()
    pids = [path.read_text().strip() for path in folder.glob("pid-*")]
    assert len(pids) == gpu_check.SANITIZERS_AT_ONCE and not any(map(alive, pids)), pids
    assert result("all of it") == "failed: interrupted"
    assert len(json.loads((folder / "report.json").read_text())["steps"]) == len(pids) + 1
    for path in folder.glob("pid-*"):
        path.unlink()
END
