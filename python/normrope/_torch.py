"""Specifications on PyTorch's tensors: running plans, the operators normrope::forward and normrope::backward, autograd.

There are two ways in, with one body each for forward, saving and backward. Where tensors are plain ones, an autograd
Function calls the body; this costs a call little. Where somebody watches operators (torch.compile, export, a dispatch
mode, a tensor subclass), the custom operators do, which they can trace.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import lru_cache
from itertools import compress
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from normrope import _kinds
from normrope import _native as native
from normrope._problem import (
    PLANS,
    Array,
    Draft,
    Output,
    backend_for,
    draft_backward,
    draft_forward,
    live_segments,
    num_statistics,
    output_shapes,
    pack,
    reachable,
    read_by_backward,
    unpack,
)
from normrope._spec import Spec, parse

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_CODES = {dtype: code for code, dtype in enumerate(DTYPES)}
# glibc's malloc takes blocks of this size from the system anew every time, which maps their pages as they are written.
_FRESH = 32 << 20
DEVICES = {"cpu": native.BACKEND_CPU, "cuda": native.BACKEND_CUDA}


# -- Running plans -----------------------------------------------------------------------------------------------------


def taken(name: str, tensor: Tensor) -> Tensor:
    """The tensor, if it is one."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: a {type(tensor).__name__}, expected a torch.Tensor as the first argument is one")
    return tensor


def describe(name: str, tensor: Tensor) -> Array:
    """What a plan depends on."""
    if tensor.dtype not in _CODES:
        expected = ", ".join([str(dtype).removeprefix("torch.") for dtype in DTYPES])
        raise TypeError(f"{name}: {str(tensor.dtype).removeprefix('torch.')}, expected {expected}")
    return Array(tuple(tensor.shape), tensor.stride(), _CODES[tensor.dtype])


def _check_devices(names: Sequence[str], tensors: Sequence[Tensor | None]) -> torch.device:
    """The device of all tensors."""
    first = next(i for i, t in enumerate(tensors) if t is not None)
    device = tensors[first].device  # type: ignore[union-attr]
    for name, tensor in zip(names, tensors):
        if tensor is not None and tensor.device != device:
            raise ValueError(f"{name}: on {tensor.device}, expected {device} as {names[first]}")
    if device.type not in DEVICES:
        raise NotImplementedError(f"{names[first]}: on {device}, expected a device of type {' or '.join(DEVICES)}")
    return device


def make(outputs: Sequence[Output], device: torch.device) -> list[Tensor]:
    """Memory for what a plan writes."""
    # empty_strided takes two thirds of empty's time.
    made = [torch.empty_strided(o.shape, o.strides, dtype=DTYPES[o.dtype], device=device) for o in outputs]
    for output, tensor in zip(outputs, made):
        if tensor.nbytes >= _FRESH and device.type == "cpu":
            native.advise_huge_pages(tensor.data_ptr(), tensor.nbytes)
        if output.zeroed:
            tensor.zero_()
    return made


def _launch(
    direction: int, key: list[Any], inputs: Sequence[Tensor | None], draft: Callable[[], Draft]
) -> list[Tensor]:
    """Runs the plan for this key, which `draft` describes where there is none yet; returns its outputs."""
    addresses = []
    device = None
    for tensor in inputs:
        if tensor is None:
            key.append(None)
            addresses.append(0)
        else:
            device = tensor.device
            key += (tensor.shape, tensor.stride(), tensor.dtype, device)
            addresses.append(tensor.data_ptr())
    assert device is not None
    if device.type == "cuda":
        with torch.cuda.device(device):
            return _launch_on(direction, key, addresses, device, torch.cuda.current_stream().cuda_stream, draft)
    return _launch_on(direction, key, addresses, device, None, draft)


def _launch_on(
    direction: int,
    key: list[Any],
    addresses: list[int],
    device: torch.device,
    stream: int | None,
    draft: Callable[[], Draft],
) -> list[Tensor]:
    threads = torch.get_num_threads() if stream is None else 0
    key += (direction, threads)
    found = tuple(key)
    prepared = PLANS.get(found)
    if prepared is None:
        described = draft()
        outputs = make(described.outputs, device)
        addresses += [output.data_ptr() for output in outputs]
        prepared = described.plan(direction, backend_for(described, DEVICES[device.type]), threads, addresses)
        PLANS.put(found, prepared)
    else:
        outputs = make(prepared.outputs, device)
        addresses += [output.data_ptr() for output in outputs]
    size = prepared.plan.workspace_size
    # Kept until the run is over; on a device, its memory goes back in the stream's order.
    workspace = torch.empty(size, dtype=torch.uint8, device=device) if size else None
    prepared.run(addresses, None if workspace is None else workspace.data_ptr(), stream)
    return outputs


