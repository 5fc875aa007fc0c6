"""What a call computes, apart from its arrays: segments, and which arrays are what to each.

A specification travels as a line of text, which operators of every framework can carry, print and compare:

    1 BNSD query,key,text,weight,cos,sin; query output=0 x=0 norm=4 weight=3 rope=2 cos=4 sin=5 follow=1; ...

First VERSION, the outputs' layout and the arrays' names, as messages call them; then a segment each, whose fields are
those of SegmentSpec and left out where they have their defaults. Arrays go by their number in the list of names.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from functools import cached_property, lru_cache
from operator import index
from typing import Any, Literal, Union

from normrope._native import NORMS

Norm = Union[Literal["none", "layer", "layer_affine", "rms", "rms_affine"], int]
Rope = Union[Literal["none", "interleaved", "half"], int]
Order = Union[Literal["image_first", "text_first"], int]
Scope = Literal["head", "all_heads"]
Layout = Literal["BNSD", "BSND"]
RopeOn = Literal["joined", "image"]

LAYOUTS = ("BNSD", "BSND")
SCOPES = ("head", "all_heads")
ORDERS = ("image_first", "text_first")
ROPE_ON = ("joined", "image")
# Of this text and the operators that carry it. Compilers keep what they compiled, by the arguments of operators: a new
# number keeps a newer package from what an older one left.
VERSION = "1"
ABSENT = -1
HALF = -1
ROPES = {"none": 0, "interleaved": 2, "half": HALF}


@dataclass(frozen=True)
class SegmentSpec:
    """One stream's rows on their way into an output. `x`, `weight`, `bias`, `cos`, `sin` are numbers of arrays."""

    name: str
    output: int  # which of the outputs its rows are joined into, in the order of the segments
    x: int
    first: int = 0  # the first head of x that is meant, and how many are; 0: all from the first on
    heads: int = 0
    norm: int = 0
    all_heads: int = 0
    weight: int = ABSENT
    bias: int = ABSENT
    rope: int = 0  # the width of a pairing block, HALF: as many channels as the tables have
    cos: int = ABSENT
    sin: int = ABSENT
    follow: int = 0  # whether rows of the tables count from the place in the output, or else from the segment's own

    @property
    def centres(self) -> bool:
        """Whether the norm subtracts a mean."""
        return self.norm in (1, 2)

    @property
    def parameters(self) -> tuple[int, ...]:
        """The arrays but x."""
        return tuple(i for i in (self.weight, self.bias, self.cos, self.sin) if i != ABSENT)


@dataclass(frozen=True)
class Spec:
    """A specification as `parse` reads it."""

    layout: str
    names: tuple[str, ...]
    segments: tuple[SegmentSpec, ...]

    @cached_property
    def num_outputs(self) -> int:
        """How many joined arrays there are."""
        return 1 + max(s.output for s in self.segments)

    @cached_property
    def rows(self) -> list[int]:
        """The arrays that are an x."""
        return sorted({s.x for s in self.segments})


_DEFAULTS = {f.name: f.default for f in fields(SegmentSpec) if f.default is not MISSING}


def segment_text(name: str, **values: int) -> str:
    """A segment of a specification."""
    return " ".join([name, *[f"{k}={v}" for k, v in values.items() if v != _DEFAULTS.get(k)]])


def text(layout: str, names: list[str], segments: list[str]) -> str:
    """A specification, of what segment_text gave."""
    return "; ".join([f"{VERSION} {layout} {','.join(names)}", *segments])


@lru_cache(4096)
def parse(specification: str) -> Spec:
    """Reads a specification."""
    head, *segments = specification.split("; ")
    version, layout, names = head.split(" ")
    if version != VERSION:
        raise ValueError(f"specification: version {version}, expected {VERSION}: it was compiled for another normrope")
    read = []
    for segment in segments:
        name, *words = segment.split(" ")
        read.append(SegmentSpec(name, **{k: int(v) for k, v in (word.split("=") for word in words)}))
    return Spec(layout, tuple(names.split(",")), tuple(read))


def norm_name(argument: str, norm: str | int) -> Norm:
    """A norm's name for its name or number."""
    return NORMS[norm_number(argument, norm)]  # type: ignore[return-value]


def norm_number(argument: str, norm: str | int) -> int:
    """0 to 4 for a norm's name or number."""
    if isinstance(norm, str):
        for number, name in enumerate(NORMS):
            if name == norm:
                return number
    else:
        given = integer(norm)
        if given is not None and 0 <= given < len(NORMS):
            return given
    raise ValueError(f"{argument}: {norm!r}, expected {_choices(NORMS)}, or 0 to {len(NORMS) - 1}")


def rope_width(argument: str, rope: str | int) -> int:
    """The width of a pairing block for a rope's name, or for such a width; see SegmentSpec.rope."""
    if isinstance(rope, str):
        if rope in ROPES:
            return ROPES[rope]
    else:
        width = integer(rope)
        if width is not None and width >= 0 and width % 2 == 0:
            return width
    raise ValueError(f"{argument}: {rope!r}, expected {_choices(ROPES)}, or the even width of a pairing block")


def choice(argument: str, value: str, allowed: tuple[str, ...]) -> int:
    """The number of a word among those allowed."""
    if isinstance(value, str):
        for number, name in enumerate(allowed):
            if value == name:
                return number
    raise ValueError(f"{argument}: {value!r}, expected {_choices(allowed)}")


def order_number(argument: str, order: str | int) -> int:
    """0 or 1 for an order's name or number."""
    if isinstance(order, str):
        if order in ORDERS:
            return ORDERS.index(order)
    else:
        given = integer(order)
        if given is not None and 0 <= given < len(ORDERS):
            return given
    raise ValueError(f"{argument}: {order!r}, expected {_choices(ORDERS)}, or 0, 1")


def eps_value(argument: str, eps: Any) -> float:
    """The eps of a norm, if it is a number; its range is the library's business."""
    if isinstance(eps, float):
        return eps
    try:
        if not isinstance(eps, (str, bytes)):
            return float(eps)
    except (TypeError, ValueError, RuntimeError):  # the last is PyTorch's, of a tensor that is no number
        pass
    raise TypeError(f"{argument}: {eps!r}, expected a number")


def integer(value: Any) -> int | None:
    """An integer, of whatever type; None for everything else."""
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):  # caches take 1.0 for 1, too
        return int(value)
    try:
        return index(value)
    except TypeError:
        return None


def _choices(words: object) -> str:
    return ", ".join([repr(word) for word in words])  # type: ignore[attr-defined]
