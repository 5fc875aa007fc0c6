"""`normrope.diffusers` in real diffusers models, small and random, patched against unpatched.

Truth is the unpatched model in float64 throughout. A patched model must come as near to it as the unpatched model of
the same dtype does.
"""

from __future__ import annotations

import collections
import copy
import gc
import io
import math
import pathlib
import re
import sys
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import diffusers
import peft
import pytest
import torch
import torch.nn.functional as F

import normrope.diffusers
import zoo
from normrope import _processors

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:diffusers")  # of its own use of what it renamed

FAMILIES = [name for name, row in zoo.ZOO.items() if row.patched]
PATTERNS = [
    *("flux", "flux2", "qwen-image", "hunyuan-video", "sd3.5", "cogvideox-5b", "wan-i2v"),
    *("cogview4", "hunyuan-dit", "ltx-video", "lumina2", "z-image"),
]
DTYPES = [torch.float32, torch.bfloat16]

# A tensor's error is one draw of rounding errors, and the unpatched model's another. Of two draws one may exceed the
# other, most in tensors of few elements; over all tensors of a model the ratio averages out.
TENSOR_FACTOR, MODEL_FACTOR = 3.0, 1.25


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


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small are quicker without a second thread, and much quicker where others want it too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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
            torch.testing.assert_close(
                found[key], expected, rtol=1e-9, atol=1e-11 * scale, msg=lambda m, k=key: f"{k}: {m}"
            )


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


def test_every_processor_is_in_the_zoo() -> None:
    """A row of the table that no test runs is no promise."""
    models = [zoo.make(name)[0] for name in FAMILIES]
    found = {type(m.processor).__name__ for model in models for m in model.modules() if hasattr(m, "processor")}
    assert normrope.diffusers.FAMILIES.keys() <= found


def test_reasons_are_of_processors_that_exist() -> None:
    """And have no counterpart."""
    sources = pathlib.Path(diffusers.__file__).parent.glob("models/**/*.py")
    existing = set(re.findall(r"^class (\w+)", "\n".join(file.read_text() for file in sources), re.MULTILINE))
    assert normrope.diffusers.REASONS.keys() <= existing
    assert normrope.diffusers.FAMILIES.keys() <= existing
    assert not normrope.diffusers.REASONS.keys() & normrope.diffusers.FAMILIES.keys()


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
    assert all(isinstance(model.get_submodule(n).processor, _processors.Processor) for n in report.patched)
    processors = {name for name, module in model.named_modules() if hasattr(module, "set_processor")}
    assert report.patched.keys() | report.skipped.keys() == processors
    assert str(report).startswith(f"normrope: {row.patched} of {row.patched + row.skipped} attention modules patched")
    assert all(reason in str(report) for reason in report.skipped.values())


@pytest.mark.parametrize("name", FAMILIES)
def test_calls_are_served(name: str) -> None:
    """None of the zoo's calls is left to diffusers in silence or aloud."""
    model, inputs = zoo.make(name)
    model.float()
    normrope.diffusers.patch(model)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "normrope")
        model(**zoo.to(inputs, torch.float32))
    assert not normrope.diffusers.report(model).declined


