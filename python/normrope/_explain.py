"""What a call does and why, in words, without running it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from normrope import _native as native
from normrope._problem import Array, draft_forward, joined_positions
from normrope._spec import ABSENT, HALF, SegmentSpec, Spec, parse


def explain(tensors: Sequence[Any], positions: Sequence[int], eps: Sequence[float], spec: str, framework: Any) -> str:
    """See functional.explain. The framework is _torch or _arrays."""
    parsed = parse(spec)
    try:
        tensors = [framework.taken(name, tensor) for name, tensor in zip(parsed.names, tensors)]
        arrays = [framework.describe(name, tensor) for name, tensor in zip(parsed.names, tensors)]
        draft = draft_forward(parsed, arrays, positions, eps, True)
        backend, threads, way = framework.plan_for(parsed, draft, tensors)
    except (ValueError, TypeError, NotImplementedError) as error:
        return f"not taken: {type(error).__name__}: {error}"
    lines = [f"backend: {_backend(backend, threads)}", f"way: {way}"]
    places = joined_positions(parsed, [a.shape for a in arrays])
    for s, position, place in zip(parsed.segments, positions, places):
        lines += _segment(parsed, s, arrays, place, position + place * s.follow)
    return "\n".join(lines)


def _backend(backend: int, threads: int) -> str:
    if backend == native.BACKEND_CPU:
        return f"CPU, {native.isa()} kernels, {threads} threads"
    if backend == native.BACKEND_CUDA:
        return "CUDA, on the current stream"
    return "reference, because rows are float64: double precision, one thread, slow; meant for checks such as gradcheck"


def _segment(spec: Spec, s: SegmentSpec, arrays: Sequence[Array], place: int, first_row: int) -> list[str]:
    x = arrays[s.x]
    length = x.shape[1]
    heads = f", heads {s.first} to {s.first + s.heads - 1}" if s.heads else ""
    what = [
        native.NORMS[s.norm].replace("_", " with ") + (" over all heads" if s.all_heads else "")
        if s.norm
        else "no norm"
    ]
    what.append(_rope(s, arrays, length, first_row) if s.rope else "no rope")
    if not s.norm and not s.rope:
        what = ["copied"]
    lines = [
        f"{s.name}: {spec.names[s.x]} {_shown(x)}{heads} to positions {place} to {place + length - 1} of result "
        f"{s.output}: {', '.join(what)}"
    ]
    if x.strides[3] != 1 and x.shape[3] > 1:
        lines.append(
            f"  slow: its channels are {x.strides[3]} elements apart and are read one by one; contiguous() would help"
        )
    for field in ("weight", "bias", "cos", "sin"):
        i = getattr(s, field)
        if i != ABSENT:
            lines.append(f"  {field}: {spec.names[i]} {_shown(arrays[i])}, used in its own dtype")
    return lines


def _rope(s: SegmentSpec, arrays: Sequence[Array], length: int, first_row: int) -> str:
    shape = arrays[s.cos].shape
    rows, width = shape[-3 if len(shape) == 4 else -2], shape[-1]
    begin, end = max(0, -first_row), min(length, rows - first_row)
    pairs = {2: "interleaved", HALF: "half"}.get(s.rope, f"half within blocks of {s.rope}")
    dim = arrays[s.x].shape[3]
    over = f"{pairs} rope over {width} channels" if width == dim else f"{pairs} rope over {width} of {dim} channels"
    if begin >= end:
        return f"{over}, but the tables have no row for any of its positions: none rotates"
    if (begin, end) == (0, length):
        return f"{over}, by rows {first_row} to {first_row + length - 1} of the tables"
    return (
        f"{over}, of its positions {begin} to {end - 1} only: the tables have {rows} rows, and its first is {first_row}"
    )


def _shown(array: Array) -> str:
    return f"{list(array.shape)} {native.DTYPE_NAMES[array.dtype]}"
