"""Kinds of PyTorch's tensors that kernels cannot read, and what to say of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad

_NO_TANGENTS = "a tangent of forward-mode AD (torch.func.jvp, jacfwd), and normrope has gradients in reverse mode only"
_NO_VMAP = "batched by torch.func.vmap (jacrev, is_grads_batched), which normrope has no rule for; use the batch axis"


def check_readable(names: Sequence[str], tensors: Sequence[Tensor | None]) -> None:
    """Raises if one of the tensors has no memory with strides. For after a failure: it takes its time."""
    for name, tensor in zip(names, tensors):
        if tensor is None:
            continue
        if tensor.is_nested or tensor.layout != torch.strided:
            found = "nested" if tensor.is_nested else str(tensor.layout)
            raise TypeError(f"{name}: a tensor that is {found}, expected torch.strided")
        try:
            tensor.data_ptr()
        except RuntimeError as error:
            raise NotImplementedError(f"{name}: has no memory, as under transforms of torch.func: {error}") from error


def check_tangents(names: Sequence[str], tensors: Sequence[Tensor]) -> None:
    """Raises if one of the tensors has a tangent, which would be lost."""
    for name, tensor in zip(names, tensors):
        if forward_ad.unpack_dual(tensor).tangent is not None:
            raise NotImplementedError(f"{name}: has {_NO_TANGENTS}")


def refuse_jvp(ctx: Any, *tangents: Any) -> NoReturn:
    """The forward-mode derivative of an autograd Function."""
    raise NotImplementedError(f"normrope: an argument has {_NO_TANGENTS}")


def refuse_vmap(info: Any, in_dims: Any, *arguments: Any) -> NoReturn:
    """The batching rule of an autograd Function."""
    raise NotImplementedError(f"normrope: an argument or a gradient is {_NO_VMAP}")
