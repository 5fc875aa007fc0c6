#!/usr/bin/env python3
"""Everything that needs an NVIDIA device, in under 8 minutes: builds, tests, sanitizes, measures, writes a report.

It needs the CUDA toolkit (nvcc; compute-sanitizer where there is one), CMake and what `make test` needs; with PyTorch
the same presets are also timed eager, compiled and by separate kernels (python -m normrope.bench.gpu). The report is
build/gpu/report.json and, for reading, build/gpu/report.txt. Ends with 0 only if everything that ran was good.
"""

import argparse
import ctypes
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build/gpu"
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
# Programs that end in seconds under a sanitizer, and how many of the random cases they take there.
SANITIZED = ("test_cuda", "test_strides", "test_general")
SANITIZED_CASES = "60"
NO_DEVICE = 2
NO_SANITIZER = "left out: no compute-sanitizer"


def missing() -> str | None:
    """Why there is no device to check, or None."""
    if not shutil.which("nvcc"):
        return "nvcc is not in PATH: the CUDA toolkit is needed to build the kernels"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return f"no NVIDIA driver: {error}"
    count = ctypes.c_int()
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if status or not count.value:
        return f"the NVIDIA driver shows no device (CUDA driver error {status})"
    return None


class Check:
    """The steps, their time and what became of them."""

    def __init__(self, seconds: float) -> None:
        self.start, self.seconds = time.monotonic(), seconds
        self.steps: list[dict] = []
        self.log = (BUILD / "log.txt").open("w")

    @property
    def left(self) -> float:
        """Seconds that there still are."""
        return self.seconds - (time.monotonic() - self.start)

    def run(self, name: str, command: list, limit: float, environment: dict | None = None) -> str | None:
        """Runs a step for at most so many seconds; its standard output, or None if it failed."""
        begun = time.monotonic()
        limit = min(limit, self.left)
        self.log.write(f"== {name}: {' '.join(map(str, command))}\n")
        self.log.flush()
        result, output = "passed", None
        if limit < 5:
            result = "left out: no time"
        else:
            try:
                done = subprocess.run(
                    list(map(str, command)),
                    stdout=subprocess.PIPE,
                    stderr=self.log,
                    text=True,
                    timeout=limit,
                    env=os.environ | (environment or {}),
                    cwd=ROOT,
                )
                output = done.stdout
                self.log.write(output)
                if done.returncode:
                    result, output = f"failed with {done.returncode}", None
            except subprocess.TimeoutExpired:
                result = f"failed: longer than {limit:.0f} s"
        seconds = time.monotonic() - begun
        self.steps.append({"step": name, "result": result, "seconds": round(seconds, 1)})
        print(f"{name:44} {result:24} {seconds:6.1f} s", flush=True)
        return output

    @property
    def failures(self) -> list[str]:
        """Steps that were not passed; those left out for lack of a tool are not counted."""
        return [f"{s['step']}: {s['result']}" for s in self.steps if s["result"] not in ("passed", NO_SANITIZER)]


def build(check: Check) -> bool:
    """Library, command, tests, benchmark."""
    configure = ["cmake", "-S", ROOT, "-B", BUILD, "-DNORMROPE_CUDA=ON", "-DCMAKE_BUILD_TYPE=RelWithDebInfo"]
    if shutil.which("ninja") and not (BUILD / "CMakeCache.txt").exists():
        configure += ["-G", "Ninja"]
    jobs = str(os.cpu_count() or 2)
    return (
        check.run("configure", configure, 60) is not None
        and check.run("build", ["cmake", "--build", BUILD, "--parallel", jobs], 240) is not None
    )


def test(check: Check) -> None:
    """What can run on a device, which nothing may skip here."""
    output = check.run("tests on the device", ["ctest", "--test-dir", BUILD, "-R", "^device_", "--no-tests=error"], 120)
    if output is not None and "Skipped" in output:
        check.steps[-1]["result"] = "failed: tests were skipped"