@pytest.mark.parametrize("name", FAMILIES)
def test_attention_is_asked_as_diffusers_asks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the shapes, backend and context parallelism of every call, by patched processors as by their originals.

    Some processors ask PyTorch, others dispatch_attention_fn, which asks PyTorch here.
    """
    model, inputs = zoo.make(name)
    model.float()
    processors = [m.processor for m in model.modules() if hasattr(m, "processor")]
    modules = {sys.modules[type(p).__module__] for p in processors} | {_processors}
    asked: list[tuple] = []
    for module in modules:
        if hasattr(module, "dispatch_attention_fn"):
            dispatch = module.dispatch_attention_fn

            def record(
                q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, attn_mask: object = None, **rest: Any
            ) -> Any:
                asked.append(
                    (q.shape, k.shape, attn_mask is None, rest.pop("backend", 0), rest.pop("parallel_config", 0))
                )
                return dispatch(q, k, v, attn_mask=attn_mask, **rest)  # noqa: B023  # one and the same everywhere

            monkeypatch.setattr(module, "dispatch_attention_fn", record)
    attention = F.scaled_dot_product_attention

    def record_options(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        scale = query.shape[-1] ** -0.5 if scale is None else scale  # what None means, and AuraFlow says in numbers
        options = {"dropout_p": dropout_p, "is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
        asked.append((query.shape, key.shape, value.shape, attn_mask is None, *options.values()))
        return attention(query, key, value, attn_mask, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", record_options)
    for p in processors:
        if hasattr(p, "_attention_backend"):
            p._attention_backend, p._parallel_config = "a backend", "a configuration"
    inputs = zoo.to(inputs, torch.float32)
    model(**inputs)
    expected = collections.Counter(asked)
    assert expected
    asked.clear()
    normrope.diffusers.patch(model)
    model(**inputs)
    assert collections.Counter(asked) == expected


def test_lumina_scales_attention_by_length() -> None:
    """Where it is asked to, which the model itself does not."""
    attn = zoo.make("lumina2")[0].layers[0].attn
    x = torch.randn(2, 5, attn.query_dim, dtype=torch.float64)
    calls = [{}, {"base_sequence_length": 3}]
    expected = [attn(x, encoder_hidden_states=x, **call) for call in calls]
    normrope.diffusers.patch(attn)
    for call, result in zip(calls, expected):
        torch.testing.assert_close(attn(x, encoder_hidden_states=x, **call), result, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(*expected, rtol=1e-3)


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


@pytest.mark.parametrize("name", PATTERNS)
def test_training_takes_the_same_way(name: str) -> None:
    """Twenty steps in float32: losses stay as near to float64's as the unpatched model's do."""
    with zoo.Float32IsFloat64():
        exact = train(name, torch.float64, patched=False)
    unpatched, patched = (train(name, torch.float32, patched=p) for p in (False, True))
    assert exact[-1] < 0.9 * exact[0]
    assert rms(patched - exact) <= TENSOR_FACTOR * rms(unpatched - exact) + torch.finfo(torch.float32).eps * rms(exact)


@pytest.fixture
def flux() -> tuple[torch.nn.Module, dict]:
    """A float32 FLUX.1 and the inputs of a call."""
    model, inputs = zoo.make("flux")
    return model.float(), zoo.to(inputs, torch.float32)


def assert_same_bits(found: dict, expected: dict) -> None:
    """Two results of `run` have the same bits."""
    assert found.keys() == expected.keys()
    for key in expected:
        assert (found[key] is None) == (expected[key] is None), key
        assert expected[key] is None or torch.equal(found[key], expected[key]), key


def assert_close(found: dict, expected: dict) -> None:
    """Two results of `run` in float32 agree as functions that round differently do."""
    assert found.keys() == expected.keys()
    for key in expected:
        assert (found[key] is None) == (expected[key] is None), key
        if expected[key] is not None:
            assert rms(found[key] - expected[key]) <= 1e-4 * rms(expected[key]) + 1e-7, key


def fresh(inputs: dict) -> dict:
    """The same inputs without gradients yet."""
    return {
        k: v.detach().clone().requires_grad_(v.requires_grad) if isinstance(v, torch.Tensor) else v
        for k, v in inputs.items()
    }


def test_unpatch_puts_everything_back(flux: tuple) -> None:
    """The very processors, and with them the very bits; the state dict never changes."""
    model, inputs = flux
    processors, keys = model.attn_processors, list(model.state_dict())
    before = run(copy.deepcopy(model), fresh(inputs))
    normrope.diffusers.patch(model)
    assert list(model.state_dict()) == keys
    model(**inputs)
    report = normrope.diffusers.unpatch(model)
    assert not report.patched
    assert set(report.skipped.values()) == {"FluxAttnProcessor, which patch would replace"}
    assert all(model.attn_processors[name] is processor for name, processor in processors.items())
    assert_same_bits(run(model, inputs), before)
    assert normrope.diffusers.unpatch(model) == report


def test_patching_twice_is_patching_once(flux: tuple) -> None:
    """And one unpatch undoes it."""
    model, _ = flux
    processors = model.attn_processors
    first = normrope.diffusers.patch(model)
    patched = model.attn_processors
    assert normrope.diffusers.patch(model) == first == normrope.diffusers.report(model)
    assert model.attn_processors == patched
    normrope.diffusers.unpatch(model)
    assert model.attn_processors == processors


def test_what_is_not_known_is_named() -> None:
    """Models without anything to patch, things that are no models."""
    model = diffusers.PixArtTransformer2DModel(
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        cross_attention_dim=16,
        norm_num_groups=2,
        sample_size=8,
        caption_channels=8,
    )
    processors = model.attn_processors
    with pytest.raises(
        ValueError, match=r"nothing to patch in PixArtTransformer2DModel:\n  transformer_blocks.\*.attn1 \(1\)"
    ) as e:
        normrope.diffusers.patch(model)
    assert "the processor AttnProcessor2_0 has no rope and joins nothing" in str(e.value)
    assert "FluxAttnProcessor" in str(e.value)
    assert model.attn_processors == processors
    with pytest.raises(ValueError, match="it has no attention modules with processors"):
        normrope.diffusers.patch(torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"model: found str, expected a torch\.nn\.Module"):
        normrope.diffusers.patch("flux")
    with pytest.raises(TypeError, match=r"found SimpleNamespace, expected a .*, such as its transformer"):
        normrope.diffusers.patch(SimpleNamespace(transformer=model))


def test_diffusers_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """And new enough; asked for by attribute, too."""
    for name in ("diffusers", "_processors"):
        monkeypatch.delitem(sys.modules, f"normrope.{name}")
        monkeypatch.delattr(normrope, name)
    monkeypatch.setitem(sys.modules, "diffusers.models.attention_dispatch", None)
    with pytest.raises(ImportError, match=r"normrope\.diffusers needs diffusers, 0\.39 or later"):
        normrope.diffusers  # noqa: B018
    with pytest.raises(AttributeError, match="module 'normrope' has no attribute 'transformers'"):
        normrope.transformers  # noqa: B018


def test_processors_of_others_are_left_alone(flux: tuple) -> None:
    """A processor that only shares its name with one of diffusers', or inherits from it, may do something else."""
    model, _ = flux

    class FluxAttnProcessor(type(model.transformer_blocks[0].attn.processor)):
        """Someone's own."""

    model.transformer_blocks[0].attn.set_processor(FluxAttnProcessor())
    report = normrope.diffusers.patch(model)
    assert list(report.patched) == ["single_transformer_blocks.0.attn"]
    assert report.skipped == {"transformer_blocks.0.attn": "the processor FluxAttnProcessor is not known"}


