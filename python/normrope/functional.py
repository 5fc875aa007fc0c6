"""The functions: norm, rope and concat as one step, on PyTorch's tensors or on arrays.

Shapes: B batch, S sequence length, N heads, D channels of a head, R rows of a rope table, C its channels (C <= D: the
others pass unrotated). Inputs are [B, S, N, D], as projections give them, with any strides: slices of a packed
projection are read where they are.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import compress
from operator import index
from typing import TYPE_CHECKING, Any

from normrope import _spec
from normrope._native import MAX_SEGMENTS
from normrope._spec import Layout, Norm, Order, Rope, RopeOn, Scope

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup

try:
    import torch

    from normrope import _torch
    from normrope.distributed import sum_gradients
except ModuleNotFoundError as error:  # arrays do without
    if error.name != "torch":
        raise
    torch = None  # type: ignore[assignment]

_STREAMS = (("", "norm_"), ("encoder_", "norm_added_"))
_PROJECTIONS = ("query", "key", "value")
_ARGUMENTS = (
    *[stream + projection for stream, _ in _STREAMS for projection in _PROJECTIONS],
    *[f"{norm}{projection}_{p}" for _, norm in _STREAMS for projection in _PROJECTIONS[:2] for p in ("weight", "bias")],
    *("rope_cos", "rope_sin", "key_rope_cos", "key_rope_sin"),
)


def _tracing() -> bool:
    """torch.compile reads the code instead of running it, and cannot look into a cache."""
    return torch is not None and torch.compiler.is_compiling()


def _framework(first: Any) -> Any:
    """The module for arrays of this kind."""
    if torch is not None and isinstance(first, torch.Tensor):
        return _torch
    from normrope import _arrays

    return _arrays


def _vjp(
    tensors: list[Any], positions: Sequence[int], eps: Sequence[float], spec: str
) -> tuple[list[Any], Callable[..., dict[str, Any]]]:
    from normrope import _arrays

    *outputs, statistics = _arrays.forward(tensors, positions, eps, spec, True)

    def pull(*gradients: Any) -> dict[str, Any]:
        if len(gradients) != len(outputs):
            raise ValueError(f"gradients: {len(gradients)}, expected {len(outputs)}, one for each result")
        return _arrays.backward(gradients, tensors, statistics, positions, spec)

    return outputs, pull


# -- The published operator --------------------------------------------------------------------------------------------


def norm_rope_concat(
    query: Tensor | None,
    key: Tensor | None,
    value: Tensor | None = None,
    encoder_query: Tensor | None = None,
    encoder_key: Tensor | None = None,
    encoder_value: Tensor | None = None,
    *,
    norm_query_weight: Tensor | None = None,
    norm_query_bias: Tensor | None = None,
    norm_key_weight: Tensor | None = None,
    norm_key_bias: Tensor | None = None,
    norm_added_query_weight: Tensor | None = None,
    norm_added_query_bias: Tensor | None = None,
    norm_added_key_weight: Tensor | None = None,
    norm_added_key_bias: Tensor | None = None,
    rope_cos: Tensor | None = None,
    rope_sin: Tensor | None = None,
    key_rope_cos: Tensor | None = None,
    key_rope_sin: Tensor | None = None,
    norm: Norm = "none",
    norm_added: Norm | None = None,
    rope: Rope = "none",
    order: Order = "image_first",
    eps: float = 1e-6,
    eps_added: float | None = None,
    scope: Scope = "head",
    rope_on: RopeOn = "joined",
    layout: Layout = "BNSD",
    group: ProcessGroup | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Normalises the heads of both streams, rotates them by position and joins them: what comes before attention.

    By default there is neither norm nor rope, as in the published operator: a call does what its arguments name, and
    weights or tables without the option that uses them are refused. nn.NormRopeConcat has other defaults.

    All arithmetic is float32, with one rounding into the rows' dtype. float64 rows are computed by the reference,
    slowly: for gradcheck and the like.

    Args:
        query: [B, S, N, D] of the image stream; float32, float16, bfloat16 (or float64), any strides.
        key: [B, S, N, D]; lengths and heads may differ from the query's (grouped queries).
        value: as key; it is only joined.
        encoder_query: [B, S_text, N, D] of the text stream. Each of the six may be None.
        encoder_key: as encoder_query.
        encoder_value: with encoder_key.
        norm_query_weight: [D], or [N, D] or [N * D] for heads with weights of their own; of any float dtype. Needed
            where the norm is affine, and refused where it is not.
        norm_query_bias: as the weight; for "layer_affine".
        norm_key_weight: likewise for the key,
        norm_key_bias: and so on;
        norm_added_query_weight: for the text stream, by `norm_added`.
        norm_added_query_bias: for the text stream.
        norm_added_key_weight: for the text stream.
        norm_added_key_bias: for the text stream.
        rope_cos: [R, C], [B, R, C] or [B, R, N, C], where B and N may be 1; of any float dtype, used as they are. Rows
            that the table has no row for pass unrotated.
        rope_sin: as rope_cos.
        key_rope_cos: tables of their own for keys; default: those of the query.
        key_rope_sin: as key_rope_cos.
        norm: of the image stream: "none" (the default), "layer", "layer_affine", "rms", "rms_affine", or 0 to 4.
        norm_added: of the text stream; default: the same.
        rope: which channels turn together: "interleaved" (2i, 2i + 1), "half" (i, i + C/2), the even width of a block
            within which it is half, "none" (the default); or 0, 2.
        order: "image_first" or "text_first", or 0, 1: who comes first in the joined sequence.
        eps: added to the variance (or the mean square) of image rows.
        eps_added: of text rows; default: the same.
        scope: "head": each head has statistics of its own; "all_heads": one for all heads of a position.
        rope_on: "joined": the place in the joined sequence is the tables' row; "image": the place in the image stream
            is, and text passes unrotated.
        layout: of the results: "BNSD" or "BSND".
        group: sums the gradients of weights and biases over the ranks of this group; see normrope.distributed.

    Returns:
        query, key and value, joined: [B, N, S + S_text, D] or [B, S + S_text, N, D], contiguous; None where both
        streams have none.

    Raises:
        ValueError: names the argument, what was found and what was expected.
        TypeError: a dtype or kind of array that no backend takes, or an option of a wrong type.
        NotImplementedError: valid, but not on this device, or not under this transform of torch.func.
    """
    given = (
        *(query, key, value, encoder_query, encoder_key, encoder_value),
        *(norm_query_weight, norm_query_bias, norm_key_weight, norm_key_bias),
        *(norm_added_query_weight, norm_added_query_bias, norm_added_key_weight, norm_added_key_bias),
        *(rope_cos, rope_sin, key_rope_cos, key_rope_sin),
    )
    call, there = _concat(given, norm, norm_added, rope, order, eps, eps_added, scope, rope_on, layout, group)
    return _placed(_framework(call[0][0]).apply(*call), there)