def sanitize(check: Check) -> None:
    """Some of the tests under each of the sanitizer's tools."""
    tool = shutil.which("compute-sanitizer")
    if not tool:
        check.steps.append({"step": "sanitizers", "result": NO_SANITIZER, "seconds": 0})
        print(f"{'sanitizers':44} {NO_SANITIZER}")
        return
    for name in SANITIZERS:
        for program in SANITIZED:
            command = [tool, "--tool", name, "--error-exitcode", "9", BUILD / "tests" / program, "--device", "cuda"]
            check.run(f"{name} {program}", command, 60, {"NORMROPE_TEST_CASES": SANITIZED_CASES})


def compare(check: Check, repeat: int) -> dict:
    """Times beside a copy, and beside PyTorch where it is."""
    report = {}
    output = check.run("benchmark", [BUILD / "bin/gpu_bench", "--repeat", repeat], 120)
    if output:
        report["benchmark"] = json.loads(output)
    python = [sys.executable, "-c", "import torch; assert torch.cuda.is_available()"]
    if subprocess.run(python, capture_output=True).returncode:
        print(f"{'comparison with PyTorch':44} left out: no PyTorch with CUDA for {sys.executable}")
        return report
    command = [sys.executable, "-m", "normrope.bench.gpu", "--repeat", repeat]
    sources = {"PYTHONPATH": str(ROOT / "python"), "NORMROPE_LIBRARY": str(BUILD / "lib/libnormrope.so")}
    output = check.run("comparison with PyTorch", command, 180, sources)
    if output:
        report["torch"] = json.loads(output)
    return report


def as_text(report: dict) -> str:
    """The report, for reading."""
    lines = [report["device"], report["command"], ""]
    lines += [f"{s['step']:44} {s['result']:24} {s['seconds']:6.1f} s" for s in report["steps"]]
    if "benchmark" in report:
        lines += ["", "preset         dtype     direction        MB         us    copy us   bandwidth of the copy"]
        for r in report["benchmark"]["results"]:
            us = r["microseconds"]["operator"]["median"], r["microseconds"]["copy"]["median"]
            lines.append(
                f"{r['preset']:14} {r['dtype']:9} {r['direction']:9} {r['bytes'] / 1e6:9.1f} {us[0]:10.1f} "
                f"{us[1]:10.1f} {r['bandwidth_of_copy']:8.1%}"
            )
    if "torch" in report:
        lines += ["", f"PyTorch {report['torch']['torch']}: microseconds, and how many times the operator's"]
        for r in report["torch"]["results"]:
            medians = {name: us["median"] for name, us in r["microseconds"].items()}
            ours = medians["operator"]
            times = "  ".join(f"{name} {us:.1f} ({us / ours:.2f})" for name, us in medians.items())
            lines.append(f"{r['preset']:14} {r['dtype']:9} {r['direction']:9} {times}")
            lines += [f"{'':34} {name}: {why}" for name, why in r["not_taken"].items()]
    return "\n".join(lines) + "\n"


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=15, help="samples of each time (15)")
    parser.add_argument("--seconds", type=float, default=450, help="what all of it may take (450)")
    arguments = parser.parse_args()
    why = missing()
    if why:
        print(f"gpu-check: nothing was checked: {why}", file=sys.stderr)
        return NO_DEVICE
    BUILD.mkdir(parents=True, exist_ok=True)
    check = Check(arguments.seconds)
    report = {"command": "make gpu-check", "steps": check.steps}
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader", "-i", "0"]
    report["device"] = (
        (check.run("device", query, 20) or "unknown").strip() if shutil.which("nvidia-smi") else "unknown"
    )
    if build(check):
        test(check)
        report |= compare(check, arguments.repeat)  # before the sanitizers, which may take all the time there is
        sanitize(check)
    report["failures"] = check.failures
    (BUILD / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    text = as_text(report)
    (BUILD / "report.txt").write_text(text)
    print("\n" + text)
    for failure in check.failures:
        print(f"gpu-check: {failure}", file=sys.stderr)
    return 1 if check.failures else 0


if __name__ == "__main__":
    sys.exit(main())
