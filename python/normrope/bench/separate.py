"""Tuned kernels for the norm alone and for rope alone that people use, of those that are installed."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from normrope.bench import models
from normrope.bench.presets import Case

# Both have apply_rotary_emb(x [B, S, N, D], cos [S, C / 2], sin, interleaved).
ROPES = {"quack": "quack.rotary", "flash-attn": "flash_attn.layers.rotary"}
MODULES = ("quack.rmsnorm", "liger_kernel.ops.rms_norm", "liger_kernel.ops.layer_norm", *ROPES.values())


def _load(module: str) -> tuple[Any, str]:
    """The module, or None and why: packages of kernels fail to load in many ways. No reason: it is not installed."""
    try:
        return importlib.import_module(module), ""
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == module.partition(".")[0]:
            return None, ""
        return None, " ".join(f"{type(error).__name__}: {error}".split())


def _imported(module: str) -> Any:
    return _load(module)[0]


def broken() -> dict[str, str]:
    """Modules of packages that are installed and do not load, and why."""
    reasons = {module: _load(module)[1] for module in MODULES}
    return {module: why[:200] for module, why in reasons.items() if why}


def norms() -> dict[str, tuple[tuple[str, ...], Callable[..., Tensor]]]:
    """By package: the norms that it has a backward for, and a function like models.normalise."""
    found: dict[str, tuple[tuple[str, ...], Callable[..., Tensor]]] = {}
    quack = _imported("quack.rmsnorm")
    if quack:

        def by_quack(x: Tensor, kind: str, weight: Tensor, bias: None, eps: float) -> Tensor:
            return quack.rmsnorm(x, weight, eps=eps)

        found["quack"] = ("rms_affine",), by_quack
    rms, layer = _imported("liger_kernel.ops.rms_norm"), _imported("liger_kernel.ops.layer_norm")
    if rms and layer:

        def by_liger(x: Tensor, kind: str, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
            if kind == "layer_affine":
                return layer.LigerLayerNormFunction.apply(x, weight, bias, eps)
            return rms.LigerRMSNormFunction.apply(x, weight, eps, 0.0, "llama", False)

        found["liger"] = ("rms_affine", "layer_affine"), by_liger
    return found


def rotation(package: str, case: Case) -> Callable[..., Tensor] | None:
    """A function like models.rotate for the case's own tables, by this package; None: it is not there."""
    kernels = _imported(ROPES[package])
    if not kernels:
        return None
    interleaved = case.preset.rope == "interleaved"
    once = slice(0, None, 2) if interleaved else slice(case.preset.dim // 2)
    cos, sin = (case.tensors[name][:, once].contiguous() for name in ("rope_cos", "rope_sin"))

    def rotate(x: Tensor, _cos: Tensor, _sin: Tensor, _interleaved: bool) -> Tensor:
        return kernels.apply_rotary_emb(x.transpose(1, 2), cos, sin, interleaved).transpose(1, 2)

    return rotate


def steps(case: Case) -> dict[str, Callable[..., tuple[Tensor, ...]]]:
    """Functions like models.norm_rope_concat of such kernels, one for each norm, by what they are made of."""
    p = case.preset
    found: dict[str, Callable[..., tuple[Tensor, ...]]] = {}
    for package, (kinds, normalise) in norms().items():
        if {p.norm, p.norm_added} - {*kinds, "none"}:
            continue
        name, rotate = package, models.rotate
        if p.rope != "none":
            for rope in sorted(ROPES, key=lambda r: r != package):  # its own first
                kernels = rotation(rope, case)
                if kernels:
                    name, rotate = f"{package} norm, {rope} rope", kernels
                    break
        found[name] = partial(models.norm_rope_concat, normalise=normalise, rotate=rotate)
    return found