def norm_rope_concat_vjp(
    *arguments: Any, **options: Any
) -> tuple[tuple[Any, Any, Any], Callable[[Any, Any, Any], dict[str, Any]]]:
    """norm_rope_concat and its backward as two functions, for arrays, which have no autograd.

    Args:
        arguments: as norm_rope_concat's: arrays of NumPy (bfloat16: of ml_dtypes), or that speak DLPack.
        options: as norm_rope_concat's.

    Returns:
        The three results, and a function from their gradients (None: zero) to those of the arrays, by the arguments'
        names; one that nothing contributes to is left out.
    """
    call, there = _concat_call(arguments, options)
    outputs, pull = _vjp(*call)
    return _placed(outputs, there), lambda *gradients: pull(*compress(gradients, there))


Call = tuple[list[Any], list[int], list[float], str]  # arrays, and for segments position and eps, and the specification


def _concat(
    given: tuple[Any, ...],
    norm: Norm,
    norm_added: Norm | None,
    rope: Rope,
    order: Order,
    eps: float,
    eps_added: float | None,
    scope: Scope,
    rope_on: RopeOn,
    layout: Layout,
    group: ProcessGroup | None,
) -> tuple[Call, list[bool]]:
    """The call for these arguments, and which of the three results there are."""
    if group is not None:
        given = (*given[:6], *sum_gradients(group, *given[6:14]), *given[14:])
    read = _operator if _tracing() else _looked_up
    spec, streams, there = read(
        tuple([x is not None for x in given]), norm, norm_added, rope, order, scope, rope_on, layout
    )
    eps = _spec.eps_value("eps", eps)
    both = (eps, eps if eps_added is None else _spec.eps_value("eps_added", eps_added))
    return ([x for x in given if x is not None], [0] * len(streams), [both[i] for i in streams], spec), there


