"""normrope: the step between the QKV projections and attention of a multimodal transformer, in one pass over memory.

Normalise each head, rotate by position, join the image and text streams; forward and backward. With PyTorch:
norm_rope_concat and norm_rope on tensors, normrope.nn.NormRopeConcat, normrope.tables. Without: the same two functions
on NumPy's arrays, and whatever speaks DLPack.
"""

from importlib import import_module as _import_module

from normrope import functional
from normrope._native import version as _version
from normrope.functional import Segment, explain, norm_rope, norm_rope_concat, norm_rope_concat_vjp, norm_rope_vjp

__version__ = _version()
__all__ = ["Segment", "explain", "norm_rope", "norm_rope_concat", "norm_rope_concat_vjp", "norm_rope_vjp"]

if functional.torch is not None:
    from normrope import nn, tables

    __all__ += ["nn", "tables"]


def __getattr__(name: str) -> object:
    """normrope.diffusers, which imports diffusers, when it is first asked for."""
    if name == "diffusers":
        return _import_module("normrope.diffusers")
    needs = ", which needs PyTorch" if name in ("distributed", "nn", "tables") else ""
    raise AttributeError(f"module 'normrope' has no attribute {name!r}{needs}")
