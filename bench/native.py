"""What the comparison calls of include/normrope.h, on torch's tensors; the one place that mirrors its layouts."""

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, Structure, byref, c_char_p, c_double, c_int, c_int32, c_int64, c_size_t, c_void_p
from pathlib import Path

import torch

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
DIRECTIONS = {"forward": 0, "backward": 1}
ALIGNMENT = 64


class View(Structure):
    """nr_view: indexed [batch, sequence, head, channel], strides in elements."""

    _fields_ = (("data", c_void_p), ("stride", c_int64 * 4), ("dtype", c_int), ("name", c_char_p))


VIEWS = (
    *("x", "y", "mean", "rstd", "weight", "bias", "cos", "sin"),
    *("grad_y", "grad_x", "grad_weight", "grad_bias", "grad_cos", "grad_sin"),
)


class Segment(Structure):
    """nr_segment, with nr_segment_default's size; everything else is absent until set."""

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

    def __init__(self) -> None:
        super().__init__(struct_size=ctypes.sizeof(Segment))


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


class Error(RuntimeError):
    """What nr_last_error says."""


def view(tensor: torch.Tensor) -> View:
    """The tensor's own memory as an nr_view. It must be [B, S, N, D]; what is shared over an axis is expanded to it."""
    if tensor.dim() != 4:
        raise ValueError(f"a view has 4 axes, not {tensor.dim()}")
    return View(tensor.data_ptr(), (c_int64 * 4)(*tensor.stride()), DTYPES[tensor.dtype], None)


class Library:
    """The shared library.

    Import torch first: both then use the OpenMP runtime that torch brings, and the threads of one do not wait for work
    on the processors that the other needs.
    """

    def __init__(self, path: Path) -> None:
        self.so = so = ctypes.CDLL(str(path))
        so.nr_plan_create.argtypes = (POINTER(c_void_p), POINTER(Problem))
        so.nr_plan_destroy.argtypes = (c_void_p,)
        so.nr_plan_destroy.restype = None
        so.nr_plan_workspace_size.argtypes = (c_void_p,)
        so.nr_plan_workspace_size.restype = c_size_t
        so.nr_plan_run.argtypes = (c_void_p, POINTER(Segment), c_void_p, c_size_t, c_void_p)
        so.nr_default_threads.restype = c_int32
        for name in ("nr_last_error", "nr_version", "nr_isa_default"):
            getattr(so, name).restype = c_char_p

    def check(self, status: int) -> None:
        """Raises the thread's last error unless the status is NR_OK."""
        if status:
            raise Error(self.so.nr_last_error().decode())

    @property
    def version(self) -> str:
        """Of the library that runs."""
        return self.so.nr_version().decode()

    @property
    def isa(self) -> str:
        """The instruction set that a plan takes."""
        return self.so.nr_isa_default().decode()

    @property
    def threads(self) -> int:
        """How many threads a plan takes without being told."""
        return self.so.nr_default_threads()


class Plan:
    """A plan with its workspace. The segments' tensors are borrowed: keep them as long as the plan."""

    def __init__(self, library: Library, direction: str, segments: Sequence[Segment], threads: int) -> None:
        self.library, self.handle = library, c_void_p()
        array = (Segment * len(segments))(*segments)
        problem = Problem(ctypes.sizeof(Problem), DIRECTIONS[direction], 0, array, len(segments), threads, None)
        library.check(library.so.nr_plan_create(byref(self.handle), byref(problem)))
        self.size = library.so.nr_plan_workspace_size(self.handle)
        self.workspace = torch.empty(self.size + ALIGNMENT, dtype=torch.uint8)
        self.address = -(-self.workspace.data_ptr() // ALIGNMENT) * ALIGNMENT

    def run(self) -> None:
        """Runs it on the tensors that it was made with."""
        self.library.check(self.library.so.nr_plan_run(self.handle, None, self.address, self.size, None))

    def __del__(self) -> None:
        if self.handle:
            self.library.so.nr_plan_destroy(self.handle)
