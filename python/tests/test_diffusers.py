"""`normrope.diffusers` in real diffusers models, small and random, patched against unpatched.

Truth is the unpatched model in float64 throughout. A patched model must come as near to it as the unpatched model of the
same dtype does.
"""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch

diffusers = pytest.importorskip("diffusers")

import normrope.diffusers  # noqa: E402
import zoo  # noqa: E402

FAMILIES = [name for name, row in zoo.ZOO.items() if row.patched]
DTYPES = [torch.float32, torch.bfloat16]

# A tensor's error is one draw of rounding errors, and the unpatched model's another. Of two draws one may exceed the
# other, most in tensors of few elements; over all tensors of a model the ratio averages out.
TENSOR_FACTOR, MODEL_FACTOR = 4.0, 1.25


def run(model: torch.nn.Module, inputs: dict) -> dict[str, torch.Tensor | None]:
    """Output and gradients by name, of a loss in which every element of the output has a weight of its own."""
    output = model(**inputs, return_dict=False)[0]
    weights = torch.arange(output.numel(), dtype=torch.float64).mul(0.7).sin().view(output.shape)
    output.backward(weights.to(output.dtype))
    results = {"output": output.detach()}
    results |= {f"input {k}": v.grad for k, v in inputs.items() if isinstance(v, torch.Tensor) and v.requires_grad}
    return results | {name: parameter.grad for name, parameter in model.named_parameters()}


def results_of(name: str, dtype: torch.dtype, *, patched: bool) -> dict[str, torch.Tensor | None]:
    """`run` of a row of the zoo."""
    model, inputs = zoo.make(name)
    model.to(dtype)
    if patched:
        normrope.diffusers.patch(model)
    return run(model, zoo.to(inputs, dtype))


@pytest.fixture(scope="module")
def truth() -> dict:
    """Results of unpatched models in float64, computed where asked for."""

    class Truth(dict):
        def __missing__(self, name: str) -> dict:
            with zoo.Float32IsFloat64():
                self[name] = results_of(name, torch.float64, patched=False)
            return self[name]

    return Truth()


def rms(x: torch.Tensor) -> float:
    """Root mean square, in float64."""
    return float(x.double().square().mean().sqrt())


@pytest.mark.parametrize("name", FAMILIES)
def test_float64_gives_the_truth(name: str, truth: dict) -> None:
    """Whatever rounding hides shows here: in float64 patched and unpatched are the same function."""
    with zoo.Float32IsFloat64():
        found = results_of(name, torch.float64, patched=True)
    assert found.keys() == truth[name].keys()
    scale = max(rms(g) for g in truth[name].values() if g is not None)
    for key, expected in truth[name].items():
        assert (found[key] is None) == (expected is None), key
        if expected is not None:
            torch.testing.assert_close(found[key], expected, rtol=1e-9, atol=1e-11 * scale, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_as_exact_as_unpatched(name: str, dtype: torch.dtype, truth: dict) -> None:
    """Output and the gradient of every input and parameter, against the unpatched model's errors."""
    unpatched, patched = (results_of(name, dtype, patched=p) for p in (False, True))
    assert patched.keys() == unpatched.keys()
    ratios = []
    for key, exact in truth[name].items():
        assert (patched[key] is None) == (unpatched[key] is None) == (exact is None), key
        if exact is None:
            continue
        assert patched[key].dtype == unpatched[key].dtype, key
        ours, theirs = (rms(found[key].double() - exact) for found in (patched, unpatched))
        assert ours <= TENSOR_FACTOR * theirs + torch.finfo(dtype).eps * rms(exact), key
        if theirs:
            ratios.append(max(ours / theirs, 0.01))
    assert math.exp(sum(map(math.log, ratios)) / len(ratios)) <= MODEL_FACTOR


@pytest.mark.parametrize("name", zoo.ZOO)
def test_report_counts_every_module(name: str) -> None:
    """What is patched, and what is not and why."""
    model, _ = zoo.make(name)
    row = zoo.ZOO[name]
    if not row.patched:
        with pytest.raises(ValueError, match="nothing to patch in SD3Transformer2DModel"):
            normrope.diffusers.patch(model)
        return
    report = normrope.diffusers.patch(model)
    assert (len(report.patched), len(report.skipped)) == (row.patched, row.skipped)
    assert all(isinstance(model.get_submodule(n).processor, normrope.diffusers.Processor) for n in report.patched)
    assert set(report.patched) | set(report.skipped) == {n.removesuffix(".processor") for n in model.attn_processors}
    assert str(report).startswith(f"normrope: {row.patched} of {row.patched + row.skipped} attention modules patched")
    assert all(reason in str(report) for reason in report.skipped.values())


@pytest.mark.parametrize("name", FAMILIES)
def test_calls_are_served(name: str) -> None:
    """None of the zoo's calls is left to diffusers in silence or aloud."""
    model, inputs = zoo.make(name)
    normrope.diffusers.patch(model)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "normrope")
        model(**inputs)
    assert not normrope.diffusers.report(model).declined


def train(name: str, dtype: torch.dtype, *, patched: bool, steps: int = 20) -> torch.Tensor:
    """The losses of a short training run towards a fixed target."""
    model, inputs = zoo.make(name)
    model.to(dtype)
    if patched:
        normrope.diffusers.patch(model)
    inputs = {k: v.detach() if isinstance(v, torch.Tensor) else v for k, v in zoo.to(inputs, dtype).items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(steps):
        output = model(**inputs, return_dict=False)[0]
        target = torch.arange(output.numel(), dtype=dtype).mul(0.7).sin().view(output.shape)
        loss = (output - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach().double())
    return torch.stack(losses)


@pytest.mark.parametrize("name", FAMILIES)
def test_training_takes_the_same_way(name: str) -> None:
    """Twenty steps in float32: losses stay as near to float64's as the unpatched model's do."""
    with zoo.Float32IsFloat64():
        exact = train(name, torch.float64, patched=False)
    unpatched, patched = (train(name, torch.float32, patched=p) for p in (False, True))
    assert exact[-1] < 0.9 * exact[0]
    assert rms(patched - exact) <= TENSOR_FACTOR * rms(unpatched - exact) + torch.finfo(torch.float32).eps * rms(exact)