def _run_forward(
    tensors: Sequence[Tensor], positions: Sequence[int], eps: Sequence[float], spec: str, statistics: bool
) -> list[Tensor]:
    def draft() -> Draft:
        parsed = parse(spec)
        _check_devices(parsed.names, tensors)
        arrays = [describe(name, tensor) for name, tensor in zip(parsed.names, tensors)]
        return draft_forward(parsed, arrays, positions, eps, statistics)

    try:
        return _launch(native.FORWARD, [spec, statistics, *positions, *eps], tensors, draft)
    except RuntimeError:
        _kinds.check_readable(parse(spec).names, tensors)
        raise


def _run_backward(
    gradients: Sequence[Tensor],
    tensors: Sequence[Tensor],
    statistics: Tensor,
    sizes: Sequence[int],
    positions: Sequence[int],
    spec: str,
    given: Sequence[bool],
    read: Sequence[bool],
    wanted: Sequence[bool],
) -> list[Tensor]:
    """Gradients of the arrays wanted. `gradients` are those of the outputs that are given, `tensors` those read."""
    # The gradient of a parameter that is one number for many elements is still a number for each.
    parameters = [t.contiguous() if w and 0 in t.stride() else t for t, w in zip(tensors, compress(wanted, read))]
    inputs = [*_spread(gradients, given), *_spread(parameters, read), statistics]

    def names() -> list[str]:
        return [*[f"gradient of output {i}" for i in range(len(given))], *parse(spec).names, "statistics"]

    def draft() -> Draft:
        parsed, count = parse(spec), len(given)
        _check_devices(names(), inputs)
        arrays = [None if tensor is None else describe(name, tensor) for name, tensor in zip(names(), inputs)]
        return draft_backward(parsed, arrays[:count], arrays[count:-1], unpack(parsed, sizes), positions, wanted)

    try:
        return _launch(native.BACKWARD, [spec, *sizes, *positions, *wanted], inputs, draft)
    except RuntimeError:
        _kinds.check_readable(names(), inputs)
        raise


def _spread(values: Sequence[Tensor], there: Sequence[bool]) -> list[Any]:
    """A value for each True, None for each False."""
    following = iter(values)
    return [next(following) if t else None for t in there]


# -- Operators ---------------------------------------------------------------------------------------------------------


# Schemas in words, for torch 2.4 reads none off annotations such as these.
@torch.library.custom_op(
    "normrope::forward",
    mutates_args=(),
    schema="(Tensor[] tensors, SymInt[] positions, float[] eps, str spec, bool statistics) -> Tensor[]",
)
def _forward_op(
    tensors: Sequence[Tensor], positions: Sequence[int], eps: Sequence[float], spec: str, statistics: bool
) -> list[Tensor]:
    return _run_forward(tensors, positions, eps, spec, statistics)


@_forward_op.register_fake
def _(
    tensors: Sequence[Tensor], positions: Sequence[int], eps: Sequence[float], spec: str, statistics: bool
) -> list[Tensor]:
    parsed, shapes = parse(spec), [t.shape for t in tensors]
    made = []
    for number, shape in enumerate(output_shapes(parsed, shapes)):
        like = next(tensors[s.x] for s in parsed.segments if s.output == number)
        made.append(like.new_empty(shape))
    if statistics:
        dtype = torch.float64 if any([tensors[i].dtype == torch.float64 for i in parsed.rows]) else torch.float32
        made.append(tensors[0].new_empty((num_statistics(parsed, shapes),), dtype=dtype))
    return made


@torch.library.custom_op(
    "normrope::backward",
    mutates_args=(),
    schema="(Tensor[] gradients, Tensor[] tensors, Tensor statistics, SymInt[] sizes, SymInt[] positions, str spec, "
    "bool[] given, bool[] read, bool[] wanted) -> Tensor[]",
)
def _backward_op(
    gradients: Sequence[Tensor],
    tensors: Sequence[Tensor],
    statistics: Tensor,
    sizes: Sequence[int],
    positions: Sequence[int],
    spec: str,
    given: Sequence[bool],
    read: Sequence[bool],
    wanted: Sequence[bool],
) -> list[Tensor]:
    return _run_backward(gradients, tensors, statistics, sizes, positions, spec, given, read, wanted)


