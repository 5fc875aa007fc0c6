"""Shapes that people train, by the names that `normrope bench` has, and inputs of these shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

STREAMS = ("", "encoder_")
PROJECTIONS = ("query", "key", "value")


@dataclass(frozen=True)
class Preset:
    """A model's step: sizes, then norm_rope_concat's options."""

    name: str
    heads: int
    dim: int
    image: int
    text: int
    norm: str
    norm_added: str
    rope: str = "none"
    rope_on: str = "joined"
    order: str = "image_first"
    scope: str = "head"
    shared: bool = False  # the text uses the image's weights
    dtype: str = "bfloat16"
    table_dtype: str | None = None  # None: the rows'
    eps: float = 1e-6
    batch: int = 1

    @property
    def options(self) -> dict[str, Any]:
        """What norm_rope_concat takes besides tensors."""
        names = ("norm", "norm_added", "rope", "rope_on", "order", "scope", "eps")
        return {name: getattr(self, name) for name in names}


PRESETS = {
    preset.name: preset
    for preset in (
        Preset("reference", 10, 6, 5, 3, "layer_affine", "layer_affine", "interleaved", "image", dtype="float32"),
        Preset("flux", 24, 128, 4096, 512, "rms_affine", "rms_affine", "interleaved", order="text_first"),
        Preset("flux-ln", 24, 128, 4096, 512, "layer_affine", "layer_affine", "interleaved", order="text_first"),
        Preset("hunyuan-video", 24, 128, 32400, 256, "rms_affine", "rms_affine", "interleaved", "image"),
        Preset("sd3.5", 38, 64, 4096, 333, "rms_affine", "rms_affine"),
        Preset("auraflow", 12, 256, 4096, 264, "layer", "layer", order="text_first", eps=1e-5),
        Preset("hunyuan-dit", 16, 88, 4096, 0, "layer_affine", "none", "interleaved"),
        Preset("cosmos", 32, 128, 14080, 0, "rms_affine", "none", "half", eps=1e-5),
        Preset(
            *("cogvideox", 48, 64, 17550, 226, "layer_affine", "layer_affine", "interleaved", "image", "text_first"),
            shared=True,
            table_dtype="float32",
        ),
        Preset("wan", 40, 128, 8190, 0, "rms_affine", "none", "interleaved", scope="all_heads", table_dtype="float32"),
        Preset("wide", 8, 1024, 1024, 77, "layer_affine", "layer_affine", "half"),
    )
}


@dataclass(frozen=True)
class Case:
    """A preset with its data: tensors by norm_rope_concat's names, and gradients of its three results."""

    preset: Preset
    tensors: Mapping[str, Tensor]
    incoming: tuple[Tensor, ...]

    @property
    def dtype(self) -> torch.dtype:
        """Of the rows."""
        return self.tensors["query"].dtype

    @property
    def differentiated(self) -> list[str]:
        """The names of what has a gradient: streams and weights, not the tables."""
        return [name for name in self.tensors if not name.startswith("rope")]

    @property
    def streams(self) -> list[str]:
        """The names of the rows."""
        return [name for name, tensor in self.tensors.items() if tensor.dim() == 4]

    def mapped(self, change: Any) -> Case:
        """The same case of changed tensors; what was one tensor stays one."""
        made = {id(t): change(t) for t in self.tensors.values()}
        tensors = {name: made[id(t)] for name, t in self.tensors.items()}
        return replace(self, tensors=tensors, incoming=tuple([change(t) for t in self.incoming]))

    @property
    def shape(self) -> dict[str, int]:
        """The sizes, by the names that `normrope bench --json` gives them."""
        p = self.preset
        heads = {"heads": p.heads, "kv_heads": p.heads}
        return {"batch": p.batch, **heads, "dim": p.dim, "image": p.image, "text": p.text, "image_key": p.image} | {
            "text_key": p.text
        }

    @property
    def output_bytes(self) -> int:
        """Of the three results; their gradients, and those of the streams, have as many."""
        return sum(t.nbytes for t in self.incoming)


def make(preset: Preset, device: str = "cpu", seed: int = 0) -> Case:
    """Numbers of the preset's shape, the same ones every time for a seed and a kind of device."""
    generator = torch.Generator(device).manual_seed(seed)
    dtype = getattr(torch, preset.dtype)
    joined = preset.image + preset.text

    def random(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device).to(dtype)

    tensors: dict[str, Tensor] = {}
    for stream, length in zip(STREAMS, (preset.image, preset.text)):
        if length:
            for projection in PROJECTIONS:  # as a projection leaves them
                rows = random(preset.batch, length, preset.heads * preset.dim)
                tensors[stream + projection] = rows.unflatten(-1, (preset.heads, preset.dim))
    size = preset.dim * (preset.heads if preset.scope == "all_heads" else 1)
    for stream, prefix, norm in zip(STREAMS, ("norm_", "norm_added_"), (preset.norm, preset.norm_added)):
        if stream + "query" not in tensors:
            continue
        for projection in PROJECTIONS[:2]:
            for parameter in ("weight", "bias"):
                name = f"{prefix}{projection}_{parameter}"
                if norm == "layer_affine" or (norm == "rms_affine" and parameter == "weight"):
                    own = tensors.get(f"norm_{projection}_{parameter}") if preset.shared and stream else None
                    tensors[name] = random(size) if own is None else own
    if preset.rope != "none":
        length = preset.image if preset.rope_on == "image" else joined
        angles = torch.arange(length)[:, None] / 10000 ** (torch.arange(0, preset.dim, 2) / preset.dim)
        angles = angles.repeat_interleave(2, 1) if preset.rope == "interleaved" else angles.repeat(1, 2)
        table_dtype = getattr(torch, preset.table_dtype or preset.dtype)
        tensors |= {"rope_cos": angles.cos().to(device, table_dtype), "rope_sin": angles.sin().to(device, table_dtype)}
    shape = (preset.batch, preset.heads, joined, preset.dim)
    return Case(preset, tensors, tuple([random(*shape) for _ in range(3)]))
