"""The operator on a CUDA device beside PyTorch: eager, torch.compile, and separate kernels where they are installed.

Presets come from `normrope info --json`. Everything is held against PyTorch in float32 before it is timed, by graph
replay where a variant can be captured and by events otherwise, over sets of tensors that exceed the second-level
cache. JSON to standard output.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from normrope import _native as native
from normrope.bench.models import rotate

DTYPES = {torch.float32: native.F32, torch.float16: native.F16, torch.bfloat16: native.BF16}
TOLERANCE = {torch.float32: 2e-4, torch.bfloat16: 3e-2}  # of the largest value, against float32
NORMS = {2: "layer", 4: "rms"}
CACHE_TIMES, LEAST_BYTES = 3, 1 << 28


def view(tensor: Tensor) -> native.View:
    """The memory of [B, S, N, D], or of what is expanded to it, as an nr_view."""
    strides = (native.c_int64 * 4)(*tensor.stride())
    return native.View(tensor.data_ptr(), strides, DTYPES[tensor.dtype], None)


class Problem:
    """Query, key and value of one or two streams, joined [B, N, S, D]; the tensors of one set."""

    def __init__(self, preset: dict, dtype: torch.dtype, device: str, seed: int) -> None:
        random = torch.Generator(device).manual_seed(seed)

        def numbers(*shape: int, kind: torch.dtype = dtype) -> Tensor:
            return torch.randn(*shape, generator=random, device=device).to(kind)

        self.preset, self.dtype = preset, dtype
        heads, dim = preset["heads"], preset["dim"]
        self.lengths = [preset["image"]] + ([preset["text"]] if preset["text"] else [])
        self.total = sum(self.lengths)
        self.text_first = preset["order"] == 1
        self.norm = preset["norm"]
        self.x = {(p, s): numbers(1, n, heads, dim) for p in "qkv" for s, n in enumerate(self.lengths)}
        self.grads = {p: numbers(1, heads, self.total, dim) for p in "qkv"}
        weights = [(p, s) for p in "qk" for s in range(len(self.lengths))]
        self.weight = {key: numbers(dim) for key in weights}
        self.bias = {key: numbers(dim) for key in weights if self.norm == 2}
        angles = torch.rand(self.total, dim // 2, generator=random, device=device) * 6.28
        half = preset["rope"] == "half"
        angles = torch.cat([angles, angles], -1) if half else angles.repeat_interleave(2, -1)
        self.rope = preset["rope"] != "none"
        self.cos, self.sin = angles.cos().to(dtype), angles.sin().to(dtype)

    def start(self, stream: int) -> int:
        """Where a stream begins in the joined tensor."""
        return 0 if len(self.lengths) == 1 or (stream == 1) == self.text_first else self.lengths[1 - stream]

    @property
    def bytes(self) -> int:
        """About what a set takes, with its results."""
        return sum(t.numel() * t.element_size() for t in (*self.x.values(), *self.grads.values())) * 2


class Module(nn.Module):
    """As models write it; `norm` and `rope` may be someone's kernels."""

    def __init__(self, problem: Problem, norm: Callable, rope: Callable) -> None:
        super().__init__()
        self.p, self.norm, self.rope = problem, norm, rope

    def forward(self, x: dict, weight: dict, bias: dict, cos: Tensor, sin: Tensor) -> list[Tensor]:
        """The joined tensors."""
        joined = []
        for part in "qkv":
            streams = []
            for stream in range(len(self.p.lengths)):
                rows = x[part, stream]
                if part != "v":
                    rows = self.norm(rows, weight[part, stream], bias.get((part, stream)))
                streams.append(rows.transpose(1, 2))
            if self.p.text_first:
                streams.reverse()
            rows = torch.cat(streams, 2) if len(streams) > 1 else streams[0]
            if part != "v" and self.p.rope:
                rows = self.rope(rows, cos, sin, self.p.preset["rope"] != "half")
            joined.append(rows.contiguous())
        return joined