@_backward_op.register_fake
def _(
    gradients: Sequence[Tensor],
    tensors: Sequence[Tensor],
    statistics: Tensor,
    sizes: Sequence[int],
    positions: Sequence[int],
    spec: str,
    given: Sequence[bool],
    read: Sequence[bool],
    wanted: Sequence[bool],
) -> list[Tensor]:
    parsed, shapes = parse(spec), unpack(parse(spec), sizes)
    of_output, parameters = _spread(gradients, given), _spread(tensors, read)
    made = []
    for i in [i for i, w in enumerate(wanted) if w]:
        if i in parsed.rows:
            like = next(g for s in parsed.segments if s.x == i for g in [of_output[s.output]] if g is not None)
            made.append(like.new_empty(shapes[i]))
        else:
            like = parameters[i]
            made.append(like.new_empty(like.shape))
    return made


def _refuse(ctx: Any, *gradients: Any) -> Any:
    raise NotImplementedError(
        "normrope: a gradient of a gradient was asked for (create_graph=True), and normrope has first derivatives only"
    )


_backward_op.register_autograd(_refuse)


# -- Autograd ----------------------------------------------------------------------------------------------------------


@lru_cache(4096)
def _read(spec: str, wanted: tuple[bool, ...]) -> list[bool]:
    return read_by_backward(parse(spec), wanted)


@lru_cache(4096)
def _reachable(spec: str, given: tuple[bool, ...], wanted: tuple[bool, ...]) -> tuple[bool, ...]:
    return reachable(parse(spec), given, wanted)


@lru_cache(4096)
def _constant(spec: str, wanted: tuple[bool, ...]) -> list[int]:
    """Outputs that have no gradient, because nothing that goes into them wants one."""
    parsed = parse(spec)
    live = {s.output for s in live_segments(parsed, [True] * parsed.num_outputs, wanted)}
    return [i for i in range(parsed.num_outputs) if i not in live]


def _save(
    ctx: Any,
    tensors: Sequence[Tensor],
    positions: Sequence[int],
    spec: str,
    outputs: Sequence[Tensor],
    wanted: tuple[bool, ...],
) -> None:
    """Keeps what the backward reads: inputs, and mean and rstd, which are the last output."""
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(outputs[-1], *[outputs[i] for i in _constant(spec, wanted)])
    ctx.save_for_backward(*compress(tensors, _read(spec, wanted)), outputs[-1])
    ctx.sizes, ctx.positions, ctx.spec, ctx.wanted = (
        pack(parse(spec), [t.shape for t in tensors]),
        positions,
        spec,
        wanted,
    )


