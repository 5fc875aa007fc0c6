"""What is compared: our operator and PyTorch's ways to compute the same, behind one small interface."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._functorch import config as functorch_config

import normrope
from normrope import _native as native
from normrope import _problem as problem
from normrope import _spec, _torch
from normrope.bench import models
from normrope.bench.presets import Case

NAMES = ("operator", "normrope", "eager", "compile", "onednn")


class Variant:
    """One way to compute a case.

    `open` prepares a direction, `run` is what is timed, `results` names the tensors in what `run` returned, and `close`
    drops everything that a direction holds. `directions` are those that it can compute, `missing` says why not the
    others.
    """

    name: str
    directions: tuple[str, ...] = ("forward", "backward", "both")
    missing: str = ""

    def open(self, direction: str) -> None:
        """Does what comes before the timed part."""

    def run(self, direction: str) -> Any:
        """Computes; what it returns belongs to the caller."""
        raise NotImplementedError

    def results(self, direction: str, returned: Any) -> dict[str, Tensor]:
        """The results by the names of the image streams, or the gradients by those of what they are of."""
        raise NotImplementedError

    def close(self) -> None:
        """Drops results and preparations."""


class Operator(Variant):
    """The kernels alone: plans on memory that is kept, without autograd. What the others add to it is theirs."""

    name = "operator"

    def __init__(self, case: Case) -> None:
        self.case = case
        self.call = normrope.functional._concat_call((), {**case.tensors, **case.preset.options})[0]
        self.names = _spec.parse(self.call[3]).names
        self.close()

    def close(self) -> None:
        """Drops plans, outputs, statistics and gradients."""
        self.ready: dict[str, tuple[problem.Prepared, list[int], Tensor]] = {}
        self.made: dict[str, list[Tensor]] = {}

    def open(self, direction: str) -> None:
        """The backward reads the statistics of a forward."""
        if direction != "forward":
            self._run("forward")

    def run(self, direction: str) -> list[Tensor]:
        """Runs the plans, after making them if this is the first time."""
        if direction == "both":
            self._run("forward")
        return self._run("backward" if direction == "both" else direction)

    def _run(self, direction: str) -> list[Tensor]:
        if direction not in self.ready:
            self._prepare(direction)
        prepared, addresses, workspace = self.ready[direction]
        stream = torch.cuda.current_stream().cuda_stream if workspace.is_cuda else None
        prepared.run(addresses, workspace.data_ptr(), stream)
        return self.made[direction]

    def _prepare(self, direction: str) -> None:
        tensors, positions, eps, text = self.call
        spec = _spec.parse(text)
        arrays = [_torch.describe(name, t) for name, t in zip(spec.names, tensors)]
        if direction == "forward":
            inputs, number = list(tensors), native.FORWARD
            draft = problem.draft_forward(spec, arrays, positions, eps, True)
        else:
            inputs = [*self.case.incoming, *tensors, self.made["forward"][-1]]
            number = native.BACKWARD
            incoming = [_torch.describe("gradient", g) for g in self.case.incoming]
            wanted = [name in self.case.differentiated for name in spec.names]
            draft = problem.draft_backward(spec, incoming, arrays, [a.shape for a in arrays], positions, wanted)
        device = inputs[0].device
        self.made[direction] = _torch.make(draft.outputs, device)
        addresses = [t.data_ptr() for t in (*inputs, *self.made[direction])]
        backend = problem.backend_for(draft, _torch.DEVICES[device.type])
        prepared = draft.plan(number, backend, torch.get_num_threads(), addresses)
        workspace = torch.empty(prepared.plan.workspace_size, dtype=torch.uint8, device=device)
        self.ready[direction] = prepared, addresses, workspace

    def results(self, direction: str, returned: list[Tensor]) -> dict[str, Tensor]:
        """As in Variant."""
        if direction == "forward":
            return dict(zip(("query", "key", "value"), returned))
        return _gradients([n for n in self.names if n in self.case.differentiated], returned, self.case)


def _gradients(names: Sequence[str], gradients: Sequence[Tensor], case: Case) -> dict[str, Tensor]:
    """By names; of what several arguments share, the sum."""
    found: dict[int, tuple[str, Tensor]] = {}
    for name, gradient in zip(names, gradients):
        tensor = id(case.tensors[name])
        first, before = found.get(tensor, (name, None))
        found[tensor] = first, gradient if before is None else before + gradient
    return dict(found.values())


class Recorded(Variant):
    """A function with automatic differentiation. The forward records its graph, the backward is that alone.

    keep_graph: the graph survives the backward, which can then be repeated; otherwise it is given up on the way, as in
    training.
    """

    def __init__(self, name: str, case: Case, call: Callable[..., tuple[Tensor, ...]], keep_graph: bool) -> None:
        self.name, self.keep_graph = name, keep_graph
        self.case = case.mapped(lambda t: t.detach())
        for tensor in (self.case.tensors[n] for n in case.differentiated):
            tensor.requires_grad_()
        self.inputs = list({id(t): t for t in self.case.tensors.values() if t.requires_grad}.values())
        self.call = partial(call, **case.preset.options)
        self.outputs: tuple[Tensor, ...] = ()

    def open(self, direction: str) -> None:
        """The graph that the backward walks."""
        if direction == "backward":
            self.outputs = self.call(**self.case.tensors)

    def run(self, direction: str) -> tuple[Tensor, ...]:
        """The outputs with their graph, or the gradients of everything that has one."""
        if direction == "backward":
            return torch.autograd.grad(self.outputs, self.inputs, self.case.incoming, retain_graph=self.keep_graph)
        outputs = self.call(**self.case.tensors)
        return outputs if direction == "forward" else torch.autograd.grad(outputs, self.inputs, self.case.incoming)

    def results(self, direction: str, returned: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """As in Variant."""
        if direction == "forward":
            return dict(zip(("query", "key", "value"), returned))
        names = {id(t): name for name, t in reversed(list(self.case.tensors.items()))}
        return {names[id(t)]: gradient for t, gradient in zip(self.inputs, returned)}

    def close(self) -> None:
        """Drops the graph."""
        self.outputs = ()


class OneDnn(Variant):
    """oneDNN by the one door that PyTorch has to it for these operations: TorchScript's fuser for frozen graphs.

    Whether it takes an operation is its own choice, by operation and dtype; probe.py sees which.
    """

    name = "onednn"
    directions: tuple[str, ...] = ("forward",)
    missing = "PyTorch reaches oneDNN for these operations by TorchScript's frozen graphs only, which have no backward"

    def __init__(self, case: Case) -> None:
        class Step(nn.Module):
            def forward(self, *streams: Tensor) -> tuple[Tensor, ...]:
                given = {**case.tensors, **dict(zip(case.streams, streams)), **case.preset.options}
                return models.norm_rope_concat(**given)

        self.streams = tuple([case.tensors[name] for name in case.streams])
        torch.jit.enable_onednn_fusion(True)
        try:
            with torch.no_grad():
                self.traced = torch.jit.freeze(torch.jit.trace(Step().eval(), self.streams, check_trace=False))
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
        return dict(zip(("query", "key", "value"), returned))


def make(name: str, case: Case, keep_graph: bool) -> Variant:
    """The variant of this name."""
    if name == "operator":
        return Operator(case)
    if name == "onednn":
        return OneDnn(case)
    if name != "compile":
        return Recorded(name, case, _ours if name == "normrope" else models.norm_rope_concat, keep_graph)
    # A compiled backward that may overwrite what the forward saved cannot run twice.
    functorch_config.donated_buffer = not keep_graph
    compiled = torch.compile(models.norm_rope_concat, fullgraph=True, dynamic=False)
    return Recorded(name, case, compiled, keep_graph)


def _ours(query: Tensor, key: Tensor, **given: Any) -> tuple[Tensor, ...]:
    return normrope.norm_rope_concat(query, key, **given)  # type: ignore[return-value]
