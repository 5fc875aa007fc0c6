"""Specifications and arrays' shapes to plans. It knows no framework: an array is its shape, strides and dtype."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import c_int64
from typing import Any, NamedTuple

from normrope import _native as native
from normrope._spec import ABSENT, HALF, SegmentSpec, Spec


class Array(NamedTuple):
    """What a plan depends on of an array: strides are in elements, the dtype is one of _native's."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: int


class Output(NamedTuple):
    """An array to be made, contiguous; `zeroed` if a plan writes only a part of it."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: int
    zeroed: bool = False

    @classmethod
    def of(cls, shape: tuple[int, ...], dtype: int, zeroed: bool = False) -> Output:
        """One of this shape."""
        return cls(shape, contiguous(shape), dtype, zeroed)


class Prepared(NamedTuple):
    """A plan with what it takes to run it on other arrays: addresses are of the inputs, then of the outputs.

    Word `words[i]` of the descriptors gets `addresses[sources[i][0]] + sources[i][1]`.
    """

    plan: native.Plan
    words: tuple[int, ...]
    sources: tuple[tuple[int, int], ...]
    outputs: tuple[Output, ...]

    def run(self, addresses: Sequence[int], workspace: int | None, stream: int | None = None) -> None:
        """Runs the plan; see native.Plan.run."""
        self.plan.run(self.words, [addresses[i] + offset for i, offset in self.sources], workspace, stream)


class Cache:
    """Plans by whatever they depend on. The oldest makes room for a new one."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.plans: dict[Any, Prepared] = {}

    def get(self, key: Any) -> Prepared | None:
        """A plan that was put there."""
        return self.plans.get(key)

    def put(self, key: Any, prepared: Prepared) -> None:
        """Threads may do so at once."""
        while len(self.plans) >= self.size:
            try:
                self.plans.pop(next(iter(self.plans)), None)
            except (StopIteration, RuntimeError):  # another thread was quicker
                break
        self.plans[key] = prepared


PLANS = Cache(4096)


# -- Shapes, which may be symbolic -------------------------------------------------------------------------------------


def heads_of(segment: SegmentSpec, shape: Sequence[int]) -> int:
    """How many heads of an x of this shape [B, S, N, D] the segment takes."""
    return segment.heads or shape[2] - segment.first


