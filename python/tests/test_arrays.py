"""NumPy's arrays, DLPack, and life without PyTorch."""

from __future__ import annotations

import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import torch

import normrope
from cases import arguments
from normrope import Segment

OPTIONS = {"norm": "layer_affine", "rope": "half", "order": "text_first"}


def numbers(tensor: torch.Tensor) -> np.ndarray:
    """A copy, in NumPy's words."""
    tensor = tensor.detach().clone()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def equal(array: np.ndarray, tensor: torch.Tensor) -> bool:
    return (
        array.dtype == numbers(tensor).dtype
        and array.shape == tensor.shape
        and array.tobytes() == numbers(tensor).tobytes()
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_the_same_bits_as_tensors(dtype: torch.dtype) -> None:
    given = arguments(dtype)
    for name in ("rope_cos", "rope_sin"):
        given[name].requires_grad_()
    arrays = {name: numbers(t) for name, t in given.items()}
    expected = normrope.norm_rope_concat(**given, **OPTIONS)
    found, pull = normrope.norm_rope_concat_vjp(**arrays, **OPTIONS)
    assert all(equal(a, t) for a, t in zip(found, expected))
    assert all(equal(a, t) for a, t in zip(normrope.norm_rope_concat(**arrays, **OPTIONS), expected))
    incoming = [torch.randn_like(t) for t in expected]
    gradients = pull(*map(numbers, incoming))
    torch.autograd.backward(expected, incoming)
    assert gradients.keys() == given.keys()
    assert all(equal(gradients[name], t.grad) for name, t in given.items())


def test_gradients_that_are_not_given() -> None:
    arrays = {name: numbers(t) for name, t in arguments().items()}
    (query, _, _), pull = normrope.norm_rope_concat_vjp(**arrays, **OPTIONS)
    gradients = pull(np.ones_like(query), None, None)
    assert "query" in gradients
    assert not any("key" in name or "value" in name for name in gradients)
    with pytest.raises(ValueError, match="gradients: 1, expected 2"):
        normrope.norm_rope_vjp([Segment(query), Segment(query, 1)])[1](query)


def test_general_form() -> None:
    packed = torch.randn(2, 5, 6, 4, requires_grad=True)
    weight = torch.randn(4, requires_grad=True)

    def segments(x: object, weight: object) -> list[Segment]:
        return [Segment(x, "a", (0, 4), "rms_affine", weight), Segment(x, "b", (4, 2), name="values")]

    expected = normrope.norm_rope(segments(packed, weight), layout="BSND")
    found, pull = normrope.norm_rope_vjp(segments(numbers(packed), numbers(weight)), layout="BSND")
    assert all(equal(a, t) for a, t in zip(found, expected))
    incoming = [torch.randn_like(t) for t in expected]
    torch.autograd.backward(expected, incoming)
    gradients = pull(*map(numbers, incoming))
    assert equal(gradients["segment0.x"], packed.grad)
    assert equal(gradients["segment0.weight"], weight.grad)


@pytest.mark.parametrize("view", [lambda a: a[:, ::2], lambda a: a[:, :, ::-1], lambda a: a.transpose(0, 1, 3, 2)])
def test_strides(view: object) -> None:
    array = view(np.random.default_rng(0).standard_normal((2, 8, 4, 4), np.float32))
    (found,) = normrope.norm_rope([Segment(array, norm="layer")])
    (expected,) = normrope.norm_rope([Segment(np.ascontiguousarray(array), norm="layer")])
    assert np.array_equal(found, expected)


def test_dlpack() -> None:
    class Foreign:
        """An array of another framework."""

        def __init__(self, array: np.ndarray) -> None:
            self.array = array

        def __dlpack__(self, **options: object) -> object:
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self) -> tuple[int, int]:
            return self.array.__dlpack_device__()

    array = np.random.default_rng(0).standard_normal((2, 8, 4, 4), np.float32)
    (found,) = normrope.norm_rope([Segment(Foreign(array), norm="layer")])
    (expected,) = normrope.norm_rope([Segment(array, norm="layer")])
    assert np.array_equal(found, expected)


def test_without_pytorch() -> None:
    """In a process where torch cannot be imported."""
    program = """
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
sys.meta_path.insert(0, NoTorch())
import numpy, normrope
x = numpy.arange(48, dtype=numpy.float32).reshape(1, 2, 3, 8)
joined, pull = normrope.norm_rope_vjp([normrope.Segment(x, norm="rms")])
assert joined[0].shape == (1, 3, 2, 8), joined[0].shape
assert abs((joined[0] ** 2).mean() - 1) < 1e-3
assert pull(joined[0])["segment0.x"].shape == x.shape
assert not hasattr(normrope, "nn") and "torch" not in sys.modules
try:
    normrope.tables
except AttributeError as error:
    assert str(error).endswith("has no attribute 'tables', which needs PyTorch"), error
assert normrope.explain(x, None).startswith("backend: CPU")
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