def test_a_norm_with_hooks_is_left_to_diffusers(flux: tuple) -> None:
    """Offloading moves weights in hooks: the fused step would read them where they are not. The call says so, once."""
    model, inputs = flux
    expected = run(copy.deepcopy(model), fresh(inputs))
    normrope.diffusers.patch(model)
    called = []
    handles = [
        m.register_forward_hook(lambda *_: called.append(1)) for m in model.modules() if isinstance(m, torch.nn.RMSNorm)
    ]
    with pytest.warns(UserWarning, match="normrope leaves attention to diffusers: norm_q has hooks"):
        found = run(model, fresh(inputs))
    assert len(called) == len(handles) == 6
    assert_same_bits(found, expected)
    report = normrope.diffusers.report(model)
    assert report.declined.keys() == report.patched.keys()
    assert "left to diffusers, transformer_blocks.*.attn (1): norm_q has hooks" in str(report)
    for handle in handles:
        handle.remove()
    normrope.diffusers.unpatch(model)
    assert normrope.diffusers.patch(model).declined == {}


def test_norms_that_the_step_cannot_do_are_skipped(flux: tuple) -> None:
    """Named with what was found and expected."""
    model, _ = flux
    model.transformer_blocks[0].attn.norm_added_k = torch.nn.Identity()
    model.single_transformer_blocks[0].attn.norm_k.eps = None
    with pytest.raises(ValueError, match="nothing to patch") as e:
        normrope.diffusers.patch(model)
    assert "norm_added_k is Identity, expected RMSNorm or LayerNorm" in str(e.value)
    assert "norm_k has eps None, expected a number" in str(e.value)


CHECKPOINTED = [
    *("flux", "flux2", "hunyuan-video", "sd3.5", "cogvideox-5b", "wan-i2v", "qwen-image"),
    *("cogview4", "cosmos", "ltx-video", "lumina2"),
]


@pytest.mark.parametrize("name", CHECKPOINTED)
def test_gradient_checkpointing_changes_no_bit(name: str) -> None:
    """The step done again in the backward gives what it gave."""
    model, inputs = zoo.make(name)
    model.float()
    normrope.diffusers.patch(model)
    inputs = zoo.to(inputs, torch.float32)
    plain = run(copy.deepcopy(model), fresh(inputs))
    model.enable_gradient_checkpointing()
    assert_same_bits(run(model, fresh(inputs)), plain)


