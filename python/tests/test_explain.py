"""That a call can be asked what it does and why."""

from __future__ import annotations

import torch

import normrope
from cases import B, D, N, S, T, arguments
from normrope import Segment, _native


def test_a_call() -> None:
    text = normrope.explain(**arguments(torch.bfloat16), norm="layer_affine", rope="half", order=1)
    lines = text.splitlines()
    assert lines[0] == f"backend: CPU, {_native.isa()} kernels, {torch.get_num_threads()} threads"
    assert lines[1] == "way: autograd, directly"
    rows = f"query: query [{B}, {S}, {N}, {D}] bfloat16 to positions {T} to {S + T - 1} of result 0"
    assert f"{rows}: layer with affine, half rope" in text
    assert "cos: rope_cos [10, 12] float32, used in its own dtype" in text
    assert "encoder_value: encoder_value [2, 3, 4, 12] bfloat16 to positions 0 to 2 of result 2: copied" in text


def test_why_it_is_slow() -> None:
    x = torch.randn(B, S, D, N).transpose(2, 3)
    assert f"slow: its channels are {N} elements apart" in normrope.explain([Segment(x)])
    text = normrope.explain(torch.randn(B, S, N, D).double(), None)
    assert text.startswith("backend: reference, because rows are float64")
    assert "no gradient is wanted" in text


def test_why_rows_do_not_turn() -> None:
    tables = {"rope": 2, "cos": torch.randn(3, D), "sin": torch.randn(3, D)}
    x = torch.randn(B, S, N, D)
    assert "of its positions 0 to 2 only: the tables have 3 rows" in normrope.explain([Segment(x, **tables)])
    text = normrope.explain([Segment(x, **tables, rope_position=3)])
    assert "the tables have no row for any of its positions" in text
    assert "of its positions 1 to 3 only" in normrope.explain([Segment(x, **tables, rope_position=-1)])


def test_which_way() -> None:
    class Watching(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
            return function(*args, **(kwargs or {}))

    x = torch.randn(B, S, N, D, requires_grad=True)
    with Watching():
        assert "because a torch dispatch mode is active" in normrope.explain(x, None)
    assert "arrays, without autograd" in normrope.explain(x.detach().numpy(), None)


def test_why_it_is_not_taken() -> None:
    x = torch.randn(B, S, N, D)
    assert normrope.explain(x, None, norm="x").startswith("not taken: ValueError: norm: 'x', expected")
    assert normrope.explain(x.int(), None).startswith("not taken: TypeError: query: int32")
    assert normrope.explain(x.to("meta"), None).startswith("not taken: NotImplementedError: query: on meta")
    assert normrope.explain(x[..., :3], None).startswith("not taken: ValueError: query: dim 3")
    assert normrope.explain([Segment(x, heads=(3, 2))]).startswith("not taken: ValueError")
    assert normrope.explain(x, torch.randn(1).numpy()).startswith("not taken: TypeError: key: a ndarray")
