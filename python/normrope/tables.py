"""Rope tables: from what models have, to the cos and sin that norm_rope and norm_rope_concat take.

A table has an entry for each channel that rotates: [R, C], [B, R, C] or [B, R, N, C]. Models often have one for each
pair of channels, as real or complex numbers; these functions lay it out for the pairs that `rope` names: "interleaved"
(2i, 2i + 1), "half" (i, i + C/2), or the even width of a block within which it is half (an axis of a video, say).

They are differentiable, keep dtypes (a complex64 gives float32) and do not change a number, so call them once, outside
the loop over layers.
"""

from __future__ import annotations

from normrope._spec import HALF, rope_width

try:
    from torch import Tensor
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"{__name__} needs PyTorch: {error}", name=error.name) from error

__all__ = ["from_complex", "from_full", "from_half", "from_matrices"]


def _width(rope: str | int, channels: int) -> int:
    width = rope_width("rope", rope)
    width = channels if width == HALF else width
    if not width or channels % width:
        raise ValueError(
            f"rope: {rope!r}, expected pairs of {channels} channels: 'interleaved', 'half' or a divisor of it"
        )
    return width


def _check(name: str, table: Tensor, axes: str, complex_: bool = False) -> None:
    if not isinstance(table, Tensor):
        raise TypeError(f"{name}: a {type(table).__name__}, expected a torch.Tensor")
    if table.is_complex() != complex_ or not (complex_ or table.is_floating_point()):
        expected = "a complex dtype" if complex_ else "a floating-point dtype"
        raise TypeError(f"{name}: {str(table.dtype).removeprefix('torch.')}, expected {expected}")
    if table.dim() < 2:
        raise ValueError(f"{name}: shape {list(table.shape)}, expected {axes}")


def from_half(cos: Tensor, sin: Tensor, rope: str | int = "interleaved") -> tuple[Tensor, Tensor]:
    """Of tables with an entry for each pair.

    Args:
        cos: [..., R, C/2], or [B, R, N, C/2].
        sin: as cos.
        rope: which channels are a pair.

    Returns:
        cos and sin, [..., R, C], contiguous.
    """
    for name, table in (("cos", cos), ("sin", sin)):
        _check(name, table, "[..., rows, pairs]")
    if cos.shape != sin.shape:
        raise ValueError(f"sin: shape {list(sin.shape)}, expected {list(cos.shape)} as cos")
    width = _width(rope, 2 * cos.shape[-1])
    laid_out = [t.unflatten(-1, (-1, 1, width // 2)) for t in (cos, sin)]
    both = [t.expand(*t.shape[:-2], 2, width // 2).flatten(-3) for t in laid_out]
    return both[0].contiguous(), both[1].contiguous()


def from_complex(table: Tensor, rope: str | int = "interleaved") -> tuple[Tensor, Tensor]:
    """Of exp(i angle), an entry for each pair, as models that multiply complex numbers have it.

    Args:
        table: [..., R, C/2], complex.
        rope: which channels are a pair.

    Returns:
        cos and sin, [..., R, C], contiguous, of the complex dtype's real one.
    """
    _check("table", table, "[..., rows, pairs]", complex_=True)
    return from_half(table.real, table.imag, rope)


def from_full(cos: Tensor, sin: Tensor, stored: str | int, rope: str | int) -> tuple[Tensor, Tensor]:
    """Of tables with an entry for each channel, laid out for other pairs than the rotation has.

    Args:
        cos: [..., R, C], laid out for the pairs `stored`.
        sin: as cos.
        stored: which channels are a pair in the tables.
        rope: which channels are a pair in the rotation.

    Returns:
        cos and sin, [..., R, C], contiguous: the entries of pair i, whatever their places, are those of pair i before.
    """
    for name, table in (("cos", cos), ("sin", sin)):
        _check(name, table, "[..., rows, channels]")
    if cos.shape != sin.shape:
        raise ValueError(f"sin: shape {list(sin.shape)}, expected {list(cos.shape)} as cos")
    channels = cos.shape[-1]
    before, after = _width(stored, channels), _width(rope, channels)

    def moved(table: Tensor) -> Tensor:
        pairs = table.unflatten(-1, (-1, 2, before // 2)).transpose(-1, -2).flatten(-3, -2)  # [..., C/2, 2]
        return pairs.unflatten(-2, (-1, after // 2)).transpose(-1, -2).flatten(-3).contiguous()

    return moved(cos), moved(sin)


def from_matrices(table: Tensor, rope: str | int = "interleaved") -> tuple[Tensor, Tensor]:
    """Of rotations as matrices, [[cos, -sin], [sin, cos]] for each pair.

    Args:
        table: [..., R, C/2, 2, 2].
        rope: which channels are a pair.

    Returns:
        cos and sin, [..., R, C], contiguous.
    """
    _check("table", table, "[..., rows, pairs, 2, 2]")
    if table.dim() < 4 or table.shape[-2:] != (2, 2):
        raise ValueError(f"table: shape {list(table.shape)}, expected [..., rows, pairs, 2, 2]")
    return from_half(table[..., 0, 0], table[..., 1, 0], rope)
