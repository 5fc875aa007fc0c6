"""Attention processors of diffusers with the fused step in them: a pattern for each way of being called.

`normrope.diffusers` says which of diffusers' processors has which pattern.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import warnings
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normrope.functional import Segment, norm_rope
from normrope.tables import from_complex, from_half

try:
    from diffusers.models.attention_dispatch import dispatch_attention_fn
    from diffusers.models.normalization import FP32LayerNorm, RMSNorm
except ImportError as error:
    raise ImportError(f"normrope.diffusers needs diffusers, 0.39 or later: {error}") from error

if TYPE_CHECKING:
    import torch.distributed as dist

IMAGE_FIRST, TEXT_FIRST = 0, 1  # the order of the joined sequence, as the operator numbers it

CACHED = "a call that keeps keys and values for later ones, or uses such"  # why it is left to diffusers

Rows = tuple[Tensor, tuple[int, int] | None]  # x and heads of a normrope.Segment
Stream = tuple[Rows, ...]  # query, key, value
Tables = tuple[Tensor, Tensor]  # cos and sin: [R, D], [B, R, D] or [B, R, N, D]


@dataclasses.dataclass(frozen=True)
class Family:
    """How one of diffusers' processors does what is around the step."""

    pattern: type[Processor]
    order: int = IMAGE_FIRST
    rope: str = "none"  # joined: the tables are for all rows; image: for those of the image
    pairs: str = "interleaved"  # which channels turn together, as normrope.Segment's rope
    alone: str = "declined"  # without text: bare is what attention gives, projected goes through to_out
    packed: bool = False  # whether it takes the projections of fuse_qkv_projections(), where a module has them
    mask: str = "declined"  # obeyed, ignored, for pairs of tokens though of the text, or by the module's preparation
    split_text: bool = False  # whether context parallelism splits the text of cross-attention, too
    dispatched: bool = False  # attention is of the backend in force, though the processor has none of its own


def _objection_to_norm(module: nn.Module | None) -> str | None:
    """Why the fused step cannot stand in for this norm; None where it can."""
    if module is None:
        return None
    if type(module) not in (nn.RMSNorm, RMSNorm, nn.LayerNorm, FP32LayerNorm):
        return f"is {type(module).__name__}, expected RMSNorm or LayerNorm"
    hooks = module._forward_pre_hooks or module._forward_hooks or module._backward_pre_hooks or module._backward_hooks
    if hooks or "forward" in module.__dict__:
        return "has hooks (as offloading sets them), which the fused step would not run"
    if module.eps is None:
        return "has eps None, expected a number"
    has_bias = getattr(module, "bias", None) is not None
    if has_bias != (isinstance(module, nn.LayerNorm) and module.weight is not None):
        found, expected = ("with", "without") if has_bias else ("without", "with")
        return f"is {type(module).__name__} {found} a bias, expected it {expected}"
    return None


def objection_to_norms(attn: Any) -> str | None:
    """Why the step cannot be done for an attention module; None where it can."""
    for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
        if objection := _objection_to_norm(getattr(attn, name, None)):
            return f"{name} {objection}"
    return None


def _norm(module: Any, dim: int) -> dict[str, Any]:
    """What a normrope.Segment says of the norm that a module computes to which there is no objection."""
    if module is None:
        return {}
    kind = "layer" if isinstance(module, nn.LayerNorm) else "rms"
    affine = "" if module.weight is None else "_affine"
    channels = math.prod(module.dim if isinstance(module, RMSNorm) else module.normalized_shape)
    return {
        "norm": kind + affine,
        "scope": "head" if channels == dim else "all_heads",
        "eps": module.eps,
        "weight": module.weight,
        "bias": getattr(module, "bias", None),
    }


