#!/usr/bin/env python3
"""Everything that needs an NVIDIA device, in under 8 minutes: builds, tests, sanitizes, measures, writes a report.

It needs the CUDA toolkit (nvcc; compute-sanitizer where there is one), CMake and a C compiler. Without cmocka no test
can run, which is a failure, but the rest is done all the same; so without jansson, which the command needs. With
PyTorch the same presets are also timed eager, compiled and by separate kernels (python -m normrope.bench.gpu). The
report is build/gpu/report.json and, for reading, build/gpu/report.txt; both are written after every step, whatever
becomes of the next one. Ends with 0 only if everything that ran was good.
"""

import argparse
import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build/gpu"
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
# Programs that end in seconds under a sanitizer, and how many of the random cases they take there.
SANITIZED = ("test_cuda", "test_strides", "test_general")
SANITIZED_CASES = "60"
SANITIZERS_AT_ONCE = 4
SANITIZERS_SECONDS = 110  # that the comparison with PyTorch leaves to them
NEED_TWO_DEVICES = {"a_stream_of_another_device"}
NO_DEVICE = 2
NO_SANITIZER = "left out: no compute-sanitizer"
NO_TORCH = "left out: no PyTorch with CUDA"


def tool(name: str) -> str | None:
    """The path of one of the toolkit's programs."""
    homes = [os.environ[v] for v in ("CUDA_HOME", "CUDA_PATH") if v in os.environ] + ["/usr/local/cuda"]
    path = os.pathsep.join([os.environ.get("PATH", "")] + [f"{home}/bin" for home in homes])
    return shutil.which(name, path=path)


def missing() -> str | None:
    """Why there is no device to check, or None."""
    if not tool("nvcc"):
        return "nvcc is not in PATH: the CUDA toolkit is needed to build the kernels"
    try:
        status, count = devices()
    except OSError as error:
        return f"no NVIDIA driver: {error}"
    if status or not count:
        return f"the NVIDIA driver shows no device (CUDA driver error {status})"
    return None


def devices() -> tuple[int, int]:
    """The driver's error, and how many devices it shows."""
    driver = ctypes.CDLL("libcuda.so.1")
    count = ctypes.c_int()
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    return status, count.value


def kill(process: subprocess.Popen) -> None:
    """Ends a step and all that it has started, without waiting for that."""
    with suppress(OSError):  # they are gone
        os.killpg(process.pid, signal.SIGKILL)


def end(process: subprocess.Popen) -> None:
    """Kills a step and all that it has started."""
    kill(process)
    with suppress(subprocess.TimeoutExpired):  # the driver holds it: it ends when that lets go
        process.wait(10)


