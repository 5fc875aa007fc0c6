"""Weight gradients under sequence and tensor parallelism: sums over the ranks of a process group.

Where the ranks of a group hold different tokens or different heads of one step, each computes a share of the gradients
of the weights and biases that all of them have, and the gradient is the sum of the shares. `group=` makes that sum: the
shares are float32, travel in one all-reduce for all parameters of a call, and are rounded to the parameters' dtype
once, after the sum. Gradients of tables are not: a rank's tables may have rows of its own. Models that learn them call
`sum_gradients` for what they make them of.

Order of the sum: within a rank as always (docs/numerics.md), over the ranks as the group's all-reduce adds float32.
With gloo that follows from the number of ranks and of elements, and every rank is handed the same bits; other backends
have rules of their own. Of two ranks it is one addition, to which it does not matter who computed what.

It is a sum, not a mean. Do not ask for it over ranks whose gradients something else reduces already, as
DistributedDataParallel and FSDP do for data parallelism.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _SumGradients(torch.autograd.Function):
    """Parameters as they are, but in float32, and their gradients summed over a group.

    One node for all parameters of a call, so that there is one all-reduce.
    """

    @staticmethod
    def forward(ctx: Any, group_name: str, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.group_name = group_name
        ctx.dtypes = [parameter.dtype for parameter in parameters]
        return tuple(p.to(torch.promote_types(p.dtype, torch.float32), copy=True) for p in parameters)

    @staticmethod
    def backward(ctx: Any, *shares: Tensor) -> tuple[Tensor | None, ...]:
        # A parameter that the loss does not reach has a share of zeros, so the ranks' buffers always fit.
        buffer = torch.cat([share.flatten() for share in shares])
        functional = torch.ops._c10d_functional  # which torch.compile can trace, unlike dist.all_reduce
        total = functional.wait_tensor(functional.all_reduce(buffer, "sum", ctx.group_name))
        sums = total.split([share.numel() for share in shares])
        return None, *(s.view_as(share).to(dtype) for s, share, dtype in zip(sums, shares, ctx.dtypes))


def sum_gradients(group: dist.ProcessGroup, *parameters: Tensor | None) -> tuple[Tensor | None, ...]:
    """The parameters, in float32, to compute with in their stead: their gradients are then sums over `group`.

    What is None or wants no gradient is returned as it is; a parameter that comes twice, twice as one tensor. Every
    rank of the group must call this with parameters of the same shapes that want gradients alike, and run the backward
    as often and in the same order, or the ranks wait for each other for ever.

    Raises:
        TypeError: `group` is no process group, or this process is no member of it; a parameter is no tensor.
    """
    if not isinstance(group, dist.ProcessGroup):
        other = "a torch.distributed.ProcessGroup, as dist.group.WORLD"
        member = "a group that this process is a member of"
        expected = member if group is dist.GroupMember.NON_GROUP_MEMBER else other
        raise TypeError(f"group: found {group!r}, expected {expected}")
    for parameter in parameters:
        if not (parameter is None or isinstance(parameter, Tensor)):
            raise TypeError(f"group: given, expected None beside a weight that is a {type(parameter).__name__}")
    unique = list({id(p): p for p in parameters if p is not None and p.requires_grad}.values())
    if not unique or not torch.is_grad_enabled():
        return parameters
    reduced = dict(zip(map(id, unique), _SumGradients.apply(group.group_name, *unique)))
    return tuple(reduced.get(id(p), p) for p in parameters)
