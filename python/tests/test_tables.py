"""Rope tables from what models have."""

from __future__ import annotations

import pytest
import torch

import normrope
import reference
from cases import B, N
from normrope import Segment, tables

R, C = 5, 12
WIDTHS = {"interleaved": 2, "half": C, 4: 4, 6: 6}


def pairs(width: int) -> list[tuple[int, int]]:
    """The channels that turn together."""
    blocks = range(0, C, width)
    return [(block + i, block + i + width // 2) for block in blocks for i in range(width // 2)]


@pytest.mark.parametrize("rope", WIDTHS)
def test_every_builder_turns_by_the_angle(rope: str | int) -> None:
    angles = torch.randn(R, C // 2, dtype=torch.float64)
    cos, sin = angles.cos(), angles.sin()
    full = [torch.zeros(R, C, dtype=torch.float64) for _ in range(2)]
    for i, (a, b) in enumerate(pairs(WIDTHS[rope])):
        for laid_out, table in zip(full, (cos, sin)):
            laid_out[:, a] = laid_out[:, b] = table[:, i]
    matrices = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
    interleaved = tables.from_half(cos, sin, "interleaved")
    for found in (
        tables.from_half(cos, sin, rope),
        tables.from_complex(torch.polar(torch.ones_like(angles), angles), rope),
        tables.from_matrices(matrices, rope),
        tables.from_full(*interleaved, stored="interleaved", rope=rope),
    ):
        assert all(t.is_contiguous() and torch.equal(t, e) for t, e in zip(found, full))
    back = tables.from_full(*full, stored=rope, rope="interleaved")
    assert all(torch.equal(a, b) for a, b in zip(back, interleaved))

    x = torch.randn(B, R, N, C, dtype=torch.float64)
    turned = normrope.norm_rope([Segment(x, rope=rope, cos=full[0], sin=full[1])], layout="BSND")[0]
    for i, (a, b) in enumerate(pairs(WIDTHS[rope])):
        expected = torch.complex(x[..., a], x[..., b]) * torch.polar(torch.ones(R, 1).double(), angles[:, i, None])
        torch.testing.assert_close(torch.complex(turned[..., a], turned[..., b]), expected)


def test_dtypes_batches_and_gradients() -> None:
    learned = torch.randn(B, R, N, C // 2, requires_grad=True)
    cos, sin = tables.from_half(learned, learned * 2, "half")
    assert cos.shape == (B, R, N, C)
    assert tables.from_complex(torch.ones(R, 3, dtype=torch.complex64))[0].dtype == torch.float32
    x = torch.randn(B, R, N, C)
    joined = normrope.norm_rope([Segment(x, norm="rms", rope="half", cos=cos, sin=sin)])[0]
    (found,) = torch.autograd.grad(joined.sum(), (learned,))
    wide = learned.detach().double().requires_grad_()
    cos, sin = tables.from_half(wide, wide * 2, "half")
    (joined,) = reference.norm_rope([Segment(x.double(), norm="rms", rope="half", cos=cos, sin=sin)])
    (expected,) = torch.autograd.grad(joined.sum(), (wide,))
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_refused() -> None:
    real, complex_ = torch.randn(R, 4), torch.randn(R, 4, dtype=torch.complex64)
    with pytest.raises(TypeError, match=r"cos: a ndarray, expected a torch\.Tensor"):
        tables.from_half(real.numpy(), real.numpy())
    with pytest.raises(TypeError, match="table: float32, expected a complex dtype"):
        tables.from_complex(real)
    with pytest.raises(TypeError, match="cos: complex64, expected a floating-point dtype"):
        tables.from_half(complex_, complex_)
    with pytest.raises(ValueError, match=r"sin: shape \[5, 3\], expected \[5, 4\] as cos"):
        tables.from_half(real, real[:, :3])
    with pytest.raises(ValueError, match="rope: 6, expected pairs of 8 channels"):
        tables.from_half(real, real, 6)
    with pytest.raises(ValueError, match=r"table: shape \[5, 4\], expected \[..., rows, pairs, 2, 2\]"):
        tables.from_matrices(real)
    with pytest.raises(ValueError, match="rope: 'none', expected"):
        tables.from_full(real, real, "half", "none")
    with pytest.raises(ValueError, match=r"cos: shape \[4\], expected \[..., rows, pairs\]"):
        tables.from_half(real[0], real[0])
