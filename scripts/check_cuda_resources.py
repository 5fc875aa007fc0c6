#!/usr/bin/env python3
"""What the assembler says about the CUDA kernels, for every target that the library is built for, as a table.

Fails where a kernel spills registers or has local memory, or has so many registers that no block fits. Without nvcc it
says so and does nothing.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGETS = ("sm_80", "sm_90")
FORMS = ("general", "rms", "layer", "heads")
REGISTERS = 65536  # of a multiprocessor
THREADS = {"general": 64, "tables": 256, "sums": 512}


def kernel_name(mangled: str) -> str:
    """Dtype, form and direction, from a mangled name."""
    found = re.match(r"_ZN2nr4rowsINS_\d+(\w+?)ELi(\d)ELb(\d)E", mangled)
    if not found:
        return re.sub(r"_ZN2nr\d+([a-z]+).*", r"\1", mangled)
    dtype, form, backward = found.groups()
    return f"{dtype} {FORMS[int(form)]} {'backward' if backward == '1' else 'forward'}"


def compile_one(source: Path, target: str, folder: str) -> list[tuple]:
    """Of each kernel: name, target, stack, spill stores, spill loads, registers."""
    output = Path(folder) / f"{source.stem}.{target}.cubin"
    command = ["nvcc", "-std=c++17", "-O3", "-fmad=false", f"-I{ROOT / 'src'}", f"-I{ROOT / 'include'}", "-cubin"]
    command += [f"-arch={target}", "-Xptxas", "-v", str(source), "-o", str(output)]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        sys.exit(run.stdout + run.stderr)
    pattern = (
        r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
        r".*?Used (\d+) registers"
    )
    found = re.findall(pattern, run.stderr, re.S)
    return [(kernel_name(name), target, *map(int, numbers)) for name, *numbers in found]


def main() -> int:
    """The table."""
    if not shutil.which("nvcc"):
        print("no nvcc here: the CUDA kernels were not compiled")
        return 0
    sources = sorted((ROOT / "src/cuda").glob("*.cu"))
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(compile_one, source, target, folder) for target in TARGETS for source in sources]
        rows = [row for job in jobs for row in job.result()]
    expected = len(TARGETS) * (3 * len(FORMS) * 2 + 2)
    print(f"{'kernel':24} target  registers  threads, by registers  stack  spilled")
    bad = 0
    for name, target, stack, stores, loads, registers in sorted(rows):
        block = next((threads for word, threads in THREADS.items() if word in name), 128)
        resident = REGISTERS // ((registers + 7) // 8 * 8 * block) * block
        wrong = stack or stores or loads or not resident
        bad += bool(wrong)
        print(f"{name:24} {target:6} {registers:10} {resident:22} {stack:6} {stores + loads:8}{' <-' if wrong else ''}")
    if len(rows) != expected:
        print(f"{len(rows)} kernels were reported, expected {expected}")
        return 1
    print(f"{bad} of {len(rows)} kernels use local memory")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