class Last:
    """The last result of a function of tensors, kept while those very tensors live and are not written to.

    The layers of a model are handed the same tables: what the first of them makes of them serves all.

    Attributes:
        entry: the tensors, their versions and the result.
        classes: of the processors that share this, by what `patched` makes them for.
    """

    def __init__(self) -> None:
        self.entry: tuple[list[weakref.ref], list[int | None], Any] = ([], [], None)
        self.classes: dict[tuple[type, Any], Callable[[Any], Processor]] = {}

    def __reduce__(self) -> tuple:
        return Last, ()  # copies and pickles of a model share one of their own, with nothing in it

    def __call__(self, function: Callable[..., Any], *tensors: Tensor) -> Any:
        if torch.compiler.is_compiling():  # which sees by itself what is computed twice
            return function(*tensors)
        references, versions, result = self.entry
        now = [None if tensor.is_inference() else tensor._version for tensor in tensors]
        if versions != now or any(r() is not tensor for r, tensor in zip(references, tensors)):
            result = function(*tensors)
            self.entry = ([weakref.ref(tensor, self._forget) for tensor in tensors], now, result)
        return result

    def _forget(self, _: weakref.ref) -> None:
        self.entry = ([], [], None)


def _of_original(name: str) -> property:
    """An attribute that is the original processor's."""
    return property(lambda self: getattr(self.original, name), lambda self, value: setattr(self.original, name, value))


class Processor:
    """What an attention module calls in the place of `original`, and what leaves to `original` the calls that it must.

    Attributes:
        original: diffusers' processor.
        family: its row of `FAMILIES`.
        group: as in `patch`.
        last: what the layers of a model share.
        declined: why it last left a call to `original`; None if it never did.
    """

    def __init__(self, original: Any, family: Family, group: dist.ProcessGroup | None, last: Last) -> None:
        self.original, self.family, self.group, self.last = original, family, group, last
        self.declined: str | None = None

    def __deepcopy__(self, memo: dict) -> Processor:
        # A process group is no part of the model, and cannot be copied.
        original, last = copy.deepcopy((self.original, self.last), memo)
        return patched(original, self.family, self.group, last)

    def __reduce__(self) -> tuple:
        return patched, (self.original, self.family, self.group, self.last)

    # model.set_attention_backend() and model.enable_parallelism() set these, of processors that have them.
    _attention_backend = _of_original("_attention_backend")
    _parallel_config = _of_original("_parallel_config")

    def serves(self, attn: Any, objection: str | None = None) -> bool:
        """Whether to serve this call. If not, `declined` says why, and so does a warning, once."""
        objection = objection or objection_to_norms(attn)
        if objection is None:
            return True
        self.declined = objection
        if not torch.compiler.is_compiling():
            warnings.warn(f"normrope leaves attention to diffusers: {objection}", stacklevel=3)
        return False

    def attend(self, rows: tuple[Tensor, ...], mask: Tensor | None = None, **options: Any) -> Tensor:
        """Attention of query, key and value [B, S, N, D], computed as `original` has it computed: [B, S, N * D]."""
        query, key, value = rows
        if self.family.dispatched:
            result = dispatch_attention_fn(query, key, value, attn_mask=mask, **options)
        elif hasattr(self.original, "_attention_backend"):
            options = {"backend": self._attention_backend, "parallel_config": self._parallel_config} | options
            result = dispatch_attention_fn(query, key, value, attn_mask=mask, **options)
        else:
            query, key, value = (x.transpose(1, 2) for x in (query, key, value))
            result = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, **options).transpose(1, 2)
        return result.flatten(2, 3).to(query.dtype)

    def step(
        self,
        attn: Any,
        image: Stream,
        text: Stream | None,
        tables: Tables | None,
        position: int | None = None,
        turned: tuple[str, ...] = ("query", "key"),
    ) -> tuple[Tensor, ...]:
        """Norms, rope and joining: query, key and value [B, S, N, D].

        Args:
            attn: whose norms to apply.
            image: as projected; text is in it where text has no projections of its own.
            text: as projected, with norms of its own.
            tables: None for no rope.
            position: the tables' row for the image's first row, and text has no rope. None: the tables are for the
                joined sequence.
            turned: what the rope is for.
        """
        rope = {} if tables is None else {"rope": self.family.pairs, "cos": tables[0], "sin": tables[1]}
        streams = [
            ("", image, "norm_", rope and rope | {"rope_position": position}),
            ("encoder_", text, "norm_added_", rope if position is None else {}),
        ]
        segments = []
        for i, (projection, norm) in enumerate((("query", "q"), ("key", "k"), ("value", None))):
            for prefix, stream, norms, turn in streams[:: 1 if self.family.order == IMAGE_FIRST else -1]:
                if stream is not None:
                    x, heads = stream[i]
                    options = _norm(getattr(attn, norms + norm, None), x.shape[-1]) if norm else {}
                    options |= turn if projection in turned else {}
                    segments.append(Segment(x, projection, heads, name=prefix + projection, **options))
        # In memory heads come before positions, which PyTorch's attention reads faster.
        return tuple(x.transpose(1, 2) for x in norm_rope(segments, layout="BNSD", group=self.group))


