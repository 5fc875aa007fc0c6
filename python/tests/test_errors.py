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
        ({"norm": None}, "norm: None, expected 'none', 'layer'"),
        ({"norm": [3]}, "norm: [3], expected 'none', 'layer'"),
        ({"norm": np.ones(2)}, "norm: array([1., 1.]), expected"),
        ({"rope": None}, "rope: None, expected 'none', 'interleaved', 'half', or the even width"),
        ({"rope": [1]}, "rope: [1], expected"),
        ({"order": 2.5}, "order: 2.5, expected 'image_first', 'text_first', or 0, 1"),
        ({"order": None}, "order: None, expected"),
        ({"layout": 1}, "layout: 1, expected 'BNSD', 'BSND'"),
        ({"scope": 0}, "scope: 0, expected 'head', 'all_heads'"),
        ({"rope_on": ["image"]}, "rope_on: ['image'], expected 'joined', 'image'"),
        (
            {"rope": "none"},
            "rope: 'none', but rope_cos is given, expected 'interleaved', 'half' or the even width of a pairing block, "
            "or no rope_cos",
        ),
        (
            {"norm": "none"},
            "norm: 'none', but norm_query_weight is given, expected 'rms_affine' or 'layer_affine', or no "
            "norm_query_weight",
        ),
        (
            {"norm": 0, "norm_query_weight": None},
            "norm: 'none', but norm_query_bias is given, expected 'layer_affine', or no norm_query_bias",
        ),
        ({"norm_added": "none"}, "norm_added: 'none', but norm_added_query_weight is given"),
        ({"norm": "rms"}, "norm_query_weight: given, expected None: norm is 'rms', which has no weight"),
        ({"norm": "rms_affine"}, "norm_query_bias: given, expected None: norm is 'rms_affine', which has no bias"),
        ({"norm_added": 4}, "norm_added_query_bias: given, expected None: norm_added is 'rms_affine', which has no"),
        ({"encoder_query": None}, "norm_added_query_weight: given, expected None: no encoder_query is given"),
        ({"key": None}, "norm_key_weight: given, expected None: no key is given"),
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


@pytest.mark.parametrize("option", ["eps", "eps_added"])
@pytest.mark.parametrize("value", ["1e-6", [1e-6], torch.ones(2)])
def test_eps_is_a_number(option: str, value: object) -> None:
    refused({option: value}, f"{option}: {value!r}, expected a number", TypeError)