@pytest.mark.parametrize(
    "name", ["flux", "flux2", "qwen-image", "hunyuan-video", "sd3.5", "cogvideox-5b", "wan-t2v", "ltx-video"]
)
@pytest.mark.parametrize("first", ["patch", "adapter"])
def test_lora(name: str, first: str) -> None:
    """An adapter on the projections, added before patching or after: frozen norms, gradients of the adapter alone."""
    model, inputs = zoo.make(name)
    model.float().requires_grad_(False)
    if first == "patch":
        normrope.diffusers.patch(model)
    targets = ["to_q", "to_k", "to_v", "to_out.0", "to_qkv_mlp_proj"]
    torch.manual_seed(1)
    model.add_adapter(peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    if first == "adapter":
        normrope.diffusers.patch(model)
    inputs = zoo.to(inputs, torch.float32)
    found = run(model, fresh(inputs))
    normrope.diffusers.unpatch(model)
    model.zero_grad()
    expected = run(model, fresh(inputs))
    adapter = {key for key in expected if "lora" in key}
    assert adapter == {key for key in expected if expected[key] is not None and not key.startswith(("input", "output"))}
    assert_close(found, expected)


def test_models_inside_others_are_found(flux: tuple) -> None:
    """As peft wraps them."""
    model, inputs = flux
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["to_q"]))
    assert list(normrope.diffusers.patch(wrapped).patched) == [
        f"base_model.model.{name}" for name in ("transformer_blocks.0.attn", "single_transformer_blocks.0.attn")
    ]
    wrapped(**inputs)


@pytest.mark.parametrize("name", ["flux", "flux2", "wan-i2v", "skyreels-v2-i2v"])
def test_fused_projections(name: str) -> None:
    """model.fuse_qkv_projections() before and after patching; packed weights have their gradients."""
    model, inputs = zoo.make(name)
    model.float()
    inputs = zoo.to(inputs, torch.float32)
    model.fuse_qkv_projections()
    expected = run(copy.deepcopy(model), fresh(inputs))
    assert any("qkv" in key for key in expected)
    normrope.diffusers.patch(model)
    assert_close(run(copy.deepcopy(model), fresh(inputs)), expected)
    model.unfuse_qkv_projections()
    unfused = model(**inputs, return_dict=False)[0]
    torch.testing.assert_close(unfused, expected["output"], rtol=1e-4, atol=1e-4)


def test_projections_that_were_fused_once_are_not_taken() -> None:
    """SD3 leaves packed copies behind when it has put the processors back; diffusers' processor does not read them."""
    model, inputs = zoo.make("sd3.5")
    normrope.diffusers.patch(model)
    model.fuse_qkv_projections()
    assert not normrope.diffusers.report(model).patched
    model.unfuse_qkv_projections()
    assert normrope.diffusers.report(model).patched
    model.transformer_blocks[0].attn.to_q.weight.data *= 2
    found = model(**inputs).sample
    normrope.diffusers.unpatch(model)
    torch.testing.assert_close(found, model(**inputs).sample, rtol=1e-5, atol=1e-5)


def test_the_attention_backend_is_the_models(flux: tuple) -> None:
    """What is set while patched stays after unpatch, and reaches attention."""
    model, inputs = flux
    normrope.diffusers.patch(model)
    model.set_attention_backend("_native_math")
    model(**inputs)
    processors = [normrope.diffusers.patch(model) and p for p in model.attn_processors.values()]
    assert {p._attention_backend.value for p in processors} == {"_native_math"}
    normrope.diffusers.unpatch(model)
    assert {p._attention_backend.value for p in model.attn_processors.values()} == {"_native_math"}
    model, _ = zoo.make("sd3.5")
    normrope.diffusers.patch(model)
    assert not any(hasattr(p, "_attention_backend") for p in model.attn_processors.values())