def _heads(attn: Any, *projected: Tensor) -> Stream:
    """Each [B, S, N * D] as [B, S, N, D], with as many heads as this rank holds under tensor parallelism."""
    dim = getattr(attn, "head_dim", None) or attn.inner_dim // attn.heads
    return tuple((x.unflatten(-1, (-1, dim)), None) for x in projected)


def _parts(attn: Any, projected: Tensor, count: int) -> Stream:
    """The same of one projection that is `count` in a row, which is read, and its gradient written, where it is."""
    ((x, _),) = _heads(attn, projected)
    heads = x.shape[2] // count
    return tuple((x, (i * heads, heads)) for i in range(count))


def _out(attn: Any, hidden_states: Tensor) -> Tensor:
    """Through the output projection and its dropout, where there are such."""
    for module in getattr(attn, "to_out", None) or ():
        hidden_states = module(hidden_states)
    return hidden_states


def patched(original: Any, family: Family, group: dist.ProcessGroup | None, last: Last) -> Processor:
    """What serves an attention module in the place of `original`.

    Its class can be called without arguments for another of a new `original`: loaders of diffusers take the class of a
    processor, and call it.
    """
    kind = type(original)
    if (kind, group) not in last.classes:

        class Patched(family.pattern):  # type: ignore[misc, name-defined]
            def __init__(self, original: Any = None) -> None:
                super().__init__(kind() if original is None else original, family, group, last)

        Patched.__name__ = Patched.__qualname__ = family.pattern.__name__
        last.classes[kind, group] = Patched
    return last.classes[kind, group](original)


class TwoStreams(Processor):
    """Text and image attend to each other, as streams with projections of their own or as one."""

    def joint(
        self, attn: Any, image: Tensor, text: Tensor, mask: Tensor | None, rotary: Tables | None
    ) -> tuple[Tensor, Tensor]:
        """Image and text after attention to each other."""
        turn = 1 if self.family.order == IMAGE_FIRST else -1
        lengths = [image.shape[1], text.shape[1]][::turn]
        tables = self.tables(rotary)
        position = 0 if self.family.rope == "image" else None
        if getattr(attn, "add_q_proj", None) is None:
            stream = self.image(attn, torch.cat([image, text][::turn], dim=1))
            if position is not None and self.family.order == TEXT_FIRST:
                position = -text.shape[1]
            output = _out(attn, self.attend(self.step(attn, stream, None, tables, position), mask))
            return tuple(output.split(lengths, dim=1)[::turn])
        streams = self.image(attn, image), self.text(attn, text)
        image, text = self.attend(self.step(attn, *streams, tables, position), mask).split(lengths, dim=1)[::turn]
        return _out(attn, image), text if getattr(attn, "to_add_out", None) is None else attn.to_add_out(text)

    def image(self, attn: Any, hidden_states: Tensor) -> Stream:
        """The image's projections, or the joined stream's."""
        if self.family.packed and attn.fused_projections:
            return _parts(attn, attn.to_qkv(hidden_states), 3)
        return _heads(attn, attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states))

    def text(self, attn: Any, hidden_states: Tensor) -> Stream:
        """The text's."""
        if self.family.packed and attn.fused_projections:
            return _parts(attn, attn.to_added_qkv(hidden_states), 3)
        projected = (attn.add_q_proj(hidden_states), attn.add_k_proj(hidden_states), attn.add_v_proj(hidden_states))
        return _heads(attn, *projected)

    def tables(self, rotary: Any) -> Tables | None:
        """Cos and sin of what the model hands over for them."""
        return None if self.family.rope == "none" else rotary