def _concat_call(arguments: tuple[Any, ...], options: dict[str, Any]) -> tuple[Call, list[bool]]:
    """The call of norm_rope_concat with these arguments."""
    bound = inspect.signature(norm_rope_concat).bind(*arguments, **options)
    bound.apply_defaults()
    values = bound.arguments
    given = tuple([values.pop(name) for name in _ARGUMENTS])
    return _concat(given, **values)


def _placed(outputs: Sequence[Any], there: list[bool]) -> tuple[Any, Any, Any]:
    following = iter(outputs)
    return tuple([next(following) if t else None for t in there])  # type: ignore[return-value]


def _operator(
    present: tuple[bool, ...],
    norm: Norm,
    norm_added: Norm | None,
    rope: Rope,
    order: Order,
    scope: Scope,
    rope_on: RopeOn,
    layout: Layout,
) -> tuple[str, list[int], list[bool]]:
    """The specification of a call with these arguments, each segment's stream, and which of the results there are."""
    norms = (
        _spec.norm_number("norm", norm),
        _spec.norm_number("norm_added", norm if norm_added is None else norm_added),
    )
    width = _spec.rope_width("rope", rope)
    image_only = _spec.choice("rope_on", rope_on, _spec.ROPE_ON) == 1
    all_heads = _spec.choice("scope", scope, _spec.SCOPES)
    _spec.choice("layout", layout, _spec.LAYOUTS)
    names = [name for name, there in zip(_ARGUMENTS, present) if there]
    number = {name: i for i, name in enumerate(names)}
    streams = (0, 1) if _spec.order_number("order", order) == 0 else (1, 0)
    segments, segment_streams = [], []
    outputs: list[bool] = []
    used = set()
    for projection in _PROJECTIONS:
        there = [s for s in streams if _STREAMS[s][0] + projection in number]
        for stream in there:
            prefix, norm_prefix = _STREAMS[stream]
            fields = {"output": sum(outputs), "x": number[prefix + projection]}
            if projection != "value":
                fields["norm"] = norms[stream]
                fields["all_heads"] = all_heads if norms[stream] else 0
                for parameter, owners in (("weight", (2, 4)), ("bias", (2,))):
                    if norms[stream] in owners:
                        fields[parameter] = _needed(
                            number, f"{norm_prefix}{projection}_{parameter}", norm_prefix, _spec.NORMS[norms[stream]]
                        )
                if width and not (image_only and stream == 1):
                    own = (
                        "key_" if projection == "key" and ("key_rope_cos" in number or "key_rope_sin" in number) else ""
                    )
                    fields["rope"] = width
                    fields["cos"] = _needed(number, f"{own}rope_cos", "rope", rope)
                    fields["sin"] = _needed(number, f"{own}rope_sin", "rope", rope)
                    fields["follow"] = 0 if image_only else 1
            used.update([i for name, i in fields.items() if name in ("x", "weight", "bias", "cos", "sin")])
            segments.append(_spec.segment_text(prefix + projection, **fields))
            segment_streams.append(stream)
        outputs.append(len(there) > 0)
    for name, i in number.items():
        if i not in used:
            arguments = ("norm", "norm" if norm_added is None else "norm_added")
            raise _no_use(name, number, tuple(zip(arguments, norms)), rope, image_only)
    if not segments:
        raise ValueError("query, key, value and the encoder's: all None, expected at least one")
    if ("encoder_key" in number) != ("encoder_value" in number) and "value" in number and "key" in number:
        found, missing = ("key", "value") if "encoder_key" in number else ("value", "key")
        raise ValueError(f"encoder_{missing}: None, expected a tensor as encoder_{found} is one: values go with keys")
    return _spec.text(layout, names, segments), segment_streams, outputs


