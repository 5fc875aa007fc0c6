"""The module."""

from __future__ import annotations

import copy
import inspect
import re

import pytest
import torch

import normrope
from cases import B, D, N, S, T, arguments
from normrope.nn import NormRopeConcat


def parameters(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in module.named_parameters()}


@pytest.mark.parametrize("norm", ["none", "layer", "layer_affine", "rms", "rms_affine", 0, 1, 2, 3, 4])
def test_equals_the_function(norm: str | int) -> None:
    given = arguments()
    module = NormRopeConcat(D, norm=norm, rope="half", order="text_first", eps=1e-5, layout="BSND")
    for name, _ in module.named_parameters():
        setattr(module, name, torch.nn.Parameter(given[name].detach()))
    weights = {name: given[name] for name in parameters(module)}
    streams = {name: t for name, t in given.items() if not name.startswith("norm")}
    found = module(**streams)
    options = {"norm": norm, "rope": "half", "order": "text_first", "eps": 1e-5, "layout": "BSND"}
    expected = normrope.norm_rope_concat(**streams, **weights, **options)
    assert all(torch.equal(a, b) for a, b in zip(found, expected))
    torch.autograd.backward(found, [torch.ones_like(t) for t in found])
    torch.autograd.backward(expected, [torch.ones_like(t) for t in expected])
    assert all(torch.equal(p.grad, given[name].grad) for name, p in module.named_parameters())


def test_weights() -> None:
    assert parameters(NormRopeConcat(D)) == {
        f"{stream}{p}_weight": (D,) for stream in ("norm_", "norm_added_") for p in ("query", "key")
    }
    alone = parameters(NormRopeConcat(D, norm="layer_affine", added=False))
    assert set(alone) == {"norm_query_weight", "norm_query_bias", "norm_key_weight", "norm_key_bias"}
    wide = parameters(NormRopeConcat(D, heads=N, kv_heads=2, added=False, scope="all_heads"))
    assert wide == {"norm_query_weight": (N * D,), "norm_key_weight": (2 * D,)}
    assert not parameters(NormRopeConcat(D, norm="rms"))
    mixed = parameters(NormRopeConcat(D, norm="rms", norm_added="rms_affine"))
    assert set(mixed) == {"norm_added_query_weight", "norm_added_key_weight"}
    assert NormRopeConcat(D, dtype=torch.float16).norm_key_weight.dtype == torch.float16
    module = NormRopeConcat(D, norm="layer_affine")
    assert module.norm_query_weight.eq(1).all()
    assert module.norm_query_bias.eq(0).all()


def test_shared_weights() -> None:
    module = NormRopeConcat(D, shared=True, rope="none")
    assert set(parameters(module)) == {"norm_query_weight", "norm_key_weight"}
    given = arguments(bias=False)
    streams = {name: t for name, t in given.items() if not name.startswith(("norm", "rope"))}
    module(**streams)[0].sum().backward()
    weights = {
        f"norm_{a}{p}_weight": module.norm_query_weight.detach() for a in ("", "added_") for p in ("query", "key")
    }
    weights = {name: w.clone().requires_grad_() for name, w in weights.items()}
    normrope.norm_rope_concat(**streams, **weights, norm="rms_affine")[0].sum().backward()
    expected = weights["norm_query_weight"].grad + weights["norm_added_query_weight"].grad
    torch.testing.assert_close(module.norm_query_weight.grad, expected)


def test_norm_over_all_heads() -> None:
    module = NormRopeConcat(D, heads=N, added=False, scope="all_heads", rope="none")
    x = torch.randn(B, S, N, D)
    query, _, _ = module(x, x)
    torch.testing.assert_close(
        query, torch.nn.functional.rms_norm(x.flatten(2), (N * D,), eps=1e-6).view_as(x).transpose(1, 2)
    )


@pytest.mark.parametrize("make", [torch.nn.LayerNorm, torch.nn.RMSNorm])
def test_around_norms_of_a_model(make: type) -> None:
    norms = [make(D, eps=eps) for eps in (1e-5, 1e-5, 0.5, 0.5)]
    module = NormRopeConcat.from_norms(*norms, rope="none")
    assert module.norm_query_weight is norms[0].weight
    assert module.norm_added_key_weight is norms[3].weight
    assert (module.eps, module.eps_added) == (1e-5, 0.5)
    assert NormRopeConcat.from_norms(*norms, eps=0.1, eps_added=0.2).eps_added == 0.2
    query, text = torch.randn(B, S, N, D), torch.randn(B, T, N, D)
    found, _, _ = module(query, query, None, text, text)
    expected = torch.cat([norms[0](query), norms[2](text)], 1).transpose(1, 2)
    torch.testing.assert_close(found, expected)
    wide = make(N * D, eps=0.5)
    alone = NormRopeConcat.from_norms(wide, wide, scope="all_heads", heads=N, rope="none")
    torch.testing.assert_close(alone(query, query)[0].transpose(1, 2).flatten(2), wide(query.flatten(2)))