class Check:
    """The steps, their time and what became of them."""

    def __init__(self, seconds: float, folder: Path) -> None:
        self.start, self.seconds, self.folder = time.monotonic(), seconds, folder
        self.report: dict = {"command": "make gpu-check", "device": "unknown", "steps": []}
        self.running: set[subprocess.Popen] = set()
        self.stopped = False
        # Of all this, the log and what is printed; a signal may come while the main thread has it.
        self.lock = threading.RLock()
        folder.mkdir(parents=True, exist_ok=True)
        self.log = (folder / "log.txt").open("w")

    @staticmethod
    def _file(base: Path, kind: str) -> TextIO:
        return base.with_suffix(f".{kind}").open("w+", errors="replace")

    @property
    def left(self) -> float:
        """Seconds that there still are."""
        return self.seconds - (time.monotonic() - self.start)

    def add(self, name: str, result: str, seconds: float, said: str = "") -> None:
        """One more step, in the report."""
        with self.lock:
            self.log.write(f"== {name}: {result}\n{said}")
            self.log.flush()
            self.report["steps"].append({"step": name, "result": result, "seconds": round(seconds, 1)})
            print(f"{name:44} {result:24} {seconds:6.1f} s", flush=True)
            if result.startswith("failed"):
                print("".join(f"    {line}\n" for line in said.splitlines()[-25:]), end="", flush=True)
            self.save()

    def keep(self, name: str, output: str | None, parse: Callable[[str], dict] = json.loads) -> None:
        """A step's JSON, in the report."""
        if output is None:
            return
        try:
            found = parse(output)
            as_text({**self.report, name: found})
        except Exception as error:  # it is no JSON, or lacks what is to be shown
            self.add(f"{name}: result", f"failed: not what was expected: {error!r}", 0)
            return
        with self.lock:
            self.report[name] = found
            self.save()

    def save(self) -> None:
        """The report as far as it is."""
        self.report["failures"] = self.failures
        (self.folder / "report.json").write_text(json.dumps(self.report, indent=2) + "\n")
        (self.folder / "report.txt").write_text(as_text(self.report))

    def _start(self, words: list[str], out: TextIO, err: TextIO, environment: dict) -> subprocess.Popen:
        with self.lock:
            if self.stopped:
                raise InterruptedError("interrupted")
            streams = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": err}
            process = subprocess.Popen(words, **streams, env=environment, cwd=ROOT, start_new_session=True)
            self.running.add(process)
            return process

    def stop(self) -> None:
        """Ends what runs; nothing more is started."""
        with self.lock:
            self.stopped = True
            for process in self.running:
                kill(process)

    def run(
        self, name: str, command: list, limit: float, environment: dict | None = None, partial: bool = False
    ) -> str | None:
        """Runs a step for at most so many seconds; its standard output, or None if it failed.

        partial: what a step has said until it failed is as good.
        """
        begun = time.monotonic()
        limit = min(limit, self.left)
        if limit < 5:
            self.add(name, "left out: no time", 0)
            return None
        words = [str(word) for word in command]
        base = self.folder / f"step-{name.replace(' ', '-')}"
        result, output = "passed", ""
        # Files, not pipes: what a step has started may outlive it, and would hold a pipe open.
        with self._file(base, "out") as out, self._file(base, "err") as err:
            try:
                process = self._start(words, out, err, os.environ | (environment or {}))
            except OSError as error:
                result = f"failed: {error}"
            else:
                try:
                    code = process.wait(limit)
                    result = f"failed with {code}" if code else "passed"
                except subprocess.TimeoutExpired:
                    result = f"failed: longer than {limit:.0f} s"
                finally:
                    end(process)
                    with self.lock:
                        self.running.discard(process)
            out.seek(0)
            err.seek(0)
            output = out.read()
            said = f"{' '.join(words)}\n{output}{err.read()}"
        self.add(name, result, time.monotonic() - begun, said)
        return output if result == "passed" or partial else None

    @property
    def failures(self) -> list[str]:
        """Steps that were not passed; those left out for lack of a tool are not counted."""
        good = ("passed", NO_SANITIZER, NO_TORCH)
        return [f"{s['step']}: {s['result']}" for s in self.report["steps"] if s["result"] not in good]


def has(package: str) -> bool:
    """Whether pkg-config knows a library."""
    return bool(shutil.which("pkg-config")) and not subprocess.run(["pkg-config", "--exists", package]).returncode


def build(check: Check) -> bool:
    """Library, command, tests, benchmark."""
    if not (has("jansson") and has("cmocka") and shutil.which("cmake")):
        check.run("setup", [ROOT / "scripts/setup.sh"], 60)
    configure = ["cmake", "-S", ROOT, "-B", BUILD, "-DNORMROPE_CUDA=ON", "-DCMAKE_BUILD_TYPE=RelWithDebInfo"]
    configure += [f"-DNORMROPE_NVCC={tool('nvcc')}", "-DNORMROPE_BUILD_GPU_BENCH=ON", "-DNORMROPE_BUILD_EXAMPLES=OFF"]
    configure.append("-DCMAKE_CUDA_FLAGS=--threads=2")  # one for each target
    for option, package in (("NORMROPE_BUILD_CLI", "jansson"), ("NORMROPE_BUILD_TESTS", "cmocka")):
        there = has(package) and has("jansson")
        configure.append(f"-D{option}={'ON' if there else 'OFF'}")
        if not there:
            check.add(option, f"failed: no {package}" if not has(package) else "failed: no jansson", 0)
    if shutil.which("ninja") and not (BUILD / "CMakeCache.txt").exists():
        configure += ["-G", "Ninja"]
    jobs = str(os.cpu_count() or 2)
    return (
        check.run("configure", configure, 60) is not None
        and check.run("build", ["cmake", "--build", BUILD, "--parallel", jobs], 240) is not None
    )