_cached_operator = lru_cache(4096)(_operator)


def _looked_up(*arguments: Any) -> tuple[str, list[int], list[bool]]:
    try:
        return _cached_operator(*arguments)
    except TypeError:  # an option that cannot be looked up, such as a list: refused, in words
        return _operator(*arguments)


def _no_use(
    name: str, number: dict[str, int], norms: Sequence[tuple[str, int]], rope: Rope, image_only: bool
) -> ValueError:
    """Why nothing reads the parameter or table of this name, which is given. Norms by argument, for both streams."""
    if name.endswith(("cos", "sin")):
        if _spec.rope_width("rope", rope) == 0:
            return ValueError(
                f"rope: {rope!r}, but {name} is given, expected 'interleaved', 'half' or the even width of a pairing "
                f"block, or no {name}"
            )
        own = name.startswith("key_")
        alone = not own and "key_rope_cos" in number
        readers = ("key" if own else "query" if alone else "query or key") + (" of the image" if image_only else "")
        reasons = (
            f"no {readers} is given",
            *(["rope_on is 'image'"] if image_only else []),
            *(["keys have tables of their own"] if alone else []),
        )
        return ValueError(f"{name}: given, expected None: {', and '.join(reasons)}")
    stream = int(name.startswith("norm_added_"))
    prefix, norm_prefix = _STREAMS[stream]
    projection, parameter = name.removeprefix(norm_prefix).split("_")
    if prefix + projection not in number:
        return ValueError(f"{name}: given, expected None: no {prefix}{projection} is given")
    argument, norm = norms[stream]
    if norm == 0:
        affine = "'layer_affine'" if parameter == "bias" else "'rms_affine' or 'layer_affine'"
        return ValueError(f"{argument}: 'none', but {name} is given, expected {affine}, or no {name}")
    return ValueError(f"{name}: given, expected None: {argument} is {_spec.NORMS[norm]!r}, which has no {parameter}")


def _needed(number: dict[str, int], name: str, because: str, value: Any) -> int:
    if name not in number:
        reason = f"{because.rstrip('_')} is {value!r}"
        raise ValueError(f"{name}: None, expected a tensor because {reason}")
    return number[name]


def explain(*arguments: Any, **options: Any) -> str:
    """What a call does and why, in words: backend, way, and for each segment what is read, rotated and written.

    It plans and does not run. Where the call would raise, the text says "not taken" and why.

    Args:
        arguments: as norm_rope_concat's, or norm_rope's list of segments.
        options: likewise.
    """
    from normrope import _explain

    try:
        segments = arguments[0] if arguments else options.get("segments")
        if isinstance(segments, Sequence):
            call = _segments(segments, options.get("layout", "BNSD"))
        else:
            call = _concat_call(arguments, options)[0]
    except (ValueError, TypeError) as error:
        return f"not taken: {type(error).__name__}: {error}"
    return _explain.explain(*call, _framework(call[0][0]))


# -- The general form --------------------------------------------------------------------------------------------------


