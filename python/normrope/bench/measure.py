"""How variants are compared: agreement first, then memory in processes of their own, then time, in turns."""

from __future__ import annotations

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
from typing import Any

import torch
from torch import Tensor

from normrope.bench import probe
from normrope.bench.presets import Case
from normrope.bench.variants import Variant, make

WARM_UP = 2
SETTLE = 0.005  # seconds before each timed call: threads that still wait for work have gone to sleep

# How far rows may be from what PyTorch computes in float32, in epsilons of their dtype at the largest value of the row:
# PyTorch rounds to the dtype between its steps. Parameter gradients likewise, at their largest value; sums over rows in
# float32 differ by more, with the square root of the rows.
TOLERANCE = {torch.float32: 64, torch.float16: 4, torch.bfloat16: 4}


class DisagreementError(Exception):
    """Two variants computed different things; nothing is timed."""


class Copies:
    """Half the bytes read, half written: by torch's copy_, and by memcpy on as many threads."""

    def __init__(self, size: int, threads: int, device: str) -> None:
        half = -(-size // 128) * 64
        self.source = torch.ones(half, dtype=torch.uint8, device=device)
        self.target = torch.zeros(half, dtype=torch.uint8, device=device)
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
        """Both, by name; in a device's memory there is torch's alone."""
        host = {} if self.source.is_cuda else {"memcpy": self.memcpy}
        return {"torch_copy": self.torch_copy, **host}


def moved_bytes(case: Case, direction: str) -> int:
    """What the operator reads and writes in this direction, each tensor once; as `normrope bench` counts."""
    if direction == "both":
        return moved_bytes(case, "forward") + moved_bytes(case, "backward")
    backward, p = direction == "backward", case.preset
    once = {id(t): (name, t) for name, t in reversed(list(case.tensors.items()))}
    moved = case.output_bytes
    for name, tensor in once.values():
        projection = name.rpartition("_")[2]
        if name.startswith("norm"):
            bias = projection == "bias"
            moved += tensor.nbytes * (
                (1 if bias else 2) if backward else 1
            )  # weights are read and their gradients written
        elif name.startswith("rope"):
            moved += tensor.nbytes
        else:
            norm = "none" if projection == "value" else p.norm_added if name.startswith("encoder") else p.norm
            moved += tensor.nbytes * ((norm != "none") + 1 if backward else 1)
            if norm != "none":
                rows = p.batch * tensor.shape[1] * (1 if p.scope == "all_heads" else p.heads)
                moved += (2 if norm.startswith("layer") else 1) * 4 * rows
    return moved


def _difference(exact: Tensor, found: Tensor, axes: tuple[int, ...], eps: float) -> float:
    """The largest one, in epsilons of the largest value along these axes."""
    exact, found = exact.detach().float(), found.detach().float()
    unit = eps * exact.abs().amax(axes, keepdim=True)
    return torch.where(exact == found, 0.0, (exact - found).abs() / unit).nan_to_num(nan=float("inf")).max().item()


def differences(case: Case, exact: dict[str, Tensor], found: dict[str, Tensor]) -> dict[str, float]:
    """The largest ones of rows and of parameter gradients, in the units of TOLERANCE."""
    eps = torch.finfo(case.dtype).eps
    worst = {"rows": 0.0, "parameters": 0.0}
    for name, tensor in exact.items():
        rows = tensor.dim() == 4
        axes = ((-2, -1) if case.preset.scope == "all_heads" else (-1,)) if rows else tuple(range(tensor.dim()))
        kind = "rows" if rows else "parameters"
        worst[kind] = max(worst[kind], _difference(tensor, found[name], axes, eps))
    return worst


def check_agreement(case: Case, direction: str, variants: Sequence[Variant]) -> dict[str, dict[str, float]]:
    """Holds every variant's results against PyTorch's in float32, which round no step to a smaller dtype.

    PyTorch's parameter gradients of smaller dtypes are reported and not judged: it may add them up in that dtype.

    Raises:
        DisagreementError: a variant is beyond the tolerance.
    """
    wide = make("eager", case.mapped(lambda t: t.float()), keep_graph=False)
    wide.open(direction)
    exact = wide.results(direction, wide.run(direction))
    p = case.preset
    tolerance = TOLERANCE[case.dtype]
    count = p.batch * max(p.image, p.text) * p.heads
    sums = tolerance + count**0.5 * torch.finfo(torch.float32).eps / torch.finfo(case.dtype).eps
    found = {}
    for variant in variants:
        found[variant.name] = worst = differences(case, exact, variant.results(direction, variant.run(direction)))
        judged = variant.name in ("operator", "normrope") or case.dtype == torch.float32
        if worst["rows"] > tolerance or (judged and worst["parameters"] > sums):
            raise DisagreementError(f"{direction}: {variant.name} is not what float32 gives, in epsilons: {worst}")
    return found


def probe_memory(arguments: Sequence[str]) -> dict[str, dict[str, Any]]:
    """By direction: memory, and the kinds of oneDNN primitives that ran; see probe.py, whose arguments these are."""
    command = [sys.executable, "-m", probe.__name__, *arguments]
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


def _finish() -> None:
    """Waits for what a device still does."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _seconds(work: Callable[[], Any]) -> float:
    time.sleep(SETTLE)
    _finish()
    start = time.perf_counter()
    returned = work()
    _finish()
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
