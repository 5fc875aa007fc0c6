"""Inputs, and how far results may be from the exact ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor

from normrope import Segment

B, S, T, N, D = 2, 7, 3, 4, 12
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
TENSORS = ("x", "weight", "bias", "cos", "sin")
ONE = 2.0**-24


def rows(length: int, dtype: torch.dtype = torch.float32, heads: int = N, dim: int = D) -> Tensor:
    """[B, length, heads, dim], as a leaf, with a mean that is not 0."""
    return (torch.randn(B, length, heads, dim, dtype=torch.float64) + 0.3).to(dtype).requires_grad_()


def parameter(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A leaf."""
    return torch.randn(*shape, dtype=torch.float64).to(dtype).requires_grad_()


def arguments(dtype: torch.dtype = torch.float32, *, text: bool = True, bias: bool = True) -> dict[str, Tensor]:
    """Everything that norm_rope_concat takes with an affine norm; tables are float32, and no angles."""
    made = {name: rows(S, dtype) for name in ("query", "key", "value")}
    if text:
        made |= {f"encoder_{name}": rows(T, dtype) for name in ("query", "key", "value")}
    for stream in ("norm_", "norm_added_") if text else ("norm_",):
        for projection in ("query", "key"):
            for kind in ("weight", "bias") if bias else ("weight",):
                made[f"{stream}{projection}_{kind}"] = parameter(D, dtype=dtype)
    made |= {name: torch.randn(S + T if text else S, D) for name in ("rope_cos", "rope_sin")}
    return made


def leaves(segments: Iterable[Segment]) -> list[Tensor]:
    """All tensors of the segments, one time each."""
    found = {id(t): t for s in segments for t in (getattr(s, name) for name in TENSORS) if t is not None}
    return list(found.values())


def converted(segments: Sequence[Segment], convert: Callable[[Tensor], Tensor]) -> list[Segment]:
    """The same segments of other tensors; what was shared is."""
    made = {id(t): convert(t) for t in leaves(segments)}
    names = [f.name for f in fields(Segment) if f.name in TENSORS]
    return [replace(s, **{n: made.get(id(getattr(s, n))) for n in names}) for s in segments]


def exact(tensor: Tensor) -> Tensor:
    """The same numbers in float64, as a leaf."""
    return tensor.detach().double().requires_grad_(tensor.requires_grad)


def check_rows(found: Tensor, expected: Tensor, axes: tuple[int, ...] = (-1,)) -> None:
    """Within half an ulp and 32 float32 roundings of the row's largest number."""
    assert found.shape == expected.shape
    eps = torch.finfo(found.dtype).eps
    bound = 0.5 * eps * expected.abs() + 32 * ONE * expected.abs().amax(axes, keepdim=True) + _subnormal(found.dtype)
    _within(found, expected, bound)


def check_sums(found: Tensor, expected: Tensor, count: int) -> None:
    """Of `count` rows: within half an ulp and roundings that grow with the root of the count."""
    assert found.shape == expected.shape
    eps = torch.finfo(found.dtype).eps
    spread = expected.abs().max() if expected.numel() else 0
    bound = 0.5 * eps * expected.abs() + 32 * ONE * count**0.5 * (1 + spread) + _subnormal(found.dtype)
    _within(found, expected, bound)


def _subnormal(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).tiny * torch.finfo(dtype).eps


def _within(found: Tensor, expected: Tensor, bound: Tensor) -> None:
    over = (found.detach().double() - expected.detach()).abs() / bound.detach()
    assert not over.numel() or over.max() <= 1, (
        f"{over.max():.3g} times the bound, at {(over == over.max()).nonzero()[0]}"
    )