@dataclass
class Segment:
    """One stream's rows on their way into a result; see norm_rope.

    Attributes:
        x: [B, S, N, D], any strides.
        output: which result its rows go into: segments with the same are joined along the sequence, in their order.
        heads: (first, count): only these heads of x, which may be a packed projection of queries, keys and values; the
            gradients of its parts are written into one tensor.
        norm: as in norm_rope_concat.
        weight: [D], [N, D] or [N * D]; segments may share one.
        bias: as weight.
        eps: as in norm_rope_concat.
        scope: as in norm_rope_concat.
        rope: as in norm_rope_concat.
        cos: [R, C], [B, R, C] or [B, R, N, C], where B and N may be 1.
        sin: as cos.
        rope_position: the tables' row for the segment's first row, any sign; rows beyond the tables pass unrotated.
            Default: its place in the result.
        name: what messages call it.
    """

    x: Any
    output: str | int = 0
    heads: tuple[int, int] | None = None
    norm: Norm = "none"
    weight: Any = None
    bias: Any = None
    eps: float = 1e-6
    scope: Scope = "head"
    rope: Rope = "none"
    cos: Any = None
    sin: Any = None
    rope_position: int | None = None
    name: str | None = None


def norm_rope(
    segments: Sequence[Segment], *, layout: Layout = "BNSD", group: ProcessGroup | None = None
) -> tuple[Tensor, ...]:
    """The general form of norm_rope_concat: any list of segments, each with norm, rope and tables of its own.

    Args:
        segments: at least one, at most 64.
        layout: of the results: "BNSD" or "BSND".
        group: sums the gradients of weights and biases over the ranks of this group; see normrope.distributed.

    Returns:
        The results [B, N, S, D] or [B, S, N, D], contiguous, in the order in which `output` names them first.

    Raises:
        ValueError: names the segment, what was found and what was expected.
        TypeError: a dtype that no backend takes.
        NotImplementedError: valid, but not on this device.
    """
    if group is not None:
        _check_segments(segments)
        summed = iter(sum_gradients(group, *[parameter for s in segments for parameter in (s.weight, s.bias)]))
        segments = [replace(s, weight=next(summed), bias=next(summed)) for s in segments]
    call = _segments(segments, layout)
    return tuple(_framework(call[0][0]).apply(*call))


def norm_rope_vjp(
    segments: Sequence[Segment], *, layout: Layout = "BNSD"
) -> tuple[tuple[Any, ...], Callable[..., dict[str, Any]]]:
    """norm_rope and its backward as two functions, for arrays, which have no autograd.

    Args:
        segments: as norm_rope's, of NumPy's arrays (bfloat16: of ml_dtypes), or such that speak DLPack.
        layout: of the results.

    Returns:
        The results, and a function from their gradients (None: zero) to those of the arrays, by names such as
        "segment0.x" or "NAME.weight" (of the first segment that has the array).
    """
    outputs, pull = _vjp(*_segments(segments, layout))
    return tuple(outputs), pull


def _check_segments(segments: Any) -> None:
    if not isinstance(segments, Sequence):
        raise TypeError(f"segments: a {type(segments).__name__}, expected a list of normrope.Segment")
    for i, s in enumerate(segments):
        if not isinstance(s, Segment):
            raise TypeError(f"segments[{i}]: a {type(s).__name__}, expected a normrope.Segment")


def _check_types(i: int, s: Segment) -> None:
    """Of what would else fail somewhere inside."""
    if not _is_integer(s.output) and not isinstance(s.output, str):
        raise TypeError(f"segments[{i}].output: {s.output!r}, expected a name or an integer")
    if s.heads is not None and not (
        isinstance(s.heads, (tuple, list)) and [_is_integer(n) for n in s.heads] == [True, True]
    ):
        raise TypeError(f"segments[{i}].heads: {s.heads!r}, expected (first, count)")
    if s.rope_position is not None and not _is_integer(s.rope_position):
        raise TypeError(f"segments[{i}].rope_position: {s.rope_position!r}, expected an integer")
    if s.name is not None and not isinstance(s.name, str):
        raise TypeError(f"segments[{i}].name: {s.name!r}, expected a str")


