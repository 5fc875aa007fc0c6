"""What is compared: our operator and PyTorch's ways to compute the same, behind one small interface."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._functorch import config as functorch_config

import native
from cases import Case, Segment, gradient
from rope import rotate


class Variant:
    """One way to compute a case.

    `open` prepares a direction, `run` is what is timed, `results` names the tensors in what `run` returned, and `close`
    drops everything that a direction holds. `directions` are those that it can compute, `missing` says why not the
    others.
    """

    name: str
    directions: tuple[str, ...] = ("forward", "backward")
    missing: str = ""

    def open(self, direction: str) -> None:
        """Does what comes before the timed part."""

    def run(self, direction: str) -> Any:
        """Computes; what it returns belongs to the caller."""
        raise NotImplementedError

    def results(self, direction: str, returned: Any) -> dict[str, Tensor]:
        """Outputs [B, N, S, D], or gradients in the shapes of their tensors, by the names in the case."""
        raise NotImplementedError

    def close(self) -> None:
        """Drops results and preparations."""


class Ours(Variant):
    """The operator through its native interface. The first run of a direction takes the memory that it needs."""

    name = "operator"

    def __init__(self, case: Case, library: native.Library, threads: int) -> None:
        self.case, self.library, self.threads = case, library, threads
        self.close()

    def close(self) -> None:
        """Drops plans, outputs, statistics and gradients."""
        self.tensors: dict[str, Tensor] = {}
        self.plans: dict[str, native.Plan] = {}

    def open(self, direction: str) -> None:
        """The backward reads the statistics of a forward."""
        if direction == "backward":
            self.run("forward")

    def run(self, direction: str) -> dict[str, Tensor]:
        """Runs the plan, after making it if this is the first time."""
        if direction not in self.plans:
            segments = [self._segment(s, direction) for s in self.case.segments]
            self.plans[direction] = native.Plan(self.library, direction, segments, self.threads)
        self.plans[direction].run()
        return self.tensors

    def results(self, direction: str, returned: dict[str, Tensor]) -> dict[str, Tensor]:
        """As in Variant."""
        if direction == "forward":
            return {name: returned[name] for name in self.case.joined}
        return {name: tensor for name, tensor in returned.items() if name.startswith("grad")}

    def _take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        if name not in self.tensors:
            self.tensors[name] = torch.empty(shape, dtype=dtype)
        return self.tensors[name]

    def _segment(self, s: Segment, direction: str) -> native.Segment:
        data, shape = self.case.tensors, (s.batch, s.length, s.heads, s.dim)
        segment = native.Segment()
        for field in ("batch", "length", "heads", "dim", "norm", "eps"):
            setattr(segment, field, getattr(s, field))
        segment.scope = int(s.all_heads)
        views: dict[str, Tensor] = {"x": data[s.x]}
        if s.rotates:
            segment.rope_width, segment.rope_length, segment.rope_position = (
                s.rope_width,
                s.rope_length,
                s.rope_position,
            )
            for field, name in (("cos", "ropeCos"), ("sin", "ropeSin")):
                table = data[name]
                views[field] = table[:, None, :].expand(s.batch, len(table), s.heads, s.dim)
        for field in ("mean", "rstd"):
            if s.norm and (field == "rstd" or s.has_mean):
                statistics = (s.batch, s.length, 1 if s.all_heads else s.heads, 1)
                views[field] = self._take(f"{field} of {s.x}", statistics, torch.float32).expand(shape)
        for field, name in (("weight", s.weight), ("bias", s.bias)):
            if not name:
                continue
            views[field] = data[name].expand(shape)
            if direction == "backward":
                taken = self._take(gradient(name), tuple(data[name].shape), data[name].dtype)
                views["grad_" + field] = taken.expand(shape)
        gradient_in = data[gradient(s.joined)]
        if direction == "forward":
            joined = self._take(s.joined, tuple(gradient_in.shape), gradient_in.dtype)
            views["y"] = _part(joined, s)
        else:
            views["grad_y"] = _part(gradient_in, s)
            views["grad_x"] = self._take(gradient(s.x), shape, data[s.x].dtype)
        for field, tensor in views.items():
            setattr(segment, field, native.view(tensor))
        return segment


def _part(joined: Tensor, s: Segment) -> Tensor:
    """A stream's rows in a joined tensor, as [B, S, N, D]."""
    return joined[:, :, s.position : s.position + s.length].transpose(1, 2)