def _gradients(ctx: Any, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Of all tensors, for those of the joined ones; None: zero, or not wanted."""
    given = tuple([g is not None for g in gradients])
    wanted = _reachable(ctx.spec, given, ctx.wanted)
    if not any(wanted):
        return [None] * len(wanted)
    present = [g for g in gradients if g is not None]
    if forward_ad._current_level >= 0:
        names = [f"gradient of output {i}" for i, g in enumerate(given) if g]
        _kinds.check_tangents(names, present)
    *tensors, statistics = ctx.saved_tensors
    rest = (ctx.sizes, ctx.positions, ctx.spec, given, _read(ctx.spec, ctx.wanted), wanted)
    if _watched(present + tensors):
        found = torch.ops.normrope.backward(present, tensors, statistics, *rest)
    elif torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
        found = SecondDerivative.apply(len(present), rest, *present, *tensors, statistics)
    else:
        found = _run_backward(present, tensors, statistics, *rest)
    return _spread(found, wanted)


class SecondDerivative(torch.autograd.Function):
    """The way back where a graph of it is recorded, or it is transformed: only so that either is refused."""

    vmap = staticmethod(_kinds.refuse_vmap)
    jvp = staticmethod(_kinds.refuse_jvp)

    @staticmethod
    def forward(count: int, rest: tuple[Any, ...], *inputs: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return tuple(_run_backward(inputs[:count], inputs[count:-1], inputs[-1], *rest))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    backward = staticmethod(_refuse)


class NormRope(torch.autograd.Function):
    """The way for plain tensors."""

    @staticmethod
    def forward(
        ctx: Any, positions: Sequence[int], eps: Sequence[float], spec: str, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        outputs = _run_forward(tensors, positions, eps, spec, True)
        _save(ctx, tensors, positions, spec, outputs, ctx.needs_input_grad[3:])
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, None, None, *_gradients(ctx, gradients[:-1])


class NormRopeTransformed(torch.autograd.Function):
    """The way under torch.func's transforms, which want saving apart; binding arguments for that takes torch 30 us."""

    vmap = staticmethod(_kinds.refuse_vmap)
    jvp = staticmethod(_kinds.refuse_jvp)

    @staticmethod
    def forward(  # type: ignore[override]
        positions: Sequence[int], eps: Sequence[float], spec: str, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        return tuple(_run_forward(tensors, positions, eps, spec, True))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        positions, _, spec, *tensors = inputs
        _save(ctx, tensors, positions, spec, output, ctx.needs_input_grad[3:])

    backward = NormRope.backward


def _setup(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    tensors, positions, _, spec, ctx.ready = inputs
    if ctx.ready:  # older versions of torch come here without gradients too
        wanted = ctx.needs_input_grad[: len(tensors)]  # flat here, unlike in the backward
        _save(ctx, tensors, positions, spec, output, wanted)


def _backward(ctx: Any, gradients: list[Tensor | None]) -> tuple[Any, ...]:
    if not ctx.ready:
        raise RuntimeError("normrope::forward: statistics is False, expected True where a gradient is wanted")
    return _gradients(ctx, gradients[:-1]), None, None, None, None


_forward_op.register_autograd(_backward, setup_context=_setup)


# -- Which way ---------------------------------------------------------------------------------------------------------

_PLAIN = (Tensor, torch.nn.Parameter)


def _watched(tensors: Sequence[Tensor]) -> str:
    """Why the operators must be called by their names; "" if nobody watches."""
    if torch.compiler.is_compiling():
        return "torch.compile or torch.export is tracing"
    if torch._C._len_torch_dispatch_stack():
        return "a torch dispatch mode is active"
    for tensor in tensors:
        if type(tensor) not in _PLAIN:
            if tensor.is_nested:
                raise TypeError("normrope: a nested tensor, expected tensors of torch.strided")
            return f"a tensor is a {type(tensor).__name__}"
        if tensor.is_neg():  # what it holds is to be negated, which PyTorch does before it calls operators
            return "a tensor is a lazy negation"
    return ""


def apply(tensors: list[Tensor], positions: Sequence[int], eps: Sequence[float], spec: str) -> Sequence[Tensor]:
    """The joined tensors, with a graph where a gradient is wanted."""
    try:
        gradient = any([t.requires_grad for t in tensors]) and torch.is_grad_enabled()
    except AttributeError:
        for name, tensor in zip(parse(spec).names, tensors):
            taken(name, tensor)
        raise
    if forward_ad._current_level >= 0:
        _kinds.check_tangents(parse(spec).names, tensors)
    if _watched(tensors):
        outputs = torch.ops.normrope.forward(tensors, positions, eps, spec, gradient)
        return outputs[:-1] if gradient else outputs
    if torch._C._are_functorch_transforms_active():  # where tensors without a gradient may be wrapped, too
        return NormRopeTransformed.apply(positions, eps, spec, *tensors)[:-1]
    if gradient:
        return NormRope.apply(positions, eps, spec, *tensors)[:-1]
    return _run_forward(tensors, positions, eps, spec, False)


def plan_for(spec: Spec, draft: Draft, tensors: Sequence[Tensor]) -> tuple[int, int, str]:
    """Plans without running: backend, threads, and the way that a call takes."""
    device = _check_devices(spec.names, tensors)
    outputs = make(draft.outputs, device)
    backend, threads = backend_for(draft, DEVICES[device.type]), torch.get_num_threads()
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        draft.plan(native.FORWARD, backend, threads, [t.data_ptr() for t in (*tensors, *outputs)])
    watched = _watched(tensors)
    way = (
        f"the operators normrope::forward and normrope::backward, because {watched}"
        if watched
        else "autograd, directly"
    )
    if not (torch.is_grad_enabled() and any([t.requires_grad for t in tensors])):
        way += "; no gradient is wanted, so statistics are not kept"
    return backend, threads, way
