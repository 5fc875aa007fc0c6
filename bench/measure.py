"""How variants are compared: agreement first, then memory in processes of their own, then time, in turns."""

import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ctypes import memmove
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import probe
from cases import Case, gradient
from variants import Torch, Variant

WARM_UP = 2
SETTLE = 0.005  # seconds before each timed call: threads that still wait for work have gone to sleep

# How far rows may be from what PyTorch computes in float32, in epsilons of their dtype at the largest value of the row:
# PyTorch rounds to the dtype between its steps. Parameter gradients likewise, at their largest value; sums over rows in
# float32 differ by more, with the square root of the rows.
TOLERANCE = {torch.float32: 16, torch.float16: 4, torch.bfloat16: 4}


class DisagreementError(Exception):
    """Two variants computed different things; nothing is timed."""


class Copies:
    """Half the bytes read, half written: by torch's copy_, and by memcpy on as many threads."""

    def __init__(self, size: int, threads: int) -> None:
        half = -(-size // 128) * 64
        self.source = torch.ones(half, dtype=torch.uint8)
        self.target = torch.zeros(half, dtype=torch.uint8)
        edges = [half * i // threads // 64 * 64 for i in range(threads)] + [half]
        source, target = self.source.data_ptr(), self.target.data_ptr()
        self.shares = [(target + first, source + first, end - first) for first, end in pairwise(edges)]
        self.pool = ThreadPoolExecutor(threads)

    def torch_copy(self) -> None:
        """By torch, which splits it over its threads."""
        self.target.copy_(self.source)

    def memcpy(self) -> None:
        """By the C library, a share on each thread."""
        others = [self.pool.submit(memmove, *share) for share in self.shares[1:]]
        memmove(*self.shares[0])
        for other in others:
            other.result()

    def close(self) -> None:
        """Ends the threads."""
        self.pool.shutdown()

    @property
    def works(self) -> dict[str, Callable[[], Any]]:
        """Both, by name."""
        return {"torch_copy": self.torch_copy, "memcpy": self.memcpy}


def moved_bytes(case: Case, direction: str) -> int:
    """What the operator reads and writes in this direction, each tensor once; as `normrope bench` counts."""
    backward = direction == "backward"
    names = {gradient(joined) for joined in case.joined}  # as large as the outputs
    parameters = {name for s in case.segments for name in (s.weight, s.bias) if name}
    if any(s.rotates for s in case.segments):
        names |= {"ropeCos", "ropeSin"}
    names |= {s.x for s in case.segments if s.norm or not backward}
    names |= {name for s in case.segments for name in (s.weight, None if backward else s.bias) if name}
    moved = sum(case.tensors[name].nbytes for name in names)
    if backward:
        moved += sum(case.tensors[name].nbytes for name in parameters.union(s.x for s in case.segments))
    for s in case.segments:
        if s.norm:
            moved += (2 if s.has_mean else 1) * 4 * s.batch * s.length * (1 if s.all_heads else s.heads)
    return moved


def _difference(exact: Tensor, found: Tensor, axes: tuple[int, ...], eps: float) -> float:
    """The largest one, in epsilons of the largest value along these axes."""
    exact, found = exact.detach().float(), found.detach().float()
    unit = eps * exact.abs().amax(axes, keepdim=True)
    return torch.where(exact == found, 0.0, (exact - found).abs() / unit).nan_to_num(nan=float("inf")).max().item()


def differences(case: Case, exact: dict[str, Tensor], found: dict[str, Tensor]) -> dict[str, float]:
    """The largest ones of rows and of parameter gradients, in the units of TOLERANCE."""
    eps = torch.finfo(case.dtype).eps
    across_heads = {gradient(s.x) for s in case.segments if s.all_heads}
    worst = {"rows": 0.0, "parameters": 0.0}
    for name, tensor in exact.items():
        rows = tensor.dim() == 4
        axes = ((-2, -1) if name in across_heads else (-1,)) if rows else tuple(range(tensor.dim()))
        kind = "rows" if rows else "parameters"
        worst[kind] = max(worst[kind], _difference(tensor, found[name], axes, eps))
    return worst


def check_agreement(case: Case, direction: str, variants: Sequence[Variant]) -> dict[str, dict[str, float]]:
    """Holds every variant's results against PyTorch's in float32, which round no step to a smaller dtype.

    PyTorch's parameter gradients of smaller dtypes are reported and not judged: it may add them up in that dtype.

    Raises:
        DisagreementError: a variant is beyond the tolerance.
    """
    wide = Torch("float32", case.in_float32(), lambda module: module, keep_graph=False)
    wide.open(direction)
    exact = wide.results(direction, wide.run(direction))
    count = max(s.batch * s.length * s.heads for s in case.segments)
    tolerance = TOLERANCE[case.dtype]
    sums = tolerance + count**0.5 * torch.finfo(torch.float32).eps / torch.finfo(case.dtype).eps
    found = {}
    for variant in variants:
        found[variant.name] = worst = differences(case, exact, variant.results(direction, variant.run(direction)))
        judged = variant.name == "operator" or case.dtype == torch.float32
        if worst["rows"] > tolerance or (judged and worst["parameters"] > sums):
            raise DisagreementError(f"{direction}: {variant.name} is not what float32 gives, in epsilons: {worst}")
    return found


def probe_memory(path: Path, name: str, library: Path, threads: int) -> dict[str, dict[str, Any]]:
    """By direction: memory, and the kinds of oneDNN primitives that ran; see probe.py."""
    command = [sys.executable, probe.__file__, path, name, "--library", library, "--threads", str(threads)]
    environment = os.environ | {"ONEDNN_VERBOSE": "1"}
    environment.pop("THP_MEM_ALLOC_ENABLE", None)  # whole huge pages would count as used
    answer = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    found: dict[str, Any] = {}
    primitives: dict[str, set[str]] = {}
    direction = ""
    for line in answer.splitlines():
        if line.startswith(probe.MARK + "{"):
            found = json.loads(line.removeprefix(probe.MARK))
        elif line.startswith(probe.MARK):
            direction = line.removeprefix(probe.MARK)
        elif direction and line.startswith("onednn_verbose") and ",primitive,exec," in line:
            primitives.setdefault(direction, set()).add(line.split(",")[5])
    return {d: memory | {"onednn_primitives": sorted(primitives.get(d, ()))} for d, memory in found.items()}


def _seconds(work: Callable[[], Any]) -> float:
    time.sleep(SETTLE)
    start = time.perf_counter()
    returned = work()
    seconds = time.perf_counter() - start
    del returned  # which gives memory back, after the time
    return seconds


def time_in_turns(
    works: dict[str, Callable[[], Any]], repeat: int, advance: Callable[[], None]
) -> dict[str, list[float]]:
    """Seconds of each, round by round, after WARM_UP rounds that are not measured."""
    samples: dict[str, list[float]] = {name: [] for name in works}
    gc.collect()
    gc.disable()
    try:
        for number in range(-WARM_UP, repeat):
            for name, work in works.items():
                seconds = _seconds(work)
                if number >= 0:
                    samples[name].append(seconds)
            advance()
    finally:
        gc.enable()
    return samples


def summary(samples: list[float]) -> dict[str, Any]:
    """As in `normrope bench --json`."""
    lower, median, upper = statistics.quantiles(samples, n=4, method="inclusive") if samples[1:] else samples * 3
    return {
        "median": median,
        "lower_quartile": lower,
        "upper_quartile": upper,
        "least": min(samples),
        "most": max(samples),
        "samples": samples,
    }


def ratios(seconds: dict[str, dict[str, Any]], to: str, names: Iterable[str]) -> dict[str, float]:
    """Medians over another's."""
    return {name: seconds[name]["median"] / seconds[to]["median"] for name in names}