@pytest.mark.parametrize("value", [np.float32(0.5), torch.tensor(0.5)])
def test_eps_of_another_type(value: Any) -> None:
    (found,) = normrope.norm_rope([Segment(X, norm="rms", eps=value)])
    assert torch.equal(found, normrope.norm_rope_concat(X, None, norm=np.int64(3), eps=0.5)[0])


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"value": X}, "rope_cos: given, expected None: no query or key is given"),
        (
            {"key": X, "key_rope_cos": TABLE, "key_rope_sin": TABLE},
            "no query is given, and keys have tables of their own",
        ),
        ({"encoder_query": X, "rope_on": "image"}, "no query or key of the image is given, and rope_on is 'image'"),
        ({"query": X, "key_rope_cos": TABLE}, "key_rope_cos: given, expected None: no key is given"),
    ],
)
def test_tables_that_nothing_reads(given: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        normrope.norm_rope_concat(**{"query": None, "key": None} | given, rope="half", rope_cos=TABLE, rope_sin=TABLE)


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
    text = r"key: a Tensor that NumPy cannot read \(.*grad.*\), expected arrays of one kind: torch.Tensor throughout"
    with pytest.raises(TypeError, match=text):
        normrope.norm_rope_concat(X.numpy(), X.clone().requires_grad_())
    with pytest.raises(TypeError, match="query: >f4, expected float32"):
        normrope.norm_rope_concat(np.zeros((1, 2, 3, 4), ">f4"), None)


@pytest.mark.parametrize(
    ("segments", "text"),
    [
        ([], "segments: 0, expected 1 to 64"),
        ([Segment(X)] * 65, "segments: 65, expected 1 to 64"),
        ([Segment(X, norm="rms_affine")], "segment0.weight: None, expected a tensor: norm is 'rms_affine'"),
        ([Segment(X, weight=W)], "segment0.weight: given, expected None: norm is 'none'"),
        ([Segment(X, rope="half", cos=TABLE)], "segment0.sin: None, expected a tensor: rope is 'half'"),
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


@pytest.mark.parametrize(
    ("segments", "text"),
    [
        (X, "segments: a Tensor, expected a list of normrope.Segment"),
        (Segment(X), "segments: a Segment, expected a list of normrope.Segment"),
        ([X], "segments[0]: a Tensor, expected a normrope.Segment"),
        ([Segment(X), None], "segments[1]: a NoneType, expected a normrope.Segment"),
        ([Segment(X, output=[1])], "segments[0].output: [1], expected a name or an integer"),
        ([Segment(X, output=1.0)], "segments[0].output: 1.0, expected a name or an integer"),
        ([Segment(X, heads=2)], "segments[0].heads: 2, expected (first, count)"),
        ([Segment(X, heads=(0, 1, 2))], "segments[0].heads: (0, 1, 2), expected (first, count)"),
        ([Segment(X, heads=(0, 1.5))], "segments[0].heads: (0, 1.5), expected (first, count)"),
        ([Segment(X, heads=(0.0, 1.0))], "segments[0].heads: (0.0, 1.0), expected (first, count)"),
        ([Segment(X, rope_position=0.5)], "segments[0].rope_position: 0.5, expected an integer"),
        ([Segment(X, rope_position=1.0)], "segments[0].rope_position: 1.0, expected an integer"),
        ([Segment(X, name=1)], "segments[0].name: 1, expected a str"),
        ([Segment(X, eps=None)], "segment0.eps: None, expected a number"),
        ([Segment(None)], "segment0.x: a NoneType, expected a torch.Tensor, a NumPy array"),
    ],
)
def test_segments_of_wrong_types(segments: Any, text: str) -> None:
    with pytest.raises(TypeError, match=re.escape(text)):
        normrope.norm_rope(segments)
    with pytest.raises(TypeError, match=re.escape(text)):
        normrope.norm_rope_vjp(segments)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support", "ignore:The PyTorch API of nested tensors")
@pytest.mark.filterwarnings("ignore:.*quantize_per_tensor", "ignore:.*quantized")
def test_kinds_of_tensors() -> None:
    for tensor, found in (
        (X.to_sparse(), "torch.sparse_coo"),
        (X[0, 0].to_sparse_csr(), "torch.sparse_csr"),
        (torch.nested.nested_tensor([X[0], X[0]]), "nested"),
    ):
        for gradient in (False, True):
            given = tensor.clone().requires_grad_(gradient)
            refused({"key": given}, f"key: a tensor that is {found}, expected torch.strided", TypeError)
    with pytest.raises(TypeError, match="a nested tensor, expected"):
        normrope.norm_rope_concat(torch.nested.nested_tensor([X[0], X[0]], layout=torch.jagged), None)
    refused({"query": X.to(torch.complex64)}, "query: complex64, expected float32", TypeError)
    refused({"query": torch.quantize_per_tensor(X, 0.1, 0, torch.qint8)}, "query: qint8, expected float32", TypeError)


def test_a_refused_call_is_refused_again() -> None:
    """And the one after it is not."""
    for _ in range(2):
        refused({"norm_query_weight": W[:4]}, "norm_query_weight: shape [4]")
    assert normrope.norm_rope_concat(X, None)[0].shape == (B, N, S, D)


def test_a_specification_of_another_version() -> None:
    with pytest.raises(ValueError, match="version 0, expected 1"):
        torch.ops.normrope.forward([X], [0], [1e-6], "0 BNSD x; x output=0 x=0", False)
