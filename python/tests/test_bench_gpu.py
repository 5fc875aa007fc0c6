"""The comparison on CUDA devices where there is none: what is compared agrees, by stand-ins for others' kernels."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from normrope.bench import gpu, measure, models, presets, separate, variants


def apply_rotary_emb(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """As flash-attn and quack have it: [B, S, N, D] by tables with an entry for each pair."""
    assert cos.is_contiguous()
    assert cos.shape == (x.shape[1], x.shape[3] // 2)
    full = [t.repeat_interleave(2, 1) if interleaved else t.repeat(1, 2) for t in (cos, sin)]
    turned = models.rotate(x.transpose(1, 2), *full, interleaved).transpose(1, 2)
    return torch.empty_like(x).copy_(turned)


class Rms:
    @staticmethod
    def apply(x: Tensor, weight: Tensor, eps: float, offset: float, casting: str, in_place: bool) -> Tensor:
        assert (offset, casting, in_place) == (0, "llama", False)
        return F.rms_norm(x, x.shape[-1:], weight, eps)


class Layer:
    @staticmethod
    def apply(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


STAND_INS = {
    "quack.rmsnorm": {"rmsnorm": lambda x, w, eps: F.rms_norm(x, x.shape[-1:], w, eps)},
    "quack.rotary": {"apply_rotary_emb": apply_rotary_emb},
    "flash_attn.layers.rotary": {"apply_rotary_emb": apply_rotary_emb},
    "liger_kernel.ops.rms_norm": {"LigerRMSNormFunction": Rms},
    "liger_kernel.ops.layer_norm": {"LigerLayerNormFunction": Layer},
}


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts stand-ins for these packages where Python looks for modules, and hides the others."""
    absent: set[str] = set()

    def find_spec(name: str, path: Any = None, target: Any = None) -> None:
        if name in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(sys, "meta_path", [SimpleNamespace(find_spec=find_spec), *sys.meta_path])

    def put(*packages: str) -> None:
        absent.clear()
        for name, members in STAND_INS.items():
            module: Any = ModuleType(name)
            vars(module).update(members)
            package = name.split(".")[0]
            if package in packages:
                monkeypatch.setitem(sys.modules, name, module)
            else:
                absent.add(package)
                for known in [known for known in sys.modules if known.partition(".")[0] == package]:
                    monkeypatch.delitem(sys.modules, known)

    return put


def small(name: str) -> presets.Preset:
    return replace(presets.PRESETS[name], image=7, text=3 if presets.PRESETS[name].text else 0, heads=4)


@pytest.mark.parametrize("name", presets.PRESETS)
def test_separate_kernels_compute_the_step(name: str, install: Callable[..., None]) -> None:
    install("quack", "flash_attn", "liger_kernel")
    preset = small(name)
    case = presets.make(preset)
    rope = preset.rope != "none"
    expected = {"quack norm, quack rope" if rope else "quack", "liger norm, quack rope" if rope else "liger"}
    if preset.norm != "rms_affine":
        expected = {n for n in expected if n.startswith("liger")} if preset.norm == "layer_affine" else set()
    makers = gpu.makers(case)
    assert makers.keys() - {"operator", "normrope", "eager", "compile"} == expected
    for kind in expected:
        for direction in ("forward", "backward"):
            variant = makers[kind](case)
            variant.open(direction)
            measure.check_agreement(case, direction, [variant])


def test_what_is_installed_is_used(install: Callable[..., None]) -> None:
    case = presets.make(small("flux"))
    install()
    assert separate.steps(case).keys() == set()
    assert separate.broken() == {}
    install("liger_kernel")
    assert separate.steps(case).keys() == {"liger"}
    install("liger_kernel", "flash_attn")
    assert separate.steps(case).keys() == {"liger norm, flash-attn rope"}


