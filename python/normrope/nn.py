"""The step as a module, with its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from normrope import _spec
from normrope._spec import Layout, Norm, Order, Rope, RopeOn, Scope
from normrope.functional import norm_rope_concat

try:
    import torch
    from torch import Tensor, nn
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"{__name__} needs PyTorch: {error}", name=error.name) from error

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["NormRopeConcat"]


class NormRopeConcat(nn.Module):
    """norm_rope_concat with the weights of its norms.

    By default the norm is "rms_affine" and the rope "interleaved", which most models have: a module is made for its
    weights. norm_rope_concat itself does neither unless told.

    Args:
        dim: D, the channels of a head.
        heads: N; needed with `scope="all_heads"`, whose weights are [N * D].
        kv_heads: heads of the keys; default: as many.
        norm: of the image stream: "none", "layer", "layer_affine", "rms", "rms_affine" (the default), or 0 to 4.
        norm_added: of the text stream; default: the same. `added=False`: there is no text stream, or it has no weights
            of its own.
        added: whether the text stream has weights.
        shared: the text stream uses the image's weights.
        eps: added to the variance or mean square.
        eps_added: of the text stream; default: the same.
        rope: "none", "interleaved" (the default), "half", or the even width of a pairing block.
        order: who comes first in the joined sequence: "image_first" or "text_first".
        scope: what statistics run over: "head" or "all_heads".
        rope_on: "joined" or "image"; see norm_rope_concat.
        layout: of the results: "BNSD" or "BSND".
        device: of the weights.
        dtype: of the weights.

    Weights are ones and biases zeros at first. They are named as norm_rope_concat's arguments: norm_query_weight,
    norm_key_weight, norm_added_query_weight and so on; None where the norm has none.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int | None = None,
        kv_heads: int | None = None,
        norm: Norm = "rms_affine",
        norm_added: Norm | None = None,
        added: bool = True,
        shared: bool = False,
        eps: float = 1e-6,
        eps_added: float | None = None,
        rope: Rope = "interleaved",
        order: Order = "image_first",
        scope: Scope = "head",
        rope_on: RopeOn = "joined",
        layout: Layout = "BNSD",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.norm = _spec.norm_name("norm", norm)
        self.norm_added = self.norm if norm_added is None else _spec.norm_name("norm_added", norm_added)
        _spec.rope_width("rope", rope)
        _spec.order_number("order", order)
        for name, word, allowed in (
            ("scope", scope, _spec.SCOPES),
            ("rope_on", rope_on, _spec.ROPE_ON),
            ("layout", layout, _spec.LAYOUTS),
        ):
            _spec.choice(name, word, allowed)
        self.eps = _spec.eps_value("eps", eps)
        self.eps_added = self.eps if eps_added is None else _spec.eps_value("eps_added", eps_added)
        self.rope, self.order, self.scope = rope, order, scope
        self.rope_on, self.layout, self.shared = rope_on, layout, shared
        number = _spec.integer(dim)
        if number is None or number < 1:
            raise ValueError(f"dim: {dim!r}, expected a number from 1 on")
        self.dim, self.added = number, added
        sizes = {"query": dim, "key": dim}
        if scope == "all_heads":
            if heads is None:
                raise ValueError("heads: None, expected a number because scope is 'all_heads'")
            sizes = {"query": dim * heads, "key": dim * (heads if kv_heads is None else kv_heads)}
        norms = {"norm_": self.norm, "norm_added_": self.norm_added if added and not shared else "none"}
        for prefix, kind in norms.items():
            for projection, size in sizes.items():
                for parameter, make in (("weight", torch.ones), ("bias", torch.zeros)):
                    there = kind == "layer_affine" or (kind == "rms_affine" and parameter == "weight")
                    made = nn.Parameter(make(size, device=device, dtype=dtype)) if there else None
                    self.register_parameter(f"{prefix}{projection}_{parameter}", made)

    @classmethod
    def from_norms(
        cls,
        norm_query: nn.Module,
        norm_key: nn.Module,
        norm_added_query: nn.Module | None = None,
        norm_added_key: nn.Module | None = None,
        **options: Any,
    ) -> NormRopeConcat:
        """The step around norms that a model has already, LayerNorm or RMSNorm modules: it takes their parameters.

        Args:
            norm_query: of image queries: torch.nn.LayerNorm, torch.nn.RMSNorm, or a module that has a `weight` and
                maybe an `eps` or `variance_epsilon`.
            norm_key: of image keys.
            norm_added_query: of text queries; None: as `shared` in the options says.
            norm_added_key: of text keys.
            options: those of the class but norm, norm_added and added; dim is read from norm_query's weight, and eps
                and eps_added from the norms, unless they are given.

        Raises:
            ValueError: a norm is no LayerNorm or RMSNorm, or queries' and keys' are not alike; there is no eps to read.
        """
        given = {"query": norm_query, "key": norm_key, "added_query": norm_added_query, "added_key": norm_added_key}
        kinds = {name: _kind(name, module) for name, module in given.items() if module is not None}
        for name, other in (("key", "query"), ("added_key", "added_query")):
            if name in kinds and kinds[name] != kinds.get(other):
                raise ValueError(f"norm_{name}: {kinds[name]}, expected {kinds.get(other)} as norm_{other}")
        for option, name in (("eps", "query"), ("eps_added", "added_query")):
            if option not in options and name in kinds:
                options[option] = _eps(name, given[name])
                other = name.replace("query", "key")
                if (found := _eps(other, given[other])) != options[option]:
                    raise ValueError(f"norm_{other}: eps {found}, expected {options[option]} as norm_{name}'s")
        weight = getattr(norm_query, "weight", None)
        if "dim" not in options:
            if weight is None:
                raise ValueError("dim: missing, expected a number because norm_query has no weight")
            options["dim"] = weight.numel() // (options["heads"] if options.get("scope") == "all_heads" else 1)
        made = cls(
            norm=kinds["query"],
            norm_added=kinds.get("added_query"),
            added="added_query" in kinds,
            device="meta",
            **options,
        )
        for name, module in given.items():
            for parameter in ("weight", "bias"):
                if module is not None and getattr(made, f"norm_{name}_{parameter}") is not None:
                    setattr(made, f"norm_{name}_{parameter}", getattr(module, parameter))
        return made

    def forward(
        self,
        query: Tensor | None,
        key: Tensor | None,
        value: Tensor | None = None,
        encoder_query: Tensor | None = None,
        encoder_key: Tensor | None = None,
        encoder_value: Tensor | None = None,
        *,
        rope_cos: Tensor | None = None,
        rope_sin: Tensor | None = None,
        group: ProcessGroup | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """As norm_rope_concat: streams [B, S, N, D] to results [B, N, S + S_text, D] or [B, S + S_text, N, D]."""
        streams = {
            "norm_query": query,
            "norm_key": key,
            "norm_added_query": encoder_query,
            "norm_added_key": encoder_key,
        }
        weights: dict[str, Any] = {}
        for name, stream in streams.items():
            self._check(name, stream)
            for parameter in ("weight", "bias"):
                source = name.replace("_added", "") if self.shared else name
                if stream is not None:
                    weights[f"{name}_{parameter}"] = getattr(self, f"{source}_{parameter}")
        return norm_rope_concat(
            query,
            key,
            value,
            encoder_query,
            encoder_key,
            encoder_value,
            **weights,
            rope_cos=rope_cos,
            rope_sin=rope_sin,
            norm=self.norm,
            norm_added=self.norm_added,
            rope=self.rope,
            order=self.order,
            eps=self.eps,
            eps_added=self.eps_added,
            scope=self.scope,
            rope_on=self.rope_on,
            layout=self.layout,
            group=group,
        )

    def _check(self, name: str, stream: Tensor | None) -> None:
        """Refuses rows that the module was not made for, of the stream that this norm is of."""
        if stream is None:
            return
        argument = name.replace("norm_added_", "encoder_").removeprefix("norm_")
        if stream.shape[-1] != self.dim:
            raise ValueError(f"{argument}: dim {stream.shape[-1]}, expected {self.dim}, which the module was made with")
        if "_added_" in name and not (self.added or self.shared) and self.norm_added in ("layer_affine", "rms_affine"):
            raise ValueError(
                f"{argument}: given, expected None: the module was made with added=False and has no weights for text; "
                "with shared=True it takes the image's"
            )

    def extra_repr(self) -> str:
        """The options."""
        return (
            f"norm={self.norm!r}, norm_added={self.norm_added!r}, eps={self.eps}, eps_added={self.eps_added}, "
            f"rope={self.rope!r}, order={self.order!r}, scope={self.scope!r}, rope_on={self.rope_on!r}, "
            f"layout={self.layout!r}"
        )


def _eps(name: str, module: nn.Module | None) -> float:
    """What a norm adds to the variance or mean square."""
    for attribute in ("eps", "variance_epsilon"):
        eps = getattr(module, attribute, None)
        if eps is not None:
            return float(eps)
    why = "eps None, by which torch.nn.RMSNorm means that of the dtype" if hasattr(module, "eps") else "no eps"
    option = "eps_added" if name.startswith("added") else "eps"
    raise ValueError(f"norm_{name}: {why}, expected a number: there, or as the option {option}")


def _kind(name: str, module: nn.Module) -> Norm:
    """The norm that a module computes."""
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if isinstance(module, nn.LayerNorm):
        if weight is not None and bias is None:
            raise ValueError(f"norm_{name}: a LayerNorm with a weight and no bias, expected both or none")
        return "layer" if weight is None else "layer_affine"
    if "RMSNorm" in type(module).__name__:
        if bias is not None:
            raise ValueError(f"norm_{name}: an RMSNorm with a bias, expected none")
        return "rms" if weight is None else "rms_affine"
    raise ValueError(f"norm_{name}: a {type(module).__name__}, expected a LayerNorm or an RMSNorm")
