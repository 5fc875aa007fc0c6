"""What include/normrope.h declares, through ctypes: the one place that mirrors its layouts. It knows no framework.

OpenMP: where torch is imported in the process, before or after, the library and torch share one runtime, because both
ask the loader for libgomp.so.1.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Sequence
from ctypes import POINTER, Structure, byref, c_char, c_char_p, c_double, c_int, c_int32, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any

F32, F16, BF16, F64 = range(4)
DTYPE_NAMES = ("float32", "float16", "bfloat16", "float64")
DTYPE_SIZES = (4, 2, 2, 8)
NORMS = ("none", "layer", "layer_affine", "rms", "rms_affine")
FORWARD, BACKWARD = 0, 1
BACKEND_CPU, BACKEND_REFERENCE, BACKEND_MAGNITUDE, BACKEND_CUDA = range(4)
MAX_SEGMENTS = 64
_OK, _NULL, _INVALID, _UNSUPPORTED, _MEMORY, _DEVICE = range(6)


class View(Structure):
    """nr_view: indexed [batch, sequence, head, channel], strides in elements."""

    _fields_ = (("data", c_void_p), ("stride", c_int64 * 4), ("dtype", c_int), ("name", c_char_p))


VIEWS = (
    *("x", "y", "mean", "rstd", "weight", "bias", "cos", "sin"),
    *("grad_y", "grad_x", "grad_weight", "grad_bias", "grad_cos", "grad_sin"),
)


class Segment(Structure):
    """nr_segment."""

    _fields_ = (
        ("struct_size", c_size_t),
        ("name", c_char_p),
        *((name, c_int64) for name in ("batch", "length", "heads", "dim")),
        ("norm", c_int),
        ("scope", c_int),
        ("eps", c_double),
        *((name, c_int64) for name in ("rope_width", "rope_dim", "rope_length", "rope_position")),
        *((name, View) for name in VIEWS),
    )


class Problem(Structure):
    """nr_problem."""

    _fields_ = (
        ("struct_size", c_size_t),
        ("direction", c_int),
        ("backend", c_int),
        ("segments", POINTER(Segment)),
        ("num_segments", c_int32),
        ("num_threads", c_int32),
        ("isa", c_char_p),
    )


# Where a view's address stands in an array of segments that is seen as 64-bit words.
_WORD = 8
SEGMENT_WORDS = ctypes.sizeof(Segment) // _WORD
ADDRESS_WORD = {name: getattr(Segment, name).offset // _WORD for name in VIEWS}


def _find() -> Path:
    """The library: NORMROPE_LIBRARY where set, else the one that the package carries."""
    chosen = os.environ.get("NORMROPE_LIBRARY")
    if chosen:
        return Path(chosen)
    # An editable installation has its sources in one place and the library in another.
    carried = [Path(folder) / "lib" / "libnormrope.so.0" for folder in sys.modules["normrope"].__path__]
    return next((path for path in carried if path.exists()), carried[0])


def _load(path: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise ImportError(f"normrope: cannot load its library: {error}") from error
    library.nr_plan_create.argtypes = (POINTER(c_void_p), POINTER(Problem))
    library.nr_plan_destroy.argtypes = (c_void_p,)
    library.nr_plan_destroy.restype = None
    library.nr_plan_workspace_size.argtypes = (c_void_p,)
    library.nr_plan_workspace_size.restype = c_size_t
    library.nr_plan_run.argtypes = (c_void_p, c_void_p, c_void_p, c_size_t, c_void_p)
    library.nr_default_threads.restype = c_int32
    for name in ("nr_last_error", "nr_version", "nr_isa_default"):
        getattr(library, name).restype = c_char_p
    return library


LIBRARY = _load(_find())
_LIBC = ctypes.CDLL(None)
_LIBC.madvise.argtypes = (c_void_p, c_size_t, c_int)


def version() -> str:
    """Of the library that runs."""
    return LIBRARY.nr_version().decode()


def isa() -> str:
    """The CPU instruction set that plans take."""
    return LIBRARY.nr_isa_default().decode()


def default_threads() -> int:
    """How many threads a plan takes that is not told: NORMROPE_NUM_THREADS, else OpenMP's rule."""
    return LIBRARY.nr_default_threads()