class JointProcessor(TwoStreams):
    """Two streams, or one alone, with real tables."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Tables | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """As `original`."""
        text = encoder_hidden_states
        objection = None
        if text is None and self.family.alone == "declined":
            objection = "a call without text"
        if attention_mask is not None and self.family.mask == "declined":
            objection = "a call with an attention mask"
        if not self.serves(attn, objection):
            return self.original(
                attn,
                hidden_states,
                encoder_hidden_states=text,
                attention_mask=attention_mask,
                image_rotary_emb=image_rotary_emb,
            )
        mask = attention_mask
        if mask is not None and self.family.mask != "obeyed":
            mask = _pairs(mask, hidden_states.shape[1]) if self.family.mask == "pairs" else None
        if text is None:
            rows = self.step(attn, self.image(attn, hidden_states), None, self.tables(image_rotary_emb))
            output = self.attend(rows, mask)
            return _out(attn, output) if self.family.alone == "projected" else output
        return self.joint(attn, hidden_states, text, mask, image_rotary_emb)


class CachingProcessor(JointProcessor):
    """Two streams. Calls that keep keys and values for later ones, or use such, are left to `original`."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Tables | None = None,
        kv_cache: Any = None,
        kv_cache_mode: str | None = None,
        num_ref_tokens: int = 0,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """As `original`."""
        arguments = attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb
        if kv_cache_mode is None and getattr(kv_cache, "mode", None) in (None, "skip"):
            return super().__call__(*arguments)
        self.serves(attn, CACHED)
        cache = {"kv_cache": kv_cache, "kv_cache_mode": kv_cache_mode, "num_ref_tokens": num_ref_tokens}
        return self.original(*arguments, **{name: value for name, value in cache.items() if value})


def _pairs(mask: Tensor, image_length: int) -> Tensor:
    """A mask of the text behind the image [B, S_text], as one of the queries and keys that both are real."""
    real = F.pad(mask.bool(), (image_length, 0), value=True)
    return real[:, None, :, None] & real[:, None, None, :]


class QwenProcessor(TwoStreams):
    """Two streams with complex tables of their own, and a mask of the text."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        encoder_hidden_states_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As `original`."""
        if encoder_hidden_states is None or attention_mask is not None or not self.serves(attn):
            return self.original(
                attn,
                hidden_states,
                encoder_hidden_states=encoder_hidden_states,
                encoder_hidden_states_mask=encoder_hidden_states_mask,
                attention_mask=attention_mask,
                image_rotary_emb=image_rotary_emb,
            )
        if encoder_hidden_states_mask is not None:
            image_mask = encoder_hidden_states_mask.new_ones(hidden_states.shape[:2])
            attention_mask = torch.cat([encoder_hidden_states_mask, image_mask], dim=1)[:, None, None, :]
        return self.joint(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)

    def tables(self, rotary: tuple[Tensor, Tensor] | None) -> Tables | None:
        """Cos and sin of the complex tables of image and text."""
        return None if rotary is None else self.last(_joined_tables, *rotary)


def _joined_tables(image: Tensor, text: Tensor) -> Tables:
    """Cos and sin [S_text + S_image, D], of complex tables [S, D/2]."""
    return from_complex(torch.cat([text, image]))