def test_refused() -> None:
    norms = [torch.nn.LayerNorm(D, eps=eps) for eps in (1e-5, 1e-6)]
    with pytest.raises(ValueError, match="norm_key: eps 1e-06, expected 1e-05 as norm_query's"):
        NormRopeConcat.from_norms(*norms)
    with pytest.raises(ValueError, match="norm_added_key: eps 1e-06, expected 1e-05 as norm_added_query's"):
        NormRopeConcat.from_norms(norms[0], norms[0], *norms)
    # Of PyTorch's RMSNorm without a number eps follows the dtype of what it is called with.
    with pytest.raises(ValueError, match=r"norm_query: eps None, .*expected a number: there, or as the option eps$"):
        NormRopeConcat.from_norms(torch.nn.RMSNorm(D), torch.nn.RMSNorm(D))
    with pytest.raises(ValueError, match="norm_key: layer_affine, expected rms_affine as norm_query"):
        NormRopeConcat.from_norms(torch.nn.RMSNorm(D), torch.nn.LayerNorm(D))
    with pytest.raises(ValueError, match="norm_query: a Linear, expected a LayerNorm or an RMSNorm"):
        NormRopeConcat.from_norms(torch.nn.Linear(2, 2), torch.nn.LayerNorm(D))
    with pytest.raises(ValueError, match="heads: None, expected a number because scope is 'all_heads'"):
        NormRopeConcat(D, scope="all_heads")
    with pytest.raises(ValueError, match="norm: 'group', expected"):
        NormRopeConcat(D, norm="group")
    for option, value in (("order", 2), ("scope", 1), ("rope_on", "text"), ("layout", 1), ("rope", [1])):
        with pytest.raises(ValueError, match=f"{option}: .*, expected"):
            NormRopeConcat(D, **{option: value})
    with pytest.raises(TypeError, match="eps: 'small', expected a number"):
        NormRopeConcat(D, eps="small")


def test_documented_defaults() -> None:
    for owner, norm, rope in (
        (normrope.norm_rope_concat, "none", "none"),
        (NormRopeConcat, "rms_affine", "interleaved"),
    ):
        text, parameters = inspect.getdoc(owner), inspect.signature(owner).parameters
        for option, default in (("norm", norm), ("rope", rope)):
            assert parameters[option].default == default
            line = re.search(rf"^ *{option}: (.|\n {{6,}})*", text, re.MULTILINE)[0]
            assert re.findall(r'"(\w+)" \(the default\)', line) == [default]


def test_state_copies_and_prints() -> None:
    module = NormRopeConcat(D, norm="layer_affine")
    other = NormRopeConcat(D, norm="layer_affine")
    with torch.no_grad():
        module.norm_key_bias.normal_()
    other.load_state_dict(module.state_dict())
    assert torch.equal(other.norm_key_bias, module.norm_key_bias)
    assert copy.deepcopy(module).norm_key_bias is not module.norm_key_bias
    assert "norm='layer_affine'" in repr(module)
    assert "order='image_first'" in repr(module)


def test_rows_that_the_module_was_not_made_for() -> None:
    rows = torch.ones(1, 4, 2, 8)
    cos, sin = torch.ones(4, 8), torch.zeros(4, 8)
    with pytest.raises(ValueError, match="query: dim 8, expected 16, which the module was made with"):
        NormRopeConcat(16, added=False)(rows, rows, rope_cos=cos, rope_sin=sin)
    with pytest.raises(ValueError, match="encoder_key: given, expected None: the module was made with added=False"):
        NormRopeConcat(8, added=False)(None, rows, encoder_key=rows, rope_cos=cos, rope_sin=sin)
    for dim in (0, "8"):
        with pytest.raises(ValueError, match="expected a number from 1 on"):
            NormRopeConcat(dim)  # type: ignore[arg-type]