def output_shapes(spec: Spec, shapes: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Shapes of the joined arrays, for those of all arrays."""
    found: list[tuple[int, ...]] = []
    for number in range(spec.num_outputs):
        parts = [s for s in spec.segments if s.output == number]
        batch, _, _, dim = shapes[parts[0].x]
        heads, length = heads_of(parts[0], shapes[parts[0].x]), sum([shapes[s.x][1] for s in parts])
        found.append((batch, heads, length, dim) if spec.layout == "BNSD" else (batch, length, heads, dim))
    return found


def statistics_sizes(spec: Spec, shapes: Sequence[Sequence[int]]) -> list[int]:
    """For each segment, how many numbers its mean has, and how many its rstd, in the array of all statistics."""
    found = []
    for s in spec.segments:
        batch, length = shapes[s.x][:2]
        found.append((batch * length * (1 if s.all_heads else heads_of(s, shapes[s.x]))) if s.norm else 0)
    return found


def num_statistics(spec: Spec, shapes: Sequence[Sequence[int]]) -> int:
    """The size of the array of all statistics: mean and then rstd of each segment, where its norm has them."""
    sizes = statistics_sizes(spec, shapes)
    return sum([(1 + s.centres) * size for s, size in zip(spec.segments, sizes)])


def live_segments(spec: Spec, given: Sequence[bool], wanted: Sequence[bool]) -> list[SegmentSpec]:
    """Those that a backward has work for: the gradient of their output is given, and one of theirs is wanted."""
    return [s for s in spec.segments if given[s.output] and (wanted[s.x] or any([wanted[i] for i in s.parameters]))]


def reachable(spec: Spec, given: Sequence[bool], wanted: Sequence[bool]) -> tuple[bool, ...]:
    """Those of the wanted gradients that a given one of the joined arrays contributes to; the others are zero."""
    used = {i for s in live_segments(spec, given, wanted) for i in (s.x, *s.parameters)}
    return tuple([w and i in used for i, w in enumerate(wanted)])


def pack(spec: Spec, shapes: Sequence[Sequence[int]]) -> list[int]:
    """The shape [B, S, N, D] of every x, one after the other."""
    return [extent for i in spec.rows for extent in shapes[i]]


def unpack(spec: Spec, sizes: Sequence[int]) -> list[tuple[int, ...]]:
    """What was packed, by the numbers of arrays."""
    shapes: list[tuple[int, ...]] = [()] * len(spec.names)
    for place, i in enumerate(spec.rows):
        shapes[i] = tuple(sizes[4 * place : 4 * place + 4])
    return shapes


def wants_tables(segment: SegmentSpec, wanted: Sequence[bool]) -> bool:
    """Whether the gradient of a table is among those wanted."""
    return segment.rope != 0 and (wanted[segment.cos] or wanted[segment.sin])


def read_by_backward(spec: Spec, wanted: Sequence[bool]) -> list[bool]:
    """Which arrays a backward reads (of parameters also those whose gradient is wanted)."""
    read = [False] * len(spec.names)
    for s in live_segments(spec, [True] * spec.num_outputs, wanted):
        read[s.x] |= s.norm != 0 or wants_tables(s, wanted)
        for i in s.parameters:
            read[i] |= i != s.bias or wanted[i] or wants_tables(s, wanted)
    return read


# -- Checks ------------------------------------------------------------------------------------------------------------


def _show(shape: Sequence[int]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


def _expect(name: str, shape: Sequence[int], *allowed: Sequence[int]) -> None:
    if tuple(shape) not in map(tuple, allowed):
        expected = " or ".join(dict.fromkeys(map(_show, allowed)))
        raise ValueError(f"{name}: shape {_show(shape)}, expected {expected}")


def check_shapes(spec: Spec, shapes: Sequence[Sequence[int]], dtypes: Sequence[int]) -> None:
    """Refuses arrays that do not go together; what strides and dtypes may be is the library's business.

    Raises:
        ValueError: names the array, what was found and what was expected.
    """
    first_of_output: dict[int, SegmentSpec] = {}
    for s in spec.segments:
        name, shape = spec.names[s.x], shapes[s.x]
        if len(shape) != 4:
            raise ValueError(f"{name}: shape {_show(shape)}, expected 4 axes: [batch, length, heads, dim]")
        batch, _, all_heads, dim = shape
        heads = heads_of(s, shape)
        if s.first + heads > all_heads or heads < 0:
            raise ValueError(f"{name}: {all_heads} heads, expected at least {s.first + max(heads, 0)}")
        other = first_of_output.setdefault(s.output, s)
        other_shape = shapes[other.x]
        expected = (other_shape[0], heads_of(other, other_shape), other_shape[3])
        if (batch, heads, dim) != expected:
            raise ValueError(
                f"{name}: batch {batch}, heads {heads}, dim {dim}, expected {', '.join(map(str, expected))} as "
                f"{spec.names[other.x]} has, which it is joined with"
            )
        if dtypes[s.x] != dtypes[other.x]:
            raise ValueError(
                f"{name}: {native.DTYPE_NAMES[dtypes[s.x]]}, expected {native.DTYPE_NAMES[dtypes[other.x]]} as "
                f"{spec.names[other.x]} has, which it is joined with"
            )
        _check_parameters(spec, s, shapes, batch, heads, dim)


def _check_parameters(
    spec: Spec, s: SegmentSpec, shapes: Sequence[Sequence[int]], batch: int, heads: int, dim: int
) -> None:
    for i in (s.weight, s.bias):
        if i != ABSENT:
            _expect(spec.names[i], shapes[i], (dim,), (heads, dim), *([(heads * dim,)] if heads > 1 else []))
    if not s.rope:
        return
    name, shape = spec.names[s.cos], shapes[s.cos]
    if not 2 <= len(shape) <= 4:
        raise ValueError(
            f"{name}: shape {_show(shape)}, expected [rows, rope_dim], [batch, rows, rope_dim] or "
            "[batch, rows, heads, rope_dim]"
        )
    rows, width = shape[-3 if len(shape) == 4 else -2], shape[-1]
    if not 2 <= width <= dim or width % 2 or (s.rope != HALF and width % s.rope):
        block = "" if s.rope in (2, HALF) else f", a multiple of the pairing block {s.rope}"
        raise ValueError(f"{name}: {width} channels, expected an even number from 2 to {dim}{block}")
    if len(shape) == 3:
        _expect(name, shape, (batch, rows, width), (1, rows, width))
    elif len(shape) == 4:
        allowed = [
            (b, rows, n, width) for b in sorted({batch, 1}, reverse=True) for n in sorted({heads, 1}, reverse=True)
        ]
        if tuple(shape) not in allowed:
            either = " or ".join(map(_show, allowed))
            raise ValueError(f"{name}: shape {_show(shape)}, expected [batch, rows, heads, rope_dim]: {either}")
    _expect(spec.names[s.sin], shapes[s.sin], shape)


# -- Views -------------------------------------------------------------------------------------------------------------


def contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of a contiguous array, as PyTorch counts them: an empty axis counts as one."""
    strides, step = [], 1
    for extent in reversed(shape):
        strides.append(step)
        step *= max(extent, 1)
    return tuple(reversed(strides))


def _parameter_strides(shape: Sequence[int], strides: Sequence[int], dim: int) -> tuple[int, int, int, int]:
    """Of a weight [D], [N, D] or [N * D]."""
    if len(shape) == 2:
        return 0, 0, strides[0], strides[1]
    return 0, 0, strides[0] * dim if shape[0] != dim else 0, strides[0]


def _table_strides(shape: Sequence[int], strides: Sequence[int]) -> tuple[int, int, int, int]:
    """Of a table [R, C], [B, R, C] or [B, R, N, C], where B and N may be 1."""
    batch = strides[0] if len(shape) > 2 and shape[0] > 1 else 0
    head = strides[2] if len(shape) == 4 and shape[2] > 1 else 0
    return batch, strides[-3 if len(shape) == 4 else -2], head, strides[-1]


def _label(field: str, name: str) -> str:
    """What messages call a view of this array."""
    return f"gradient of {name}" if field.startswith("grad_") else name


class Draft:
    """Descriptors without addresses, on the way to a plan. `outputs` are what its plan needs to be made."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.segments: list[native.Segment] = []
        self.outputs: list[Output] = []
        self.words: list[int] = []
        self.sources: list[tuple[int, int]] = []
        self.borrowed: list[bytes] = []

    def name(self, text: str) -> bytes:
        self.borrowed.append(text.encode())
        return self.borrowed[-1]

    def segment(self, s: SegmentSpec, shape: Sequence[int], eps: float) -> native.Segment:
        made = native.Segment(struct_size=native.ctypes.sizeof(native.Segment), name=self.name(s.name))
        made.batch, made.length, _, made.dim = shape
        made.heads = heads_of(s, shape)
        made.norm, made.scope, made.eps = s.norm, s.all_heads, eps
        self.segments.append(made)
        return made

    def rope(self, s: SegmentSpec, shape: Sequence[int], position: int) -> None:
        made = self.segments[-1]
        made.rope_dim = shape[-1]
        made.rope_width = shape[-1] if s.rope == HALF else s.rope
        made.rope_length = shape[-3 if len(shape) == 4 else -2]
        made.rope_position = position

    def view(self, field: str, source: int, strides: Sequence[int], dtype: int, name: str, offset: int = 0) -> None:
        """A view of array `source`, `offset` elements in, in the segment made last."""
        made = native.View(None, (c_int64 * 4)(*strides), dtype, self.name(name))
        setattr(self.segments[-1], field, made)
        self.words.append(native.SEGMENT_WORDS * (len(self.segments) - 1) + native.ADDRESS_WORD[field])
        self.sources.append((source, offset * native.DTYPE_SIZES[dtype]))

    def x(self, field: str, s: SegmentSpec, source: int, array: Array) -> None:
        """A view [B, S, N, D] of the heads that the segment takes."""
        offset = s.first * array.strides[2]
        self.view(field, source, array.strides, array.dtype, _label(field, self.spec.names[s.x]), offset)

    def statistics(self, s: SegmentSpec, source: int, begin: int, size: int, dtype: int) -> int:
        """Mean and rstd, as the norm has them, from this element of the array of all statistics on; gives the next."""
        made = self.segments[-1]
        heads = 1 if s.all_heads else made.heads
        for field in ("mean", "rstd") if s.centres else ("rstd",) if s.norm else ():
            self.view(field, source, (made.length * heads, heads, 1, 0), dtype, f"{field} of {s.name}", begin)
            begin += size
        return begin

    def parameters(self, s: SegmentSpec, arrays: Sequence[Array | None], prefix: str, sources: Sequence[int]) -> None:
        """weight, bias, cos, sin, where there are sources of them (ABSENT: there is none)."""
        for field, i in (("weight", s.weight), ("bias", s.bias), ("cos", s.cos), ("sin", s.sin)):
            array = arrays[i] if i != ABSENT else None
            if i == ABSENT or array is None or sources[i] == ABSENT:
                continue
            shape, strides, dtype = array
            if field in ("weight", "bias"):
                placed = _parameter_strides(shape, strides, self.segments[-1].dim)
            else:
                placed = _table_strides(shape, strides)
            self.view(prefix + field, sources[i], placed, dtype, _label(prefix, self.spec.names[i]))

    def plan(self, direction: int, backend: int, threads: int, addresses: Sequence[int]) -> Prepared:
        """Plans for arrays at these addresses: the inputs, then `outputs`."""
        for word, (source, offset) in zip(self.words, self.sources):
            segment, place = divmod(word, native.SEGMENT_WORDS)
            getattr(self.segments[segment], _FIELD_AT[place]).data = addresses[source] + offset or None
        plan = native.Plan(direction, backend, self.segments, threads, self.borrowed)
        return Prepared(plan, tuple(self.words), tuple(self.sources), tuple(self.outputs))


_FIELD_AT = {word: field for field, word in native.ADDRESS_WORD.items()}


def _row_strides(layout: str, strides: Sequence[int]) -> tuple[int, int, int, int]:
    """An output's, in the order [batch, sequence, head, channel]."""
    b, second, third, channel = strides
    return (b, third, second, channel) if layout == "BNSD" else (b, second, third, channel)


def joined_positions(spec: Spec, shapes: Sequence[Sequence[int]]) -> list[int]:
    """Where in its output each segment begins."""
    ends = [0] * spec.num_outputs
    found = []
    for s in spec.segments:
        found.append(ends[s.output])
        ends[s.output] += shapes[s.x][1]
    return found


def _statistics_dtype(dtypes: Sequence[int]) -> int:
    return native.F64 if native.F64 in dtypes else native.F32


def backend_for(draft: Draft, device: int) -> int:
    """The device's backend, or the reference where rows are float64, which no other takes.

    Raises:
        NotImplementedError: float64 rows that are not in the processor's memory.
    """
    for s in draft.segments:
        if native.F64 in (s.x.dtype, s.grad_y.dtype):
            if device != native.BACKEND_CPU:
                raise NotImplementedError(f"{s.name.decode()}: float64, expected another dtype, or tensors on the CPU")
            return native.BACKEND_REFERENCE
    return device


def draft_forward(
    spec: Spec, arrays: Sequence[Array], positions: Sequence[int], eps: Sequence[float], statistics: bool
) -> Draft:
    """A forward: its inputs are the arrays, its outputs the joined ones and, if asked for, that of all statistics.

    Args:
        spec: what is what.
        arrays: in the specification's order.
        positions: for each segment, the row of the tables for its first row; `follow` adds its place in the output.
        eps: for each segment.
        statistics: whether they are kept, for a backward.

    Raises:
        ValueError: see check_shapes.
    """
    shapes = [a.shape for a in arrays]
    check_shapes(spec, shapes, [a.dtype for a in arrays])
    draft = Draft(spec)
    joined = output_shapes(spec, shapes)
    for number, shape in enumerate(joined):
        dtype = next(arrays[s.x].dtype for s in spec.segments if s.output == number)
        draft.outputs.append(Output.of(shape, dtype))
    kept = Output.of((num_statistics(spec, shapes),), _statistics_dtype([arrays[i].dtype for i in spec.rows]))
    if statistics:
        draft.outputs.append(kept)
    places, sizes, begin = joined_positions(spec, shapes), statistics_sizes(spec, shapes), 0
    for i, s in enumerate(spec.segments):
        draft.segment(s, arrays[s.x].shape, eps[i])
        draft.x("x", s, s.x, arrays[s.x])
        strides = _row_strides(spec.layout, draft.outputs[s.output].strides)
        output = len(arrays) + s.output
        draft.view("y", output, strides, arrays[s.x].dtype, f"{s.name} output", places[i] * strides[1])
        if statistics:
            begin = draft.statistics(s, len(arrays) + len(joined), begin, sizes[i], kept.dtype)
        draft.parameters(s, arrays, "", range(len(arrays)))
        if s.rope:
            draft.rope(s, arrays[s.cos].shape, positions[i] + places[i] * s.follow)
    return draft


def draft_backward(
    spec: Spec,
    gradients: Sequence[Array | None],
    arrays: Sequence[Array | None],
    shapes: Sequence[Sequence[int]],
    positions: Sequence[int],
    wanted: Sequence[bool],
) -> Draft:
    """A backward: its inputs are the gradients of the joined arrays, the arrays, and that of all statistics.

    Its outputs are the gradients of the arrays that are wanted, in their order.

    Args:
        spec: what is what.
        gradients: of the joined arrays; None: what hangs on it is left out.
        arrays: those that read_by_backward tells; None for others.
        shapes: of every x, [B, S, N, D]; others are not looked at.
        positions: as for the forward.
        wanted: for each array whether its gradient is; a segment of it must have the gradient of its output.
    """
    for number, shape in enumerate(output_shapes(spec, shapes)):
        gradient = gradients[number]
        if gradient is not None:
            _expect(f"gradient of output {number}", gradient.shape, shape)
    draft = Draft(spec)
    live = live_segments(spec, [g is not None for g in gradients], wanted)
    statistics = len(gradients) + len(arrays)
    outputs = [ABSENT] * len(arrays)
    made: list[Array | None] = [None] * len(arrays)
    for i in range(len(arrays)):
        if not wanted[i]:
            continue
        outputs[i] = statistics + 1 + len(draft.outputs)
        users = [s for s in live if s.x == i]
        array = arrays[i]
        if users:
            shape, dtype = tuple(shapes[i]), _of(gradients[users[0].output]).dtype
            zeroed = sum([heads_of(s, shape) for s in users]) < shape[2]
        else:
            (shape, _, dtype), zeroed = _of(array), False
        draft.outputs.append(Output.of(shape, dtype, zeroed))
        made[i] = Array(*draft.outputs[-1][:3])
    places, sizes, begin = joined_positions(spec, shapes), statistics_sizes(spec, shapes), 0
    kept = _statistics_dtype([a.dtype for a in gradients if a is not None])
    inputs = [len(gradients) + i for i in range(len(arrays))]
    for i, s in enumerate(spec.segments):
        if s not in live:
            begin += (1 + s.centres) * sizes[i]
            continue
        gradient = _of(gradients[s.output])
        draft.segment(s, shapes[s.x], 0.0)
        strides = _row_strides(spec.layout, gradient.strides)
        draft.view("grad_y", s.output, strides, gradient.dtype, f"gradient of {s.name}", places[i] * strides[1])
        if arrays[s.x] is not None:
            draft.x("x", s, inputs[s.x], _of(arrays[s.x]))
        if wanted[s.x]:
            draft.x("grad_x", s, outputs[s.x], _of(made[s.x]))
        begin = draft.statistics(s, statistics, begin, sizes[i], kept)
        draft.parameters(s, arrays, "", inputs)
        draft.parameters(s, made, "grad_", outputs)
        if s.rope:
            draft.rope(s, _of(arrays[s.cos]).shape, positions[i] + places[i] * s.follow)
    return draft


def _of(array: Array | None) -> Array:
    """The array, which is there."""
    assert array is not None
    return array