class ParallelProcessor(Processor):
    """One stream, projected together with the MLP beside it."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Tables | None = None,
    ) -> Tensor:
        """As `original`."""
        if not self.serves(attn):
            return self.original(attn, hidden_states, attention_mask, image_rotary_emb)
        projected = attn.to_qkv_mlp_proj(hidden_states)
        # Under tensor parallelism a rank has its share of either part.
        qkv, mlp = 3 * attn.inner_dim, attn.mlp_hidden_dim * attn.mlp_mult_factor
        length = projected.shape[-1] * qkv // (qkv + mlp)
        qkv, mlp = projected.split([length, projected.shape[-1] - length], dim=-1)
        output = self.attend(self.step(attn, _parts(attn, qkv, 3), None, image_rotary_emb), attention_mask)
        return attn.to_out(torch.cat([output, attn.mlp_act_fn(mlp)], dim=-1))


class OneStream(Processor):
    """One stream that attends to itself or, without joining, to another one. It has a mask of its keys."""

    def single(
        self,
        attn: Any,
        hidden_states: Tensor,
        source: Tensor | None,
        mask: Tensor | None,
        rotary: Any,
        **options: Any,
    ) -> Tensor:
        """Attention of one stream to `source`, or to itself."""
        crossed = source is not None and source is not hidden_states
        source = hidden_states if source is None else source
        streams = _heads(attn, attn.to_q(hidden_states), attn.to_k(source), attn.to_v(source))
        turned = ("query",) if crossed else ("query", "key")
        tables = self.tables(attn, rotary, hidden_states.dtype)
        query, key, value = self.step(attn, streams, None, tables, turned=turned)
        if groups := query.shape[2] // key.shape[2] - 1:  # what attention takes with every backend and mask
            key, value = (x.repeat_interleave(groups + 1, dim=2) for x in (key, value))
        return _out(attn, self.attend((query, key, value), self.mask(attn, mask, source), **options))

    def mask(self, attn: Any, mask: Tensor | None, source: Tensor) -> Tensor | None:
        """The mask as attention takes it."""
        if mask is not None and self.family.mask == "prepared":
            mask = attn.prepare_attention_mask(mask, source.shape[1], source.shape[0])
            return mask.view(source.shape[0], attn.heads, -1, mask.shape[-1])
        return mask[:, None, None, :] if mask is not None and mask.ndim == 2 else mask

    def tables(self, attn: Any, rotary: Any, dtype: torch.dtype) -> Tables | None:
        """Cos and sin of what the model hands over for them: real, of all heads or of each, or complex."""
        if rotary is None:
            return None
        if isinstance(rotary, Tensor):
            return self.last(from_complex if dtype == torch.float64 else _single_tables, rotary)
        return tuple(x.unflatten(-1, (attn.heads, -1)) for x in rotary) if rotary[0].ndim == 3 else rotary


def _single_tables(table: Tensor) -> Tables:
    """Cos and sin in float32, of a complex table of that precision or twice that."""
    return from_complex(table.to(torch.complex64))


class SingleProcessor(OneStream):
    """One stream, whose rope is for self-attention."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Tensor:
        """As `original`."""
        arguments = attn, hidden_states, encoder_hidden_states, attention_mask
        crossed = encoder_hidden_states is not None and encoder_hidden_states is not hidden_states
        declined = crossed and image_rotary_emb is not None
        if not self.serves(attn, "a call with rope of another stream" if declined else None):
            return self.original(*arguments, image_rotary_emb=image_rotary_emb)
        return self.single(*arguments, image_rotary_emb)


class FreqsProcessor(OneStream):
    """One stream that attends to itself; its tables have another name."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        freqs_cis: Tensor | None = None,
    ) -> Tensor:
        """As `original`."""
        if not self.serves(attn):
            return self.original(attn, hidden_states, encoder_hidden_states, attention_mask, freqs_cis)
        return self.single(attn, hidden_states, None, attention_mask, freqs_cis)


class LuminaProcessor(OneStream):
    """One stream that attends to itself, with fewer heads of keys and attention scaled by the length."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Tensor | None = None,
        base_sequence_length: int | None = None,
    ) -> Tensor:
        """As `original`."""
        declined = encoder_hidden_states is not hidden_states
        arguments = attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb
        if not self.serves(attn, "a call with rope of another stream" if declined else None):
            return self.original(*arguments, base_sequence_length)
        scale = attn.scale
        if base_sequence_length is not None:
            scale *= math.sqrt(math.log(hidden_states.shape[1], base_sequence_length))
        mask = None if attention_mask is None else attention_mask.bool()
        return self.single(attn, hidden_states, encoder_hidden_states, mask, image_rotary_emb, scale=scale)


