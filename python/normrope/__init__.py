"""normrope: the step between the QKV projections and attention of a multimodal transformer, in one pass over memory.

Normalise each head, rotate by position, join the image and text streams; forward and backward.
"""

from normrope._native import version as _version
from normrope.functional import Segment, norm_rope, norm_rope_concat

__version__ = _version()
__all__ = ["Segment", "norm_rope", "norm_rope_concat"]