def plain_norm(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """PyTorch's own: LayerNorm where there is a bias, else RMSNorm."""
    if bias is None:
        return nn.functional.rms_norm(x, x.shape[-1:], weight, 1e-6)
    return nn.functional.layer_norm(x, x.shape[-1:], weight, bias, 1e-6)


def separate_norms() -> dict[str, Callable]:
    """Tuned kernels for the norm alone, of those that are installed."""
    found: dict[str, Callable] = {}
    try:
        from quack import rmsnorm  # type: ignore[import-not-found]

        found["quack"] = lambda x, w, b: rmsnorm(x.reshape(-1, x.shape[-1]), w, eps=1e-6).view_as(x)
    except ImportError:
        pass
    try:
        from liger_kernel.ops.layer_norm import LigerLayerNormFunction  # type: ignore[import-not-found]
        from liger_kernel.ops.rms_norm import LigerRMSNormFunction  # type: ignore[import-not-found]

        def liger(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
            if b is not None:
                return LigerLayerNormFunction.apply(x, w, b, 1e-6)
            return LigerRMSNormFunction.apply(x, w, 1e-6, 0.0, "llama", False)

        found["liger"] = liger
    except ImportError:
        pass
    return found


class Torch:
    """A variant that PyTorch differentiates."""

    def __init__(self, problem: Problem, norm: Callable = plain_norm, compiled: bool = False) -> None:
        self.p = problem
        module = Module(problem, norm, rotate)
        self.call = torch.compile(module, fullgraph=True, dynamic=False) if compiled else module
        groups = (problem.x, problem.weight, problem.bias)
        self.inputs = [{k: t.detach().requires_grad_() for k, t in group.items()} for group in groups]
        self.leaves = [t for group in self.inputs for t in group.values()]

    def forward(self) -> list[Tensor]:
        """The outputs, with their graph."""
        return self.call(*self.inputs, self.p.cos, self.p.sin)

    def prepare(self, direction: str) -> Callable[[], list[Tensor]]:
        """What is timed: it returns outputs, or gradients of rows, weights and biases."""
        if direction == "forward":
            return self.forward
        outputs, grads = self.forward(), list(self.p.grads.values())
        return lambda: list(torch.autograd.grad(outputs, self.leaves, grads, retain_graph=True))


class Ours:
    """The operator; the backward reads the statistics of a forward."""

    def __init__(self, problem: Problem) -> None:
        self.p = problem
        self.joined = {p: torch.empty_like(g) for p, g in problem.grads.items()}
        self.grad_x = {k: torch.empty_like(t) for k, t in problem.x.items()}
        self.grad_weight = {k: torch.empty_like(t) for k, t in problem.weight.items()}
        self.grad_bias = {k: torch.empty_like(t) for k, t in problem.bias.items()}
        shape = {k: t.shape[:3] for k, t in problem.x.items()}
        device = problem.cos.device
        self.mean = {k: torch.empty(*s, 1, device=device) for k, s in shape.items()}
        self.rstd = {k: torch.empty(*s, 1, device=device) for k, s in shape.items()}
        self.plans = {direction: self._plan(direction) for direction in ("forward", "backward")}

    def _plan(self, direction: str) -> tuple[native.Plan, Tensor]:
        backward = direction == "backward"
        segments = [self._segment(key, backward) for key in self.p.x]
        plan = native.Plan(int(backward), native.BACKEND_CUDA, segments, 0, ())
        return plan, torch.empty(plan.workspace_size + 64, dtype=torch.uint8, device=self.p.cos.device)

    def _segment(self, key: tuple[str, int], backward: bool) -> native.Segment:
        part, stream = key
        x = self.p.x[key]
        segment = native.Segment(struct_size=ctypes.sizeof(native.Segment))
        segment.batch, segment.length, segment.heads, segment.dim = x.shape
        segment.eps = 1e-6
        first = self.p.start(stream)
        rows = slice(first, first + x.shape[1])
        joined = (self.p.grads if backward else self.joined)[part][:, :, rows].transpose(1, 2)
        views = {"x": x, ("grad_y" if backward else "y"): joined}
        if backward:
            views["grad_x"] = self.grad_x[key]
        if part != "v":
            segment.norm = self.p.norm
            views["rstd"] = self.rstd[key].expand(x.shape)
            named = [("weight", self.p.weight, self.grad_weight)]
            if self.p.norm == 2:
                views["mean"] = self.mean[key].expand(x.shape)
                named.append(("bias", self.p.bias, self.grad_bias))
            for field, values, grads in named:
                views[field] = values[key].expand(x.shape)
                if backward:
                    views["grad_" + field] = grads[key].expand(x.shape)
            if self.p.rope:
                dim = x.shape[3]
                segment.rope_width = dim if self.p.preset["rope"] == "half" else 2
                segment.rope_length, segment.rope_position = self.p.total, first
                for field, table in (("cos", self.p.cos), ("sin", self.p.sin)):
                    views[field] = table[None, :, None, :].expand(1, self.p.total, x.shape[2], dim)
        for field, tensor in views.items():
            setattr(segment, field, view(tensor))
        return segment

    def _run(self, direction: str) -> list[Tensor]:
        plan, workspace = self.plans[direction]
        plan.run((), (), workspace.data_ptr(), torch.cuda.current_stream().cuda_stream)
        if direction == "forward":
            return list(self.joined.values())
        return [t for group in (self.grad_x, self.grad_weight, self.grad_bias) for t in group.values()]

    def prepare(self, direction: str) -> Callable[[], list[Tensor]]:
        """As Torch's."""
        self._run("forward")
        return lambda: self._run(direction)


def worst(exact: list[Tensor], found: list[Tensor]) -> float:
    """The largest difference, of the largest value of its tensor."""
    pairs = zip(exact, found, strict=True)
    return max(((a.float() - b.float()).abs().max() / a.float().abs().max()).item() for a, b in pairs)


def microseconds(works: list[Callable], repeat: int) -> float:
    """The median time of one of them, run one after the other."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for work in works * 2:
            work()
    side.synchronize()
    replay: Callable[[], object]
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for work in works:
                work()
        replay = graph.replay
    except RuntimeError:
        torch.cuda.synchronize()

        def replay() -> None:
            for work in works:
                work()

    samples = []
    for number in range(repeat + 2):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        replay()
        end.record()
        end.synchronize()
        if number >= 2:
            samples.append(1e3 * start.elapsed_time(end) / len(works))
    return statistics.median(samples)


def compare(preset: dict, dtype: torch.dtype, direction: str, repeat: int) -> dict:
    """One line of the result."""
    problems = [Problem(preset, dtype, "cuda", 1)]
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    problems += [
        Problem(preset, dtype, "cuda", seed)
        for seed in range(2, 2 + min(7, max(LEAST_BYTES, CACHE_TIMES * cache) // problems[0].bytes))
    ]
    wide = Problem(preset, torch.float32, "cuda", 1)
    for name in ("x", "grads", "weight", "bias"):
        setattr(wide, name, {k: t.float() for k, t in getattr(problems[0], name).items()})
    wide.cos, wide.sin = problems[0].cos.float(), problems[0].sin.float()
    exact = Torch(wide).prepare(direction)()
    makers: dict[str, Callable[[Problem], Torch | Ours]] = {
        "operator": Ours,
        "eager": Torch,
        "compile": partial(Torch, compiled=True),
    }
    for name, norm in separate_norms().items():
        if name != "quack" or preset["norm"] == 4:
            makers[name] = partial(Torch, norm=norm)
    found: dict[str, float] = {}
    not_taken: dict[str, str] = {}
    for name, make in makers.items():
        try:
            works = [make(p).prepare(direction) for p in problems]
            off = worst(exact, works[0]())
            if off > TOLERANCE[dtype] * (4 if name != "operator" else 1):
                raise ValueError(f"differs from float32 by {off:.2g} of the largest value")
            found[name] = microseconds(works, repeat)
        except Exception as error:  # others' kernels fail in their own ways
            if name == "operator":
                raise
            not_taken[name] = str(error).strip().splitlines()[-1][:200] if str(error) else type(error).__name__
        torch.cuda.empty_cache()
    return {
        **{"preset": preset["name"], "dtype": str(dtype).removeprefix("torch."), "direction": direction},
        **{"microseconds": found, "not_taken": not_taken},
    }


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--command", type=Path, required=True, help="the command normrope, which knows the presets")
    parser.add_argument("--preset", default="flux-ln,flux", help="with commas (flux-ln,flux)")
    parser.add_argument("--dtype", default="bfloat16", help="bfloat16 or float32, with a comma (bfloat16)")
    parser.add_argument("--repeat", type=int, default=15)
    arguments = parser.parse_args()
    said = subprocess.run([arguments.command, "info", "--json"], check=True, capture_output=True).stdout
    known = json.loads(said)["presets"]
    presets = {p["name"]: p for p in known}
    results = [
        compare(presets[name], getattr(torch, dtype), direction, arguments.repeat)
        for name in arguments.preset.split(",")
        for dtype in arguments.dtype.split(",")
        for direction in ("forward", "backward")
    ]
    heading = {"torch": torch.__version__, "device": torch.cuda.get_device_name(0), "results": results}
    json.dump(heading, sys.stdout, indent=2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