def test(check: Check) -> None:
    """What can run on a device, which nothing may skip here."""
    command = ["ctest", "--test-dir", BUILD, "-R", "^device_", "--no-tests=error", "--verbose"]
    output = check.run("tests on the device", [*command, "--parallel", min(8, os.cpu_count() or 2)], 120)
    left_out = skipped(output or "", devices()[1])
    if left_out:
        check.add("tests on the device: all of them", f"failed: skipped {' '.join(left_out)}", 0)


def skipped(output: str, count: int) -> list[str]:
    """What so many devices could have run: programs by CTest's word for them, tests in programs by cmocka's."""
    names = set(re.findall(r"(\w+) [.*(]*Skipped", output) + re.findall(r"\[ +SKIPPED +\] ([a-zA-Z_]\w*)", output))
    return sorted(names - (NEED_TWO_DEVICES if count < 2 else set()))


def sanitize(check: Check) -> None:
    """Some of the tests under each of the sanitizer's tools."""
    sanitizer = tool("compute-sanitizer")
    if not sanitizer:
        check.add("sanitizers", NO_SANITIZER, 0)
        return
    steps = {}
    for name in SANITIZERS:
        command = [sanitizer, "--tool", name, "--error-exitcode", "9"]
        if name == "memcheck":  # tests ask for more memory than there is, and such
            command += ["--report-api-errors", "no"]
        for program in SANITIZED:
            steps[f"{name} {program}"] = [*command, BUILD / "tests" / program, "--device", "cuda"]
    cases = {"NORMROPE_TEST_CASES": SANITIZED_CASES}
    with ThreadPoolExecutor(SANITIZERS_AT_ONCE) as pool:
        try:
            futures = {step: pool.submit(check.run, step, words, 90, cases) for step, words in steps.items()}
            for step, future in futures.items():
                error = future.exception()
                if error:
                    check.add(step, f"failed: {error!r}", 0)
        except BaseException:  # a signal's, too: leaving the pool would wait for all that has not begun
            pool.shutdown(wait=False, cancel_futures=True)
            check.stop()
            raise


def compare(check: Check, repeat: int) -> None:
    """Times beside a copy, and beside PyTorch where it is."""
    check.keep("benchmark", check.run("benchmark", [BUILD / "bin/gpu_bench", "--repeat", repeat], 120))
    python = [sys.executable, "-c", "import torch; print(torch.cuda.is_available())"]
    try:
        asked = subprocess.run(python, capture_output=True, text=True, timeout=60).stdout
    except subprocess.TimeoutExpired:
        asked = ""
    if asked.strip() != "True":
        check.add("comparison with PyTorch", NO_TORCH, 0)
        return
    command = [sys.executable, "-m", "normrope.bench.gpu", "--repeat", repeat]
    sources = {"PYTHONPATH": str(ROOT / "python"), "NORMROPE_LIBRARY": str(BUILD / "lib/libnormrope.so")}
    limit = min(180, check.left - SANITIZERS_SECONDS)
    check.keep("torch", check.run("comparison with PyTorch", command, limit, sources, partial=True), by_line)


def by_line(output: str) -> dict:
    """A heading and results, a line of JSON each; the last one may have been cut, and others may have said more."""
    lines = [line for line in output.splitlines(keepends=True) if line.startswith("{") and line.endswith("\n")]
    heading, *results = map(json.loads, lines)
    return {**heading, "results": results}


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


def everything(check: Check, repeat: int) -> None:
    """All steps."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader", "-i", "0"]
    if shutil.which("nvidia-smi"):
        check.report["device"] = (check.run("device", query, 20) or "unknown").strip()
    if build(check):
        tested = (BUILD / "tests" / SANITIZED[0]).exists()
        if tested:
            test(check)
        compare(check, repeat)  # before the sanitizers, which may take all the time there is
        if tested:
            sanitize(check)


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
    check = Check(arguments.seconds, BUILD)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(1))
    try:
        everything(check, arguments.repeat)
    except SystemExit:
        check.stop()
        check.add("all of it", "failed: interrupted", arguments.seconds - check.left)
        raise
    check.save()
    print("\n" + as_text(check.report))
    for failure in check.failures:
        print(f"gpu-check: {failure}", file=sys.stderr)
    return 1 if check.failures else 0


if __name__ == "__main__":
    sys.exit(main())