def _is_integer(value: Any) -> bool:
    # A symbolic integer is not read here: that would make a dynamic length a constant.
    if isinstance(value, int) or (torch is not None and isinstance(value, torch.SymInt)):
        return True
    return not isinstance(value, float) and _spec.integer(value) is not None


def _segments(segments: Sequence[Segment], layout: Layout) -> Call:
    """The arrays of a list of segments, one time each, and the specification."""
    tensors: list[Any] = []
    names: list[str] = []
    taken: list[list[tuple[int, int]]] = []  # of each tensor, heads that are the x of a segment
    outputs: list[str | int] = []
    texts, positions, eps = [], [], []

    def number(tensor: Any, name: str, field: str) -> int:
        for i, other in enumerate(tensors):
            if other is tensor and names[i].endswith(field):  # in one part; in two, the gradients are two as well
                return i
        tensors.append(tensor)
        names.append(name + field)
        taken.append([])
        return len(tensors) - 1

    def rows(x: Any, heads: tuple[int, int] | None, name: str) -> int:
        if heads is not None:
            first, count = heads
            if first < 0 or count < 1:
                raise ValueError(f"{name}.heads: {heads}, expected (first >= 0, count >= 1)")
            for i, other in enumerate(tensors):
                if other is x and taken[i] and all([first + count <= f or f + c <= first for f, c in taken[i]]):
                    taken[i].append((first, count))
                    return i
        tensors.append(x)
        names.append(f"{name}.x")
        taken.append([(0, 1 << 60) if heads is None else heads])
        return len(tensors) - 1

    _check_segments(segments)
    _spec.choice("layout", layout, _spec.LAYOUTS)
    if not 0 < len(segments) <= MAX_SEGMENTS:
        raise ValueError(f"segments: {len(segments)}, expected 1 to {MAX_SEGMENTS}")
    for i, s in enumerate(segments):
        _check_types(i, s)
        name = f"segment{i}" if s.name is None else s.name
        if not set(" ,;=").isdisjoint(name):
            raise ValueError(f"segments[{i}].name: {name!r}, expected no space, comma, semicolon or =")
        if s.output not in outputs:
            outputs.append(s.output)
        norm, width = _spec.norm_number(f"{name}.norm", s.norm), _spec.rope_width(f"{name}.rope", s.rope)
        heads = None if s.heads is None else (index(s.heads[0]), index(s.heads[1]))  # the text has numbers, not symbols
        fields = {"output": outputs.index(s.output), "x": rows(s.x, heads, name), "norm": norm, "rope": width}
        if heads is not None:
            fields["first"], fields["heads"] = heads
        if norm:
            fields["all_heads"] = _spec.choice(f"{name}.scope", s.scope, _spec.SCOPES)
        wanted = {"weight": norm in (2, 4), "bias": norm == 2, "cos": width != 0, "sin": width != 0}
        for field, tensor in (("weight", s.weight), ("bias", s.bias), ("cos", s.cos), ("sin", s.sin)):
            if wanted[field] != (tensor is not None):
                found, expected = ("given", "None") if tensor is not None else ("None", "a tensor")
                reason = f"norm is {s.norm!r}" if field in ("weight", "bias") else f"rope is {s.rope!r}"
                raise ValueError(f"{name}.{field}: {found}, expected {expected}: {reason}")
            if tensor is not None:
                fields[field] = number(tensor, name, f".{field}")
        if width and s.rope_position is None:
            fields["follow"] = 1
        positions.append(0 if s.rope_position is None else s.rope_position)
        eps.append(_spec.eps_value(f"{name}.eps", s.eps))
        texts.append(_spec.segment_text(name, **fields))
    return tensors, positions, eps, _spec.text(layout, names, texts)
