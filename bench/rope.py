"""Rotary embedding in PyTorch, as what is compared has it."""

import torch
from torch import Tensor


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Rotary embedding of [B, N, S, D] as the models' sources have it: in float32, rounded at the end."""
    if interleaved:
        real, imaginary = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)
        turned = torch.stack([-imaginary, real], dim=-1).flatten(3)
    else:
        real, imaginary = x.reshape(*x.shape[:-1], 2, -1).unbind(-2)
        turned = torch.cat([-imaginary, real], dim=-1)
    return (x.float() * cos + turned.float() * sin).to(x.dtype)