class NormRopeConcat(nn.Module):
    """The step as models write it: norm of [B, S, N, D], transpose, concat, rope.

    Streams come as projections leave them, [B, S, N * D], and in the order of the case's segments. Concat makes the
    transposed rows contiguous, so there is no pass for that alone; rope comes after it where all rows rotate.
    """

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.outputs = tuple(case.joined.values())
        self.order = {s.x: i for i, s in enumerate(case.segments)}
        self.norms = nn.ModuleDict()
        for s in case.segments:
            if s.norm:
                self.norms[s.weight or s.x] = self._norm(case, s)
        if "ropeCos" in case.tensors:
            self.register_buffer("cos", case.tensors["ropeCos"])
            self.register_buffer("sin", case.tensors["ropeSin"])

    @staticmethod
    def _norm(case: Case, s: Segment) -> nn.Module:
        size = s.heads * s.dim if s.all_heads else s.dim
        if s.has_mean:
            norm = nn.LayerNorm(size, eps=s.eps, elementwise_affine=s.weight is not None, dtype=case.dtype)
        else:
            norm = nn.RMSNorm(size, eps=s.eps, elementwise_affine=s.weight is not None, dtype=case.dtype)
        for field, name in (("weight", s.weight), ("bias", s.bias)):
            if name:
                setattr(norm, field, nn.Parameter(case.tensors[name].flatten()))
        return norm

    def _normed(self, s: Segment, x: Tensor) -> Tensor:
        if s.norm and s.all_heads:
            x = self.norms[s.weight or s.x](x)
        x = x.unflatten(-1, (s.heads, -1))
        if s.norm and not s.all_heads:
            x = self.norms[s.weight or s.x](x)
        return x.transpose(1, 2)

    def _rotated(self, x: Tensor, s: Segment, length: int) -> Tensor:
        rows = slice(s.rope_position, s.rope_position + length)
        return rotate(x, self.cos[rows], self.sin[rows], s.rope_width == 2)

    def forward(self, *streams: Tensor) -> tuple[Tensor, ...]:
        """The joined tensors [B, N, S, D], contiguous."""
        joined = []
        for segments in self.outputs:
            parts = [self._normed(s, streams[self.order[s.x]]) for s in segments]
            together = all(s.rotates for s in segments)
            if not together:
                rows = zip(segments, parts, strict=True)
                parts = [self._rotated(x, s, s.length) if s.rotates else x for s, x in rows]
            x = torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]
            if together:
                x = self._rotated(x, segments[0], x.shape[2])
            joined.append(x.contiguous())
        return tuple(joined)


class Torch(Variant):
    """PyTorch with automatic differentiation. The forward records its graph, the backward is that alone.

    keep_graph: the graph survives the backward, which can then be repeated; otherwise it is given up on the way, as in
    training.
    """

    def __init__(self, name: str, case: Case, wrap: Callable[[nn.Module], Callable], keep_graph: bool) -> None:
        self.name, self.case, self.keep_graph = name, case, keep_graph
        module = NormRopeConcat(case)
        self.call = wrap(module)
        self.streams = {s.x: case.tensors[s.x].flatten(2).detach().requires_grad_() for s in case.segments}
        self.inputs = dict(self.streams)
        for s in case.segments:
            for field, tensor in (("weight", s.weight), ("bias", s.bias)):
                if tensor:
                    self.inputs[tensor] = getattr(module.norms[s.weight], field)
        self.gradients = tuple(case.tensors[gradient(name)] for name in case.joined)
        self.outputs: tuple[Tensor, ...] = ()

    def open(self, direction: str) -> None:
        """The graph that the backward walks."""
        if direction == "backward":
            self.outputs = self.call(*self.streams.values())

    def run(self, direction: str) -> tuple[Tensor, ...]:
        """The outputs with their graph, or the gradients of everything that has one."""
        if direction == "forward":
            return self.call(*self.streams.values())
        inputs = tuple(self.inputs.values())
        return torch.autograd.grad(self.outputs, inputs, self.gradients, retain_graph=self.keep_graph)

    def results(self, direction: str, returned: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """As in Variant."""
        if direction == "forward":
            return dict(zip(self.case.joined, returned, strict=True))
        shaped = zip(self.inputs, returned, strict=True)
        return {gradient(name): tensor.reshape(self.case.tensors[name].shape) for name, tensor in shaped}

    def close(self) -> None:
        """Drops the graph."""
        self.outputs = ()


class OneDnn(Variant):
    """oneDNN by the one door that PyTorch has to it for these operations: TorchScript's fuser for frozen graphs.

    Whether it takes an operation is its own choice, by operation and dtype; probe.py sees which.
    """

    name = "onednn"
    directions = ("forward",)
    missing = "PyTorch reaches oneDNN for these operations by TorchScript's frozen graphs only, which have no backward"

    def __init__(self, case: Case) -> None:
        self.case = case
        self.streams = tuple(case.tensors[s.x].flatten(2) for s in case.segments)
        torch.jit.enable_onednn_fusion(True)
        try:
            with torch.no_grad():
                module = NormRopeConcat(case).eval()
                self.traced = torch.jit.freeze(torch.jit.trace(module, self.streams, check_trace=False))
                for _ in range(2):  # the fuser acts when it has seen the shapes
                    self.traced(*self.streams)
        except RuntimeError as error:
            self.directions, self.missing = (), f"TorchScript failed: {str(error).splitlines()[-1]}"

    def run(self, direction: str) -> tuple[Tensor, ...]:
        """The outputs, without a graph."""
        with torch.no_grad():
            return self.traced(*self.streams)

    def results(self, direction: str, returned: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """As in Variant."""
        return dict(zip(self.case.joined, returned, strict=True))


def make(name: str, case: Case, library: native.Library, threads: int, keep_graph: bool) -> Variant:
    """The variant of this name: operator, eager, compile or onednn."""
    if name == "operator":
        return Ours(case, library, threads)
    if name == "onednn":
        return OneDnn(case)
    if name == "eager":
        return Torch(name, case, lambda module: module, keep_graph)
    # A compiled backward that may overwrite what the forward saved cannot run twice.
    functorch_config.donated_buffer = not keep_graph
    return Torch(name, case, lambda module: torch.compile(module, fullgraph=True, dynamic=False), keep_graph)