def test_why_a_package_does_not_load(
    install: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install("quack", "flash_attn", "liger_kernel")
    for name in ("liger_kernel.ops.rms_norm", "liger_kernel.ops.layer_norm"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(gpu, "LEAST_BYTES", 0)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "liger_kernel/ops").mkdir(parents=True)
    for package in ("liger_kernel", "liger_kernel/ops"):
        (tmp_path / package / "__init__.py").touch()
    (tmp_path / "liger_kernel/ops/rms_norm.py").write_text("raise OSError('no\\nlibrary')")
    (tmp_path / "liger_kernel/ops/layer_norm.py").write_text("import liger_needs")
    found = gpu.compare(small("flux"), "forward", 1, "cpu", lambda works, repeat: (measure.summary([1.0]), False))
    assert set(found["microseconds"]) == {"operator", "normrope", "eager", "compile", "quack norm, quack rope"}
    assert found["not_taken"] == {
        "liger_kernel.ops.rms_norm": "OSError: no library",
        "liger_kernel.ops.layer_norm": "ModuleNotFoundError: No module named 'liger_needs'",
    }


def test_a_line_of_the_result(install: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    install("liger_kernel", "flash_attn")
    wrong = ModuleType("flash_attn.layers.rotary")
    wrong.apply_rotary_emb = lambda x, cos, sin, interleaved: x  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, wrong.__name__, wrong)
    monkeypatch.setattr(gpu, "LEAST_BYTES", 300_000)
    ran = []

    def time(works: list[Callable[[], Any]], repeat: int) -> tuple[Any, bool]:
        ran.append([len(work()) for work in works])
        return measure.summary([repeat] * repeat), True

    found = gpu.compare(small("flux"), "backward", 3, "cpu", time)
    assert found["sets"] == len(ran[0]) > 1
    assert [set(lengths) for lengths in ran] == [{6 + 4}] * 4
    assert set(found["microseconds"]) == {"operator", "normrope", "eager", "compile"}
    assert found["not_taken"].keys() == {"liger norm, flash-attn rope"}
    assert "is not what float32 gives" in found["not_taken"]["liger norm, flash-attn rope"]
    cases = gpu.sets(small("flux"), "cpu")
    assert not torch.equal(cases[0].tensors["query"], cases[1].tensors["query"])


def test_what_cannot_be_made_is_not_taken(install: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    install()

    def make(name: str, case: presets.Case, keep_graph: bool) -> variants.Variant:
        if name in failing:
            raise RuntimeError(f"no\n{name}")
        return made(name, case, keep_graph)

    def time(works: list[Callable[[], Any]], repeat: int) -> tuple[Any, bool]:
        return measure.summary([1.0]), False

    made, failing = variants.make, ["compile"]
    monkeypatch.setattr(gpu, "LEAST_BYTES", 0)
    monkeypatch.setattr(variants, "make", make)
    found = gpu.compare(small("flux"), "forward", 1, "cpu", time)
    assert found["not_taken"] == {"compile": "compile"}
    assert set(found["microseconds"]) == {"operator", "normrope", "eager"}
    failing.append("normrope")
    with pytest.raises(RuntimeError, match="normrope"):
        gpu.compare(small("flux"), "forward", 1, "cpu", time)


def test_lines_arrive_one_by_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    before: list[list[Any]] = []

    def compare(preset: presets.Preset, direction: str, repeat: int) -> dict[str, Any]:
        before.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
        if (preset.dtype, direction) == ("bfloat16", "backward"):
            raise RuntimeError("too large")
        return {"preset": preset.name, "dtype": preset.dtype, "direction": direction, "repeat": repeat}

    monkeypatch.setattr(gpu, "compare", compare)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a device")
    monkeypatch.setattr(torch.cuda, "Stream", lambda: None)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    assert gpu.main(["--preset", "flux", "--dtype", "bfloat16,float32", "--repeat", "3"]) == 1
    last = capsys.readouterr()
    assert before[0] == [{"torch": torch.__version__, "device": "a device"}]
    line = {"preset": "flux", "dtype": "bfloat16", "direction": "forward", "repeat": 3}
    assert before[1:3] == [[line], []]
    assert before[3] == [line | {"dtype": "float32"}]
    assert json.loads(last.out) == line | {"dtype": "float32", "direction": "backward"}
    assert gpu.main(["--preset", "flux", "--dtype", "float32"]) == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_device(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 2
    assert "no CUDA device" in capsys.readouterr().err
