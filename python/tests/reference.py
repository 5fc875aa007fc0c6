"""The step in plain PyTorch, in whatever dtype its inputs have: what the tests hold the package against, with autograd.

Written from the formulas alone and sharing nothing with the package: norm, then rope by the joined position, then
concat.
"""

from __future__ import annotations

import torch
from torch import Tensor


def norm(x: Tensor, kind: str, weight: Tensor | None, bias: Tensor | None, eps: float, all_heads: bool) -> Tensor:
    """Of rows [B, S, N, D], over D or over N and D."""
    if kind == "none":
        return x
    axes = (-2, -1) if all_heads else (-1,)
    if kind.startswith("layer"):
        x = x - x.mean(axes, keepdim=True)
    x = x / (x.square().mean(axes, keepdim=True) + eps).sqrt()
    if weight is not None:
        x = x * (weight if weight.dim() == 2 or weight.numel() == x.shape[-1] else weight.view(x.shape[-2:]))
    if bias is not None:
        x = x + (bias if bias.dim() == 2 or bias.numel() == x.shape[-1] else bias.view(x.shape[-2:]))
    return x


def rope(x: Tensor, cos: Tensor, sin: Tensor, width: int, first_row: int) -> Tensor:
    """Of rows [B, S, N, D]; cos and sin are [B or 1, R, N or 1, C]; row s takes the tables' row first_row + s."""
    rows, channels = cos.shape[1], cos.shape[3]
    out = []
    for s in range(x.shape[1]):
        row = x[:, s]
        if 0 <= first_row + s < rows:
            c, si = cos[:, first_row + s], sin[:, first_row + s]
            turned = row[..., :channels].unflatten(-1, (-1, 2, width // 2))
            first, second = turned[..., 0, :], turned[..., 1, :]
            partner = torch.stack([-second, first], -2).flatten(-3)
            row = torch.cat([row[..., :channels] * c + partner * si, row[..., channels:]], -1)
        out.append(row)
    return torch.stack(out, 1) if out else x


def table(t: Tensor) -> Tensor:
    """[R, C], [B, R, C] or [B, R, N, C] as the last."""
    return {2: lambda: t[None, :, None], 3: lambda: t[:, :, None], 4: lambda: t}[t.dim()]()


def norm_rope(segments: list, layout: str = "BNSD") -> list[Tensor]:
    """As normrope.norm_rope, of normrope.Segment."""
    parts: dict = {}
    for s in segments:
        x = s.x if s.heads is None else s.x[:, :, s.heads[0] : s.heads[0] + s.heads[1]]
        place = sum(part.shape[1] for part in parts.get(s.output, []))
        x = norm(x, s.norm, s.weight, s.bias, s.eps, s.scope == "all_heads")
        if s.rope != "none":
            width = {"interleaved": 2, "half": s.cos.shape[-1]}.get(s.rope, s.rope)
            x = rope(x, table(s.cos), table(s.sin), width, place if s.rope_position is None else s.rope_position)
        parts.setdefault(s.output, []).append(x)
    joined = [torch.cat(part, 1) for part in parts.values()]
    return [x.transpose(1, 2) if layout == "BNSD" else x for x in joined]