class HunyuanDiTProcessor(OneStream):
    """One stream that attends to itself or to a text; its queries turn in both."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        image_rotary_emb: Tables | None = None,
    ) -> Tensor:
        """As `original`."""
        arguments = attn, hidden_states, encoder_hidden_states, attention_mask
        plain = attn.spatial_norm is None and attn.group_norm is None and not attn.norm_cross
        plain = plain and not attn.residual_connection and attn.rescale_output_factor == 1
        plain = plain and hidden_states.ndim == 3 and attn.is_cross_attention == (encoder_hidden_states is not None)
        if not self.serves(attn, None if plain else "a call with more than norms and rope"):
            return self.original(*arguments, temb, image_rotary_emb)
        return self.single(*arguments, image_rotary_emb)


class CachingParallelProcessor(ParallelProcessor):
    """One stream beside the MLP. Calls that keep keys and values, or use such, are left to `original`."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Tables | None = None,
        kv_cache: Any = None,
        kv_cache_mode: str | None = None,
        num_txt_tokens: int = 0,
        num_ref_tokens: int = 0,
    ) -> Tensor:
        """As `original`."""
        arguments = attn, hidden_states, attention_mask, image_rotary_emb
        if kv_cache_mode is None:
            return super().__call__(*arguments)
        self.serves(attn, CACHED)
        return self.original(*arguments, kv_cache, kv_cache_mode, num_txt_tokens, num_ref_tokens)


def _paired_tables(cos: Tensor, sin: Tensor) -> Tables:
    """Tables [1, S, 1, D] of which a pair takes cos from its first entry and sin from its second, as [S, D]."""
    return from_half(cos[0, :, 0, 0::2], sin[0, :, 0, 1::2])


class WanProcessor(Processor):
    """Self-attention with rope, or cross-attention to a text and, with projections for it, to an image."""

    TEXT_LENGTH = 512  # of the text behind an image's tokens, as `original` has it

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Tables | None = None,
    ) -> Tensor:
        """As `original`."""
        if not self.serves(attn):
            return self.original(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
        text, image = encoder_hidden_states, None
        if text is not None and attn.add_k_proj is not None:
            image_length = text.shape[1] - self.TEXT_LENGTH
            image, text = text[:, :image_length], text[:, image_length:]
        tables = None if rotary_emb is None else self.last(_paired_tables, *rotary_emb)
        rows = self.step(attn, self.project(attn, hidden_states, text), None, tables)
        # Where keys and values of the text are not split.
        options = {} if text is None or self.family.split_text else {"parallel_config": None}
        output = self.attend(rows, attention_mask, **options)
        if image is not None:
            output = output + self.attend((rows[0], *self.keys_of_image(attn, image)), **options)
        return _out(attn, output)

    def project(self, attn: Any, hidden_states: Tensor, text: Tensor | None) -> Stream:
        """Queries, and keys and values of the text or, in self-attention, of the same."""
        fused, source = attn.fused_projections, hidden_states if text is None else text
        if fused and not attn.is_cross_attention:
            return _parts(attn, attn.to_qkv(hidden_states), 3)
        (query,) = _heads(attn, attn.to_q(hidden_states))
        return query, *(
            _parts(attn, attn.to_kv(source), 2) if fused else _heads(attn, attn.to_k(source), attn.to_v(source))
        )

    def keys_of_image(self, attn: Any, image: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, S, N, D] of the image, by their own norm: a few hundred rows, which nothing joins."""
        if attn.fused_projections:
            key, value = attn.to_added_kv(image).chunk(2, dim=-1)
        else:
            key, value = attn.add_k_proj(image), attn.add_v_proj(image)
        return tuple(x.unflatten(-1, (attn.heads, -1)) for x in (attn.norm_added_k(key), value))
