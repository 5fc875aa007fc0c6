"""Specifications on NumPy's arrays, and on whatever speaks DLPack: running plans. There is no autograd here."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from typing import Any

import numpy as np

from normrope import _native as native
from normrope._problem import (
    Array,
    Draft,
    Output,
    backend_for,
    draft_backward,
    draft_forward,
    reachable,
    read_by_backward,
)
from normrope._spec import Spec, parse

_CODES = {name: code for code, name in enumerate(native.DTYPE_NAMES)}


def taken(name: str, value: Any) -> np.ndarray:
    """The value's own memory."""
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "__dlpack__"):
        try:
            return np.from_dlpack(value)
        except (BufferError, RuntimeError, TypeError) as error:  # a gradient is wanted, or another device or dtype
            raise TypeError(
                f"{name}: a {type(value).__name__} that NumPy cannot read ({error}), expected arrays of one kind: "
                "torch.Tensor throughout, which has autograd, or what NumPy can read"
            ) from error
    raise TypeError(
        f"{name}: a {type(value).__name__}, expected a torch.Tensor, a NumPy array or one that speaks DLPack"
    )


def describe(name: str, array: np.ndarray) -> Array:
    """What a plan depends on. bfloat16 is that of the package ml_dtypes."""
    code = _CODES.get(array.dtype.name)
    if code is None or not array.dtype.isnative:
        raise TypeError(f"{name}: {array.dtype}, expected {', '.join(native.DTYPE_NAMES)}")
    if any([stride % array.itemsize for stride in array.strides]):
        raise ValueError(f"{name}: strides {array.strides}, expected multiples of {array.itemsize} bytes")
    return Array(array.shape, tuple([stride // array.itemsize for stride in array.strides]), code)


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0] if array.size else 0


def plan_for(spec: Spec, draft: Draft, arrays: Sequence[np.ndarray]) -> tuple[int, int, str]:
    """Plans without running: backend, threads, and the way that a call takes."""
    outputs = [np.empty(o.shape, native.DTYPE_NAMES[o.dtype].replace("bfloat16", "float16")) for o in draft.outputs]
    backend = backend_for(draft, native.BACKEND_CPU)
    draft.plan(native.FORWARD, backend, 0, [_address(a) for a in (*arrays, *outputs)])
    return backend, native.default_threads(), "arrays, without autograd; norm_rope_vjp and norm_rope_concat_vjp go back"


def _run(direction: int, draft: Draft, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
    known = {_CODES[a.dtype.name]: a.dtype for a in inputs if a is not None}
    outputs = [(np.zeros if o.zeroed else np.empty)(o.shape, known.get(o.dtype) or _dtype(o)) for o in draft.outputs]
    addresses = [0 if a is None else _address(a) for a in (*inputs, *outputs)]
    prepared = draft.plan(direction, backend_for(draft, native.BACKEND_CPU), 0, addresses)
    workspace = np.empty(prepared.plan.workspace_size + 64, np.uint8)
    prepared.run(addresses, -(-_address(workspace) // 64) * 64)
    return outputs


def _dtype(output: Output) -> np.dtype:
    return np.dtype(native.DTYPE_NAMES[output.dtype])


def forward(
    values: Sequence[Any], positions: Sequence[int], eps: Sequence[float], spec: str, statistics: bool
) -> list[np.ndarray]:
    """The joined arrays, and if asked for that of all statistics."""
    parsed = parse(spec)
    arrays = [taken(name, value) for name, value in zip(parsed.names, values)]
    described = [describe(name, array) for name, array in zip(parsed.names, arrays)]
    return _run(native.FORWARD, draft_forward(parsed, described, positions, eps, statistics), arrays)


def apply(values: Sequence[Any], positions: Sequence[int], eps: Sequence[float], spec: str) -> list[np.ndarray]:
    """The joined arrays."""
    return forward(values, positions, eps, spec, False)


def backward(
    gradients: Sequence[Any], values: Sequence[Any], statistics: np.ndarray, positions: Sequence[int], spec: str
) -> dict[str, np.ndarray]:
    """Gradients of all arrays that a given gradient (None: zero) reaches, by their names."""
    parsed = parse(spec)
    wanted = reachable(parsed, [g is not None for g in gradients], [True] * len(values))
    arrays = [taken(name, value) for name, value in zip(parsed.names, values)]
    incoming = [None if g is None else taken(f"gradient of output {i}", g) for i, g in enumerate(gradients)]
    read = read_by_backward(parsed, wanted)
    kept = [array if r else None for array, r in zip(arrays, read)]
    draft = draft_backward(
        parsed,
        [None if g is None else describe(f"gradient of output {i}", g) for i, g in enumerate(incoming)],
        [None if a is None else describe(name, a) for name, a in zip(parsed.names, kept)],
        [a.shape for a in arrays],
        positions,
        wanted,
    )
    found = _run(native.BACKWARD, draft, [*incoming, *kept, statistics])
    return dict(zip(compress(parsed.names, wanted), found))
