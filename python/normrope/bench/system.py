"""The machine: its name, its allocator, a process's memory. It imports no torch, which reads the environment once."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

ALLOCATORS = ("system", "kept")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # of glibc's malloc.h
RETURNED_FROM = 1 << 20


def set_allocator(name: str) -> None:
    """Before torch is imported: where all variants' memory comes from.

    system: glibc's allocator as it is, which returns large blocks to the system and faults them in again.
    kept: it keeps what is freed, in huge pages where the system gives them; what PyTorch's tuning guide gets by loading
    another allocator.
    """
    if name == "kept":
        os.environ["THP_MEM_ALLOC_ENABLE"] = "1"
        _mallopt(M_MMAP_MAX, 0)
        _mallopt(M_TRIM_THRESHOLD, -1)


def return_freed_memory() -> None:
    """Large blocks are the system's again when they are freed, so that a process's size says what it uses."""
    _mallopt(M_MMAP_THRESHOLD, RETURNED_FROM)


def trim() -> None:
    """Gives back what smaller blocks left."""
    ctypes.CDLL(None).malloc_trim(0)


def _mallopt(parameter: int, value: int) -> None:
    if not ctypes.CDLL(None).mallopt(parameter, value):
        raise OSError(f"mallopt({parameter}, {value}) failed; this needs glibc")


def forget_peak() -> None:
    """The peak of the resident memory starts anew from what it is."""
    Path("/proc/self/clear_refs").write_text("5")


def resident() -> tuple[int, int]:
    """Bytes of memory that this process has now, and the most that it had."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    now, most = (int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return now, most


def processor() -> str:
    """What the system calls it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()
