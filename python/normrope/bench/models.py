"""The step as models write it in PyTorch: norm, transpose, concat, rope, each an operation of its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Rotary embedding of [B, N, S, D] as the models' sources have it: in float32, rounded at the end."""
    if interleaved:
        real, imaginary = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)
        turned = torch.stack([-imaginary, real], dim=-1).flatten(3)
    else:
        real, imaginary = x.reshape(*x.shape[:-1], 2, -1).unbind(-2)
        turned = torch.cat([-imaginary, real], dim=-1)
    return (x.float() * cos + turned.float() * sin).to(x.dtype)


def normalise(x: Tensor, kind: str, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """LayerNorm or RMSNorm over the last axis."""
    size = (x.shape[-1],)
    if kind.startswith("layer"):
        return F.layer_norm(x, size, weight, bias, eps)
    return F.rms_norm(x, size, weight, eps)


def norm_rope_concat(
    *,
    norm: str,
    norm_added: str,
    rope: str,
    rope_on: str,
    order: str,
    scope: str,
    eps: float,
    normalise: Callable[..., Tensor] = normalise,
    rotate: Callable[..., Tensor] = rotate,
    **tensors: Tensor,
) -> tuple[Tensor, ...]:
    """normrope.norm_rope_concat, of full tables; [B, N, S, D], contiguous.

    Concat makes the transposed rows contiguous, so there is no pass for that alone; rope comes after it where all rows
    rotate. `normalise` and `rotate` may be someone's kernels.
    """
    joined = []
    streams = (("", "norm_", norm), ("encoder_", "norm_added_", norm_added))
    for projection in ("query", "key", "value"):
        parts = []
        rotates = projection != "value" and rope != "none"
        for prefix, norm_prefix, kind in streams if order == "image_first" else streams[::-1]:
            x = tensors.get(prefix + projection)
            if x is None:
                continue
            if projection != "value" and kind != "none":
                weight, bias = (tensors.get(f"{norm_prefix}{projection}_{p}") for p in ("weight", "bias"))
                rows = x.flatten(2) if scope == "all_heads" else x
                x = normalise(rows, kind, weight, bias, eps).view_as(x)
            x = x.transpose(1, 2)
            if rotates and rope_on == "image" and not prefix:
                x = rotate(x, tensors["rope_cos"], tensors["rope_sin"], rope == "interleaved")
            parts.append(x)
        x = torch.cat(parts, 2) if len(parts) > 1 else parts[0]
        if rotates and rope_on == "joined":
            x = rotate(x, tensors["rope_cos"], tensors["rope_sin"], rope == "interleaved")
        joined.append(x.contiguous())
    return tuple(joined)