def test_a_copy_is_patched_for_itself(flux: tuple) -> None:
    """As for a moving average of the weights."""
    model, inputs = flux
    normrope.diffusers.patch(model)
    other = copy.deepcopy(model)
    assert normrope.diffusers.report(other) == normrope.diffusers.report(model)
    normrope.diffusers.unpatch(model)
    assert normrope.diffusers.report(other).patched
    torch.testing.assert_close(other(**inputs).sample, model(**inputs).sample, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("how", ["copied", "pickled"])
def test_copies_share_tables_among_their_layers(how: str) -> None:
    """But not with the model that they were made of."""
    model, inputs = zoo.make("wan-t2v")
    model.float()
    normrope.diffusers.patch(model)
    if how == "copied":
        other = copy.deepcopy(model)
    else:
        file = io.BytesIO()
        torch.save(model, file)
        other = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    assert normrope.diffusers.report(other) == normrope.diffusers.report(model)
    kept = [{id(p.last) for p in m.attn_processors.values()} for m in (model, other)]
    assert [len(k) for k in kept] == [1, 1]
    assert kept[0] != kept[1]
    inputs = zoo.to(inputs, torch.float32)
    assert_same_bits(run(other, fresh(inputs)), run(model, fresh(inputs)))


def test_saved_models_are_diffusers_own(flux: tuple, tmp_path: pathlib.Path) -> None:
    """What save_pretrained writes knows nothing of the patch."""
    model, inputs = flux
    plain = copy.deepcopy(model)
    normrope.diffusers.patch(model)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).train()
    assert not [p for p in loaded.attn_processors.values() if isinstance(p, _processors.Processor)]
    assert_same_bits(run(loaded, fresh(inputs)), run(plain, fresh(inputs)))


def test_processors_go_through_diffusers_hands(flux: tuple) -> None:
    """Read by attn_processors, set by set_attn_processor; and the dtype may change while patched."""
    model, inputs = flux
    report = normrope.diffusers.patch(model)
    mine = model.attn_processors
    model.set_attn_processor({name: type(processor.original)() for name, processor in mine.items()})
    assert not normrope.diffusers.report(model).patched
    model.set_attn_processor(mine)
    assert normrope.diffusers.report(model) == report
    expected = model(**inputs).sample.detach()
    found = model.to(torch.bfloat16)(**zoo.to(zoo.make("flux")[1], torch.bfloat16)).sample
    assert found.dtype == torch.bfloat16
    assert rms(found.detach() - expected) < 0.03 * rms(expected)


def test_ip_adapter(flux: tuple) -> None:
    """Loaded into a patched model: diffusers makes new processors of the class of those that it finds."""
    model, inputs = flux
    torch.manual_seed(2)
    inner, tokens = zoo.HEADS * zoo.DIM, 4
    weights = {
        "image_proj": {
            "proj.weight": torch.randn(tokens * 12, 9),
            "proj.bias": torch.randn(tokens * 12),
            "norm.weight": torch.randn(12),
            "norm.bias": torch.randn(12),
        },
        "ip_adapter": {
            f"0.to_{projection}_ip.{parameter}": torch.randn(inner, *size)
            for projection in "kv"
            for parameter, size in (("weight", [12]), ("bias", []))
        },
    }
    plain = copy.deepcopy(model)
    report = normrope.diffusers.patch(model)
    results = []
    for m in (plain, model):
        m._load_ip_adapter_weights([copy.deepcopy(weights)], low_cpu_mem_usage=False)
        image = {"ip_adapter_image_embeds": [torch.ones(zoo.BATCH, 1, 9)]}
        results.append(run(m, fresh(inputs | {"joint_attention_kwargs": image})))
        results[-1].pop("transformer_blocks.0.attn.processor.to_k_ip.0.bias")  # nothing but rounding: softmax undoes it
    assert any("to_k_ip" in key for key in results[0])
    assert_close(*results)
    assert list(normrope.diffusers.report(model).patched) == ["single_transformer_blocks.0.attn"]
    assert "FluxIPAdapterAttnProcessor has weights of its own" in str(normrope.diffusers.patch(model))
    # As unload_ip_adapter of the pipeline.
    adapted = model.transformer_blocks[0].attn.processor
    made = {name: type(p)() if p is not adapted else None for name, p in model.attn_processors.items()}
    made["transformer_blocks.0.attn.processor"] = type(plain.single_transformer_blocks[0].attn.processor)()
    model.set_attn_processor(made)
    assert normrope.diffusers.patch(model) == report


def test_a_cache_of_keys_is_diffusers_own() -> None:
    """Calls of FLUX.2 that keep keys and values, and that use them, give what they gave, and say who served them."""
    model, inputs = zoo.make("flux2-kv")
    model.float()
    plain = copy.deepcopy(model)
    normrope.diffusers.patch(model)
    inputs = zoo.to(inputs, torch.float32)
    results = []
    for m in (plain, model):
        with warnings.catch_warnings(record=True) as caught, torch.no_grad():
            warnings.simplefilter("always")
            output, cache = m(**inputs, return_dict=False, kv_cache_mode="extract", num_ref_tokens=6)
            used = m(**inputs, return_dict=False, kv_cache=cache, kv_cache_mode="cached")[0]
        assert (m is plain) == (not any("keeps keys and values" in str(w.message) for w in caught))
        results.append((output, used))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert not torch.equal(*results[1])
    assert normrope.diffusers.report(model).declined.keys() == normrope.diffusers.report(model).patched.keys()


