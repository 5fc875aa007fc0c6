"""What is refused, and that the text names the argument, what was found and what was expected."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

import normrope
from cases import B, D, N, S, T, arguments
from normrope import Segment

X = torch.randn(B, S, N, D)
W = torch.randn(D)
TABLE = torch.randn(S, D)


def refused(change: dict[str, Any], text: str, error: type[Exception] = ValueError, **options: Any) -> None:
    given = arguments() | {"norm": "layer_affine", "rope": "half"} | change
    with pytest.raises(error, match=re.escape(text)):
        normrope.norm_rope_concat(**given, **options)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {"norm": "rmsnorm"},
            "norm: 'rmsnorm', expected 'none', 'layer', 'layer_affine', 'rms', 'rms_affine', or 0 to 4",
        ),
        ({"norm": 5}, "norm: 5, expected"),
        ({"norm_added": "batch"}, "norm_added: 'batch', expected"),
        ({"rope": "full"}, "rope: 'full', expected 'none', 'interleaved', 'half', or the even width"),
        ({"rope": 3}, "rope: 3, expected"),
        ({"rope": 8}, "rope_cos: 12 channels, expected an even number from 2 to 12, a multiple of the pairing block 8"),
        ({"order": "text"}, "order: 'text', expected 'image_first', 'text_first'"),
        ({"order": 2}, "order: 2, expected"),
        ({"scope": "heads"}, "scope: 'heads', expected 'head', 'all_heads'"),
        ({"rope_on": "text"}, "rope_on: 'text', expected 'joined', 'image'"),
        ({"layout": "SBND"}, "layout: 'SBND', expected 'BNSD', 'BSND'"),
        ({"norm_key_weight": None}, "norm_key_weight: None, expected a tensor because norm is 'layer_affine'"),
        ({"norm_added_query_bias": None}, "norm_added_query_bias: None, expected a tensor because norm_added is"),
        ({"rope_sin": None}, "rope_sin: None, expected a tensor because rope is 'half'"),
        ({"key_rope_cos": TABLE}, "key_rope_sin: None, expected a tensor"),
        ({"rope": "none"}, "rope_cos: given, expected None"),
        ({"norm": "rms_affine"}, "norm_query_bias: given, expected None"),
        ({"encoder_value": None}, "encoder_value: None, expected a tensor as encoder_key is one"),
        ({"norm_query_weight": W[:4]}, "norm_query_weight: shape [4], expected [12] or [4, 12] or [48]"),
        ({"norm_key_bias": W[None]}, "norm_key_bias: shape [1, 12], expected [12]"),
        ({"query": X[0]}, "query: shape [7, 4, 12], expected 4 axes"),
        ({"encoder_key": torch.randn(B, T, N + 1, D)}, "heads 5, dim 12, expected 2, 4, 12 as"),
        (
            {"encoder_value": torch.randn(1, T, N, D)},
            "encoder_value: batch 1, heads 4, dim 12, expected 2, 4, 12 as value",
        ),
        ({"encoder_query": torch.randn(B, T, N, D).half()}, "encoder_query: float16, expected float32 as query"),
        ({"rope_cos": torch.randn(S)}, "rope_cos: shape [7], expected [rows, rope_dim]"),
        ({"rope_cos": torch.randn(S, D + 2)}, "rope_cos: 14 channels, expected an even number from 2 to 12"),
        ({"rope_cos": torch.randn(3, S, D)}, "rope_cos: shape [3, 7, 12], expected [2, 7, 12] or [1, 7, 12]"),
        ({"rope_cos": torch.randn(1, S, 2, D)}, "rope_cos: shape [1, 7, 2, 12], expected"),
        ({"rope_sin": torch.randn(S, D)}, "rope_sin: shape [7, 12], expected [10, 12]"),
        ({"eps": -1.0}, "eps -1"),
        ({"eps": float("nan")}, "eps nan"),
    ],
)
def test_values(change: dict[str, Any], text: str) -> None:
    refused(change, text)


def test_nothing_at_all() -> None:
    with pytest.raises(ValueError, match="all None, expected at least one"):
        normrope.norm_rope_concat(None, None)


def test_odd_head_size() -> None:
    with pytest.raises(ValueError, match="dim 7, expected an even number from 2 to 1024"):
        normrope.norm_rope_concat(torch.randn(1, 2, 3, 7), None)


def test_dtypes() -> None:
    refused({"query": X.int()}, "query: int32, expected float32, float16, bfloat16, float64", TypeError)
    refused({"rope_cos": torch.randn(S + T, D).double()}, "rope_cos: float64", NotImplementedError)


def test_devices() -> None:
    refused({"norm_query_weight": W.to("meta")}, "norm_query_weight: on meta, expected cpu as query")
    with pytest.raises(NotImplementedError, match="query: on meta, expected a device of type cpu or cuda"):
        normrope.norm_rope_concat(X.to("meta"), None)


def test_what_is_no_tensor() -> None:
    refused({"key": X.numpy()}, "key: a ndarray, expected a torch.Tensor", TypeError)
    with torch.no_grad():
        refused({"key": X.numpy()}, "key: a ndarray, expected a torch.Tensor", TypeError)
    refused(
        {"query": [1.0]}, "query: a list, expected a torch.Tensor, a NumPy array or one that speaks DLPack", TypeError
    )
    with pytest.raises(TypeError, match="query: >f4, expected float32"):
        normrope.norm_rope_concat(np.zeros((1, 2, 3, 4), ">f4"), None)


@pytest.mark.parametrize(
    ("segments", "text"),
    [
        ([], "segments: 0, expected 1 to 64"),
        ([Segment(X)] * 65, "segments: 65, expected 1 to 64"),
        ([Segment(X, norm="rms_affine")], "segment0.weight: None, expected a tensor: norm is 'rms_affine'"),
        ([Segment(X, weight=W)], "segment0.weight: given, expected None: norm is 'none'"),
        ([Segment(X, rope="half", cos=TABLE)], "segment0.sin: None, expected a tensor"),
        ([Segment(X, norm="x", name="q")], "q.norm: 'x', expected"),
        ([Segment(X, name="a b")], "segments[0].name: 'a b', expected no space"),
        ([Segment(X, heads=(2, 3))], "segment0.x: 4 heads, expected at least 5"),
        ([Segment(X, heads=(-1, 3))], "segment0.heads: (-1, 3), expected (first >= 0, count >= 1)"),
        ([Segment(X), Segment(X[:1])], "segment1.x: batch 1, heads 4, dim 12, expected 2, 4, 12 as segment0.x has"),
    ],
)
def test_segments(segments: list[Segment], text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        normrope.norm_rope(segments)


def test_a_refused_call_is_refused_again() -> None:
    """And the one after it is not."""
    for _ in range(2):
        refused({"norm_query_weight": W[:4]}, "norm_query_weight: shape [4]")
    assert normrope.norm_rope_concat(X, None)[0].shape == (B, N, S, D)


def test_a_specification_of_another_version() -> None:
    with pytest.raises(ValueError, match="version 0, expected 1"):
        torch.ops.normrope.forward([X], [0], [1e-6], "0 BNSD x; x output=0 x=0", False)