def advise_huge_pages(address: int, size: int) -> None:
    """Asks the system to back this memory by huge pages: writing what is new takes a fraction of the time then."""
    page = mmap.PAGESIZE
    begin, end = -(-address // page) * page, (address + size) // page * page
    if end > begin:
        _LIBC.madvise(begin, end - begin, mmap.MADV_HUGEPAGE)  # advice: it does not matter whether it is taken


def check(status: int) -> None:
    """Raises this thread's last error, unless the status is NR_OK.

    Raises:
        ValueError: a value, shape, stride or overlap that no backend would take; something required is absent.
        NotImplementedError: valid, but not with this backend.
        MemoryError: no memory for a plan.
        RuntimeError: the device failed.
    """
    if status == _OK:
        return
    kinds: dict[int, type[Exception]] = {
        _NULL: ValueError,
        _INVALID: ValueError,
        _UNSUPPORTED: NotImplementedError,
        _MEMORY: MemoryError,
    }
    raise kinds.get(status, RuntimeError)(LIBRARY.nr_last_error().decode())


class Plan:
    """An nr_plan. It never changes, so any number of threads may run it at once.

    Args:
        direction: FORWARD or BACKWARD.
        backend: one of the BACKEND constants.
        segments: descriptors, whose views have the addresses of the first run.
        threads: how many may take part; 0: the library's own rule.
        borrowed: what the descriptors' names point to, kept as long as the plan.
    """

    __slots__ = ("_borrowed", "_spare", "handle", "template", "workspace_size")

    def __init__(
        self, direction: int, backend: int, segments: Sequence[Segment], threads: int, borrowed: Sequence[Any]
    ) -> None:
        self.handle = c_void_p()
        self._borrowed = borrowed
        array = (Segment * len(segments))(*segments)
        problem = Problem(ctypes.sizeof(Problem), direction, backend, array, len(segments), threads, None)
        status = LIBRARY.nr_plan_create(byref(self.handle), byref(problem))
        if status == _INVALID and backend == BACKEND_CUDA and b"backend" in LIBRARY.nr_last_error():
            raise NotImplementedError(f"{LIBRARY._name}: has no CUDA backend, expected one for tensors on CUDA devices")
        check(status)
        self.workspace_size: int = LIBRARY.nr_plan_workspace_size(self.handle)
        self.template = bytes(array)
        self._spare: list[tuple[Any, memoryview, int]] = []

    def run(
        self, words: Sequence[int], addresses: Sequence[int], workspace: int | None, stream: int | None = None
    ) -> None:
        """Runs it on other addresses: `addresses[i]` goes to word `words[i]` of the segments.

        Args:
            words: indices of 64-bit words: SEGMENT_WORDS * segment + ADDRESS_WORD[view].
            addresses: of every view that was present when planned.
            workspace: the address of `workspace_size` bytes.
            stream: of the backend's device; None on the CPU.
        """
        try:
            spare = self._spare.pop()  # which no other thread has now
        except IndexError:
            memory = (c_char * len(self.template)).from_buffer(bytearray(self.template))
            spare = memory, memoryview(memory).cast("B").cast("Q"), ctypes.addressof(memory)
        _, view, segments = spare
        for word, address in zip(words, addresses):
            view[word] = address
        status = LIBRARY.nr_plan_run(self.handle, segments, workspace, self.workspace_size, stream)
        self._spare.append(spare)
        if status:
            check(status)

    def __del__(self) -> None:
        if self.handle:
            LIBRARY.nr_plan_destroy(self.handle)