@pytest.mark.parametrize("name", ["flux", "qwen-image"])
def test_tables_are_made_once_and_never_stale(name: str) -> None:
    """Other positions in the next call give other results, in whatever memory the tables are."""
    model, inputs = zoo.make(name)
    other = copy.deepcopy(model)
    normrope.diffusers.patch(model)
    for turn in range(3):
        if name == "flux":
            inputs["img_ids"] = inputs["img_ids"] + turn
        else:
            inputs["img_shapes"] = [[(zoo.FRAMES, *((zoo.HEIGHT, zoo.WIDTH)[:: 1 - 2 * (turn % 2)]))]] * zoo.BATCH
        torch.testing.assert_close(model(**inputs).sample, other(**inputs).sample, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["qwen-image", "wan-t2v"])
def test_layers_share_tables_and_keep_none(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made once for all layers of a call, and gone with it."""
    model, inputs = zoo.make(name)
    normrope.diffusers.patch(model)
    made = []
    for maker in ("_joined_tables", "_paired_tables"):
        make = getattr(_processors, maker)
        monkeypatch.setattr(_processors, maker, lambda *x, make=make: made.append(1) or make(*x))
    with torch.no_grad():
        model(**inputs)
    assert len(made) == 1
    gc.collect()
    processors = {id(m.processor.last): m.processor.last for m in model.modules() if hasattr(m, "processor")}
    assert [last.entry for last in processors.values()] == [([], [], None)]


@pytest.mark.parametrize(
    "name", ["flux", "flux2", "qwen-image", "hunyuan-video", "sd3.5", "cogvideox-5b", "wan-t2v", "cosmos"]
)
def test_compiles_as_one_graph(name: str) -> None:
    """Patched models are as compilable as they were, and keep their gradients."""
    model, inputs = zoo.make(name)
    model.float()
    normrope.diffusers.patch(model)
    inputs = zoo.to(inputs, torch.float32)
    expected = run(model, fresh(inputs))
    model.zero_grad()
    torch._dynamo.reset()
    found = run(torch.compile(model, fullgraph=True, backend="aot_eager"), fresh(inputs))
    assert_close({key.removeprefix("_orig_mod."): value for key, value in found.items()}, expected)


def test_exports_with_text_of_any_length() -> None:
    """Which the rope of CogVideoX's image counts from."""
    model, inputs = zoo.make("cogvideox-5b")
    model.float()
    normrope.diffusers.patch(model)
    inputs = zoo.to(inputs, torch.float32)
    dynamic = dict.fromkeys(inputs) | {
        "encoder_hidden_states": {1: torch.export.Dim("text", min=2, max=64)},
        "image_rotary_emb": (None, None),
    }
    with torch.no_grad():
        program = torch.export.export(model, (), inputs, strict=False, dynamic_shapes=dynamic)
        text = inputs["encoder_hidden_states"]
        inputs["encoder_hidden_states"] = torch.cat([text, text, text[:, :1]], 1)
        assert torch.equal(program.module()(**inputs).sample, model(**inputs).sample)


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # of the unpatched models
@pytest.mark.parametrize("name", PATTERNS)
def test_autocast(name: str, truth: dict) -> None:
    """Float32 weights of norms beside bfloat16 rows; the gradients are the parameters' dtype."""
    results = []
    for patched in (False, True):
        model, inputs = zoo.make(name)
        model.float()
        if patched:
            normrope.diffusers.patch(model)
        with torch.autocast("cpu", torch.bfloat16):
            results.append(run(model, zoo.to(inputs, torch.float32)))
    for key, exact in truth[name].items():
        assert (results[1][key] is None) == (exact is None), key
        if exact is not None:
            assert results[1][key].dtype == results[0][key].dtype, key
            theirs, ours = (rms(found[key].double() - exact) for found in results)
            assert ours <= TENSOR_FACTOR * theirs + torch.finfo(torch.bfloat16).eps * rms(exact), key
