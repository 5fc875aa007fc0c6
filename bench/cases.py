"""Case files (docs/cases.md) as `normrope make-case` writes them, in one form: a list of segments and the tensors.

Presets are asked from the command, so there is no second list of them.
"""

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import safe_open


class NotComparedError(Exception):
    """A case that the comparison has no PyTorch program for."""


@dataclass(frozen=True)
class Segment:
    """One stream on its way into a joined tensor; fields as in nr_segment, tensors by their names in the case."""

    x: str
    joined: str
    position: int
    batch: int
    length: int
    heads: int
    dim: int
    norm: int = 0
    all_heads: bool = False
    eps: float = 1e-6
    rope_width: int = 0
    rope_length: int = 0
    rope_position: int = 0
    weight: str | None = None
    bias: str | None = None

    @property
    def has_mean(self) -> bool:
        """Whether the norm subtracts one."""
        return self.norm in (1, 2)

    @property
    def rotates(self) -> bool:
        """Whether its rows rotate; all do or none, or else this raises NotComparedError."""
        first, end = self.rope_position, self.rope_position + self.length
        if not self.rope_width or end <= 0 or first >= self.rope_length:
            return False
        if first < 0 or end > self.rope_length:
            raise NotComparedError(f"only a part of {self.x} rotates")
        return True


@dataclass(frozen=True)
class Case:
    """A problem with its data."""

    preset: str
    segments: tuple[Segment, ...]
    tensors: Mapping[str, torch.Tensor]

    @property
    def dtype(self) -> torch.dtype:
        """Of the rows."""
        return self.tensors[self.segments[0].x].dtype

    def in_float32(self) -> "Case":
        """The same numbers, exactly."""
        return replace(self, tensors={name: tensor.float() for name, tensor in self.tensors.items()})

    @property
    def joined(self) -> dict[str, tuple[Segment, ...]]:
        """The forward's outputs, each with its streams in the order of their positions."""
        names = dict.fromkeys(s.joined for s in self.segments)
        order = sorted(self.segments, key=lambda s: s.position)
        return {name: tuple(s for s in order if s.joined == name) for name in names}

    @property
    def shape(self) -> dict[str, int]:
        """The sizes, by the names that `normrope bench --json` gives them."""
        sizes = {s.x: s for s in self.segments}
        query, key = sizes["query"], sizes["key"]
        text = {name: sizes[name].length if name in sizes else 0 for name in ("encoderQuery", "encoderKey")}
        return {
            "batch": query.batch,
            "heads": query.heads,
            "kv_heads": key.heads,
            "dim": query.dim,
            "image": query.length,
            "text": text["encoderQuery"],
            "image_key": key.length,
            "text_key": text["encoderKey"],
        }


def gradient(name: str) -> str:
    """What the case calls the gradient of this tensor."""
    return "grad" + name[0].upper() + name[1:]


def _operator_segments(metadata: Mapping[str, str], shapes: Mapping[str, Sequence[int]]) -> list[dict[str, Any]]:
    """The short form's segments, in the words of the general one."""
    lengths = {name: shape[1] for name, shape in shapes.items() if len(shape) == 4}
    text_first = metadata.get("concatOrder", "0") == "1"
    segments = []
    for stream, norm_prefix, norm_type in (("", "norm", "normType"), ("encoder", "normAdded", "normAddedType")):
        for projection in ("Query", "Key", "Value"):
            name = stream + projection if stream else projection.lower()
            if name not in shapes:
                continue
            other = projection.lower() if stream else "encoder" + projection
            batch, length, heads, dim = shapes[name]
            position = lengths.get(other, 0) if bool(stream) != text_first else 0
            segment = {
                **{"name": name, "batch": batch, "length": length, "heads": heads, "dim": dim, "x": name},
                "y": {"tensor": projection.lower() + "Output", "position": position},
            }
            if projection != "Value":
                rope = int(metadata.get("ropeType", "0"))
                segment |= {
                    "norm": int(metadata.get(norm_type, "0")),
                    "eps": float(metadata.get("eps", "1e-6")),
                    "ropeWidth": (0, 2, dim)[rope],
                    "ropeLength": shapes["ropeCos"][0] if rope else 0,
                    "ropePosition": position,
                    "weight": norm_prefix + projection + "Weight",
                    "bias": norm_prefix + projection + "Bias",
                }
            segments.append(segment)
    return segments


def _segment(fields: Mapping[str, Any]) -> Segment:
    y = fields["y"] if isinstance(fields["y"], dict) else {"tensor": fields["y"]}
    if not isinstance(fields["x"], str) or y.keys() - {"tensor", "position"}:
        raise NotComparedError(f"{fields['name']} is a part of a larger tensor")
    norm, dim, width = fields.get("norm", 0), fields["dim"], fields.get("ropeWidth", 0)
    if fields.get("ropeDim", dim) not in (0, dim) or width not in (0, 2, dim):
        raise NotComparedError(f"the rope of {fields['name']} is neither interleaved nor half, over all channels")
    return Segment(
        x=fields["x"],
        joined=y["tensor"],
        position=y.get("position", 0),
        **{name: fields[name] for name in ("batch", "length", "heads", "dim")},
        norm=norm,
        all_heads=fields.get("scope", "head") == "allHeads",
        eps=fields.get("eps", 1e-6),
        rope_width=width,
        rope_length=fields.get("ropeLength", 0),
        rope_position=fields.get("ropePosition", 0),
        weight=fields["weight"] if norm in (2, 4) else None,
        bias=fields["bias"] if norm == 2 else None,
    )


def load(path: Path) -> Case:
    """Reads a case into memory of torch's own."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118  it is no mapping
        general = metadata.get("segments")
        described = json.loads(general) if general else _operator_segments(metadata, shapes)
        segments = tuple(_segment(fields) for fields in described)
        wanted = {name for s in segments for name in (s.x, gradient(s.joined), s.weight, s.bias) if name}
        if any(s.rotates for s in segments):
            wanted |= {"ropeCos", "ropeSin"}
        tensors = {name: file.get_tensor(name).clone() for name in sorted(wanted)}
    return Case(metadata.get("preset", path.stem), segments, tensors)


def make(command: Path, preset: str, dtype: str, options: Sequence[str], path: Path) -> None:
    """Has the command write the preset's case; the options are those of `normrope make-case`."""
    arguments = [command, "make-case", preset, "--dtype", dtype, *options, "-o", path]
    subprocess.run(arguments, check=True, stdin=subprocess.DEVNULL)


def presets(command: Path) -> list[str]:
    """The names of all presets."""
    answer = subprocess.run([command, "info", "--json"], check=True, capture_output=True, text=True).stdout
    return [preset["name"] for preset in json.loads(answer)["presets"]]


def folder() -> TemporaryDirectory:
    """Where a case lies while it is compared; TMPDIR says on which disk."""
    return TemporaryDirectory(prefix="normrope-")
