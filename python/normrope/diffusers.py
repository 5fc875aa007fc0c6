"""The fused step in the models of diffusers.

    pipeline = diffusers.FluxPipeline.from_pretrained(...)
    print(normrope.diffusers.patch(pipeline.transformer))

`patch` gives every attention module whose processor is in `FAMILIES` a processor that does the same, but for the norms
of queries and keys, the rope and the joining of text and image, which become one call of `normrope.norm_rope`, forward
and backward. Parameters, configuration, state dict and attention backend stay the model's own. `unpatch` puts the
processors back that were there.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

try:
    from torch import nn
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"{__name__} needs PyTorch: {error}", name=error.name) from error

from normrope._processors import (
    IMAGE_FIRST,
    TEXT_FIRST,
    CachingParallelProcessor,
    CachingProcessor,
    Family,
    FreqsProcessor,
    HunyuanDiTProcessor,
    JointProcessor,
    Last,
    LuminaProcessor,
    ParallelProcessor,
    Processor,
    QwenProcessor,
    SingleProcessor,
    WanProcessor,
    objection_to_norms,
    patched,
)

if TYPE_CHECKING:
    import torch.distributed as dist

__all__ = ["FAMILIES", "Family", "Report", "patch", "report", "unpatch"]

_FLUX = Family(JointProcessor, order=TEXT_FIRST, rope="joined", alone="bare", packed=True, mask="obeyed")
_HUNYUAN = Family(JointProcessor, order=IMAGE_FIRST, rope="image", alone="declined", mask="obeyed")

FAMILIES: dict[str, Family] = {
    "FluxAttnProcessor": _FLUX,  # FLUX.1, Chroma
    "BriaAttnProcessor": _FLUX,
    "BriaFiboAttnProcessor": _FLUX,
    "LongCatImageAttnProcessor": _FLUX,
    "OvisImageAttnProcessor": _FLUX,
    "Flux2AttnProcessor": dataclasses.replace(_FLUX, alone="projected"),
    "Flux2ParallelSelfAttnProcessor": Family(ParallelProcessor),
    "Flux2KVAttnProcessor": dataclasses.replace(_FLUX, pattern=CachingProcessor, alone="projected"),
    "Flux2KVParallelSelfAttnProcessor": Family(CachingParallelProcessor),
    "QwenDoubleStreamAttnProcessor2_0": Family(QwenProcessor, order=TEXT_FIRST, rope="joined"),
    "HunyuanVideoAttnProcessor2_0": _HUNYUAN,
    "HunyuanVideo15AttnProcessor2_0": dataclasses.replace(_HUNYUAN, mask="pairs"),
    "HunyuanImageAttnProcessor": _HUNYUAN,
    "MotifVideoAttnProcessor2_0": dataclasses.replace(_HUNYUAN, alone="projected"),
    "JointAttnProcessor2_0": Family(JointProcessor, order=IMAGE_FIRST, alone="projected", mask="ignored"),  # SD3.5
    "AuraFlowAttnProcessor2_0": Family(JointProcessor, order=TEXT_FIRST, alone="projected", mask="ignored"),
    "CogVideoXAttnProcessor2_0": Family(JointProcessor, order=TEXT_FIRST, rope="image"),
    "EasyAnimateAttnProcessor2_0": Family(JointProcessor, order=TEXT_FIRST, rope="image", mask="obeyed"),
    "CogView4AttnProcessor": Family(JointProcessor, order=TEXT_FIRST, rope="image", pairs="half"),
    "GlmImageAttnProcessor": Family(CachingProcessor, order=TEXT_FIRST, rope="image", pairs="half"),
    "WanAttnProcessor": Family(WanProcessor),  # Wan, VACE, Animate, ChronoEdit
    "SkyReelsV2AttnProcessor": Family(WanProcessor, split_text=True),
    "LTXVideoAttnProcessor": Family(SingleProcessor, mask="prepared"),
    "CosmosAttnProcessor2_0": Family(SingleProcessor, pairs="half", dispatched=True),
    "HunyuanAttnProcessor2_0": Family(HunyuanDiTProcessor, mask="prepared"),
    "ZSingleStreamAttnProcessor": Family(FreqsProcessor),
    "Lumina2AttnProcessor2_0": Family(LuminaProcessor),
}
"""The processors of diffusers that have a counterpart here, by name of their class."""

_PACKED = "reads packed projections: patch before fuse_qkv_projections(), and again after unfuse_qkv_projections()"
_IP_ADAPTER = "has weights of its own and attends to another image with queries from between norm and rope"
_PERTURBED = "attends twice, for perturbed attention guidance"
_PLAIN = "has no rope and joins nothing"
_LINEAR = "has linear attention, and an activation between norm and rope"
_NO_NORM = "has no norms"
REASONS: dict[str, str] = {
    **dict.fromkeys(("AttnProcessor", "AttnProcessor2_0", "FusedAttnProcessor2_0"), _PLAIN),
    **dict.fromkeys(("WanAnimateFaceBlockAttnProcessor", "SanaAttnProcessor2_0"), _PLAIN),
    **dict.fromkeys(("CosmosAttnProcessor2_5", "SanaWMCrossAttnProcessor", "AnyFlowCrossAttnProcessor"), _PLAIN),
    **dict.fromkeys(("FluxIPAdapterAttnProcessor", "SD3IPAdapterJointAttnProcessor2_0"), _IP_ADAPTER),
    **dict.fromkeys(("FusedJointAttnProcessor2_0", "FusedCogVideoXAttnProcessor2_0"), _PACKED),
    **dict.fromkeys(("FusedAuraFlowAttnProcessor2_0", "FusedHunyuanAttnProcessor2_0"), _PACKED),
    **dict.fromkeys(("PAGJointAttnProcessor2_0", "PAGCFGJointAttnProcessor2_0"), _PERTURBED),
    **dict.fromkeys(("PAGHunyuanAttnProcessor2_0", "PAGCFGHunyuanAttnProcessor2_0"), _PERTURBED),
    **dict.fromkeys(("SanaLinearAttnProcessor2_0", "SanaLinearAttnProcessor3_0"), _LINEAR),
    **dict.fromkeys(("OmniGenAttnProcessor2_0", "AllegroAttnProcessor2_0"), _NO_NORM),
    "Kandinsky5AttnProcessor": "rounds to bfloat16 within its rope, whatever the model's dtype",
    "MochiAttnProcessor2_0": "joins each sample by itself, at the length of its text",
    "CogView4TrainingAttnProcessor": "packs samples of many lengths into one",
}
"""Why others have none, of those that somebody has looked at."""


@dataclasses.dataclass(frozen=True)
class Report:
    """Which attention modules of a model take the fused step; `str` of it is for reading.

    Attributes:
        patched: modules by name, and diffusers' processor that each had.
        skipped: the others by name, and why; or what they have, where `patch` was not called or was undone.
        declined: of the patched ones those that left a call to diffusers' processor, and why the last time.
    """

    patched: dict[str, str]
    skipped: dict[str, str]
    declined: dict[str, str]

    def __str__(self) -> str:
        """One line for modules of one kind."""
        heading = f"normrope: {len(self.patched)} of {len(self.patched) + len(self.skipped)} attention modules patched"
        parts = (("", self.patched), ("not patched, ", self.skipped), ("left to diffusers, ", self.declined))
        return "\n".join([heading, *(f"  {what}{line}" for what, found in parts for line in _lines(found))])


def _lines(found: dict[str, str]) -> Iterator[str]:
    """Modules that differ only in numbers, together: `FluxAttnProcessor: transformer_blocks.*.attn (19)`."""
    kinds = collections.Counter((text, re.sub(r"\b\d+\b", "*", name)) for name, text in found.items())
    for (text, name), count in kinds.items():
        yield f"{name} ({count}): {text}"


def patch(model: nn.Module, *, group: dist.ProcessGroup | None = None) -> Report:
    """Lets the attention modules of a model take the fused step, where there is one for them.

    Patching a patched model again only sets the group. Patch before torch.compile.

    Args:
        model: of diffusers, or one that has such inside (peft's, say).
        group: sums the gradients of the norms' weights and biases over the ranks of this group: see
            `normrope.distributed`.

    Returns:
        Which modules are patched, and which are not and why.

    Raises:
        TypeError: `model` is no module.
        ValueError: nothing in it could be patched; the message says why.
    """
    last = Last()
    for _, attn in _attention_modules(model):
        old = attn.processor
        if isinstance(old, Processor):
            if old.group is not group:
                attn.set_processor(patched(old.original, old.family, group, old.last))
        elif _objection_to_attention(attn) is None:
            attn.set_processor(patched(old, FAMILIES[type(old).__name__], group, last))
    result = report(model)
    if not result.patched:
        known = ", ".join(FAMILIES)
        found = (
            "\n".join(f"  {line}" for line in _lines(result.skipped)) or "  it has no attention modules with processors"
        )
        raise ValueError(f"patch: nothing to patch in {type(model).__name__}:\n{found}\nExpected one of {known}")
    return result


def unpatch(model: nn.Module) -> Report:
    """Puts back the processors that were there before `patch`: the very objects."""
    for _, attn in _attention_modules(model):
        if isinstance(attn.processor, Processor):
            attn.set_processor(attn.processor.original)
    return report(model)


def report(model: nn.Module) -> Report:
    """How the attention modules of a model stand now."""
    patched, skipped, declined = {}, {}, {}
    for name, attn in _attention_modules(model):
        processor = attn.processor
        if isinstance(processor, Processor):
            patched[name] = type(processor.original).__name__
            if processor.declined:
                declined[name] = processor.declined
        else:
            skipped[name] = _objection_to_attention(attn) or f"{type(processor).__name__}, which patch would replace"
    return Report(patched, skipped, declined)


def _attention_modules(model: nn.Module) -> Iterator[tuple[str, Any]]:
    if not isinstance(model, nn.Module):
        hint = ", such as its transformer" if hasattr(model, "transformer") else ""
        raise TypeError(f"model: found {type(model).__name__}, expected a torch.nn.Module{hint}")
    for name, module in model.named_modules():
        if hasattr(module, "set_processor") and hasattr(module, "processor"):
            yield name, module


def _objection_to_attention(attn: Any) -> str | None:
    """Why a module cannot be patched; None where it can."""
    kind = type(attn.processor)
    family = FAMILIES.get(kind.__name__)
    if family is None or not kind.__module__.startswith("diffusers."):
        reason = (
            REASONS.get(kind.__name__, "is not known") if kind.__module__.startswith("diffusers.") else "is not known"
        )
        return f"the processor {kind.__name__} {reason}"
    if family.pattern is JointProcessor and family.rope == "none" and getattr(attn, "norm_q", None) is None:
        return "there is neither norm nor rope"
    if getattr(attn, "scale_qk", True) is False:
        return "attention is not scaled"
    return objection_to_norms(attn)
